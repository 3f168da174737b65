"""A conversation as any dialect's client sent it → the prompt of the loaded model, and how to read the reply."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from modules.chat import thinking
from modules.chat.forms import Form
from modules.chat.offering import OfferedPrompt, Toolbox, without_thought
from modules.chat.prompts import Prompts, largest_share
from modules.engine.base import ModelInfo
from modules.engine.host.host import EngineHost
from modules.errors import BadValue
from modules.forms.tools import Offer
from modules.messages import ChatMessage
from modules.sampling import GenerationParams


@dataclass(frozen=True, slots=True)
class Asked:
    """A conversation: its `turns`, what the reply begins with, the tools that are offered, the `effort` of thinking in
    the words of OpenAI's reasoning_effort ("" for the template's own way). `files` are the pictures of each turn as
    they came, empty where none has any; see sent.py.
    """

    turns: Sequence[ChatMessage]
    reply_start: str | None = None
    offer: Offer | None = None
    effort: str = ""
    files: Sequence[tuple[bytes, ...]] = ()

    @property
    def has_tools(self) -> bool:
        """Whether tools are offered, or were used."""
        return self.offer is not None or any(turn.tool_calls or turn.role == "tool" for turn in self.turns)


class Prompting:
    """Builds prompts. Safe to use from any thread."""

    def __init__(self, prompts: Prompts) -> None:
        self._prompts = prompts
        self._toolbox = Toolbox(prompts)

    def build(
        self, engine: EngineHost, asked: Asked, *, max_new_tokens: int, held: bool = False, truncate: bool = False
    ) -> OfferedPrompt:
        """The prompt. `held`: the reply follows a form, so a model does not think first. With tools nothing is cut.

        Raises what Toolbox.chat raises.
        """
        thinks = thinking.choice_for(engine.info.chat_template, asked.effort)
        if asked.has_tools or (held and asked.reply_start is None and not truncate):
            if asked.reply_start is not None:
                raise BadValue(
                    "A reply with tools cannot be begun for the model.",
                    remedy="End with a message of the user's, or leave out the tools.",
                    param="messages",
                )
            return self._toolbox.chat(
                engine, asked.turns, asked.offer, max_new_tokens=max_new_tokens, thinks=thinks, held=held
            )
        make = partial(
            self._prompts.chat, engine, asked.turns, max_new_tokens=max_new_tokens, reply_start=asked.reply_start,
            truncate=truncate, form=_form(engine, "off" if held else thinks),
        )  # fmt: skip
        return OfferedPrompt(without_thought(engine, make) if held else make())

    def whole(self, engine: EngineHost, asked: Asked, *, held: bool = False) -> OfferedPrompt:
        """The same prompt whether it fits or not; with tools, or `held` to a form, it must fit."""
        if asked.has_tools or held:
            return self.build(engine, asked, max_new_tokens=1, held=held)
        thinks = thinking.choice_for(engine.info.chat_template, asked.effort)
        form = _form(engine, thinks)
        return OfferedPrompt(
            self._prompts.unbounded(engine, asked.turns, reply_start=asked.reply_start, form=form)
        )  # fmt: skip

    def count(self, engine: EngineHost, asked: Asked, *, held: bool = False) -> int:
        """How many tokens that prompt has; a guess where the engine tells no tokens."""
        built = self.whole(engine, asked, held=held).built
        if built.words is None:
            return built.held_tokens
        return sum(self._prompts.length(engine, turn.content) for turn in built.words.messages)


def form_of(params: GenerationParams, offer: Offer | None) -> tuple[GenerationParams, bool]:
    """The parameters of a reply, and whether it is held to a form; one that has to call has no form beside that."""
    if offer is not None and offer.must_call:
        params = params.model_copy(update={"json_schema": "", "grammar": ""})
    return params, bool(params.json_schema or params.grammar)


def with_room(params: GenerationParams, info: ModelInfo) -> GenerationParams:
    """The parameters of a reply whose client set no limit: up to a quarter of the context. OpenAI's API sets none at
    all, but what a reply may take is kept free for it, and others shall come in beside it.
    """
    return params.model_copy(update={"max_new_tokens": max(params.max_new_tokens, largest_share(info))})


def _form(engine: EngineHost, thinks: str) -> Form:
    return Form(variables=thinking.variables(engine.info.chat_template, thinks))
