"""What the Model tab tells of a model's last use: of presets those alone that are of who looks."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.household import Household, household_below


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Household]:
    with household_below(tmp_path_factory.mktemp("home")) as made:
        yield made


async def pick(home: Household, client: httpx.AsyncClient) -> str:
    """What comes of a choice of the model on the Model tab."""
    number = next(n for n, one in home.page.fns.items() if getattr(one.fn, "__name__", "") == "pick")
    asked = {"fn_index": number, "data": [""], "event_data": {"name": "tiny"}, "session_hash": "a"}
    answer = await client.post("/gradio_api/run/predict", json=asked)
    assert answer.status_code == 200, answer.text
    return answer.text


async def test_a_preset_of_ones_own_is_shown_to_nobody_else(home: Household) -> None:
    async with home.client("Ana") as ana, home.client("Ben") as ben:
        saved = await home.ask(ana, "save", {"name": "For my diary", "params": {"stop": ["dear diary"]}})
        assert "problem" not in saved, saved
        await home.ask(ana, "chosen", {"name": "For my diary"})
        assert "dear diary" in await pick(home, ana)
        theirs = await pick(home, ben)
        assert "dear diary" not in theirs
        assert "For my diary" not in theirs
        await home.ask(ana, "chosen", {"name": "Creative"})
        assert "Creative" in await pick(home, ben)
