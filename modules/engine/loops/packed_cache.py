"""KV caches of fewer bits, or in CPU memory beside a GPU: what `--kv-cache` asks for, as layers of transformers' cache.

Keys are packed channel by channel over a block of tokens, values token by token, as in KIVI (arXiv 2402.02750); the
last tokens stay as computed. transformers' own QuantizedCache packs the whole cache anew at each flush, cannot be cut
back to a prefix, and needs a package for either number of bits; docs/log.md has the figures. Which models may have
these and what they take is memory/forecasting/kv_cache.py's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import DynamicCache

from modules.engine.loops.loaded import LoadedModel
from modules.engine.loops.rows import GROWTH_TOKENS, GrowingLayer, RowLayer, growing_cache
from modules.memory.forecasting.kv_cache import BITS, BLOCK_TOKENS, RECENT_TOKENS, packed_tokens, value_group

NewCache = Callable[[], Any]


def cache_maker(loaded: LoadedModel) -> NewCache:
    """What makes an empty cache for `loaded` of the kind that its plan names. One engine needs one maker."""
    config, kind = loaded.model.config, loaded.plan.run.kv_cache
    if kind == "offloaded":
        return lambda: DynamicCache(config=config, offloading=True, offload_only_non_sliding=True)
    if kind not in BITS:
        return lambda: growing_cache(config)
    work, bits = Work(loaded.info.context_tokens), BITS[kind]

    def new_cache() -> Any:
        cache: Any = growing_cache(config)
        cache.layers = [PackedLayer(bits, work) if type(layer) is GrowingLayer else layer for layer in cache.layers]
        return cache

    return new_cache


class Work:
    """Memory for the keys and values of the layer that is being computed, unpacked: all layers of all rows share it.

    `most_tokens` is the longest context: neither this nor a layer ever has room for more.
    """

    def __init__(self, most_tokens: int) -> None:
        self.most_tokens = most_tokens
        self._rooms: dict[tuple[str, torch.device, torch.dtype], torch.Tensor] = {}

    def take(self, name: str, like: torch.Tensor, tokens: int) -> torch.Tensor:
        """Room `(1, heads, tokens, head_dim)` with anything in it, beside `like`; valid until the next of that name."""
        heads, head_dim = like.shape[1], like.shape[3]
        key, needed = (name, like.device, like.dtype), heads * tokens * head_dim
        room = self._rooms.get(key)
        if room is None or room.numel() < needed:
            self._rooms.pop(key, None)
            room = None  # the old room is let go before the new one is made
            room = self._rooms[key] = like.new_empty(heads * self.capacity(tokens) * head_dim)
        return room[:needed].view(1, heads, tokens, head_dim)

    def capacity(self, tokens: int) -> int:
        """For how many tokens to make room where `tokens` are needed."""
        return max(tokens, min(self.most_tokens, tokens + max(GROWTH_TOKENS, tokens // 4)))

    @property
    def size_bytes(self) -> int:
        """What the rooms take."""
        return sum(room.nbytes for room in self._rooms.values())


class PackedLayer(RowLayer):
    """One row's keys and values in `bits` bits, the last RECENT_TOKENS and what makes no whole block as computed.

    `update` returns them unpacked, in memory that the next layer's update writes over.
    """

    def __init__(self, bits: int, work: Work) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bits = bits
        self.work = work
        self.packed = (Packed(bits, keys=True), Packed(bits, keys=False))
        self._recent: tuple[torch.Tensor, torch.Tensor] | None = None
        self._recent_tokens = 0

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        *args: Any,  # noqa: ARG002 - the library's signature
        **kwargs: Any,  # noqa: ARG002
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Take the new states in; all of them are returned."""
        new = (key_states, value_states)
        if self._recent is None:
            self.lazy_initialization(key_states, value_states)
            self._recent = (_recent_room(key_states), _recent_room(value_states))
        old, packed = self.get_seq_length(), self.packed[0].tokens
        total = old + key_states.shape[-2]
        whole = max(packed, packed_tokens(total))
        found = []
        for name, part, recent, states in zip(("keys", "values"), self.packed, self._recent, new, strict=True):
            out = self.work.take(name, states, total)
            part.read_into(out[0, :, :packed])
            out[:, :, packed:old].copy_(recent[:, :, : old - packed])
            out[:, :, old:].copy_(states)
            part.append(out[0, :, packed:whole], self.work)
            recent[:, :, : total - whole].copy_(out[:, :, whole:])
            found.append(out)
        self._recent_tokens = total - whole
        return found[0], found[1]

    def get_seq_length(self) -> int:
        """Tokens read."""
        return self.packed[0].tokens + self._recent_tokens

    def keepable(self, length: int) -> int:
        """See RowLayer: a block is kept whole or not at all."""
        return length if length >= self.packed[0].tokens else length // BLOCK_TOKENS * BLOCK_TOKENS

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last `-tokens_to_remove` tokens; `keepable` of what is left must be just that."""
        left = self.get_seq_length() + tokens_to_remove
        for part in self.packed:
            part.tokens = min(part.tokens, left)
        self._recent_tokens = left - self.packed[0].tokens

    def copy_prefix(self, length: int) -> PackedLayer:
        """See RowLayer."""
        copy = PackedLayer(self.bits, self.work)
        if self._recent is not None:
            copy.lazy_initialization(*self._recent)
            copy.packed = (self.packed[0].copy_prefix(length), self.packed[1].copy_prefix(length))
            copy._recent = (self._recent[0].clone(), self._recent[1].clone())
            copy._recent_tokens = length - copy.packed[0].tokens
        return copy

    @property
    def size_bytes(self) -> int:
        """See RowLayer."""
        return sum(part.size_bytes for part in self.packed) + sum(room.nbytes for room in self._recent or ())


def _recent_room(states: torch.Tensor) -> torch.Tensor:
    return states.new_empty((*states.shape[:2], RECENT_TOKENS + BLOCK_TOKENS, states.shape[3]))


class Packed:
    """Whole blocks of keys, or of values, of one layer; grows in place. `tokens` are packed in it.

    `code ≈ states / scale` in 8 bits, `(states - low) / scale` in 4, of which two are a byte: a block's first half
    of tokens low, its second half high. Shapes: codes `(heads, blocks, 64 or 32, head_dim)`; scales of keys `(heads,
    blocks, 1, head_dim)`, of values `(heads, blocks, 64, groups, 1)`.
    """

    def __init__(self, bits: int, *, keys: bool) -> None:
        self.tokens = 0
        self._bits = bits
        self._keys = keys
        self._rooms: list[torch.Tensor] = []  # codes, scales, in 4 bits the minima

    def append(self, states: torch.Tensor, work: Work) -> None:
        """Pack `states` `(heads, tokens, head_dim)`, whole blocks, behind what is there."""
        tokens = states.shape[1]
        if not tokens:
            return
        first, last = self.tokens // BLOCK_TOKENS, (self.tokens + tokens) // BLOCK_TOKENS
        for index, part in enumerate(self._pack(_blocks(states))):
            self._make_room(index, part, last, work)
            self._rooms[index][:, first:last].copy_(part)
        self.tokens += tokens

    def read_into(self, out: torch.Tensor) -> None:
        """Unpack into `out` `(heads, self.tokens, head_dim)`."""
        if not self.tokens:
            return
        blocks = self.tokens // BLOCK_TOKENS
        states = _blocks(out)
        codes, scales, *lows = (room[:, :blocks] for room in self._rooms)
        if self._bits == 8:
            states.copy_(codes)
            self._grouped(states).mul_(scales)
            return
        half = BLOCK_TOKENS // 2
        apart = torch.bitwise_and(codes, 15)
        states[:, :, :half].copy_(apart)
        states[:, :, half:].copy_(torch.bitwise_right_shift(codes, 4, out=apart))
        if self._keys:
            torch.addcmul(lows[0], states, scales, out=states)
        else:  # the same in two passes: addcmul is slow where both factors repeat along the last dimension
            self._grouped(states).mul_(scales).add_(lows[0])

    def copy_prefix(self, length: int) -> Packed:
        """What lies in the first `length` tokens, in memory of its own."""
        copy = Packed(self._bits, keys=self._keys)
        copy.tokens = min(self.tokens, length)
        copy._rooms = [room[:, : copy.tokens // BLOCK_TOKENS].clone() for room in self._rooms]
        return copy

    @property
    def size_bytes(self) -> int:
        """What the rooms take."""
        return sum(room.nbytes for room in self._rooms)

    def _pack(self, blocks: torch.Tensor) -> list[torch.Tensor]:
        """Codes, scales and, in 4 bits, minima of `blocks` `(heads, blocks, 64, head_dim)`."""
        grouped, dim = self._grouped(blocks).float(), 2 if self._keys else -1
        kept = blocks.dtype
        if self._bits == 8:
            scales = _scale(grouped.abs().amax(dim, keepdim=True) / 127, kept)
            codes = (grouped / scales.float()).round_().clamp_(-127, 127).to(torch.int8)
            return [codes.view(blocks.shape), scales]
        lows = grouped.amin(dim, keepdim=True).to(kept)
        scales = _scale((grouped.amax(dim, keepdim=True) - lows.float()) / 15, kept)
        numbers = ((grouped - lows.float()) / scales.float()).round_().clamp_(0, 15).to(torch.uint8).view(blocks.shape)
        first, second = numbers.chunk(2, dim=2)
        return [first | (second << 4), scales, lows]

    def _grouped(self, blocks: torch.Tensor) -> torch.Tensor:
        """`blocks` with the numbers that share a scale along one dimension: of keys 2, of values the last."""
        return blocks if self._keys else blocks.view(*blocks.shape[:3], -1, value_group(blocks.shape[3]))

    def _make_room(self, index: int, part: torch.Tensor, blocks: int, work: Work) -> None:
        """Let room `index`, of things like `part`, hold so many blocks."""
        old = self._rooms[index] if index < len(self._rooms) else None
        if old is not None and old.shape[1] >= blocks:
            return
        most = max(blocks, packed_tokens(work.capacity(blocks * BLOCK_TOKENS + RECENT_TOKENS)) // BLOCK_TOKENS)
        room = part.new_empty((part.shape[0], most, *part.shape[2:]))
        if old is None:
            self._rooms.append(room)
        else:
            room[:, : old.shape[1]].copy_(old)
            self._rooms[index] = room


def _blocks(states: torch.Tensor) -> torch.Tensor:
    """`(heads, tokens, head_dim)` seen as `(heads, blocks, 64, head_dim)`."""
    return states.view(states.shape[0], -1, BLOCK_TOKENS, states.shape[2])


def _scale(exact: torch.Tensor, kept: torch.dtype) -> torch.Tensor:
    """`exact` in the dtype that is kept; 1 where it is nothing, which then divides nothing."""
    scales = exact.to(kept)
    return torch.where(scales == 0, torch.ones_like(scales), scales)
