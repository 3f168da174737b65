"""How fast a way of running will be: bytes over bandwidths and operations over their rate, as a range.

Pure arithmetic. engine/process/bandwidth.py measures a machine's bandwidths; until then `defaults` guesses them. What
the libraries lose beside the bandwidth is in `_LOSSES`, where each figure says whether we measured it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from modules.hardware import Inventory
from modules.memory.forecasting.forecast import Quantization
from modules.memory.known_gpus import published_Bps

# Guesses until measured. The link and the disk together give accelerate's published offload figures (2.36, 10.6 and
# 34.2 s a token against 2.37, 10.72 and 33.9).
_CPU_READ_BPS = 20e9
_CPU_FLOPS_A_CORE = 50e9
_DISK_READ_BPS = 1.7e9
_FROM_CPU_BPS = 6.6e9
_GPU_READ_BPS = 400e9
# Operations a byte read: published bf16 rates of cards from T4 to H100 over their bandwidths are 76 to 295.
_GPU_FLOPS_A_BYTE = 100.0

# The turn of a chat that ways of running are compared by: a message of so many tokens (what was said before it is in
# the cache already), a reply of so many.
TURN_PROMPT_TOKENS = 128
TURN_REPLY_TOKENS = 256

Processor = Literal["cpu", "cuda"]


@dataclass(frozen=True, slots=True)
class GpuSpeed:
    """One GPU: bytes a second out of its own memory, and into it from the CPU's; operations a second in 16 bits."""

    read_Bps: float
    from_cpu_Bps: float
    flops: float = 0.0


@dataclass(frozen=True, slots=True)
class Speeds:
    """Bytes a second of a machine; `gpus` by device id ("cuda:0"). `measured` False: guesses, at least some of them.

    `fused` are the quantizations that its CPU computes with as they are stored; others are unpacked for each token.
    """

    cpu_read_Bps: float
    disk_read_Bps: float
    gpus: Mapping[str, GpuSpeed] = field(default_factory=dict)
    cpu_flops: float = _CPU_FLOPS_A_CORE
    measured: bool = False
    fused: frozenset[Quantization] = frozenset()


@dataclass(frozen=True, slots=True)
class Losses:
    """What a library adds to plain reading and multiplying.

    `read` is the share of the bandwidth that it reaches, `compute` the share of the operations, `layer_s` the seconds
    that each layer costs beside. `measured` False: a guess.
    """

    read: float
    compute: float
    layer_s: float
    measured: bool = False


@dataclass(frozen=True, slots=True)
class Work:
    """What a way of running does. Bytes that one token reads a device, and of it what passes into a GPU (`streamed`)
    or comes from disk; `active` weights multiplied a token; `full_cache` bytes of KV cache at the end of the context,
    out of CPU memory where `cache_away`; the prompt is read in chunks of `chunk` tokens, for each of which what lies in
    CPU memory passes into a GPU that computes it where `lends`. `caches` says where the cache lies if it is spread.
    """

    reads: Mapping[str, int]
    streamed: int
    from_disk: int
    active: int
    full_cache: int
    layers: int
    chunk: int
    quantization: Quantization
    double_quant: bool = False
    gathered: bool = False
    cache_away: bool = False
    native: bool = False
    lends: bool = False
    caches: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Estimate:
    """Tokens a second as (low, high), of writing and of reading."""

    tokens_per_s: tuple[float, float]
    prefill_tokens_per_s: tuple[float, float]

    @property
    def pace_s(self) -> float:
        """What ways are compared by: the seconds of a reply, or of reading the message where that takes longer."""
        return max(
            TURN_REPLY_TOKENS / middle(self.tokens_per_s), TURN_PROMPT_TOKENS / middle(self.prefill_tokens_per_s)
        )


# CPU: the starter model at 100 tokens, 2 cores of 17.4 GB/s (docs/log.md): fp32 55 ms a token, bf16 37, nf4 28.5; one
# model of one size, so how the time divides is an assumption. The rest are guesses.
_LOSSES: dict[tuple[Processor, Quantization], Losses] = {
    ("cpu", "none"): Losses(0.72, 0.5, 0.5e-3, measured=True),
    ("cpu", "int8"): Losses(0.5, 0.3, 1.0e-3),
    ("cpu", "nf4"): Losses(0.5, 0.3, 0.5e-3, measured=True),
    ("cuda", "none"): Losses(0.8, 0.5, 0.5e-3),
    ("cuda", "int8"): Losses(0.5, 0.3, 3.0e-3),
    ("cuda", "nf4"): Losses(0.5, 0.3, 0.7e-3),
}
# llama.cpp on GPUs: 7B in Q4_0 and in 16 bits on an RTX 3090, 121.8 and 48.5 tokens a second written, 3,408 read
# (github.com/ggml-org/llama.cpp/pull/4766): 8.2 and 20.6 ms a token are bytes over 0.83 of the bandwidth and 0.1 ms a
# layer. Published, not measured by us.
_NATIVE_ON_GPU = Losses(0.83, 0.5, 0.1e-3)
# Where the CPU lacks what their fused kernels need, 4-bit matrices are written out in 16 bits for each token and read
# again, 8-bit ones in 32: by the bytes so moved. Guesses.
_UNPACKED: dict[Quantization, Losses] = {"int8": Losses(0.06, 0.2, 1.0e-3), "nf4": Losses(0.07, 0.2, 0.5e-3)}
# What bitsandbytes 0.50 asks of a CPU for them (backends/cpu/ops.py; torch's _int_mm for 8 bits).
_NEEDED: dict[Quantization, str] = {"int8": "avx512f", "nf4": "avx512_bf16", "fp4": "avx512_bf16"}
# A measured factor may be this far off on another machine, a guessed one that far.
_SPREAD_MEASURED, _SPREAD_GUESSED = 1.3, 1.7
# Double quantization unpacks its constants for each matrix first. A guess.
_DOUBLE_QUANT_COST = 1.5
# DeepSpeed gathers each layer's weights before it is used: seconds a layer beside the copies (one rank, two cores).
_GATHER_S = 4e-3


def defaults(inventory: Inventory) -> Speeds:
    """Guesses for a machine that was not measured; cards that we know by name have their published bandwidth."""
    gpus = {}
    for gpu in inventory.gpus:
        read_Bps = published_Bps(gpu.name) or _GPU_READ_BPS
        gpus[gpu.id] = GpuSpeed(read_Bps, _FROM_CPU_BPS, read_Bps * _GPU_FLOPS_A_BYTE)
    fused = frozenset(name for name, needed in _NEEDED.items() if needed in inventory.cpu_features)
    return Speeds(_CPU_READ_BPS, _DISK_READ_BPS, gpus, _CPU_FLOPS_A_CORE * inventory.physical_cores, fused=fused)


def from_bandwidths(found: Mapping[str, Mapping[str, float]], inventory: Inventory) -> Speeds:
    """What engine/process/bandwidth.py printed, with guesses for what it could not measure."""
    guessed = defaults(inventory)
    gpus = {}
    for device, guess in guessed.gpus.items():
        rates = found.get(device, {})
        gpus[device] = GpuSpeed(
            rates.get("read_Bps", guess.read_Bps), rates.get("from_cpu_Bps", guess.from_cpu_Bps),
            rates.get("flops", guess.flops),
        )  # fmt: skip
    cpu, disk = found.get("cpu", {}), found.get("disk", {})
    return Speeds(
        cpu.get("read_Bps", guessed.cpu_read_Bps), disk.get("read_Bps", guessed.disk_read_Bps), gpus,
        cpu.get("flops", guessed.cpu_flops), fused=guessed.fused,
        measured=all(device in found for device in ("cpu", *guessed.gpus)),
    )  # fmt: skip


def estimate(work: Work, speeds: Speeds) -> Estimate:
    """How fast `work` goes. Devices take turns, so their times add up.

    A token: Σ reads/bandwidth + streamed/link + disk/bandwidth + cache/bandwidth + layers · loss. A chunk of the
    prompt moves and reads the same weights once and computes 2 · active · chunk operations.
    """
    losses = [_losses(device, work, speeds) for device in work.reads]
    spread = _SPREAD_MEASURED if speeds.measured and all(loss.measured for loss in losses) else _SPREAD_GUESSED
    moving = _moving_s(work, speeds)
    longest_s = moving + _cache_s(work, speeds, work.full_cache)
    reading = _lent(work)
    chunk_s = (_moving_s(reading, speeds) if work.lends else moving) + _computing_s(reading, speeds)
    prefill = work.chunk / chunk_s
    return Estimate((1 / (longest_s * spread), spread / moving), (prefill / spread, prefill * spread))


def middle(rates: tuple[float, float]) -> float:
    """The rate that stands for a range: its geometric middle."""
    return math.sqrt(rates[0] * rates[1])


def _lent(work: Work) -> Work:
    """`work` as a prompt is read: what lies in CPU memory passes into the first GPU."""
    if not work.lends or "cpu" not in work.reads:
        return work
    reads = {device: size for device, size in work.reads.items() if device != "cpu"}
    first = next(iter(reads))
    return replace(work, reads={**reads, first: reads[first] + work.reads["cpu"]}, streamed=work.reads["cpu"])


def _losses(device: str, work: Work, speeds: Speeds) -> Losses:
    kind: Processor = "cuda" if device.startswith("cuda") else "cpu"
    if work.native and kind == "cuda":
        return _NATIVE_ON_GPU
    quantization = work.quantization
    alike: Quantization = "nf4" if quantization == "fp4" else quantization
    unpacked = kind == "cpu" and quantization not in speeds.fused
    return _UNPACKED.get(alike, _LOSSES[kind, alike]) if unpacked else _LOSSES[kind, alike]


def _read_Bps(device: str, speeds: Speeds) -> float:
    return speeds.gpus[device].read_Bps if device in speeds.gpus else speeds.cpu_read_Bps


def _moving_s(work: Work, speeds: Speeds) -> float:
    """Seconds to read every weight once, where it lies or through the link, and what the library adds."""
    seconds = work.from_disk / speeds.disk_read_Bps
    if work.streamed:
        seconds += work.streamed / min(gpu.from_cpu_Bps for gpu in speeds.gpus.values())
    total = max(1, sum(work.reads.values()))
    for device, size in work.reads.items():
        loss = _losses(device, work, speeds)
        layer_s = loss.layer_s * (_DOUBLE_QUANT_COST if work.double_quant else 1.0)
        seconds += size / (_read_Bps(device, speeds) * loss.read) + work.layers * layer_s * size / total
    return seconds + (work.layers * _GATHER_S if work.gathered else 0.0)


def _cache_s(work: Work, speeds: Speeds, cache: int) -> float:
    """Seconds to read the KV cache, on the slowest device that computes; or to bring it there."""
    if work.caches:
        return sum(size / _read_Bps(device, speeds) for device, size in work.caches.items())
    if work.cache_away and speeds.gpus:
        return cache / min(gpu.from_cpu_Bps for gpu in speeds.gpus.values())
    return cache / min((_read_Bps(device, speeds) for device in work.reads), default=speeds.cpu_read_Bps)


def _computing_s(work: Work, speeds: Speeds) -> float:
    """Seconds of arithmetic for one chunk of the prompt."""
    total = max(1, sum(work.reads.values()))
    seconds = 0.0
    for device, size in work.reads.items():
        flops = speeds.gpus[device].flops if device in speeds.gpus else speeds.cpu_flops
        rate = flops or _GPU_FLOPS_A_BYTE * _read_Bps(device, speeds)
        share = _losses(device, work, speeds).compute
        seconds += 2 * work.active * work.chunk / (rate * share) * size / total
    return seconds
