"""Lorebooks as people edit them: files of others open, nothing is lost, hostile ones end in a named error."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modules.characters import card
from modules.characters.character import Character, Lorebook, checked
from modules.characters.library import Characters
from modules.characters.lore_editing import BookFields, EntryFields, LoreEditing, revision_of
from modules.characters.lorebook import matching, verdicts
from modules.characters.worlds import read_book
from modules.chat.lore import LoreNow
from modules.chat.prompts import Prompts
from modules.chat.templates import TemplateWorker
from modules.errors import BadCharacter, NotFound, StaleView
from tests.fakes import Script
from tests.test_service import MakeWorld, make_world

WORLD = {
    "entries": {
        "0": {
            "uid": 0, "key": ["oak", "/hive.*/i"], "keysecondary": ["bees"], "comment": "Tree", "content": "It is old.",
            "constant": False, "selective": True, "selectiveLogic": 2, "order": 5, "position": 0, "disable": False,
            "excludeRecursion": True, "probability": 100, "useProbability": True, "caseSensitive": None, "depth": 4,
        },
        "1": {"uid": 1, "key": ["mill"], "content": "The mill burnt.", "disable": True, "order": 100, "position": 4},
    }
}  # fmt: skip

__all__ = ["make_world"]

OAK = {"keys": ["oak"], "content": "Old."}


@pytest.fixture
def characters(tmp_path: Path) -> Characters:
    (tmp_path / "shipped").mkdir()
    (tmp_path / "shipped" / "Guide.yaml").write_text("name: Guide\ngreeting: Hello.\ncontext: A guide.\n")
    return Characters(tmp_path / "shipped", tmp_path / "own")


@pytest.fixture
def editing(characters: Characters) -> LoreEditing:
    return LoreEditing(characters)


def as_bytes(value: object) -> bytes:
    return json.dumps(value).encode()


def put(editing: LoreEditing, ident: str = "Guide", at: int | None = None, **fields: Any) -> Lorebook:
    return editing.put(ident, revision_of(editing.book(ident)), at, EntryFields(**fields))


def reasons(*entries: dict[str, Any], says: list[str], budget: int = 1000, **book: Any) -> list[str]:
    found = checked(Lorebook, {"entries": list(entries), **book}, "x")
    return [("+ " if v.fires else "- ") + v.reason for v in verdicts(found, says, len, budget)]


def test_a_world_of_sillytavern_becomes_a_lorebook_and_keeps_what_only_it_knows() -> None:
    oak, mill = read_book(as_bytes(WORLD), "world.json").entries
    assert (oak.keys, oak.secondary_keys, oak.comment) == (("oak", "/hive.*/i"), ("bees",), "Tree")
    assert (oak.insertion_order, oak.position, oak.enabled) == (5, "before_char", True)
    assert (mill.position, mill.enabled) == ("after_char", False)
    kept = oak.model_dump()["extensions"]
    assert kept["exclude_recursion"] is True and kept["useProbability"] is True and kept["selectiveLogic"] == 2
    assert mill.model_dump()["extensions"]["position"] == 4


@pytest.mark.parametrize(
    "values",
    [
        {"spec": "lorebook_v3", "data": {"name": "w", "entries": [OAK]}},
        {"spec": "chara_card_v2", "data": {"name": "x", "character_book": {"entries": [OAK]}}},
        {"lorebookVersion": 5, "entries": [{"keys": ["oak"], "text": "Old.", "forceActivation": False}]},
        {"kind": "memory", "entries": [{"name": "O", "keywords": ["oak"], "entry": "Old.", "enabled": True}]},
        {"type": "risu", "data": [{"key": "oak, mill", "content": "Old.", "insertorder": 100, "alwaysActive": False}]},
        [{"key": ["oak"], "content": "Old."}],
    ],
    ids=["lorebook_v3", "card", "novelai", "agnai", "risu", "a bare list"],
)  # fmt: skip
def test_lorebooks_of_other_programs_open(values: object) -> None:
    assert matching(read_book(as_bytes(values), "x.json"), ["an oak"], len, 99).after == ("Old.",)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "not valid JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (as_bytes({"entries": []}), "no lorebook entries"),
        (as_bytes({"name": "Kim"}), "no lorebook entries"),
        (as_bytes({"entries": [7]}), "entry 1 is no object"),
        (as_bytes({"entries": [{"keys": {"a": 1}, "content": "x"}]}), "entries.0.keys"),
        (as_bytes({"entries": [{"key": ["a"]}] * 10_001}), "10,001 entries"),
        (b'{"entries": [{"keys": ["a"], "content": "x", "insertion_order": 1e999}]}', "no number"),
        (b'{"entries": ["' + b"x" * 7_000_000 + b'"]}', "more than"),
    ],
)
def test_a_hostile_file_ends_in_a_named_error_and_changes_nothing(
    editing: LoreEditing, characters: Characters, data: bytes, told: str
) -> None:
    with pytest.raises(BadCharacter, match=told) as caught:
        editing.add_file("Guide", data, "'world.json'")
    assert caught.value.remedy
    assert not characters.list()[0].own


_PLAIN = st.none() | st.booleans() | st.integers() | st.text(max_size=9)
_NAMES = st.sampled_from(["entries", "key", "keys", "content", "data", "position", "extensions", "disable"])


@given(st.recursive(_PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES, inner, max_size=5)))
def test_any_json_is_a_lorebook_or_refused(values: object) -> None:
    try:
        book = read_book(as_bytes(values), "x")
    except BadCharacter:
        return
    again = checked(Lorebook, json.loads(json.dumps(book.model_dump(mode="json"))), "x")
    assert again == book


def test_an_entry_is_added_changed_deleted_and_brought_back(editing: LoreEditing, characters: Characters) -> None:
    book = put(editing, keys=("oak",), content="Old.")
    assert characters.list()[0].own  # a shipped character that is changed becomes the user's own
    book = put(editing, keys=("mill",), secondary_keys=("fire",), content="Burnt.", position="before_char")
    assert book.entries[1].selective
    book = put(editing, at=1, keys=("mill",), content="Burnt twice.", case_sensitive=True, insertion_order=7)
    assert (book.entries[1].selective, book.entries[1].insertion_order) == (False, 7)
    book = editing.switch("Guide", revision_of(book), 1, enabled=False)
    assert not characters.get("Guide").character_book.entries[1].enabled  # type: ignore[union-attr]
    book, gone = editing.delete("Guide", revision_of(book), 0)
    assert [entry.content for entry in book.entries] == ["Burnt twice."]
    book = editing.restore("Guide", 0, json.loads(gone.model_dump_json()))
    assert [entry.content for entry in book.entries] == ["Old.", "Burnt twice."]


def test_what_no_editor_shows_stays_and_leaves_with_every_export(editing: LoreEditing, characters: Characters) -> None:
    editing.add_file("Guide", as_bytes(WORLD), "world.json")
    put(editing, at=0, keys=("oak",), content="Older.")
    for kind in ("json", "png"):
        made = characters.export("Guide", kind)
        back = card.from_png(made.data, "x") if kind == "png" else card.from_json(made.data, "x")
        assert back.character_book is not None
        first = back.character_book.entries[0]
        assert first.content == "Older." and first.model_dump()["extensions"]["exclude_recursion"] is True
    second = json.loads(card.to_json(characters.get("Guide"), version=2))["data"]["character_book"]["entries"][1]
    assert second["keys"] == ["mill"] and second["enabled"] is False


def test_a_change_on_an_outdated_page_is_refused_but_a_new_entry_is_not(editing: LoreEditing) -> None:
    old = revision_of(editing.book("Guide"))
    put(editing, keys=("oak",), content="Old.")
    with pytest.raises(StaleView):
        editing.put("Guide", old, 0, EntryFields(keys=("mill",), content="x"))
    with pytest.raises(StaleView):
        editing.delete("Guide", old, 0)
    assert len(editing.put("Guide", old, None, EntryFields(keys=("mill",), content="x")).entries) == 2
    with pytest.raises(NotFound):
        editing.switch("Guide", revision_of(editing.book("Guide")), 2, enabled=True)
    with pytest.raises(BadCharacter, match="no key"):
        put(editing, content="Never told.")


def test_entries_that_are_there_already_are_not_added_again(editing: LoreEditing) -> None:
    book, added = editing.add_file("Guide", as_bytes(WORLD | {"scan_depth": 9}), "world.json")
    assert (added.entries, added.known, book.scan_depth) == (2, 0, 9)
    book, added = editing.add_file("Guide", as_bytes(WORLD | {"scan_depth": 3}), "world.json")
    assert (added.entries, added.known, len(book.entries), book.scan_depth) == (0, 2, 2, 9)


def test_a_character_never_grows_beyond_what_can_be_read_again(editing: LoreEditing, characters: Characters) -> None:
    heavy = [{"keys": ["a"], "content": f"{number}" + "x" * 99_000} for number in range(66)]
    editing.add_file("Guide", as_bytes({"entries": heavy[:60]}), "w")
    with pytest.raises(BadCharacter, match="would have"):
        editing.add_file("Guide", as_bytes({"entries": heavy[60:]}), "w")
    with pytest.raises(BadCharacter, match="too large for a picture"):
        characters.export("Guide", "png")
    assert len(card.from_json(characters.export("Guide", "json").data, "x").character_book.entries) == 60  # type: ignore[union-attr]


def test_nobody_waits_for_anothers_change(editing: LoreEditing, characters: Characters, tmp_path: Path) -> None:
    bens = Characters(tmp_path / "shipped", tmp_path / "bens")
    with ThreadPoolExecutor(1) as pool, characters.changing:
        changed = pool.submit(LoreEditing(bens).configure, "Guide", revision_of(Lorebook()), BookFields(scan_depth=7))
        assert changed.result(timeout=5).scan_depth == 7
    assert editing.book("Guide").scan_depth is None


def test_how_a_book_is_read_is_changed_alone(editing: LoreEditing) -> None:
    book = put(editing, keys=("oak",), content="Old.")
    book = editing.configure("Guide", revision_of(book), BookFields(scan_depth=1, token_budget=50))
    assert (book.scan_depth, book.token_budget, len(book.entries)) == (1, 50, 1)


def test_each_entry_says_why_it_is_told_or_not() -> None:
    assert reasons(
        {"keys": ["oak"], "content": "x"},
        {"keys": ["OAK"], "content": "x", "case_sensitive": True},
        {"keys": ["oak"], "content": "x", "enabled": False},
        {"keys": [], "content": "x"},
        {"keys": ["/o.k/"], "content": "x"},
        {"keys": ["a"], "constant": True, "content": "x"},
        {"keys": ["oak"], "content": " "},
        {"keys": ["oak"], "secondary_keys": ["mill", "pond"], "selective": True, "content": "x"},
        {"keys": ["oak"], "secondary_keys": ["bees"], "selective": True, "content": "x"},
        {"keys": ["oak"], "content": "x" * 2000},
        says=["one", "two", "an oak by the pond"],
        scan_depth=2,
    ) == [
        "+ “oak” in the last 2 messages.",
        "- No key in the last 2 messages.",
        "- Switched off.",
        "- It has no key.",
        "- Snug runs no regular expressions.",
        "+ Always told.",
        "- It has no text.",
        "+ “oak” in the last 2 messages, with “pond”.",
        "- “oak” in the last 2 messages, but none of its secondary keys.",
        "- “oak” in the last 2 messages, but it has 2,000 tokens, and 997 of 1,000 are left for lore.",
    ]
    chained = ({"keys": ["oak"], "content": "The hive"}, {"keys": ["hive"], "content": "Honey"})
    assert reasons(*chained, says=["oak"], recursive_scanning=True)[1] == "+ “hive” in another entry."


@pytest.mark.parametrize(("logic", "says", "fires"), [
    (0, "oak bees", True), (0, "oak", False), (1, "oak bees", True), (1, "oak bees pond", False), (2, "oak", True),
    (2, "oak pond", False), (3, "oak bees pond", True), (3, "oak bees", False),
])  # fmt: skip
def test_secondary_keys_keep_in_or_out_as_sillytavern_means_them(logic: int, says: str, fires: bool) -> None:
    entry = {"keys": ["oak"], "secondary_keys": ["bees", "pond"], "selective": True, "content": "x"}
    assert reasons(entry | {"extensions": {"selectiveLogic": logic}}, says=[says])[0].startswith("+") is fires


def test_words_that_sillytavern_calls_expressions_are_words() -> None:
    character = checked(
        Character,
        {"name": "x", "character_book": {"entries": [{"keys": ["oak"], "use_regex": True, "content": "Old."}]}},
        "x",
    )
    assert character.unused == ()
    assert character.character_book is not None
    assert matching(character.character_book, ["the Oak"], len, 99).after == ("Old.",)


def test_the_open_conversation_is_looked_at_with_a_model_and_without(make_world: MakeWorld) -> None:
    world = make_world(Script())
    book = checked(Lorebook, {"entries": [{"keys": ["oak"], "content": "x" * 5000}], "scan_depth": 2}, "x")
    world.store.append("", world.conversation.id, None, "user", "an oak", op_id="1")
    with closing(Prompts(TemplateWorker())) as prompts:
        now = LoreNow(world.models, world.store, prompts, world.chat)

        def reason(draft: str = "") -> str:
            return now.verdicts(world.store.get("", world.conversation.id), book, draft)[0].reason

        counted = reason("yes")
        assert "5,000 tokens" in counted  # a token a sign, in the scripted engine
        world.models.unload()
        assert "1,251 tokens, and 1,024 of 1,024 are left" in reason("yes")
        world.store.append("", world.conversation.id, world.path()[0].id, "assistant", "indeed", op_id="2")
        assert reason("yes") == "No key in the last 2 messages."


def test_a_book_of_a_hundred_thousand_keys_hears_the_end_of_a_long_text_alone() -> None:
    keys = [f"q{number:05x}z" for number in range(100_000)]
    entries = [{"keys": keys[at : at + 1000], "content": "x"} for at in range(0, len(keys), 1000)]
    book = Lorebook.model_validate({"entries": [*entries, {"keys": ["oak"], "content": "A tree."}]})
    started = time.thread_time()
    judged = verdicts(book, ["hello world " * 100_000 + "oak"], len, 100)
    assert time.thread_time() - started < 10, "it took a minute of the processor where all of the text was heard"
    assert [verdict.fires for verdict in judged] == [False] * 100 + [True]


def test_what_no_budget_is_left_for_is_not_counted() -> None:
    book = Lorebook.model_validate({"entries": [{"constant": True, "content": "abc"}] * 50, "token_budget": 6})
    counted: list[str] = []
    judged = verdicts(book, ["hello"], lambda text: counted.append(text) or len(text), 100)  # type: ignore[func-returns-value]
    assert [verdict.fires for verdict in judged] == [True] * 2 + [False] * 48
    assert len(counted) == 2
    assert judged[2].reason == "Always told, but all 6 tokens for lore are taken."
