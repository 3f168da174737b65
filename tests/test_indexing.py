"""A store that is older than searching: its index is built beside the work, and what lacks is told."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from modules.chat import indexing
from modules.chat.packing import fold
from modules.chat.schema import APPLICATION_ID, MIGRATIONS
from modules.chat.store import Store
from tests.test_host import until


def old_store(path: Path, messages: int, version: int = 2) -> None:
    """A file of before the search index, or of before indexing.py."""
    with closing(sqlite3.connect(path)) as old:
        old.create_function("fold", 1, fold)
        for script in MIGRATIONS[:version]:
            old.executescript(script)
        old.execute(
            "INSERT INTO conversations (id, owner, title, renamed, mode, system_prompt, head_id, created_at,"
            " updated_at, touched) VALUES ('c', '', 'Old', 1, 'chat', '', ?, 5.0, 6.0, 3)",
            (f"m{messages - 1}",),
        )
        old.executemany(
            "INSERT INTO messages (id, conversation_id, owner, parent_id, role, content, created_at, status)"
            " VALUES (?, 'c', '', ?, 'user', ?, ?, 'complete')",
            [(f"m{n}", f"m{n - 1}" if n else None, f"word number{n}.", 1000.0 + n) for n in range(messages)],
        )
        old.executescript(f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {version};")
        old.commit()


def finds(store: Store, query: str) -> bool:
    return bool(store.list("", query))


def test_a_small_old_store_is_searched_as_soon_as_it_is_open(tmp_path: Path) -> None:
    old_store(tmp_path / "snug.db", 500)
    with closing(Store(tmp_path / "snug.db")) as store:
        assert store.indexing.progress() is None
        assert finds(store, "number0.") and finds(store, "number499.")


def test_a_store_with_its_index_owes_nothing(tmp_path: Path) -> None:
    old_store(tmp_path / "snug.db", 5, version=6)
    with closing(Store(tmp_path / "snug.db")) as store:
        assert store.indexing.progress() is None and finds(store, "number0.")


def test_the_index_is_built_beside_the_work_newest_first_and_goes_on_after_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old_store(tmp_path / "snug.db", 1000)
    monkeypatch.setattr(indexing, "AT_ONCE_S", 0.0)
    monkeypatch.setattr(indexing, "PAUSE_S", 60.0)  # one step at a time, by hand
    with closing(Store(tmp_path / "snug.db")) as store:
        begun = store.indexing.progress()
        assert begun is not None and (begun.share, begun.before) == (0.0, 1999.0)
        assert not finds(store, "number999.")
        assert store.indexing._step()
        assert finds(store, "number999.") and finds(store, "number800.") and not finds(store, "number799.")
        fifth = store.indexing.progress()
        assert fifth is not None and (round(fifth.share, 3), fifth.before) == (0.2, 1799.0)
        # What happens meanwhile is in the index at once, and in it once.
        store.append("", "c", "m999", "user", "a fresh owl", op_id="1")
        store.edit("", "m10", "an edited otter")
        assert finds(store, "owl") and finds(store, "otter")
        store.delete_message("", "m998")
        assert not finds(store, "number999.")
        store.shelf.restore("", "m998")
    monkeypatch.setattr(indexing, "PAUSE_S", 0.0)
    with closing(Store(tmp_path / "snug.db")) as store:
        until(lambda: store.indexing.progress() is None)
        assert finds(store, "number0.") and finds(store, "otter") and not finds(store, "number10.")
        with store._database.read() as connection:
            twice = "SELECT count(*), count(DISTINCT rowid) FROM message_texts"
            assert connection.execute(twice).fetchone() == (1001, 1001)


def test_a_full_disk_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from modules.errors import StoreFailed

    old_store(tmp_path / "snug.db", 500)
    monkeypatch.setattr(indexing, "AT_ONCE_S", 0.0)
    monkeypatch.setattr(indexing, "PAUSE_S", 0.0)
    monkeypatch.setattr(indexing, "AGAIN_S", 0.01)
    step, failures = indexing.Indexing._step, [1, 1]

    def failing(self: indexing.Indexing) -> bool:
        if failures:
            failures.pop()
            raise StoreFailed("The disk is full.", remedy="Free some space.")
        return step(self)

    monkeypatch.setattr(indexing.Indexing, "_step", failing)
    with closing(Store(tmp_path / "snug.db")) as store:
        until(lambda: store.indexing.progress() is None)
        assert finds(store, "number0.") and not failures
