"""Tool calls → a GBNF grammar. A schema that no grammar can hold lets the arguments be any JSON object."""

from __future__ import annotations

import json
import re

from modules.engine.llamacpp.gbnf import check_gbnf
from modules.engine.llamacpp.schema_grammar import grammar_of
from modules.errors import BadGrammar
from modules.tools import CallPattern, CallShape

_ANY_OBJECT = '{"type": "object"}'
# Literals and character classes stay as they are; what else looks like a name is one.
_PARTS = re.compile(r'("(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\])|([A-Za-z][A-Za-z0-9-]*)')


def calls_grammar(shape: CallShape, instead: str = "") -> str:
    """The grammar of a reply that is `shape`, or follows the JSON schema `instead` where there is one.

    Raises BadGrammar for that schema, if it cannot be held.
    """
    calls = " | ".join(
        f"{_literal(pattern.before)} t{number}-root {_literal(pattern.after)}"
        for number, pattern in enumerate(shape.calls)
    )
    more = f" ({_literal(shape.between)} call)*" if shape.several else ""
    root = f"calls ::= {_literal(shape.lead)} call{more} {_literal(shape.trail)}"
    rules = [_arguments(number, pattern) for number, pattern in enumerate(shape.calls)]
    start = "root ::= calls | answer-root" if instead else "root ::= calls"
    if instead:
        rules.append(_renamed(grammar_of(instead), "answer"))
    return "\n".join([start, root, f"call ::= {calls}", *rules]) + "\n"


def _arguments(number: int, pattern: CallPattern) -> str:
    """The rules of one tool's arguments, each name with the tool's number before it."""
    try:
        grammar = grammar_of(pattern.schema)
        check_gbnf(grammar)
    except BadGrammar:
        grammar = grammar_of(_ANY_OBJECT)
    return _renamed(grammar, f"t{number}")


def _renamed(grammar: str, prefix: str) -> str:
    return _PARTS.sub(lambda found: found[1] or f"{prefix}-{found[2]}", grammar).strip()


def _literal(text: str) -> str:
    """`text` as GBNF spells it, which is as JSON does."""
    return json.dumps(text, ensure_ascii=False)
