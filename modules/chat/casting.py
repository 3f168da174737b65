"""A conversation's setup → what is told to the model: the character's texts, the lore that is spoken of, the form.

Pure but for reading the character and the persona. Fitting it into the context is for prompts.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from modules.characters.character import Character, Persona
from modules.characters.library import Library
from modules.characters.lorebook import Lore, matching
from modules.characters.placeholders import fill
from modules.chat.forms import ASSISTANT, USER, Form
from modules.chat.thinking import answer_of, variables
from modules.messages import ChatMessage, Conversation, Message, Picture, Setup

# text-generation-webui's
COMMAND = 'Continue the chat dialogue below. Write a single reply for the character "<|character|>".\n\n<|prompt|>'
YOU = "You"
_EXAMPLES = "Examples of how {char} talks:"

Count = Callable[[str], int]


@dataclass(frozen=True, slots=True)
class Cast:
    """Who talks in a conversation, and how."""

    setup: Setup
    system_prompt: str
    character: Character | None = None
    persona: Persona | None = None

    @property
    def char(self) -> str:
        """The name of whom the model plays."""
        return self.character.name.strip() if self.character else ASSISTANT

    @property
    def user(self) -> str:
        """The name of the user."""
        if self.persona is not None:
            return self.persona.name.strip()
        if self.character is None:
            return USER
        return self.character.user_name.strip() or YOU

    def fill(self, text: str, original: str = "") -> str:
        """`text` with names for placeholders."""
        return fill(text, char=self.char, user=self.user, original=original)

    @property
    def greetings(self) -> tuple[str, ...]:
        """The first replies to choose from."""
        return tuple(self.fill(text) for text in self.character.greetings) if self.character else ()

    @property
    def reply_start(self) -> str:
        """What every reply begins with."""
        return self.fill(self.setup.reply_start)

    def lore(self, messages: Sequence[str], count: Count, budget: int) -> Lore:
        """What the character's lorebook says to the last messages."""
        book = self.character.character_book if self.character else None
        return matching(book, messages, count, budget) if book else Lore()

    def description(self, lore: Lore) -> str:
        """Who the character and the user are: what is told to the model before the chat."""
        if self.character is None:
            return self.fill(self._persona())
        who = self.character
        parts = (
            *lore.before,
            who.description,
            f"{{{{char}}}}'s personality: {who.personality}" if who.personality.strip() else "",
            f"Scenario: {who.scenario}" if who.scenario.strip() else "",
            *lore.after,
            self._persona(),
            self._examples(who.mes_example),
        )
        return "\n\n".join(self.fill(part.strip()) for part in parts if part.strip())

    def system(self) -> str:
        """The conversation's system prompt, or the character's in its place, which may quote it as `{{original}}`."""
        if self.setup.manner == "instruct" and self.character is None and not self.setup.persona:
            return self.system_prompt  # nobody's names stand in it
        own = self.character.system_prompt if self.character else ""
        return self.fill(own, original=self.system_prompt) if own.strip() else self.fill(self.system_prompt)

    def turns(self, history: Sequence[ChatMessage], count: Count, budget: int) -> list[ChatMessage]:
        """The messages for the model: who it is first, then what was said."""
        told = [self.system()]
        if self.setup.manner != "chat-instruct":  # there the form holds it
            told.append(self.description(self.lore([turn.content for turn in history], count, budget)))
        system = "\n\n".join(part.strip() for part in told if part.strip())
        return [*([ChatMessage("system", system)] if system else []), *history]

    def form(self, template: str, history: Sequence[ChatMessage], count: Count, budget: int) -> Form:
        """The form for these messages; `template` is what will be in use."""
        setup, context = self.setup, ""
        if setup.manner == "chat-instruct":
            context = self.description(self.lore([turn.content for turn in history], count, budget))
        return Form(
            template=setup.template,
            variables=variables(template, setup.thinking),
            user=self.user,
            char=self.char,
            command=self.fill(setup.command or COMMAND) if setup.manner == "chat-instruct" else "",
            context=context,
            closing=self.fill(self.character.post_history_instructions.strip()) if self.character else "",
            stop_at_names=self.character is not None,
        )

    def _persona(self) -> str:
        if self.persona is None or not self.persona.description.strip():
            return ""
        return f"{{{{user}}}}: {self.persona.description.strip()}"

    def _examples(self, text: str) -> str:
        blocks = [block.strip() for block in text.replace("<start>", "<START>").split("<START>")]
        shown = "\n\n".join(block for block in blocks if block)
        return f"{_EXAMPLES.format(char=self.char)}\n\n{shown}" if shown else ""


def cast_of(conversation: Conversation, library: Library) -> Cast:
    """Who talks in a conversation. Raises NotFound or BadCharacter for one who is not there or cannot be read.

    In the manner "instruct" there is no character.
    """
    setup = conversation.setup
    character = library.characters.get(setup.character) if setup.character and setup.manner != "instruct" else None
    persona = library.personas.get(setup.persona) if setup.persona else None
    return Cast(setup, conversation.system_prompt, character, persona)


def history_of(
    messages: Sequence[Message],
    read: Callable[[Message], str],
    look: Callable[[Message], tuple[Picture, ...]] = lambda _: (),
) -> list[tuple[str, ChatMessage]]:
    """What was said and shown, each with its message's id: without thoughts, and without replies that failed before a
    word."""
    said = [
        (m.id, ChatMessage(m.role, answer_of(m.content)))
        if m.role == "assistant"
        else (m.id, ChatMessage(m.role, read(m), look(m)))
        for m in messages
    ]
    return [(ident, turn) for ident, turn in said if turn.content.strip() or turn.pictures]
