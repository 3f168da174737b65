"""What llama.cpp's log says of a load: where weights really lie, why it failed, and whether that was memory."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest

from modules.engine.base import OnProgress
from modules.engine.host.deaths import MemoryWatch
from modules.engine.host.host import EngineHost
from modules.engine.host.verdicts import death_of
from modules.engine.host.worker import LoadByName
from modules.engine.llamacpp.load_log import LoadLog
from modules.engine.llamacpp.shortage import find_shortage
from modules.errors import EngineDied, OutOfMemory
from modules.measuring import entries_after_load, entries_after_use
from modules.memory.forecasting.budget import Budget, Figure
from modules.memory.model.spec import inspect
from modules.memory.planning.planner import Plan
from modules.units import MiB
from tests.fakes import fake_inventory, fake_plan
from tests.llamacpp_rig import TEXT, engine_of, long, plan_of
from tests.loop_rig import Ask
from tests.tiny_models import tiny_gguf

ABORTED = "CUDA error: out of memory"
# ggml-cuda.cu of the pinned xllamacpp.
CUDA = "0.01.2 E ggml_backend_cuda_buffer_type_alloc_buffer: allocating 123.50 MiB on device 1: cudaMalloc failed: "
NATIVE = replace(fake_plan(), loader="llamacpp")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf(tmp_path_factory.mktemp("models"), readable=True)


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ([f"{CUDA}out of memory"], "GPU 1 has no room for 124 MiB more"),
        (["0.0 E x: failed to allocate CUDA0 buffer of size 16880288"], "GPU 0 has no room for 16.1 MiB more"),
        (["0.0 E llama_model_load: error loading model: unable to allocate Vulkan2 buffer"], "GPU 2 has no room"),
        (["ROCm error: out of memory", "  current device: 3, in function alloc at x.cu:4"], "GPU 3 has no room"),
        (["0.0 E ggml_vulkan: Device memory allocation of size 99 failed."], "llama.cpp could not allocate"),
        (["0.0 E x: error loading model: unable to allocate CPU buffer"], "llama.cpp could not allocate"),
        (["0.0 E llama_init_from_model: failed to allocate compute pp buffers"], "llama.cpp could not allocate"),
        (["0.0 I llama_model_loader: - kv 3: general.name str = Out of memory"], ""),
        (["0.0 W x: failed to allocate CUDA0 buffer of size 5"], ""),
        (["0.0 E llama_model_load: error loading model: tensor 'a' has the wrong shape"], ""),
        ([], ""),
    ],
)
def test_want_of_memory_is_told_by_errors_alone_with_the_gpu_where_it_is_named(lines: list[str], told: str) -> None:
    found = find_shortage(lines)
    assert found.startswith(told) if told else found == ""


def test_the_cause_of_a_failed_load_is_quoted_from_errors_and_a_draft_models_weights_count_apart() -> None:
    lines = [
        "0.0 I - kv 1: general.name str = error loading model: a lie",
        "0.0 I load_tensors:        CUDA0 model buffer size =     8.00 MiB",
        "0.0 I load_tensors:          CPU model buffer size =     2.00 MiB",
        "0.0 I srv load_model: loading draft model 'small.gguf'",
        "0.0 I load_tensors:        CUDA0 model buffer size =     1.00 MiB",
        "0.0 E llama_model_load: error loading model: tensor 'a' is missing",
    ]
    computing = [f"0.0 I sched_reserve:      CUDA1 compute buffer size =    {size}.00 MiB" for size in (5, 6)]
    heard = LoadLog(4, [*computing, *lines, computing[0]])
    assert heard.buffers["cuda:1"].total == (6 + 5) * MiB, "planned anew for adapters; the draft model has its own"
    assert heard.cause == "tensor 'a' is missing"
    assert heard.weights == {"cuda:0": 8 * MiB, "cpu": 2 * MiB}
    assert heard.buffers["cuda:0"].total == 9 * MiB
    assert LoadLog().weights == {} and LoadLog().cause == ""


def test_the_ledger_holds_the_plan_to_what_llama_cpp_allocated_and_not_to_itself(file: Path) -> None:
    spec = inspect(file)
    stored = sum(tensor.size_bytes for tensor in spec.tensors)
    wrong = replace(spec, tensors=tuple(replace(one, size_bytes=2 * one.size_bytes) for one in spec.tensors))
    twice = Budget.of({"weights": Figure(2 * stored, "exact"), "kv_cache": Figure(MiB, "exact")})
    plan = replace(plan_of(file), spec=wrong, budgets={"cpu": twice, "cuda:0": twice})
    with engine_of(plan) as engine:
        Ask("one", engine.encode([]) or [65] * 20, long(8)).run(engine)
        (entry,) = entries_after_load(plan, engine.info, fake_inventory((8,)))
        used = entries_after_use(plan, engine.info, engine.stats(), fake_inventory((8,)))
    assert entry.device == "cpu" and entry.ratio == pytest.approx(0.5, rel=0.05)
    assert [one.device for one in used] == ["cpu"], "no GPU was used"
    unknown = replace(engine.info, placement={})
    assert entries_after_load(plan, unknown, fake_inventory()) == []


def test_after_a_load_llama_cpp_is_as_quiet_as_before(file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with engine_of(plan_of(file)) as engine:
        capfd.readouterr()
        Ask("one", [65] * 20, long(8)).run(engine)
        assert TEXT[:10] not in capfd.readouterr().err
        assert "slot" not in capfd.readouterr().err


def load_and_abort(plan: Plan, on_progress: OnProgress) -> NoReturn:
    """A LoadEngine that ends as llama.cpp does where a GPU has no memory for a step."""
    os.write(2, f"{CUDA}out of memory\n{ABORTED}\n".encode())
    os.write(2, b"libggml.so(ggml_abort+0x1)\n" * 40)
    os.abort()


def test_an_abort_for_want_of_memory_in_a_load_is_out_of_memory() -> None:
    with pytest.raises(OutOfMemory, match=r"while it was loading.*GPU 1 has no room for 124 MiB more"):
        EngineHost.start(NATIVE, LoadByName("tests.test_load_log:load_and_abort"))


def test_in_mid_use_it_is_a_death_that_the_model_is_loaded_smaller_after() -> None:
    aborted = -int(signal.SIGABRT)
    said = ("a", ABORTED, "  current device: 0, in function x", "libggml.so(ggml_abort+0x1)")
    error, starved = death_of(NATIVE, aborted, MemoryWatch(None), loading=False, said=said)
    assert starved and isinstance(error, EngineDied) and "GPU 0 has no room" in error.message
    for plan, code, lines in ((NATIVE, aborted, ("a",)), (fake_plan(), aborted, said), (NATIVE, 0, said)):
        error, starved = death_of(plan, code, MemoryWatch(None), loading=False, said=lines)
        assert not starved and "memory" not in error.message
