"""Files of conversations → trees: whose file it is, told by its shape, and each conversation read whole or not at all.

Snug's own JSON, histories of text-generation-webui, chats of SillyTavern, ShareGPT, lists of messages as OpenAI's API
takes them, and the export of ChatGPT; JSON or one JSON a line. foreign.py knows the others' shapes. Nothing is stored
here.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from modules.attachments.extracted import (
    MAX_ABOUT_CHARACTERS,
    MAX_CHARACTERS,
    MAX_FILES,
    clean_name,
    clean_text,
)
from modules.attachments.extracting import Read as ReadAttachment
from modules.chat import foreign
from modules.chat.aside import MOST_BASE64, is_reference
from modules.chat.exporting import FORMAT
from modules.chat.foreign import Unreadable
from modules.chat.rows import to_stats
from modules.chat.setup_fields import SetupFields
from modules.chat.trees import MOST_CHARACTERS, MOST_OF_A_SYSTEM_PROMPT, Tree, TreeFile, TreeMessage
from modules.errors import BadAttachment
from modules.few import FIRST_FAULT
from modules.messages import FileKind, MessageStatus, ReplyStats, Role

_MOST = 1e15  # of any figure about a reply; nothing that is no number is less
_MOST_TOLD, _LONGEST_TOLD = 20, 1000  # sentences about a reply, and characters of one: each is looked up in a language
# Values take many times the bytes that they are written with, and nobody's request moves while they are made. A file of
# 128 MiB, the largest that is taken, has these where each of its messages has a hundred characters.
MOST_OBJECTS, MOST_VALUES, MOST_LINES = 2_000_000, 12_000_000, 1_000_000
_LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"  # as splitlines counts them
# Of one file, which is read while nobody's request moves much; of one conversation foreign.MOST_MESSAGES.
MOST_MESSAGES = 500_000
LINES_TRIED = 5  # before a file counts as one JSON object a line
_TOO_MANY_PARTS = "It has too many parts: millions of lists, objects or values."
FORMATS = (
    "Snug's own JSON, text-generation-webui, SillyTavern, ShareGPT, OpenAI messages, and ChatGPT's conversations.json"
)
MAX_TITLE, MAX_FOLDER = 200, 80  # characters, as the page takes them
# Seconds that a calendar can show.
Moment = Annotated[float | None, Field(ge=-6e10, le=1e11, allow_inf_nan=False)]


@dataclass(frozen=True, slots=True)
class Skipped:
    """A conversation that was not taken: `where` it stands in the file, and why."""

    where: str
    why: str


@dataclass(frozen=True, slots=True)
class Read:
    """What a file holds. `notes` are sentences about what was left out of a conversation that was taken."""

    trees: tuple[Tree, ...]
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()


class _File(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)
    name: str = Field(max_length=1000)
    kind: FileKind
    size_bytes: int = Field(default=0, ge=0, le=10**15)
    about: str = Field(default="", max_length=MAX_ABOUT_CHARACTERS)
    cut: str = Field(default="", max_length=MAX_ABOUT_CHARACTERS)
    text: str = Field(default="", max_length=MAX_CHARACTERS)
    picture: str = Field(default="", max_length=MOST_BASE64)


class _Message(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)
    parent: int | None = None
    role: Role
    content: str
    created_at: Moment = None
    status: MessageStatus = "complete"
    stats: dict[str, Any] | None = None
    error: str = ""
    attachments: list[_File] = Field(default=[], max_length=MAX_FILES)
    modified: str | None = None


class _Setup(SetupFields):
    model_config = ConfigDict(extra="ignore", strict=True)


class _Conversation(BaseModel):  # its mode is not taken: a file of conversations holds chats
    model_config = ConfigDict(extra="ignore", strict=True)
    title: str = ""
    messages: Annotated[list[_Message], FIRST_FAULT, Field(max_length=foreign.MOST_MESSAGES)]
    head: int | None = None
    renamed: bool = False
    system_prompt: str = ""
    created_at: Moment = None
    updated_at: Moment = None
    pinned: bool = False
    folder: str = ""
    setup: _Setup = _Setup()


@dataclass(slots=True)
class _Reading:
    """What has been read so far."""

    trees: list[Tree] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    messages: int = 0

    def take(self, where: str, read: Callable[[], foreign.Draft]) -> None:
        """Add what `read` gives; if it cannot, say where and why."""
        if self.messages > MOST_MESSAGES:
            return
        try:
            draft = read()
            if draft.tree.characters > MOST_CHARACTERS:
                raise Unreadable(f"It has more than {MOST_CHARACTERS:,} characters.")
            if len(draft.tree.system_prompt) > MOST_OF_A_SYSTEM_PROMPT:
                raise Unreadable(f"Its system prompt has more than {MOST_OF_A_SYSTEM_PROMPT:,} characters.")
            self.messages += len(draft.tree.messages)
            if self.messages > MOST_MESSAGES:
                raise Unreadable(f"The file has more than {MOST_MESSAGES:,} messages: split it.")
        except Unreadable as error:
            self.skipped.append(Skipped(where, str(error)))
            return
        self.trees.append(draft.tree)
        self.notes += [f"{where}: {note}" for note in draft.notes]


def read_file(text: str) -> Read:
    """All conversations of a file. What cannot be read is told in `skipped`; this never raises."""
    reading = _Reading()
    if _has_too_many_parts(text):  # nor line by line: all lines of one chat count together
        return Read((), (Skipped("the file", _TOO_MANY_PARTS),))
    try:
        whole = parse(text)
    except Unreadable as error:
        lines = _lines(text)
        if not lines:
            return Read((), (Skipped("the file", str(error)),))
        _read_lines(lines, reading)
    else:
        _read_whole(whole, reading)
    if not reading.trees and not reading.skipped:
        reading.skipped.append(Skipped("the file", "There is no conversation in it."))
    return Read(tuple(reading.trees), tuple(reading.skipped), tuple(reading.notes))


def parse(text: str) -> Any:
    """JSON that may say anything. Raises Unreadable with the place of what is wrong."""
    if not text.strip():
        raise Unreadable("It is empty.")
    if _has_too_many_parts(text):
        raise Unreadable(_TOO_MANY_PARTS)
    try:
        return json.loads(text.removeprefix("\ufeff"), parse_constant=_no_number)
    except json.JSONDecodeError as error:
        raise Unreadable(f"It is not JSON: {error.msg} in line {error.lineno}, column {error.colno}.") from error
    except RecursionError as error:
        raise Unreadable("It is nested too deeply.") from error
    except ValueError as error:  # a number of too many digits
        raise Unreadable(f"It is not JSON: {error}.") from error


def _has_too_many_parts(text: str) -> bool:
    return text.count("{") + text.count("[") > MOST_OBJECTS or text.count(",") > MOST_VALUES


def _no_number(name: str) -> float:
    raise Unreadable(f"It is not JSON: {name} is no number.")


def _lines(text: str) -> list[tuple[int, str]]:
    """The lines of a file that holds one JSON object in each, with their numbers; [] if it does not seem to."""
    if sum(map(text.count, _LINE_ENDS)) > MOST_LINES:
        return []
    lines = [(number, line) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    if len(lines) < 2:
        return []
    return lines if any(isinstance(_quietly(line), dict) for _, line in lines[:LINES_TRIED]) else []


def _quietly(line: str) -> Any:
    try:
        return parse(line)
    except Unreadable:
        return None


def _read_lines(lines: list[tuple[int, str]], reading: _Reading) -> None:
    """One JSON object a line: a chat of SillyTavern as a whole, else a conversation each."""
    first = _quietly(lines[0][1])
    if foreign.is_sillytavern(first):
        rest = (_line(number, line) for number, line in lines[1:])
        reading.take("the file", lambda: foreign.sillytavern(first, rest))
        return
    for number, line in lines:
        reading.take(f"line {number}", lambda line=line: _conversation(parse(line)))  # type: ignore[misc]


def _line(number: int, line: str) -> Any:
    try:
        return parse(line)
    except Unreadable as error:
        raise Unreadable(f"Line {number}: {error}") from error


def _read_whole(whole: Any, reading: _Reading) -> None:
    if isinstance(whole, dict) and "snug" in whole:
        version = whole["snug"]
        if version != FORMAT or not isinstance(whole.get("conversations"), list):
            why = f"It was written by another version of Snug (format {str(version)[:20]}, this Snug reads {FORMAT})."
            reading.skipped.append(Skipped("the file", why))
            return
        _read_each(whole["conversations"], _own, reading)
    elif isinstance(whole, list) and not foreign.is_messages(whole):
        _read_each(whole, _conversation, reading)
    else:
        reading.take("the file", lambda: _conversation(whole))


def _read_each(items: Iterable[Any], read: Callable[[Any], foreign.Draft], reading: _Reading) -> None:
    for number, item in enumerate(items, start=1):
        name = item.get("title") if isinstance(item, dict) else None
        where = f"conversation {number}" + (f" (“{name[:60]}”)" if isinstance(name, str) and name else "")
        reading.take(where, lambda item=item: read(item))  # type: ignore[misc]


def _conversation(value: Any) -> foreign.Draft:
    """One conversation of any shape but our own."""
    draft = foreign.read(value)
    if draft is None:
        raise Unreadable(f"It has no shape that Snug knows. It reads {FORMATS}.")
    return draft


def _own(value: Any) -> foreign.Draft:
    """One conversation as exporting.py writes it."""
    try:
        found = _Conversation.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        raise Unreadable(f"{'.'.join(map(str, first['loc'])) or 'It'}: {first['msg']}.") from error
    messages = tuple(_own_message(message, place) for place, message in enumerate(found.messages))
    if bool(messages) != (found.head is not None) or not (found.head is None or 0 <= found.head < len(messages)):
        raise Unreadable("head: there is no such message.")
    values = found.model_dump(exclude={"messages", "setup"}) | {
        "title": found.title[:MAX_TITLE], "folder": found.folder[:MAX_FOLDER],
    }  # fmt: skip
    return foreign.Draft(Tree(messages=messages, setup=found.setup.setup(), **values))


def _own_message(message: _Message, place: int) -> TreeMessage:
    if message.parent is not None and not 0 <= message.parent < place:
        raise Unreadable(f"messages.{place}.parent: a message answers one that comes before it.")
    return TreeMessage(
        message.parent, message.role, message.content, message.created_at, message.status,
        _stats(message.stats, place), message.error, tuple(_own_file(file) for file in message.attachments),
        message.modified,
    )  # fmt: skip


def _own_file(file: _File) -> TreeFile:
    """A file as Snug would have taken it: its name, text and picture are as hostile as any."""
    about, cut = clean_text(file.about), clean_text(file.cut)
    if file.kind == "picture":
        return _own_picture(file, cut)
    return TreeFile(clean_name(file.name), file.kind, file.size_bytes, about, clean_text(file.text), cut)


def _own_picture(file: _File, cut: str) -> TreeFile:
    """A picture as it stands there, or its reference: `drawn` makes it one of Snug's."""
    try:
        reference = is_reference(file.picture)
        data = file.picture.encode() if reference else base64.b64decode(file.picture, validate=True)
    except ValueError:
        data = b""
    return TreeFile(clean_name(file.name), "picture", file.size_bytes, "picture", cut=cut, picture=data)


def drawn(tree: Tree, draw: ReadAttachment) -> Tree:
    """`tree` with its pictures drawn anew; of one that is none the name stays, and all else of its message."""
    return replace(
        tree,
        messages=tuple(
            replace(message, attachments=tuple(_drawn(file, draw) for file in message.attachments))
            for message in tree.messages
        ),
    )


def _drawn(file: TreeFile, draw: ReadAttachment) -> TreeFile:
    if file.kind != "picture":
        return file
    try:
        taken = draw(file.name, file.picture) if file.picture else None
    except BadAttachment:
        taken = None
    if taken is None or taken.kind != "picture":
        return replace(file, picture=b"", cut="The picture itself was not in the file.")
    return replace(
        file, about=taken.about, width=taken.width, height=taken.height, media_type=taken.media_type,
        picture=taken.picture,
    )  # fmt: skip


def _stats(values: dict[str, Any] | None, place: int) -> ReplyStats | None:
    if values is None:
        return None
    kinds = ReplyStats.__annotations__
    for name, value in values.items():
        kind = cast("type", {"int": int, "float": (int, float), "str": str}.get(kinds.get(name, ""), object))
        if not isinstance(value, kind) or (isinstance(value, int | float) and not abs(value) < _MOST):
            raise Unreadable(f"messages.{place}.stats.{name}: no such figure.")
    told = values.get("told", ())
    if not isinstance(told, list | tuple) or not all(isinstance(sentence, str) for sentence in told):
        raise Unreadable(f"messages.{place}.stats.told: no list of sentences.")
    few = {"told": [sentence[:_LONGEST_TOLD] for sentence in told[:_MOST_TOLD]]}
    try:
        return to_stats({name: value for name, value in (values | few).items() if name in kinds})
    except TypeError as error:
        raise Unreadable(f"messages.{place}.stats: figures are missing.") from error
