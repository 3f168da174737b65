"""Pictures of megabytes in conversations: as many as can be copied, deleted and exported, none of them held at once."""

from __future__ import annotations

import io
import random
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from modules.attachments.extracted import Extracted
from modules.attachments.picture import read_picture
from modules.chat import store as stores
from modules.chat import taking_in, trash
from modules.chat.store import Store
from modules.chat.trees import Tree, TreeFile, TreeMessage
from modules.engine.turns import Turns
from modules.errors import BadValue
from modules.messages import Conversation
from modules.units import MiB

PICTURE = random.Random(1).randbytes(MiB)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "snug.db")
    yield opened
    opened.close()


def send(store: Store, chat: Conversation, pictures: int, op_id: str) -> str:
    """A message with so many; its id."""
    taken = Extracted("picture", "", "picture", picture=PICTURE, media_type="image/png", width=9, height=9)
    files = [store.attached.keep("", "a.png", MiB, taken).id for _ in range(pictures)]
    return store.append("", chat.id, None, "user", "look", op_id=op_id, attachments=files).id


def test_pictures_go_and_come_back_one_at_a_time(store: Store) -> None:
    chat = store.create("")
    for number in range(3):
        send(store, chat, 5, str(number))
    tracemalloc.start()
    try:
        store.delete("", chat.id)
        store.shelf.restore("", chat.id)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 12 * MiB, "of 15 MiB, 20 in base64"
    back = [file.picture for message in store.shelf.tree("", chat.id).messages for file in message.attachments]
    assert back == [PICTURE] * 15


def test_a_conversation_holds_so_many_bytes_of_pictures(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (stores, trash):
        monkeypatch.setattr(module, "MOST_PICTURE_BYTES", 3 * MiB)
    chat = store.create("")
    first = send(store, chat, 2, "1")
    with pytest.raises(BadValue, match="of pictures"):
        send(store, chat, 2, "2")
    assert [message.id for message in store.path("", chat.id)] == [first], "nothing of it was kept"
    store.delete_message("", first)
    second = send(store, chat, 3, "3")
    with pytest.raises(BadValue, match="of pictures"):
        store.shelf.restore("", first)
    store.delete_message("", second)
    store.shelf.restore("", first)
    assert len(store.path("", chat.id)[0].attachments) == 2


def test_what_grows_when_it_is_drawn_anew_is_taken_as_far_as_a_conversation_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(taking_in, "MOST_PICTURE_BYTES", 2 * MiB)
    large = Extracted("picture", "", "picture", picture=PICTURE, media_type="image/png", width=9, height=9)
    drawing = taking_in._Drawing("", Drawer(large), Turns())  # type: ignore[arg-type]
    file = TreeFile("a.webp", "picture", 9, "picture", picture=b"small")
    tree = Tree("", (TreeMessage(None, "user", "look", attachments=(file,) * 3),), head=0)
    (drawn,) = drawing.all_of([tree], 9)
    first, second, third = drawn.messages[0].attachments
    assert first.picture == second.picture == PICTURE
    assert third.picture == b"" and third.cut


class Drawer:
    """Draws whatever it is given as one picture."""

    def __init__(self, made: Extracted) -> None:
        self._made = made

    def several(self) -> Drawer:
        return self

    def __enter__(self) -> Drawer:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __call__(self, name: str, data: bytes, *, most_side: int = 0) -> Extracted:
        return self._made


def test_a_picture_is_kept_in_as_much_as_an_import_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modules.attachments.picture.MAX_KEPT_BYTES", 100_000)
    noise = Image.frombytes("RGB", (400, 400), random.Random(2).randbytes(480_000))
    for form in ("PNG", "JPEG"):
        sink = io.BytesIO()
        noise.save(sink, form, quality=95)
        taken = read_picture(sink.getvalue(), "a", most_side=400)
        assert len(taken.picture) <= 100_000 < len(sink.getvalue())
        assert (taken.width, taken.height, taken.media_type) == (400, 400, "image/jpeg")
