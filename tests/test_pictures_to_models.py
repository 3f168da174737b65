"""Pictures of a conversation on their way to the model that is loaded, and to servers elsewhere."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from modules.chat.preview import Previews
from modules.engine.base import GenerationRequest, Words
from modules.engine.remote.reply import _messages
from modules.messages import ChatMessage, Picture
from tests.fakes import CONTROL_IDS, IMAGE_TOKEN, Script, ScriptedEngine
from tests.test_kept_pictures import TAKEN
from tests.test_service import PARAMS, MakeWorld, end_of, make_world

__all__ = ["make_world"]
PLACE = CONTROL_IDS[IMAGE_TOKEN]


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[GenerationRequest]:
    """What engines were asked."""
    asked: list[GenerationRequest] = []
    submit = ScriptedEngine.submit

    def spy(self: ScriptedEngine, request: GenerationRequest, emit: Any) -> None:
        asked.append(request)
        submit(self, request, emit)

    monkeypatch.setattr(ScriptedEngine, "submit", spy)
    return asked


def test_a_picture_is_shown_to_every_model_that_sees_and_told_of_to_others(
    make_world: MakeWorld, requests: list[GenerationRequest]
) -> None:
    world = make_world(Script(sees=True))
    file = world.store.attached.keep("", "a.png", 999, TAKEN)
    conversation = world.conversation.id
    reply = world.chat.reply("", conversation, None, "", PARAMS, op_id="1", attachments=[file.id])
    assert end_of(reply).status == "complete"
    assert requests[-1].pictures == (TAKEN.as_picture(),)
    assert requests[-1].prompt_ids.count(PLACE) == 8

    end_of(world.ask("And the colours?"))
    assert requests[-1].pictures == (TAKEN.as_picture(),) and requests[-1].prompt_ids.count(PLACE) == 8
    question = world.path()[0]
    end_of(world.chat.regenerate("", conversation, question.id, PARAMS))
    assert requests[-1].pictures[0].data == TAKEN.picture

    world.load(Script())
    blind = end_of(world.chat.regenerate("", conversation, question.id, PARAMS))
    asked = requests[-1]
    assert asked.pictures == () and PLACE not in asked.prompt_ids
    assert any("a.png: tiny cannot see pictures" in sentence for sentence in blind.told)
    world.load(Script(sees=True))
    assert end_of(world.chat.regenerate("", conversation, question.id, PARAMS)).told == ()
    assert requests[-1].pictures == (TAKEN.as_picture(),)


def test_the_gauge_and_the_exact_prompt_count_a_picture_before_it_is_sent(make_world: MakeWorld) -> None:
    world = make_world(Script(sees=True))
    previews = Previews(world.models, world.store, world.chat._prompts, world.chat)
    file = world.store.attached.keep("", "a.png", 999, TAKEN)
    seen = previews.gauge(world.conversation, "What is it?", PARAMS, [file])
    assert [(shown.attachment.id, shown.tokens, shown.cut) for shown in seen.files] == [(file.id, 8, "")]
    exact = previews.exact(world.conversation, "What is it?", PARAMS, [file])
    assert exact.tokens == seen.gauge.tokens and f"{IMAGE_TOKEN}×8What is it?" in exact.text
    world.load(Script())
    (shown,) = previews.gauge(world.conversation, "What is it?", PARAMS, [file]).files
    assert shown.tokens == 0 and "cannot see" in shown.cut


def test_a_server_that_takes_messages_gets_pictures_as_openai_has_them() -> None:
    picture = Picture(2, 1, "image/jpeg", b"bytes")
    words = Words((ChatMessage("system", "Be kind."), ChatMessage("user", "See?", (picture,)), ChatMessage("user", "")))
    address = f"data:image/jpeg;base64,{base64.b64encode(b'bytes').decode()}"
    assert _messages(words) == [
        {"role": "system", "content": "Be kind."},
        {
            "role": "user",
            "content": [{"type": "image_url", "image_url": {"url": address}}, {"type": "text", "text": "See?"}],
        },
        {"role": "user", "content": ""},
    ]
