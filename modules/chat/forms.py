"""How messages are put to a model beside its own way: who speaks, by which names, through which template or command.

Values and pure functions; prompts.py builds by them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from modules.engine.base import TextPiece
from modules.errors import BadChatTemplate
from modules.messages import ChatMessage, Picture

USER, ASSISTANT = "User", "Assistant"
Speaker = Literal["assistant", "user"]
_CONTROL_SIGNS = set("<[|｜{▁")


@dataclass(frozen=True, slots=True)
class Form:
    """The way of one prompt.

    `template` stands in place of the model's own, with `variables` of its own; `arguments_as_text` is ChatTemplate's.
    `command`, if there is one, holds the whole chat where it says `<|prompt|>` (text-generation-webui's
    chat-instruct), `context` before it. `closing` is told after the last message. `speaker` is whose turn the model
    is to write.
    """

    template: str = ""
    variables: Mapping[str, Any] = field(default_factory=dict)
    user: str = USER
    char: str = ASSISTANT
    command: str = ""
    context: str = ""
    closing: str = ""
    speaker: Speaker = "assistant"
    stop_at_names: bool = False
    arguments_as_text: bool = False

    @property
    def stop(self) -> tuple[str, ...]:
        """Where another speaker would begin."""
        return (f"\n{self.char if self.speaker == 'user' else self.user}:",)

    @property
    def swap(self) -> str:
        """How to ask for the user's message where only words can be sent."""
        return f"Write the next message of {self.user} in this chat. Write nothing but that message."

    @property
    def prefix(self) -> str:
        """What stands before the reply in chat-instruct: the speaker's name."""
        return f"{self.user if self.speaker == 'user' else self.char}:" if self.command else ""

    def arranged(self, turns: Sequence[ChatMessage]) -> list[ChatMessage]:
        """The turns as the template gets them."""
        if not self.command:
            return _closed(turns, self.closing)
        system = [turn for turn in turns if turn.role == "system"]
        lines = [f"{self.name_of(turn)}: {turn.content.strip()}" for turn in turns if turn.role != "system"]
        chat = "\n".join([self.context.strip() + "\n", *lines] if self.context.strip() else lines)
        before, placed, after = self.command.replace("<|character|>", self.prefix[:-1]).partition("<|prompt|>")
        told = f"{before}{chat}{after}" if placed else f"{before}\n\n{chat}"
        pictures = tuple(picture for turn in turns for picture in turn.pictures)
        return [*system, ChatMessage("user", f"{told}\n\n{self.closing}" if self.closing else told, pictures)]

    def name_of(self, turn: ChatMessage) -> str:
        """Who says it."""
        return self.user if turn.role == "user" else self.char

    def transcript(self, messages: Sequence[ChatMessage], image_token: str = "") -> tuple[TextPiece, ...]:
        """A conversation for a model that knows no chat format, up to where the reply begins.

        `image_token` is how it writes the place of a picture, if it sees.
        """
        pieces: list[TextPiece] = []
        for message in messages:
            if message.role == "system":
                pieces += TextPiece(message.content.strip()), TextPiece("\n\n", template=True)
            else:
                pieces += (
                    _name(f"{self.name_of(message)}: "),
                    *places(message.pictures, image_token),
                    TextPiece(message.content.strip()),
                    TextPiece("\n", template=True),
                )
        return tuple(pieces) if self.prefix else (*pieces, _name(f"{self.char}:"))


PLAIN = Form()


def places(pictures: Sequence[Picture], image_token: str) -> list[TextPiece]:
    """The places of `pictures` in a row, where the model sees."""
    wanted = pictures if image_token else ()
    return [TextPiece(image_token, template=True, picture=(one.width, one.height)) for one in wanted]


def _name(text: str) -> TextPiece:
    """A name comes from strangers: with signs that control tokens are made of it is content."""
    return TextPiece(text, template=not _CONTROL_SIGNS & set(text))


def _closed(turns: Sequence[ChatMessage], closing: str) -> list[ChatMessage]:
    arranged = list(turns)
    last = next((n for n in reversed(range(len(arranged))) if arranged[n].role == "user"), None)
    if closing and last is not None:
        arranged[last] = replace(arranged[last], content=f"{arranged[last].content}\n\n{closing}")
    return arranged


def cut_at(pieces: Sequence[TextPiece], mark: str) -> tuple[tuple[TextPiece, ...], str]:
    """The pieces up to where `mark` stands, and what the template writes after it, "" for nothing.

    Raises BadChatTemplate if it does not stand there.
    """
    kept: list[TextPiece] = []
    for number, piece in enumerate(pieces):
        before, found, after = piece.text.partition(mark)
        if found:
            rest = after + "".join(other.text for other in pieces[number + 1 :] if other.template)
            last = kept.pop() if not before and kept else TextPiece(before, piece.template)
            kept.append(TextPiece(last.text.rstrip(" "), last.template))
            return tuple(part for part in kept if part.text), next(iter(rest.strip().splitlines()), "")
        kept.append(piece)
    raise BadChatTemplate(
        "This model's chat template rewrites messages, so the model cannot write yours.",
        remedy="Use the mode Chat-instruct for that.",
    )
