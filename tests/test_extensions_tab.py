"""The controls of extensions: built apart, guarded, kept; and what the page may ask for."""

from __future__ import annotations

import json
from pathlib import Path

import gradio as gr
import pytest
from gradio.context import Context

from modules.errors import NotFound
from modules.extensions.manager import Extensions
from modules.ui.extensions_tab import ExtensionDoors, Switch, build_parts
from modules.ui.widgets import Nothing
from tests.test_extensions import started, write

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
    cards = {card["name"]: card for card in doors.cards("", Nothing())["cards"]}
    assert (cards["moods"]["running"], cards["other"]["running"], cards["moods"]["title"]) == (True, None, "Moods")
    assert doors.assets("", Nothing())["js"] == {"moods": "</script><script>alert(1)"}
    cards = {card["name"]: card for card in doors.switch("", Switch(id="moods", on=False))["cards"]}
    assert (cards["moods"]["running"], cards["moods"]["started"]) == (False, True)
    assert doors.assets("", Nothing()) == {"css": {}, "js": {}}
    for name in ("other", "../moods", "moods/script.py", ""):
        with pytest.raises(NotFound):
            doors.switch("", Switch(id=name, on=True))
