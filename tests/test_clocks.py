"""Clocks that jump: days forth and back, before 1970, beyond 2038. What is deleted stays had back, orders stay."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from modules.chat.exporting import to_json, to_markdown
from modules.chat.importing import read_file
from modules.chat.store import Store
from modules.chat.trash import KEPT_S
from modules.errors import NotFound
from modules.ui.views import thread_view
from tests.store_rig import Clock

DAY_S = 86_400.0
START = 1_800_000_000.0
JUMPS = {
    "a day back": START - DAY_S, "a day forth": START + DAY_S - 1, "1970": 0.0, "before 1970": -DAY_S * 400,
    "2038": 2.0**31 + 5, "2106": 2.0**32 + 5,
}  # fmt: skip


@pytest.mark.parametrize("now", JUMPS.values(), ids=JUMPS)
def test_after_a_jump_everything_is_there_in_order_and_can_be_written(now: float, tmp_path: Path) -> None:
    clock = Clock()
    with closing(Store(tmp_path / "snug.db", now=clock)) as store:
        first, second = store.create("", title="first"), store.create("", title="second")
        question = store.append("", first.id, None, "user", "Why?", op_id="1")
        clock.now = now
        reply = store.append("", first.id, question.id, "assistant", "Because.", op_id="2", status="streaming")
        store.finish(reply.id, "Because of that.", "complete", None)
        other = store.append("", first.id, question.id, "assistant", "Another.", op_id="3")
        assert [message.content for message in store.path("", first.id)] == ["Why?", "Another."]
        assert store.path("", first.id)[1].siblings == (reply.id, other.id)
        assert [chat.title for chat in store.list("")] == ["first", "second"]
        store.rename("", second.id, "second, later")
        tree = store.shelf.tree("", first.id)
        assert "Because of that." in to_json([tree]) and "Another." in to_markdown(tree)
        assert read_file(to_json([tree])).skipped == ()
        thread_view(store.get("", first.id), store.path("", first.id), None)
        store.backup_if_due()
    with closing(Store(tmp_path / "snug.db", now=clock)) as again:
        assert len(again.path("", first.id)) == 2


@pytest.mark.parametrize("now", [now for now in JUMPS.values() if now < START + KEPT_S], ids=lambda now: f"{now:.0f}")
def test_what_was_deleted_can_be_had_back_after_a_jump_within_its_day_or_back(now: float, tmp_path: Path) -> None:
    clock = Clock()
    with closing(Store(tmp_path / "snug.db", now=clock)) as store:
        chat = store.create("", title="precious")
        store.append("", chat.id, None, "user", "text", op_id="1")
        store.delete("", chat.id)
        clock.now = now
        store.create("", title="another")
        assert [deletion.title for deletion in store.shelf.deleted("")] == ["precious"]
        store.shelf.restore("", chat.id)
        assert len(store.path("", chat.id)) == 1


def test_a_jump_beyond_the_day_ends_what_was_deleted_and_nothing_else(tmp_path: Path) -> None:
    clock = Clock()
    with closing(Store(tmp_path / "snug.db", now=clock)) as store:
        gone, kept = store.create("", title="gone"), store.create("", title="kept")
        store.delete("", gone.id)
        clock.now = START + KEPT_S + 1
        store.shelf.sweep()
        with pytest.raises(NotFound):
            store.shelf.restore("", gone.id)
        assert [chat.id for chat in store.list("")] == [kept.id]
