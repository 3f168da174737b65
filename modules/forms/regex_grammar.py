"""Regular expressions as GBNF grammars, since other servers' clients hold replies by them. The whole reply matches.

Or the text of a JSON string matches, as it is written there. Pure. Written out are characters, classes, groups,
alternatives and repetitions; what looks at the text around a place (look-around, \\b, \\1) is refused.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Sequence
from typing import Any

from modules.errors import BadGrammar

_parser: Any = importlib.import_module("re._parser")  # Python's own reader of them; nothing public tells what it read

MAX_LENGTH = 8192
_CLASSES = {"DIGIT": "09", "WORD": "09AZaz__", "SPACE": "\t\r  "}
"""First and last characters of their ranges."""
_BEGINS, _ENDS = {"AT_BEGINNING", "AT_BEGINNING_STRING"}, {"AT_END", "AT_END_STRING"}
_LAST = 0x10FFFF
_NOT_IN_JSON = ((0x00, 0x1F), (0x22, 0x22), (0x5C, 0x5C), (0x7F, 0x7F))
"""What JSON's strings escape; in classes it is left out."""
Range = tuple[int, int]


def grammar_of_regex(pattern: str, param: str) -> str:
    """The GBNF grammar of all texts that match `pattern`. Raises BadGrammar, naming `param`."""
    body, _, _ = _Writer(param).body(pattern)
    return f"root ::= {body}"


def body_in_json(pattern: str, param: str) -> tuple[str, bool, bool]:
    """What GBNF calls the inside of a JSON string that matches `pattern`, and whether that begins with ^ and ends with
    $. What only escapes could write is left out of classes. Raises BadGrammar.
    """
    return _Writer(param, in_json=True).body(pattern)


def grammar_of_choices(choices: Sequence[str]) -> str:
    """The GBNF grammar of exactly these texts."""
    return "root ::= " + " | ".join(_literal(choice) for choice in choices)


class _Writer:
    """Writes one expression; `in_json` inside a JSON string."""

    def __init__(self, param: str, *, in_json: bool = False) -> None:
        self._param = param
        self._in_json = in_json

    def body(self, pattern: str) -> tuple[str, bool, bool]:
        """The grammar, and whether the expression has its own beginning and end. Raises BadGrammar."""
        if len(pattern) > MAX_LENGTH:
            raise self._bad(f"it is longer than {MAX_LENGTH:,} characters")
        try:
            parsed = _parser.parse(pattern)
            if parsed.state.flags & ~re.UNICODE:
                raise self._bad("flags such as (?i) are not known here")
            parts = list(parsed)
            begins, ends = _is_at(parts[:1], _BEGINS), _is_at(parts[-1:], _ENDS)
            return self._sequence(parts[begins : len(parts) - ends]), begins, ends
        except (re.error, OverflowError) as error:
            raise self._bad(str(error)) from error
        except RecursionError as error:
            raise self._bad("it nests too deeply") from error

    def _bad(self, problem: str) -> BadGrammar:
        return BadGrammar(f"The regular expression: {problem}.", remedy="Write it without that.", param=self._param)

    def _sequence(self, parts: Sequence[Any]) -> str:
        written: list[str] = []
        text = ""
        for operation, value in parts:
            if str(operation) == "LITERAL":
                text += chr(value)
                continue
            if text:
                written.append(self._text(text))
                text = ""
            written.append(self._one(str(operation), value))
        return " ".join([*written, self._text(text)] if text or not written else written)

    def _text(self, text: str) -> str:
        if any(_is_half(ord(character)) for character in text):
            raise self._bad("it holds half a character")
        return _literal(json.dumps(text, ensure_ascii=False)[1:-1] if self._in_json else text)

    def _one(self, operation: str, value: Any) -> str:
        match operation:
            case "ANY":
                return self._class([(ord("\n"), ord("\n"))], negated=True)
            case "NOT_LITERAL":
                return self._class([(value, value)], negated=True)
            case "IN":
                return self._class(*self._ranges(value))
            case "BRANCH":
                return f"({' | '.join(self._sequence(list(way)) for way in value[1])})"
            case "SUBPATTERN" if not (value[1] or value[2]):
                return f"({self._sequence(list(value[3]))})"
            case "MAX_REPEAT" | "MIN_REPEAT":
                least, most, what = value
                limit = "" if most == _parser.MAXREPEAT else str(most)
                return "" if limit == "0" else f"({self._sequence(list(what))}){{{least},{limit}}}"
        raise self._bad(f"{operation.lower().replace('_', ' ')} is not known here")

    def _ranges(self, items: Sequence[Any]) -> tuple[list[Range], bool]:
        """The ranges of a class, and whether it is what they are not."""
        negated = str(items[0][0]) == "NEGATE"
        ranges: list[Range] = []
        for operation, value in items[negated:]:
            if str(operation) == "CATEGORY":
                ranges += self._category(str(value).removeprefix("CATEGORY_"))
            else:
                ranges.append((value, value) if str(operation) == "LITERAL" else value)
        return ranges, negated

    def _category(self, name: str) -> list[Range]:
        """The ranges of \\d, \\w or \\s, or of what they are not."""
        ends = [ord(character) for character in _CLASSES[name.removeprefix("NOT_")]]
        ranges = list(zip(ends[::2], ends[1::2], strict=True))
        return _without([(0, _LAST)], ranges) if name.startswith("NOT_") else ranges

    def _class(self, ranges: list[Range], negated: bool) -> str:
        if self._in_json:
            ranges = [*ranges, *_NOT_IN_JSON] if negated else _without(ranges, _NOT_IN_JSON)
        if any(_is_half(code) for ends in ranges for code in ends):
            raise self._bad("it holds half a character")
        if not ranges:
            raise self._bad("a class has only characters that are not written here")
        written = "".join(_char(low) if low == high else f"{_char(low)}-{_char(high)}" for low, high in ranges)
        return f"[{'^' if negated else ''}{written}]"


def _is_half(code: int) -> bool:
    return 0xD800 <= code <= 0xDFFF


def _is_at(parts: Sequence[Any], places: set[str]) -> bool:
    return bool(parts) and str(parts[0][0]) == "AT" and str(parts[0][1]) in places


def _without(ranges: list[Range], left_out: Sequence[Range]) -> list[Range]:
    """`ranges` without the characters that are `left_out`."""
    for low, high in left_out:
        parts = [((start, min(end, low - 1)), (max(start, high + 1), end)) for start, end in ranges]
        ranges = [one for pair in parts for one in pair if one[0] <= one[1]]
    return ranges


def _char(code: int) -> str:
    """A character of a class. No \\u: llguidance reads it otherwise than llama.cpp."""
    return chr(code) if chr(code).isalnum() or code > 0xFF else f"\\x{code:02X}"


def _literal(text: str) -> str:
    written = "".join(
        f"\\x{ord(character):02X}" if character in '"\\' or ord(character) < 0x20 else character for character in text
    )
    return f'"{written}"'
