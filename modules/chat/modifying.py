"""What extensions do to one reply: its history, parameters, question and beginning before, its text after.

One Part a reply, made as it starts and used by its Writer's thread. Hooks run once, whatever is tried again; what they
make of a question is kept with it, so that the model reads the same at every later turn. Texts stay content: nothing
that a hook returns becomes a control token. How hooks are called, and what happens to one that fails, is
extensions/manager.py's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from modules.chat.forms import Form
from modules.chat.thinking import answer_of, split
from modules.engine.base import ModelInfo, TokenLogprob
from modules.extensions.faults import are_two_texts, is_dict, is_text
from modules.extensions.manager import Extensions
from modules.extensions.script import EngineScript
from modules.extensions.state import Scene, State, pairs, params_of, scene_of, state_of, turns_of
from modules.messages import ChatMessage, Conversation, Message
from modules.sampling import GenerationParams

NO_LOGITS = ("llamacpp", "remote")


@dataclass(frozen=True, slots=True)
class Told:
    """What the model is told, as the hooks have left it. `lead` is how the reply begins for the model alone."""

    turns: tuple[ChatMessage, ...]
    form: Form
    lead: str = ""


class Part:
    """The extensions' part in one reply of a chat."""

    is_chat = True

    def __init__(
        self, extensions: Extensions, params: GenerationParams, keep_question: Callable[[str, str, str], object]
    ) -> None:
        """`keep_question(id, content, modified)` keeps what became of a question."""
        self.params = params
        self.told: list[str] = []
        self.changed_question = False
        self.scripts: tuple[EngineScript, ...] = ()
        self.on_slow: Callable[[str], None] = lambda _: None
        self._extensions = extensions
        self._keep_question = keep_question
        self._state: State = {}
        self._question = ""
        self._asked = ""
        self._done: Told | None = None

    def before(
        self,
        conversation: Conversation,
        turns: Sequence[ChatMessage],
        form: Form,
        path: Sequence[Message],
        *,
        engine: ModelInfo,
        continues: bool,
    ) -> Told:
        """What is told to the model in place of `turns` in `form`; `path` are the messages down to the question."""
        if self._done is None:
            self._done = self._before(conversation, list(turns), form, path, continues=continues)
            self._take_scripts(engine)
            if self._done.lead and engine.takes == "words":
                names = ", ".join(self._extensions.having("bot_prefix_modifier"))
                self._tell(
                    f"Extension {names}: bot_prefix_modifier: this server takes no beginning; it was passed over."
                )
        return self._done

    def _take_scripts(self, engine: ModelInfo) -> None:
        """What the engine is to run for this reply, where it can."""
        self.scripts = self._extensions.engine_scripts()
        if self.scripts and engine.loop in NO_LOGITS:
            where = "llama.cpp" if engine.loop == "llamacpp" else "a model on another server"
            names = ", ".join(script.name for script in self.scripts)
            self._tell(f"Extension {names}: logits_processor_modifier cannot work with {where}; it was passed over.")
            self.scripts = ()

    def _before(
        self,
        conversation: Conversation,
        turns: list[ChatMessage],
        form: Form,
        path: Sequence[Message],
        *,
        continues: bool,
    ) -> Told:
        system = turns.pop(0) if turns and turns[0].role == "system" else None
        question = turns.pop() if turns and turns[-1].role == "user" else None
        turns = self._history(turns, path)
        scene = _scene(conversation, form, system)
        self._state = self._changed_state(conversation, scene, turns)
        scene, problems = scene_of(self._state, scene)
        self._complain("state_modifier", problems)
        if question is not None:
            question = self._changed_question(question, path[-1] if path else None, continues=continues)
            turns.append(question)
        self.params, problems = params_of(self._state, self.params)
        self._complain("state_modifier", problems)
        told = [ChatMessage("system", scene.custom_system_message or scene.context)] if _has_system(scene, form) else []
        named = replace(
            form, user=scene.name1, char=scene.name2, command=scene.command if form.command else "",
            context=scene.context if form.command else form.context,
        )  # fmt: skip
        return Told((*told, *turns), named, "" if continues else self._lead(named))

    def _history(self, turns: list[ChatMessage], path: Sequence[Message]) -> list[ChatMessage]:
        if not self._extensions.having("history_modifier"):
            return turns
        shown: dict[tuple[str, str], str] = {(m.role, answer_of(m.content)): shown_text(m) for m in path}
        history = pairs([(turn, shown.get((turn.role, turn.content), turn.content)) for turn in turns])
        made = self._change("history_modifier", {"history": history}, "history", _is_history)
        return turns if made["internal"] == history["internal"] else turns_of(made) or []

    def _changed_state(self, conversation: Conversation, scene: Scene, turns: Sequence[ChatMessage]) -> State:
        setup = conversation.setup
        state = state_of(
            self.params,
            scene,
            pairs([(turn, turn.content) for turn in turns]),
            mode=setup.manner,
            character_menu=setup.character or "None",
            start_with=setup.reply_start,
            unique_id=conversation.id,
        )
        if not self._extensions.having("state_modifier"):
            return state
        return dict(self._change("state_modifier", {"state": state}, "state", is_dict))

    def _changed_question(self, question: ChatMessage, message: Message | None, *, continues: bool) -> ChatMessage:
        """The question as the model reads it: as it was kept, or as the hooks make it now."""
        self._asked = message.content if message else question.content
        if message is None or message.modified is not None or continues:
            self._question = question.content
            return question
        text = visible = message.content  # what its files say is not theirs to change
        files = question.content.removesuffix(message.content)
        values: State = {"text": text, "visible_text": visible, "state": self._state}
        text, visible = self._extensions.change(
            "chat_input_modifier", values, ("text", "visible_text"), are_two_texts, self._tell, self.on_slow
        )
        values = {"string": text, "state": self._state, "is_chat": True}
        text = self._change("input_modifier", values, "string", is_text)
        self._question = text
        if (text, visible) != (message.content, message.content):
            self._keep_question(message.id, visible, text)
            self.changed_question = True
        gap = "\n\n" if files and text and not message.content.strip() else ""
        return replace(question, content=f"{files}{gap}{text}")

    def _lead(self, form: Form) -> str:
        """What the hooks put behind the speaker's name."""
        if not self._extensions.having("bot_prefix_modifier"):
            return ""
        prefix = f"{form.char}:"
        values = {"string": prefix, "state": self._state}
        made = str(self._change("bot_prefix_modifier", values, "string", is_text))
        lead = made.removeprefix(prefix)
        return lead if form.prefix else lead.lstrip()

    def replies(self) -> bool:
        """Whether an extension may write the reply itself."""
        return bool(self._extensions.having("custom_generate_reply"))

    def reply(self, prompt: str, stop: Sequence[str]) -> Iterator[str]:
        """The reply that an extension writes, the whole so far each time; nothing where it fails at once."""
        values = {
            "question": prompt, "original_question": self._asked, "seed": self.params.seed, "state": self._state,
            "stopping_strings": list(stop), "is_chat": self.is_chat,
        }  # fmt: skip
        yield from self._extensions.reply(values, self._tell)

    def after(self, text: str, tokens: Sequence[TokenLogprob]) -> str | None:
        """What the page shows in place of a finished reply's answer; None where that is as it is."""
        answer = split(text).answer
        values = {"string": answer, "state": self._told_tokens(tokens), "is_chat": True}
        made = self._change("output_modifier", values, "string", is_text)
        return None if made == answer else str(made)

    def _told_tokens(self, tokens: Sequence[TokenLogprob]) -> State:
        """The state, with how likely each token was."""
        self._state["token_probabilities"] = [
            {
                "text": token.text,
                "probability": math.exp(min(token.logprob, 0.0)),
                "top": [(other, math.exp(min(logprob, 0.0))) for _, other, logprob in token.top],
            }
            for token in tokens
        ]
        return self._state

    def blame(self, extension: str, why: str) -> None:
        """The engine has passed an extension over."""
        self._extensions.stop_in_engine(extension, why)

    def _change(self, hook: str, values: State, changed: str, check: Callable[[object], str]) -> Any:
        return self._extensions.change(hook, values, (changed,), check, self._tell, self.on_slow)

    def _complain(self, hook: str, problems: Sequence[str]) -> None:
        for problem in problems:
            names = ", ".join(self._extensions.having(hook)) or ", ".join(self._extensions.names)
            self._tell(f"Extension {names}: {hook}: {problem}; it was passed over.")

    def _tell(self, sentence: str) -> None:
        if sentence not in self.told:
            self.told.append(sentence)


def shown_text(message: Message) -> str:
    """A message as the page shows it."""
    return message.modified if message.role == "assistant" and message.modified is not None else message.content


def _scene(conversation: Conversation, form: Form, system: ChatMessage | None) -> Scene:
    """A character's texts are the `context`, all else is the `custom_system_message`."""
    text = system.content if system else ""
    if form.command:
        return Scene(form.user, form.char, form.context, text, form.command)
    plays = conversation.setup.manner != "instruct" and bool(conversation.setup.character)
    return Scene(form.user, form.char, context=text) if plays else Scene(form.user, form.char, "", text)


def _has_system(scene: Scene, form: Form) -> bool:
    return bool((scene.custom_system_message if form.command else scene.custom_system_message or scene.context).strip())


def _is_history(value: object) -> str:
    return "" if turns_of(value) is not None else f"returned {type(value).__name__} that is no history"
