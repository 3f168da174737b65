"""What the model would be told now: the exact prompt with its tokens, or a quick gauge of it. Starts no model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from modules.chat.attaching import ToldFile
from modules.chat.forms import Form
from modules.chat.gauge import Gauge, Gauges
from modules.chat.prompts import BuiltPrompt, Prompts
from modules.chat.service import ChatService
from modules.chat.store import Store
from modules.chat.thinking import choices
from modules.engine.host.host import EngineHost
from modules.errors import BadChatTemplate, BadValue, NoModelLoaded
from modules.messages import Attachment, ChatMessage, Conversation, Picture
from modules.models.manager import ModelManager
from modules.sampling import GenerationParams


@dataclass(frozen=True, slots=True)
class Preview:
    """A prompt as the model will read it. `dropped` messages did not fit; `notice` is for people."""

    text: str
    tokens: int
    context: int
    dropped: int
    notice: str = ""


@dataclass(frozen=True, slots=True)
class Measured:
    """A gauge, the ids of the messages that would be left out, and the draft's files as they would be told."""

    gauge: Gauge
    left_out: tuple[str, ...]
    files: tuple[ToldFile, ...] = ()


class Previews:
    """Looks at conversations through the loaded model. Safe to use from any thread."""

    def __init__(self, models: ModelManager, store: Store, prompts: Prompts, chat: ChatService) -> None:
        self._models, self._store, self._prompts, self._chat = models, store, prompts, chat
        self._gauges = Gauges(prompts)

    def gauge(
        self,
        conversation: Conversation,
        draft: str,
        params: GenerationParams,
        attachments: Sequence[Attachment] = (),
    ) -> Measured:
        """How full the context will be with `draft` and files as the next message. Raises NoModelLoaded, NotFound."""
        engine = self._engine()
        turns, form, ids = self._chat.turns(
            conversation, conversation.head_id, engine, draft=draft, attachments=attachments
        )
        gauge = self._gauges.measure(engine, turns, form, max_new_tokens=params.max_new_tokens)
        files = self._chat.files(conversation.owner, attachments, engine)
        return Measured(gauge, tuple(ids[: gauge.dropped]), (*files, *self._shown(engine, attachments)))

    def _shown(self, engine: EngineHost, attachments: Sequence[Attachment]) -> tuple[ToldFile, ...]:
        """The pictures among the draft's files: what they cost, or that this model cannot see them."""
        blind = "" if engine.info.sees else f"{engine.info.name} cannot see pictures; it is told that there is one."
        return tuple(
            ToldFile(item, "", self._prompts.picture_tokens(engine, Picture(item.width, item.height)), blind)
            for item in attachments
            if item.kind == "picture"
        )

    def exact(
        self,
        conversation: Conversation,
        draft: str,
        params: GenerationParams,
        attachments: Sequence[Attachment] = (),
    ) -> Preview:
        """The prompt for `draft` and files as the next message; without either, that of the last reply.

        Raises NoModelLoaded, NotFound, BadChatTemplate for the conversation's own template, BadValue if there is no
        message yet.
        """
        engine, last = self._engine(), conversation.head_id
        if not draft.strip() and not attachments and last is not None:
            message = self._store.message(conversation.owner, last)
            last = message.parent_id if message.role == "assistant" and message.parent_id else last
        turns, form, _ = self._chat.turns(conversation, last, engine, draft=draft, attachments=attachments)
        if not any(turn.role == "user" for turn in turns):
            raise BadValue("There is no message yet.", remedy="Write one to see the prompt that it makes.")
        if form.template:
            self._try(engine, turns, form)
        built = self._prompts.chat(
            engine, turns, max_new_tokens=params.max_new_tokens, truncate=True, form=form,
            reply_start=self._chat.reply_start(conversation) or None,
        )  # fmt: skip
        return Preview(_shown(built, engine), len(built.prompt_ids) + len(built.reply_ids),
                       engine.info.context_tokens, built.dropped, built.notice)  # fmt: skip

    def check_template(self, template: str) -> None:
        """Try a template on two messages. Raises BadChatTemplate; without a model nothing is tried."""
        if not template or self._models.state.info is None or self._models.state.lent:
            return
        sample = Conversation("", "", "", "chat", "", None, 0, 0)
        turns, form, _ = self._chat.turns(sample, None, self._engine(), draft="Hello.")
        self._try(self._engine(), turns, replace(form, template=template))

    def template(self) -> str:
        """The loaded model's own template, "" without one."""
        return self._models.state.info.chat_template if self._models.state.info else ""

    def efforts(self, conversation: Conversation) -> Sequence[str]:
        """What one may choose of thinking in a conversation."""
        return choices(conversation.setup.template or self.template())

    def _try(self, engine: EngineHost, turns: Sequence[ChatMessage], form: Form) -> None:
        try:
            self._prompts.render(engine, form.arranged(turns), form)
        except BadChatTemplate as error:
            raise BadChatTemplate(error.message, remedy="Correct it, or use the model's own.") from error

    def _engine(self) -> EngineHost:
        if self._models.state.info is None or self._models.state.status == "died":
            raise NoModelLoaded("No model is loaded.", remedy="Load one in the Model tab.")
        if self._models.state.lent:
            raise NoModelLoaded("A comparison has the memory.", remedy="The model is back when it is complete.")
        return self._models.engine()


def _shown(built: BuiltPrompt, engine: EngineHost) -> str:
    if built.words is None:
        text = engine.decode([*built.prompt_ids, *built.reply_ids])
        token = engine.info.image_token
        return re.sub(f"(?:{re.escape(token)}){{2,}}", lambda run: _run(run[0], token), text) if token else text
    return "\n\n".join(_line(message) for message in built.words.messages)


def _run(text: str, token: str) -> str:
    """A run of a picture's tokens, which say nothing to people, in short."""
    return f"{token}×{len(text) // len(token)}"


def _line(message: ChatMessage) -> str:
    return f"[{message.role}]\n{message.content}"
