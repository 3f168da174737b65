"""The hooks of an extension, all on this screen. What stands in extensions/NAME/script.py under one of these names is
called; docs/extensions.md shows each at work. Names and order of arguments are text-generation-webui's; a script may
name them as it likes and leave out those at the end. `state` is the dict of state.py, shared by all hooks of one reply.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from pluggy import HookimplMarker, HookspecMarker

PROJECT = "snug"
hook = HookspecMarker(PROJECT)
implements = HookimplMarker(PROJECT)
State = dict[str, Any]


class Hooks(Protocol):
    """In the order in which they are called."""

    @hook
    def setup(self) -> None:
        """Once, when Snug starts: `words.update(json.loads(FILE.read_text()))`."""

    @hook
    def ui(self) -> None:
        """Once, to build controls on the Extensions tab: `gr.Slider(0, 9, params["n"]).change(set_n, …)`."""

    @hook
    def custom_css(self) -> str:
        """A style sheet for the page: `return ".message { font-family: serif }"`."""

    @hook
    def custom_js(self) -> str:
        """A script for the page: `return "document.addEventListener('snug:message', …)"`."""

    @hook
    def history_modifier(self, history: dict[str, Any]) -> dict[str, Any]:
        """What was said before: `history["internal"] = history["internal"][-4:]; return history`."""

    @hook
    def state_modifier(self, state: State) -> State:
        """Everything about this reply: `state["temperature"] = 0.1; return state`."""

    @hook
    def chat_input_modifier(self, text: str, visible_text: str, state: State) -> tuple[str, str]:
        """A new message, for the model and for the page: `return text + ASIDE, visible_text`."""

    @hook
    def input_modifier(self, string: str, state: State, is_chat: bool) -> str:
        """What the model reads of a new message: `return translate(string)`."""

    @hook
    def bot_prefix_modifier(self, string: str, state: State) -> str:
        """The beginning of the reply, the speaker's name at first: `return string + " *smiles*"`."""

    @hook
    def logits_processor_modifier(self, processor_list: list[Any], input_ids: Any) -> list[Any]:
        """In the engine's process, of transformers' logits processors: `processor_list.append(Mine())`."""

    @hook
    def custom_generate_reply(
        self, question: str, original_question: str, seed: int, state: State, stopping_strings: list[str], is_chat: bool
    ) -> Iterator[str]:
        """The reply in place of the model's, the whole so far each time: `yield "Hello"; yield "Hello there"`."""

    @hook
    def output_modifier(self, string: str, state: State, is_chat: bool) -> str:
        """What the page shows of a finished reply: `return string.replace(":)", "🙂")`."""


NAMES = tuple(name for name, member in vars(Hooks).items() if hasattr(member, f"{PROJECT}_spec"))
IN_THE_ENGINE = "logits_processor_modifier"
NOT_CALLED = ("custom_generate_chat_prompt", "tokenizer_modifier", "custom_tokenized_length", "input_hijack")
"""What text-generation-webui knows beside these, and Snug does not."""
