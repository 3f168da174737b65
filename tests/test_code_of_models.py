"""The code that a model brings stays off, whoever asks and however: `--trust-remote-code` alone allows it (M6)."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modules.errors import RemoteCodeDisabled, SnugError
from modules.models.remembered import FOLDER
from modules.settings import LoadOptions, Settings
from modules.ui.ways import options_of
from tests.household import Household, household
from tests.test_extensions import started, write

ASKS = {"trust_remote_code": True, "trust-remote-code": True}
SCRIPT = """
from modules import shared
shared.args.trust_remote_code = True
params = {"trust_remote_code": True, "activate": True}
def state_modifier(state):
    state["trust_remote_code"] = True
    return state
def input_modifier(text, state):
    state["trust_remote_code"] = True
    return text
"""


@pytest.fixture
def home(settings: Settings, tmp_path: Path) -> Iterator[Household]:
    """With a model that brings code, and an extension that would like to have it run."""
    hostile = settings.model_dir / "hostile"
    hostile.mkdir()
    config = {"model_type": "own", "architectures": ["Own"], "auto_map": {"AutoConfig": "own.Own"}}
    (hostile / "config.json").write_text(json.dumps(config))
    (hostile / "own.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w').close()\nclass Own: pass\n")
    (tmp_path / "scripts").mkdir()
    write(tmp_path / "scripts", "trusting", SCRIPT)
    (settings.user_data_dir / FOLDER).mkdir()
    (settings.user_data_dir / FOLDER / "hostile.json").write_text(json.dumps({"options": ASKS}))
    with household(settings, extensions=started(tmp_path / "scripts", "trusting")) as made:
        yield made


def card(**more: Any) -> str:
    data = {"name": "Eve", "description": "x", "first_mes": "y", "extensions": ASKS} | more
    return base64.b64encode(json.dumps({"spec": "chara_card_v2", "data": data} | more).encode()).decode()


async def ask_by_every_way(home: Household) -> list[Any]:
    """What the page and the API answer to wishes for it."""
    async with home.client("Ana") as ana, home.program(home.keys["admin"]) as program:
        fields = {"name": "Eve", "description": "x"}
        conversation = (await home.ask(ana, "send", {"id": None, "text": "Hi", "op_id": "12345678"}))["conversation"]
        said = [
            await home.ask(ana, "import_card", {"name": "a.json", "data": card()}),
            await home.ask(ana, "import_card", {"name": "b.json", "data": card(**ASKS)}),
            await home.ask(ana, "save_person", {"id": None, "fields": fields | {"trust_remote_code": "true"}}),
            await home.ask(ana, "take_in", {"name": "a.yaml", "text": "temperature: 1\ntrust_remote_code: true\n"}),
            await home.ask(ana, "save", {"name": "p", "params": ASKS, "replace": True}),
            await home.ask(ana, "set_setup", {"id": conversation["id"], "setup": ASKS}),
            await home.ask(ana, "send", {"id": None, "text": "Hi", "op_id": "87654321", "params": ASKS}),
            await home.ask(ana, "send", {"id": None, "text": "Hi", "op_id": "87654322"} | ASKS),
            await home.ask(ana, "switch", {"id": "trusting", "on": True} | ASKS),
            await home.ask(ana, "switch", {"id": "trusting", "on": True}),
        ]
        for body in ({"model": "hostile"} | ASKS, {"model": "hostile", "args": ASKS}, {"model": "hostile"}):
            answer = await program.post("/v1/internal/model/load", json=body)
            assert answer.status_code == 400, answer.text
            said.append(answer.json())
        message = [{"role": "user", "content": "Hi"}]
        chat = await program.post("/v1/chat/completions", json={"model": "hostile", "messages": message} | ASKS)
        assert chat.status_code == 200 and chat.json()["model"] == "tiny"
        return said


async def test_no_channel_turns_it_on(home: Household, tmp_path: Path) -> None:
    models, before = home.services.models, home.services.settings
    async with home.at_work():
        said = await ask_by_every_way(home)
    refused = [answer for answer in said if "problem" in answer or "error" in answer]
    assert len(refused) >= 8, said
    assert said[-1]["error"]["code"] == "remote_code_disabled"
    known = models.memory.of("hostile")
    assert known.options is None and known.note, "what was written into the file by hand counts for nothing"
    way = options_of(["--trust-remote-code", "--cpu"], LoadOptions.model_validate({"model": "hostile"}))
    assert way.cpu and not hasattr(way, "trust_remote_code")
    for attempt in (way, LoadOptions.model_validate({"model": "hostile"})):
        with pytest.raises(RemoteCodeDisabled):
            models.load(attempt)
    for name, value in ASKS.items():
        with pytest.raises((SnugError, ValueError)):
            LoadOptions.model_validate({"model": "hostile", name: value})
        with pytest.raises((AttributeError, ValueError)):
            setattr(home.services.settings, name, value)
    assert home.services.settings is before and not before.trust_remote_code
    plan = models.state.plan
    assert plan is not None and not plan.trust_remote_code
    assert not (tmp_path / "canary").exists()
