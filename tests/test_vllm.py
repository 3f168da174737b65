"""`--loader vllm`: a plan as vLLM's flags, its log as progress, its ends; the real thing where a Python has it."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from modules.engine.base import GenerationRequest, Progress, TextPiece
from modules.engine.host.host import EngineHost
from modules.engine.vllm.command import failure, serve_command, serve_environment, stage_of, utilization
from modules.engine.vllm.engine import load, start
from modules.engine.vllm.server import SUPERVISOR, VllmServer
from modules.errors import LoadFailed, NotAvailableHere, OutOfMemory, SnugError
from modules.memory.forecasting.budget import Budget, Figure
from modules.memory.planning.planner import Plan, Question, list_plans, make_plan
from modules.models.starting import load_engine_for
from modules.sampling import GenerationParams
from modules.settings import LoadOptions
from modules.units import GiB
from tests.fake_server import CARD, fake_server
from tests.fakes import fake_inventory, fake_plan, fake_spec
from tests.test_host import until

PYTHON = os.environ.get("SNUG_TEST_VLLM_PYTHON", "")
# Stands in for vLLM's Python: asked for a version it tells one, as a server it prints a log and serves a parrot.
STAND_IN = """#!{python}
import json, os, sys, time
if sys.argv[1] == "-c":
    print("0.0.1")
    raise SystemExit
sys.path.insert(0, {root!r})
from tests.fake_server import CARD, fake_server
log = {log!r}
for line in log:
    print(line, flush=True)
if {code!r} is not None:
    raise SystemExit({code!r})
port = int(sys.argv[sys.argv.index("--port") + 1])
name = sys.argv[sys.argv.index("--served-model-name") + 1]
card = dict(CARD, id=name, owned_by="vllm", max_model_len=64)
with fake_server(card, key=os.environ["VLLM_API_KEY"], port=port):
    open({told!r}, "w").write(json.dumps([os.getpid(), sys.argv, dict(os.environ)]))
    time.sleep(600)
"""
LOG = (
    "INFO Resolved architecture: Llama",
    "Loading safetensors checkpoint shards:  50% Completed",
    "Starting vLLM server",
)


def plan_of(devices: str = "cpu", **changes: object) -> Plan:
    figures = {"weights": Figure(6 * GiB, "exact"), "kv_cache": Figure(3 * GiB // 2, "exact")}
    budgets = {devices: Budget.of(figures)}  # type: ignore[arg-type]
    return replace(fake_plan(fake_spec("m")), loader="vllm", budgets=budgets, **changes)  # type: ignore[arg-type]


def stand_in(folder: Path, *log: str, code: int | None = None) -> Path:
    """A program that behaves as vLLM's Python would."""
    path = folder / "python"
    told = str(folder / "told.json")
    root = str(Path(__file__).parent.parent)
    text = STAND_IN.format(python=sys.executable, root=root, log=list(log), code=code, told=told)
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)
    return path


def ignore(_: object) -> None:
    """Nobody watches."""


def test_the_plans_limits_become_vllms() -> None:
    command = serve_command(plan_of(), Path("/env/bin/python"), 9000)
    pairs = dict(itertools.pairwise(command))
    assert (pairs["--max-model-len"], pairs["--dtype"], pairs["--host"], pairs["--port"]) == (
        "4096", "bfloat16", "127.0.0.1", "9000",
    )  # fmt: skip
    assert "--gpu-memory-utilization" not in command and "--quantization" not in command
    environment = serve_environment(
        plan_of(), "secret", {"PYTHONPATH": "/snug", "HOME": "/home/me", "OMP_NUM_THREADS": "1"}
    )
    assert environment["VLLM_CPU_KVCACHE_SPACE"] == "2"
    assert (environment["VLLM_API_KEY"], environment["HOME"]) == ("secret", "/home/me")
    assert "PYTHONPATH" not in environment and "OMP_NUM_THREADS" not in environment
    assert "secret" not in " ".join(command)


def test_on_a_gpu_vllm_may_take_what_the_plan_needs() -> None:
    plan = plan_of("cuda:1")
    assert utilization(plan, "cuda:1", 10 * GiB) == 0.75
    assert utilization(plan, "cuda:1", 4 * GiB) == 0.95
    command = serve_command(plan, Path("p"), 1, gpu_total_bytes=10 * GiB)
    assert command[command.index("--gpu-memory-utilization") + 1] == "0.750"
    environment = serve_environment(plan, "k", {})
    assert environment["CUDA_VISIBLE_DEVICES"] == "1" and "VLLM_CPU_KVCACHE_SPACE" not in environment
    quantized = replace(plan, run=replace(plan.run, quantization="nf4"))
    assert serve_command(quantized, Path("p"), 1)[-1] == "bitsandbytes"


def test_its_log_is_the_loads_progress() -> None:
    assert stage_of("checkpoint shards:  50% Completed | 1/2") == Progress("Loading weights", 0.425)
    assert stage_of("(Worker pid=1) INFO [x.py:1] Warming up model for the compilation...") is not None
    assert stage_of("INFO something else") is None
    lines = (
        "Resolved architecture",
        "Starting to load model",
        "Loading weights took",
        "KV cache size",
        "Starting vLLM",
    )
    fractions = [step.fraction for line in lines if (step := stage_of(line))]
    assert fractions == sorted(fractions) and len(fractions) == 5


@pytest.mark.parametrize(
    ("lines", "code", "kind"),
    [
        (["ModuleNotFoundError: No module named 'vllm'"], 1, NotAvailableHere),
        (["ValueError: No available memory for the cache blocks."], 1, OutOfMemory),
        (["torch.OutOfMemoryError: CUDA out of memory."], 1, OutOfMemory),
        (["RuntimeError: boom", "nanobind: leaked"], 1, LoadFailed),
        ([], 137, LoadFailed),
    ],
)
def test_why_it_ended_is_told(lines: list[str], code: int, kind: type[SnugError]) -> None:
    error = failure("m", lines, code)
    assert type(error) is kind and error.remedy
    if "boom" in "".join(lines):
        assert "boom" in error.message


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"load_in_8bit": True}, "8-bit"),
        ({"load_in_4bit": True, "cpu": True}, "on a GPU only"),
        ({"auto_devices": True}, "splits no model"),
        ({"kv_cache": "int8"}, "KV cache|--kv-cache"),
    ],
)
def test_what_vllm_cannot_do_is_refused_by_name(options: dict[str, object], why: str) -> None:
    wanted = LoadOptions.model_validate({"model": "m", "loader": "vllm"} | options)
    with pytest.raises(NotAvailableHere, match=why):
        list_plans(Question(fake_spec("m"), wanted, fake_inventory((24,)), Path("cache")))


def test_a_plan_for_vllm_is_whole_on_one_device() -> None:
    wanted = LoadOptions.model_validate({"model": "m", "loader": "vllm"})
    python = Path("/env/bin/python")
    for gpus, device in (((), "cpu"), ((24.0, 24.0), "cuda:0")):
        question = Question(fake_spec("m"), wanted, fake_inventory(gpus), Path("cache"), vllm_python=python)
        plan = make_plan(question)
        assert (plan.loader, set(plan.placement.values()), plan.vllm_python) == ("vllm", {device}, python)
        assert "--loader" in plan.flags and "vllm" in plan.flags


def test_without_vllm_the_remedy_says_how_to_get_it(tmp_path: Path) -> None:
    for python in (tmp_path / "none", Path(sys.executable)):
        with pytest.raises(NotAvailableHere, match="--loader vllm") as refused:
            load(plan_of(vllm_python=python), ignore)
        assert "--vllm-python" in refused.value.remedy


def test_a_server_is_started_with_a_key_watched_and_ended(tmp_path: Path) -> None:
    steps: list[Progress] = []
    gone: list[str] = []
    plan = plan_of(vllm_python=stand_in(tmp_path, *LOG))
    engine = start(plan, steps.append, on_end=gone.append)
    try:
        assert (engine.info.name, engine.info.context_tokens, engine.info.placement) == ("m", 64, {"cpu": 6 * GiB})
        assert engine.stats().rss_bytes > 0
        text = (tmp_path / "told.json").read_text()
        assert "PYTHONPATH" not in text
        pid = int(text.split(",")[0][1:])
    finally:
        engine.close()
    assert not psutil.pid_exists(pid)
    assert gone == []
    assert [step.stage for step in steps][:2] == ["Starting vLLM", "Starting vLLM's engine"]
    assert Progress("Loading weights", 0.425) in steps


def test_whoever_else_listens_on_its_port_is_asked_nothing(tmp_path: Path) -> None:
    """Any user of the machine reads the number in vLLM's command line, and listens before vLLM does."""
    python = stand_in(tmp_path, *LOG)
    python.write_text(python.read_text().replace("with fake_server(", "time.sleep(0.3)\nwith fake_server("))
    server = VllmServer(plan_of(), python, ignore)
    try:
        another = fake_server(CARD, port=urlsplit(server.url).port or 0)
        with another, pytest.raises(LoadFailed, match="ended before it answered"):
            server.wait(lambda: pytest.fail("another's server was asked"), poll_s=0.05)
    finally:
        server.close()


def test_one_that_dies_while_it_loads_is_told_with_its_last_error(tmp_path: Path) -> None:
    with pytest.raises(LoadFailed, match="no such device"):
        load(plan_of(vllm_python=stand_in(tmp_path, "RuntimeError: no such device", code=3)), ignore)


def test_one_that_dies_later_ends_its_engine(tmp_path: Path) -> None:
    gone: list[str] = []
    ended = threading.Event()

    def on_end(why: str) -> None:
        gone.append(why)
        ended.set()

    engine = start(plan_of(vllm_python=stand_in(tmp_path, *LOG)), ignore, on_end=on_end)
    try:
        psutil.Process(int((tmp_path / "told.json").read_text().split(",")[0][1:])).kill()
        assert ended.wait(20)
        assert "vLLM ended" in gone[0]
    finally:
        engine.close()


def test_a_killed_engine_process_leaves_no_server_behind(tmp_path: Path) -> None:
    plan = plan_of(vllm_python=stand_in(tmp_path, *LOG))
    host = EngineHost.start(plan, load_engine_for(plan))
    pid = int((tmp_path / "told.json").read_text().split(",")[0][1:])
    assert psutil.pid_exists(pid) and host.pid is not None
    psutil.Process(host.pid).kill()
    until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    host.close()


def test_the_supervisor_ends_what_ignores_it(tmp_path: Path) -> None:
    code = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, str(SUPERVISOR), sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        child = psutil.Process(process.pid).children()[0]
        process.stdin.close()
        assert process.wait(30) == 128 + 9
        assert not child.is_running()


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.skipif(not PYTHON, reason="SNUG_TEST_VLLM_PYTHON names no Python with vLLM")
def test_a_real_vllm_answers_with_the_models_own_tokens(starter_model: Path) -> None:
    from modules.memory.model.spec import inspect

    wanted = LoadOptions.model_validate({"model": starter_model.name, "loader": "vllm", "ctx_size": 1024})
    question = Question(inspect(starter_model), wanted, fake_inventory(), Path("cache"), vllm_python=Path(PYTHON))
    plan = make_plan(question)
    host = EngineHost.start(plan, load_engine_for(plan))
    try:
        assert (host.info.takes, host.info.context_tokens) == ("tokens", 1024)
        control = host.encode([TextPiece("<|im_end|>", template=True)])
        assert len(control) == 1 and control[0] not in host.encode([TextPiece("a <|im_end|> b")])
        assert host.decode(host.encode([TextPiece("a <|im_end|> b")])) == "a <|im_end|> b"
        ids = tuple(host.encode([TextPiece("The capital of France is")]))
        params = GenerationParams(temperature=0, max_new_tokens=8)
        text, end = host.submit(GenerationRequest("r", "", ids, params)).result(120)
        assert "Paris" in text and end.usage.completion_tokens == 8
    finally:
        host.close()


def test_the_server_class_is_closed_twice_without_harm(tmp_path: Path) -> None:
    server = VllmServer(plan_of(), stand_in(tmp_path, *LOG), ignore)
    server.close()
    server.close()
