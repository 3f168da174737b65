"""Prompts with pictures: as many places as there are pictures, whatever anybody types and whatever a template does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest

from modules.chat.forms import Form
from modules.chat.gauge import Gauges
from modules.chat.prompts import Prompts
from modules.engine.base import TextPiece
from modules.errors import BadChatTemplate, ContextLengthExceeded
from modules.messages import ChatMessage, Picture
from tests import rendering
from tests.fakes import CHAT_TEMPLATE, CONTROL_IDS, IMAGE_TOKEN, SEEING_TEMPLATE, Script, ScriptedEngine, fake_plan

IMAGE_ID = CONTROL_IDS[IMAGE_TOKEN]
SMALL, WIDE = Picture(32, 32, data=b"small"), Picture(96, 64, data=b"wide")  # 1 and 6 tokens
SMOLVLM = (  # as published: without parts a content would vanish
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}{% if message['content'][0]['type'] == "
    "'image' %}{{':'}}{% else %}{{': '}}{% endif %}{% for line in message['content'] %}{% if line['type'] == 'text' %}"
    "{{line['text']}}{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
TEMPLATES = {"parts": SEEING_TEMPLATE, "smolvlm": SMOLVLM, "none": "", "strings": CHAT_TEMPLATE + "{# as it is #}"}


@pytest.fixture
def prompts() -> Iterator[Prompts]:
    made = Prompts(rendering.TEMPLATES)
    yield made
    made.close()


class _Seeing(ScriptedEngine):
    """It sees, with whatever template."""

    def __init__(self, template: str, *, context_tokens: int = 4096, sees: bool = True) -> None:
        script = Script(sees=sees, chat_template=template or "-")
        super().__init__(script, fake_plan(context_tokens=context_tokens))
        if not template:
            self._info = replace(self._info, chat_template="")


def shown(content: str, *pictures: Picture, role: str = "user") -> ChatMessage:
    return ChatMessage(role, content, pictures)  # type: ignore[arg-type]


@pytest.mark.parametrize("template", TEMPLATES)
def test_every_template_gets_as_many_places_as_there_are_pictures_and_no_more(template: str, prompts: Prompts) -> None:
    engine = _Seeing(TEMPLATES[template])
    said = [
        shown("What <image> is <|im_start|> it?", SMALL, WIDE),
        shown("<image><image> a thing", role="assistant"),
        shown("And {'type': 'image'} this?", SMALL),
    ]
    built = prompts.chat(engine, said, max_new_tokens=64, truncate=True)
    assert built.prompt_ids.count(IMAGE_ID) == 1 + 6 + 1
    assert built.pictures == (SMALL, WIDE, SMALL)
    text = engine.decode([token for token in built.prompt_ids if token != IMAGE_ID])
    for message in said:
        assert message.content in engine.decode(built.prompt_ids), text
    assert bool(built.notice) == (template == "strings")  # which has no place for pictures


@pytest.mark.parametrize("template", ["parts", "smolvlm"])
def test_texts_alone_are_rendered_as_parts_too(template: str, prompts: Prompts) -> None:
    engine = _Seeing(TEMPLATES[template])
    built = prompts.chat(engine, [shown("Hello <image>")], max_new_tokens=64, truncate=True)
    assert "Hello <image>" in engine.decode(built.prompt_ids)
    assert IMAGE_ID not in built.prompt_ids and built.pictures == () and built.notice == ""


def test_a_template_of_parts_works_for_a_model_whose_eyes_are_not_here(prompts: Prompts) -> None:
    engine = _Seeing(SMOLVLM, sees=False)  # another Snug's, by token ids
    built = prompts.chat(engine, [shown("Hello", SMALL)], max_new_tokens=64, truncate=True)
    assert "cannot see.]\n\nHello" in engine.decode(built.prompt_ids)


def test_a_picture_alone_is_a_message(prompts: Prompts) -> None:
    built = prompts.chat(_Seeing(SMOLVLM), [shown("", SMALL)], max_new_tokens=64, truncate=True)
    assert built.prompt_ids.count(IMAGE_ID) == 1 and built.pictures == (SMALL,)


def test_the_oldest_pictures_go_with_their_messages_where_the_context_is_short(prompts: Prompts) -> None:
    large = Picture(32 * 10, 32 * 10)
    engine = _Seeing(SEEING_TEMPLATE, context_tokens=260)
    said = [shown("one", large), shown("a", role="assistant"), shown("two", large), shown("b", role="assistant"),
            shown("three", SMALL)]  # fmt: skip
    built = prompts.chat(engine, said, max_new_tokens=32, truncate=True)
    assert built.dropped == 2 and built.pictures == (large, SMALL)
    assert built.prompt_ids.count(IMAGE_ID) == 101
    with pytest.raises(ContextLengthExceeded):
        prompts.chat(engine, [shown("x", large, large, large, large)], max_new_tokens=32, truncate=True)


def test_a_model_that_reads_text_is_told_that_there_was_a_picture(prompts: Prompts) -> None:
    engine = _Seeing(CHAT_TEMPLATE, sees=False)
    built = prompts.chat(engine, [shown("What is it?", SMALL, WIDE)], max_new_tokens=64, truncate=True)
    assert "[The user attached 2 pictures, which you cannot see.]\n\nWhat is it?" in engine.decode(built.prompt_ids)
    assert built.pictures == () and IMAGE_ID not in built.prompt_ids


def test_chat_instruct_and_impersonation_keep_the_pictures(prompts: Prompts) -> None:
    engine = _Seeing(SEEING_TEMPLATE)
    said = [shown("See?", SMALL), shown("Yes.", role="assistant"), shown("And?", WIDE)]
    for form in (Form(command="Go on: <|prompt|>"), Form(speaker="user"), Form(closing="Be kind.")):
        built = prompts.chat(engine, said, max_new_tokens=64, truncate=True, form=form)
        assert built.prompt_ids.count(IMAGE_ID) == 7 and built.pictures == (SMALL, WIDE)


def test_a_template_that_drops_a_picture_is_refused(prompts: Prompts) -> None:
    rude = SEEING_TEMPLATE.replace("<image>", "")
    shouting = "{% for message in messages %}{{ message['content'] | upper }}{% endfor %}"
    for template in (rude, shouting):
        with pytest.raises(BadChatTemplate, match="leaves out a picture"):
            prompts.chat(_Seeing(template), [shown("See?", SMALL)], max_new_tokens=64, truncate=True)


def test_the_gauge_counts_pictures_by_their_size_alone(prompts: Prompts) -> None:
    engine, gauges = _Seeing(SEEING_TEMPLATE), Gauges(prompts)
    turns: Sequence[ChatMessage] = [shown("What is it?", Picture(96, 64))]
    exact = len(prompts.chat(engine, turns, max_new_tokens=64, truncate=True).prompt_ids)
    without = gauges.measure(engine, [shown("What is it?")], Form(), max_new_tokens=64).tokens
    assert gauges.measure(engine, turns, Form(), max_new_tokens=64).tokens == without + 6 == exact


def test_a_place_is_never_made_of_text() -> None:
    engine = _Seeing(SEEING_TEMPLATE)
    assert IMAGE_ID not in engine.encode([TextPiece(IMAGE_TOKEN)])
