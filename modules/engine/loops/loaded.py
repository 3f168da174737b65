"""A loaded model as the generation loops get it, and what every loop's engine shares: text ↔ tokens, memory figures.

Not here: loading (loading/, zero3/), generating (serial.py, batched.py).
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import psutil
import torch

from modules.engine.base import EngineStats, ModelInfo, TextPiece
from modules.engine.control_tokens import PieceEncoder
from modules.engine.loops.sight import Eyes
from modules.engine.loops.spelling import Spelling
from modules.engine.panics import no_panics
from modules.engine.process.footprint import peaks_by_device
from modules.engine.text import Decode
from modules.memory.forecasting.forecast import kv_work_bytes
from modules.memory.planning.planner import Plan


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready to run. `device` is where input ids go; `eos_ids` end a reply; `plan` says what may be used.

    `draft` is a smaller model of the same vocabulary that guesses ahead, if there is one; `eyes` are what it sees with.

    `model` is a transformers model with a `generation_config`, or a DeepSpeed engine's module: it is called as
    `model(input_ids=…, past_key_values=…, use_cache=True)`.
    """

    model: Any
    tokenizer: Any
    plan: Plan
    device: torch.device
    eos_ids: frozenset[int]
    is_encoder_decoder: bool
    info: ModelInfo
    draft: LoadedModel | None = None
    eyes: Eyes | None = None

    @property
    def kv_budget_bytes(self) -> int:
        """Bytes that the plan sets aside for KV caches on all devices; 0 where it says nothing."""
        planned = sum(budget.kv_cache for budget in self.plan.budgets.values())
        return max(0, planned - kv_work_bytes(self.plan.spec, self.plan.run))


class TokenizerFace:
    """Engine.info, encode and decode over a transformers tokenizer. Safe to call from any thread."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded = loaded
        self._codec = PieceCodec(loaded.tokenizer)

    @property
    def info(self) -> ModelInfo:
        """What was loaded."""
        return self.loaded.info

    def encode(self, pieces: Sequence[TextPiece]) -> list[int]:
        """Token ids of the pieces; content never yields control tokens. See PieceCodec.

        Where the model sees, the place of a picture becomes as many tokens as one of that size has.
        """
        eyes = self.loaded.eyes
        if eyes is not None:
            pieces = [
                TextPiece(eyes.expansion(piece.picture).text, template=True) if piece.picture else piece
                for piece in pieces
            ]
        return self._codec.encode(pieces)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of `token_ids`, control tokens included."""
        return self._codec.decode(token_ids)


class PieceCodec:
    """Pieces of text ↔ token ids, content never read as control tokens.

    Control tokens are the tokenizer's special tokens (not the unknown token) and the other added tokens that the chat
    template writes, as in transformers' `sanitize_control_tokens`.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._spelling: Spelling | None = None  # made where bytes are wanted
        # Fast tokenizers set options on a shared Rust object before they encode, and let other threads go on meanwhile.
        # Reading ids never sets any: no reply waits for its next words while somebody's long text is encoded.
        self._encoding, self._decoding = threading.Lock(), threading.Lock()
        template = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else ""
        control = {
            token.content: index
            for index, token in tokenizer.added_tokens_decoder.items()
            if token.content and (token.special or (token.content in template and not token.content.isspace()))
        }
        self._encoder = PieceEncoder(
            lambda text: tokenizer._encode_without_added_tokens(text),  # slow tokenizers have none
            partial(tokenizer.encode, add_special_tokens=False),
            control,
            tokenizer.unk_token_id,
        )

    def encode(self, pieces: Sequence[TextPiece]) -> list[int]:
        """Token ids of the pieces in order, with none added before or after."""
        with self._encoding, no_panics():
            return self._encoder.encode(pieces)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of `token_ids`, control tokens included, spaces as they are."""
        with self._decoding, no_panics():
            text: str = self._tokenizer.decode(
                list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        return text

    def shown(self, token_ids: Sequence[int]) -> str:
        """The text of `token_ids` as a reader sees it: special tokens left out."""
        with self._decoding, no_panics():
            text: str = self._tokenizer.decode(
                list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        return text

    def spelled(self, token_id: int) -> bytes | None:
        """The bytes of one token; None where its text is all that is known."""
        with self._decoding, no_panics():
            self._spelling = self._spelling or Spelling(self._tokenizer)
            return self._spelling.of(token_id)

    def showing(self, marks: Sequence[str]) -> Decode:
        """`shown`, but with those special tokens whose texts are `marks`."""
        kept = {
            index: token.content
            for index, token in self._tokenizer.added_tokens_decoder.items()
            if token.special and token.content in marks
        }
        return partial(self._shown_with, kept) if kept else self.shown

    def _shown_with(self, kept: Mapping[int, str], token_ids: Sequence[int]) -> str:
        texts = []
        for is_kept, run in groupby(token_ids, key=kept.__contains__):
            ids = list(run)
            texts.append("".join(kept[index] for index in ids) if is_kept else self.shown(ids))
        return "".join(texts)


def process_memory(active: int, queued: int, kv_used: int, kv_total: int, longest: int) -> EngineStats:
    """EngineStats of this process now. Counts are rows and tokens."""
    gpu = {f"cuda:{index}": torch.cuda.memory_allocated(index) for index in range(torch.cuda.device_count())}
    return EngineStats(
        active=active,
        queued=queued,
        rss_bytes=psutil.Process().memory_info().rss,
        gpu_bytes=gpu,
        kv_tokens_used=kv_used,
        kv_tokens_total=kv_total,
        longest_tokens=longest,
        peak_bytes=peaks_by_device(),
    )
