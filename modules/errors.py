"""Every error that a user may see: what was wrong, the value got, and what to do next.

A SnugError crosses process borders, becomes an API error body, and is one line in a terminal.
Not for bugs: those stay ordinary exceptions with a traceback in the log.
"""

from __future__ import annotations

from typing import ClassVar


class SnugError(Exception):
    """An error with a stable `code`, a sentence for people, a `remedy`, and the name of the bad `param`, if one is."""

    code: ClassVar[str] = "internal_error"
    http_status: ClassVar[int] = 500

    def __init__(self, message: str, *, remedy: str = "", param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        self.param = param

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}".strip()

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.message, self.remedy, self.param)


def _rebuild(kind: type[SnugError], message: str, remedy: str, param: str | None) -> SnugError:
    return kind(message, remedy=remedy, param=param)


# What the user gave


class BadFlag(SnugError):
    code, http_status = "bad_flag", 400


class BadValue(SnugError):
    code, http_status = "bad_value", 400


class BadName(SnugError):
    code, http_status = "bad_name", 400


class BadGrammar(BadValue):
    """A grammar or a JSON schema that no reply can be held to here."""

    code, http_status = "bad_grammar", 400


class BadPreset(SnugError):
    code, http_status = "bad_preset", 400


class BadCharacter(SnugError):
    code, http_status = "bad_character", 400


class BadAttachment(SnugError):
    code, http_status = "bad_attachment", 400


class NotFound(SnugError):
    code, http_status = "not_found", 404


class ContextLengthExceeded(SnugError):
    code, http_status = "context_length_exceeded", 400


# Model files


class ModelNotFound(SnugError):
    code, http_status = "model_not_found", 404


class BadConfig(SnugError):
    code, http_status = "bad_config", 400


class BadSafetensors(SnugError):
    code, http_status = "bad_safetensors", 400


class BadGguf(SnugError):
    code, http_status = "bad_gguf", 400


class BadLora(SnugError):
    code, http_status = "bad_lora", 400


class BadTokenizer(SnugError):
    code, http_status = "bad_tokenizer", 400


class BadChatTemplate(SnugError):
    code, http_status = "bad_chat_template", 400


class PickleRefused(SnugError):
    code, http_status = "pickle_refused", 400


class RemoteCodeDisabled(SnugError):
    code, http_status = "remote_code_disabled", 400


class UnsupportedModel(SnugError):
    code, http_status = "unsupported_model", 400


class DownloadFailed(SnugError):
    code, http_status = "download_failed", 502


class Damaged(SnugError):
    """What arrived is not what the hub says it is."""

    code, http_status = "damaged", 502


# The machine and the engine


class NotAvailableHere(SnugError):
    code, http_status = "not_available_here", 400


class OutOfMemory(SnugError):
    code, http_status = "out_of_memory", 507


class DiskFull(SnugError):
    code, http_status = "disk_full", 507


class NoModelLoaded(SnugError):
    code, http_status = "no_model_loaded", 503


class Busy(SnugError):
    code, http_status = "busy", 409


class QueueFull(SnugError):
    code, http_status = "queue_full", 503


class LoadFailed(SnugError):
    code, http_status = "load_failed", 500


class EngineDied(SnugError):
    code, http_status = "engine_died", 503


class ServerLost(EngineDied):
    """The server that runs the model does not answer, or stopped in the midst of a reply."""

    code, http_status = "server_lost", 502


class ServerRefused(SnugError):
    """The server that runs the model wants nothing of what it is asked: a key, a route, another address."""

    code, http_status = "server_refused", 502


class GenerationFailed(SnugError):
    code, http_status = "generation_failed", 500


class ModelChanged(GenerationFailed):
    """Somebody loaded another model, or unloaded this one, during the reply."""

    code, http_status = "model_changed", 503


class TimedOut(SnugError):
    code, http_status = "timed_out", 504


# The store and the doors


class StoreFailed(SnugError):
    code, http_status = "not_saved", 503


class StaleView(SnugError):
    code, http_status = "stale_view", 409


class UserDataInUse(SnugError):
    code, http_status = "user_data_in_use", 409


class Unauthorized(SnugError):
    code, http_status = "unauthorized", 401


class Forbidden(SnugError):
    code, http_status = "forbidden", 403


class BodyTooLarge(SnugError):
    code, http_status = "body_too_large", 413


class WrongHost(SnugError):
    code, http_status = "wrong_host", 421


class MethodNotAllowed(SnugError):
    code, http_status = "method_not_allowed", 405


class TooManyAttempts(SnugError):
    code, http_status = "too_many_attempts", 429
