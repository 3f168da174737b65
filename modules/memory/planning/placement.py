"""Which part of a model goes to which device: whole blocks, each with its KV cache, in our own order.

Pure arithmetic. The modules named here become transformers' device_map: every module that holds a tensor is named,
and there is no catch-all entry, since accelerate would pull the whole model to it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from modules.memory.forecasting.forecast import (
    RunSpec,
    is_token_table,
    layer_cache_away,
    layer_cache_bytes,
    tensor_bytes,
    tensor_meta_bytes,
    tied_copies,
)
from modules.memory.forecasting.remembered import PerSpec
from modules.memory.model.spec import ModelSpec, TensorInfo

GroupKind = Literal["embedding", "block", "head", "idle"]
_FORWARD_ORDER: dict[GroupKind, int] = {"embedding": 0, "block": 1, "head": 2, "idle": 3}
_KEEPING_ORDER: dict[GroupKind, int] = {"head": 0, "embedding": 1, "block": 2, "idle": 3}
# Parts of models that also see or hear: a text chat never runs them, a picture's encoding once.
_IDLE = re.compile(
    r"^(model\.)?(vision_tower|multi_modal_projector|visual|vision_model|connector|audio_tower|embed_vision)\b"
)
_EMBEDDING = re.compile(r"\b(w[tp]e|shared|embed\w*|word_embeddings\w*|embeddings|tokens_embed|positions_embed)$")


@dataclass(frozen=True, slots=True)
class Group:
    """Modules that stay together. Bytes: `loaded` as the run wants them, `offloaded` as they are off the GPU.

    Of `loaded`, `quant_meta` are the scales and code books of quantized weights, and `read` what writing one token
    reads: nothing of a table of which it looks up a row, its share of experts. `layer` is the decoder layer whose KV
    cache of `cache` bytes lives with it, None where there is none; `largest` its largest tensor, `rewritten` what must
    be written if it goes to disk.
    """

    kind: GroupKind
    modules: tuple[str, ...]
    loaded: int
    offloaded: int
    layer: int | None = None
    cache: int = 0
    largest: int = 0
    rewritten: int = 0
    quant_meta: int = 0
    read: int = 0


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes that a device has for weights and KV cache; on the CPU and disk for weights alone."""

    device: str
    free: int


@dataclass(frozen=True, slots=True)
class Layout:
    """Group by group where everything goes. Bytes a device: `weights`, of them `quant_meta`, and `caches`.

    For each token `reads` bytes are read where they lie, `streamed` pass into a GPU, `from_disk` come from the disk.
    """

    places: tuple[tuple[Group, str], ...]
    weights: dict[str, int] = field(default_factory=dict)
    caches: dict[str, int] = field(default_factory=dict)
    quant_meta: dict[str, int] = field(default_factory=dict)
    offload_buffer: int = 0
    rewritten: int = 0
    reads: dict[str, int] = field(default_factory=dict)
    streamed: int = 0
    from_disk: int = 0

    def device_map(self) -> dict[str, str]:
        """Module name → device; {"": device} where one device holds everything."""
        devices = {device for _, device in self.places}
        if len(devices) == 1:
            return {"": devices.pop()}
        return {module: device for group, device in self.places for module in group.modules}

    def count_blocks(self, device: str) -> int:
        """How many blocks lie on `device`."""
        return sum(1 for group, where in self.places if where == device and group.kind == "block")


def make_groups(spec: ModelSpec, run: RunSpec) -> tuple[Group, ...]:
    """The parts of a model in the order in which a forward pass meets them: embedding, blocks, head, idle parts."""
    # Neither context nor chunk changes them.
    return _groups(spec, RunSpec(run.dtype, run.quantization, run.double_quant, runtime=run.runtime))


def _make_groups(spec: ModelSpec, run: RunSpec) -> tuple[Group, ...]:
    copies = tied_copies(spec)
    members: dict[tuple[GroupKind, str], list[TensorInfo]] = {("embedding", ""): []}
    for tensor in (*spec.tensors, *spec.buffers):
        members.setdefault(_slot(spec, tensor), []).append(tensor)
    members.setdefault(("head", ""), [])
    groups = [_group(spec, run, kind, tensors, copies) for (kind, _), tensors in members.items()]
    layers = _layers_of_blocks(spec)
    groups = [_with_layer(spec, group, layers.get(group.modules[0])) if group.modules else group for group in groups]
    named = [group for group in _with_bare_modules(spec, groups) if group.modules]
    return tuple(sorted(named, key=lambda group: (_FORWARD_ORDER[group.kind], _number(group))))


_groups = PerSpec(_make_groups)


def _with_layer(spec: ModelSpec, group: Group, layer: int | None) -> Group:
    """`group` as decoder layer `layer`; an encoder's block is not read while the reply is written."""
    encoder = spec.is_encoder_decoder and group.kind == "block" and layer is None
    return replace(group, layer=layer, read=0 if encoder else group.read)


def with_caches(groups: Sequence[Group], spec: ModelSpec, run: RunSpec) -> tuple[Group, ...]:
    """`groups` with the KV caches that `run.context_tokens` takes where the layers are computed."""
    tokens = run.context_tokens
    return tuple(
        group
        if group.layer is None
        else replace(
            group,
            cache=layer_cache_bytes(spec, run, group.layer, tokens) - layer_cache_away(spec, run, group.layer, tokens),
        )
        for group in groups
    )


def _slot(spec: ModelSpec, tensor: TensorInfo) -> tuple[GroupKind, str]:
    """The kind of group that a tensor belongs to, and which one."""
    if _IDLE.match(tensor.name):
        return "idle", ""
    if tensor.block:
        return "block", tensor.block
    module = _module(tensor.name)
    table = bool(_EMBEDDING.search(module)) or is_token_table(tensor.name)
    # A table that is the head too is needed whole for every token: it stays with the head.
    return ("embedding", "") if table and not spec.tied_embeddings else ("head", "")


def _module(tensor_name: str) -> str:
    """The module that owns a tensor; a tensor right at the root is named by itself."""
    return tensor_name.rpartition(".")[0] or tensor_name


def _group(
    spec: ModelSpec, run: RunSpec, kind: GroupKind, tensors: Sequence[TensorInfo], copies: frozenset[str]
) -> Group:
    own = [tensor for tensor in tensors if tensor.name not in copies]
    modules = {tensor.block if kind == "block" else _module(tensor.name) for tensor in tensors}
    if kind == "idle":
        modules = {match.group(0) for tensor in tensors if (match := _IDLE.match(tensor.name))}
    offloaded = [tensor_bytes(spec, tensor, run, quantize=False) for tensor in own]
    loaded = [tensor_bytes(spec, tensor, run) for tensor in own]
    share = spec.experts_per_token / spec.experts if spec.experts else 1.0
    active = (int(size * share) if ".experts." in t.name else size for t, size in zip(own, loaded, strict=True))
    return Group(
        kind=kind,
        modules=tuple(sorted(modules)),
        loaded=sum(loaded),
        read=sum(active) if kind in ("block", "head") else 0,
        quant_meta=sum(tensor_meta_bytes(spec, tensor, run) for tensor in own),
        offloaded=sum(offloaded),
        largest=max(offloaded, default=0),
        rewritten=sum(size for tensor, size in zip(own, offloaded, strict=True) if _is_rewritten(spec, tensor)),
    )


def _is_rewritten(spec: ModelSpec, tensor: TensorInfo) -> bool:
    """Whether disk offload copies this tensor: safetensors are read in place (accelerate_disk_offload), others not."""
    return spec.source == "gguf" or (spec.fused_experts and ".experts." in tensor.name)


def _layers_of_blocks(spec: ModelSpec) -> dict[str, int]:
    """Block name → decoder layer number, for the blocks that keep a cache."""
    blocks = {tensor.block for tensor in spec.tensors if tensor.block and not _IDLE.match(tensor.name)}
    if spec.is_encoder_decoder:
        blocks = {block for block in blocks if "decoder" in block.split(".")}
    numbers = {block: int(block.rpartition(".")[2]) for block in blocks}
    return {block: number for block, number in numbers.items() if number < spec.layers}


def _with_bare_modules(spec: ModelSpec, groups: list[Group]) -> list[Group]:
    """Add the modules without tensors of their own: shared tables beside the table, rotary tables beside the head."""
    shared = tuple(name for name in spec.bare_modules if not name.endswith("rotary_emb"))
    rotary = tuple(name for name in spec.bare_modules if name.endswith("rotary_emb"))
    table: GroupKind = "head" if spec.tied_embeddings else "embedding"
    extra: dict[GroupKind, tuple[str, ...]] = {"embedding": (), "head": rotary}
    extra[table] += shared
    wanted = [dict.fromkeys((*group.modules, *extra.get(group.kind, ()))) for group in groups]
    return [replace(group, modules=tuple(names)) for group, names in zip(groups, wanted, strict=True)]


def _number(group: Group) -> tuple[str, int]:
    """Sort key of blocks: encoder before decoder, then by number."""
    stem, _, number = group.modules[0].rpartition(".")
    return (stem.replace("encoder", "0").replace("decoder", "1"), int(number)) if number.isdecimal() else ("", 0)


def fill_gpus(groups: Sequence[Group], rooms: Sequence[Room], *, overflow: bool = False) -> Layout | None:
    """Everything onto GPUs, in order, each filled before the next; None if they cannot hold it.

    With `overflow` the last GPU takes the rest, whatever its room.
    """
    where = _deal([group.loaded + group.cache for group in groups], rooms, overflow=overflow)
    if where is None:
        return None
    places = [(group, rooms[index].device) for group, index in zip(groups, where, strict=True)]
    return _layout(places, main=rooms[0].device)


def _deal(sizes: Sequence[int], rooms: Sequence[Room], *, overflow: bool = False) -> list[int] | None:
    """For each size the index of its room, each room filled before the next; None if they are too small."""
    where: list[int] = []
    index, left = 0, rooms[0].free if rooms else -1
    for size in sizes:
        while size > left:
            if index + 1 >= len(rooms):
                if overflow and rooms:
                    break
                return None
            index += 1
            left = rooms[index].free
        left -= size
        where.append(index)
    return where


def fill_memory_and_disk(groups: Sequence[Group], cpu: Room, *, disk: bool, overflow: bool = False) -> Layout | None:
    """Everything into CPU memory, what does not fit to disk; None if that is not allowed or not enough.

    The head and the embedding come first: every token needs them whole. Caches are not counted against `cpu` here.
    With `overflow` memory takes everything, whatever its room.
    """
    first = sorted(groups, key=lambda group: _KEEPING_ORDER[group.kind])
    places: list[tuple[Group, str]] = []
    left = cpu.free
    for group in first:
        on_disk = group.loaded > left and not overflow
        if on_disk and not disk:
            return None
        left -= 0 if on_disk else group.loaded
        places.append((group, "disk" if on_disk else "cpu"))
    return _layout(places, main="cpu")


def split(
    groups: Sequence[Group], gpus: Sequence[Room], cpu: Room, *, disk: bool, overflow: bool = False
) -> Layout | None:
    """As many blocks on the GPUs as fit, in order; the rest in CPU memory, then on disk. None if that is not enough.

    The head stays on the first GPU, the embedding leaves first. Blocks elsewhere still run on the first GPU, so their
    caches and the buffer that their weights pass through are counted there. A GPU that no block fits on is no help.
    With `overflow` CPU memory takes the rest, whatever its room.
    """
    blocks = [group for group in groups if group.kind == "block"]
    for count in range(len(blocks), 0, -1):
        leaving = [group for group in groups if group.kind in ("embedding", "idle")] + blocks[count:]
        staying = [group for group in groups if group.kind == "head"] + blocks[:count]
        reserved = sum(group.cache for group in leaving) + max((group.largest for group in leaving), default=0)
        rooms = (replace(gpus[0], free=gpus[0].free - reserved), *gpus[1:])
        where = _deal([group.loaded + group.cache for group in staying], rooms)
        if where is not None and rooms[0].free >= 0:
            kept = [(group, gpus[index].device) for group, index in zip(staying, where, strict=True)]
            # Fewer blocks on the GPUs would only leave more for memory.
            return _with_rest(kept, leaving, cpu, main=gpus[0].device, disk=disk, overflow=overflow)
    return None


def _with_rest(
    kept: list[tuple[Group, str]], leaving: list[Group], cpu: Room, *, main: str, disk: bool, overflow: bool
) -> Layout | None:
    """`kept` on the GPUs and `leaving` in CPU memory, then on disk."""
    places = list(kept)
    left = cpu.free
    for group in leaving:
        on_disk = group.offloaded > left and not overflow
        if on_disk and not disk:
            return None
        left -= 0 if on_disk else group.offloaded
        places.append((group, "disk" if on_disk else "cpu"))
    return _layout(places, main=main)


def _layout(places: list[tuple[Group, str]], *, main: str) -> Layout:
    """Sum up `places`; what is off its running device keeps its cache on `main`."""
    weights: dict[str, int] = {}
    caches: dict[str, int] = {}
    meta: dict[str, int] = {}
    reads: dict[str, int] = {}
    buffer = rewritten = streamed = from_disk = 0
    for group, device in places:
        away = device == "disk" or (device == "cpu" and main != "cpu")
        runs_on = main if away else device
        weights[device] = weights.get(device, 0) + (group.offloaded if away else group.loaded)
        meta[device] = meta.get(device, 0) + (0 if away else group.quant_meta)
        caches[runs_on] = caches.get(runs_on, 0) + group.cache
        reads[runs_on] = reads.get(runs_on, 0) + group.read
        buffer = max(buffer, group.largest) if away else buffer
        moved = group.offloaded if away and group.kind != "idle" else 0
        streamed += moved if main != "cpu" else 0
        if device == "disk":
            rewritten += group.rewritten
            from_disk += moved
    return Layout(tuple(places), weights, caches, meta, buffer, rewritten, reads, streamed, from_disk)
