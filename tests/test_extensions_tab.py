"""The controls of extensions: built apart, guarded, kept; and what the page may ask for."""

from __future__ import annotations

import json
from pathlib import Path

import gradio as gr
import pytest
from gradio.context import Context

from modules.accounts.person import GUEST, THE_ONE
from modules.errors import NotFound
from modules.extensions.faults import is_text
from modules.extensions.manager import Extensions
from modules.settings import Settings
from modules.ui.extensions_tab import ExtensionDoors, Switch, build_parts
from modules.ui.widgets import Nothing
from tests.household import household
from tests.test_extensions import SHIPPED, started, write
from tests.test_guard import paths_of

MOODS = """
import gradio as gr
params = {"display_name": "Moods", "mood": "calm", "is_tab": True}
def ui():
    with gr.Row():
        mood = gr.Textbox(value=params["mood"], label="Mood")
    mood.change(lambda text: params.update(mood=text) or text.upper(), mood, mood)
    gr.Button("Fail").click(lambda: 1 / 0)
    gr.Button("Stream").click(stream, mood, mood)
def stream(text):
    yield text
    raise ValueError("midway")
def custom_css():
    return ".x { color: red }"
def custom_js():
    return "</script><script>alert(1)"
"""
BROKEN = {
    "fails": "import gradio as gr\ndef ui():\n    gr.Textbox()\n    raise RuntimeError('no controls')",
    "hangs": "import gradio as gr\ndef ui():\n    gr.Row().__enter__()\n    while True: pass",
    "nests": "import gradio as gr\ndef ui():\n    shared = gr.State()\n    gr.Blocks().__enter__()\n    1 / 0",
    "empty": "def ui(): pass",
}


@pytest.fixture
def extensions(tmp_path: Path) -> Extensions:
    for name, source in BROKEN.items():
        write(tmp_path, name, source)
    write(tmp_path, "moods", MOODS)
    return started(tmp_path, *BROKEN, "moods", hook_s=1, kept=tmp_path / "kept")


def test_controls_that_fail_leave_nothing_behind_and_the_others_are_placed(extensions: Extensions) -> None:
    (part,) = build_parts(extensions)
    assert (part.name, part.title, part.own_tab) == ("moods", "Moods", True)
    assert (Context.root_block, Context.block) == (None, None)
    assert [problem.extension for problem in extensions.problems] == ["fails", "hangs", "nests"]
    with gr.Blocks() as page, gr.Tab("Extensions"):
        part.blocks.render()
    labels = [getattr(block, "label", None) for block in page.blocks.values()]
    assert labels.count("Mood") == 1
    assert len(page.fns) == 4


def test_what_a_handler_sets_is_kept_and_shown_on_pages_opened_later(extensions: Extensions, tmp_path: Path) -> None:
    (part,) = build_parts(extensions)
    change, fail, stream, load = part.blocks.fns.values()
    assert change.fn is not None
    assert fail.fn is not None
    assert stream.fn is not None
    assert load.fn is not None
    assert change.fn("merry") == "MERRY"
    assert json.loads((tmp_path / "kept" / "moods.json").read_text())["mood"] == "merry"
    assert load.fn() == "merry"
    with pytest.raises(gr.Error, match=r"Extension moods: the handler .* failed: ZeroDivisionError"):
        fail.fn()
    with pytest.raises(gr.Error, match="the handler stream failed: ValueError: midway"):
        list(stream.fn("x"))
    assert [problem.hook for problem in extensions.problems if problem.extension == "moods"] == [
        "the handler <lambda>", "the handler stream",
    ]  # fmt: skip


def test_the_page_hears_of_all_and_switches_started_ones_only(extensions: Extensions, tmp_path: Path) -> None:
    write(tmp_path, "other", "raise SystemExit")
    doors = ExtensionDoors(extensions)
    cards = {card["name"]: card for card in doors.cards(THE_ONE, Nothing())["cards"]}
    assert (cards["moods"]["running"], cards["other"]["running"], cards["moods"]["title"]) == (True, None, "Moods")
    assert doors.assets("", Nothing())["js"] == {"moods": "</script><script>alert(1)"}
    cards = {card["name"]: card for card in doors.switch(THE_ONE, Switch(id="moods", on=False))["cards"]}
    assert (cards["moods"]["running"], cards["moods"]["started"]) == (False, True)
    assert doors.assets("", Nothing()) == {"css": {}, "js": {}}
    for name in ("other", "../moods", "moods/script.py", ""):
        with pytest.raises(NotFound):
            doors.switch(THE_ONE, Switch(id=name, on=True))


DOORS = """
import gradio as gr
called = []
def ui():
    gr.Button("Go").click(lambda: called.append("event"), api_name="go")
    gr.api(lambda: called.append("api"), api_name="bare")
    gr.HTML(js_on_load="", server_functions=[peek])
    gr.FileExplorer(root_dir="/")
def peek(what):
    called.append("door")
    return what
def input_modifier(text):
    return " ".join(called)
"""


def test_what_an_exception_says_of_somebodys_text_is_told_to_administrators_alone(tmp_path: Path) -> None:
    write(tmp_path, "counts", "def output_modifier(string): return str(int(string))")
    extensions = started(tmp_path, "counts")
    given = {"string": "my diary", "state": {}, "is_chat": True}
    extensions.change("output_modifier", given, ("string",), is_text, lambda _: None)
    doors = ExtensionDoors(extensions)
    assert "my diary" in str(doors.cards(THE_ONE, Nothing()))
    told = doors.cards(GUEST, Nothing())
    assert "my diary" not in str(told)
    assert told["cards"][0]["problems"][0]["reason"] == "failed"


async def test_what_an_extension_opens_on_the_page_is_for_administrators(settings: Settings, tmp_path: Path) -> None:
    write(tmp_path, "opens", DOORS)
    extensions = started(tmp_path, "opens")

    def called() -> str:
        values = {"string": "x", "state": {}, "is_chat": True}
        return str(extensions.change("input_modifier", values, ("string",), is_text, print))

    with household(settings, loaded=False, extensions=extensions) as home:
        events = [number for number, event in home.page.fns.items() if event.api_name in ("go", "bare")]
        (peek,), (listing,) = home.holders("peek"), home.holders("ls")
        assert len(events) == 2
        async with home.at_work(), home.client() as nobody, home.client("Ben") as ben, home.client("Ana") as ana:
            for client, status in ((nobody, 401), (ben, 403), (ana, 200)):
                for number in events:
                    body = {"data": [], "fn_index": number, "session_hash": "a", "trigger_id": None}
                    for path in ("queue/join", "run/predict", "api/predict"):
                        answer = await client.post(f"/gradio_api/{path}", json=body)
                        assert answer.status_code == status or (client is ana and answer.status_code != 403), path
                for holder, name, data in ((peek, "peek", "x"), (listing, "ls", [])):
                    for number in (holder, float(holder), str(holder), [holder]):
                        asked = {"data": data, "component_id": number, "session_hash": "a", "fn_name": name}
                        answer = await client.post("/gradio_api/component_server", json=asked)
                        expected = status if number is holder or status == 401 else 400
                        assert answer.status_code == expected, (name, number, answer.text)
                if client is not ana:
                    assert called() == "", "nothing of it ran"
            assert "door" in called()


async def test_the_extensions_that_come_with_snug_open_no_route(settings: Settings) -> None:
    shipped = started(Path(__file__).parent.parent / "extensions", *SHIPPED)
    assert shipped.names == SHIPPED
    with household(settings, loaded=False) as plain:
        without = sorted(set(paths_of(plain.app)))
        plain.services.models.close()
    elsewhere = settings.model_copy(update={"user_data_dir": settings.model_dir.parent})
    with household(elsewhere, loaded=False, extensions=shipped) as more:
        assert any(block.elem_id == "snug-extension-example" for block in more.page.blocks.values())
        assert sorted(set(paths_of(more.app))) == without
