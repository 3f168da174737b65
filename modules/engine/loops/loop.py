"""What both generation loops share: requests that are checked, the model's text face, the thread that owns the model.

A subclass gives `_work`, which runs in that thread. Sampling and text are Reply's, models are the subclass's.
"""

from __future__ import annotations

from abc import abstractmethod

from modules.engine.base import Emit, EngineStats, GenerationRequest
from modules.engine.form_reading import FormReader
from modules.engine.intake import QUEUE_LIMIT, Intake, check_embeds, check_fits, check_ids, check_sees
from modules.engine.loops.foreign import ForeignScripts
from modules.engine.loops.held import Forms
from modules.engine.loops.loaded import LoadedModel, TokenizerFace, process_memory
from modules.engine.loops.reply import Reply, end_without_gpu

__all__ = ["QUEUE_LIMIT", "LoopEngine"]


class LoopEngine(Intake[Reply], TokenizerFace):
    """An Engine whose model is used by one thread only. That thread makes every `emit`."""

    def __init__(self, loaded: LoadedModel, *, queue_limit: int = QUEUE_LIMIT) -> None:
        TokenizerFace.__init__(self, loaded)
        self._foreign = ForeignScripts(loaded)
        self._form_reader = FormReader()
        self._forms = Forms(loaded, self._form_reader)
        Intake.__init__(self, f"{loaded.info.loop} loop", queue_limit=queue_limit)

    @abstractmethod
    def _kv_tokens(self) -> tuple[int, int]:
        """Tokens in KV caches, and how many fit."""

    def submit(self, request: GenerationRequest, emit: Emit) -> None:
        """Queue a request. Raises ContextLengthExceeded, QueueFull, BadValue for an empty prompt or a known id,
        BadGrammar and NotAvailableHere for a form of the reply that cannot be held.
        """
        self._check(request)
        longest, held = self._longest_sequence(), self._forms.held(request)
        self._enqueue(Reply(request, emit, self.loaded, self._codec, longest=longest, foreign=self._foreign, held=held))

    def close(self) -> None:
        """Cancel everything, wait for the thread, and let go of the caches."""
        super().close()
        self._form_reader.close()

    def stats(self) -> EngineStats:
        """How busy the engine is now."""
        return process_memory(len(self._active), len(self._queue), *self._kv_tokens(), self._longest_seen)

    def _check_machine(self, error: Exception) -> None:
        end_without_gpu(error)

    def _check(self, request: GenerationRequest) -> None:
        if request.embed:
            check_embeds(self.loaded.info, len(request.prompt_ids))
        check_ids(request, self.loaded.info.vocab_size)
        check_sees(self.loaded.info, len(request.pictures))
        if self.loaded.eyes is not None:
            self.loaded.eyes.check(request.prompt_ids, request.pictures)
        prompt, reply = len(request.prompt_ids), len(request.reply_ids)
        total = max(prompt, reply + 2) if self.loaded.is_encoder_decoder else prompt + reply
        check_fits(total, self._longest_sequence(), can_grow=self.loaded.info.can_grow)

    def _longest_sequence(self) -> int:
        """Prompt and reply together, in tokens."""
        return self.loaded.info.context_tokens
