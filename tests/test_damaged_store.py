"""What a crash, a failing disk or a hand leaves beside the store's file: it opens with what was saved, or says why."""

from __future__ import annotations

import random
import shutil
from contextlib import closing
from pathlib import Path

import pytest

from modules.chat.store import Store
from modules.errors import StoreFailed


def crashed(folder: Path) -> tuple[Path, list[str]]:
    """A store as a killed Snug leaves it, half of its messages in the journal alone; their texts in order."""
    path, copy = folder / "live" / "snug.db", folder / "crashed"
    path.parent.mkdir()
    texts = [f"message {number} " + "x" * 2000 for number in range(80)]
    with closing(Store(path)) as store:
        chat = store.create("", title="Kept")
        parent = None
        for number, text in enumerate(texts):
            if number == 40:
                with store._database.write() as connection:
                    connection.execute("UPDATE conversations SET renamed = 1")
                store._database._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            parent = store.append("", chat.id, parent, "user", text, op_id=str(number)).id
        shutil.copytree(path.parent, copy)
    return copy, texts


def journal(change: str, content: bytes) -> bytes | None:
    """The journal after a mishap; None where it is gone."""
    chance = random.Random(change)
    bad = bytearray(content)
    if change == "gone":
        return None
    if change == "empty":
        return b""
    if change == "zeroed":
        return bytes(len(content))
    if change == "text":
        return b"hello " * 1000
    if change.startswith("cut"):
        return content[: chance.randrange(len(content))]
    for _ in range(3):
        at = chance.randrange(len(bad) - 100)
        bad[at : at + 100] = chance.randbytes(100)
    return bytes(bad)


CUT, NOISE = [f"cut {n}" for n in range(8)], [f"noise {n}" for n in range(8)]
CHANGES = ["none", "gone", "empty", "zeroed", "text", *CUT, *NOISE]


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    return crashed(tmp_path_factory.mktemp("store"))


@pytest.mark.parametrize("shm", ["as it was", "gone", "noise"])
@pytest.mark.parametrize("change", CHANGES)
def test_whatever_became_of_the_journal_what_opens_is_a_beginning_of_what_was_saved(
    left: tuple[Path, list[str]], change: str, shm: str, tmp_path: Path
) -> None:
    folder, texts = left
    shutil.copytree(folder, tmp_path / "now")
    path = tmp_path / "now" / "snug.db"
    whole = path.with_name("snug.db-wal").read_bytes()
    assert len(whole) > 100_000
    new = whole if change == "none" else journal(change, whole)
    path.with_name("snug.db-wal").unlink() if new is None else path.with_name("snug.db-wal").write_bytes(new)
    if shm != "as it was":
        index = path.with_name("snug.db-shm")
        index.unlink()
        if shm == "noise":
            index.write_bytes(random.Random(1).randbytes(32768))
    before = path.read_bytes()
    try:
        with closing(Store(path)) as store:
            (chat,) = store.list("")
            found = [message.content for message in store.path("", chat.id)]
            store.append("", chat.id, None, "user", "and on", op_id="new")
            with store._database.read() as connection:
                assert connection.execute("PRAGMA quick_check").fetchone() == ("ok",)
    except StoreFailed as error:
        assert error.remedy
        assert path.read_bytes() == before
        return
    assert found == texts[: len(found)]
    assert len(found) == 80 if change == "none" else len(found) >= 40
