"""models/ in motion and in bad faith: files that come and go while listed, indexes that lie, noise in headers."""

from __future__ import annotations

import json
import random
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from modules.errors import SnugError
from modules.memory.model.formats import read_safetensors
from modules.memory.model.gguf import read_gguf
from modules.memory.model.listing import list_models
from modules.memory.model.spec import inspect
from modules.units import MiB
from tests.fakes import make_model_folder
from tests.test_formats import safetensors, two
from tests.test_gguf import ARCH, ARRAY, STRING, U32, array, gguf, pair, tensor, text


def churn(models: Path, sound: Path, stop: threading.Event, turns: list[int]) -> None:
    """Put models there, cut them and delete them, until `stop`; every turn is noted."""
    chance = random.Random(5)
    while not stop.is_set():
        turns.append(1)
        target = models / f"m{chance.randrange(3)}"
        match chance.randrange(6):
            case 0:
                shutil.rmtree(target, ignore_errors=True)
            case 1:
                shutil.copytree(sound, target, dirs_exist_ok=True)
            case 2 if target.exists():
                (target / "model.safetensors").write_bytes(b"\0" * 100)
            case 3 if target.exists():
                (target / "config.json").unlink(missing_ok=True)
            case 4:
                (models / "x.gguf").write_bytes(gguf()[: chance.randrange(300)])
            case 5:
                (models / "x.gguf").unlink(missing_ok=True)


def test_models_that_change_while_they_are_listed_and_read_break_nothing(tmp_path: Path) -> None:
    sound, models = make_model_folder(tmp_path, "sound"), tmp_path / "models"
    models.mkdir()
    stop, turns = threading.Event(), list[int]()
    thread = threading.Thread(target=churn, args=(models, sound, stop, turns))
    thread.start()
    seen: set[str] = set()
    try:
        deadline = time.monotonic() + 60
        while len(turns) < 100 or len(seen) < 2:
            assert time.monotonic() < deadline, (seen, len(turns))
            for entry in list_models(models):
                seen.add("problem" if entry.problem else "sound")
                try:
                    inspect(models / entry.name)
                except SnugError as error:
                    assert error.message
    finally:
        stop.set()
        thread.join(20)


@pytest.mark.parametrize("claim", [0, 1, 10**18, -5, "much", None, True])
def test_an_index_that_lies_about_the_size_changes_nothing_of_it(claim: object, tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path, "m")
    honest = inspect(folder)
    shard = "model-00001-of-00001.safetensors"
    (folder / "model.safetensors").rename(folder / shard)
    index = {
        "metadata": {"total_size": claim},
        "weight_map": {tensor.name: shard for tensor in read_safetensors(folder / shard)},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    lying = inspect(folder)
    assert sum(one.size_bytes for one in lying.tensors) == sum(one.size_bytes for one in honest.tensors)


def mutate(content: bytes, chance: random.Random) -> bytes:
    """`content` with noise: bytes changed, cut out, put in, doubled; lengths of extreme values."""
    bad = bytearray(content)
    for _ in range(chance.randrange(1, 6)):
        at, extreme = chance.randrange(len(bad) + 1), chance.choice([0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1])
        match chance.randrange(5):
            case 0:
                bad[at : at + chance.randrange(5)] = chance.randbytes(chance.randrange(5))
            case 1:
                bad[at : at + 8] = extreme.to_bytes(8, "little")
            case 2:
                del bad[at : at + chance.randrange(40)]
            case 3:
                bad[at:at] = bad[at : at + chance.randrange(60)]
            case 4 if at < len(bad):
                bad[at] ^= 1 << chance.randrange(8)
    return bytes(bad)


FEW = pair("few", ARRAY, array(U32, 2, bytes(8)))
SOUND: dict[str, tuple[bytes, Callable[[Path], object]]] = {
    "m.gguf": (gguf((ARCH, FEW, pair("s", ARRAY, array(STRING, 2, text("a") * 2))), (tensor(), tensor("v", offset=256)),
                    data=512), read_gguf),
    "m.safetensors": (safetensors(two((0, 6), (6, 16))), read_safetensors),
}  # fmt: skip


def fuzz(folder: Path, name: str, rounds: int) -> tuple[float, int]:
    """Read so many mutations: the longest took so many seconds of the processor, and memory grew by so many bytes."""
    content, read = SOUND[name]
    chance, path, process = random.Random(rounds), folder / name, psutil.Process()
    before, slowest = process.memory_info().rss, 0.0
    for _ in range(rounds):
        path.write_bytes(mutate(content, chance))
        started = time.thread_time()
        try:
            read(path)
        except SnugError:
            pass
        slowest = max(slowest, time.thread_time() - started)
    return slowest, process.memory_info().rss - before


@pytest.mark.parametrize("rounds", [1000, pytest.param(5000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", SOUND)
def test_no_noise_in_a_header_hangs_crashes_or_takes_memory(name: str, rounds: int, tmp_path: Path) -> None:
    slowest, grown = fuzz(tmp_path, name, rounds)
    assert slowest < 1 and grown < 100 * MiB
