"""Forms of replies as llguidance's grammars: JSON schemas, GBNF, tool calls. No model, no tokenizer, no torch: the
process that tries forms (engine/form_worker.py) imports this too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import llguidance
from llguidance.gbnf_to_lark import gbnf_to_lark

from modules.engine.llamacpp.gbnf import check_gbnf
from modules.errors import BadGrammar
from modules.forms.json_schemas import MAX_DEPTH, bounded, deeper_than, without_idle
from modules.forms.tagged_arguments import Argument, arguments_of
from modules.forms.tools import CALLS_AT_ONCE, CallShape, Tags

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

MAX_SCHEMA_BYTES = 65_536
# Small models love white space: a line break and what begins the next line are all that may stand in one place.
_JSON: JsonCompileOptions = {"whitespace_pattern": r" |\n[ \t]{0,20}"}
# As chat templates write arguments, and models learn them.
_AS_TEMPLATES = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
# The library's own limits, tightened: a matcher that meets one ends its reply with an error.
_LIMITS = llguidance.LLParserLimits(initial_lexer_fuel=500_000, max_lexer_states=50_000, verbose_errors=False)


def matcher_of(tokenizer: Any, grammar: str, param: str) -> Any:
    """What follows `grammar`, at its beginning. Raises BadGrammar."""
    matcher = llguidance.LLMatcher(tokenizer, grammar, log_level=0, limits=_LIMITS)
    if matcher.is_error():
        raise _refusal(matcher.get_error(), param)
    return matcher


def try_form(grammar: str, param: str) -> None:
    """Raise BadGrammar for a grammar that cannot be read, or lets nothing begin. Over bytes: what reading it costs
    depends on the grammar, hardly on the vocabulary.
    """
    matcher = matcher_of(llguidance.LLTokenizer("byte"), grammar, param)
    matcher.compute_bitmask()
    if matcher.is_error():
        raise _refusal(matcher.get_error(), param)


def schema_grammar(text: str) -> str:
    """The grammar of replies that follow the JSON schema `text`. Raises BadGrammar."""
    schema = _checked_schema(text, "response_format")
    return llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=_JSON)


def gbnf_grammar(text: str) -> str:
    """The grammar that `text` says in GBNF. Raises BadGrammar."""
    check_gbnf(text)
    try:
        return llguidance.LLMatcher.grammar_from_lark(gbnf_to_lark(text))
    except Exception as error:  # the library raises plain exceptions for what it does not read
        raise _refusal(str(error), "grammar") from error


def calls_grammar(shape: CallShape, instead: str, special: Mapping[str, int]) -> str:
    """Tool calls as a grammar: fixed text around arguments that follow each tool's own schema. Or, `instead` of calls,
    JSON of a schema, where there is one. `special` are the ids of control tokens that are written as such.
    """
    more = f" ({_literal(shape.between, special)} call){{0,{CALLS_AT_ONCE - 1}}}" if shape.several else ""
    lines = [
        "start: calls | answer" if instead else "start: calls",
        f"calls: {_literal(shape.lead, special)} call{more} {_literal(shape.trail, special)}",
        f"call: {' | '.join(f'c{number}' for number in range(len(shape.calls)))}",
    ]
    for number, pattern in enumerate(shape.calls):
        before, after = _literal(pattern.before, special), _literal(pattern.after, special)
        schema = _checked_schema(pattern.schema, "tools")
        lines.append(f"c{number}: {before} a{number} {after}")
        if shape.tags is not None:
            lines += _tagged(f"a{number}", schema, shape.tags, special)
            continue
        own = schema if isinstance(schema, dict) else {}
        lines.append(f"a{number}: %json {json.dumps(_as_object(own) | {'x-guidance': _AS_TEMPLATES})}")
    if shape.tags is not None:
        lines += _tagged_text(shape.tags, special)
    if instead:
        schema = _checked_schema(instead, "response_format")
        answer = schema | {"x-guidance": _JSON} if isinstance(schema, dict) else schema
        lines.append(f"answer: %json {json.dumps(answer)}")
    return llguidance.LLMatcher.grammar_from_lark("\n".join(lines) + "\n")


def marks_in(shape: CallShape, special: Collection[str]) -> list[str]:
    """Those of `special` that stand in the text around calls."""
    tags = shape.tags
    fixed = {shape.lead, shape.between, shape.trail}
    if tags is not None:
        fixed |= {tags.key_before, tags.key_after, tags.value_after, tags.closing}
    for pattern in shape.calls:
        fixed |= {pattern.before, pattern.after}
    whole = "\0".join(fixed)
    return [mark for mark in special if mark in whole]


def _tagged(name: str, schema: object, tags: Tags, special: Mapping[str, int]) -> list[str]:
    """The rules of one tool's arguments that stand between tags."""
    found = arguments_of(schema, tags)
    listed = [f"{name}p{number}" + ("" if one.required else "?") for number, one in enumerate(found)]
    lines = [f"{name}: {' '.join(listed) or _literal('', {})}"]
    for number, argument in enumerate(found):
        begins = _literal(tags.key_before + argument.key + tags.key_after, special)
        value, more = _value(f"{name}v{number}", argument, _literal(tags.value_after, special))
        lines += [f"{name}p{number}: {begins} {value}", *more]
    return lines


def _value(name: str, argument: Argument, ends: str) -> tuple[str, list[str]]:
    """An argument's value with the tag that `ends` it, and the rules that it needs."""
    if argument.kind == "text":
        return "tagged", []
    if argument.kind == "words":
        return f"({' | '.join(_literal(word, {}) for word in argument.words)}) {ends}", []
    schema = json.loads(argument.schema)
    held = schema | {"x-guidance": _AS_TEMPLATES} if isinstance(schema, dict) else schema
    return f"{name} {ends}", [f"{name}: %json {json.dumps(held)}"]


def _tagged_text(tags: Tags, special: Mapping[str, int]) -> list[str]:
    """The rule of any text up to the tag that ends it. Control tokens are no text, so they end it by themselves."""
    end, banned = tags.value_after.strip(), tags.closing
    but = "" if _has_mark(banned, special) else f" & ~/(?s:.*){_pattern(banned)}(?s:.*)/"
    if _has_mark(end, special):
        return [f"tagged: TAGGED {_literal(end, special)}", f"TAGGED: /(?s:.*)/{but}"]
    return ["tagged[lazy]: TAGGED", f"TAGGED: /(?s:.*){_pattern(end)}/{but}"]


def _has_mark(text: str, special: Mapping[str, int]) -> bool:
    return not text or any(mark in text for mark in special)


def _pattern(text: str) -> str:
    return "".join(f"\\x{{{ord(sign):x}}}" for sign in text)


def _checked_schema(text: str, param: str) -> Any:
    if len(text.encode()) > MAX_SCHEMA_BYTES:
        raise _refusal("it is larger than 64 KiB", param)
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _refusal("it is not JSON, or nests too deeply", param) from error
    if deeper_than(MAX_DEPTH, schema):
        raise _refusal(f"it nests deeper than {MAX_DEPTH}", param)
    return bounded(without_idle(schema))


def _as_object(schema: dict[str, Any]) -> dict[str, Any]:
    """Arguments are an object, also where the schema does not say so."""
    return schema if "type" in schema or "$ref" in schema or "anyOf" in schema else {"type": "object"} | schema


def _literal(text: str, special: Mapping[str, int]) -> str:
    """`text` in a Lark rule, control tokens by their ids."""
    found = [mark for mark in special if mark in text]
    marks = "|".join(map(re.escape, sorted(found, key=len, reverse=True)))
    parts = re.split(f"({marks})", text) if found else [text]
    written = [f"<[{special[part]}]>" if part in special else json.dumps(part) for part in parts if part]
    return " ".join(written) or '""'


def _refusal(problem: str, param: str) -> BadGrammar:
    what = {"grammar": "The grammar", "tools": "A tool's schema"}.get(param, "The JSON schema")
    told = " ".join(problem.split())[:300].rstrip(".")
    return BadGrammar(
        f"{what} cannot be held here: {told}.", remedy="Write it otherwise, or leave it out.", param=param
    )
