"""One sequence in a model: its KV cache, what is in it, and `read(ids)`, which gives the logits after them.

KV caches grow in place instead of by torch.cat, can be cut back to a prefix where the model's layers permit, and the
last few wait on a shelf for a request that begins with the same tokens. Caches of fewer bits are packed_cache.py's;
sampling and stopping are not done here.
"""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Sequence
from itertools import takewhile
from typing import Any, Protocol

import torch
from transformers import DynamicCache, EncoderDecoderCache
from transformers.cache_utils import (
    DummyLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionCacheLayerMixin,
)

GROWTH_TOKENS = 256


class Row(Protocol):
    """A sequence being read by a model, one stretch of tokens after the other."""

    @property
    def tokens(self) -> Sequence[int]:
        """What was read so far."""

    def read(self, ids: Sequence[int]) -> torch.Tensor:
        """Read `ids` (at least one); the logits (vocab,) of what follows them. After an error the row is unusable."""


class RowLayer(DynamicLayer):
    """A layer of one row that can be copied up to a prefix."""

    @abstractmethod
    def copy_prefix(self, length: int) -> RowLayer:
        """A layer of its own that holds the first `length` tokens, of which all must be keepable."""

    def keepable(self, length: int) -> int:
        """The most of the first `length` tokens that can be kept without the others."""
        return length

    @property
    @abstractmethod
    def size_bytes(self) -> int:
        """What it keeps, room for tokens to come included."""


class GrowingLayer(RowLayer):
    """A layer's keys and values `(1, heads, tokens, head_dim)` in a buffer with room at its end.

    DynamicLayer copies everything for each token (torch.cat): at 2,000 tokens that halves the decode speed.
    `keys` and `values` are views of the filled part, so all else (length, masks, crop) works as in DynamicLayer.
    """

    _key_room: torch.Tensor | None = None
    _value_room: torch.Tensor | None = None

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        *args: Any,  # noqa: ARG002 - the library's signature
        **kwargs: Any,  # noqa: ARG002
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the new states behind those that are there; all of them are returned."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        past = self.get_seq_length()
        end = past + key_states.shape[-2]
        self._key_room = self._with_room(self._key_room, self.keys, key_states, end)
        self._value_room = self._with_room(self._value_room, self.values, value_states, end)
        self._key_room[:, :, past:end].copy_(key_states)
        self._value_room[:, :, past:end].copy_(value_states)
        self.keys, self.values = self._key_room[:, :, :end], self._value_room[:, :, :end]
        return self.keys, self.values

    def copy_prefix(self, length: int) -> GrowingLayer:
        """See RowLayer."""
        copy = GrowingLayer()  # type: ignore[no-untyped-call]
        if self.keys is not None and self.values is not None and length:
            copy.update(self.keys[:, :, :length], self.values[:, :, :length])
        return copy

    @property
    def size_bytes(self) -> int:
        """See RowLayer."""
        return sum(room.nbytes for room in (self._key_room, self._value_room) if room is not None)

    @staticmethod
    def _with_room(room: torch.Tensor | None, filled: Any, new: torch.Tensor, end: int) -> torch.Tensor:
        """`room` if `end` tokens fit, else a larger one with `filled` copied into it."""
        if room is not None and end <= room.shape[2]:
            return room
        capacity = end + max(GROWTH_TOKENS, end // 4)
        larger = new.new_empty((new.shape[0], new.shape[1], capacity, new.shape[3]))
        if filled.numel():
            larger[:, :, : filled.shape[2]].copy_(filled)
        return larger


class CausalRow:
    """A row of a decoder-only model, state-space models included."""

    def __init__(self, model: Any, device: torch.device, cache: Any = None) -> None:
        self.tokens: list[int] = []
        self.whose = ""  # as the last request's that it held
        self.cache = growing_cache(model.config) if cache is None else cache
        parameters = inspect.signature(model.forward).parameters
        self._model = model
        self._device = device
        name = "cache_params" if "cache_params" in parameters else "past_key_values"
        self._inputs: dict[str, Any] = {name: self.cache, "use_cache": True, "return_dict": True}
        if "logits_to_keep" in parameters:
            self._inputs["logits_to_keep"] = 1

    @torch.no_grad()
    def read(self, ids: Sequence[int]) -> torch.Tensor:
        """Read `ids`; the logits (vocab,) of what follows them."""
        output = self._model(**self._asked(ids), **self._inputs)
        self.tokens.extend(ids)
        logits: torch.Tensor = output.logits[0, -1]
        return logits

    def _asked(self, ids: Sequence[int]) -> dict[str, Any]:
        """What the model is to read: `ids`, in its words."""
        return {"input_ids": torch.tensor([list(ids)], device=self._device)}

    def _like(self, cache: Any) -> CausalRow:
        """A row of the same model on another cache."""
        return CausalRow(self._model, self._device, cache)

    @torch.no_grad()
    def read_each(self, ids: Sequence[int]) -> torch.Tensor:
        """Read `ids`; the logits (ids, vocab) of what follows each of them."""
        inputs = self._inputs | ({"logits_to_keep": len(ids)} if "logits_to_keep" in self._inputs else {})
        output = self._model(**self._asked(ids), **inputs)
        self.tokens.extend(ids)
        logits: torch.Tensor = output.logits[0]
        return logits

    def droppable(self, most: int) -> int:
        """Of `most` tokens read after the next one, how many could be forgotten again with no trace of them left."""
        return max(0, min((_droppable(layer, most) for layer in self.cache.layers), default=0))

    @property
    def size_bytes(self) -> int:
        """What the cache takes."""
        return sum(_layer_bytes(layer) for layer in self.cache.layers)

    def keepable(self, length: int) -> int:
        """The most of the first `length` tokens that `keep_prefix` and `copy_prefix` can keep."""
        return min(
            (layer.keepable(length) for layer in self.cache.layers if isinstance(layer, RowLayer)), default=length
        )

    def keep_prefix(self, length: int) -> bool:
        """Forget all but the first `length` tokens. False, and nothing changed, where the cache cannot."""
        surplus = len(self.tokens) - length
        if surplus and not (self.keepable(length) == length and all(map(_can_crop, self.cache.layers))):
            return False
        if surplus:
            self.cache.crop(-surplus)
            del self.tokens[length:]
        return True

    def copy_prefix(self, length: int) -> CausalRow | None:
        """A row of its own with the first `length` tokens; None where the layers do not permit it."""
        if self.keepable(length) != length or not all(isinstance(layer, RowLayer) for layer in self.cache.layers):
            return None
        cache: Any = DynamicCache()
        cache.layers = [layer.copy_prefix(length) for layer in self.cache.layers]
        copy = self._like(cache)
        copy.tokens = self.tokens[:length]
        return copy


class EncoderDecoderRow:
    """A row of an encoder-decoder model: the encoder reads the prompt at once, `read` is the decoder's."""

    def __init__(self, model: Any, device: torch.device, prompt_ids: Sequence[int]) -> None:
        self.tokens: list[int] = []
        self._model = model
        self._device = device
        with torch.no_grad():
            encoded = model.get_encoder()(input_ids=torch.tensor([list(prompt_ids)], device=device), return_dict=True)
        cache = EncoderDecoderCache(growing_cache(model.config), DynamicCache())
        self._inputs = {"encoder_outputs": encoded, "past_key_values": cache, "use_cache": True, "return_dict": True}

    @torch.no_grad()
    def read(self, ids: Sequence[int]) -> torch.Tensor:
        """Read `ids` in the decoder; the logits (vocab,) of what follows them."""
        output = self._model(decoder_input_ids=torch.tensor([list(ids)], device=self._device), **self._inputs)
        self.tokens.extend(ids)
        logits: torch.Tensor = output.logits[0, -1]
        return logits


class Shelf:
    """Rows of finished requests, kept for the next one that begins alike. Least recently used goes first."""

    def __init__(self, budget_bytes: int) -> None:
        self._budget_bytes = budget_bytes
        self._rows: list[CausalRow] = []

    def __len__(self) -> int:
        return len(self._rows)

    def take(self, ids: Sequence[int], whose: str = "") -> CausalRow | None:
        """A row that holds a prefix of `ids`, shorter than `ids`, and nothing more; None if there is none. What others
        than `whose` have put here is left alone.

        A row that shares only its beginning (the same system prompt) is copied, not cut: its own chat may go on.
        """
        for row, common in self._by_common_prefix(ids[:-1], whose):
            if 2 * common < len(row.tokens) and (copy := row.copy_prefix(common)) is not None:
                return copy
            if row.keep_prefix(common):
                self._rows.remove(row)
                return row
        return None

    def put(self, row: CausalRow) -> None:
        """Keep `row` as the most recent."""
        self._rows.append(row)
        self.shrink(self._budget_bytes)

    def make_room(self, needed_bytes: int) -> None:
        """Drop rows until `needed_bytes` of the budget are free."""
        self.shrink(max(0, self._budget_bytes - needed_bytes))

    def shrink(self, most_bytes: int) -> bool:
        """Drop the oldest rows until the rest takes no more than `most_bytes`. Whether any was dropped."""
        before = len(self._rows)
        while self._rows and self.size_bytes > most_bytes:
            del self._rows[0]
        return len(self._rows) < before

    @property
    def size_bytes(self) -> int:
        """What all rows take."""
        return sum(row.size_bytes for row in self._rows)

    @property
    def token_count(self) -> int:
        """How many tokens all rows hold."""
        return sum(len(row.tokens) for row in self._rows)

    def _by_common_prefix(self, ids: Sequence[int], whose: str) -> list[tuple[CausalRow, int]]:
        theirs = [row for row in reversed(self._rows) if row.whose == whose]
        common = [(row, row.keepable(common_prefix(row.tokens, ids))) for row in theirs]
        return sorted((pair for pair in common if pair[1]), key=lambda pair: -pair[1])


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens both begin with."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))


def growing_cache(config: Any) -> Any:
    """An empty DynamicCache for a model of `config` whose full-attention layers grow in place."""
    cache: Any = DynamicCache(config=config)
    growing: Any = GrowingLayer
    cache.layers = [growing() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def _can_crop(layer: Any) -> bool:
    """Whether a layer can forget its last tokens. A sliding window that is full has lost what came before."""
    if isinstance(layer, LinearAttentionCacheLayerMixin):
        return False
    if isinstance(layer, DynamicSlidingWindowLayer):
        return layer.get_seq_length() < layer.sliding_window
    return isinstance(layer, DynamicLayer | DummyLayer)


def _droppable(layer: Any, most: int) -> int:
    """See CausalRow.droppable. States keep what they have read, and so does a window that gets full."""
    if type(layer) is DynamicSlidingWindowLayer:
        return min(most, layer.sliding_window - 2 - layer.get_seq_length())
    return most if _can_crop(layer) else 0


def _layer_bytes(layer: Any) -> int:
    if isinstance(layer, RowLayer):
        return layer.size_bytes
    tensors = [getattr(layer, "keys", None), getattr(layer, "values", None)]
    tensors += [*getattr(layer, "conv_states", {}).values(), *getattr(layer, "recurrent_states", {}).values()]
    return sum(tensor.nbytes for tensor in tensors if isinstance(tensor, torch.Tensor))
