"""Texts → vectors with a model of transformers that embeds: texts of like length are read together, users in turn.

An Engine that writes nothing. How hidden states become one vector is pooling.py's.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial

from modules.engine.base import Emit, EngineStats, GenerationRequest, TextPiece
from modules.engine.embedding import EmbeddingTelling
from modules.engine.intake import QUEUE_LIMIT, Intake, check_embeds, check_generates, check_ids
from modules.engine.loops.loaded import LoadedModel, TokenizerFace, process_memory
from modules.engine.loops.pooling import embed
from modules.engine.loops.reply import as_snug_error, end_without_gpu, is_out_of_memory
from modules.engine.loops.serial import release_memory
from modules.errors import OutOfMemory, SnugError
from modules.heap import LARGE_STEP_TOKENS, give_back
from modules.memory.forecasting.encoding import batch_tokens
from modules.memory.model.embedder import Embedder

log = logging.getLogger(__name__)

# So many texts at most are looked through for those that go together.
GATHERED = 32
# Of what a batch computes, at most this share is padding.
MOST_PADDING = 0.25


def choose_batch(lengths: Sequence[int], most_tokens: int) -> list[int]:
    """Which of the texts with these `lengths` to read together: the first, and those nearest to it in length, as long
    as all of them, filled up to the longest, have at most `most_tokens` tokens, of which few are padding.
    """
    chosen, longest, total = [0], lengths[0], lengths[0]
    for index in sorted(range(1, len(lengths)), key=lambda index: abs(lengths[index] - lengths[0])):
        widest = max(longest, lengths[index])
        filled, real = widest * (len(chosen) + 1), total + lengths[index]
        if filled > most_tokens or filled - real > MOST_PADDING * filled:
            break
        chosen.append(index)
        longest, total = widest, real
    return chosen


class EncoderEngine(Intake[EmbeddingTelling], TokenizerFace):
    """An Engine whose model is used by one thread only. That thread makes every `emit`."""

    def __init__(self, loaded: LoadedModel, embedder: Embedder, *, queue_limit: int = QUEUE_LIMIT) -> None:
        TokenizerFace.__init__(self, loaded)
        Intake.__init__(self, f"{loaded.info.loop} loop", queue_limit=queue_limit)
        self._embedder = embedder
        self._most_tokens = batch_tokens(loaded.plan.run)
        self._taken: list[EmbeddingTelling] = []  # from the queue, in their order
        pad_id = loaded.tokenizer.pad_token_id
        pad_id = loaded.model.config.pad_token_id if pad_id is None else pad_id
        self._pad_id = 0 if pad_id is None else int(pad_id)
        self._start()

    def submit(self, request: GenerationRequest, emit: Emit) -> None:
        """Queue a text. Raises NotAvailableHere for what is to be answered, ContextLengthExceeded, QueueFull, or
        BadValue for an empty text, ids that are not the model's or a known id.
        """
        if not request.embed:
            check_generates(self.loaded.info)
        check_ids(request, self.loaded.info.vocab_size)
        check_embeds(self.loaded.info, len(request.prompt_ids))
        self._enqueue(EmbeddingTelling(request, emit))

    def encode(self, pieces: Sequence[TextPiece]) -> list[int]:
        """Token ids of the pieces; in small letters where the model was trained so."""
        if self._embedder.lowercases:
            pieces = [TextPiece(piece.text.lower(), piece.template) for piece in pieces]
        return super().encode(pieces)

    def stats(self) -> EngineStats:
        """How busy the engine is now."""
        return process_memory(len(self._active), len(self._queue), 0, 0, self._longest_seen)

    def _check_machine(self, error: Exception) -> None:
        end_without_gpu(error)

    def _work(self) -> bool:
        while len(self._taken) < GATHERED and (text := self._next()) is not None:
            self._taken.append(text)
        self._attend()
        for text in [text for text in self._taken if text.cancelled]:
            self._taken.remove(text)
            self._leave(text, partial(text.finish, "cancelled"))
        if not self._taken:
            return False
        chosen = choose_batch([len(text.request.prompt_ids) for text in self._taken], self._most_tokens)
        batch = [self._taken[index] for index in chosen]
        self._taken = [text for text in self._taken if text not in batch]
        self._serve(batch)
        return True

    def _serve(self, batch: Sequence[EmbeddingTelling]) -> None:
        """Read a batch and tell its ends; where that fails, one text after the other, so that each has its own end."""
        for text in batch:
            text.begin()
        try:
            vectors: Sequence[Sequence[float]] = self._read(batch)
            failed = None
        except Exception as error:
            end_without_gpu(error)
            if is_out_of_memory(error) and len(batch) > 1:
                self._most_tokens //= 2
                log.warning(
                    "out of memory in a batch of %d texts; from now on %d tokens", len(batch), self._most_tokens
                )
            failed = _named(error) if len(batch) == 1 else None
            vectors = []
        # Only here, where the error is gone, is nothing held by the frames that it went through.
        if vectors:
            for text, vector in zip(batch, vectors, strict=True):
                self._leave(text, partial(_end, text, vector))
        elif failed is not None:
            release_memory()
            self._leave(batch[0], partial(batch[0].finish, "error", failed))
        else:
            release_memory()
            for text in batch:
                self._serve([text])

    def _read(self, batch: Sequence[EmbeddingTelling]) -> list[list[float]]:
        texts = [text.request.prompt_ids for text in batch]
        found = embed(self.loaded.model, self.loaded.device, texts, self._embedder, self._pad_id)
        if sum(map(len, texts)) >= LARGE_STEP_TOKENS:
            give_back()
        vectors: list[list[float]] = found.tolist()
        return vectors

    def _shut_down(self) -> None:
        self._taken = []
        for text in list(self._active.values()):
            self._leave(text, partial(text.finish, "cancelled"))


def _named(error: Exception) -> SnugError:
    """Why one text alone could not be read, for who sent it."""
    if is_out_of_memory(error):
        log.error("out of memory with one text: %s", error)
        return OutOfMemory(
            "Memory ran out while the text was read.",
            remedy="Send it in parts, load the model in fewer bits, or close other programs.",
        )
    return as_snug_error(error)


def _end(text: EmbeddingTelling, vector: Sequence[float]) -> None:
    """Tell a text's vector and its one end."""
    if text.cancelled:
        text.finish("cancelled")
        return
    try:
        text.finish(text.tell(vector))
    except SnugError as error:
        text.finish("error", error)
