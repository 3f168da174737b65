"""Files kept with their messages: through edits, versions, branches, deletions, search, files and incognito chats."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modules.attachments.extracted import MAX_CHARACTERS, MAX_FILES, Extracted
from modules.chat import attached
from modules.chat.attached import SECRET_WAITING_S, WAITING_S
from modules.chat.attaching import share_out, tell, with_files
from modules.chat.exporting import to_json, to_markdown
from modules.chat.importing import read_file
from modules.chat.schema import APPLICATION_ID, MIGRATIONS
from modules.chat.shelf import SWEEP_EVERY_S
from modules.chat.store import Store
from modules.errors import BadValue, NotFound
from modules.messages import Attachment, Message
from tests.store_rig import Clock, clock, store
from tests.test_host import until

TEXT = Extracted("pdf", "[Page 1]\nThe otter sleeps.", "PDF, 1 page", "Only page 1.")

__all__ = ["clock", "store"]


def ask(store: Store, *names: str, incognito: bool = False, text: str = "What is this?") -> Message:
    """A new conversation with a question that brings files."""
    chat = store.create("", incognito=incognito)
    files = [store.attached.keep("", name, 999, TEXT, incognito=incognito).id for name in names]
    return store.append("", chat.id, None, "user", text, op_id="1", attachments=files)


def names(message: Message) -> list[str]:
    return [file.name for file in message.attachments]


def rows(store: Store) -> int:
    """How many attachments the file holds, those aside for undo not counted."""
    with store._database.read() as connection:
        texts = connection.execute("SELECT count(*) FROM attachment_texts").fetchone()[0]
        kept = int(connection.execute("SELECT count(*) FROM attachments").fetchone()[0])
    assert texts == kept
    return kept


def test_files_wait_for_their_message_and_then_come_with_it_in_order(store: Store) -> None:
    question = ask(store, "b.pdf", "a.pdf")
    assert names(question) == ["b.pdf", "a.pdf"]
    assert question.attachments[0] == Attachment(
        question.attachments[0].id, "b.pdf", "pdf", 999, len(TEXT.text), TEXT.about, TEXT.cut
    )
    assert store.path("", question.conversation_id)[0].attachments == question.attachments
    assert store.message("", question.id).attachments == question.attachments
    assert store.path_to("", question.id)[0].attachments == question.attachments
    assert store.attached.text("", question.attachments[1].id)[1] == TEXT.text
    assert store.attached.waiting("", [file.id for file in question.attachments]) == ()
    again = store.append("", question.conversation_id, None, "user", "x", op_id="1", attachments=["gone"])
    assert again.id == question.id, "the same operation is done once"


def test_a_message_without_words_is_named_after_its_file(store: Store) -> None:
    question = ask(store, "report.pdf", text="")
    assert store.get("", question.conversation_id).title == "report.pdf"


def test_a_file_that_is_gone_another_owners_or_sent_already_stops_the_message_whole(store: Store) -> None:
    question = ask(store, "a.pdf")
    mine = store.attached.keep("", "b.pdf", 9, TEXT)
    theirs = store.attached.keep("kim", "c.pdf", 9, TEXT)
    secret = store.attached.keep("", "d.pdf", 9, TEXT, incognito=True)
    for bad in (question.attachments[0].id, theirs.id, secret.id, "no such"):
        with pytest.raises(NotFound):
            store.append(
                "", question.conversation_id, question.id, "user", "more", op_id=bad, attachments=[mine.id, bad]
            )
    assert len(store.path("", question.conversation_id)) == 1
    assert store.attached.waiting("", [mine.id]) == (mine,), "it can still be sent"
    with pytest.raises(BadValue):
        store.append("", question.conversation_id, None, "user", "x", op_id="9", attachments=["x"] * (MAX_FILES + 1))
    with pytest.raises(NotFound):
        store.attached.text("kim", mine.id)
    store.attached.discard("kim", mine.id)
    assert store.attached.waiting("", [mine.id]) == (mine,)
    store.attached.discard("", mine.id)
    assert store.attached.waiting("", [mine.id]) == ()
    store.attached.discard("", question.attachments[0].id)
    assert names(store.message("", question.id)) == ["a.pdf"], "what was sent stays"


def test_edits_versions_and_branches_keep_the_files(store: Store) -> None:
    question = ask(store, "a.pdf")
    reply = store.append("", question.conversation_id, question.id, "assistant", "An otter.", op_id="2")
    store.edit("", question.id, "Who?")
    assert names(store.message("", question.id)) == ["a.pdf"]
    copy = store.path("", store.shelf.branch("", reply.id).id)[0]
    assert names(copy) == ["a.pdf"]
    assert copy.attachments[0].id != question.attachments[0].id
    assert store.attached.text("", copy.attachments[0].id)[1] == TEXT.text
    store.delete("", question.conversation_id)
    assert store.attached.text("", copy.attachments[0].id)[1] == TEXT.text, "the copy stands by itself"


def test_a_file_goes_with_its_message_comes_back_by_undo_and_is_gone_for_good_after(store: Store) -> None:
    question = ask(store, "a.pdf", "b.pdf")
    store.delete_message("", question.id)
    assert rows(store) == 0
    store.shelf.restore("", question.id)
    assert names(store.message("", question.id)) == ["a.pdf", "b.pdf"]
    store.delete("", question.conversation_id)
    assert rows(store) == 0
    store.shelf.restore("", question.conversation_id)
    assert store.message("", question.id).attachments == question.attachments
    assert [found.message_id for found in store.shelf.list("", "otter")] == [question.id]
    store.delete("", question.conversation_id)
    store.shelf.erase("", question.conversation_id)
    with store._database.read() as connection:
        assert connection.execute("SELECT count(*) FROM deleted_rows").fetchone()[0] == 0


def test_the_search_finds_what_stands_in_a_file_and_what_it_is_called(store: Store) -> None:
    question = ask(store, "Ünder.pdf")
    store.attached.keep("", "waits.pdf", 9, Extracted("text", "a lonely walrus", "Text"))
    (found,) = store.shelf.list("", "otter sleeps")
    assert (found.message_id, found.snippet.hit if found.snippet else "") == (question.id, "otter")
    assert [hit.message_id for hit in store.shelf.list("", "ünder")] == [question.id]
    assert [hit.message_id for hit in store.shelf.list("", "er")] == [question.id]
    assert store.shelf.list("", "walrus") == [], "what was never sent is in no conversation"
    assert store.shelf.list("kim", "otter") == []


def test_files_go_into_exports_and_come_back_whole(store: Store) -> None:
    question = ask(store, "a.pdf", "b.pdf")
    tree = store.shelf.tree("", question.conversation_id)
    read = read_file(to_json([tree]))
    assert (read.trees, read.skipped, read.notes) == ((tree,), (), ())
    (copy,) = store.shelf.add("", read.trees)
    assert store.shelf.tree("", copy.id) == tree
    assert "*Attached: a.pdf (PDF, 1 page)*" in to_markdown(tree)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"text": "x" * (MAX_CHARACTERS + 1)}, "text"),
        ({"kind": "exe"}, "kind"),
        ({"name": "x" * 5000}, "name"),
        ({"size_bytes": -1}, "size_bytes"),
        ({"text": 5}, "text"),
    ],
)
def test_a_foreign_hand_in_an_export_is_refused(store: Store, change: dict[str, object], said: str) -> None:
    whole = json.loads(to_json([store.shelf.tree("", ask(store, "a.pdf").conversation_id)]))
    file = whole["conversations"][0]["messages"][0]["attachments"][0]
    file.update(change)
    read = read_file(json.dumps(whole))
    assert read.trees == () and said in read.skipped[0].why


def test_names_and_texts_in_an_export_are_made_as_clean_as_those_of_files(store: Store) -> None:
    whole = json.loads(to_json([store.shelf.tree("", ask(store, "a.pdf").conversation_id)]))
    whole["conversations"][0]["messages"][0]["attachments"] = [
        {"name": "../\n<b>.pdf", "kind": "pdf", "text": "a\x00\x1b[31mb"}
    ]
    (tree,) = read_file(json.dumps(whole)).trees
    assert (tree.messages[0].attachments[0].name, tree.messages[0].attachments[0].text) == ("<b>.pdf", "ab")
    store.shelf.add("", [tree])


def test_incognito_files_are_in_memory_alone_and_end_with_their_conversation(store: Store, tmp_path: Path) -> None:
    question = ask(store, "secret-name.pdf", incognito=True)
    assert names(question) == ["secret-name.pdf"]
    assert names(store.path("", store.shelf.branch("", question.id).id)[0]) == ["secret-name.pdf"]
    assert rows(store) == 0
    store.delete("", question.conversation_id)
    with pytest.raises(NotFound):
        store.attached.text("", question.attachments[0].id)
    store.close()
    assert all(b"secret-name" not in path.read_bytes() for path in tmp_path.glob("snug.db*"))


def test_files_that_were_never_sent_are_forgotten_after_a_day(
    store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = ask(store, "a.pdf")
    old = [store.attached.keep("", "b.pdf", 9, TEXT, incognito=secret).id for secret in (False, True)]
    clock.now += WAITING_S + 1
    new = store.attached.keep("", "c.pdf", 9, TEXT)
    store.shelf.sweep()
    assert [store.attached.waiting("", [ident]) for ident in old] == [(), ()]
    assert store.attached.waiting("", [new.id]) == (new,)
    assert names(store.message("", sent.id)) == ["a.pdf"]
    assert SWEEP_EVERY_S < WAITING_S


def test_an_unsent_incognito_file_outlives_its_page_by_minutes(store: Store, clock: Clock) -> None:
    secret, other = (store.attached.keep("", "a.pdf", 9, TEXT, incognito=hidden) for hidden in (True, False))
    for _ in range(3):
        clock.now += SECRET_WAITING_S - 1
        store.attached.forget_waiting()
        assert store.attached.waiting("", [secret.id]) == (secret,)  # a page that asks keeps it
    clock.now += SECRET_WAITING_S + 1
    assert not store.attached.forget_waiting()  # nothing has left the disk's index
    assert store.attached.waiting("", [secret.id, other.id]) == (other,)


def test_nobody_has_to_look_for_it_to_go(store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attached, "SECRET_WAITING_S", 0.04)
    secret = store.attached.keep("", "a.pdf", 9, TEXT, incognito=True)
    clock.now += 1

    def gone() -> bool:
        try:
            store.attached.text("", secret.id)
        except NotFound:
            return True
        return False

    until(gone)


def test_a_file_of_before_attachments_is_brought_up(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "snug.db")) as old:
        old.create_function("fold", 1, str)
        for script in MIGRATIONS[:3]:
            old.executescript(script)
        old.executescript(f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = 3;")
    store = Store(tmp_path / "snug.db")
    question = ask(store)
    copy = store.attached.keep("", "a.pdf", 9, TEXT)
    added = store.append("", question.conversation_id, question.id, "user", "and?", op_id="2", attachments=[copy.id])
    assert names(added) == ["a.pdf"]
    store.close()


# What a model is told


def file(name: str = "a.txt", cut: str = "") -> Attachment:
    return Attachment(name, name, "text", 9, 9, "Text", cut)


def words(text: str) -> int:
    """Tokens, for these tests: a word each."""
    return len(text.split())


def test_a_file_stands_before_the_message_between_fences_longer_than_any_in_it() -> None:
    told = tell([file('a"\u2028`.md', "Cut here.")], {'a"\u2028`.md': "x\n````\ny"}, words, 0)
    assert told[0].block == 'Attached file "a\\"\u2028`.md" (Text). Cut here.\n`````\nx\n````\ny\n`````'
    assert with_files(told, "What?") == f"{told[0].block}\n\nWhat?"
    assert with_files(told, " ") == told[0].block
    assert with_files((), "What?") == "What?"


def test_what_does_not_fit_half_of_the_context_is_cut_and_said_to_both_sides() -> None:
    texts = {"small": "one two three", "large": "word " * 5000, "larger": "word\n" * 9000}
    told = tell([file("small"), file("large"), file("larger")], texts, words, 1000)
    assert sum(item.tokens for item in told) <= 500
    assert told[0].cut == "" and "one two three" in told[0].block
    for item in told[1:]:
        assert item.tokens > 200, "nothing is given away"
        kept = item.cut.partition("its first ")[2].partition(" of ")[0]
        assert f"Only its first {kept} of" in item.block and "half of its context" in item.cut
    assert tell([file("large")], texts, words, 0)[0].cut == "", "nobody knows the context"
    none = tell([file("large")], texts, words, 20)[0]
    assert "Its text is not given here." in none.block and "reads nothing of it" in none.cut


def test_the_same_file_is_told_alike_whatever_else_is_said() -> None:
    texts = {"a": "word " * 5000}
    assert tell([file("a")], texts, words, 1000) == tell([file("a")], texts, words, 1000)


@given(st.integers(0, 1000), st.lists(st.integers(0, 2000), max_size=10))
def test_shares_keep_to_the_budget_and_waste_nothing(budget: int, costs: list[int]) -> None:
    shares = share_out(budget, costs)
    assert all(0 <= share <= cost for share, cost in zip(shares, costs, strict=True))
    assert sum(shares) <= budget
    assert sum(shares) == sum(costs) or sum(shares) > budget - max(1, len(costs))
