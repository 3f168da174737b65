"""Conversations from files come in once; large ones by a door of their own."""

from __future__ import annotations

import io
import json
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from modules.api import conversations
from modules.attachments.extracted import Extracted
from modules.attachments.extracting import Extractor, Read
from modules.attachments.picture import read_picture
from modules.chat import shelf, taking_in, trees
from modules.chat.exporting import to_json
from modules.chat.store import Store
from modules.chat.taking_in import TakenIn, take_in
from modules.chat.trees import Tree, TreeFile, TreeMessage
from modules.engine.turns import Turns
from modules.errors import BadAttachment, StoreFailed, Unauthorized
from modules.settings import Settings
from modules.units import MiB
from tests.store_rig import Clock, clock, store
from tests.test_api_attachments import client

__all__ = ["client", "clock", "store"]


def tree(*texts: str, title: str = "T", files: tuple[TreeFile, ...] = ()) -> Tree:
    roles = ("user", "assistant")
    said = [
        TreeMessage(number - 1 if number else None, roles[number % 2], text, attachments=() if number else files)  # type: ignore[arg-type]
        for number, text in enumerate(texts)
    ]
    return Tree(title, tuple(said), len(said) - 1 if said else None)


def take(store: Store, text: str, *, owner: str = "", only: list[str] | None = None) -> TakenIn:
    return take_in(store.shelf, owner, text, Extractor(), only=only)


def count(store: Store) -> int:
    return len(store.shelf.ids(""))


def test_the_same_file_again_adds_nothing_and_says_so(store: Store) -> None:
    text = to_json([tree("a", "b"), tree("a", "b", "c"), tree("\ud800", "half")])
    assert len(take(store, text).imported) == 3
    again = take(store, text)
    assert (again.imported, len(again.known), again.messages, count(store)) == ((), 3, 0, 3)
    assert json.loads(json.dumps(again.as_json()))["known"][0]["title"] == "T"


def test_what_is_exported_is_known_whatever_became_of_its_title_and_place(store: Store, clock: Clock) -> None:
    take(store, to_json([tree("a", "b", files=(TreeFile("n.txt", "text", 3, "Text", "abc"),))]))
    (ident,) = store.shelf.ids("")
    exported = to_json([store.shelf.tree("", ident)])
    clock.now += 100
    store.rename("", ident, "Another title")
    store.shelf.move("", ident, store.shelf.make_folder("", "Work").id)
    assert len(take(store, exported).known) == 1
    store.edit("", store.path("", ident)[1].id, "B")
    assert len(take(store, exported).imported) == 1


@pytest.mark.parametrize(
    "other",
    [
        tree("a", "B"),
        tree("a", "b", "c"),
        Tree("T", tree("a", "b").messages, 1, system_prompt="Be brief."),
        Tree("T", (*tree("a", "b").messages, TreeMessage(0, "assistant", "another version")), 1),
        tree("a", "b", files=(TreeFile("n.txt", "text", 3, "Text", "abc"),)),
        tree("a" * 300 + "x", "b"),
    ],
    ids=["a word", "one more", "system prompt", "a version", "a file", "a late difference"],
)
def test_what_differs_is_another_conversation(store: Store, other: Tree) -> None:
    take(store, to_json([tree("a", "b"), tree("a" * 300 + "y", "b")]))
    assert len(take(store, to_json([other])).imported) == 1


def test_only_what_is_as_large_is_read_whole(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    take(store, to_json([tree("a", "\ud800 another middle", "z"), tree("a", "long" * 100, "z")]))
    read: list[str] = []
    whole = store.shelf.tree
    monkeypatch.setattr(store.shelf, "tree", lambda owner, ident: read.append(ident) or whole(owner, ident))  # type: ignore[func-returns-value]
    assert len(take(store, to_json([tree("a", "short", "z")])).imported) == 1
    assert read == []
    assert len(take(store, to_json([tree("a", "\ud800 another middle", "z")])).known) == 1
    assert len(read) == 1


def test_one_that_stands_twice_in_a_file_comes_once_and_all_of_them_where_a_person_wants_it(store: Store) -> None:
    text = to_json([tree("a", "b"), tree("a", "b"), tree("c")])
    first = take(store, text)
    assert (len(first.imported), len(first.known)) == (2, 1)
    anyway = take(store, text, only=[item.digest for item in first.known])
    assert (len(anyway.imported), anyway.known, count(store)) == (1, (), 3)


def test_the_conversations_of_others_and_deleted_ones_do_not_count(store: Store) -> None:
    text = to_json([tree("a", "b")])
    take(store, text, owner="kim")
    (mine,) = take(store, text).imported
    store.delete("", mine.id)
    assert len(take(store, text).imported) == 1


async def test_a_conversation_of_more_than_ten_megabytes_comes_back(store: Store, client: httpx.AsyncClient) -> None:
    long = tree("ä" * (6 * MiB), "b")  # twelve megabytes
    answer = await client.post("/conversations", content=to_json([long]).encode())
    assert len(answer.json()["imported"]) == 1
    (ident,) = store.shelf.ids("")
    assert store.path("", ident)[0].content == long.messages[0].content
    known = (await client.post("/conversations", content=to_json([long]).encode())).json()["known"]
    anyway = await client.post("/conversations", params={"only": known[0]["digest"]}, content=to_json([long]).encode())
    assert (len(anyway.json()["imported"]), count(store)) == (1, 2)


async def test_the_door_is_bounded_and_leaves_nothing_behind(
    settings: Settings, client: httpx.AsyncClient, store: Store
) -> None:
    before = set(Path(settings.user_data_dir).iterdir())
    huge = await client.post("/conversations", content=b"x", headers={"content-length": str(450_000_001)})
    assert huge.status_code == 413 and "429" in huge.json()["error"]["message"]
    foreign = await client.post("/conversations", content=b"{}", headers={"origin": "http://evil.example"})
    assert foreign.status_code == 403
    broken = (await client.post("/conversations", content=b"\xff\xfe{")).json()
    assert broken["imported"] == [] and "not JSON" in broken["skipped"][0]["why"]
    assert set(Path(settings.user_data_dir).iterdir()) == before and count(store) == 0


def noise(seed: int) -> TreeFile:
    """A picture that no compression makes small."""
    sink = io.BytesIO()
    Image.frombytes("RGB", (200, 200), random.Random(seed).randbytes(120_000)).save(sink, "PNG")
    return TreeFile("noise.png", "picture", 9, "picture", "", "", 200, 200, "image/png", sink.getvalue())


async def test_a_conversation_comes_back_however_much_its_pictures_are(
    store: Store, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversations, "MOST_TEXT", 20_000)
    text = to_json([tree("See?", "Yes.", files=(noise(1), noise(2), noise(3)))]).encode()
    assert len(text) > 400_000
    assert len((await client.post("/conversations", content=text)).json()["imported"]) == 1
    (ident,) = store.shelf.ids("")
    kept = store.shelf.tree("", ident)
    assert [file.picture for file in kept.messages[0].attachments] == [noise(seed).picture for seed in (1, 2, 3)]
    again = (await client.post("/conversations", content=to_json([kept]).encode())).json()
    assert (again["imported"], len(again["known"])) == ([], 1)
    wordy = (await client.post("/conversations", content=to_json([tree("a" * 30_000)]).encode())).json()
    assert "Without its pictures" in wordy["problem"]["message"]


async def test_a_picture_that_is_set_aside_is_given_out_once(store: Store, client: httpx.AsyncClient) -> None:
    whole = json.loads(to_json([tree("See?", files=(noise(1),))]))
    (picture,) = whole["conversations"][0]["messages"][0]["attachments"]
    at = json.dumps(whole).index(picture["picture"])
    forged = [picture | {"picture": f"@{at}"}, picture | {"picture": "@7"}]
    whole["conversations"][0]["messages"][0]["attachments"] = [picture, *forged]
    assert len((await client.post("/conversations", content=json.dumps(whole))).json()["imported"]) == 1
    (ident,) = store.shelf.ids("")
    files = store.shelf.tree("", ident).messages[0].attachments
    assert [bool(file.picture) for file in files] == [True, False, False]


def pictured(color: str) -> TreeFile:
    sink = io.BytesIO()
    Image.new("RGB", (40, 20), color).save(sink, "PNG")
    taken = read_picture(sink.getvalue(), "image.png", most_side=100)
    return TreeFile("image.png", "picture", 9, taken.about, "", "", 40, 20, taken.media_type, taken.picture)


def test_pictures_tell_conversations_apart(store: Store) -> None:
    red, blue = (to_json([tree("See?", "Yes.", files=(pictured(color),))]) for color in ("red", "blue"))
    assert [len(take(store, text).imported) for text in (red, blue, red, blue)] == [1, 1, 0, 0]
    (ident, *_) = store.shelf.ids("")
    exported = to_json([store.shelf.tree("", ident)])
    assert len(take(store, exported).known) == 1, "what it was drawn as is what it is known by"


def test_pictures_of_a_file_are_drawn_by_a_process_that_can_be_killed_and_not_for_ever(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb = io.BytesIO()
    Image.new("L", (30_001, 1)).save(bomb, "PNG")
    files = (pictured("red"), replace(pictured("red"), picture=bomb.getvalue()))
    monkeypatch.setattr("modules.attachments.picture.read_picture", None)  # of this process: nobody calls it here
    (taken,) = take(store, to_json([tree("See?", "Yes.", files=files)])).imported
    good, bad = store.path("", taken.id)[0].attachments
    assert (good.width, bad.width) == (40, 0)
    assert "not in the file" in bad.cut
    monkeypatch.setattr(taking_in, "DRAW_S", -1.0)
    (taken,) = take(store, to_json([tree("See?", "No.", files=files)])).imported
    assert [file.width for file in store.path("", taken.id)[0].attachments] == [0, 0]


def test_an_import_of_many_pictures_gives_others_their_turn_between_them(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(taking_in, "STRETCH_S", -1.0)
    turns, drawing, ben_is_done = Turns(), threading.Event(), threading.Event()
    heard = []

    class Slow(Extractor):
        @contextmanager
        def several(self) -> Iterator[Read]:
            yield self.draw

        def draw(self, name: str, data: bytes, *, most_side: int = 0) -> Extracted:
            if drawing.is_set():
                heard.append(ben_is_done.wait(20))
            drawing.set()
            while not turns.wanted and not heard:
                time.sleep(0.001)
            raise BadAttachment("It is none.")

    def import_as(owner: str, text: str) -> None:
        take_in(store.shelf, owner, text, Slow(), turns=turns)

    pictures = to_json([tree("See?", files=(pictured("red"), pictured("blue")))])
    ana = threading.Thread(target=import_as, args=("ana", pictures))
    ana.start()
    assert drawing.wait(20)
    import_as("ben", to_json([tree("a", "b")]))
    ben_is_done.set()
    ana.join(40)
    assert heard == [True] and len(store.shelf.ids("ana")) == 1


def test_others_write_between_two_conversations_of_a_file_and_nothing_stays_of_one_that_fails(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shelf, "_AT_ONCE", 1)
    here = threading.get_ident()  # threads of other tests may still be asleep
    monkeypatch.setattr(time, "sleep", lambda _: store.create("another") if threading.get_ident() == here else None)
    text = to_json([tree("one", "two"), tree("three"), tree("four")])
    assert len(take(store, text).imported) == 3
    assert len(store.shelf.list("another")) == 3
    written = trees.write_tree

    def failing(*arguments: Any) -> Any:
        if arguments[2].messages[0].content == "seven":
            raise StoreFailed("The disk is full.")
        return written(*arguments)

    monkeypatch.setattr(shelf, "write_tree", failing)
    with pytest.raises(StoreFailed):
        take(store, to_json([tree("five"), tree("six"), tree("seven")]))
    assert count(store) == 3


def test_of_who_comes_in_no_more_nothing_is_kept(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelf, "_stretches", lambda trees: iter([[one] for one in trees]))
    text, left = to_json([tree("a"), tree("b", "c")]), [True, True]

    def may() -> bool:
        """At the beginning, and for the first of the two."""
        return bool(left) and left.pop()

    with pytest.raises(Unauthorized):
        take_in(store.shelf, "ana", text, Extractor(), may=may)
    assert store.list("ana") == []
    assert len(take_in(store.shelf, "ana", text, Extractor()).imported) == 2
