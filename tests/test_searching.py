"""Search: every word, as part of any word, in any alphabet, with the place that was found."""

from __future__ import annotations

import sqlite3
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from modules.chat import database
from modules.chat.packing import fold
from modules.chat.searching import AFTER, Snippet, snippet_of, words_of
from modules.chat.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "snug.db")
    yield opened
    opened.close()


def say(store: Store, text: str, title: str = "chat", owner: str = "") -> str:
    """A conversation of one message; its id."""
    chat = store.create(owner, title=title)
    store.append(owner, chat.id, None, "user", text, op_id="1")
    return chat.id


def found(store: Store, query: str, **narrower: str) -> list[str]:
    return [hit.conversation.id for hit in store.shelf.list("", query, **narrower)]  # type: ignore[arg-type]


def test_all_words_must_be_in_one_message_or_in_the_title(store: Store) -> None:
    both = say(store, "the red balloon, unbelievably light")
    other = say(store, "a red herring", title="Balloons of light")
    assert found(store, "balloon red") == [both]
    assert found(store, "BELIEV") == [both]
    assert found(store, "light balloon") == [other, both]
    assert found(store, '"red balloon"') == [both]
    assert found(store, '"balloon red"') == []
    assert found(store, "re") == [other, both]
    assert found(store, "herring balloon") == []


def test_one_and_two_characters_find(store: Store) -> None:
    sky = say(store, "天空為什麼是藍色的")
    letter = say(store, "xyzz y")
    assert found(store, "天空") == [sky]
    assert found(store, "藍") == [sky]
    assert found(store, "zz y") == [letter]


def test_the_newest_message_found_is_told_with_what_stands_around_it(store: Store) -> None:
    chat = store.create("", title="x")
    first = store.append("", chat.id, None, "user", "needle one", op_id="1")
    second = store.append("", chat.id, first.id, "assistant", "a  hay\n\nNEEDLE  two " + "tail " * 60, op_id="2")
    (hit,) = store.shelf.list("", "needle")
    assert hit.message_id == second.id
    assert hit.snippet is not None
    assert (hit.snippet.before, hit.snippet.hit, hit.snippet.after[:9]) == ("a hay ", "NEEDLE", " two tail")
    assert hit.snippet.after.endswith("…")
    assert store.shelf.list("", "x")[0].snippet is None


def test_what_changes_is_found_as_it_is_now_and_a_running_reply_once_it_ends(store: Store) -> None:
    chat_id = say(store, "old words")
    (message,) = store.path("", chat_id)
    store.edit("", message.id, "new words")
    assert found(store, "old") == []
    assert found(store, "new") == [chat_id]
    reply = store.append("", chat_id, message.id, "assistant", "", op_id="2", status="streaming")
    store.journal(reply.id, "spoken")
    assert found(store, "spoken") == []
    store.finish(reply.id, "spoken", "complete", None)
    assert found(store, "spoken") == [chat_id]
    store.reopen("", reply.id)
    store.journal(reply.id, "spoken again")
    store.finish(reply.id, "spoken again", "complete", None)
    assert found(store, "again") == [chat_id]
    store.delete_message("", reply.id)
    assert found(store, "spoken") == []
    store.shelf.restore("", reply.id)
    assert found(store, "again") == [chat_id]
    store.delete("", chat_id)
    assert found(store, "words") == []
    store.shelf.restore("", chat_id)
    assert found(store, "again") == [chat_id]


def test_search_stays_within_a_folder_and_an_owner(store: Store) -> None:
    inside, outside = say(store, "shared word", title="word"), say(store, "shared word", title="word")
    say(store, "shared word", owner="bob")
    folder = store.shelf.make_folder("", "Mine")
    store.shelf.move("", inside, folder.id)
    assert found(store, "shared") == [outside, inside]
    assert found(store, "word", folder_id=folder.id) == [inside]


def test_words_with_signs_of_the_index_and_nul_are_texts(store: Store) -> None:
    chat_id = say(store, 'say "quoted" AND (NEAR) a*b^c: 100%_sure \x00after nul')
    for query in ('"quoted', "(near)", "a*b^c:", "100%_sure", "\x00after", "say AND nul", "'", "*b^"):
        assert found(store, query) == ([] if query == "'" else [chat_id]), query


LONG = 70_000  # characters: more than are read whole


@pytest.mark.parametrize("around", ["a ", "Straße, ", "藍 "])
def test_of_a_long_text_only_what_stands_near_the_hit_is_read(store: Store, around: str) -> None:
    text = "x" * LONG + around * 9 + "Needle" + around * 50
    say(store, text)
    assert store.shelf.list("", "needle")[0].snippet == snippet_of(text, ["needle"])
    assert store.shelf.list("", "xxx")[0].snippet == snippet_of(text, ["xxx"])


@pytest.mark.parametrize("text", ["ß" * LONG + "needle", "a\x00" + "b" * LONG + "needle", "\ud800" * LONG + "needle"])
def test_of_a_long_text_in_which_places_move_far_the_beginning_is_told(store: Store, text: str) -> None:
    say(store, text)
    snippet = store.shelf.list("", "needle")[0].snippet
    assert snippet is not None and (snippet.before, snippet.hit) == ("", "")
    assert len(snippet.after) <= AFTER + 2


def test_many_long_texts_that_are_found_are_not_held_together(store: Store) -> None:
    text = "ß😀" * 300_000 + "needle"
    for _ in range(4):
        say(store, text)
    tracemalloc.start()
    try:
        assert len(found(store, "needle")) == 4
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < len(text)


def test_lists_leave_system_prompts_where_they_are(store: Store) -> None:
    chat = store.create("", title="needle", system_prompt="s" * 1000)
    assert [one.system_prompt for one in (*store.list(""), *store.list("", "needle"))] == ["", ""]
    assert store.get("", chat.id).system_prompt == "s" * 1000


@given(st.text(st.characters(exclude_categories=()), max_size=40), st.integers(0, 39), st.integers(1, 12))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_part_of_a_text_finds_it(store: Store, text: str, start: int, length: int) -> None:
    part = text[start : start + length]
    assume(words_of(part))
    chat_id = say(store, text)
    assert chat_id in [hit.conversation.id for hit in store.shelf.list("", part, limit=10_000)]
    store.delete("", chat_id)


@given(st.text(st.characters(exclude_categories=()), max_size=60), st.integers(0, 59), st.integers(1, 12))
def test_a_snippet_shows_what_was_found_in_its_own_spelling(text: str, start: int, length: int) -> None:
    words = words_of(text[start : start + length])
    assume(words)
    assert words[0] in fold(snippet_of(text, words).hit) or any(c.isspace() for c in words[0])


def test_folding_that_lengthens_a_text_does_not_move_the_snippet() -> None:
    assert snippet_of("ßßßß Straße ende", ["strasse"]) == Snippet("ßßßß ", "Straße", " ende")


def test_nobody_elses_text_is_read_for_it_would_take_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def instr(text: str, word: str) -> int:
        read.append(text)
        return text.find(word) + 1

    def prepare(connection: sqlite3.Connection) -> None:
        prepared(connection)
        connection.create_function("instr", 2, instr)

    prepared = database._prepare
    monkeypatch.setattr(database, "_prepare", prepare)
    store = Store(tmp_path / "snug.db")
    try:
        say(store, "my own needle")
        say(store, "a needle of Bob's", owner="bob")
        for query in ("needle", "ne", "needle needle " * 60):
            read.clear()
            assert len(found(store, query)) == 1
            assert {text for text in read if "bob" in text} == set()
            assert read.count("my own needle") < 4, "each word once"
    finally:
        store.close()
