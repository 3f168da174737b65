"""The gauge against the exact prompt, through a service with a scripted engine; impersonation; greetings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

import pytest

from modules.characters.character import Character, Persona
from modules.chat.preview import Previews
from modules.chat.service import impersonation
from modules.errors import BadChatTemplate, BadValue, NoModelLoaded, NotFound
from modules.messages import Conversation, Setup
from modules.sampling import GenerationParams
from modules.services import Services
from modules.settings import LoadOptions, Settings
from tests.fakes import Script, quoted
from tests.page_rig import parts_of

PARAMS = GenerationParams(max_new_tokens=3000)
ECHO = Script(quote=True)


@pytest.fixture
def services(settings: Settings) -> Iterator[Services]:
    with ExitStack() as parts:
        made = parts_of(settings, parts, ECHO)
        made.models.load(LoadOptions.model_validate({"model": "tiny"}))
        yield made


def previews(services: Services) -> Previews:
    return Previews(services.models, services.store, services.prompts, services.chat)


def begin(services: Services, **setup: object) -> Conversation:
    ada = Character(
        name="Ada", description="{{char}} counts.", first_mes="Hi {{user}}.", alternate_greetings=("Ho {{user}}.",)
    )
    if not any(listed.found.id == "Ada" for listed in services.library.characters.list()):
        services.library.characters.add(ada, None)
        services.library.personas.add(Persona(name="Kim", description="A sailor."), None)
    return services.chat.begin("", Setup(**{"manner": "chat", "character": "Ada", "persona": "Kim"} | setup))  # type: ignore[arg-type]


def ask(services: Services, conversation: Conversation, text: str) -> str:
    head = services.store.get("", conversation.id).head_id
    reply = services.chat.reply("", conversation.id, head, text, PARAMS, op_id=f"op {text}")
    while not (view := reply.wait(reply.view().version, 10)).finished:
        pass
    assert view.status == "complete", view.error
    return view.text


def test_a_conversation_begins_with_the_characters_greetings(services: Services) -> None:
    conversation = begin(services)
    path = services.store.path("", conversation.id)
    assert [message.content for message in path] == ["Hi Kim."]
    assert len(path[0].siblings) == 2
    assert services.store.message("", path[0].siblings[1]).content == "Ho Kim."
    assert services.store.get("", conversation.id).setup.character == "Ada"
    with pytest.raises(NotFound):
        begin(services, character="Nobody")


@pytest.mark.parametrize("manner", ["chat", "chat-instruct", "instruct"])
def test_the_preview_is_the_prompt_that_is_sent(manner: str, services: Services) -> None:
    conversation = begin(services, manner=manner)
    seen = previews(services).exact(conversation, "One?", PARAMS)
    assert ask(services, conversation, "One?") == quoted(seen.text)
    again = previews(services).exact(services.store.get("", conversation.id), "", PARAMS)
    assert again.text == seen.text, "without a draft it is the prompt of the last reply"


@pytest.mark.parametrize("manner", ["chat", "chat-instruct", "instruct"])
def test_the_gauge_is_the_exact_prompt_within_a_few_tokens(manner: str, services: Services) -> None:
    conversation = begin(services, manner=manner)
    for text in ("One?", "Two, then?"):
        head = services.store.get("", conversation.id).head_id
        services.store.append("", conversation.id, head, "user", text, op_id=text)
        head = services.store.get("", conversation.id).head_id
        services.store.append("", conversation.id, head, "assistant", f"As you say: {text}", op_id=f"{text}/reply")
    conversation = services.store.get("", conversation.id)
    exact = previews(services).exact(conversation, "Three?", PARAMS)
    measured = previews(services).gauge(conversation, "Three?", PARAMS)
    assert abs(measured.gauge.tokens - exact.tokens) <= 8
    assert measured.gauge.context == exact.context > 0
    assert measured.left_out == ()


def test_the_gauge_names_the_messages_that_the_prompt_leaves_out(services: Services) -> None:
    conversation = services.store.create("", title="long")
    context = services.models.engine().info.context_tokens
    for number in range(8):
        head = services.store.get("", conversation.id).head_id
        role = "user" if number % 2 == 0 else "assistant"
        services.store.append("", conversation.id, head, role, "x" * (context // 8), op_id=f"m{number}")  # type: ignore[arg-type]
    conversation = services.store.get("", conversation.id)
    measured = previews(services).gauge(conversation, "y" * 200, PARAMS)
    exact = previews(services).exact(conversation, "y" * 200, PARAMS)
    assert measured.gauge.dropped == exact.dropped > 0
    assert measured.left_out == tuple(m.id for m in services.store.path("", conversation.id)[: exact.dropped])


def test_a_bad_template_is_refused_and_nothing_is_shown_without_a_message(services: Services) -> None:
    looks = previews(services)
    for template in ("{% if %}", "{{ raise_exception('no') }}", "{% for x in range(10**9) %}x{% endfor %}"):
        with pytest.raises(BadChatTemplate):
            looks.check_template(template)
    looks.check_template("{{ messages[0].content }}")
    with pytest.raises(BadValue):
        looks.exact(services.store.create(""), "", PARAMS)
    conversation = services.store.create("")
    broken = replace(conversation, setup=Setup(template="{% if %}"))
    with pytest.raises(BadChatTemplate):
        looks.exact(broken, "Hi", PARAMS)


def test_without_a_model_there_is_no_prompt_to_show(services: Services) -> None:
    services.models.unload()
    with pytest.raises(NoModelLoaded):
        previews(services).gauge(services.store.create(""), "Hi", PARAMS)
    previews(services).check_template("{% if %}")


def test_the_users_message_is_written_without_being_stored(services: Services) -> None:
    conversation = begin(services)
    ask(services, conversation, "One?")
    head = services.store.get("", conversation.id).head_id
    reply = services.chat.impersonate("", conversation.id, head, "Well, ", PARAMS)
    found = services.chat.running("", impersonation(conversation.id))
    assert found is None or found.message_id == reply.message_id
    while not (view := reply.wait(reply.view().version, 10)).finished:
        pass
    assert view.text.startswith("Well, ") and view.text.endswith("«im_start»user⏎")
    assert len(services.store.path("", conversation.id)) == 3


def test_a_greeting_is_neither_continued_nor_made_anew_but_the_user_can_be_written_after_it(services: Services) -> None:
    conversation = begin(services)
    greeting = str(conversation.head_id)
    for act in (services.chat.continue_reply, services.chat.regenerate):
        with pytest.raises(BadValue):
            act("", conversation.id, greeting, PARAMS)
    assert services.store.message("", greeting).status == "complete"
    reply = services.chat.impersonate("", conversation.id, greeting, "", PARAMS)
    while not (view := reply.wait(reply.view().version, 10)).finished:
        pass
    assert view.status == "complete", view.error


def test_a_reply_begins_as_the_setup_says_and_so_is_told_to_the_model(services: Services) -> None:
    conversation = begin(services, reply_start="{{char}} nods")
    assert ask(services, conversation, "One?").startswith("Ada nods")


def test_a_setup_is_kept_and_one_with_nobody_is_refused(services: Services) -> None:
    conversation = begin(services)
    setup = Setup(
        manner="chat-instruct", character="Ada", command="Do <|prompt|>", thinking="off", reply_start="\ud800"
    )
    services.chat.set_setup("", conversation.id, setup)
    assert services.store.get("", conversation.id).setup == setup
    with pytest.raises(NotFound):
        services.chat.set_setup("", conversation.id, Setup(manner="chat", character="Nobody"))
    assert services.store.get("", conversation.id).setup == setup


def test_a_character_that_was_deleted_is_named_by_the_reply(services: Services) -> None:
    conversation = begin(services)
    services.library.characters.delete("Ada")
    head = services.store.get("", conversation.id).head_id
    reply = services.chat.reply("", conversation.id, head, "One?", PARAMS, op_id="operation")
    while not (view := reply.wait(reply.view().version, 10)).finished:
        pass
    assert view.status == "error" and "no character 'Ada'" in str(view.error)
