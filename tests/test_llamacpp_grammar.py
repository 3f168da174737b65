"""Replies that follow a grammar or a JSON schema: all of them do, streamed, stopped, cancelled or many at once."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from datetime import date
from enum import StrEnum
from typing import Annotated, Any, Literal
from uuid import UUID

import pytest
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from modules.chat.call_formats import GENERIC
from modules.chat.reply_reading import ReplyReader, put_together
from modules.engine.base import Delta, Engine, Event, Finished, GenerationRequest, TextPiece
from modules.errors import BadValue, GenerationFailed
from modules.forms.tools import CALLS_AT_ONCE, CallPattern, CallShape, Offer, Tool
from modules.sampling import GenerationParams
from tests.llamacpp_rig import TEXT, engine_of, ignore, plan_of
from tests.loop_rig import TIMEOUT_S, Ask
from tests.tiny_models import tiny_gguf

Short = Annotated[str, Field(max_length=4)]


class Colour(StrEnum):
    """Three texts, one with what JSON escapes."""

    RED = "red"
    QUOTED = 'a "quoted" \\ one'
    GREEN = "grün"


class Point(BaseModel):
    """Bounds on both sides of zero."""

    model_config = ConfigDict(extra="forbid", strict=True)

    x: Annotated[int, Field(ge=-12, le=345)]
    y: Annotated[int, Field(gt=0, lt=3)]
    on: bool | None = None


class Drawing(BaseModel):
    """Everything that a schema may say."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(min_length=2, max_length=6)]
    colour: Colour
    kind: Literal["line"]
    points: Annotated[list[Point], Field(min_length=1, max_length=2)]
    weight: float
    day: date | None = None
    key: UUID | None = None
    pair: tuple[bool, int] | None = None


class Tree(BaseModel):
    """It may hold itself."""

    model_config = ConfigDict(extra="forbid")

    leaf: bool
    under: Annotated[list[Tree], Field(max_length=1)] = []


class Cat(BaseModel):
    """One of two, told apart by a member that has a default."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["cat"] = "cat"
    lives: Annotated[int, Field(le=2**53 - 1, ge=1 - 2**53)]


class Dog(BaseModel):
    """The other one."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["dog"] = "dog"
    share: Annotated[float, Field(ge=0, le=1)]
    below: Annotated[float, Field(gt=-1.5, lt=-0.25)]


Pet = Annotated[Cat | Dog, Field(discriminator="kind")]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with engine_of(plan_of(tiny_gguf(tmp_path_factory.mktemp("models"), readable=True), 4096)) as engine:
        yield engine


@pytest.fixture(scope="module")
def prompt(engine: Engine) -> list[int]:
    return engine.encode([TextPiece(TEXT)])


def drawn(seed: int, **params: Any) -> GenerationParams:
    """A reply drawn at random, so that nothing but the grammar gives it form."""
    return GenerationParams(
        **{"temperature": 1.0, "top_p": 1.0, "top_k": 50, "max_new_tokens": 900, "seed": seed, **params}
    )


@pytest.mark.parametrize(
    "kind", [Point, Drawing, Tree, Colour, Annotated[dict[str, bool], Field(max_length=10**6)], int, bool | None, Pet],
    ids=str,
)  # fmt: skip
def test_every_reply_is_valid(engine: Engine, prompt: list[int], kind: Any) -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(kind)
    schema = adapter.json_schema()
    schema.pop("maxProperties", None)
    asks = [
        Ask(f"{kind} {seed}", prompt, drawn(seed, json_schema=json.dumps(schema))).submit(engine) for seed in range(12)
    ]
    whole = [ask for ask in asks if ask.wait().end.reason == "stop"]
    assert len(whole) >= 6 and all(ask.end.error is None for ask in asks)
    for ask in whole:
        adapter.validate_json(ask.text)
    assert all(ask.text == "".join(event.text for event in ask.events if isinstance(event, Delta)) for ask in asks)


def test_any_object_is_one(engine: Engine, prompt: list[int]) -> None:
    asks = [
        Ask(f"object {seed}", prompt, drawn(seed, json_schema='{"type": "object"}')).run(engine) for seed in range(8)
    ]
    whole = [ask for ask in asks if ask.end.reason == "stop"]
    assert whole and all(isinstance(json.loads(ask.text), dict) for ask in whole)


def test_a_grammar_of_its_own_is_followed_and_stop_strings_end_it(engine: Engine, prompt: list[int]) -> None:
    grammar = 'root ::= "<" [a-z]{5,9} ">" tail\ntail ::= "yes" | "no"'
    for seed in range(6):
        whole = Ask(f"g {seed}", prompt, drawn(seed, grammar=grammar)).run(engine)
        assert re.fullmatch("<[a-z]{5,9}>(yes|no)", whole.text) and whole.end.reason == "stop"
        stopped = Ask(f"s {seed}", prompt, drawn(seed, grammar=grammar, stop=(">",))).run(engine)
        assert (stopped.text, stopped.end.reason) == (whole.text.partition(">")[0], "stop")


def test_one_row_follows_its_grammar_while_others_are_free(engine: Engine, prompt: list[int]) -> None:
    free = drawn(3, max_new_tokens=60, ban_eos_token=True)
    alone = Ask("alone", prompt, free).run(engine)
    asks = [Ask(f"free {n}", prompt, free, user=f"u{n}").submit(engine) for n in range(2)]
    held = Ask("held", prompt, drawn(1, grammar="root ::= [0-9]{30}")).submit(engine)
    assert re.fullmatch("[0-9]{30}", held.wait().text)
    assert {ask.wait().end.usage.completion_tokens for ask in asks} == {alone.end.usage.completion_tokens} == {60}


def test_a_reply_that_must_call_is_a_call_of_an_offered_tool(engine: Engine, prompt: list[int]) -> None:
    tools = (Tool("draw", "", Point.model_json_schema()), Tool("odd", "", {"not": {"type": "string"}}))
    offer = Offer(tools, choice="required", parallel=False)
    for seed in range(3):
        ask = Ask(f"calls {seed}", prompt, drawn(seed), shape=GENERIC.shape(offer)).run(engine)
        reader = ReplyReader(GENERIC, offer)
        reply = put_together([*reader.feed(ask.text), *reader.end()])
        assert ask.end.reason == "stop", ask.text
        assert (reply.answer, len(reply.calls)) == ("", 1), ask.text
        arguments = reply.calls[0].arguments
        if reply.calls[0].name == "draw":
            Point.model_validate_json(arguments)
        else:
            assert isinstance(json.loads(arguments), dict), "what cannot be held is any object"


def test_a_reply_that_has_to_call_ends_after_so_many_calls(engine: Engine, prompt: list[int]) -> None:
    nothing = '{"type": "object", "properties": {}, "additionalProperties": false}'
    shape = CallShape((CallPattern("call ", nothing, ";"),), several=True)
    on_and_on = tuple((token, 100.0) for token in engine.encode([TextPiece("c")]))
    ask = Ask("calls", prompt, drawn(1, logit_bias=on_and_on), shape=shape).run(engine)
    assert (ask.text.count("call"), ask.end.reason) == (CALLS_AT_ONCE, "stop"), ask.text


def test_a_bias_decides_which_token_comes(engine: Engine, prompt: list[int]) -> None:
    forced = Ask("bias", prompt, drawn(1, max_new_tokens=3, logit_bias=((70, 100.0),))).run(engine)
    assert forced.tokens == [70, 70, 70]


def test_a_token_named_by_the_client_ends_the_reply(engine: Engine, prompt: list[int]) -> None:
    made = Ask("free", prompt, drawn(3, max_new_tokens=12, ban_eos_token=True)).run(engine)
    last = next(n for n in range(3, 12) if made.tokens[n] not in made.tokens[:n])
    ends = (made.tokens[last], 10**6)
    ask = Ask("ended", prompt, drawn(3, max_new_tokens=12, ban_eos_token=True, stop_token_ids=ends)).run(engine)
    assert (ask.tokens, ask.end.reason) == (made.tokens[:last], "stop")
    assert made.text.startswith(ask.text)


def test_a_held_reply_can_be_cancelled(engine: Engine, prompt: list[int]) -> None:
    events: list[Event] = []
    started, ended = threading.Event(), threading.Event()

    def emit(event: Event) -> None:
        events.append(event)
        (started if isinstance(event, Delta) else ended if isinstance(event, Finished) else threading.Event()).set()

    engine.submit(
        GenerationRequest("c", "u", tuple(prompt), drawn(1, grammar="root ::= [a-z]{1900}", max_new_tokens=1900)), emit
    )
    assert started.wait(TIMEOUT_S)
    engine.cancel("c")
    assert ended.wait(TIMEOUT_S)
    end = events[-1]
    assert isinstance(end, Finished) and end.reason == "cancelled" and end.usage.completion_tokens < 1900


@pytest.mark.parametrize(
    ("params", "name"),
    [
        ({"grammar": "root ::= ("}, "grammar"), ({"json_schema": "{"}, "response_format"),
        ({"json_schema": '{"type": "string", "pattern": "(?=a)"}'}, "response_format"),
        ({"grammar": 'root ::= "a"', "ban_eos_token": True}, "ban_eos_token"), ({"min_tokens": 3}, "min_tokens"),
    ],
)  # fmt: skip
def test_what_cannot_be_held_is_refused_before_it_begins(
    engine: Engine, prompt: list[int], params: dict[str, Any], name: str
) -> None:
    with pytest.raises(BadValue) as caught:
        engine.submit(GenerationRequest("no", "u", tuple(prompt), GenerationParams(**params)), ignore)
    assert caught.value.param == name


def test_calls_that_could_not_end_are_refused_before_they_begin(engine: Engine, prompt: list[int]) -> None:
    shape = GENERIC.shape(Offer((Tool("now"),), choice="required"))
    endless = GenerationRequest("no", "u", tuple(prompt), GenerationParams(ban_eos_token=True), shape=shape)
    with pytest.raises(BadValue, match="ban_eos_token") as caught:
        engine.submit(endless, ignore)
    assert caught.value.param == "ban_eos_token"


def test_a_form_that_was_followed_in_part_in_an_engine_before_is_not_begun_again(
    engine: Engine, prompt: list[int]
) -> None:
    form = GenerationParams(grammar='root ::= "abc"', max_new_tokens=8)
    begun = GenerationRequest("half", "u", tuple(prompt), form, reply_ids=(prompt[-1],), held_ids=1)
    with pytest.raises(GenerationFailed, match="in the middle"):
        engine.submit(begun, ignore)
    assert Ask("whole", prompt, form).run(engine).text == "abc"
