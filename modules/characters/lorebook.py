"""Which entries of a lorebook belong into the prompt now, and why: by words of the last messages, within a budget.

Keys are looked for as plain text. Regular expressions of strangers are not run: such keys are never found.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

from modules.characters.character import Lorebook, LoreEntry

DEFAULT_SCAN_DEPTH = 4
_ROUNDS = 5  # of entries that speak of other entries
# Of a text so many characters, its last ones, are looked through, taken over all keys: a second or so. A book of 10,000
# keys hears 200,000.
_MOST_HEARD = 2_000_000_000
_NOT_ALL, _NOT_ANY, _AND_ALL = 1, 2, 3  # SillyTavern's `selectiveLogic`; 0 and none: any of the secondary keys


@dataclass(frozen=True, slots=True)
class Lore:
    """The texts to put before and after the character's description; those that do not say go after it."""

    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether an entry is in the prompt, and a sentence that says why."""

    fires: bool
    reason: str


def matching(book: Lorebook, messages: Sequence[str], count: Callable[[str], int], default_budget: int) -> Lore:
    """The entries that `messages` (oldest first) call for. `count` gives the tokens of a text.

    Without a token budget of the book's own `default_budget` counts.
    """
    judged = zip(book.entries, verdicts(book, messages, count, default_budget), strict=True)
    kept = sorted((entry for entry, verdict in judged if verdict.fires), key=lambda entry: entry.insertion_order)
    return Lore(
        tuple(spoken(entry) for entry in kept if entry.position == "before_char"),
        tuple(spoken(entry) for entry in kept if entry.position != "before_char"),
    )


def verdicts(
    book: Lorebook, messages: Sequence[str], count: Callable[[str], int], default_budget: int
) -> tuple[Verdict, ...]:
    """One for each entry of the book, in its order; as `matching`."""
    judged = _judged(book, messages)
    whole = left = default_budget if book.token_budget is None else book.token_budget
    fired = [number for number, verdict in enumerate(judged) if verdict.fires]
    for number in sorted(fired, key=lambda number: _rank(book.entries[number])):
        reason = judged[number].reason.removesuffix(".")
        if left <= 0:  # thousands of entries are not counted one by one for nothing
            judged[number] = Verdict(False, f"{reason}, but all {whole:,} tokens for lore are taken.")
            continue
        tokens = count(spoken(book.entries[number]))
        if tokens <= left:
            left -= tokens
        else:
            short = f"{reason}, but it has {tokens:,} tokens, and {left:,} of {whole:,} are left for lore."
            judged[number] = Verdict(False, short)
    return tuple(judged)


def spoken(entry: LoreEntry) -> str:
    """An entry's content without the decorators (`@@…`) that v3 puts on its first lines."""
    lines = entry.content.split("\n")
    first = next((number for number, line in enumerate(lines) if not line.startswith("@@")), len(lines))
    return "\n".join(lines[first:]).strip()


def _rank(entry: LoreEntry) -> tuple[bool, float, float]:
    return not _always(entry), -entry.priority, entry.insertion_order


@dataclass(frozen=True, slots=True)
class _Heard:
    """A text in which keys are looked for, folded once for all of them."""

    text: str
    folded: str

    @classmethod
    def of(cls, text: str) -> _Heard:
        return cls(text, text.casefold())


def _judged(book: Lorebook, messages: Sequence[str]) -> list[Verdict]:
    """What is called for, whatever it takes of the budget."""
    depth = DEFAULT_SCAN_DEPTH if book.scan_depth is None else book.scan_depth
    most = _MOST_HEARD // max(1, sum(len(entry.keys) + len(entry.secondary_keys) for entry in book.entries))
    text = "\n".join(messages[-depth:])[-most:] if depth else ""
    where = "in the last message" if depth == 1 else f"in the last {depth} messages"
    heard = _Heard.of(text)
    judged = [_unused(entry) or _called(entry, heard, where) for entry in book.entries]
    news = [number for number, verdict in enumerate(judged) if verdict.fires]
    for _ in range(_ROUNDS - 1 if book.recursive_scanning else 0):
        heard = _Heard.of("\n".join(spoken(book.entries[number]) for number in news)[-most:])
        news = []
        for number, entry in enumerate(book.entries):
            if not judged[number].fires and _unused(entry) is None:
                found = _called(entry, heard, "in another entry")
                if found.fires:
                    judged[number] = found
                    news.append(number)
        if not news:
            break
    return judged


def _unused(entry: LoreEntry) -> Verdict | None:
    """Why an entry is never told, or always."""
    if not entry.enabled:
        return Verdict(False, "Switched off.")
    if _has(entry, "@@dont_activate"):
        return Verdict(False, "Its first line says @@dont_activate.")
    if not spoken(entry):
        return Verdict(False, "It has no text.")
    return Verdict(True, "Always told.") if _always(entry) else None


def _called(entry: LoreEntry, heard: _Heard, where: str) -> Verdict:
    keys = entry.plain_keys
    if not keys:
        expressions = any(key.strip() for key in entry.keys)
        return Verdict(False, "Snug runs no regular expressions." if expressions else "It has no key.")
    said = _said(entry, keys, heard)
    if not said:
        return Verdict(False, f"No key {where}.")
    found = Verdict(True, f"“{said[0]}” {where}.")
    return _with_secondary(entry, found, heard) if entry.selective and any(entry.secondary_keys) else found


def _with_secondary(entry: LoreEntry, found: Verdict, heard: _Heard) -> Verdict:
    """What the secondary keys make of an entry whose key was said."""
    keys = [key.strip() for key in entry.secondary_keys if key.strip() and not entry.is_expression(key)]
    said = _said(entry, keys, heard)
    extensions = (entry.model_extra or {}).get("extensions")
    logic = extensions.get("selectiveLogic") if isinstance(extensions, dict) else None
    reason = found.reason.removesuffix(".")
    if logic in (_NOT_ANY, _NOT_ALL):
        kept_out = bool(said) if logic == _NOT_ANY else bool(keys) and len(said) == len(keys)
        return Verdict(False, f"{reason}, but so is “{said[0]}”, which keeps it out.") if kept_out else found
    if logic == _AND_ALL and len(said) < len(keys):
        missing = next(key for key in keys if key not in said)
        return Verdict(False, f"{reason}, but “{missing}” is not.")
    if not said:
        return Verdict(False, f"{reason}, but none of its secondary keys.")
    return replace(found, reason=f"{reason}, with “{said[0]}”.")


def _said(entry: LoreEntry, keys: Sequence[str], heard: _Heard) -> list[str]:
    """Those of the keys that the text holds."""
    if entry.case_sensitive:
        return [key for key in keys if key in heard.text]
    return [key for key in keys if key.casefold() in heard.folded]


def _always(entry: LoreEntry) -> bool:
    return entry.constant or _has(entry, "@@activate")


def _has(entry: LoreEntry, decorator: str) -> bool:
    if not entry.content.startswith("@@"):
        return False
    return decorator in map(str.strip, takewhile(lambda line: line.startswith("@@"), entry.content.split("\n")))
