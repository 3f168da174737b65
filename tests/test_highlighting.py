"""Code in colours: by a process that may be killed, so that no code keeps anybody waiting."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from modules.on_behalf import ASKED_FOR
from modules.ui import markdown
from modules.ui.highlighting import Highlighter
from modules.ui.markdown import StreamingMarkdown, may_hold_code, render
from tests.hostile_text import ENDLESS_CODE

SOUND = "def f():\n    return 1\n"


@pytest.fixture(scope="module")
def quick() -> Iterator[Highlighter]:
    """One that loses patience soon."""
    made = Highlighter(highlight_s=0.4)
    made.html(SOUND, "python")
    yield made
    made.close()


@pytest.fixture
def own(quick: Highlighter, monkeypatch: pytest.MonkeyPatch) -> Iterator[Highlighter]:
    """That one, for whatever is drawn; nobody has spent its patience yet."""
    monkeypatch.setattr(markdown, "HIGHLIGHTER", quick)
    quick._plain_until.clear()
    yield quick


def test_code_that_never_ends_is_shown_plain_and_others_keep_their_colours(own: Highlighter) -> None:
    code = ENDLESS_CODE["c"]
    started, spent = time.monotonic(), time.thread_time()
    page = render(f"```c\n{code}\n```\n\n```python\n{SOUND}```\n")
    assert time.monotonic() - started < 5, "0.4 s, on a busy machine"
    assert time.thread_time() - spent < 0.5, "read in this process"
    assert "f()" in page and '<span class="k">' not in page, "who asked for it has none for a while"
    before = ASKED_FOR.set("somebody else")
    try:
        assert '<span class="k">def</span>' in render(f"```python\n{SOUND}```")
    finally:
        ASKED_FOR.reset(before)


def test_it_is_in_colours_again_after_a_while() -> None:
    now = [0.0]
    made = Highlighter(highlight_s=0.2, clock=lambda: now[0])
    try:
        assert made.html(ENDLESS_CODE["c"], "c") is None
        assert made.html(SOUND, "python") is None
        now[0] = 61
        assert '<span class="k">def</span>' in str(made.html(SOUND, "python"))
    finally:
        made.close()


def test_a_language_that_nobody_knows_and_none_are_plain(own: Highlighter) -> None:
    assert own.html("x", "klingon") is None
    assert "<span class=" not in render("```\ndef f(): pass\n```").split("<pre")[1]
    assert '<span class="k">def</span>' in render(f"```python\n{SOUND}```"), "which was nobody's fault"


def test_code_that_is_being_written_is_in_colours(own: Highlighter) -> None:
    streaming = StreamingMarkdown()
    assert may_hold_code("So:\n```py") and not may_hold_code("So: `x`")
    _, tail = streaming.update("So:\n\n```python\ndef f")
    assert '<span class="k">def</span>' in tail
