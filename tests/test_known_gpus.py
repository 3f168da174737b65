"""Cards of machines that are not here: by name however it is written, or by size."""

from __future__ import annotations

import pytest

from modules.memory.known_gpus import find_gpu, imagine, published_Bps
from modules.units import GiB, MiB
from tests.fakes import fake_inventory


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("3060", "RTX 3060"), ("RTX 3060", "RTX 3060"), ("nvidia geforce rtx-3060", "RTX 3060"),
        ("3060ti", "RTX 3060 Ti"), ("1080 Ti", "GTX 1080 Ti"), ("Tesla T4", "T4"), ("a100-80gb", "A100 80GB"),
        ("A100", "A100"), ("h200", "H200"), ("4080 SUPER", "RTX 4080 Super"), ("RTX PRO 6000", "RTX PRO 6000"),
        ("4060 Ti 16GB", "RTX 4060 Ti 16GB"), ("NVIDIA GeForce RTX 4060 Ti", "RTX 4060 Ti"),
    ],
)  # fmt: skip
def test_a_name_is_understood_however_it_is_written(written: str, name: str) -> None:
    found = find_gpu(written)
    assert found.name == name
    assert found.read_Bps > 10**11


@pytest.mark.parametrize(
    ("driver_name", "gigabytes"),
    [
        ("NVIDIA GeForce RTX 4090", 1008), ("Tesla T4", 320), ("Tesla V100-SXM2-16GB", 900),
        ("Tesla V100-SXM2-32GB", 900),
        ("NVIDIA A100-PCIE-40GB", 1555), ("NVIDIA A100-SXM4-80GB", 1935), ("NVIDIA A100 80GB PCIe", 1935),
        ("NVIDIA H100 80GB HBM3", 3350), ("NVIDIA H100 PCIe", 2000), ("NVIDIA RTX 6000 Ada Generation", 960),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", 1792),
        ("NVIDIA GeForce RTX 4070 Laptop GPU", 0), ("NVIDIA GeForce MX150", 0), ("", 0),
    ],
)  # fmt: skip
def test_the_drivers_name_for_a_card_tells_its_bandwidth(driver_name: str, gigabytes: int) -> None:
    assert published_Bps(driver_name) == gigabytes * 1e9


@pytest.mark.parametrize("name", ["4060 Ti", "5060 Ti"])
def test_a_name_sold_in_two_common_sizes_is_the_smaller_one(name: str) -> None:
    """What fits the smaller card fits the larger one too; the other way round would be a false promise."""
    assert 7.9 * GiB < find_gpu(name).total_bytes < 8.1 * GiB
    assert 15.9 * GiB < find_gpu(f"{name} 16GB").total_bytes < 16 * GiB


@pytest.mark.parametrize(
    ("written", "size"), [("24GiB", 24 * GiB), ("24", 24 * GiB), ("8722MiB", 8722 * MiB), ("12 GB", 12 * 10**9)]
)
def test_a_size_is_a_card_of_that_size_whose_speed_is_unknown(written: str, size: int) -> None:
    found = find_gpu(written)
    assert (found.total_bytes, found.read_Bps) == (size, 0.0)


@pytest.mark.parametrize("written", ["3061", "24 bananas", "0", "-24", "", "9999999TiB", "banana", "1e9", "x" * 5000])
def test_anything_else_is_refused_in_a_line(written: str) -> None:
    with pytest.raises(ValueError) as caught:
        find_gpu(written)
    assert len(str(caught.value)) < 200


def test_the_driver_keeps_some_of_it() -> None:
    """An RTX 3090 shows programs 23.69 of its 24 GiB, an RTX 3060 11.77 of 12: never more than that here."""
    assert 23.4 * GiB < find_gpu("3090").free_bytes <= 23.69 * GiB
    assert 11.6 * GiB < find_gpu("3060").free_bytes <= 11.77 * GiB


def test_what_is_not_given_is_as_here() -> None:
    here = fake_inventory((8,), ram_gib=16)
    both = imagine(here, [find_gpu("3060"), find_gpu("24GiB")], 64 * GiB)
    assert [(gpu.id, gpu.name) for gpu in both.gpus] == [("cuda:0", "RTX 3060"), ("cuda:1", "a card of 24.0 GiB")]
    assert (both.cpu.total_bytes, both.cpu.free_bytes, both.disk) == (64 * GiB, 62 * GiB, here.disk)
    assert imagine(here, [], 64 * GiB).gpus == here.gpus
    assert imagine(here, [find_gpu("3060")], None).cpu == here.cpu
    assert imagine(here, [], GiB).cpu.free_bytes == GiB * 3 // 4
