"""modules/engine/process/footprint.py: bytes of loaded weights and the peak of a load, as measured."""

from __future__ import annotations

import gc
import sys
from types import SimpleNamespace

import psutil
import pytest
import torch

from modules.engine.process.footprint import module_devices, peak_bytes, reset_peak, weight_bytes_by_device
from modules.units import MiB


def test_shared_tensors_count_once_and_offloaded_ones_where_the_map_says() -> None:
    model = torch.nn.Module()
    model.embed = torch.nn.Embedding(10, 4)
    model.head = torch.nn.Linear(4, 10, bias=False)
    model.head.weight = model.embed.weight
    model.far = torch.nn.Linear(4, 4, bias=False, device="meta")
    model.register_buffer("table", torch.zeros(8, dtype=torch.bfloat16))
    modules = {"embed": "cpu", "head": "cpu", "far": "disk"}
    assert weight_bytes_by_device(model, modules) == {"cpu": 10 * 4 * 4 + 8 * 2, "disk": 4 * 4 * 4}


def test_quantization_constants_count_as_weights() -> None:
    model = torch.nn.Module()
    weight = torch.nn.Parameter(torch.zeros(6, dtype=torch.uint8), requires_grad=False)
    nested = SimpleNamespace(absmax=torch.zeros(1))
    weight.quant_state = SimpleNamespace(absmax=torch.zeros(2, dtype=torch.uint8), state2=nested)  # type: ignore[attr-defined]
    model.packed = weight
    assert weight_bytes_by_device(model, {"": "cpu"}) == {"cpu": 6 + 2 + 4}


def test_devices_are_named_alike_however_transformers_wrote_them() -> None:
    placed = SimpleNamespace(hf_device_map={"a": 0, "b": torch.device("cuda:1"), "c": "disk", "d": "cpu"})
    assert module_devices(placed, "cpu") == {"a": "cuda:0", "b": "cuda:1", "c": "disk", "d": "cpu"}
    assert module_devices(SimpleNamespace(), "cuda:0") == {"": "cuda:0"}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can begin a new peak")
def test_the_peak_sees_what_came_and_went_since_the_reset() -> None:
    gc.collect()
    reset_peak()
    block = torch.ones(256 * MiB // 4)
    held = psutil.Process().memory_info().rss
    del block
    first = peak_bytes(on_gpu=False)
    reset_peak()
    assert abs(first - held) < 64 * MiB
    assert peak_bytes(on_gpu=False) < first - 128 * MiB
