"""Which entries of a lorebook belong into the prompt now: matched by words of the last messages, within a budget.

Keys are looked for as plain text. Regular expressions of strangers are not run: such entries never match.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile

from modules.characters.character import Lorebook, LoreEntry

DEFAULT_SCAN_DEPTH = 4
_ROUNDS = 5  # of entries that speak of other entries


@dataclass(frozen=True, slots=True)
class Lore:
    """The texts to put before and after the character's description; those that do not say go after it."""

    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()


def matching(book: Lorebook, messages: Sequence[str], count: Callable[[str], int], default_budget: int) -> Lore:
    """The entries that `messages` (oldest first) call for. `count` gives the tokens of a text.

    Without a token budget of the book's own `default_budget` counts.
    """
    found = _found(book, messages)
    left = default_budget if book.token_budget is None else book.token_budget
    kept = []
    for entry in sorted(found, key=lambda entry: (not _always(entry), -entry.priority, entry.insertion_order)):
        tokens = count(spoken(entry))
        if tokens <= left:
            left -= tokens
            kept.append(entry)
    kept.sort(key=lambda entry: entry.insertion_order)
    return Lore(
        tuple(spoken(entry) for entry in kept if entry.position == "before_char"),
        tuple(spoken(entry) for entry in kept if entry.position != "before_char"),
    )


def spoken(entry: LoreEntry) -> str:
    """An entry's content without the decorators (`@@…`) that v3 puts on its first lines."""
    lines = entry.content.split("\n")
    first = next((number for number, line in enumerate(lines) if not line.startswith("@@")), len(lines))
    return "\n".join(lines[first:]).strip()


def _found(book: Lorebook, messages: Sequence[str]) -> list[LoreEntry]:
    usable = [e for e in book.entries if e.enabled and not _has(e, "@@dont_activate") and spoken(e)]
    depth = DEFAULT_SCAN_DEPTH if book.scan_depth is None else book.scan_depth
    text = "\n".join(messages[-depth:]) if depth else ""
    found: dict[int, LoreEntry] = {}
    for _ in range(_ROUNDS):
        folded = text.casefold()
        news = {
            number: entry
            for number, entry in enumerate(usable)
            if number not in found and (_always(entry) or _called(entry, text, folded))
        }
        found |= news
        if not news or not book.recursive_scanning:
            break
        text = "\n".join(spoken(entry) for entry in news.values())
    return list(found.values())


def _called(entry: LoreEntry, text: str, folded: str) -> bool:
    if entry.use_regex:
        return False

    def says(keys: Sequence[str]) -> bool:
        plain = [key.strip() for key in keys if key.strip()]
        return any(key in text for key in plain) if entry.case_sensitive else any(k.casefold() in folded for k in plain)

    return says(entry.keys) and (not entry.selective or not any(entry.secondary_keys) or says(entry.secondary_keys))


def _always(entry: LoreEntry) -> bool:
    return entry.constant or _has(entry, "@@activate")


def _has(entry: LoreEntry, decorator: str) -> bool:
    if not entry.content.startswith("@@"):
        return False
    return decorator in map(str.strip, takewhile(lambda line: line.startswith("@@"), entry.content.split("\n")))
