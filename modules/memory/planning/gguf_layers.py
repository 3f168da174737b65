"""Which layers of a GGUF file llama.cpp computes on which GPU: the last ones, in order, the output with the last.

Pure arithmetic. Source: load_tensors in llama-model.cpp: of L layers and the output the last N go to GPUs, each GPU a
run of them; the token table stays in CPU memory, and lies on a GPU a second time where it is the output too; each
layer's cache lies with it, and what lies in CPU memory is computed there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from modules.memory.forecasting.forecast import RunSpec, is_token_table, tensor_bytes
from modules.memory.forecasting.llamacpp_sizes import Beside
from modules.memory.model.spec import ModelSpec
from modules.memory.planning.placement import Group, Layout, Room, make_groups, with_caches
from modules.units import MiB


@dataclass(frozen=True, slots=True)
class Parts:
    """A GGUF file as llama.cpp deals it out: `table` stays in CPU memory; of `units`, the layers and then the output,
    the last go to GPUs.
    """

    table: tuple[Group, ...]
    units: tuple[Group, ...]

    @property
    def layers(self) -> int:
        """How many layers there are, the output not counted."""
        return len(self.units) - 1

    def beside(self, on_gpus: int, *, first: bool = True) -> Beside:
        """What the buffers of a GPU depend on if the last `on_gpus` units are on GPUs."""
        left = self.units[: len(self.units) - on_gpus]
        return Beside(
            first, max((unit.largest for unit in left), default=0), max((unit.cache for unit in left), default=0)
        )


def parts_of(spec: ModelSpec, run: RunSpec) -> Parts:
    """The parts of `spec` with the caches of `run`."""
    groups = with_caches(make_groups(spec, run), spec, run)
    table = [group for group in groups if group.kind in ("embedding", "idle")]
    if spec.tied_embeddings:
        size = sum(tensor_bytes(spec, tensor, run) for tensor in spec.tensors if is_token_table(tensor.name))
        table.append(Group("embedding", (), size, size))
    blocks = [group for group in groups if group.kind == "block"]
    heads = [group for group in groups if group.kind == "head"]
    return Parts(tuple(table), (*blocks, _joined(heads)))


def _joined(heads: Sequence[Group]) -> Group:
    """The output as one unit."""
    if len(heads) == 1:
        return heads[0]
    return Group(
        "head", tuple(name for head in heads for name in head.modules), sum(head.loaded for head in heads),
        sum(head.offloaded for head in heads), read=sum(head.read for head in heads),
    )  # fmt: skip


def fill_from_the_end(parts: Parts, rooms: Sequence[Room], *, most: int) -> tuple[int, ...]:
    """How many of the last `most` units lie on each GPU if the last one is filled first; the others stay."""
    counts = [0] * len(rooms)
    waiting = list(parts.units[len(parts.units) - most :])
    for number in range(len(rooms) - 1, -1, -1):
        left = rooms[number].free
        while waiting and waiting[-1].loaded + waiting[-1].cache <= left:
            unit = waiting.pop()
            left -= unit.loaded + unit.cache
            counts[number] += 1
    return tuple(counts)


def fill_all(parts: Parts, rooms: Sequence[Room], *, overflow: bool = False) -> tuple[int, ...] | None:
    """All units on GPUs, on as few of `rooms` as it takes, the first ones; None if they are too small.

    With `overflow` the first GPU takes the rest, whatever its room.
    """
    whole = len(parts.units)
    for used in range(1, len(rooms) + 1):
        counts = fill_from_the_end(parts, rooms[:used], most=whole)
        if sum(counts) == whole:
            return counts + (0,) * (len(rooms) - used)
    if not overflow or not rooms:
        return None
    counts = fill_from_the_end(parts, rooms, most=whole)
    return (counts[0] + whole - sum(counts), *counts[1:])


def even_out(parts: Parts, rooms: Sequence[Room], counts: tuple[int, ...]) -> tuple[int, ...]:
    """`counts` over the same GPUs so that each keeps as much free as can be, to a MiB."""
    used = [room for room, count in zip(rooms, counts, strict=True) if count]
    best, low, high = counts, 0, max(room.free for room in used) // MiB
    while low <= high:
        kept = (low + high) // 2
        fewer = [replace(room, free=room.free - kept * MiB) if count else replace(room, free=-1)
                 for room, count in zip(rooms, counts, strict=True)]  # fmt: skip
        found = fill_from_the_end(parts, fewer, most=len(parts.units))
        if sum(found) == len(parts.units):
            best, low = found, kept + 1
        else:
            high = kept - 1
    return best if sum(1 for count in best if count) == len(used) else counts


def lay_out_whole(parts: Parts, rooms: Sequence[Room], *, even: bool = False, overflow: bool = False) -> Layout | None:
    """All units on as few of `rooms` as it takes, `even` over these; None if they are too small."""
    counts = fill_all(parts, rooms, overflow=overflow)
    if counts is None:
        return None
    if even and not overflow:
        counts = even_out(parts, rooms, counts)
    return lay_out(parts, [room.device for room in rooms], counts)


def lay_out_split(
    parts: Parts, rooms: Sequence[Room], *, asked: int | None = None, overflow: bool = False
) -> Layout | None:
    """As many of the last units as fit on `rooms`, at least a layer and the output, or exactly `asked` of them.

    None if that is not possible; with `overflow` the first GPU takes what is asked for, whatever its room.
    """
    most = len(parts.units) - 1 if asked is None else asked
    counts = fill_from_the_end(parts, rooms, most=most)
    left = 0 if asked is None else most - sum(counts)
    if left and not overflow:
        return None
    counts = (counts[0] + left, *counts[1:])
    # The output alone is not worth a GPU, unless it is asked for.
    enough = sum(counts) >= (2 if asked is None else 1)
    return lay_out(parts, [room.device for room in rooms], counts) if enough else None


def only_roomiest(rooms: Sequence[Room]) -> tuple[Room, ...]:
    """`rooms` with something free in the one with most room alone."""
    best = max(rooms, key=lambda room: room.free)
    return tuple(room if room.device == best.device else replace(room, free=-1) for room in rooms)


def lay_out(parts: Parts, gpus: Sequence[str], counts: Sequence[int]) -> Layout:
    """Group by group where everything goes with so many units on each of `gpus`, the rest in CPU memory."""
    on_cpu = len(parts.units) - sum(counts)
    places = [(group, "cpu") for group in (*parts.table, *parts.units[:on_cpu])]
    waiting = iter(parts.units[on_cpu:])
    for gpu, count in zip(gpus, counts, strict=True):
        places += [(next(waiting), gpu) for _ in range(count)]
    devices = dict.fromkeys(("cpu", *(device for _, device in places)))

    def each(size_of: str) -> dict[str, int]:
        return {name: sum(getattr(group, size_of) for group, device in places if device == name) for name in devices}

    return Layout(tuple(places), weights=each("loaded"), caches=each("cache"), reads=_some(each("read")))


def _some(sizes: dict[str, int]) -> dict[str, int]:
    return {name: size for name, size in sizes.items() if size}


def count_units(layout: Layout, gpus: Iterable[str]) -> tuple[int, ...]:
    """How many layers, the output counted, lie on each of `gpus`."""
    return tuple(
        sum(1 for group, device in layout.places if device == gpu and group.kind in ("block", "head")) for gpu in gpus
    )
