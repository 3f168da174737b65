"""Graphics cards by name or by size, for planning on a machine that is not here.

Memory as the driver reports it, in MiB, ECC on where the factory turns it on (public nvidia-smi logs; docs/memory.md
names the rows that were looked up); bandwidth as the makers publish it, in GB/s. Laptop variants differ and are left
out. A name that was sold in two sizes is the smaller one where both are common, and the usual one where the other is
rare. A card given by its size alone has no bandwidth: its speed is unknown, and said to be.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from modules.hardware import Device, Inventory
from modules.units import GiB, MiB, format_size, parse_size

# What a driver keeps of a card, and a system of its RAM: so many bytes, or one part of so many (of a card the larger,
# of RAM the smaller of the two).
_DRIVER_BYTES, _DRIVER_PART = 200 * MiB, 50
_SYSTEM_BYTES, _SYSTEM_PART = 2 * GiB, 4


@dataclass(frozen=True, slots=True)
class Gpu:
    """A card: what its memory holds in bytes, what is left of it for programs, bytes a second (0: unknown)."""

    name: str
    total_bytes: int
    read_Bps: float = 0.0

    @property
    def free_bytes(self) -> int:
        """Without what the driver keeps: 1 to 2 % on published nvidia-smi and torch figures; the upper end here."""
        return max(0, self.total_bytes - max(_DRIVER_BYTES, self.total_bytes // _DRIVER_PART))


# name: (MiB, GB/s)
_GEFORCE = {
    "5090": (32607, 1792), "5080": (16303, 960), "5070 Ti": (16303, 896), "5070": (12227, 672),
    "5060 Ti": (8151, 448), "5060 Ti 16GB": (16311, 448), "5060": (8151, 448),
    "4090": (24564, 1008), "4080 Super": (16376, 736), "4080": (16376, 717), "4070 Ti Super": (16376, 672),
    "4070 Ti": (12282, 504), "4070 Super": (12282, 504), "4070": (12282, 504), "4060 Ti": (8188, 288),
    "4060 Ti 16GB": (16380, 288), "4060": (8188, 272),
    "3090 Ti": (24564, 1008), "3090": (24576, 936), "3080 Ti": (12288, 912), "3080": (10240, 760),
    "3080 12GB": (12288, 912),
    "3070 Ti": (8192, 608), "3070": (8192, 448), "3060 Ti": (8192, 448), "3060": (12288, 360), "3050": (8192, 224),
    "2080 Ti": (11264, 616), "2080 Super": (8192, 496), "2080": (8192, 448), "2070 Super": (8192, 448),
    "2070": (8192, 448), "2060": (6144, 336), "1660 Ti": (6144, 288), "1660 Super": (6144, 336), "1660": (6144, 192),
    "1080 Ti": (11264, 484), "1080": (8192, 320), "1070": (8192, 256), "1060": (6144, 192),
}  # fmt: skip
_OTHERS = {
    "T4": (15360, 320), "P100": (16384, 732), "V100": (16384, 900), "V100 32GB": (32768, 900), "L4": (23034, 300),
    "A2": (15356, 200), "A10": (23028, 600), "A10G": (23028, 600), "A30": (24576, 933), "A40": (46068, 696),
    "L40": (46068, 864), "L40S": (46068, 864), "RTX A4000": (16376, 448), "RTX A5000": (24564, 768),
    "RTX A6000": (49140, 768), "RTX 6000 Ada": (49140, 960), "Titan RTX": (24576, 672),
    "A100": (40960, 1555), "A100 80GB": (81920, 1935), "H100": (81559, 3350), "H100 PCIe": (81559, 2000),
    "H200": (143771, 4800), "B200": (183359, 8000), "RTX PRO 6000": (97887, 1792),
}  # fmt: skip
_CARDS = {
    **{f"{'RTX' if number >= '2' else 'GTX'} {number}": figures for number, figures in _GEFORCE.items()},
    **_OTHERS,
}

_SIZE = re.compile(r"[\d.]{1,3}|[\d.]+[kmgt]i?b")
# What the driver adds to a card's name: how it is plugged in, its kind of memory, its housing; then its size.
_BUILD = re.compile(r"\b(sxm\d?|pcie|hbm\d\w*|generation|blackwell|workstation|server|edition)\b", re.IGNORECASE)
_SIZE_IN_NAME = re.compile(r"\b\d+ ?GB\b", re.IGNORECASE)


def find_gpu(text: str) -> Gpu:
    """The card that `3060`, `RTX 4090`, `a100-80gb` or a size like `24GiB` means. Raises ValueError with what is known.

    A bare number up to 3 digits is a size in GiB, a longer one a card.
    """
    key = _key(text)
    by_key = {_key(name): name for name in _CARDS} | {_key(name).removeprefix("rtx").removeprefix("gtx"): name
                                                      for name in _CARDS}  # fmt: skip
    name = by_key.get(key)
    if name is not None:
        mib, gigabytes = _CARDS[name]
        return Gpu(name, mib * MiB, gigabytes * 1e9)
    if _SIZE.fullmatch(key):
        size = parse_size(text)
        return Gpu(f"a card of {format_size(size)}", size)
    near = difflib.get_close_matches(key, by_key, n=3, cutoff=0.6)
    shown = ", ".join(dict.fromkeys(by_key[match] for match in near)) or "3060, RTX 4090, A100 80GB"
    raise ValueError(f"{text[:40]!r} is neither a size like 24GiB nor a card that Snug knows ({shown}, …)")


def published_Bps(driver_name: str) -> float:
    """A card's bandwidth by the driver's name for it, `NVIDIA A100-SXM4-80GB`; 0 if unknown."""
    plain = _BUILD.sub(" ", driver_name)
    for name in (driver_name, plain, _SIZE_IN_NAME.sub(" ", plain)):
        with suppress(ValueError):
            return find_gpu(name).read_Bps
    return 0.0


def imagine(here: Inventory, gpus: Sequence[Gpu], ram_bytes: int | None) -> Inventory:
    """A machine with these cards and this much RAM, nothing else running on it; what is not given is as `here`.

    Of the RAM a system keeps 2 GiB, or a quarter where it is small.
    """
    cards = tuple(
        Device(f"cuda:{number}", "cuda", gpu.name, gpu.total_bytes, gpu.free_bytes) for number, gpu in enumerate(gpus)
    )
    cpu = here.cpu
    if ram_bytes is not None:
        cpu = replace(cpu, total_bytes=ram_bytes, free_bytes=ram_bytes - min(_SYSTEM_BYTES, ram_bytes // _SYSTEM_PART))
    return replace(here, gpus=cards or here.gpus, cpu=cpu)


def card_with(free_bytes: int) -> int:
    """The least bytes of a card that leave so many for programs."""
    return max(free_bytes + _DRIVER_BYTES, -(-free_bytes * _DRIVER_PART // (_DRIVER_PART - 1)))


def ram_with(free_bytes: int) -> int:
    """The least bytes of RAM that leave so many beside the system."""
    return min(free_bytes + _SYSTEM_BYTES, -(-free_bytes * _SYSTEM_PART // (_SYSTEM_PART - 1)))


def _key(text: str) -> str:
    """Letters and digits alone: makers and spaces are written in many ways."""
    words = re.sub(r"\b(nvidia|geforce|tesla|quadro)\b", " ", text.lower())
    return re.sub(r"[^a-z0-9.]", "", words)
