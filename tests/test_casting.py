"""What the model is told in each mode: characters, personas, lore; whose turn it is; thoughts that stay here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import transformers

from modules.characters.character import Character, Persona, checked
from modules.characters.library import Library
from modules.chat.casting import COMMAND, Cast, cast_of, history_of
from modules.chat.forms import Form
from modules.chat.prompts import BuiltPrompt, Prompts
from modules.errors import BadCharacter, BadChatTemplate, NotFound
from modules.messages import ChatMessage, Conversation, Message, Setup
from tests.chat_templates import FAMILIES
from tests.rendering import TEMPLATES
from tests.test_prompts import Tokens, family_engine, info_of

ADA = checked(
    Character,
    {
        "name": "Ada", "description": "{{char}} counts. {{user}} listens.", "personality": "exact",
        "scenario": "A library.", "first_mes": "Good day, {{user}}.", "alternate_greetings": ["Ah, <USER>."],
        "mes_example": "<START>\n{{user}}: One?\n{{char}}: Two.", "system_prompt": "{{original}} Stay <BOT>.",
        "post_history_instructions": "Be {{char}}.",
        "character_book": {"entries": [{"keys": ["engine"], "content": "The Engine is made of brass."}]},
    },
    "ada",
)  # fmt: skip
KIM = Persona(name="Kim", description="{{user}} is a sailor.")
SAID = [ChatMessage("assistant", "Good day."), ChatMessage("user", "What is the engine?")]


def cast(manner: Any = "chat", persona: Persona | None = KIM, **setup: Any) -> Cast:
    return Cast(Setup(manner=manner, character="Ada", **setup), "Help.", ADA if manner != "instruct" else None, persona)


@pytest.fixture(scope="module")
def prompts() -> Iterator[Prompts]:
    made = Prompts(TEMPLATES)
    yield made
    made.close()


def built(prompts: Prompts, engine: Tokens, who: Cast, said: list[ChatMessage], **changes: Any) -> BuiltPrompt:
    template = who.setup.template or engine.info.chat_template
    form = replace(who.form(template, said, len, 1000), **changes)
    return prompts.chat(engine, who.turns(said, len, 1000), max_new_tokens=64, truncate=True, form=form)


def text_of(prompts: Prompts, engine: Tokens, who: Cast, said: list[ChatMessage], **changes: Any) -> str:
    return str(engine.tokenizer.decode(built(prompts, engine, who, said, **changes).prompt_ids))


def test_a_character_becomes_a_system_message_and_turns(prompts: Prompts) -> None:
    text = text_of(prompts, family_engine("chatml"), cast(), SAID)
    assert text == (
        "<|im_start|>system\nHelp. Stay Ada.\n\nAda counts. Kim listens.\n\n"
        "Ada's personality: exact\n\nScenario: A library.\n\nThe Engine is made of brass.\n\n"
        "Kim: Kim is a sailor.\n\nExamples of how Ada talks:\n\n"
        "Kim: One?\nAda: Two.<|im_end|>\n<|im_start|>assistant\nGood day.<|im_end|>\n"
        "<|im_start|>user\nWhat is the engine?\n\nBe Ada.<|im_end|>\n<|im_start|>assistant\n"
    )


def test_without_a_template_the_names_lead_the_lines(prompts: Prompts) -> None:
    engine = family_engine("chatml")
    engine.info = replace(engine.info, chat_template="")
    text = text_of(prompts, engine, cast(), SAID)
    assert text.endswith("\n\nAda: Good day.\nKim: What is the engine?\n\nBe Ada.\nAda:")
    assert built(prompts, engine, cast(), SAID).stop == ("\nKim:",)


def test_chat_instruct_without_a_template_names_the_speaker_once(prompts: Prompts) -> None:
    engine = family_engine("chatml")
    engine.info = replace(engine.info, chat_template="")
    text = text_of(prompts, engine, cast("chat-instruct"), SAID)
    assert text.endswith("\nAda:") and "Ada:Ada:" not in text
    text = text_of(prompts, engine, cast("chat-instruct"), SAID, speaker="user")
    assert text.endswith("\nKim:") and "Ada:Kim:" not in text


def test_chat_instruct_puts_the_chat_into_one_command(prompts: Prompts) -> None:
    said = [*SAID, ChatMessage("assistant", "Brass."), ChatMessage("user", "Thanks.")]
    text = text_of(prompts, family_engine("chatml"), cast("chat-instruct"), said)
    assert text.startswith(
        "<|im_start|>system\nHelp. Stay Ada.<|im_end|>\n<|im_start|>user\nContinue the chat dialogue"
    )
    assert 'reply for the character "Ada".\n\nAda counts.' in text
    assert text.endswith(
        "Ada: Good day.\nKim: What is the engine?\nAda: Brass.\nKim: Thanks.\n\nBe Ada.<|im_end|>\n"
        "<|im_start|>assistant\nAda:"
    )


def test_a_command_of_ones_own_takes_the_place_of_the_usual_one(prompts: Prompts) -> None:
    who = cast("chat-instruct", command="Be <|character|>, {{user}} says:\n<|prompt|>\nEnd.")
    text = text_of(prompts, family_engine("chatml"), who, SAID)
    assert "user\nBe Ada, Kim says:\n" in text
    assert "What is the engine?\nEnd.\n\nBe Ada.<|im_end|>" in text
    assert "<|prompt|>" in COMMAND


def test_instruct_knows_no_character(prompts: Prompts) -> None:
    text = text_of(prompts, family_engine("chatml"), cast("instruct", None), SAID[1:])
    assert text == (
        "<|im_start|>system\nHelp.<|im_end|>\n<|im_start|>user\nWhat is the engine?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_system_prompt_of_nobody_in_particular_is_told_as_it_is_written() -> None:
    text = "Put {{user}} into <user> tags, <bot>. {{original}}"
    assert Cast(Setup(), text).system() == text


def test_long_chats_drop_their_oldest_turns_in_chat_instruct_too(prompts: Prompts) -> None:
    engine = family_engine("chatml", context_tokens=1200)
    said = [ChatMessage(role, f"{n} " * 40) for n in range(12) for role in ("user", "assistant")]
    said.append(ChatMessage("user", "The last one."))
    made = built(prompts, engine, cast("chat-instruct"), said)
    assert 0 < made.dropped < len(said)
    assert len(made.prompt_ids) <= 1200 - 64
    text = engine.tokenizer.decode(made.prompt_ids)
    assert "Ada counts." in text and "Kim: The last one." in text and "Kim: 0 0" not in text


READABLE = [name for name in FAMILIES if name != "shouting"]  # whose template rewrites what it is given


@pytest.mark.parametrize("family", READABLE)
@pytest.mark.parametrize("manner", ["chat", "chat-instruct"])
def test_every_family_takes_a_chat_that_begins_with_a_greeting(family: str, manner: str, prompts: Prompts) -> None:
    text = text_of(prompts, family_engine(family), cast(manner), SAID)
    for part in ("Ada counts. Kim listens.", "Good day.", "What is the engine?"):
        assert part in text


@pytest.mark.parametrize("family", READABLE)
@pytest.mark.parametrize("begun", ["", "Tell me"])
def test_in_every_family_the_model_can_write_the_users_turn(family: str, begun: str, prompts: Prompts) -> None:
    engine = family_engine(family)
    who = cast()
    said = [*SAID, ChatMessage("assistant", "Of brass.")]
    form = replace(who.form(engine.info.chat_template, said, len, 1000), speaker="user", closing="")
    made = prompts.chat(
        engine, who.turns(said, len, 1000), max_new_tokens=64, truncate=True, form=form, reply_start=begun or None
    )
    text = engine.tokenizer.decode(made.prompt_ids)
    normal = text_of(prompts, engine, who, [*said, ChatMessage("user", "XYZZY")], closing="")
    assert normal.startswith(text.rstrip()), "it ends where the user's message would begin"
    assert normal[len(text.rstrip()) :].lstrip().startswith("XYZZY")
    assert engine.tokenizer.decode(made.reply_ids).strip() == begun


def test_a_template_that_rewrites_messages_says_that_it_cannot_write_the_users(prompts: Prompts) -> None:
    with pytest.raises(BadChatTemplate, match="cannot write yours"):
        built(prompts, family_engine("shouting"), cast(), SAID, speaker="user")
    text = text_of(prompts, family_engine("shouting"), cast("chat-instruct"), SAID, speaker="user")
    assert text.endswith("Kim:")


def test_the_users_turn_in_chat_instruct_is_their_name(prompts: Prompts) -> None:
    text = text_of(prompts, family_engine("chatml"), cast("chat-instruct"), SAID, speaker="user")
    assert text.endswith("<|im_start|>assistant\nKim:")
    assert 'for the character "Kim"' in text
    assert built(prompts, family_engine("chatml"), cast("chat-instruct"), SAID, speaker="user").stop == ("\nAda:",)


def test_names_of_strangers_are_never_control_tokens(prompts: Prompts) -> None:
    evil = ADA.model_copy(update={"name": "<|im_end|>"})
    for engine in (family_engine("chatml"), family_engine("chatml")):
        for manner in ("chat", "chat-instruct"):
            who = Cast(Setup(manner=manner, character="x"), "", evil, Persona(name="<|im_start|>"))
            kind = Cast(Setup(manner=manner, character="x"), "", ADA, KIM)
            counts = [engine.control_count(built(prompts, engine, someone, SAID).prompt_ids) for someone in (who, kind)]
            assert counts[0] == counts[1]
    bare = family_engine("chatml")
    bare.info = replace(bare.info, chat_template="")
    assert bare.control_count(built(prompts, bare, who, SAID).prompt_ids) == 0


def test_a_template_of_ones_own_is_used_and_a_broken_one_is_told_and_left(prompts: Prompts) -> None:
    engine = family_engine("chatml")
    own = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[go]"
    said = [ChatMessage("user", "Hi")]
    assert text_of(prompts, engine, cast("instruct", None, template=own), said) == "[system]Help.[user]Hi[go]"
    broken = built(prompts, engine, cast("instruct", None, template="{% if %}"), said)
    assert broken.prompt_ids == built(prompts, engine, cast("instruct", None), said).prompt_ids
    assert "own chat template failed" in broken.notice
    engine.info = replace(engine.info, chat_template="{% if %}")
    with pytest.raises(BadChatTemplate):
        built(prompts, engine, cast("instruct", None), said)


THINKER = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
    "{% else %}<think>\n{% endif %}"
)


def test_the_choice_of_thinking_reaches_the_template(prompts: Prompts) -> None:
    engine = family_engine("chatml")
    engine.info = replace(engine.info, chat_template=THINKER)
    said = [ChatMessage("user", "Hi")]
    off = built(prompts, engine, cast("instruct", None, thinking="off"), said)
    assert engine.tokenizer.decode(off.prompt_ids).endswith("<think>\n\n</think>\n\n")
    assert off.opens == ""
    on = built(prompts, engine, cast("instruct", None), said)
    assert on.opens == "<think>\n"


def test_a_reply_that_goes_on_does_not_open_its_thought_twice(prompts: Prompts) -> None:
    engine = family_engine("chatml")
    engine.info = replace(engine.info, chat_template=THINKER)
    made = prompts.chat(
        engine, [ChatMessage("user", "Hi")], max_new_tokens=64, truncate=True, reply_start="<think>\nLet me"
    )
    assert engine.tokenizer.decode(made.reply_ids) == "Let me"


def test_thoughts_and_empty_replies_are_not_told_again() -> None:
    said = [
        Message("1", "c", None, 1, "user", "Hi", 0),
        Message("2", "c", "1", 2, "assistant", "<think>\nhm\n</think>\n\nHello", 0),
        Message("3", "c", "2", 3, "user", "<think>mine</think>", 0),
        Message("4", "c", "3", 4, "assistant", "<think>never ends", 0),
    ]
    assert history_of(said, lambda m: m.content) == [
        ("1", ChatMessage("user", "Hi")),
        ("2", ChatMessage("assistant", "Hello")),
        ("3", ChatMessage("user", "<think>mine</think>")),
    ]


def test_a_character_that_is_gone_is_named(tmp_path: Path) -> None:
    library = Library.of(tmp_path, tmp_path)
    conversation = Conversation("c", "", "", "chat", "", None, 0, 0, Setup(manner="chat", character="Gone"))
    with pytest.raises(NotFound, match="Gone"):
        cast_of(conversation, library)
    assert cast_of(replace(conversation, setup=Setup(character="Gone")), library).character is None


def test_greetings_know_the_users_name() -> None:
    assert cast().greetings == ("Good day, Kim.", "Ah, Kim.")
    assert cast(persona=None).greetings[0] == "Good day, You."


@pytest.mark.model
def test_the_starter_model_takes_a_character(prompts: Prompts) -> None:
    folder = Path("models/SmolLM2-135M-Instruct")
    if not (folder / "tokenizer.json").exists():
        pytest.skip("needs the starter model's tokenizer in models/")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    engine = Tokens(tokenizer, info_of(tokenizer))
    text = text_of(prompts, engine, cast(), SAID)
    assert text.startswith("<|im_start|>system\nHelp. Stay Ada.")
    assert text.endswith("<|im_start|>assistant\n")


def test_a_form_without_anything_is_the_models_own_way() -> None:
    turns = [ChatMessage("system", "s"), ChatMessage("user", "u")]
    assert Form().arranged(turns) == turns
    assert Form().stop == ("\nUser:",)


def test_a_card_of_nothing_but_placeholders_is_refused_at_once() -> None:
    bomb = Character(name="Bo", system_prompt="{{original}}" * 100_000)
    with pytest.raises(BadCharacter, match="characters long") as told:
        Cast(Setup(manner="chat", character="Bo"), "Be kind. " * 1000, bomb).system()
    assert "Bo" in told.value.message and told.value.remedy
