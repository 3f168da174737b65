"""The lists of conversations: folders, pins, undo, branches, incognito; older files open with nothing lost."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from modules.chat import database, incognito, shelf, trash
from modules.chat.incognito import Databases
from modules.chat.schema import APPLICATION_ID, MIGRATIONS
from modules.chat.store import Store
from modules.chat.trash import KEPT_S
from modules.chat.trees import Tree, TreeMessage
from modules.errors import BadValue, Busy, NotFound, StaleView, StoreFailed
from modules.messages import ReplyStats
from modules.units import MiB
from tests.store_rig import Clock, clock, store

STATS = ReplyStats(12, 4, 30, 0.1, 0.2, 0.3, 41.5, "stop", "tiny", 2)

__all__ = ["clock", "store"]


def talk(store: Store, *texts: str, title: str = "") -> tuple[str, list[str]]:
    """A conversation of these messages; its id and theirs."""
    chat = store.create("", title=title, system_prompt="Be kind.")
    ids: list[str] = []
    for number, text in enumerate(texts):
        role = "assistant" if number % 2 else "user"
        parent = ids[-1] if ids else None
        ids.append(store.append("", chat.id, parent, role, text, op_id=str(number)).id)  # type: ignore[arg-type]
    return chat.id, ids


def titles(store: Store, **narrower: str) -> list[str]:
    return [hit.conversation.title for hit in store.shelf.list("", **narrower)]  # type: ignore[arg-type]


def test_pinned_conversations_come_first(store: Store) -> None:
    for title in "abc":
        talk(store, title=title)
    pinned = store.shelf.list("")[2].conversation
    assert store.shelf.pin("", pinned.id, True).pinned
    assert titles(store) == ["a", "c", "b"]
    store.shelf.pin("", pinned.id, False)
    assert titles(store) == ["c", "b", "a"]


def test_folders_hold_conversations_and_leave_them_when_removed(store: Store) -> None:
    chat_id, _ = talk(store, "x", title="x")
    talk(store, "y", title="y")
    work = store.shelf.make_folder("", "  Work \n stuff ")
    store.shelf.move("", chat_id, work.id)
    assert [(f.name, f.conversations) for f in store.shelf.folders("")] == [("Work stuff", 1)]
    assert titles(store, folder_id=work.id) == ["x"]
    assert titles(store) == ["y", "x"]
    for name in ("", " ", "WORK stuff"):
        with pytest.raises(BadValue):
            store.shelf.make_folder("", name)
    store.shelf.rename_folder("", work.id, "work STUFF")
    with pytest.raises(NotFound):
        store.shelf.move("bob", chat_id, work.id)
    with pytest.raises(NotFound):
        store.shelf.remove_folder("bob", work.id)
    store.shelf.remove_folder("", work.id)
    assert store.get("", chat_id).folder_id is None


def test_a_deleted_conversation_comes_back_whole_where_it_stood(store: Store) -> None:
    chat_id, ids = talk(store, "Why? \ud83d", "Because. \x00", title="\udc00 odd")
    other = store.append("", chat_id, ids[0], "assistant", "", op_id="other", status="streaming")
    store.finish(other.id, "Who knows?", "error", STATS, "It broke.")
    store.set_head("", chat_id, ids[1])
    folder = store.shelf.make_folder("", "F")
    store.shelf.move("", chat_id, folder.id)
    before = store.shelf.tree("", chat_id), store.path("", chat_id), store.get("", chat_id)
    talk(store, "later")

    store.delete("", chat_id)
    assert len(store.list("")) == 1
    with pytest.raises(NotFound):
        store.path("", chat_id)
    assert [(d.conversation_id, d.title) for d in store.shelf.deleted("")] == [(chat_id, "\udc00 odd")]
    with pytest.raises(NotFound):
        store.shelf.restore("bob", chat_id)
    store.shelf.restore("", chat_id)

    assert (store.shelf.tree("", chat_id), store.path("", chat_id), store.get("", chat_id)) == before
    assert [c.id for c in store.list("")][1] == chat_id
    assert store.append("", chat_id, ids[1], "user", "again", op_id="0").id == ids[0]  # operations are known again
    with pytest.raises(NotFound):
        store.shelf.restore("", chat_id)


def test_a_conversation_comes_back_without_a_folder_that_is_gone(store: Store) -> None:
    chat_id, _ = talk(store, "x")
    folder = store.shelf.make_folder("", "F")
    store.shelf.move("", chat_id, folder.id)
    store.delete("", chat_id)
    store.shelf.remove_folder("", folder.id)
    assert store.shelf.restore("", chat_id).folder_id is None


def test_old_deletions_become_final_one_by_one_and_what_is_left_soon(
    store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        store.delete("", talk(store, f"text {number}")[0])
    clock.now += KEPT_S + 1
    monkeypatch.setattr(shelf, "PURGE_S", 1e-9)
    monkeypatch.setattr(shelf, "PURGE_AGAIN_S", 0.0)
    left = []
    store.shelf.sweep()
    for _ in range(4):
        left.append([item.title for item in store.shelf.deleted("")])
        store.shelf.revision("")
    assert left == [["text 2", "text 1"], ["text 2"], [], []]


def test_messages_come_back_only_where_there_is_room(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trash, "MOST_CHARACTERS", 10)
    chat_id, (first,) = talk(store, "12345678")
    store.delete_message("", first)
    second = store.append("", chat_id, None, "user", "abc", op_id="2").id
    with pytest.raises(BadValue):
        store.shelf.restore("", first)
    assert [message.id for message in store.path("", chat_id)] == [second]
    store.delete_message("", second)
    store.shelf.restore("", first)
    assert [message.id for message in store.path("", chat_id)] == [first]


def test_deletions_are_final_after_a_day_or_when_erased(store: Store, clock: Clock) -> None:
    first, _ = talk(store, "x")
    second, ids = talk(store, "y", "z")
    store.delete("", first)
    clock.now += KEPT_S / 2
    store.delete_message("", ids[1])
    store.delete("", second)
    clock.now += KEPT_S / 2 + 1
    store.shelf.sweep()
    with pytest.raises(NotFound):
        store.shelf.restore("", first)
    with pytest.raises(NotFound):
        store.shelf.erase("bob", second)
    store.shelf.erase("", second)
    with pytest.raises(NotFound):
        store.shelf.erase("", second)
    assert store.shelf.deleted("") == ()
    with store._database.read() as connection:
        for table in ("deletions", "deleted_rows", "messages", "message_texts"):
            assert connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,), table


def test_what_was_deleted_or_edited_away_is_in_no_file_after_the_next_sweep(tmp_path: Path, clock: Clock) -> None:
    with closing(Store(tmp_path / "snug.db", now=lambda: clock.now)) as store:

        def held(text: str) -> list[str]:
            return [path.name for path in tmp_path.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]

        for text in ("erased", "a day ago", "edited away"):
            chat_id, ids = talk(store, f"word {text}")
            if text == "edited away":
                store.edit("", ids[0], "harmless")
                store.rename("", chat_id, "harmless")
            else:
                store.delete("", chat_id)
            if text == "erased":
                store.shelf.erase("", chat_id)
            assert held(f"word {text}"), "SQLite's log keeps old pages"
        clock.now += KEPT_S + 1
        with store._database.read() as reader:
            assert reader.execute("SELECT count(*) FROM messages").fetchone()
            store.shelf.sweep()
            assert held("word erased"), "nobody waits for who reads"
        store.shelf.sweep()
        assert [held(f"word {text}") for text in ("erased", "a day ago", "edited away")] == [[], [], []]
        assert store.get("", chat_id).title, "what was not deleted is there"


def test_what_is_erased_is_swept_soon(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelf, "PURGE_AGAIN_S", 0.0)
    chat_id, _ = talk(store, "x")
    store.delete("", chat_id)
    store.shelf.sweep()
    store.shelf.erase("", chat_id)
    swept: list[bool] = []
    monkeypatch.setattr(store.shelf, "sweep", lambda: swept.append(True))
    store.shelf.revision("")
    assert swept


def test_large_conversations_of_a_person_are_looked_at_one_at_a_time(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shelf, "LARGE_BYTES", 10)
    monkeypatch.setattr(shelf, "LARGE_S", 0.01)
    small, _ = talk(store, "x")
    large, _ = talk(store, "xy" * 5, "\U0001f600")
    assert [store.shelf.size(*asked) for asked in (("", large), ("ben", large), ("", "none"))] == [14, 0, 0]
    with store.shelf.alone_if_large("", large):
        with store.shelf.alone_if_large("", small), store.shelf.alone_if_large("", "none"):
            pass
        with pytest.raises(Busy), store.shelf.alone_if_large("", large):
            pass
    with store.shelf.alone_if_large("", large):
        pass


def test_deleted_messages_come_back_with_what_was_on_show(store: Store) -> None:
    chat_id, ids = talk(store, "Why?", "Because.", "Thanks", "Welcome")
    before = store.shelf.tree("", chat_id)
    store.delete_message("", ids[1])
    assert [m.id for m in store.path("", chat_id)] == ids[:1]
    store.append("", chat_id, ids[0], "assistant", "Other", op_id="9")
    assert store.shelf.restore("", ids[1]).head_id == ids[3]
    assert [m.content for m in store.path("", chat_id)] == ["Why?", "Because.", "Thanks", "Welcome"]
    assert len(store.path("", chat_id)[1].siblings) == 2
    assert store.shelf.tree("", chat_id).messages[:4] == before.messages


def test_messages_do_not_come_back_where_nothing_is_left_to_follow(store: Store) -> None:
    chat_id, ids = talk(store, "Why?", "Because.", "Thanks")
    store.delete_message("", ids[2])
    store.delete_message("", ids[0])
    with pytest.raises(StaleView):
        store.shelf.restore("", ids[2])
    store.shelf.restore("", ids[0])
    store.shelf.restore("", ids[2])
    assert [m.id for m in store.path("", chat_id)] == ids


def test_a_branch_is_a_copy_up_to_a_message(store: Store) -> None:
    chat_id, ids = talk(store, "Why?", "Because.", "Thanks", title="Sky")
    branch = store.shelf.branch("", ids[1])
    assert (branch.title, branch.system_prompt) == ("Sky (branch)", "Be kind.")
    path = store.path("", branch.id)
    assert [(m.role, m.content) for m in path] == [("user", "Why?"), ("assistant", "Because.")]
    assert not {m.id for m in path} & set(ids)
    store.edit("", path[0].id, "changed")
    assert store.path("", chat_id)[0].content == "Why?"
    assert store.list("")[0].id == branch.id
    with pytest.raises(NotFound):
        store.shelf.branch("bob", ids[1])


def test_every_change_of_a_list_changes_its_revision_and_others_lists_do_not(store: Store) -> None:
    chat_id, ids = talk(store, "Why?", "Because.")
    folder = store.shelf.make_folder("", "F")
    seen = [store.shelf.revision("")]
    bob = store.shelf.revision("bob")
    for change in (
        lambda: store.rename("", chat_id, "x"),
        lambda: store.shelf.pin("", chat_id, True),
        lambda: store.shelf.move("", chat_id, folder.id),
        lambda: store.shelf.rename_folder("", folder.id, "G"),
        lambda: store.append("", chat_id, ids[1], "user", "More", op_id="5"),
        lambda: store.delete_message("", ids[1]),
        lambda: store.shelf.branch("", ids[0]),
        lambda: store.shelf.remove_folder("", folder.id),
        lambda: store.delete("", chat_id),
        lambda: store.shelf.restore("", chat_id),
        lambda: store.shelf.add("", [Tree("in", ())]),
    ):
        change()
        seen.append(store.shelf.revision(""))
    assert len(set(seen)) == len(seen)
    assert store.shelf.revision("bob") == bob


def test_imported_conversations_stand_where_their_time_says(store: Store, clock: Clock) -> None:
    clock.now = 1000.0
    talk(store, title="thousand")
    clock.now = 2000.0
    talk(store, title="two thousand")
    clock.now = 3000.0
    message = (TreeMessage(None, "user", "x"),)
    store.shelf.add("", [
        Tree("old", message, 0, updated_at=5.0), Tree("between", message, 0, updated_at=1500.0),
        Tree("future", message, 0, updated_at=9e9), Tree("older", message, 0, updated_at=4.0),
    ])  # fmt: skip
    assert titles(store) == ["future", "two thousand", "between", "thousand", "old", "older"]


def test_an_incognito_conversation_never_reaches_the_disk(tmp_path: Path) -> None:
    with closing(Store(tmp_path / "snug.db")) as store:
        chat = store.create("", incognito=True, title="given", system_prompt="silentprompt")
        question = store.append("", chat.id, None, "user", "confidential question", op_id="1")
        reply = store.append("", chat.id, question.id, "assistant", "", op_id="2", status="streaming")
        store.journal(reply.id, "confidential")
        store.finish(reply.id, "confidential answer", "complete", STATS)
        store.edit("", question.id, "confidential edit")
        branch = store.shelf.branch("", reply.id)
        store.delete_message("", reply.id)
        store.shelf.restore("", reply.id)
        store.rename("", chat.id, "confidential title")
        assert [m.content for m in store.path("", chat.id)] == ["confidential edit", "confidential answer"]
        assert incognito.is_incognito(branch.id)
        assert store.list("") == store.list("", "confidential") == []
        assert store.shelf.tree("", chat.id).system_prompt == "silentprompt"
        for attempt in (store.shelf.pin, store.shelf.move):
            with pytest.raises(BadValue):
                attempt("", chat.id, None)  # type: ignore[arg-type]
        store._database.backup_if_due()
        for file in tmp_path.rglob("*"):
            if file.is_file():
                assert b"confidential" not in file.read_bytes(), file
                assert b"silentprompt" not in file.read_bytes(), file
        store.delete("", branch.id)
        with pytest.raises(NotFound):
            store.get("", branch.id)
        with pytest.raises(NotFound):
            store.shelf.restore("", branch.id)
        assert store.get("", chat.id).title == "confidential title"
    with closing(Store(tmp_path / "snug.db")) as again, pytest.raises(NotFound):
        again.get("", chat.id)


def test_an_incognito_conversation_ends_when_no_page_looks_at_it(store: Store) -> None:
    now = 0.0
    store._databases._clock = lambda: now
    left, seen = store.create("", incognito=True), store.create("", incognito=True)
    now = incognito.UNSEEN_S - 1
    store.shelf.see(seen.id)
    now = incognito.UNSEEN_S + 1
    store.shelf.sweep()
    with pytest.raises(NotFound):
        store.get("", left.id)
    assert store.get("", seen.id).id == seen.id


def test_incognito_conversations_together_take_so_much_memory_and_no_more(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "MOST_MEMORY_BYTES", 4 * MiB)
    made = [store.create(owner, system_prompt="x" * MiB, incognito=True) for owner in ("", "ana", "cy")]
    with pytest.raises(StoreFailed, match=r"incognito conversations hold 4\.00 MiB already"):
        for _ in range(3):
            store.create("ben", system_prompt="x" * MiB, incognito=True)
    assert store.get("", made[0].id).system_prompt == "x" * MiB
    assert store.create("ben", system_prompt="x" * MiB).id, "the disk has room"
    store.delete("", made[0].id)
    assert store.create("ben", system_prompt="x" * MiB, incognito=True).id


def test_nobody_takes_all_the_memory_of_incognito_conversations(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "MOST_MEMORY_BYTES", 4 * MiB)
    chat = store.create("ben", incognito=True)
    message = store.append("ben", chat.id, None, "user", "words and " * 20_000, op_id="1")
    with pytest.raises(StoreFailed, match="more than is left for everybody's"):
        for _ in range(100):
            store.shelf.branch("ben", message.id)
    with pytest.raises(StoreFailed, match="more than is left"):
        store.edit("ben", message.id, "more " * 100_000)
    anas = store.create("ana", incognito=True)
    assert store.append("ana", anas.id, None, "user", "x" * 200_000, op_id="1").content
    assert store.create("ben").id, "the disk has room"


def test_a_branch_of_an_incognito_conversation_ends_likewise(store: Store) -> None:
    now = 0.0
    store._databases._clock = lambda: now
    chat = store.create("", incognito=True)
    message = store.append("", chat.id, None, "user", "A secret", op_id="1")
    branch = store.shelf.branch("", message.id)
    now = incognito.UNSEEN_S + 1
    store.shelf.sweep()
    with pytest.raises(NotFound):
        store.get("", branch.id)


def test_deleted_text_leaves_the_search_index_too(store: Store, clock: Clock) -> None:
    kept, gone = "ordinary words ", "\u0298\u02a2\u0278\u029e" * 3
    talk(store, kept * 5)
    secret, _ = talk(store, gone)
    for number in range(20):
        talk(store, kept + str(number))

    def indexed(text: str) -> bool:
        with store._database.read() as connection:
            blocks = connection.execute("SELECT block FROM message_texts_data").fetchall()
        return any(text.encode() in bytes(block) for (block,) in blocks)

    assert indexed(gone[1:3])
    store.delete("", secret)
    clock.now += KEPT_S + 1
    store.shelf.sweep()
    assert not indexed(gone[1:3])
    assert len(store.shelf.list("", "ordinary")) == 21


def test_a_search_index_that_cannot_be_rewritten_now_stops_neither_start_nor_page(
    store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> bool:
        raise sqlite3.OperationalError("database or disk is full")

    chat_id, _ = talk(store, "x")
    store.delete("", chat_id)
    clock.now += KEPT_S + 1
    with monkeypatch.context() as patch:
        patch.setattr(shelf, "forget", full)
        store.shelf.sweep()
    stages: list[str] = [store.shelf._forgets]
    store.shelf.sweep()
    assert [*stages, store.shelf._forgets] == ["begin", "done"]


def test_the_first_version_of_the_file_opens_with_nothing_lost(tmp_path: Path) -> None:
    path = tmp_path / "snug.db"
    with closing(sqlite3.connect(path)) as old:
        old.executescript(MIGRATIONS[0])
        old.execute("INSERT INTO conversations VALUES ('c', '', 'Titled', 1, 'chat', 'Be kind.', 'm2', 5.0, 6.0, 3)")
        rows = [
            ("m1", None, "user", "Why is it blue?", "complete"),
            ("m2", "m1", "assistant", b"half \xed\xa0\xbd \x00 Rayleigh", "complete"),
            ("m3", "m1", "assistant", "cut off by a cra", "streaming"),
        ]
        old.executemany(
            "INSERT INTO messages (id, conversation_id, owner, parent_id, role, content, created_at, status, op_id)"
            " VALUES (?1, 'c', '', ?2, ?3, ?4, 5.5, ?5, ?1)",
            rows,
        )
        old.execute("INSERT INTO notebooks VALUES ('', 'notes')")
        old.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        old.execute("PRAGMA user_version = 1")
        old.commit()
    with closing(Store(path)) as store:
        assert [m.content for m in store.path("", "c")] == ["Why is it blue?", "half \ud83d \x00 Rayleigh"]
        assert store.get("", "c").system_prompt == "Be kind."
        assert store.message("", "m3").status == "interrupted"
        assert store.notebooks.text("") == "notes"
        for query in ("blue", "rayleigh", "\ud83d \x00", "cut off", "Titl"):
            assert [c.id for c in store.list("", query)] == ["c"], query
        store.delete("", "c")
        store.shelf.restore("", "c")
    assert (tmp_path / "backups" / "snug-version-1.db").exists()
    with closing(Store(path)) as again:
        assert len(again.path("", "c")) == 2


def test_ten_thousand_conversations_are_listed_looked_after_and_found_at_once(store: Store) -> None:
    message = "lorem ipsum dolor sit amet " * 10
    store.shelf.add("", (
        Tree(f"Title {n}", tuple(
            TreeMessage(place - 1 if place else None, "user", f"{message} {n}-{place}") for place in range(4)
        ), 3, updated_at=float(n)) for n in range(10_000)
    ))  # fmt: skip
    folder = store.shelf.make_folder("", "F")
    store.shelf.move("", store.list("")[0].id, folder.id)

    def milliseconds(work: object, times: int = 5) -> float:
        best = []
        for _ in range(times):
            started = time.perf_counter()
            work()  # type: ignore[operator]
            best.append(time.perf_counter() - started)
        return min(best) * 1000

    took = {
        "list": milliseconds(lambda: store.shelf.list("", limit=100)),
        "pulse": milliseconds(lambda: store.shelf.revision("")),
        "folders": milliseconds(lambda: store.shelf.folders("")),
        "in a folder": milliseconds(lambda: store.shelf.list("", folder_id=folder.id)),
        "found": milliseconds(lambda: store.shelf.list("", "7777-2")),
        "found nowhere": milliseconds(lambda: store.shelf.list("", "nowhere at all")),
        "two characters": milliseconds(lambda: store.shelf.list("", "qz")),
        "everywhere": milliseconds(lambda: store.shelf.list("", "lorem", limit=100)),
    }
    print({name: round(value, 2) for name, value in took.items()})
    limits = {"list": 30, "pulse": 5, "folders": 30, "in a folder": 30, "found": 300, "found nowhere": 200,
              "two characters": 1500, "everywhere": 300}  # fmt: skip
    assert {name: value for name, value in took.items() if value > limits[name]} == {}


def test_databases_close_twice(tmp_path: Path) -> None:
    store = Store(tmp_path / "snug.db")
    store.create("", incognito=True)
    assert isinstance(store._databases, Databases)
    store.close()
    store.close()


def test_no_conversation_has_an_id_of_half_a_character(store: Store) -> None:
    with store.shelf.alone_if_large("", "\ud800"):
        assert store.shelf.size("", "\ud800") == 0
