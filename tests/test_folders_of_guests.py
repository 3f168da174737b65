"""The disk is looked at for plans only where the start or an administrator says, whatever folders others name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from modules.hardware import Inventory
from tests.household import Household, household_below


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Household]:
    with household_below(tmp_path_factory.mktemp("home")) as made:
        yield made


@pytest.fixture
def looked_at(home: Household, monkeypatch: pytest.MonkeyPatch) -> set[Path]:
    """Folders whose disk was looked at."""
    planning, seen = home.services.models._planning, set[Path]()
    read = planning._read_inventory

    def reading(folder: Path) -> Inventory:
        seen.add(folder)
        return read(folder)

    monkeypatch.setattr(planning, "_read_inventory", reading)
    return seen


async def compare(home: Household, client: httpx.AsyncClient, folder: Path) -> None:
    flags = ["--disk", "--disk-cache-dir", str(folder)]
    columns = [{"model": "tiny", "flags": flags}, {"model": "tiny", "flags": flags}]
    answer = await home.ask(client, "foresee", {"prompt": "Hi", "columns": columns})
    assert "words" in answer, answer


async def draw(home: Household, client: httpx.AsyncClient, folder: Path) -> None:
    number, event = next(
        (number, one) for number, one in home.page.fns.items() if getattr(one.fn, "__name__", "") == "draw"
    )
    given = {"option-model": "tiny", "option-disk": True, "option-disk_cache_dir": str(folder)}
    data = [given.get(getattr(block, "elem_id", None) or "", getattr(block, "value", None)) for block in event.inputs]
    asked = {"fn_index": number, "data": data, "session_hash": "a"}
    answer = await client.post("/gradio_api/run/predict", json=asked)
    assert answer.status_code == 200, answer.text


async def test_the_disk_is_looked_at_where_administrators_say(
    home: Household, looked_at: set[Path], tmp_path: Path
) -> None:
    for number, ask in enumerate((compare, draw)):
        async with home.client("Ben") as ben, home.client("Ana") as ana:
            await ask(home, ben, tmp_path / f"ben {number}")
            await ask(home, ana, tmp_path / f"ana {number}")
    assert {path.name for path in looked_at if path.parent == tmp_path} == {"ana 0", "ana 1"}
