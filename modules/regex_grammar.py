"""Regular expressions as GBNF grammars, since other servers' clients hold replies by them. The whole reply matches.

Pure. Written out are characters, classes, groups, alternatives and repetitions; what looks at the text around a place
(look-around, \\b, \\1) is refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from re import _parser  # type: ignore[attr-defined]  # the one reader of Python's expressions; nothing public has it
from typing import Any

from modules.errors import BadGrammar

MAX_LENGTH = 8192
_CLASSES = {"DIGIT": "0-9", "WORD": "0-9A-Za-z_", "SPACE": r" \t\n\r\x0B\x0C"}
_ENDS = {"AT_BEGINNING", "AT_BEGINNING_STRING", "AT_END", "AT_END_STRING"}


def grammar_of_regex(pattern: str, param: str) -> str:
    """The GBNF grammar of all texts that match `pattern`. Raises BadGrammar, naming `param`."""
    if len(pattern) > MAX_LENGTH:
        raise _bad(f"it is longer than {MAX_LENGTH:,} characters", param)
    try:
        parsed = _parser.parse(pattern)
        if parsed.state.flags & ~re.UNICODE:
            raise _bad("flags such as (?i) are not known here", param)
        return f"root ::= {_sequence(_without_ends(list(parsed)), param)}"
    except (re.error, OverflowError) as error:
        raise _bad(str(error), param) from error
    except RecursionError as error:
        raise _bad("it nests too deeply", param) from error


def grammar_of_choices(choices: Sequence[str]) -> str:
    """The GBNF grammar of exactly these texts."""
    return "root ::= " + " | ".join(_literal(choice) for choice in choices)


def _bad(problem: str, param: str) -> BadGrammar:
    return BadGrammar(f"The regular expression: {problem}.", remedy="Send a GBNF grammar as grammar.", param=param)


def _without_ends(parts: list[Any]) -> list[Any]:
    """`parts` without ^ at the beginning and $ at the end, which say nothing of a whole reply."""
    if parts and str(parts[0][0]) == "AT" and str(parts[0][1]) in _ENDS:
        parts = parts[1:]
    if parts and str(parts[-1][0]) == "AT" and str(parts[-1][1]) in _ENDS:
        parts = parts[:-1]
    return parts


def _sequence(parts: Sequence[Any], param: str) -> str:
    written = []
    text = ""
    for operation, value in parts:
        if str(operation) == "LITERAL":
            text += chr(value)
            continue
        if text:
            written.append(_literal(text))
            text = ""
        written.append(_one(str(operation), value, param))
    return " ".join([*written, _literal(text)] if text or not written else written)


def _one(operation: str, value: Any, param: str) -> str:
    match operation:
        case "ANY":
            return r"[^\n]"
        case "NOT_LITERAL":
            return f"[^{_in_class(value)}]"
        case "IN":
            return _class(value, param)
        case "BRANCH":
            return f"({' | '.join(_sequence(list(way), param) for way in value[1])})"
        case "SUBPATTERN" if not (value[1] or value[2]):
            return f"({_sequence(list(value[3]), param)})"
        case "MAX_REPEAT" | "MIN_REPEAT" | "POSSESSIVE_REPEAT":
            least, most, what = value
            limit = "" if most == _parser.MAXREPEAT else str(most)
            return "" if limit == "0" else f"({_sequence(list(what), param)}){{{least},{limit}}}"
    raise _bad(f"{operation.lower().replace('_', ' ')} is not known here", param)


def _class(items: Sequence[Any], param: str) -> str:
    negated = str(items[0][0]) == "NEGATE"
    written = ""
    for operation, value in items[negated:]:
        name = str(operation)
        category = str(value).removeprefix("CATEGORY_")
        if name == "LITERAL":
            written += _in_class(value)
        elif name == "RANGE":
            written += f"{_in_class(value[0])}-{_in_class(value[1])}"
        elif category in _CLASSES:
            written += _CLASSES[category]
        elif category.removeprefix("NOT_") in _CLASSES and len(items) == 1:
            negated, written = True, _CLASSES[category.removeprefix("NOT_")]
        else:
            raise _bad(f"the class {category.lower()} among others is not known here", param)
    return f"[{'^' if negated else ''}{written}]"


def _in_class(code: int) -> str:
    """A character of a class. No \\u: llguidance reads it otherwise than llama.cpp."""
    return chr(code) if chr(code).isalnum() or code > 0xFF else f"\\x{code:02X}"


def _literal(text: str) -> str:
    written = "".join(
        f"\\x{ord(character):02X}" if character in '"\\' or ord(character) < 0x20 else character for character in text
    )
    return f'"{written}"'
