"""Calls whose arguments stand between tags: both engines hold random models to them, and every one reads back."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field

from modules.chat.call_formats import CallFormat, find_format
from modules.chat.rendering import ChatTemplate
from modules.chat.reply_reading import ReplyReader, put_together
from modules.chat.templates import TemplateWorker
from modules.engine.base import Engine, GenerationRequest, TextPiece
from modules.engine.form_reading import Form, FormReader
from modules.engine.loops.held import Forms
from modules.engine.loops.loaded import LoadedModel
from modules.forms.tagged_arguments import arguments_of, text_states
from modules.forms.tools import Offer, Tags, Tool
from modules.sampling import GenerationParams
from tests.llamacpp_rig import engine_of, plan_of
from tests.loop_rig import Ask, load
from tests.tiny_models import tiny_gguf, tiny_model
from tests.tool_templates import SPECIAL, TOOL_FAMILIES

ENDS = ("</s>", "<|eot_id|>", "<|im_end|>")
SHORT = CallFormat(
    head="<c>", tail="</c>", style="tags", key_before="<k>", key_after="</k><v>", value_after="</v>", several=True
)  # fmt: skip


class Point(BaseModel):
    """It lies under $defs."""

    model_config = ConfigDict(extra="forbid", strict=True)

    x: bool


class Draw(BaseModel):
    """Arguments of all kinds but free text."""

    model_config = ConfigDict(extra="forbid", strict=True)

    n: Annotated[int, Field(ge=-3, le=12)]
    colour: Literal["red", "1"]
    points: Annotated[list[Point], Field(min_length=1, max_length=2)]
    on: bool | None = None


TOOLS = (
    Tool("draw", "", Draw.model_json_schema()),
    Tool("now", "", {"type": "object", "additionalProperties": False}),
)
SAYS = Tool("say", "", {
    "type": "object", "required": ["text"], "properties": {"text": {"type": "string"}}, "additionalProperties": False,
})  # fmt: skip


@pytest.fixture(scope="module")
def formats() -> Iterator[dict[str, CallFormat]]:
    worker = TemplateWorker()
    names = ("qwen coder", "glm")
    yield {name: find_format(ChatTemplate(TOOL_FAMILIES[name].template, SPECIAL, worker), ends=ENDS) for name in names}
    worker.close()


Draws = Callable[[CallFormat, Offer, Sequence[int], str], list[str]]
"""Whole replies that are held to a format and else drawn at random, one a seed; signs that are likely."""


@pytest.fixture(scope="module", params=["transformers", "llama.cpp"])
def draws(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Draws]:
    folder: Path = tmp_path_factory.mktemp("tagged")
    if request.param == "llama.cpp":
        with engine_of(plan_of(tiny_gguf(folder, readable=True), 4096)) as engine:
            yield partial(by_llamacpp, engine)
        return
    reader = FormReader()
    loaded = load(tiny_model("llama", folder))
    yield partial(by_walking, loaded, Forms(loaded, reader))
    reader.close()


def by_llamacpp(engine: Engine, form: CallFormat, offer: Offer, seeds: Sequence[int], likely: str) -> list[str]:
    """Of a random model."""
    prompt = engine.encode([TextPiece("Draw. ")])
    bias = tuple((engine.encode([TextPiece(sign)])[-1], 12.0) for sign in sorted(set(likely)))
    drawn = GenerationParams(temperature=1.0, top_p=1.0, top_k=0, max_new_tokens=400, logit_bias=bias)
    asks = [
        Ask(f"{seed}", prompt, drawn.model_copy(update={"seed": seed}), shape=form.shape(offer)).submit(engine)
        for seed in seeds
    ]
    return [ask.text for ask in asks if ask.wait().end.reason == "stop"]


def by_walking(
    loaded: LoadedModel, forms: Forms, form: CallFormat, offer: Offer, seeds: Sequence[int], likely: str
) -> list[str]:
    """As a model would write to which all tokens are alike."""
    wanted = set(loaded.tokenizer.convert_tokens_to_ids(list(likely)))
    found = []
    for seed in seeds:
        draw, ids = random.Random(seed), list[int]()
        held = forms.held(GenerationRequest("r", "u", (65,), GenerationParams(), shape=form.shape(offer)))
        assert held is not None
        while len(ids) < 600:
            may = (held.allow(torch.zeros(loaded.info.vocab_size)) == 0).nonzero().flatten().tolist()
            token = draw.choice([one for one in may if one in wanted] or may)
            if token in loaded.eos_ids:
                found.append(loaded.tokenizer.decode(ids))
                break
            held.add(token)
            ids.append(token)
    return found


def calls_of(text: str, form: CallFormat, offer: Offer) -> list[tuple[str, Any]]:
    reader = ReplyReader(form, offer)
    reply = put_together([*reader.feed(text), *reader.end()])
    assert reply.answer == "" and reply.calls, text
    return [(call.name, json.loads(call.arguments)) for call in reply.calls]


@pytest.mark.parametrize("name", ["qwen coder", "glm"])
def test_every_held_reply_reads_back_as_calls_whose_arguments_are_valid(
    name: str, draws: Draws, formats: dict[str, CallFormat]
) -> None:
    for offer, most in ((Offer(TOOLS, choice="required"), 99), (Offer(TOOLS, choice="required", parallel=False), 1)):
        read = [calls_of(text, formats[name], offer) for text in draws(formats[name], offer, range(16), "")]
        assert len(read) >= 3 and "draw" in {tool for calls in read for tool, _ in calls}
        assert max(map(len, read)) <= most
        for tool, arguments in (call for calls in read for call in calls):
            assert arguments == {} if tool == "now" else Draw.model_validate(arguments)
    only = Offer(TOOLS, only="now")
    assert calls_of(draws(formats[name], only, [1], "")[0], formats[name], only) == [("now", {})]


def test_free_text_between_tags_is_any_text_and_ends_with_its_tag(draws: Draws) -> None:
    offer = Offer((SAYS,), only="say")
    texts = [calls_of(text, SHORT, offer)[0][1]["text"] for text in draws(SHORT, offer, range(16), "</v>c")]
    assert len(texts) >= 2 and all("</v>" not in text and "</c>" not in text for text in texts)
    assert any("<" in text for text in texts), "what only begins as a tag does is text"


@given(st.text(alphabet="</vcx>", max_size=40))
def test_the_states_of_a_text_are_those_up_to_its_tag_without_what_ends_a_call(text: str) -> None:
    states, at = text_states("</v>", "</c>"), 0
    for place, sign in enumerate(text):
        before = text[: place + 1]
        assert (sign in states[at].never) == before.endswith("</c>")
        if sign in states[at].never:
            return
        to = states[at].leads.get(sign, 0)
        assert (to is None) == before.endswith("</v>")
        if to is None:
            return
        at = to


def test_arguments_are_text_words_or_json_as_they_are_read() -> None:
    tags = Tags("<k>", "</k><v>", "</v>", "</c>")
    schema = {
        "properties": {
            "a": {"type": "string", "maxLength": 4}, "b": {"const": "x"}, "c": {"enum": ["1", "</v>", "y"]},
            "d": {"type": "string", "enum": ["1"]}, "e": {"enum": [1, "y"]}, "f</v>": {}, "g": {"$ref": "#/$defs/z"},
        },
        "required": ["a", "h"], "$defs": {"z": {"type": "integer"}},
    }  # fmt: skip
    found = {one.key: one for one in arguments_of(schema, tags)}
    assert {key: one.kind for key, one in found.items()} == {
        "a": "text", "b": "words", "c": "words", "d": "words", "e": "json", "g": "json", "h": "json",
    }  # fmt: skip
    assert (found["c"].words, found["d"].words) == (("y",), ("1",)), "1 alone would be read as a number"
    assert [key for key, one in found.items() if one.required] == ["a", "h"]
    assert "$defs" in json.loads(found["g"].schema)
    many = {"properties": {f"k{n}": {} for n in range(500)}, "required": ["k499"]}
    assert len(arguments_of(many, tags)) == 65 and arguments_of(True, tags) == ()


def test_tags_that_are_control_tokens_end_a_text_as_such() -> None:
    shape = SHORT.shape(Offer((SAYS,), choice="required"))
    reader = FormReader()
    grammar = reader.read(Form("guidance", shape=shape, special={"</v>": 7, "<c>": 8}))
    reader.close()
    assert "TAGGED <[7]>" in json.loads(json.dumps(grammar)) and "<[8]>" in grammar
