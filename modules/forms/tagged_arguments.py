"""Arguments of a tool that a model writes between tags: which there are, and in what form each. Pure; no grammar yet.

As chat templates write them strings stand as they are and all else is JSON, and so chat/reply_reading.py reads them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from modules.forms.tools import Tags

MOST_OPTIONAL = 64
"""How many arguments that may be left out can be held; the others are."""
_BORROWED = ("$defs", "definitions")


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument. `kind` "text": any; "words": one of `words`; "json": a value of the JSON schema `schema`."""

    key: str
    required: bool
    kind: Literal["text", "words", "json"]
    words: tuple[str, ...] = ()
    schema: str = ""


def arguments_of(schema: object, tags: Tags) -> tuple[Argument, ...]:
    """The arguments that the JSON schema of a tool's arguments names, in its order."""
    whole = schema if isinstance(schema, Mapping) else {}
    properties, required = whole.get("properties"), whole.get("required")
    named = properties if isinstance(properties, Mapping) else {}
    needed = set(map(str, required)) if isinstance(required, list) else set()
    borrowed = {name: whole[name] for name in _BORROWED if name in whole}
    found, optional = [], 0
    for key, one in [*named.items(), *((key, True) for key in sorted(needed - named.keys()))]:
        optional += key not in needed
        if _is_plain(key, tags) and (key in needed or optional <= MOST_OPTIONAL):
            found.append(_argument(key, key in needed, one, borrowed, tags))
    return tuple(found)


def _argument(key: str, required: bool, schema: object, borrowed: Mapping[str, Any], tags: Tags) -> Argument:
    own = schema if isinstance(schema, Mapping) else {}
    values = own.get("enum", [own["const"]] if "const" in own else None)
    if isinstance(values, list) and values and all(isinstance(value, str) for value in values):
        words = [value for value in values if _reads_as_itself(value, own.get("type") == "string", tags)]
        if words:
            return Argument(key, required, "words", tuple(dict.fromkeys(words)))
    if own.get("type") == "string":
        return Argument(key, required, "text")
    told = {**own, **borrowed} if isinstance(schema, Mapping) else schema
    return Argument(key, required, "json", schema=json.dumps(told))


def _is_plain(text: str, tags: Tags) -> bool:
    """Whether `text` comes out of tags as it went in."""
    marks = [mark for each in (tags.key_after, tags.value_after, tags.closing) if (mark := each.strip())]
    return text == text.strip() != "" and not any(mark in text for mark in marks)


def _reads_as_itself(text: str, typed: bool, tags: Tags) -> bool:
    """Whether a string between tags is read as that string; where no type says so, what is JSON is read as such."""
    if not _is_plain(text, tags):
        return False
    try:
        json.loads(text)
    except ValueError:
        return True
    return typed


@dataclass(frozen=True, slots=True)
class State:
    """What of a text's end begins a word: where signs lead, None where the text ends with one. Signs that would end
    what is banned are in `never`; all others lead to the first state.
    """

    leads: Mapping[str, int | None]
    never: str


def text_states(stop: str, banned: str) -> list[State]:
    """An automaton that reads any text up to the first `stop`, in which `banned` never stands ("" for nothing)."""
    words = [word for word in (stop, banned) if word]
    heads = sorted({word[:size] for word in words for size in range(len(word))}, key=len)
    states = []
    for head in heads:
        leads: dict[str, int | None] = {}
        never = ""
        for text in (head + sign for sign in sorted(set("".join(words)))):
            if text.endswith(stop):
                leads[text[-1]] = None
            elif banned and text.endswith(banned):
                never += text[-1]
            elif to := heads.index(next(end for end in _ends(text) if end in heads)):
                leads[text[-1]] = to
        states.append(State(leads, never))
    return states


def _ends(text: str) -> list[str]:
    return [text[start:] for start in range(len(text) + 1)]
