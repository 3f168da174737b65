"""Which entries of a lorebook the present conversation calls for, as its next prompt has them. Starts no model."""

from __future__ import annotations

from dataclasses import replace

from modules.characters.character import Lorebook
from modules.characters.lorebook import Verdict, verdicts
from modules.chat.casting import history_of
from modules.chat.prompts import Prompts
from modules.chat.service import LORE_SHARE, LORE_TOKENS, ChatService
from modules.chat.store import Store
from modules.engine.host.host import EngineHost
from modules.messages import Conversation
from modules.models.manager import ModelManager

_ROUGH = 4  # characters a token, where no model is there to count


class LoreNow:
    """Looks at conversations with a lorebook in hand. Safe to use from any thread."""

    def __init__(self, models: ModelManager, store: Store, prompts: Prompts, chat: ChatService) -> None:
        self._models, self._store, self._prompts, self._chat = models, store, prompts, chat

    def verdicts(self, conversation: Conversation, book: Lorebook, draft: str = "") -> tuple[Verdict, ...]:
        """One for each entry, as the messages and a `draft` after them call for it. Raises NotFound, BadCharacter."""
        engine = self._engine()
        said = self._said(conversation, draft, engine)
        if engine is None:
            return verdicts(book, said, lambda text: len(text) // _ROUGH + 1, LORE_TOKENS)
        budget = engine.info.context_tokens // LORE_SHARE or LORE_TOKENS
        return verdicts(book, said, lambda text: self._prompts.length(engine, text), budget)

    def _said(self, conversation: Conversation, draft: str, engine: EngineHost | None) -> list[str]:
        last = conversation.head_id
        if engine is None:
            path = self._store.path_to(conversation.owner, last) if last else []
            said = [turn.content for _, turn in history_of(path, lambda message: message.content)]
            return [*said, draft] if draft.strip() else said
        alone = replace(conversation, system_prompt="")
        turns, _, ids = self._chat.turns(alone, last, engine, draft=draft)
        spoken = len(ids) + bool(draft.strip())
        return [turn.content for turn in turns[len(turns) - spoken :]]

    def _engine(self) -> EngineHost | None:
        state = self._models.state
        if state.info is None or state.lent or state.status != "ready":
            return None
        return self._models.engine()
