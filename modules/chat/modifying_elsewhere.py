"""What extensions do where no reply of a chat is written: in the notebook, and to the user's next message.

The hooks are those that text-generation-webui calls there. How they are called is modifying.py's.
"""

from __future__ import annotations

from collections.abc import Sequence

from modules.chat.forms import ASSISTANT, USER, Form
from modules.chat.modifying import Part, Told
from modules.engine.base import ModelInfo, TokenLogprob
from modules.extensions.faults import is_dict, is_text
from modules.extensions.manager import Extensions
from modules.extensions.state import Scene, pairs, params_of, state_of
from modules.messages import ChatMessage, Conversation, Message
from modules.sampling import GenerationParams

_NOTEBOOK = "notebook"


class TextPart(Part):
    """The extensions' part in one completion of the notebook: its state, what the model reads, what it has written."""

    is_chat = False

    def __init__(self, extensions: Extensions, params: GenerationParams) -> None:
        """Nothing is kept but what `after` gives."""
        super().__init__(extensions, params, lambda *_: None)
        self._read: str | None = None

    def reads(self, text: str, engine: ModelInfo) -> str:
        """What the model reads in place of `text`, which it is to continue; `params` are then the hooks'."""
        if self._read is None:
            self._asked = text
            scene = Scene(USER, ASSISTANT)
            self._state = state_of(
                self.params, scene, pairs([]), mode=_NOTEBOOK, character_menu="None", start_with="", unique_id=_NOTEBOOK
            )
            if self._extensions.having("state_modifier"):
                self._state = dict(self._change("state_modifier", {"state": self._state}, "state", is_dict))
            values = {"string": text, "state": self._state, "is_chat": False}
            self._read = str(self._change("input_modifier", values, "string", is_text))
            self.params, problems = params_of(self._state, self.params)
            self._complain("state_modifier", problems)
            self._take_scripts(engine)
        return self._read

    def after(self, text: str, tokens: Sequence[TokenLogprob]) -> str | None:
        """What stands in the notebook in place of what was written; None where that is as it is."""
        values = {"string": text, "state": self._told_tokens(tokens), "is_chat": False}
        made = str(self._change("output_modifier", values, "string", is_text))
        return None if made == text else made


class AsidePart(Part):
    """The extensions' part in the user's next message: who writes it, which tokens are likely. It changes no text."""

    def _before(
        self,
        conversation: Conversation,
        turns: list[ChatMessage],
        form: Form,
        path: Sequence[Message],  # noqa: ARG002
        *,
        continues: bool,  # noqa: ARG002
    ) -> Told:
        setup, spoken = conversation.setup, [turn for turn in turns if turn.role != "system"]
        self._asked = spoken[-1].content if spoken else ""
        self._state = state_of(
            self.params,
            Scene(form.user, form.char, form.context, command=form.command),
            pairs([(turn, turn.content) for turn in spoken]),
            mode=setup.manner,
            character_menu=setup.character or "None",
            start_with="",
            unique_id=conversation.id,
        )
        return Told(tuple(turns), form)

    def after(self, text: str, tokens: Sequence[TokenLogprob]) -> str | None:  # noqa: ARG002
        """Nothing: the message is the user's, who has yet to send it."""
        return None
