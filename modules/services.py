"""What both faces, page and API, are given: one frozen record, put together in server.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from modules.accounts.directory import Accounts
from modules.accounts.person import Person
from modules.attachments.extracting import Extractor
from modules.characters.library import Library
from modules.chat.presets import Presets
from modules.chat.prompts import Prompts
from modules.chat.service import ChatService
from modules.chat.store import Store
from modules.downloads.manager import Downloads
from modules.extensions.manager import Extensions
from modules.models.manager import ModelManager
from modules.settings import Settings


@dataclass(frozen=True, slots=True)
class Services:
    """The parts of one running Snug."""

    settings: Settings
    models: ModelManager
    chat: ChatService
    store: Store
    prompts: Prompts
    presets: Presets
    library: Library
    downloads: Downloads
    extractor: Extractor = field(default_factory=Extractor)
    accounts: Accounts | None = None
    extensions: Extensions = field(default_factory=lambda: Extensions(Path("extensions")))

    def still_in(self, person: Person) -> Callable[[], bool]:
        """Asks whether `person`, who has come in, still may: for what is kept long after that."""
        accounts = self.accounts
        return lambda: accounts is None or not person.id or accounts.has(person)
