"""`server.py --check`: what this machine has, and whether each way of loading works on it.

Reads the hardware, measures bandwidths, then loads a small model in every mode that can run here, each in an engine
process of its own, and prints tokens a second and peak memory. What cannot run here is listed with the reason.
Not a benchmark: one short reply a mode.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from rich.console import Console, Group
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table

from modules.compiled import compiling_apart
from modules.engine.base import GenerationRequest, TextPiece
from modules.engine.host.host import EngineHost
from modules.errors import SnugError
from modules.hardware import Inventory, read_inventory
from modules.machine_speeds import Bandwidths, measure
from modules.memory.model.spec import inspect
from modules.memory.planning.planner import Question, make_plan
from modules.models.starting import load_engine_for
from modules.sampling import GenerationParams
from modules.settings import LoadOptions, Settings
from modules.starter import STARTER_NAME, fetch_in_terminal
from modules.units import format_size

_LIBRARIES = (
    "torch", "transformers", "accelerate", "bitsandbytes", "deepspeed", "sentencepiece", "gradio", "safetensors",
)  # fmt: skip
_NEW_TOKENS = 48
_MODE_TIMEOUT_S = 300.0
_PROMPT = "The lighthouse keeper climbed the stairs and"

Status = Literal["pass", "fail", "skip"]


@dataclass(frozen=True, slots=True)
class Mode:
    """One way to load: its name, the options for it, and why it cannot run here ("" if it can).

    `lossless_as` names the mode whose greedy text this one must repeat.
    """

    name: str
    options: dict[str, Any]
    missing: str = ""
    lossless_as: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one mode did. Bytes are the engine's peak: RSS, and GPU memory where there is one."""

    mode: str
    status: Status
    detail: str = ""
    tokens_per_s: float = 0.0
    load_s: float = 0.0
    peak_bytes: int = 0
    text: str = ""


def modes_for(inventory: Inventory, *, has_deepspeed: bool, has_libaio: bool) -> list[Mode]:
    """Every mode, with what each lacks on this machine. Pure."""
    gpu = bool(inventory.gpus)
    no_gpu = "" if gpu else "no GPU here"
    no_deepspeed = "" if has_deepspeed else "deepspeed is not installed (it is for Linux only)"
    no_nvme = no_deepspeed or ("" if has_libaio else "libaio is not installed (Debian: apt install libaio-dev)")
    spill = {"cpu_memory": "150MiB", "disk": True}
    return [
        Mode("16-bit (bf16)", {"dtype": "bf16"}),
        Mode("16-bit (fp16)", {"dtype": "fp16"}, no_gpu),
        Mode("32-bit (fp32)", {"dtype": "fp32"}),
        Mode("8-bit (int8)", {"load_in_8bit": True}),
        Mode("4-bit (nf4)", {"load_in_4bit": True}),
        Mode("4-bit (fp4)", {"load_in_4bit": True, "quant_type": "fp4"}),
        Mode("4-bit (nf4, double)", {"load_in_4bit": True, "use_double_quant": True}),
        Mode("bf16 on the CPU", {"dtype": "bf16", "cpu": True}, "" if gpu else "the same as 16-bit (bf16) here"),
        Mode("GPU + CPU", {"auto_devices": True, "gpu_memory": "600MiB", "dtype": "bf16"}, no_gpu),
        Mode("CPU + disk", {"auto_devices": True, "cpu": True, "dtype": "bf16", **spill}, lossless_as="16-bit (bf16)"),
        Mode("ZeRO-3", {"deepspeed": True, "dtype": "bf16"}, no_deepspeed),
        Mode("ZeRO-3, NVMe", {"deepspeed": True, "nvme_offload_dir": "{scratch}", "dtype": "bf16"}, no_nvme),
    ]


@compiling_apart()
def run_check(settings: Settings) -> int:
    """Run the whole machine test; returns 0 only if every mode that should work does."""
    console = Console(stderr=settings.json_output)
    inventory = read_inventory(Path.cwd())
    libraries = {name: _version(name) for name in _LIBRARIES}
    bandwidth = measure()
    if not settings.json_output:
        _print_machine(console, inventory, libraries, bandwidth)
    model = settings.model or STARTER_NAME
    if model == STARTER_NAME:
        fetch_in_terminal(settings.model_dir)
    modes = modes_for(inventory, has_deepspeed=bool(libraries["deepspeed"]), has_libaio=_has_libaio())
    outcomes: list[Outcome] = []
    with Live(console=console, transient=settings.json_output) as live:
        for mode in modes:
            live.update(Group(_table(model, outcomes), Spinner("dots", f"{mode.name} …")), refresh=True)
            outcomes.append(_try_mode(mode, settings.model_dir / model, inventory, outcomes))
        live.update(_table(model, outcomes))
    if settings.json_output:
        print(json.dumps(_as_json(inventory, libraries, bandwidth, model, outcomes), indent=1))
    else:
        console.print(_summary(outcomes))
    return 1 if any(outcome.status == "fail" for outcome in outcomes) else 0


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _has_libaio() -> bool:
    return Path("/usr/include/libaio.h").exists()


def _try_mode(mode: Mode, path: Path, inventory: Inventory, before: Sequence[Outcome]) -> Outcome:
    """Load, reply, unload; every failure becomes an Outcome."""
    if mode.missing:
        return Outcome(mode.name, "skip", mode.missing)
    try:
        with tempfile.TemporaryDirectory(prefix="snug-check-") as scratch, _single_rank(mode):
            outcome = _load_and_reply(mode, path, inventory, Path(scratch))
    except SnugError as error:
        return Outcome(mode.name, "fail", str(error))
    except Exception as error:  # a check reports whatever happens and goes on with the next mode
        return Outcome(mode.name, "fail", f"{type(error).__name__}: {error}"[:300])
    expected = next((other.text for other in before if other.mode == mode.lossless_as and other.status == "pass"), None)
    if expected is not None and outcome.text != expected:
        return dataclasses.replace(outcome, status="fail", detail=f"its reply differs from {mode.lossless_as}'s")
    return outcome


def _load_and_reply(mode: Mode, path: Path, inventory: Inventory, scratch: Path) -> Outcome:
    given = {name: str(scratch) if value == "{scratch}" else value for name, value in mode.options.items()}
    options = LoadOptions.model_validate({"model": path.name, "ctx_size": 1024, **given})
    plan = make_plan(Question(inspect(path), options, inventory, scratch))
    start = time.perf_counter()
    host = EngineHost.start(plan, load_engine_for(plan))
    try:
        load_s = time.perf_counter() - start
        text, speed = _reply(host)
        peak_bytes = max(host.info.peak_bytes, host.stats().rss_bytes)
    finally:
        host.close()
    if not text.strip():
        return Outcome(mode.name, "fail", "it loads, but replies with nothing", load_s=load_s, peak_bytes=peak_bytes)
    return Outcome(mode.name, "pass", host.info.loop, speed, load_s, peak_bytes, text)


def _reply(host: EngineHost) -> tuple[str, float]:
    """The greedy reply to a fixed prompt, and its tokens a second."""
    params = GenerationParams(temperature=0, max_new_tokens=_NEW_TOKENS, ban_eos_token=True)
    ids = tuple(host.encode([TextPiece(_PROMPT)]))
    generation = host.submit(GenerationRequest("check", "check", ids, params))
    text, finished = generation.result(timeout_s=_MODE_TIMEOUT_S)
    if finished.error is not None:
        raise finished.error
    return text, finished.timings.tokens_per_s


@contextmanager
def _single_rank(mode: Mode) -> Iterator[None]:
    """For ZeRO-3: the environment that its launcher would give to the only process."""
    if not mode.options.get("deepspeed"):
        yield
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    added = {
        "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    saved = {name: os.environ.get(name) for name in added}
    os.environ.update(added)
    try:
        yield
    finally:
        for name, value in saved.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _print_machine(console: Console, inventory: Inventory, libraries: dict[str, str], bandwidth: Bandwidths) -> None:
    console.print(f"[bold]This machine[/bold]   {platform.platform()}, Python {platform.python_version()}")
    table = Table("device", "name", "total", "free", "speed", "used by", box=None, header_style="dim", pad_edge=False)
    for device in (*inventory.gpus, inventory.cpu, inventory.disk):
        users = ", ".join(f"{user.name} (pid {user.pid}) {format_size(user.used_bytes)}" for user in device.processes)
        speeds = ", ".join(
            f"{name.removesuffix('_Bps').replace('_', ' ')} {speed / 1e9:.1f} GB/s"
            for name, speed in bandwidth.get(device.id, {}).items()
            if name.endswith("_Bps")
        )
        table.add_row(
            device.id, device.name, format_size(device.total_bytes), format_size(device.free_bytes), speeds, users
        )
    if not inventory.gpus:
        table.add_row("cuda", "no GPU found", "", "", "", "")
    console.print(table)
    installed = "  ".join(f"{name} {version or '[red]missing[/red]'}" for name, version in libraries.items())
    console.print(f"[dim]{installed}[/dim]\n")


def _table(model: str, outcomes: Sequence[Outcome]) -> Table:
    """One row a mode, in the order in which they ran."""
    colors: dict[Status, str] = {"pass": "green", "fail": "red", "skip": "dim"}
    table = Table(
        "way of loading", "result", "tokens/s", "load", "peak memory", "", box=None, header_style="dim",
        title=f"[bold]{model}[/bold], {_NEW_TOKENS} tokens a mode", title_justify="left",
    )  # fmt: skip
    for row in outcomes:
        ran = row.status == "pass"
        table.add_row(
            row.mode,
            f"[{colors[row.status]}]{row.status}[/]",
            f"{row.tokens_per_s:.1f}" if ran else "",
            f"{row.load_s:.1f} s" if ran else "",
            format_size(row.peak_bytes) if ran else "",
            row.detail,
        )
    return table


def _summary(outcomes: Sequence[Outcome]) -> str:
    counts = {status: sum(row.status == status for row in outcomes) for status in ("pass", "fail", "skip")}
    return f"{counts['pass']} passed, {counts['fail']} failed, {counts['skip']} cannot run here"


def _as_json(
    inventory: Inventory,
    libraries: dict[str, str],
    bandwidth: Bandwidths,
    model: str,
    outcomes: Sequence[Outcome],
) -> dict[str, Any]:
    return {
        "machine": dataclasses.asdict(inventory) | {"cpu_features": sorted(inventory.cpu_features)},
        "libraries": libraries,
        "bandwidth": bandwidth,
        "model": model,
        "modes": [dataclasses.asdict(outcome) for outcome in outcomes],
        "ok": all(outcome.status != "fail" for outcome in outcomes),
    }
