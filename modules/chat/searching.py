"""Conversations by what is said in them, or stands in a file that came with a message.

Every word of a query must be there, as a part of any word, in any case and alphabet.

An index of trigrams names the messages that may hold the words; their folded text, kept beside it, decides. Words of
one or two characters have no trigram, so these texts are read through. Functions take a connection inside a
transaction.
"""

# ruff: noqa: S608 - only column lists and names of tables are put into SQL text, never a value

from __future__ import annotations

import re
import sqlite3
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from itertools import islice

from modules.chat.packing import fold, pack, unpack
from modules.chat.rows import LISTED, to_conversation
from modules.messages import Conversation
from modules.units import KiB

GRAM = 3
GRAMS_ASKED = 24  # of a word; the text decides anyway
PAGES_REWRITTEN = 64  # of the index in one step, each of some 4 KB
BEFORE, AFTER = 24, 90  # characters of a snippet around its hit
WHOLE_BYTES = 64 * KiB  # of a text that is read whole for its snippet: one may be of 16 million characters
MOST_SHIFTED = 10_000  # characters by which folding may lengthen a longer text, so that its snippet is looked for


@dataclass(frozen=True, slots=True)
class Snippet:
    """A piece of a message, in one line: what was found, and what stands around it."""

    before: str
    hit: str
    after: str


@dataclass(frozen=True, slots=True)
class Found:
    """A conversation that holds a query; the newest message that does, None if only the title does."""

    conversation: Conversation
    message_id: str | None = None
    snippet: Snippet | None = None


def forget(connection: sqlite3.Connection, *, begin: bool) -> bool:
    """Rewrite a piece of the index, so that the trigrams of deleted text leave the file. Whether more is to be done.

    `begin` takes on the whole index; later calls go on. FTS5's own "secure-delete" needs SQLite 3.42 to read the file.
    """
    more = False
    for index in ("message_texts", "attachment_texts"):
        before = connection.total_changes
        pages = -PAGES_REWRITTEN if begin else PAGES_REWRITTEN
        connection.execute(f"INSERT INTO {index} ({index}, rank) VALUES ('merge', ?)", (pages,))
        more = more or connection.total_changes - before >= 2  # as FTS5 documents it
    return more


def words_of(query: str) -> list[str]:
    """The words of a query, folded, each once; what stands between quotation marks is one word."""
    return list(dict.fromkeys(fold(quoted or word) for quoted, word in re.findall(r'"([^"]+)"|(\S+)', query)))


def find(
    connection: sqlite3.Connection, owner: str, query: str, limit: int, folder_id: str | None = None
) -> list[Found]:
    """The owner's conversations that hold all words of `query` in one message or in the title, last used first."""
    words = words_of(query)
    hits = {
        **_in_texts(connection, owner, words, limit, folder_id, _FILES),
        **_in_texts(connection, owner, words, limit, folder_id, _MESSAGES),
    }
    titled = _in_titles(connection, owner, words, limit, folder_id)
    marks = ", ".join("?" * (len(hits) + len(titled)))
    rows = connection.execute(
        f"SELECT {LISTED} FROM conversations WHERE id IN ({marks}) ORDER BY touched DESC, updated_at DESC LIMIT ?",
        [*hits, *titled, limit],
    ).fetchall()
    found = []
    for conversation in map(to_conversation, rows):
        hit = hits.get(conversation.id)
        snippet = _snippet(connection, hit, words) if hit else None
        found.append(Found(conversation, hit.message_id if hit else None, snippet))
    return found


@dataclass(frozen=True, slots=True)
class _Place:
    """Where texts are: their index, the text of a row as it was written, and what is joined to find it."""

    index: str
    text: str
    joined: str


@dataclass(frozen=True, slots=True)
class _Hit:
    """A row of an index that holds all words, and the message that it belongs to."""

    place: _Place
    row: int
    message_id: str


_MESSAGES = _Place("message_texts", "messages.content", "messages ON messages.sequence = message_texts.rowid")
_FILES = _Place(
    "attachment_texts",
    "attachments.name || char(10) || attachments.text",
    "attachments ON attachments.number = attachment_texts.rowid JOIN messages ON messages.id = attachments.message_id",
)


def _in_texts(
    connection: sqlite3.Connection,
    owner: str,
    words: list[str],
    limit: int,
    folder_id: str | None,
    place: _Place,
) -> dict[str, _Hit]:
    """Up to `limit` conversations → their newest message that holds all words, itself or in one file.

    Nobody else's text is read: the time that it takes would tell what stands there.
    """
    index = place.index
    grams = dict.fromkeys(gram for word in words for gram in _grams(word))
    holds = " AND ".join(f"instr({index}.text, ?)" for _ in words)
    conditions = [f"CASE WHEN messages.owner = ? THEN {holds} END"]
    values: list[object] = [pack(owner), *words]
    if grams:
        conditions.insert(0, f"{index} MATCH ?")
        values.insert(0, " AND ".join(f'"{gram.replace(chr(34), chr(34) * 2)}"' for gram in grams))
    if folder_id:
        conditions.append("conversation_id IN (SELECT id FROM conversations WHERE folder_id = ?)")
        values.append(folder_id)
    hits: dict[str, _Hit] = {}
    for conversation_id, message_id, row in connection.execute(
        f"""
        SELECT conversation_id, messages.id, {index}.rowid FROM {index} CROSS JOIN {place.joined}
        WHERE {" AND ".join(conditions)}
        ORDER BY {index}.rowid DESC
        """,
        values,
    ):
        hits.setdefault(conversation_id, _Hit(place, row, message_id))
        if len(hits) >= limit:
            break
    return hits


def _in_titles(
    connection: sqlite3.Connection, owner: str, words: list[str], limit: int, folder_id: str | None
) -> list[str]:
    """Up to `limit` ids of conversations whose titles hold all words."""
    condition = "".join(" AND instr(fold(title), ?)" for _ in words)
    rows = connection.execute(
        f"SELECT id FROM conversations WHERE owner = ? AND (?2 IS NULL OR folder_id = ?2){condition}"
        " ORDER BY touched DESC, updated_at DESC LIMIT ?",
        [pack(owner), folder_id, *words, limit],
    )
    return [row[0] for row in rows]


def _grams(word: str) -> list[str]:
    """Some trigrams of a word, spread over it."""
    every = list(dict.fromkeys(word[at : at + GRAM] for at in range(len(word) - GRAM + 1)))
    return list(islice(every, 0, None, -(-len(every) // GRAMS_ASKED))) if every else []


def _snippet(connection: sqlite3.Connection, hit: _Hit, words: list[str]) -> Snippet:
    """That of a hit. Of a long text only what stands near it is read; where that cannot be told, its beginning.

    Folding only lengthens: the hit stands at most as far before its place in the folded text as that is longer.
    """
    place, word = hit.place, words[0]
    size, at, shifted = connection.execute(
        f"SELECT length(CAST({place.text} AS BLOB)), instr({place.index}.text, ?) - 1,"
        f" length({place.index}.text) - length({place.text})"
        f" FROM {place.index} CROSS JOIN {place.joined} WHERE {place.index}.rowid = ?",
        (word, hit.row),
    ).fetchone()
    start, length = max(0, at - shifted - BEFORE - 1), shifted + BEFORE + len(word) + AFTER + 2
    if not 0 <= shifted <= MOST_SHIFTED:  # or SQLite counts no further than to a NUL
        start, length = 0, AFTER + 1
    piece = place.text if size <= WHOLE_BYTES else f"substr({place.text}, {start + 1}, {length})"
    (text,) = connection.execute(
        f"SELECT {piece} FROM {place.index} CROSS JOIN {place.joined} WHERE {place.index}.rowid = ?", (hit.row,)
    ).fetchone()
    if isinstance(text, bytes) and size > WHOLE_BYTES:
        text = text.decode("utf-8", "replace")
    return snippet_of(unpack(text), words)


def snippet_of(text: str, words: list[str]) -> Snippet:
    """The place in `text` where the first of the folded `words` is found."""
    start, end = _place(text, words[0])
    before = text[max(0, start - BEFORE) : start]
    if start > BEFORE:
        before = "…" + (before.split(None, 1)[-1] if " " in before.strip() else before)
    after = text[end : end + AFTER]
    return Snippet(
        _one_line(before), _one_line(text[start:end]), _one_line(after) + ("…" if end + AFTER < len(text) else "")
    )


def _place(text: str, word: str) -> tuple[int, int]:
    """Where `word`, folded, lies in `text`: folding can lengthen a text, never shorten it."""
    folded = fold(text)
    at = folded.find(word)
    if at < 0:
        return 0, 0
    if len(folded) == len(text):
        return at, at + len(word)
    lengths = range(len(text) + 1)

    def folded_to(length: int) -> int:
        return len(fold(text[:length]))

    return bisect_right(lengths, at, key=folded_to) - 1, bisect_left(lengths, at + len(word), key=folded_to)


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text)
