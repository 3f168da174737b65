"""A loaded model as the generation loops get it, and what every loop's engine shares: text ↔ tokens, memory figures.

Not here: loading (huggingface.py, zero3.py), generating (serial.py, batched.py).
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import psutil
import torch

from modules.engine.base import EngineStats, ModelInfo, TextPiece
from modules.engine.footprint import peaks_by_device
from modules.memory.planner import Plan

# Private-use characters: what is between them is encoded as plain text. The same as transformers'
# utils/chat_template_utils.py uses for `sanitize_control_tokens`.
_START, _END = "\U000f0000", "\U000f0001"
_LONGEST_CONTROL = 200


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready to run. `device` is where input ids go; `eos_ids` end a reply; `plan` says what may be used.

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

    @property
    def kv_budget_bytes(self) -> int:
        """Bytes that the plan sets aside for KV caches on all devices; 0 where it says nothing."""
        return sum(budget.kv_cache for budget in self.plan.budgets.values())


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
        """Token ids of the pieces; content never yields control tokens. See PieceCodec."""
        return self._codec.encode(pieces)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of `token_ids`, control tokens included."""
        return self._codec.decode(token_ids)


class PieceCodec:
    """Pieces of text ↔ token ids, content never read as control tokens.

    Control tokens are the tokenizer's special tokens (not the unknown token) and the other added tokens that the chat
    template writes, as in transformers' `sanitize_control_tokens`. Text without any of them in its content gets
    exactly the ids that the tokenizer gives to the whole text, so a piece border is no token border by itself.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._lock = threading.Lock()  # fast tokenizers set options on a shared Rust object while encoding
        template = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else ""
        control = {
            token.content: index
            for index, token in tokenizer.added_tokens_decoder.items()
            if token.content and (token.special or (token.content in template and not token.content.isspace()))
        }
        longest_first = sorted(control, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._control_ids = frozenset(control.values()) - {tokenizer.unk_token_id}

    def encode(self, pieces: Sequence[TextPiece]) -> list[int]:
        """Token ids of the pieces in order, with none added before or after."""
        merged = [
            TextPiece("".join(piece.text for piece in run), template)
            for template, run in groupby(pieces, key=lambda piece: piece.template)
        ]
        with self._lock:
            ids = self._encode_stretches(_stretches(merged, self._control))
            if self._count(ids) <= sum(len(self._control.findall(p.text)) for p in merged if p.template):
                return ids
            # Rare: a normalizer or a unigram vocabulary made a control token from other text. Piece by piece then.
            return [token for piece in merged for token in self._encode_alone(piece)]

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of `token_ids`, control tokens included, spaces as they are."""
        with self._lock:
            text: str = self._tokenizer.decode(
                list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        return text

    def shown(self, token_ids: Sequence[int]) -> str:
        """The text of `token_ids` as a reader sees it: special tokens left out."""
        with self._lock:
            text: str = self._tokenizer.decode(
                list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        return text

    def _encode_stretches(self, stretches: Iterable[tuple[str, bool]]) -> list[int]:
        ids: list[int] = []
        for text, as_text in stretches:
            ids += self._encode_one(text, as_text=as_text, at_start=not ids)
        return ids

    def _encode_one(self, text: str, *, as_text: bool, at_start: bool) -> list[int]:
        """Ids of one stretch. Within a text it follows a newline, so that no space is put before it, as
        transformers' `encode_marked_chat` does."""
        encode = (
            self._tokenizer._encode_without_added_tokens
            if as_text
            else partial(self._tokenizer.encode, add_special_tokens=False)
        )
        if at_start:
            return list(encode(text))
        newline = list(self._tokenizer.encode("\n", add_special_tokens=False))
        ids = list(encode("\n" + text))
        return ids[len(newline) :] if ids[: len(newline)] == newline else list(encode(text))

    def _encode_alone(self, piece: TextPiece) -> list[int]:
        ids = self._encode_one(piece.text, as_text=not piece.template, at_start=True)
        if piece.template or not self._count(ids):
            return ids
        single = (list(self._tokenizer._encode_without_added_tokens(char)) for char in piece.text)
        return [token for char_ids in single for token in char_ids if token not in self._control_ids]

    def _count(self, ids: Sequence[int]) -> int:
        return sum(token in self._control_ids for token in ids)


def _stretches(pieces: Sequence[TextPiece], control: re.Pattern[str]) -> list[tuple[str, bool]]:
    """(text, as_text) stretches: control tokens that touch content are to be read as text, the rest runs together."""
    marked = ""
    for piece in pieces:
        text = piece.text.replace(_START, "").replace(_END, "")
        if not piece.template:
            text = control.sub(f"{_START}\\g<0>{_END}", text)
        tail = marked[-_LONGEST_CONTROL:]
        if any(match.start() < len(tail) < match.end() for match in control.finditer(tail + text)):
            marked += _END  # keep the halves of a token that would straddle the border apart
        marked += text
    parts = re.split(f"{_START}({control.pattern}){_END}|[{_START}{_END}]", marked)
    return [(part, index % 2 == 1) for index, part in enumerate(parts) if part]


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
