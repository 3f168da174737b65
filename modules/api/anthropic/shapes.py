"""From replies to Anthropic's JSON: whole messages, and the events of a stream in their exact order. Pure.

A stream is message_start, ping, then for each block its start, its deltas and its stop, then message_delta with the
reason and the counts, then message_stop.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from modules.api.shapes import Json
from modules.api.single import End
from modules.api.sse import ANTHROPIC, event
from modules.chat.reply_reading import CallBegun, Part, Said, Thought
from modules.engine.base import TokenLogprob, Usage
from modules.errors import SnugError

SIGNATURE = "snug"
"""Snug signs no thoughts and checks none that come back; clients want something there."""


@dataclass(frozen=True, slots=True)
class MessageShape:
    """How one answer is told. `stop` are the client's own stop sequences, `max_tokens` its limit; thoughts are told
    where it `shows_thoughts`.
    """

    model: str
    max_tokens: int
    stop: tuple[str, ...] = ()
    shows_thoughts: bool = False
    key: str = field(default_factory=lambda: f"msg_{uuid.uuid4().hex}")

    def whole(self, parts: Sequence[Part], end: End) -> Json:
        """A message in one piece."""
        blocks = _Blocks(self.shows_thoughts)
        for part in parts:
            blocks.add(part)
        return self._message(blocks.whole(), usage_json(end.finished.usage)) | self.reason(end)

    def events(self, prompt_tokens: int) -> MessageEvents:
        """The message as a stream."""
        return MessageEvents(self, prompt_tokens)

    def opening(self, prompt_tokens: int, cached_tokens: int) -> Json:
        """The message before it has content."""
        usage = usage_json(Usage(prompt_tokens, min(cached_tokens, prompt_tokens), 0))
        return self._message([], usage) | {"stop_reason": None, "stop_sequence": None}

    def reason(self, end: End) -> Json:
        """Why the message ended."""
        finished = end.finished
        if finished.reason == "length":
            full = finished.usage.completion_tokens < self.max_tokens
            return {"stop_reason": "model_context_window_exceeded" if full else "max_tokens", "stop_sequence": None}
        if finished.stopped_by in self.stop:
            return {"stop_reason": "stop_sequence", "stop_sequence": finished.stopped_by}
        return {"stop_reason": "tool_use" if end.called else "end_turn", "stop_sequence": None}

    def _message(self, content: list[Json], usage: Json) -> Json:
        return {
            "id": self.key, "type": "message", "role": "assistant", "model": self.model, "content": content,
            "usage": usage,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Told:
    """What one part adds: `begins` is a block that it opens, `field` and `text` go to the block that is open."""

    kind: str
    begins: Json | None
    field: str = ""
    text: str = ""


class _Blocks:
    """The blocks of one message as they grow."""

    def __init__(self, shows_thoughts: bool) -> None:
        self._shows_thoughts = shows_thoughts
        self._blocks: list[tuple[Json, list[str]]] = []
        self.open = ""

    def add(self, part: Part) -> _Told | None:
        """Take in a part; None for one that the client does not get."""
        if isinstance(part, Thought):
            return self._grow("thinking", "thinking", part.text) if self._shows_thoughts else None
        if isinstance(part, Said):
            return self._grow("text", "text", part.text)
        if isinstance(part, CallBegun):
            return self._begin("tool_use", {"type": "tool_use", "id": part.id, "name": part.name, "input": {}})
        self._blocks[-1][1].append(part.text)
        return _Told("tool_use", None, "partial_json", part.text)

    def begin_text(self) -> _Told | None:
        """An empty text, where there is neither text nor a call."""
        told = any(block["type"] in ("text", "tool_use") for block, _ in self._blocks)
        return None if told else self._grow("text", "text", "")

    @property
    def last(self) -> int:
        """The place of the block that is open."""
        return len(self._blocks) - 1

    def whole(self) -> list[Json]:
        """The blocks with all that came."""
        self.begin_text()
        return [_filled(block, "".join(texts)) for block, texts in self._blocks]

    def _grow(self, kind: str, field: str, text: str) -> _Told:
        told = _Told(kind, None, field, text)
        if self.open != kind:
            empty: Json = {"type": kind, field: ""} | ({"signature": ""} if kind == "thinking" else {})
            told = _Told(kind, self._begin(kind, empty).begins, field, text)
        self._blocks[-1][1].append(text)
        return told

    def _begin(self, kind: str, block: Json) -> _Told:
        self._blocks.append((block, []))
        self.open = kind
        return _Told(kind, block)


def _filled(block: Json, text: str) -> Json:
    """A block with all its text; arguments that were cut, or are no object, are told as none."""
    if block["type"] == "tool_use":
        try:
            given = json.loads(text or "{}")
        except (ValueError, RecursionError):
            given = {}
        return block | {"input": given if isinstance(given, dict) else {}}
    signed = {"signature": SIGNATURE} if block["type"] == "thinking" else {}
    return block | {block["type"]: text} | signed


class MessageEvents:
    """The events of one stream."""

    def __init__(self, shape: MessageShape, prompt_tokens: int) -> None:
        self._shape = shape
        self._prompt_tokens = prompt_tokens
        self._blocks = _Blocks(shape.shows_thoughts)
        self._open = ""

    def begin(self, cached_tokens: int) -> bytes:
        """What every stream begins with."""
        opening = self._shape.opening(self._prompt_tokens, cached_tokens)
        return _event("message_start", message=opening) + _event("ping")

    def parts(self, parts: Sequence[Part], logprobs: Sequence[TokenLogprob] = ()) -> bytes:  # noqa: ARG002 - not told
        """What the client hears of more of the reply."""
        return b"".join(self._part(self._blocks.add(part)) for part in parts)

    def end(self, end: End, degraded: Json) -> bytes:
        """What every stream ends with that ends well."""
        rest = self._part(self._blocks.begin_text()) + self._close()
        usage = usage_json(end.finished.usage)
        told = _event("message_delta", delta=self._shape.reason(end), usage=usage, **degraded)
        return rest + told + _event("message_stop")

    def failure(self, error: SnugError, request_id: str) -> bytes:
        """The last event of a stream that `error` ends."""
        return ANTHROPIC.failure(error, request_id)

    def _part(self, told: _Told | None) -> bytes:
        if told is None:
            return b""
        begun = b"" if told.begins is None else self._start(told)
        if not told.text:
            return begun
        kind = "input_json_delta" if told.kind == "tool_use" else f"{told.field}_delta"
        return begun + self._delta({"type": kind, told.field: told.text})

    def _start(self, told: _Told) -> bytes:
        closed = self._close(self._blocks.last - 1)
        self._open = told.kind
        return closed + _event("content_block_start", index=self._blocks.last, content_block=told.begins)

    def _delta(self, delta: Json, index: int | None = None) -> bytes:
        return _event("content_block_delta", index=self._blocks.last if index is None else index, delta=delta)

    def _close(self, index: int | None = None) -> bytes:
        """The end of the block that is open, if one is; it stands at `index`, or last."""
        if not self._open:
            return b""
        place = self._blocks.last if index is None else index
        signed = self._open == "thinking"
        self._open = ""
        before = self._delta({"type": "signature_delta", "signature": SIGNATURE}, place) if signed else b""
        return before + _event("content_block_stop", index=place)


def usage_json(usage: Usage) -> Json:
    """Anthropic's `usage`: tokens that were read from the cache are not among `input_tokens`."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }


def _event(name: str, /, **fields: Any) -> bytes:
    return event({"type": name} | fields, name)
