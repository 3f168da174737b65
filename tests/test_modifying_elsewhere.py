"""Scripts in text-generation-webui's shape in the notebook and for the user's next message: called where it calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from modules.chat.notebook import Gap, Notebook
from modules.chat.notebooks import Page
from modules.chat.prompts import Prompts
from modules.chat.templates import TemplateWorker
from modules.engine.base import Emit, GenerationRequest
from modules.extensions.hooks import NAMES
from modules.ui.extensions_tab import WHERE
from tests import test_notebook
from tests.fakes import Script, ScriptedEngine
from tests.test_modifying import DIRECTOR, OWN_VOICE, TRANSLATOR, Talk, said, talk
from tests.test_service import PARAMS, World, end_of, make_world

__all__ = ["make_world", "talk"]

Write = Callable[..., Page]
SAYS = """
seen = []

def state_modifier(state):
    state["max_new_tokens"] = 3
    return state

def input_modifier(string, state, is_chat=False):
    seen.append(("in", string, is_chat, state["mode"]))
    return string.replace("cat", "dog")

def output_modifier(string, state, is_chat=False):
    seen.append(("out", string, is_chat, state["mode"]))
    return string.upper()
"""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[GenerationRequest]:
    """The requests that engines have taken."""
    taken: list[GenerationRequest] = []
    submit = ScriptedEngine.submit

    def noting(engine: ScriptedEngine, request: GenerationRequest, emit: Emit) -> None:
        taken.append(request)
        submit(engine, request, emit)

    monkeypatch.setattr(ScriptedEngine, "submit", noting)
    return taken


@pytest.fixture
def prompts() -> Iterator[Prompts]:
    with closing(Prompts(TemplateWorker())) as opened:
        yield opened


@pytest.fixture
def write(prompts: Prompts) -> Write:
    def into(world: World, text: str) -> Page:
        notebook = Notebook(world.models, world.store, prompts, world.chat)
        page = notebook.kept.page("")
        done = test_notebook.end_of(notebook.complete("", page.revision, Gap(text, "", ""), PARAMS, tokens=True))
        assert done.status == "complete", done.error
        return notebook.kept.page("")

    return into


def read_by(world: World, request: GenerationRequest) -> str:
    return world.models.engine().decode(request.prompt_ids)


def test_the_notebook_reads_and_keeps_what_the_hooks_make_of_it(
    talk: Talk, write: Write, asked: list[GenerationRequest]
) -> None:
    world = talk(Script(reply=" sleeps well"), says=SAYS)
    page = write(world, "The cat")
    assert read_by(world, asked[-1]).endswith("The dog")
    assert asked[-1].params.max_new_tokens == 3
    assert page.text == "The cat" + " sleeps well"[: len(page.text) - 7].upper()
    assert page.text[7:] and page.text[7:].isupper() is True
    assert page.spans == ()  # these are no tokens of the model's
    module = world.extensions._all["says"].script.module  # type: ignore[attr-defined]
    assert [(when, is_chat, mode) for when, _, is_chat, mode in module.seen] == [
        ("in", False, "notebook"),
        ("out", False, "notebook"),
    ]


def test_a_hook_that_changes_nothing_leaves_the_tokens_known(talk: Talk, write: Write) -> None:
    world = talk(
        Script(reply=" sleeps"), quiet="def input_modifier(string, state, is_chat=False):\n    return string\n"
    )
    assert write(world, "The cat").spans != ()


def test_hooks_of_the_chat_alone_are_not_called_in_the_notebook(
    talk: Talk, write: Write, asked: list[GenerationRequest]
) -> None:
    world = talk(Script(reply=" x"), director=DIRECTOR)
    assert write(world, "The cat").text == "The cat x [7]"
    assert "bows" not in read_by(world, asked[-1]) and "[in]" not in read_by(world, asked[-1])
    assert [script.name for script in asked[-1].scripts] == ["director"]


def test_an_extension_may_write_into_the_notebook_itself(
    talk: Talk, write: Write, asked: list[GenerationRequest]
) -> None:
    world = talk(Script(reply="the model"), own=OWN_VOICE)
    assert write(world, "The cat: ").text == "The cat: no model needed for The cat: : False"
    assert asked == []


@pytest.mark.parametrize("hook", ["state_modifier(state)", "input_modifier(s)", "output_modifier(s)"])
def test_a_hook_that_fails_is_named_and_the_notebook_goes_on(talk: Talk, write: Write, hook: str) -> None:
    world = talk(Script(reply=" sleeps"), broken=f"def {hook}:\n    return 1 / 0\n")
    assert write(world, "The cat").text == "The cat sleeps"
    (problem,) = world.extensions.problems  # type: ignore[attr-defined]
    assert "ZeroDivisionError" in problem.sentence


def test_the_users_next_message_is_left_as_the_model_writes_it(talk: Talk, asked: list[GenerationRequest]) -> None:
    world = talk(Script(reply="gut"), translator=TRANSLATOR, director=DIRECTOR)
    said(world)
    before = len(asked)
    path = world.path()
    reply = world.chat.impersonate("", world.conversation.id, path[-1].id, "hello ", PARAMS)
    view = end_of(reply)
    assert (view.text, view.modified, view.told) == ("hello gut", None, ())
    (request,) = asked[before:]
    assert [script.name for script in request.scripts] == ["director"]
    assert "bows" not in read_by(world, request) and request.params.max_new_tokens == PARAMS.max_new_tokens
    assert world.path() == path


def test_an_extension_may_write_the_users_next_message(talk: Talk, asked: list[GenerationRequest]) -> None:
    world = talk(Script(reply="the model"), own=OWN_VOICE)
    said(world, "hello")
    view = end_of(world.chat.impersonate("", world.conversation.id, world.path()[-1].id, "", PARAMS))
    assert view.text.startswith("no model needed for ") and asked == []


def test_the_tab_says_of_every_hook_where_it_is_called() -> None:
    assert set(WHERE) == set(NAMES)
