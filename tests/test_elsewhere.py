"""A model on another server in the house: flags, list, plan, Model tab, a conversation that breaks and goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modules.chat.prompts import Prompts
from modules.chat.service import ChatService
from modules.chat.store import Store
from modules.chat.templates import TemplateWorker
from modules.engine.base import EngineStats
from modules.errors import BadFlag
from modules.models.manager import ModelManager
from modules.plan_command.report import run_plan
from modules.sampling import GenerationParams
from modules.settings import Settings
from modules.settings_reading import read_settings
from modules.startup import first_model
from modules.ui.model_tab import ModelTab, elsewhere_html
from tests.fake_server import CARD, FakeServer, Line, chat_chunk, fake_server, say
from tests.fakes import fake_inventory, make_model_folder
from tests.server_rig import free_port

ANYTHING: Any = None
GIVING_UP_S = 60


def settings_for(settings: Settings, url: str, **more: object) -> Settings:
    return settings.model_copy(update={"engine_url": url, **more})


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    with fake_server({**CARD, "owned_by": "vllm"}) as fake:
        yield fake


@pytest.fixture
def manager(settings: Settings, fake: FakeServer) -> Iterator[ModelManager]:
    make_model_folder(settings.model_dir, "local")
    manager = ModelManager(
        settings_for(settings, fake.url), read_inventory=lambda _: fake_inventory(), in_process=True, drain_s=0.1
    )
    yield manager
    manager.close()


def test_flags_that_cannot_go_together_are_refused(tmp_path: Path) -> None:
    def read(*flags: str) -> Settings:
        return read_settings([*flags, "--user-data-dir", str(tmp_path)], {})

    assert read("--engine-url", "http://h:8000").engine_url == "http://h:8000/v1"
    for flags in (
        ("--engine-url", "h"),
        ("--engine-url", "http://h", "--model", "m"),
        ("--engine-model", "m"),
        ("--engine-key-file", "k"),
        ("--engine-url", "http://h", "--check"),
    ):
        with pytest.raises(BadFlag, match="--engine"):
            read(*flags)


def test_a_key_file_that_is_not_there_is_told_at_the_start(settings: Settings, tmp_path: Path) -> None:
    wanted = settings_for(settings, "http://h/v1", engine_key_file=tmp_path / "none")
    with pytest.raises(BadFlag, match="--engine-key-file"):
        first_model(wanted)
    assert first_model(settings_for(settings, "http://h:1/v1", engine_model="big")) == "big at h:1"


def test_it_stands_first_in_the_list_is_planned_as_elsewhere_and_loads(manager: ModelManager, fake: FakeServer) -> None:
    entries = manager.list()
    assert [(entry.kind, entry.problem) for entry in entries] == [("remote", ""), ("folder", "")]
    options = manager.defaults.model_copy(update={"model": entries[0].name})
    table = manager.plans(options)
    assert table.chosen is not None and table.chosen.budgets == {}
    assert fake.url in elsewhere_html(table.chosen)
    info = manager.load(options)
    assert (info.name, info.context_tokens, info.placement) == ("parrot", 2048, {})
    assert manager.state.name == entries[0].name
    assert isinstance(manager.stats(), EngineStats)
    text, end = manager.engine().submit(ask_hello()).result(20)
    assert (text, end.error) == ("Hello", None)


def ask_hello() -> Any:
    from modules.engine.base import GenerationRequest, Words
    from modules.messages import ChatMessage

    return GenerationRequest("r", "", (), GenerationParams(), (), Words((ChatMessage("user", "Hello"),)))


def test_the_model_tab_shows_where_it_runs(manager: ModelManager, settings: Settings, fake: FakeServer) -> None:
    services = type("Services", (), {"models": manager, "settings": settings, "presets": None})
    tab = ModelTab(services)  # type: ignore[arg-type]
    name = manager.list()[0].name
    assert "on another server" in tab.list_html(name)
    seen = tab._pictured(manager.defaults.model_copy(update={"model": name}))
    assert "Runs elsewhere" in seen.plan and not seen.loaded
    manager.load(manager.defaults.model_copy(update={"model": name}))
    assert tab._pictured(manager.defaults.model_copy(update={"model": name})).loaded
    assert "vLLM" in tab.state_html() and "messages" in tab.state_html()


def test_a_reply_that_broke_off_is_kept_and_continued(
    manager: ModelManager, settings: Settings, fake: FakeServer
) -> None:
    def cut(line: Line) -> None:
        line.begin()
        line.event(chat_chunk("Half a "))
        line.cut()

    manager.load(manager.defaults.model_copy(update={"model": manager.list()[0].name}))
    store = Store(settings.user_data_dir / "snug.db")
    prompts = Prompts(TemplateWorker())
    chat = ChatService(manager, store, prompts)
    try:
        fake.play = cut
        conversation = store.create("")
        broken = chat.reply("", conversation.id, None, "Hello?", GenerationParams(), op_id="1")
        view = broken.wait(10**9, GIVING_UP_S)
        assert (view.text, view.status) == ("Half a ", "interrupted")
        assert view.error is not None and view.error.code == "server_lost"
        fake.play = say("sentence.")
        going_on = chat.continue_reply("", conversation.id, view.message_id, GenerationParams())
        whole = going_on.wait(10**9, GIVING_UP_S)
        assert (whole.text, whole.status) == ("Half a sentence.", "complete")
        assert fake.asked[-1].body["messages"][-1] == {"role": "assistant", "content": "Half a "}
        assert store.path("", conversation.id)[-1].content == "Half a sentence."
    finally:
        chat.shutdown()
        prompts.close()
        store.close()


def test_plan_says_who_answers_or_that_nobody_does(
    settings: Settings, fake: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_plan(settings_for(settings, fake.url, plan=True)) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "nothing to plan" in printed and "vLLM answers, with parrot: 2,048 tokens" in printed
    assert run_plan(settings_for(settings, fake.url, plan=True, json_output=True)) == 0
    told = json.loads(capsys.readouterr().out)["models"][0]
    assert (told["fits"], told["elsewhere"]["context_tokens"]) == (True, 2048)
    nobody = f"http://127.0.0.1:{free_port()}/v1"
    assert run_plan(settings_for(settings, nobody, plan=True)) == 1
    assert "does not answer" in " ".join(capsys.readouterr().out.split())
