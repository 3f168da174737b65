"""What all tests share: which of them run here, and the fixtures that more than one file needs."""

from __future__ import annotations

import gc
import logging
import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import hypothesis
import psutil
import pytest

from modules.engine.process import spinning
from modules.settings import Settings
from modules.ui.highlighting import HIGHLIGHTER

# One thread a core over all workers: more of them wait for each other by spinning, for four times the CPU time.
CORES, WORKERS = psutil.cpu_count(logical=False) or 1, int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
os.environ.setdefault("OMP_NUM_THREADS", str(max(1, CORES // WORKERS)))
os.environ.setdefault(spinning.NAME, spinning.FOR_TORCH)
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"

STARTER_MODEL = Path(__file__).parent.parent / "models" / "SmolLM2-135M-Instruct"


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--all` runs the slow tests too."""
    parser.addoption("--all", action="store_true", default=False, help="run the tests marked slow too")


def pytest_configure(config: pytest.Config) -> None:
    """The same generated cases in every run, so that a change is judged by what it changed; with `--all` new ones."""
    hypothesis.settings.register_profile("same", derandomize=True, database=None)
    hypothesis.settings.register_profile("new", derandomize=False)
    hypothesis.settings.load_profile("new" if config.getoption("--all") else "same")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background: servers would inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    gc.disable()  # until the tests are collected: modules are made, and none goes away


def pytest_collection_finish() -> None:
    """No more looks through the half million objects of the imported modules: each would take 0.4 s."""
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(config: pytest.Config, items: Sequence[pytest.Item]) -> None:
    """Skip, each with its reason, what this machine or this run has no place for."""
    reasons = {
        "slow": "" if config.getoption("--all") else "slow: runs with --all",
        "model": "" if starter_present() else f"needs the starter model in {STARTER_MODEL.name}/: run ./start.sh once",
        "gpu": "" if _gpu_present(items) else "no CUDA GPU here",
        "browser": "" if find_chromium() else "no Chromium here",
    }
    for item in items:
        for marker, reason in reasons.items():
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


def starter_present() -> bool:
    """Whether the starter model lies in models/, whole."""
    return (STARTER_MODEL / "model.safetensors").exists()


def find_chromium() -> str:
    """The path of a Chromium; "" where there is none."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome") or ""


def _gpu_present(items: Sequence[pytest.Item]) -> bool:
    """Whether torch sees a GPU; torch is imported only if some test asks."""
    if not any(item.get_closest_marker("gpu") for item in items):
        return False
    import torch

    return bool(torch.cuda.is_available())


@pytest.fixture(autouse=True)
def _logging_stays_on() -> Iterator[None]:
    """Code that silences the log of the whole process would silence the server's too, and the tests that read it."""
    yield
    silenced, logging.root.manager.disable = logging.root.manager.disable, 0
    assert not silenced, "something called logging.disable() in this process"


@pytest.fixture(autouse=True, scope="module")
def _no_process_stays_that_colours_code() -> Iterator[None]:
    """It belongs to the whole process, and tests that come after count its children."""
    yield
    HIGHLIGHTER.close()


@pytest.fixture
def starter_model() -> Path:
    """The folder of the starter model."""
    if not starter_present():
        pytest.skip(f"needs the starter model in {STARTER_MODEL}: run ./start.sh once")
    return STARTER_MODEL


@pytest.fixture
def chromium() -> str:
    """The path of a Chromium."""
    return find_chromium() or pytest.skip("no Chromium here")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings whose models/ and user_data/ are empty folders of this test."""
    for name in ("models", "user_data"):
        (tmp_path / name).mkdir()
    return Settings.model_validate({"model_dir": tmp_path / "models", "user_data_dir": tmp_path / "user_data"})
