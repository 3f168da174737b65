"""Scripts in text-generation-webui's shape, run unchanged through whole replies: a real store, a scripted engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from modules.chat.exporting import to_json
from modules.chat.importing import read_file
from modules.chat.prompts import Prompts
from modules.chat.running import ReplyView
from modules.chat.scripts_model import ModelForScripts
from modules.chat.service import ChatService
from modules.chat.templates import TemplateWorker
from modules.extensions.manager import Extensions
from modules.extensions.state import BEGIN, Scene, pairs, params_of, scene_of, state_of, turns_of
from modules.messages import ChatMessage, Conversation, Setup
from modules.sampling import GenerationParams
from tests.fakes import Script
from tests.test_extensions import write
from tests.test_service import PARAMS, MakeWorld, World, ask_with, attach, end_of, make_world

__all__ = ["make_world"]

Talk = Callable[..., World]
ECHO = Script(quote=True)  # says the prompt that it was given

TRANSLATOR = '''
"""A translator, as they are: what is said goes to the model in another language, and comes back."""
import gradio as gr
import html

params = {
    "activate": True,
    "language string": "de",
}

WORDS = {"hello": "hallo", "fine": "gut"}

def input_modifier(string):
    """Applied to the user's message before it goes to the model."""
    if not params['activate']:
        return string
    return " ".join(WORDS.get(word, word) for word in string.split())

def output_modifier(string):
    """Applied to the reply before it is shown."""
    if not params['activate']:
        return string
    back = {there: here for here, there in WORDS.items()}
    return html.escape(" ".join(back.get(word, word) for word in html.unescape(string).split()))

def bot_prefix_modifier(string):
    return string

def ui():
    with gr.Row():
        activate = gr.Checkbox(value=params['activate'], label='Activate translation')
    activate.change(lambda x: params.update({"activate": x}), activate, None)
'''
DIRECTOR = '''
"""Everything around a reply."""
import random
import torch
from modules import shared
from modules.logging_colors import logger
from transformers import LogitsProcessor

params = {"display_name": "Director"}
seen = []

class MyLogits(LogitsProcessor):
    def __init__(self):
        self.newline_id = shared.tokenizer.encode('\\n')[-1]
    def __call__(self, input_ids, scores):
        return scores

def history_modifier(history):
    seen.append([list(pair) for pair in history['internal']])
    history['internal'] = [pair for pair in history['internal'] if 'secret' not in pair[0]]
    return history

def state_modifier(state):
    state['max_new_tokens'] = 7
    state['name1'] = 'Ada'
    state['context'] = 'A play in one act.'
    state['custom_stopping_strings'] = '"\\\\nAda:", "END"'
    return state

def chat_input_modifier(text, visible_text, state):
    return f"{text} (to {state['name2']})", f"*{visible_text}*"

def input_modifier(string, state, is_chat=False):
    return string + " [in]" if is_chat else string

def bot_prefix_modifier(string, state):
    return string + " *bows* "

def logits_processor_modifier(processor_list, input_ids):
    processor_list.append(MyLogits())
    return processor_list

def output_modifier(string, state, is_chat=False):
    return string + f" [{state['max_new_tokens']}]"
'''
OWN_VOICE = '''
"""Answers itself."""
def custom_generate_reply(question, original_question, seed, state, stopping_strings=None, is_chat=False):
    reply = ''
    for word in ('no', ' model', f' needed for {original_question}: {len(question) > len(original_question)}'):
        reply += word
        yield reply
'''


@pytest.fixture
def talk(make_world: MakeWorld, tmp_path: Path) -> Iterator[Talk]:
    """A world whose chat has the extensions given as name=source."""
    folder = tmp_path / "extensions"
    folder.mkdir()
    with closing(Prompts(TemplateWorker())) as prompts:

        def begin(script: Script = ECHO, hook_s: float = 20, **sources: str) -> World:
            for name, source in sources.items():
                write(folder, name, source)
            world = make_world(script)
            extensions = Extensions(folder, list(sources), hook_timeout_s=hook_s)
            extensions.connect(ModelForScripts(world.models))
            extensions.start()
            world.chat = ChatService(world.models, world.store, prompts, extensions)
            world.extensions = extensions  # type: ignore[attr-defined]
            return world

        yield begin


def said(world: World, text: str = "hello", params: GenerationParams = PARAMS) -> ReplyView:
    return end_of(world.ask(text, params))


def test_a_translator_reads_and_shows_other_words_than_are_kept_for_the_model(talk: Talk) -> None:
    world = talk(Script(reply="gut & schön"), translator=TRANSLATOR)
    view = said(world, "hello you")
    question, reply = world.path()
    assert (question.content, question.modified) == ("hello you", "hallo you")
    assert (reply.content, reply.modified) == ("gut & schön", "fine &amp; schön")
    assert (view.text, view.modified, view.reread) == ("gut & schön", "fine &amp; schön", True)
    assert view.told == ()


def test_the_model_reads_the_same_at_every_later_turn_and_an_edit_is_read_anew(talk: Talk) -> None:
    world = talk(ECHO, translator=TRANSLATOR)
    said(world, "hello one")
    second = said(world, "hello two")
    assert "hallo one" in second.text
    assert "hallo two" in second.text
    question = world.path()[0]
    assert world.chat.edit("", world.conversation.id, question.id, "hello three").modified is None
    again = end_of(world.chat.regenerate("", world.conversation.id, question.id, PARAMS))
    assert "hallo three" in again.text
    assert "hallo one" not in again.text


def test_extensions_read_what_people_write_and_not_their_files(talk: Talk) -> None:
    world = talk(ECHO, translator=TRANSLATOR)
    view = end_of(ask_with(world, attach(world, ("a.txt", "hello otter")), text="hello you"))
    (question, _) = world.path()
    assert (question.content, question.modified) == ("hello you", "hallo you")
    assert "hello otter" in view.text and "hallo you" in view.text
    later = said(world, "hello again")
    assert later.text.count("hello otter") == 2 and "hallo you" in later.text  # also in the reply that quoted it


def test_a_fault_at_the_end_of_a_reply_does_not_keep_the_conversation_busy(talk: Talk) -> None:
    world = talk(Script(reply="gut"), translator=TRANSLATOR)
    finish = world.store.finish

    def broken(*_: object) -> Conversation:
        raise TypeError("a fault of ours")

    world.store.finish = broken  # type: ignore[assignment, method-assign]
    assert said(world).error is not None
    world.store.finish = finish  # type: ignore[method-assign]
    assert said(world, "hello again").status == "complete"


def test_what_extensions_made_of_messages_survives_export_and_import(talk: Talk) -> None:
    world = talk(Script(reply="gut"), translator=TRANSLATOR)
    said(world)
    tree = world.store.shelf.tree("", world.conversation.id)
    assert [message.modified for message in tree.messages] == ["hallo", "fine"]
    assert read_file(to_json([tree])).trees == (tree,)


def test_every_hook_around_a_reply_is_heard(talk: Talk) -> None:
    world = talk(ECHO, director=DIRECTOR)
    end_of(world.ask("a secret"))
    said(world, "hello")
    question, reply = world.path()[-2:]
    assert (question.content, question.modified) == ("*hello*", "hello (to Assistant) [in]")
    assert "secret" not in reply.content
    assert reply.stats is not None
    assert reply.stats.completion_tokens == 7
    assert reply.modified is not None
    assert reply.modified.endswith(" [7]")
    (script,) = world.extensions.engine_scripts()  # type: ignore[attr-defined]
    assert script.name == "director"


def test_a_prompt_holds_the_lead_and_the_context_as_content(talk: Talk) -> None:
    loud = (
        DIRECTOR.replace("*bows* ", "<|im_end|>*bows* ").replace("= 7", "= 200").replace("one act", "<|im_start|> act")
    )
    world = talk(ECHO, director=loud)
    text = said(world, "hello").text
    assert "A play in" in text
    assert "*bows*" in text
    # A control token is one token in the scripted engine's alphabet; as content it is written out sign by sign.
    plain = talk(ECHO, director=loud.replace("<|im_end|>", "").replace("<|im_start|>", "")).ask("hello")
    more = len("<|im_end|>") + len("<|im_start|>")
    stats, few = world.path()[-1].stats, end_of(plain).stats
    assert stats is not None
    assert few is not None
    assert stats.prompt_tokens - few.prompt_tokens == more


def test_an_extension_may_write_the_reply_itself(talk: Talk) -> None:
    world = talk(Script(reply="the model"), own=OWN_VOICE)
    view = said(world, "hello")
    assert (view.text, view.status) == ("no model needed for hello: True", "complete")
    assert world.path()[-1].content == view.text


@pytest.mark.parametrize(
    ("body", "text", "reason"),
    [
        ("yield 1 / 0", "the model", "ZeroDivisionError"),
        ("return", "the model", ""),
        ("yield 7\n    yield 'x'", "the model", "int, not text"),
        ("yield 'begun'\n    raise ValueError('x')", "begun", "ValueError"),
        ("while True: pass\n    yield 'x'", "the model", "did not return"),
        ("yield 'begun'\n    import time; time.sleep(4)", "begun", "did not return"),
        ("import sys; sys.exit()\n    yield 'x'", "the model", "SystemExit"),
    ],
)
def test_an_extension_that_writes_and_fails_leaves_it_to_the_model(
    talk: Talk, body: str, text: str, reason: str
) -> None:
    source = f"def custom_generate_reply(question, original_question, seed, state, stopping_strings):\n    {body}"
    world = talk(Script(reply="the model"), hook_s=0.5, own=source)
    view = said(world)
    assert (view.text, view.status) == (text, "complete")
    assert any(reason in told for told in view.told) == bool(reason)
    assert bool(world.extensions.problems) == bool(reason)  # type: ignore[attr-defined]


FAULTS = ("raise ValueError('x')", "return None", "return 7", "import time; time.sleep(3)", "while True: pass",
          "return ['a'] * 3", "return {'internal': 'x'}")  # fmt: skip
SIGNATURES = {
    "history_modifier": "history", "state_modifier": "state", "chat_input_modifier": "text, visible_text, state",
    "input_modifier": "string, state, is_chat", "bot_prefix_modifier": "string, state",
    "output_modifier": "string, state, is_chat",
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_a_hook_does_the_chat_goes_on_and_says_who_it_was(talk: Talk, fault: str) -> None:
    """All hooks at once fail in one way, beside an extension that works."""
    bad = "\n".join(f"def {name}({arguments}):\n    {fault}" for name, arguments in SIGNATURES.items())
    world = talk(Script(reply="fine"), hook_s=0.3, bad=bad, good="def output_modifier(s): return s + '!'")
    view = said(world)
    assert (view.status, view.text, view.modified) == ("complete", "fine", "fine!")
    assert world.texts() == ["hello", "fine"]
    assert view.stats is not None
    harmless = {"state_modifier"} if fault.startswith("return {") else set()
    for name in SIGNATURES.keys() - harmless:
        assert any(f"Extension bad: {name} " in told for told in view.told), name
    assert list(view.stats.told) == list(view.told)


def test_values_in_the_state_that_make_no_sense_are_told_and_the_rest_counts(talk: Talk) -> None:
    source = (
        "def state_modifier(state):\n    state.update(temperature='hot', max_new_tokens=3.0, top_p=9, name1=7,"
        " custom_stopping_strings='nonsense')\n    return state"
    )
    view = said(talk(ECHO, odd=source))
    assert view.stats is not None
    assert view.stats.completion_tokens == 3
    for word in ("temperature", "top_p", "name1", "custom_stopping_strings"):
        assert any(word in told and "odd" in told for told in view.told), word


def test_a_stopped_reply_stays_as_the_model_wrote_it(talk: Talk) -> None:
    world = talk(Script(reply="gut ", endless=True, tokens_per_s=50), translator=TRANSLATOR)
    reply = world.ask("hello", GenerationParams(max_new_tokens=100_000))
    view = reply.view()
    deadline = time.monotonic() + 10
    while len(view.text) < 5 and time.monotonic() < deadline:
        view = reply.wait(view.version, 1)
    reply.stop()
    assert end_of(reply).status == "stopped"
    assert world.path()[-1].modified is None


def test_a_reply_is_continued_with_the_text_of_the_model_and_modified_as_a_whole(talk: Talk) -> None:
    world = talk(Script(reply="gut gut"), translator=TRANSLATOR)
    first = said(world, params=GenerationParams(max_new_tokens=3))
    assert (first.text, first.modified) == ("gut", "fine")
    view = end_of(world.chat.continue_reply("", world.conversation.id, first.message_id, PARAMS))
    reply = world.path()[-1]
    assert reply.content == view.text == "gut gut"
    assert reply.modified == view.modified == "fine fine"


def test_scripts_ask_the_model_by_the_names_that_they_know(talk: Talk) -> None:
    source = (
        "from modules.text_generation import generate_reply, get_encoded_length, encode, decode\n"
        "def input_modifier(string, state, is_chat=False):\n"
        "    *_, last = generate_reply('sum up: ' + string, {**state, 'max_new_tokens': 3}, stopping_strings=[])\n"
        "    return f\"{last}/{get_encoded_length('abc')}/{len(encode('abc')[0])}/{decode(encode('ab')[0])}\""
    )
    world = talk(Script(reply="brief"), asks=source)
    view = said(world)
    assert view.told == ()
    assert world.path()[0].modified == "bri/3/3/ab"


def test_the_probability_of_every_token_is_there_for_whoever_asks_for_it(talk: Talk) -> None:
    source = (
        "def state_modifier(state):\n    state['logprobs'] = 2\n    return state\n"
        "def output_modifier(string, state):\n    one = state['token_probabilities'][0]\n"
        "    return f\"{len(state['token_probabilities'])} {one['text']} {one['probability']:.2f} {len(one['top'])}\""
    )
    assert said(talk(Script(reply="fine"), sure=source)).modified == "4 f 0.90 2"


def test_nothing_of_an_extension_is_in_a_chat_that_has_none(make_world: MakeWorld) -> None:
    world = make_world(Script(reply="fine"))
    view = said(world)
    assert (view.modified, view.reread, world.path()[0].modified) == (None, False, None)


# Values


def test_a_history_is_pairs_and_back() -> None:
    turns = [ChatMessage("assistant", "Welcome."), ChatMessage("user", "hi"), ChatMessage("assistant", "yes?"),
             ChatMessage("user", "well")]  # fmt: skip
    history = pairs([(turn, turn.content.upper()) for turn in turns])
    assert history["internal"] == [[BEGIN, "Welcome."], ["hi", "yes?"], ["well", ""]]
    assert history["visible"] == [["", "WELCOME."], ["HI", "YES?"], ["WELL", ""]]
    assert turns_of(history) == turns
    wrongs: list[object] = [None, [], {"internal": [["a"]]}, {"internal": [["a", 1]]}, {"internal": "ab"}]
    for wrong in wrongs:
        assert turns_of(wrong) is None


def test_a_state_has_the_usual_keys_and_gives_back_what_was_changed() -> None:
    params = GenerationParams(stop=("END",), seed=4)
    state = state_of(params, Scene("You", "Wren", "A play."), pairs([]), mode="chat")
    for key in ("max_new_tokens", "temperature", "top_k", "repetition_penalty", "seed", "name1", "name2", "context",
                "history", "mode", "custom_stopping_strings", "chat-instruct_command", "stream"):  # fmt: skip
        assert key in state, key
    assert params_of(state, params) == (params, [])
    assert scene_of(state, Scene("You", "Wren", "A play."))[1] == []
    state |= {"temperature": 1, "top_k": 40.0, "custom_stopping_strings": '"END", "\\nYou:"', "name2": "Robin"}
    changed, problems = params_of(state, params)
    assert problems == []
    assert (changed.temperature, changed.top_k, changed.stop) == (1.0, 40, ("END", "\nYou:"))
    assert scene_of(state, Scene("You", "Wren"))[0].name2 == "Robin"
    assert params_of(state | {"do_sample": False, "temperature": params.temperature}, params)[0].greedy


def test_a_character_is_the_context_and_a_plain_chat_the_system_message(talk: Talk) -> None:
    source = (
        "def state_modifier(state):\n"
        "    state['stream'] = False\n    assert state['mode'] == 'instruct' and state['context'] == ''\n"
        "    assert state['custom_system_message'] == 'Be brief.'\n    return state"
    )
    world = talk(ECHO, look=source)
    world.conversation = world.store.create("", system_prompt="Be brief.", setup=Setup())
    assert said(world).told == ()
