"""Tool calls → a GBNF grammar. A schema that no grammar can hold lets the arguments be any JSON object, or a tagged one
any JSON."""

from __future__ import annotations

import json
import re
from functools import partial

from modules.engine.llamacpp.gbnf import check_gbnf
from modules.engine.llamacpp.schema_grammar import grammar_of
from modules.errors import BadGrammar
from modules.forms.tagged_arguments import Argument, arguments_of, text_states
from modules.forms.tools import CALLS_AT_ONCE, CallPattern, CallShape, Tags

# What a string of JSON may hold, without and with what may begin a tag: that can be written as an escape.
_IN_STRINGS, _NO_TAGS = r'[^"\\\x00', r'[^"\\<\x00'
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
    more = f" ({_literal(shape.between)} call){{0,{CALLS_AT_ONCE - 1}}}" if shape.several else ""
    root = f"calls ::= {_literal(shape.lead)} call{more} {_literal(shape.trail)}"
    if shape.tags is None:
        rules = [_arguments(number, pattern) for number, pattern in enumerate(shape.calls)]
    else:
        tagged = partial(_tagged, tags=shape.tags)
        rules = [_text(shape.tags), *(tagged(number, pattern) for number, pattern in enumerate(shape.calls))]
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


def _tagged(number: int, pattern: CallPattern, tags: Tags) -> str:
    """The rules of one tool's arguments that stand between tags."""
    found = arguments_of(json.loads(pattern.schema), tags)
    names = [f"t{number}-p{place}" for place in range(len(found))]
    listed = [name if argument.required else f"{name}?" for name, argument in zip(names, found, strict=True)]
    lines = [f"t{number}-root ::= {' '.join(listed) or _literal('')}"]
    for name, argument in zip(names, found, strict=True):
        value, more = _value(name, argument, tags)
        lines += [f"{name} ::= {_literal(tags.key_before + argument.key + tags.key_after)} {value}", *more]
    return "\n".join(lines)


def _value(name: str, argument: Argument, tags: Tags) -> tuple[str, list[str]]:
    """An argument's value with the tag that ends it, and the rules that it needs."""
    if argument.kind == "text":
        return "text-0", []
    if argument.kind == "words":
        return f"({' | '.join(map(_literal, argument.words))}) {_literal(tags.value_after)}", []
    try:
        grammar = grammar_of(argument.schema)
        check_gbnf(grammar)
    except BadGrammar:
        grammar = grammar_of("true")
    return f"{name}-root {_literal(tags.value_after)}", [_renamed(grammar.replace(_IN_STRINGS, _NO_TAGS), name)]


def _text(tags: Tags) -> str:
    """The rules of any text up to the tag that ends it."""
    lines = []
    for number, state in enumerate(text_states(tags.value_after.strip(), tags.closing)):
        others = f"[^{''.join(map(_escaped, [*state.leads, *state.never]))}] text-0"
        leads = [f"[{_escaped(sign)}]" + ("" if to is None else f" text-{to}") for sign, to in state.leads.items()]
        lines.append(f"text-{number} ::= {' | '.join([others, *leads])}")
    return "\n".join(lines)


def _escaped(sign: str) -> str:
    return f"\\U{ord(sign):08X}"


def _renamed(grammar: str, prefix: str) -> str:
    return _PARTS.sub(lambda found: found[1] or f"{prefix}-{found[2]}", grammar).strip()


def _literal(text: str) -> str:
    """`text` as GBNF spells it, which is as JSON does."""
    return json.dumps(text, ensure_ascii=False)
