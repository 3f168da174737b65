"""Files of conversations in and out: our own JSON comes back whole, others are read, broken ones are named."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.chat import importing
from modules.chat.exporting import to_json, to_markdown
from modules.chat.importing import read_file
from modules.chat.store import Store
from modules.chat.trees import Tree, TreeMessage
from modules.messages import ReplyStats, Setup

STATS = ReplyStats(12, 4, 30, 0.1, 0.2, 0.3, 41.5, "stop", "tiny", 2, ("Memory ran out.",), 5, 4)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "snug.db")
    yield opened
    opened.close()


def only(value: object) -> Tree:
    """The one conversation of a file that holds `value`."""
    read = read_file(value if isinstance(value, str) else json.dumps(value))
    assert read.skipped == ()
    (tree,) = read.trees
    return tree


def said(tree: Tree) -> list[tuple[str, str]]:
    """What is on show."""
    return [(message.role, message.content) for message in tree.path()]


def why(text: str) -> str:
    """Why nothing was taken of a file."""
    read = read_file(text)
    assert read.trees == ()
    (skipped,) = read.skipped
    return f"{skipped.where}: {skipped.why}"


def test_few_sentences_about_a_reply_are_taken() -> None:
    told = asdict(replace(STATS, told=("Memory ran out. " * 300,) * 500))
    message = {"role": "assistant", "content": "Hello", "stats": told}
    stats = only({"snug": 1, "conversations": [{"messages": [message], "head": 0}]}).messages[0].stats
    assert stats is not None
    assert (len(stats.told), max(map(len, stats.told))) == (20, 1000)


def test_what_the_page_would_not_take_does_not_come_by_file() -> None:
    message = {"role": "user", "content": "Hello"}
    tree = only({"snug": 1, "conversations": [{"title": "T" * 5000, "folder": "f " * 500, "mode": "notebook",
                                               "messages": [message], "head": 0}]})  # fmt: skip
    assert (len(tree.title), len(tree.folder), tree.mode) == (200, 80, "chat")


def test_our_own_json_keeps_versions_statistics_prompt_times_folder_and_what_is_on_show(store: Store) -> None:
    chat = store.create("", title="Ünder \ud83d the sea", system_prompt="Be \x00 kind.")
    question = store.append("", chat.id, None, "user", "Why? \udc00", op_id="1")
    first = store.append("", chat.id, question.id, "assistant", "", op_id="2", status="streaming")
    store.finish(first.id, "Because.", "stopped", STATS)
    store.append("", chat.id, first.id, "user", "Thanks", op_id="3")
    second = store.append("", chat.id, question.id, "assistant", "", op_id="4", status="streaming")
    store.finish(second.id, "", "error", None, "It broke.")
    store.set_head("", chat.id, first.id)
    folder = store.shelf.make_folder("", "Sea things")
    store.shelf.move("", chat.id, folder.id)
    store.shelf.pin("", chat.id, True)
    store.set_setup("", chat.id, Setup("chat", character="Wren", persona="Kim", reply_start="Well,"))
    tree = store.shelf.tree("", chat.id)

    read = read_file(to_json([tree]))

    assert read.trees == (tree,)
    (copy,) = store.shelf.add("", read.trees)
    assert copy.id != chat.id
    assert store.shelf.tree("", copy.id) == tree
    assert store.path("", copy.id)[1].stats == STATS
    assert len(store.path("", copy.id)[1].siblings) == 2
    assert [f.conversations for f in store.shelf.folders("")] == [2]
    assert store.rename("", copy.id, "").title == "Why? \udc00"


any_text = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from('\ud83d\x00\n" '), max_size=30)
trees = st.builds(
    Tree,
    title=any_text,
    system_prompt=any_text,
    messages=st.lists(st.builds(TreeMessage, st.none(), st.sampled_from(["user", "assistant"]), any_text)).map(tuple),
    pinned=st.booleans(),
    created_at=st.floats(0, 1e10),
    folder=any_text,
    setup=st.builds(Setup, st.sampled_from(["instruct", "chat"]), any_text, any_text, any_text, any_text, any_text),
)


@given(st.lists(trees, max_size=4))
@settings(deadline=None)
def test_every_conversation_comes_back_from_our_own_json_as_it_was(made: list[Tree]) -> None:
    made = [replace(tree, head=len(tree.messages) - 1 if tree.messages else None) for tree in made]
    text = to_json(made)
    text.encode("utf-8")
    assert read_file(text).trees == tuple(made)


def test_markdown_shows_the_branch_on_show_for_reading() -> None:
    tree = Tree(
        "About\nthe sky", (
            TreeMessage(None, "user", "Why is it blue?"), TreeMessage(0, "assistant", "Other version"),
            TreeMessage(0, "assistant", "```\ncode\n```", error="It broke."),
        ), head=2, system_prompt="Be brief.\n\nBe kind.", created_at=86_400.0,
    )  # fmt: skip
    assert to_markdown(tree) == (
        "# About the sky\n\n*1970-01-02*\n\n> Be brief.\n>\n> Be kind.\n\n## You\n\nWhy is it blue?\n\n"
        "## Reply\n\n```\ncode\n```\n\n*It broke.*\n"
    )
    to_markdown(Tree("\ud83d", ())).encode("utf-8")


def test_an_old_history_of_text_generation_webui_is_read() -> None:
    pairs = [["<|BEGIN-VISIBLE-CHAT|>", "Hello!"], ["Say <b>", "&"], ["", "more"]]
    visible = [["", "Hello!"], ["Say &lt;b&gt;", "&amp;"], ["", "more"]]
    turns = [("assistant", "Hello!"), ("user", "Say <b>"), ("assistant", "&"), ("assistant", "more")]
    assert said(only({"internal": pairs, "visible": visible})) == turns
    assert said(only({"data": pairs, "data_visible": visible})) == turns


def test_a_newer_history_of_text_generation_webui_keeps_versions_and_times() -> None:
    tree = only({
        "internal": [["Hi", "Second"], ["Bye", "See you"]],
        "visible": [["Hi", "Second"], ["Bye", "See you"]],
        "metadata": {
            "user_0": {"timestamp": "Jan 05, 2025 10:30"},
            "assistant_0": {
                "timestamp": "Jan 05, 2025 10:31", "current_version_index": 1,
                "versions": [
                    {"content": "First", "visible_content": "First", "timestamp": "Jan 05, 2025 10:31"},
                    {"content": "Second", "visible_content": "Second", "timestamp": "Jan 05, 2025 10:32"},
                    {"content": "Third", "visible_content": "Third", "timestamp": "Jan 05, 2025 10:33"},
                ],
            },
        },
    })  # fmt: skip
    assert said(tree) == [("user", "Hi"), ("assistant", "Second"), ("user", "Bye"), ("assistant", "See you")]
    assert [m.content for m in tree.messages if m.parent == 0] == ["First", "Second", "Third"]
    assert tree.created_at == datetime(2025, 1, 5, 10, 30).timestamp()


def test_sharegpt_is_read_alone_in_a_list_and_line_by_line() -> None:
    def item(word: str) -> dict[str, Any]:
        turns = [("system", "Be kind."), ("human", word), ("gpt", "Yes"), ("tool", "{}"), ("human", "Good")]
        return {"id": word, "conversations": [{"from": who, "value": text} for who, text in turns]}

    tree = only(item("a"))
    assert said(tree) == [("user", "a"), ("assistant", "Yes"), ("user", "Good")]
    assert tree.system_prompt == "Be kind."
    read = read_file(json.dumps([item("a"), item("b")]))
    assert [said(tree)[0][1] for tree in read.trees] == ["a", "b"]
    assert read.notes[0].startswith("conversation 1: 1 part without text")
    lines = read_file("\n".join([json.dumps(item("a")), "{broken", json.dumps(item("c")), ""]))
    assert [said(tree)[0][1] for tree in lines.trees] == ["a", "c"]
    assert [(skipped.where, skipped.why[:15]) for skipped in lines.skipped] == [("line 2", "It is not JSON:")]


def test_messages_of_openai_are_read_with_text_parts_and_as_a_bare_list() -> None:
    messages = [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "Look"}, {"type": "image_url", "image_url": {}}]},
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "assistant", "content": "A cat."},
    ]
    for value in ({"messages": messages}, messages, [{"messages": messages}]):
        tree = only(value)
        assert said(tree) == [("user", "Look"), ("assistant", "A cat.")]
        assert tree.system_prompt == "Be kind."
    assert "1 part" in read_file(json.dumps(messages)).notes[0]


def node(ident: str, parent: str | None, role: str, text: str | None, **more: Any) -> dict[str, Any]:
    """A node of ChatGPT's export."""
    parts = {"content_type": "text", "parts": [text]} | more.pop("content", {})
    message = {"author": {"role": role}, "content": parts, "create_time": 1_700_000_000.5, **more}
    return {ident: {"id": ident, "message": message if text is not None else None, "parent": parent, "children": []}}


def test_the_export_of_chatgpt_is_read_as_a_tree_of_what_was_said() -> None:
    mapping = (
        node("root", None, "system", None)
        | node("s", "root", "system", "")
        | node("u", "s", "user", "Why?")
        | node("think", "u", "assistant", "hm", content={"content_type": "thoughts"})
        | node("a1", "think", "assistant", "Because.")
        | node("a2", "u", "assistant", "Who knows?")
        | node("code", "a2", "assistant", "search()", recipient="browser")
        | node("tool", "code", "tool", "found")
        | node("a3", "tool", "assistant", "It says so.")
    )
    value = {"title": "The sky", "create_time": 5.0, "update_time": 9.0, "mapping": mapping, "current_node": "a1"}
    tree = only([value])
    assert said(tree) == [("user", "Why?"), ("assistant", "Because.")]
    assert (tree.title, tree.created_at, tree.updated_at) == ("The sky", 5.0, 9.0)
    assert [m.content for m in tree.messages] == ["Why?", "Because.", "Who knows?", "It says so."]
    assert [m.parent for m in tree.messages] == [None, 0, 0, 2]
    circle = node("a", "b", "user", "x") | node("b", "a", "assistant", "y")
    assert "circle" in why(json.dumps([{"title": "Round", "mapping": circle}]))


def test_a_chat_of_sillytavern_is_read_with_its_swipes() -> None:
    lines = [
        {"user_name": "Ann", "character_name": "Seraphina", "chat_metadata": {}},
        {"name": "Seraphina", "is_user": False, "mes": "Welcome", "send_date": "2024-05-01T10:00:00.000Z"},
        {"name": "Ann", "is_user": True, "mes": "Hi"},
        {"name": "Seraphina", "is_user": False, "mes": "B", "swipes": ["A", "B", "C"], "swipe_id": 1},
    ]
    tree = only("\n".join(json.dumps(line) for line in lines))
    assert said(tree) == [("assistant", "Welcome"), ("user", "Hi"), ("assistant", "B")]
    assert [m.content for m in tree.messages] == ["Welcome", "Hi", "A", "B", "C"]
    assert tree.title == "Chat with Seraphina"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("hello", "not JSON: Expecting value in line 1, column 1"),
        ('{"internal": [["a", "b"]', "not JSON: Expecting ',' delimiter"),
        ("[" * 100_000, "nested too deeply"),
        ("[]", "no conversation"),
        ("3", "no shape that Snug knows"),
        ('{"a": 1}', "no shape that Snug knows"),
        ('{"internal": [["a"]]}', "Pair 1"),
        ('{"internal": 3}', "no list of pairs"),
        ('{"messages": []}', "no message"),
        ('{"messages": [{"content": "x"}]}', "Message 1 does not say who speaks"),
        ('{"conversations": [3]}', "Message 1 is no object"),
        ('{"mapping": []}', "no tree"),
        ('{"snug": 2, "conversations": []}', "another version of Snug"),
        ('{"snug": 1, "conversations": [{"messages": [{"role": "user", "content": "x"}]}]}', "head"),
        ('{"snug": 1, "conversations": [{"head": 0, "messages": [{"role": "user", "content": 3}]}]}', "content"),
        ('{"snug": 1, "conversations": [{"messages": [{"role": "user", "content": "", "parent": 0}]}]}', "parent"),
        ('{"snug": 1, "conversations": [{"messages": [], "created_at": NaN}]}', "NaN"),
        ('{"snug": 1, "conversations": [{"messages": [], "created_at": 1e300}]}', "created_at"),
        ('{"messages": [{"role": "user", "content": 1' + "0" * 5000 + "}]}", "not JSON"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_named(text: str, words: str) -> None:
    assert words in why(text)


def test_a_broken_conversation_leaves_the_others_and_nothing_of_itself(store: Store) -> None:
    good = {"title": "Good", "messages": [{"role": "user", "content": "x"}]}
    bad = {"title": "Bad", "messages": [{"role": "user", "content": "kept?"}, 3]}
    read = read_file(json.dumps([good, bad, good]))
    assert [skipped.where for skipped in read.skipped] == ["conversation 2 (“Bad”)"]
    store.shelf.add("", read.trees)
    assert [c.title for c in store.list("")] == ["Good", "Good"]
    assert store.list("", "kept?") == []


KEYS = [
    "internal",
    "visible",
    "metadata",
    "user_0",
    "assistant_0",
    "versions",
    "content",
    "timestamp",
    "data",
    "conversations",
    "from",
    "value",
    "messages",
    "role",
    "mapping",
    "message",
    "author",
    "parts",
    "parent",
    "current_node",
    "snug",
    "title",
    "head",
    "stats",
    "mes",
    "swipes",
]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(KEYS),
            inner,
            max_size=6,
        )
    ),
    max_leaves=25,
)


@given(json_values)
@settings(max_examples=400, deadline=None)
def test_no_json_makes_the_reader_fail(value: object) -> None:
    read = read_file(json.dumps(value))
    assert read.trees or read.skipped
    for tree in read.trees:
        to_markdown(tree)
        if tree.messages:
            assert tree.head is not None


def test_a_conversation_that_is_too_long_to_be_deleted_quickly_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "MOST_CHARACTERS", 5)
    short, long = ({"messages": [{"role": "user", "content": text}]} for text in ("short", "longer"))
    read = read_file(json.dumps([short, long]))
    assert [tree.messages[0].content for tree in read.trees] == ["short"]
    assert "more than 5 characters" in read.skipped[0].why
    monkeypatch.setattr(importing, "MOST_OF_A_SYSTEM_PROMPT", 3)
    read = read_file(json.dumps([{"messages": [{"role": kind, "content": "four"} for kind in ("system", "user")]}]))
    assert "Its system prompt has more than 3 characters" in read.skipped[0].why


def test_a_file_of_too_many_messages_keeps_the_conversations_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "MOST_MESSAGES", 2)
    line = '{"messages": [{"role": "user", "content": "a"}]}\n'
    read = read_file(line * 5)
    assert len(read.trees) == 2
    assert [skipped.where for skipped in read.skipped] == ["line 3"]
