"""Generation under ZeRO-3: rank 0 generates like any serial engine, and the other ranks read what its rows read.

Every rank must run the same forward calls, because each module's weights are gathered from all of them. Followers never
sample. After a step that failed the ranks are out of step for good: the engine then ends, to be started anew.
"""

from __future__ import annotations

import itertools
import logging
import weakref
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch._C._distributed_c10d as stores

from modules.engine.base import Engine, OnProgress, Progress
from modules.engine.loops.attention import prefer_cpu_attention
from modules.engine.loops.loaded import LoadedModel
from modules.engine.loops.packed_cache import NewCache, cache_maker
from modules.engine.loops.reply import as_snug_error
from modules.engine.loops.rows import CausalRow, EncoderDecoderRow, Row
from modules.engine.loops.serial import SerialEngine
from modules.engine.zero3.load import Share, load_share
from modules.engine.zero3.ranks import Copy, Drop, Encode, Follower, Keep, Leader, Leave, Meet, Order, Read, World
from modules.errors import LoadFailed, SnugError
from modules.memory.planning.planner import Plan

log = logging.getLogger(__name__)
Result = TypeVar("Result")

FOLLOWERS_WORD_S = 3.0  # what another rank says of itself is the better reason; its server may be slow to tell it

_numbers = itertools.count()


def lead(plan: Plan, leader: Leader, on_progress: OnProgress) -> Engine:
    """Rank 0: load `plan` together with the followers, who were told to begin. Raises SnugError."""
    world = leader.world
    store: Any = stores.HashStore()
    try:
        if world.size > 1:
            door = leader.listen(0)  # of its own, a store listens on every network that this machine is in
            port = door.getsockname()[1]
            store = stores.TCPStore(
                world.host, port, world.size, is_master=True, wait_for_workers=False, master_listen_fd=door.detach()
            )
            leader.send(Meet(port))
        share = load_share(plan, world, store, on_progress)
    except SnugError as error:
        if why := leader.broken_within(FOLLOWERS_WORD_S):
            log.warning("Rank 0 failed too: %s", error)
            raise LoadFailed(why, remedy="Set that right, or start fewer ranks.") from error
        raise
    on_progress(Progress("Ready", 1.0))
    return Zero3Engine(share, leader)


def follow(world: World, plan: Plan, follower: Follower) -> None:
    """Another rank: load `plan`, then read what rank 0's rows read until it says Leave. Raises SnugError."""
    order = follower.next()
    if not isinstance(order, Meet):
        raise LoadFailed(f"Rank 0 sent {type(order).__name__} where the ranks meet.")
    store = stores.TCPStore(world.host, order.port, world.size, is_master=False)
    share = load_share(plan, world, store, _ignore)
    prefer_cpu_attention(share.loaded, many_rows=False)  # as rank 0's engine does: the same numbers on every rank
    rows: dict[int, Row] = {}
    new_cache = cache_maker(share.loaded)
    while not isinstance(order := follower.next(), Leave):
        obey(order, rows, share.loaded, new_cache)
    share.clean_up()


def obey(order: Order, rows: dict[int, Row], loaded: LoadedModel, new_cache: NewCache) -> None:
    """Do with this rank's rows what rank 0 does with its own."""
    if isinstance(order, Read):
        if order.row not in rows:
            rows[order.row] = CausalRow(loaded.model, loaded.device, new_cache())
        rows[order.row].read(order.ids)
    elif isinstance(order, Encode):
        rows[order.row] = EncoderDecoderRow(loaded.model, loaded.device, order.ids)
    elif isinstance(order, Drop):
        for number in order.rows:
            rows.pop(number, None)
    elif isinstance(order, Keep | Copy):
        _cut(order, rows)


class LeadingRow(CausalRow):
    """A row on rank 0: the same row of each follower does what this one does."""

    def __init__(self, loaded: LoadedModel, leader: Leader, cache: Any, tokens: Sequence[int] = ()) -> None:
        super().__init__(loaded.model, loaded.device, cache)
        self.tokens = list(tokens)
        self._loaded = loaded
        self._leader = leader
        self._number = _new_number(self, leader)

    def read(self, ids: Sequence[int]) -> torch.Tensor:
        """Read `ids` on every rank; the logits (vocab,) of what follows them."""
        self._leader.send(Read(self._number, tuple(ids)))
        return _in_step(self._leader, super().read, ids)

    def keep_prefix(self, length: int) -> bool:
        """See CausalRow."""
        if not super().keep_prefix(length):
            return False
        self._leader.send(Keep(self._number, length))
        return True

    def copy_prefix(self, length: int) -> CausalRow | None:
        """See CausalRow."""
        copy = super().copy_prefix(length)
        if copy is None:
            return None
        leading = LeadingRow(self._loaded, self._leader, copy.cache, copy.tokens)
        self._leader.send(Copy(self._number, leading._number, length))
        return leading


class LeadingEncoderDecoderRow(EncoderDecoderRow):
    """As LeadingRow, for an encoder-decoder model."""

    def __init__(self, loaded: LoadedModel, leader: Leader, prompt_ids: Sequence[int]) -> None:
        self._leader = leader
        self._number = _new_number(self, leader)
        leader.send(Encode(self._number, tuple(prompt_ids)))
        _in_step(leader, super().__init__, loaded.model, loaded.device, prompt_ids)

    def read(self, ids: Sequence[int]) -> torch.Tensor:
        """Read `ids` in the decoder of every rank; the logits (vocab,) of what follows them."""
        self._leader.send(Read(self._number, tuple(ids)))
        return _in_step(self._leader, super().read, ids)


class Zero3Engine(SerialEngine):
    """The serial engine of rank 0, whose rows lead those of the other ranks."""

    def __init__(self, share: Share, leader: Leader) -> None:
        self._share = share
        self._leader = leader
        super().__init__(share.loaded)

    def close(self) -> None:
        """See SerialEngine; the followers end too."""
        super().close()
        self._leader.close()
        self._share.clean_up()

    def _new_causal_row(self) -> CausalRow:
        return LeadingRow(self.loaded, self._leader, self._new_cache())

    def _new_encoder_decoder_row(self, prompt_ids: Sequence[int]) -> EncoderDecoderRow:
        return LeadingEncoderDecoderRow(self.loaded, self._leader, prompt_ids)


def _new_number(row: Row, leader: Leader) -> int:
    """What the followers know `row` by; they forget theirs when nobody holds `row` any more."""
    number = next(_numbers)
    weakref.finalize(row, leader.forget, number).atexit = False
    return number


def _cut(order: Keep | Copy, rows: dict[int, Row]) -> None:
    row = rows[order.row]
    if not isinstance(row, CausalRow):
        raise TypeError(f"{order} is for rows of decoder-only models")
    if isinstance(order, Keep):
        row.keep_prefix(order.length)
    elif (copy := row.copy_prefix(order.length)) is not None:
        rows[order.copy] = copy


def _in_step(leader: Leader, step: Callable[..., Result], *arguments: Any) -> Result:
    """Do rank 0's part of a step. A failure is final: the others wait for weights that will not come."""
    try:
        return step(*arguments)
    except Exception as error:
        leader.break_off(f"A step failed on rank 0 ({type(error).__name__}).")
        raise as_snug_error(error) from error


def _ignore(progress: Progress) -> None:
    """Only rank 0's progress is shown."""
