"""A conversation of ten thousand messages: the page gets its end, and a message costs no more than in a short one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import Any

import pytest

from modules.chat.forms import PLAIN
from modules.chat.gauge import Gauges
from modules.chat.incognito import is_incognito
from modules.chat.prompts import Prompts
from modules.chat.templates import TemplateWorker
from modules.chat.trees import Tree, TreeMessage
from modules.messages import ChatMessage, Excerpt
from modules.sampling import GenerationParams
from modules.settings import Settings
from modules.ui.chat_tab import AROUND_FOUND, SHOWN, ChatDoors, Edit, Open, Seen, Send, Touch
from modules.ui.kept_html import KeptHtml
from tests.fakes import Script
from tests.page_rig import parts_of
from tests.test_prompts import family_engine

LONG = 10_000


def long_tree(messages: int, *, size: int = 60) -> Tree:
    """Questions and answers that take turns."""
    turns = [
        TreeMessage(n - 1 if n else None, "assistant" if n % 2 else "user", f"{n} " + "*word* " * (size // 7))
        for n in range(messages)
    ]
    return Tree(title="Long", messages=tuple(turns), head=messages - 1)


@pytest.fixture
def doors(settings: Settings) -> Iterator[ChatDoors]:
    with ExitStack() as parts:
        services = parts_of(settings, parts, Script(reply="fine"))
        yield ChatDoors(services)


def numbers(answer: dict[str, object]) -> list[int]:
    """Which messages an answer holds."""
    messages = answer["messages"]
    assert isinstance(messages, list)
    return [int(message["text"].split()[0]) for message in messages]


def test_of_a_long_conversation_the_page_gets_the_end_and_more_when_it_asks(doors: ChatDoors) -> None:
    (chat,) = doors.store.shelf.add("", [long_tree(LONG)])
    answer = doors.open("", Open(id=chat.id))
    assert numbers(answer) == list(range(LONG - SHOWN, LONG)) and answer["earlier"] == LONG - SHOWN
    assert len(json.dumps(answer)) < 500_000
    top = answer["messages"][0]["id"]
    more = doors.open("", Open(id=chat.id, top=top, above=200))
    assert numbers(more) == list(range(LONG - SHOWN - 200, LONG)) and more["earlier"] == LONG - SHOWN - 200


def test_of_a_long_conversation_a_search_shows_what_is_near_and_more_on_both_sides(doors: ChatDoors) -> None:
    (chat,) = doors.store.shelf.add("", [long_tree(1000)])
    path = doors.store.path("", chat.id)
    found = doors.open("", Open(id=chat.id, message=path[700].id))
    first, last = 700 - AROUND_FOUND, 700 + AROUND_FOUND
    assert numbers(found) == list(range(first, last + 1))
    assert (found["earlier"], found["later"]) == (first, 1000 - last - 1)
    seen: dict[str, Any] = {"id": chat.id, "top": path[first].id, "bottom": path[last].id}
    assert numbers(doors.open("", Open(**seen, below=100))) == list(range(first, last + 101))
    assert numbers(doors.open("", Open(**seen, above=100))) == list(range(first - 100, last + 1))
    edited = doors.edit("", Edit(**seen, message=path[700].id, text="777 new"))
    assert len(edited["messages"]) == last - first + 1 and edited["later"] == 1000 - last - 1
    cut = doors.delete("", Touch(**seen, message=path[710].id))
    assert (numbers(cut)[-1], cut["later"]) == (709, 0), "what was below is gone: this is the end"
    near_end = doors.open("", Open(id=chat.id, message=path[705].id))
    assert (numbers(near_end)[-1], near_end["later"]) == (709, 0)
    assert numbers(doors.open("", Open(**seen | {"top": "gone", "bottom": "gone"}))) == [
        *range(710 - SHOWN, 700), 777, *range(701, 710),
    ]  # fmt: skip


def test_what_the_page_has_on_show_stays_on_show_whatever_it_does(doors: ChatDoors) -> None:
    (chat,) = doors.store.shelf.add("", [long_tree(SHOWN + 300)])
    path = doors.store.path("", chat.id)
    top, seen = path[100].id, len(path) - 100
    old, last = path[101], path[-1]
    edited = doors.edit("", Edit(id=chat.id, top=top, message=old.id, text="7777 new"))
    assert len(edited["messages"]) == seen and numbers(edited)[1] == 7777 and edited["earlier"] == 100
    sent = doors.send("", Send(id=chat.id, top=top, parent=last.id, text="8888", op_id="operation-1"))
    assert sent["accepted"] and len(sent["messages"]) == seen + 2 and sent["messages"][0]["id"] == top
    running = doors.chat.running("", chat.id)
    if running:
        running.wait(10**9, 20)
    while doors.chat.running("", chat.id):
        pass
    less = doors.delete_last("", Seen(id=chat.id, top=top))
    assert len(less["messages"]) == seen and less["deleted"]
    back = doors.undelete("", Touch(id=chat.id, top=top, message=less["deleted"], params=GenerationParams()))
    assert len(back["messages"]) == seen + 2
    assert len(doors.open("", Open(id=chat.id, top="gone"))["messages"]) == SHOWN


def test_versions_files_and_short_conversations_are_as_in_the_whole_path(doors: ChatDoors) -> None:
    store = doors.store
    (chat,) = store.shelf.add("", [long_tree(6)])
    path = store.path("", chat.id)
    store.append("", chat.id, path[4].id, "assistant", "another", op_id="other")
    whole = store.path("", chat.id)
    assert store.excerpt("", chat.id, least=100) == Excerpt(0, whole, 0)
    assert store.excerpt("", chat.id, least=2) == Excerpt(4, whole[4:], 0)
    assert store.excerpt("", chat.id, least=0) == Excerpt(6, [], 0)
    assert store.excerpt("", store.create("").id, least=5) == Excerpt(0, [], 0)
    assert store.excerpt("", chat.id, least=1, top=path[2].id, above=1) == Excerpt(1, whole[1:], 0)
    assert store.excerpt("", chat.id, least=1, bottom=path[2].id, below=1) == Excerpt(3, [whole[3]], 2)
    assert [store.shows("", chat.id, message.id) for message in (path[0], path[5])] == [True, False]


def test_the_gauge_of_a_long_conversation_counts_its_end_and_drops_what_the_prompt_drops() -> None:
    engine = family_engine("chatml", context_tokens=300)
    turns = [ChatMessage("system", "Be kind.")]
    turns += [ChatMessage(("user", "assistant")[n % 2], f"{n} " + "x" * (n % 7)) for n in range(3001)]
    with closing(Prompts(TemplateWorker())) as prompts:
        built = prompts.chat(engine, turns, max_new_tokens=50, truncate=True)
        engine.calls = 0
        seen = Gauges(prompts).measure(engine, turns, PLAIN, max_new_tokens=50)
    assert engine.calls < 200
    assert seen.dropped == built.dropped > 2900
    assert seen.tokens == pytest.approx(sum(len(turn.content) + 17 for turn in turns), rel=0.3)


def test_replies_are_rendered_once_and_those_of_incognito_chats_are_not_kept() -> None:
    made: list[str] = []
    kept = KeptHtml(lambda text: made.append(text) or text.upper(), most_characters=40)  # type: ignore[func-returns-value]
    assert [kept.html(text) for text in ("a", "a", "b")] == ["A", "A", "B"]
    assert made == ["a", "b"]
    kept.html("a")
    kept.html("x" * 19)  # beyond what is kept: b is the longest unused
    assert (kept.html("a"), made.count("a"), kept.html("b"), made.count("b")) == ("A", 1, "B", 2)
    kept.html("y" * 30)
    assert kept._characters <= 40


def test_a_second_look_renders_no_reply_again(doors: ChatDoors, monkeypatch: pytest.MonkeyPatch) -> None:
    (chat,) = doors.store.shelf.add("", [long_tree(20)])
    secret = doors.store.create("", incognito=True)
    assert is_incognito(doors.store.append("", secret.id, None, "assistant", "*hidden*", op_id="1").id)
    first = doors.open("", Open(id=chat.id))
    doors.open("", Open(id=secret.id))

    def rendered(text: str) -> str:
        raise AssertionError(text)

    from modules.ui import views

    monkeypatch.setattr(views._REPLIES, "_render", rendered)
    assert doors.open("", Open(id=chat.id)) == first
    assert not any("hidden" in text for text in views._REPLIES._kept)
