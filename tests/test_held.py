"""Replies that transformers is held to: schemas, grammars and tool calls, and forms that are meant to do harm."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from modules.chat.call_formats import GENERIC
from modules.chat.reply_reading import ReplyReader, put_together
from modules.engine.base import Delta, GenerationRequest
from modules.engine.form_reading import FormReader
from modules.engine.host.generation import Generation
from modules.engine.loops.held import Forms, Held
from modules.engine.loops.loaded import LoadedModel
from modules.engine.loops.serial import SerialEngine
from modules.errors import BadGrammar, BadValue, GenerationFailed, NotAvailableHere
from modules.forms.tools import CALLS_AT_ONCE, CallPattern, CallShape, Offer, Tool
from modules.sampling import GenerationParams
from tests.loop_rig import Ask, load
from tests.tiny_models import tiny_model


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load(tiny_model("llama", tmp_path_factory.mktemp("held")))


@pytest.fixture(scope="module")
def reader() -> Iterator[FormReader]:
    reader = FormReader(read_s=30)
    yield reader
    reader.close()


@pytest.fixture(scope="module")
def forms(loaded: LoadedModel, reader: FormReader) -> Forms:
    return Forms(loaded, reader)


def request(shape: CallShape | None = None, **params: Any) -> GenerationRequest:
    return GenerationRequest("r", "ann", (65, 66), GenerationParams.model_validate(params), shape=shape)


def held_to(forms: Forms, form: GenerationRequest) -> Held:
    held = forms.held(form)
    assert held is not None
    return held


def walk(held: Held, loaded: LoadedModel, steps: int) -> list[int]:
    """Random tokens that may follow each other, at most `steps`, up to an end token."""
    draw, ids = random.Random(7), []
    for _ in range(steps):
        may = (held.allow(torch.zeros(loaded.info.vocab_size)) == 0).nonzero().flatten().tolist()
        token = draw.choice(may)
        held.add(token)
        if token in loaded.eos_ids:
            break
        ids.append(token)
    return ids


def nested(depth: int) -> str:
    return '{"type": "object", "properties": {"a": ' * depth + "{}" + "}}" * depth


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "not json": ({"json_schema": "{"}, "not JSON"),
    "too deep to read": ({"json_schema": "[" * 60_000}, "not JSON|nests"),
    "depth 1,000": ({"json_schema": nested(1000)}, "nests"),
    "depth 100": ({"json_schema": nested(100)}, "nests deeper"),
    "unknown type": ({"json_schema": '{"type": "strin"}'}, "Invalid type"),
    "unknown keyword": ({"json_schema": '{"not": {"type": "string"}}'}, "not"),
    "nothing fits": ({"json_schema": '{"type": "integer", "minimum": 5, "maximum": 1}'}, "minimum"),
    "elsewhere": ({"json_schema": '{"$ref": "http://example.com/x"}'}, "example.com"),
    "no such place": ({"json_schema": '{"$ref": "#/$defs/x"}'}, "(?i)x"),
    "bad pattern": ({"json_schema": '{"type": "string", "pattern": "("}'}, "unclosed"),
    "look-around": ({"json_schema": '{"type": "string", "pattern": "a(?=b)"}'}, "look-around"),
    "no rule": ({"grammar": "nonsense"}, "grammar"),
    "no root": ({"grammar": 'start ::= "a"'}, "root"),
    "open string": ({"grammar": 'root ::= "a'}, "grammar"),
    "left recursion": ({"grammar": 'root ::= root "a" | "a"'}, "itself"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_forms_that_no_reply_can_follow_are_refused_with_the_reason(forms: Forms, name: str) -> None:
    params, problem = REFUSED[name]
    with pytest.raises(BadGrammar, match=problem) as caught:
        forms.held(request(**params))
    assert caught.value.param == ("grammar" if "grammar" in params else "response_format")
    assert caught.value.code == "bad_grammar"


COSTLY_GRAMMARS = [
    'root ::= x{1000}\nx ::= y{1000}\ny ::= z{1000}\nz ::= "a"',
    'root ::= ("a" | "a" root)*',
    "root ::= " + " | ".join(f'"a" r{n}' for n in range(300)) + "".join(f'\nr{n} ::= "b" root?' for n in range(300)),
]


@pytest.mark.parametrize("grammar", COSTLY_GRAMMARS, ids=range(len(COSTLY_GRAMMARS)))
def test_grammars_made_to_be_costly_are_refused_followed_or_given_up_soon(
    forms: Forms, loaded: LoadedModel, grammar: str
) -> None:
    try:
        walk(held_to(forms, request(grammar=grammar)), loaded, 40)
    except BadGrammar as error:
        assert error.param == "grammar"


COSTLY = [
    "^(a+)+$", "^(a|a)*b{1,1000}$", "^(([a-z])+.)+[A-Z]([a-z])+$", "^(.*a.{20}){20}$",
    "^((a{0,1000}){0,1000}){0,1000}$", "^" + "(a?){50}" * 20 + "$",
    "^(" + "|".join(f"a{{0,{n}}}b" for n in range(200)) + ")*$",
]  # fmt: skip


@pytest.mark.parametrize("pattern", COSTLY)
def test_patterns_made_to_be_costly_are_followed_or_given_up_soon(
    forms: Forms, loaded: LoadedModel, pattern: str
) -> None:
    try:
        held = held_to(forms, request(json_schema=json.dumps({"type": "string", "pattern": pattern})))
        walk(held, loaded, 40)
    except BadGrammar as error:
        assert error.param == "response_format"


def test_a_schema_that_keeps_all_rows_waiting_is_given_up(forms: Forms, loaded: LoadedModel) -> None:
    alike = [{"type": "array", "items": {"$ref": "#/$defs/a"}} for _ in range(280)]
    schema = {"$defs": {"a": {"anyOf": [*alike, {"type": "null"}]}}, "$ref": "#/$defs/a"}
    with pytest.raises(BadGrammar, match="too long") as caught:
        held = held_to(forms, request(json_schema=json.dumps(schema)))
        for token in [loaded.tokenizer.convert_tokens_to_ids("[")] * 60:
            held.allow(torch.zeros(loaded.info.vocab_size))
            held.add(token)
    assert caught.value.param == "response_format"


def test_large_schemas_are_refused_or_held(forms: Forms) -> None:
    with pytest.raises(ValueError, match="65536"):
        request(json_schema=json.dumps({"enum": ["x" * 100] * 1000}))
    many = json.dumps({"enum": [f"value {n}" for n in range(4000)]})
    assert forms.held(request(json_schema=many)) is not None


@pytest.mark.parametrize(
    ("schema", "fits"),
    [
        ({"type": "object"}, lambda value: isinstance(value, dict)),
        ({"enum": ["a", 1, None]}, lambda value: value in ("a", 1, None)),
        ({"type": "string", "pattern": "^[ab]{2,4}$"}, lambda value: 2 <= len(value) <= 4 and set(value) <= {"a", "b"}),
        ({"type": "array", "items": {"type": "boolean"}, "maxItems": 3}, lambda value: set(value) <= {True, False}),
        ({"oneOf": [{"type": "integer"}, {"type": "null"}]}, lambda value: value is None or isinstance(value, int)),
        ({"$id": "Output Format", "type": "boolean"}, lambda value: isinstance(value, bool)),
        (
            {"type": "object", "propertyNames": {"type": "string"}, "additionalProperties": {"type": "boolean"}},
            lambda value: set(value.values()) <= {True, False},
        ),
    ],
)
def test_any_walk_through_a_schema_that_ends_is_valid(
    forms: Forms, loaded: LoadedModel, schema: dict[str, Any], fits: Any
) -> None:
    held = held_to(forms, request(json_schema=json.dumps(schema)))
    ids = walk(held, loaded, 400)
    text = loaded.tokenizer.decode(ids)
    if len(ids) < 400:
        assert fits(json.loads(text)), text


def test_a_form_is_read_once_and_each_reply_follows_it_by_itself(loaded: LoadedModel, reader: FormReader) -> None:
    forms = Forms(loaded, reader)
    large = request(json_schema=json.dumps({"type": "object", "properties": {f"k{n}": {} for n in range(2000)}}))
    forms.held(request(grammar='root ::= "a"'))  # the tokenizer is read with the first
    spent = []
    for _ in range(3):
        started = time.thread_time()
        forms.held(large)
        spent.append(time.thread_time() - started)
    assert min(spent[1:]) < spent[0] / 2
    ahead, behind = (held_to(forms, request(grammar='root ::= "abc"')) for _ in range(2))
    scores = torch.zeros(loaded.info.vocab_size)
    first = behind.allow(scores)
    ahead.add(int((first == 0).nonzero()[0]))
    assert not torch.equal(ahead.allow(scores), first)
    assert torch.equal(behind.allow(scores), first)
    assert torch.equal(held_to(forms, request(grammar='root ::= "abc"')).allow(scores), first)


def test_a_form_that_somebody_else_has_read_is_read_anew(loaded: LoadedModel, reader: FormReader) -> None:
    forms, made = Forms(loaded, reader), []
    for whose in ("Ana", "Ana", "Ben", "Ana"):
        forms.held(replace(request(grammar='root ::= "Ana Example"'), whose=whose))
        made.append(len(forms._read))
    assert made == [1, 1, 2, 2]


def test_a_reply_that_goes_on_in_another_engine_goes_on_in_its_form(forms: Forms, loaded: LoadedModel) -> None:
    form = request(grammar='root ::= "abcdef"')
    begun = held_to(forms, form)
    scores = torch.zeros(loaded.info.vocab_size)
    token = int((begun.allow(scores) == 0).nonzero()[0])
    begun.add(token)
    asked = replace(form, reply_ids=(65,))  # what the client had the reply begin with is not of the form
    generation = Generation(asked, lambda: None)
    generation.push(Delta("a", (token,)))
    rest = generation.move(lambda: None, set())
    assert rest is not None and rest.reply_ids == (65, token)
    again = held_to(forms, rest)
    assert torch.equal(again.allow(scores), begun.allow(scores))
    again.add(int((again.allow(scores) == 0).nonzero()[0]))
    again.rewind(0)
    assert torch.equal(again.allow(scores), begun.allow(scores))
    with pytest.raises(GenerationFailed, match="does not follow"):
        forms.held(replace(rest, reply_ids=(65, loaded.tokenizer.convert_tokens_to_ids("["))))


def test_what_was_not_kept_is_forgotten(forms: Forms, loaded: LoadedModel) -> None:
    held = held_to(forms, request(grammar='root ::= "abc"'))
    scores = torch.zeros(loaded.info.vocab_size)
    first = held.allow(scores)
    token = int((first == 0).nonzero()[0])
    held.add(token)
    assert not torch.equal(held.allow(scores), first)
    held.rewind(0)
    assert torch.equal(held.allow(scores), first)


def test_a_model_that_rules_out_all_that_may_follow_still_follows(forms: Forms, loaded: LoadedModel) -> None:
    held = held_to(forms, request(grammar='root ::= "abc"'))
    nothing = torch.full((loaded.info.vocab_size + 8,), -torch.inf)
    allowed = held.allow(nothing)
    assert 0 < int((allowed == 0).sum()) < 10 and bool((allowed[-8:] == -torch.inf).all())


def test_forms_are_refused_where_they_cannot_end_or_the_tokenizer_is_unknown(
    forms: Forms, loaded: LoadedModel, reader: FormReader
) -> None:
    with pytest.raises(BadValue, match="ban_eos_token"):
        forms.held(request(grammar='root ::= "a"', ban_eos_token=True))
    with pytest.raises(BadValue, match="min_tokens"):
        forms.held(request(grammar='root ::= "a"', min_tokens=1))
    assert forms.held(request()) is None

    class Slow:
        added_tokens_decoder: dict[int, Any] = {}  # noqa: RUF012 - a tokenizer's own shape

    with pytest.raises(NotAvailableHere, match="tokenizer"):
        Forms(replace(loaded, tokenizer=Slow()), reader).held(request(grammar='root ::= "a"'))


@pytest.fixture(scope="module")
def engine(loaded: LoadedModel) -> Iterator[SerialEngine]:
    engine = SerialEngine(loaded)
    yield engine
    engine.close()


SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Bergen"]}, "days": {"type": "integer", "maximum": 9, "minimum": 1}},
    "required": ["city", "days"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("seed", range(3))
def test_a_reply_that_must_call_is_a_call_of_an_offered_tool_with_fitting_arguments(
    engine: SerialEngine, seed: int
) -> None:
    offer = Offer((Tool("get_weather", "", SCHEMA), Tool("now", "", {"type": "object", "additionalProperties": False})),
                  choice="required", parallel=False)  # fmt: skip

    params = GenerationParams(temperature=2, top_p=1, max_new_tokens=300, seed=seed)
    ask = Ask(f"calls {seed}", (65, 66), params, shape=GENERIC.shape(offer)).run(engine)
    reader = ReplyReader(GENERIC, offer)
    reply = put_together([*reader.feed(ask.text), *reader.end()])
    assert (reply.answer, len(reply.calls)) == ("", 1), ask.text
    arguments = json.loads(reply.calls[0].arguments)
    if reply.calls[0].name == "get_weather":
        assert arguments["city"] in ("Oslo", "Bergen") and 1 <= arguments["days"] <= 9
    else:
        assert arguments == {}


def test_a_reply_that_has_to_call_ends_after_so_many_calls(engine: SerialEngine, loaded: LoadedModel) -> None:
    nothing = '{"type": "object", "properties": {}, "additionalProperties": false}'
    shape = CallShape((CallPattern("call ", nothing, ";"),), several=True)
    on_and_on = tuple((index, -100.0) for index in loaded.eos_ids)
    params = GenerationParams(top_p=1, max_new_tokens=400, seed=1, logit_bias=on_and_on)
    ask = Ask("calls", (65, 66), params, shape=shape).run(engine)
    assert (ask.text.count("call"), ask.end.reason) == (CALLS_AT_ONCE, "stop"), ask.text


def test_control_tokens_of_a_format_are_written_as_such(forms: Forms, loaded: LoadedModel) -> None:
    special = next(t for i, t in sorted(loaded.tokenizer.added_tokens_decoder.items()) if t.special).content
    index = loaded.tokenizer.convert_tokens_to_ids(special)
    shape = CallShape((CallPattern('{"a": ', '{"type": "object"}', "}"),), lead=f"{special}[")
    allowed = held_to(forms, request(shape)).allow(torch.zeros(loaded.info.vocab_size))
    assert (allowed == 0).nonzero().flatten().tolist() == [index]


def test_a_reply_may_be_a_call_or_an_answer_in_a_form(forms: Forms, loaded: LoadedModel) -> None:
    offer = Offer((Tool("get_weather", "", SCHEMA),))
    either = request(GENERIC.shape(offer), json_schema='{"type": "object"}')
    allowed = held_to(forms, either).allow(torch.zeros(loaded.info.vocab_size))
    firsts = {loaded.tokenizer.decode([index])[:1] for index in (allowed == 0).nonzero().flatten().tolist()}
    assert firsts == {"<", "{"}
