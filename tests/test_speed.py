"""Bytes over bandwidths: published offload figures, and the order in which ways of running must come."""

from __future__ import annotations

from dataclasses import replace

import pytest

from modules.memory.forecasting.forecast import Quantization
from modules.memory.planning.speed import Estimate, GpuSpeed, Speeds, Work, defaults, estimate, from_bandwidths
from tests.shapes import machine

FUSED: frozenset[Quantization] = frozenset(("int8", "nf4", "fp4"))
CPU = Speeds(20e9, 2e9, cpu_flops=400e9, fused=FUSED)
GPU = Speeds(20e9, 1.7e9, {"cuda:0": GpuSpeed(400e9, 6.6e9, 40e12)}, 400e9)
SEVEN_B = Work(
    reads={"cuda:0": 13 * 10**9}, streamed=0, from_disk=0, active=65 * 10**8, full_cache=2 * 10**9,
    layers=32, chunk=512, quantization="none",
)  # fmt: skip


def middle(work: Work, speeds: Speeds) -> float:
    """Tokens a second, the geometric middle of the range."""
    low, high = estimate(work, speeds).tokens_per_s
    assert 0 < low < high
    return float((low * high) ** 0.5)


@pytest.mark.parametrize(
    ("streamed_gb", "disk_gb", "published_s"), [(14.1, 0, 2.37), (17.0, 14.0, 10.72), (56.0, 43.0, 33.9)]
)
def test_accelerates_published_offload_speeds_lie_within_the_range(
    streamed_gb: float, disk_gb: float, published_s: float
) -> None:
    """OPT-30B in fp16 on two cards, NeoX-20B and OPT-30B in fp32 with disk: what is moved a token dominates."""
    work = replace(SEVEN_B, streamed=int(streamed_gb * 1e9), from_disk=int(disk_gb * 1e9), full_cache=0)
    low, high = estimate(work, GPU).tokens_per_s
    assert low <= 1 / published_s <= high


@pytest.mark.parametrize(
    ("megabytes", "quantization", "measured"), [(538, "none", 18.2), (269, "none", 26.8), (117, "nf4", 35.0)]
)
def test_the_starter_models_measured_speeds_lie_within_the_range(
    megabytes: int, quantization: Quantization, measured: float
) -> None:
    """135M weights in fp32, bf16 and nf4 (its head stays in 16 bits) on two cores that read 17.4 GB/s."""
    work = Work({"cpu": megabytes * 10**6}, 0, 0, 135 * 10**6, 10**7, 30, 512, quantization)
    low, high = estimate(work, Speeds(17.4e9, 2e9, cpu_flops=100e9, measured=True, fused=FUSED)).tokens_per_s
    assert low <= measured <= high


@pytest.mark.parametrize(
    ("card", "count", "gigabytes", "layers", "quantization", "published"),
    [
        ("RTX 4090", 2, 39.5, 80, "nf4", 7.0),  # Llama 2 70B: a reader's comparison with GPTQ, bitsandbytes 0.40
        ("RTX 3060", 1, 7.0, 32, "int8", 9.0),  # LLaMA 7B, one of the seeds' 4 to 9 tokens a second
    ],
)
def test_what_others_measured_on_gpus_lies_within_the_range(
    card: str, count: int, gigabytes: float, layers: int, quantization: Quantization, published: float
) -> None:
    """Never tuned to: two figures of others for cards that we do not have."""
    here = machine(count, 24)
    speeds = defaults(replace(here, gpus=tuple(replace(gpu, name=card) for gpu in here.gpus)))
    each = int(gigabytes * 1e9 / count)
    work = Work({gpu.id: each for gpu in here.gpus}, 0, 0, 65 * 10**8, 10**9, layers, 512, quantization)
    low, high = estimate(work, speeds).tokens_per_s
    assert low <= published <= high


def test_weights_that_pass_through_the_link_are_far_slower_than_those_that_stay() -> None:
    half_away = replace(SEVEN_B, streamed=SEVEN_B.reads["cuda:0"] // 2)
    on_disk = replace(half_away, from_disk=half_away.streamed)
    assert middle(SEVEN_B, GPU) > 5 * middle(half_away, GPU) > 5 * middle(on_disk, GPU) / 2
    assert middle(half_away, GPU) > middle(on_disk, GPU)


def test_fewer_bytes_are_faster_on_a_cpu_and_eight_bits_are_slow_on_a_gpu() -> None:
    on_cpu = replace(SEVEN_B, reads={"cpu": 13 * 10**9})
    nf4 = replace(on_cpu, reads={"cpu": 4 * 10**9}, quantization="nf4")
    assert middle(nf4, CPU) > middle(on_cpu, CPU)
    int8 = replace(SEVEN_B, reads={"cuda:0": 7 * 10**9}, quantization="int8")
    assert middle(int8, GPU) < middle(SEVEN_B, GPU)


def test_a_cpu_without_the_kernels_for_it_is_slower_in_four_bits_than_in_sixteen() -> None:
    """bitsandbytes then writes each matrix out in 16 bits for every token."""
    on_cpu = replace(SEVEN_B, reads={"cpu": 13 * 10**9})
    nf4 = replace(on_cpu, reads={"cpu": 4 * 10**9}, quantization="nf4")
    plain = replace(CPU, fused=frozenset())
    assert middle(nf4, plain) < middle(on_cpu, plain) == middle(on_cpu, CPU) < middle(nf4, CPU)
    inventory = machine()
    assert defaults(inventory).fused == frozenset()
    assert defaults(replace(inventory, cpu_features=frozenset({"avx512f"}))).fused == {"int8"}
    assert defaults(replace(inventory, cpu_features=frozenset({"avx512f", "avx512_bf16"}))).fused == FUSED


def test_a_longer_context_lowers_the_lower_end_alone() -> None:
    longer = replace(SEVEN_B, full_cache=2 * SEVEN_B.full_cache)
    short, long = estimate(SEVEN_B, GPU), estimate(longer, GPU)
    assert long.tokens_per_s[0] < short.tokens_per_s[0]
    assert long.tokens_per_s[1] == short.tokens_per_s[1]


def test_ways_are_compared_by_the_reply_or_by_the_message_before_it_where_that_takes_longer() -> None:
    assert Estimate((2.0, 8.0), (100.0, 400.0)).pace_s == 256 / 4
    assert Estimate((2.0, 8.0), (0.5, 0.5)).pace_s == 128 / 0.5


def test_two_gpus_take_turns() -> None:
    both = Speeds(20e9, 2e9, {f"cuda:{i}": GpuSpeed(400e9, 6.6e9, 40e12) for i in range(2)})
    halves = replace(SEVEN_B, reads={"cuda:0": 65 * 10**8, "cuda:1": 65 * 10**8})
    assert middle(halves, both) == pytest.approx(middle(SEVEN_B, GPU))


def test_gathered_weights_cost_more_than_plain_ones() -> None:
    assert middle(replace(SEVEN_B, gathered=True), GPU) < middle(SEVEN_B, GPU)


def test_cards_that_are_known_by_name_have_their_published_bandwidth() -> None:
    inventory = machine(2, 24)
    named = replace(inventory, gpus=(replace(inventory.gpus[0], name="NVIDIA GeForce RTX 4090"), inventory.gpus[1]))
    guessed = defaults(named)
    assert guessed.gpus["cuda:0"].read_Bps == 1008e9
    assert guessed.gpus["cuda:1"].read_Bps < 1008e9
    assert not guessed.measured


def test_measured_bandwidths_take_the_place_of_guesses_and_the_rest_stays_guessed() -> None:
    inventory = machine(1, 24)
    known = from_bandwidths({"cpu": {"read_Bps": 7e9}, "cuda:0": {"read_Bps": 9e11}}, inventory)
    assert (known.cpu_read_Bps, known.gpus["cuda:0"].read_Bps) == (7e9, 9e11)
    assert known.gpus["cuda:0"].from_cpu_Bps == defaults(inventory).gpus["cuda:0"].from_cpu_Bps
    assert known.measured
    assert not from_bandwidths({}, inventory).measured
