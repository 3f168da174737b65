"""Replies held to a form while transformers writes them: a JSON schema, a GBNF grammar, tool calls, by llguidance.

Each step the tokens that may follow are asked for, all others leave the scores. llguidance bounds by itself what a
grammar may cost when it is read and at each token; texts are bounded before it sees them. llama.cpp holds its own.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import llguidance
import numpy as np
import torch
from llguidance.gbnf_to_lark import gbnf_to_lark
from numpy.typing import NDArray

from modules.engine.base import GenerationRequest
from modules.engine.llamacpp.gbnf import check_gbnf
from modules.engine.loops.loaded import LoadedModel
from modules.errors import BadGrammar, BadValue, GenerationFailed, NotAvailableHere
from modules.sampling import GenerationParams
from modules.tools import MAX_DEPTH, CallShape, deeper_than

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

MAX_SCHEMA_BYTES = 65_536
FORMS_KEPT = 8
# Seconds of the processor that finding what may follow may take: once, and more for each token. Honest forms take
# a thousandth of that; some hostile ones stay below the library's limits, and would keep every row waiting.
FIRST_S = 1.0
EACH_S = 0.02
# Small models love white space: it must end.
_JSON: JsonCompileOptions = {"whitespace_pattern": r"[ \n\t]{1,24}"}
# As chat templates write arguments, and models learn them.
_AS_TEMPLATES = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
# The library's own limits, tightened: a matcher that meets one ends its reply with an error.
_LIMITS = llguidance.LLParserLimits(initial_lexer_fuel=500_000, max_lexer_states=50_000, verbose_errors=False)


class Held:
    """Which tokens one reply may go on with. `add` each that it does."""

    def __init__(self, matcher: Any, param: str) -> None:
        self._matcher = matcher
        self._param = param
        self._count = 0
        self._bits: NDArray[np.uint8] | None = None
        self._spent_s = 0.0

    def allow(self, scores: torch.Tensor) -> torch.Tensor:
        """`scores` (vocab,) with -inf for all that may not follow; some token always may. Raises BadGrammar."""
        bits = self._permitted()
        barred = np.unpackbits(bits, bitorder="little", count=len(scores)) == 0
        mask = torch.from_numpy(barred).to(scores.device)
        allowed = scores.masked_fill(mask, -torch.inf)
        if float(allowed.max()) == -torch.inf:  # the model itself rules out all that may follow
            return torch.zeros_like(scores).masked_fill_(mask, -torch.inf)
        return allowed

    def add(self, token_id: int) -> None:
        """The reply goes on with `token_id`."""
        started = time.thread_time()
        self._matcher.consume_token(token_id)
        self._spent_s += time.thread_time() - started
        self._bits = None
        self._count += 1

    def rewind(self, count: int) -> None:
        """Only the first `count` tokens were kept."""
        if self._count > count:
            self._matcher.rollback(self._count - count)
            self._bits = None
            self._count = count

    def begin(self) -> None:
        """Find what the reply may begin with. Raises BadGrammar where that takes too long already."""
        self._permitted()

    def _permitted(self) -> NDArray[np.uint8]:
        """A bit for each token that may follow. Raises BadGrammar where all that took too much of the processor."""
        if self._bits is None:
            started = time.thread_time()
            self._bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
            self._spent_s += time.thread_time() - started
        if self._matcher.is_error() or not self._bits.any():
            raise self._too_much()
        if self._spent_s > FIRST_S + self._count * EACH_S:
            raise self._too_much()
        return self._bits

    def _too_much(self) -> BadGrammar:
        return BadGrammar(
            "The form of the reply takes too long to follow here.",
            remedy="Make it smaller, or less ambiguous.",
            param=self._param,
        )


class Forms:
    """Makes them for one loaded model. Safe from any thread."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self._lock = threading.Lock()
        self._tokenizer: Any = None
        self._read: OrderedDict[str, Any] = OrderedDict()  # matchers at their beginning, by grammar

    def held(self, request: GenerationRequest) -> Held | None:
        """What holds the reply to `request`, None where it is free.

        Raises BadGrammar for a form that cannot be held, NotAvailableHere where the tokenizer is of a kind that
        llguidance does not read, BadValue together with ban_eos_token, GenerationFailed where what the form has seen
        of the reply does not follow it.
        """
        grammar, param = _grammar_of(request)
        if not grammar:
            return None
        if request.params.ban_eos_token:
            raise BadValue(
                "A reply that follows a form ends with it; ban_eos_token forbids that.",
                remedy="Leave out one of them.",
                param="ban_eos_token",
            )
        with self._lock:
            if self._tokenizer is None:
                self._tokenizer = _read_tokenizer(self._loaded)
        if request.shape is not None:
            grammar = _calls_grammar(request.shape, self._special(), request.params.json_schema)
        matcher = self._matcher(grammar, param)
        if request.held_ids and not matcher.consume_tokens(list(request.reply_ids[-request.held_ids :])):
            raise GenerationFailed("What the reply holds so far does not follow its form.", remedy="Ask again.")
        held = Held(matcher, param)
        held.begin()
        return held

    def _matcher(self, grammar: str, param: str) -> Any:
        """A matcher at its beginning. A grammar is read once: several replies to one request have the same."""
        with self._lock:
            known = self._read.get(grammar)
            if known is not None:
                self._read.move_to_end(grammar)
                return known.deep_copy()
        matcher = llguidance.LLMatcher(self._tokenizer, grammar, log_level=0, limits=_LIMITS)
        if matcher.is_error():
            raise _refusal(matcher.get_error(), param)
        with self._lock:
            self._read[grammar] = matcher.deep_copy()
            if len(self._read) > FORMS_KEPT:
                self._read.popitem(last=False)
        return matcher

    def _special(self) -> dict[str, int]:
        added = self._loaded.tokenizer.added_tokens_decoder
        return {token.content: index for index, token in added.items() if token.special and token.content}


def _grammar_of(request: GenerationRequest) -> tuple[str, str]:
    """The grammar in llguidance's words, "" for none, and the field that asks for it."""
    params: GenerationParams = request.params
    if request.shape is not None:
        return "calls", "tools"
    if params.json_schema:
        return _schema_grammar(params.json_schema, "response_format"), "response_format"
    return (_gbnf_grammar(params.grammar), "grammar") if params.grammar else ("", "")


def _schema_grammar(text: str, param: str) -> str:
    schema = _checked_schema(text, param)
    return llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=_JSON)


def _checked_schema(text: str, param: str) -> Any:
    if len(text.encode()) > MAX_SCHEMA_BYTES:
        raise _refusal("it is larger than 64 KiB", param)
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _refusal("it is not JSON, or nests too deeply", param) from error
    if deeper_than(MAX_DEPTH, schema):
        raise _refusal(f"it nests deeper than {MAX_DEPTH}", param)
    return schema


def _gbnf_grammar(text: str) -> str:
    check_gbnf(text)
    try:
        return llguidance.LLMatcher.grammar_from_lark(gbnf_to_lark(text))
    except Exception as error:  # the library raises plain exceptions for what it does not read
        raise _refusal(str(error), "grammar") from error


def _calls_grammar(shape: CallShape, special: Mapping[str, int], instead: str) -> str:
    """Tool calls as a grammar: fixed text around arguments that follow each tool's own schema. Or, `instead` of calls,
    JSON of a schema, where there is one.
    """
    more = f" ({_literal(shape.between, special)} call)*" if shape.several else ""
    lines = [
        "start: calls | answer" if instead else "start: calls",
        f"calls: {_literal(shape.lead, special)} call{more} {_literal(shape.trail, special)}",
        f"call: {' | '.join(f'c{number}' for number in range(len(shape.calls)))}",
    ]
    for number, pattern in enumerate(shape.calls):
        before, after = _literal(pattern.before, special), _literal(pattern.after, special)
        schema = _checked_schema(pattern.schema, "tools")
        own = schema if isinstance(schema, dict) else {}
        held = _as_object(own) | {"x-guidance": _AS_TEMPLATES}
        lines += [f"c{number}: {before} a{number} {after}", f"a{number}: %json {json.dumps(held)}"]
    if instead:
        schema = _checked_schema(instead, "response_format")
        answer = schema | {"x-guidance": _JSON} if isinstance(schema, dict) else schema
        lines.append(f"answer: %json {json.dumps(answer)}")
    return llguidance.LLMatcher.grammar_from_lark("\n".join(lines) + "\n")


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


def _read_tokenizer(loaded: LoadedModel) -> Any:
    tokenizer = loaded.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    try:
        if backend is None:
            raise ValueError("no fast tokenizer")
        return llguidance.LLTokenizer(backend.to_str(), eos_token=sorted(loaded.eos_ids))
    except Exception as error:  # of a kind that the library does not read
        raise NotAvailableHere(
            f"The tokenizer of {loaded.info.name} is of a kind that replies cannot be held to a form with.",
            remedy="Load another model, or a GGUF file of this one, or leave the field out.",
            param="response_format",
        ) from error


def _refusal(problem: str, param: str) -> BadGrammar:
    what = {"grammar": "The grammar", "tools": "A tool's schema"}.get(param, "The JSON schema")
    told = " ".join(problem.split())[:300].rstrip(".")
    return BadGrammar(
        f"{what} cannot be held here: {told}.", remedy="Write it otherwise, or leave it out.", param=param
    )
