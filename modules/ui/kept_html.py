"""HTML of replies as it was made before for the same person: a page asks for the same ones again after every message.

Nothing of an incognito conversation may be put here: it would outlive the conversation.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

from modules.on_behalf import ASKED_FOR

MOST_CHARACTERS = 8_000_000


class KeptHtml:
    """What `render` made of texts, the longest unused forgotten first. Safe to use from any thread."""

    def __init__(self, render: Callable[[str], str], most_characters: int = MOST_CHARACTERS) -> None:
        """`most_characters` of texts and HTML are kept, together."""
        self._render = render
        self._most = most_characters
        self._characters = 0
        self._kept: OrderedDict[tuple[str, str, str], str] = OrderedDict()
        self._lock = threading.Lock()

    def html(self, text: str, language: str = "") -> str:
        """`render(text)`, which has words of its own in a `language`."""
        key = (ASKED_FOR.get(), language, text)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        made = self._render(text)
        with self._lock:
            if key not in self._kept:
                self._kept[key] = made
                self._characters += len(text) + len(made)
            while self._characters > self._most:
                (*_, oldest), its_html = self._kept.popitem(last=False)
                self._characters -= len(oldest) + len(its_html)
        return made
