"""Pictures kept with their messages: through branches, deletions, undo, files and incognito chats."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path

import pytest

from modules.attachments.extracted import Extracted
from modules.attachments.extracting import Extractor
from modules.attachments.picture import read_picture
from modules.chat.attached import pictures_of
from modules.chat.exporting import to_json, to_markdown
from modules.chat.store import Store
from modules.chat.taking_in import take_in
from modules.errors import NotFound
from modules.messages import Message, Picture
from tests.store_rig import clock, store
from tests.test_pictures import halves, saved

__all__ = ["clock", "store"]

TAKEN = read_picture(saved(halves(), "PNG"), "a.png", most_side=100)
TEXT = Extracted("text", "words", "Text")


def ask(store: Store, *, incognito: bool = False) -> Message:
    """A question with a picture and a text."""
    chat = store.create("", incognito=incognito)
    files = [store.attached.keep("", name, 999, taken, incognito=incognito).id
             for name, taken in (("a.png", TAKEN), ("b.txt", TEXT))]  # fmt: skip
    return store.append("", chat.id, None, "user", "See?", op_id="1", attachments=files)


def pictures(store: Store, message: Message) -> tuple[Picture, ...]:
    return store.attached.filled("", pictures_of(store.message("", message.id).attachments))


def test_a_picture_comes_with_its_message_and_with_its_size_alone(store: Store) -> None:
    question = ask(store)
    file = question.attachments[0]
    assert (file.kind, file.width, file.height) == ("picture", 100, 50)
    assert pictures(store, question) == (TAKEN.as_picture(),)
    assert pictures_of(question.attachments) == (Picture(100, 50),)
    with pytest.raises(NotFound):
        store.attached.filled("somebody", pictures_of(question.attachments))
    with pytest.raises(NotFound):
        store.attached.picture("", question.attachments[1].id)


def test_it_lives_and_dies_with_its_message(store: Store, tmp_path: Path) -> None:
    question = ask(store)
    branch = store.shelf.branch("", question.id)
    copy = store.path("", branch.id)[0]
    store.delete_message("", question.id)
    with pytest.raises(NotFound):
        store.attached.filled("", pictures_of(question.attachments))
    store.shelf.restore("", question.id)
    assert pictures(store, question) == (TAKEN.as_picture(),)
    store.delete("", question.conversation_id)
    store.shelf.erase("", question.conversation_id)
    assert pictures(store, copy) == (TAKEN.as_picture(),)
    again = store.attached.again("", store.message("", copy.id))
    assert store.attached.filled("", pictures_of(again)) == (TAKEN.as_picture(),)


def test_incognito_leaves_nothing_on_the_disk(store: Store, tmp_path: Path) -> None:
    question = ask(store, incognito=True)
    assert pictures(store, question) == (TAKEN.as_picture(),)
    assert not any(TAKEN.picture[40:200] in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())


def test_snugs_json_carries_pictures_and_markdown_names_them(store: Store) -> None:
    question = ask(store)
    tree = store.shelf.tree("", question.conversation_id)
    assert "*Attached: a.png (picture, 100 × 50)*" in to_markdown(tree)
    (taken,) = take_in(store.shelf, "", to_json([replace(tree, system_prompt="Another")]), Extractor()).imported
    copy = store.path("", taken.id)[0]
    (picture,) = pictures(store, copy)
    assert (picture.width, picture.height) == (100, 50) and picture.data.startswith(b"\x89PNG")


@pytest.mark.parametrize("bad", ["", "no base64!", base64.b64encode(b"<script>").decode(),
                                 base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"x" * 99).decode()])  # fmt: skip
def test_a_file_with_a_ruined_picture_loses_the_picture_and_nothing_else(bad: str, store: Store) -> None:
    whole = json.loads(to_json([store.shelf.tree("", ask(store).conversation_id)]))
    whole["conversations"][0]["messages"][0]["attachments"][0]["picture"] = bad
    taken_in = take_in(store.shelf, "", json.dumps(whole), Extractor())
    assert taken_in.skipped == ()
    (taken,) = taken_in.imported
    file = store.path("", taken.id)[0].attachments[0]
    assert (file.name, file.width) == ("a.png", 0) and "not in the file" in file.cut
    assert pictures(store, store.path("", taken.id)[0]) == ()
