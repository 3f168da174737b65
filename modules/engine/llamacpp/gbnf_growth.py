"""Recursive GBNF rules that make llama.cpp's matcher keep twice as many stacks at each level, found before it begins.

It keeps one stack for every way in which the text so far may have come about. Where a rule leads back to itself in two
ways that begin alike, their number doubles with each level and a reply stalls after some fifteen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations

from modules.errors import BadGrammar

_MOST_STEPS = 20_000


@dataclass(frozen=True, slots=True)
class Item:
    """Characters (a count), a rule's name, or a group; `least` to `most` times, without end where that is None."""

    what: int | str | tuple[tuple[Item, ...], ...]
    least: int = 1
    most: int | None = 1
    text: str = ""  # of a literal
    fits: Callable[[str], bool] | None = field(default=None, compare=False)  # whether a class has a character


Sequence = tuple[Item, ...]
Alternatives = tuple[Sequence, ...]


def check_growth(rules: Mapping[str, Alternatives]) -> None:
    """Raise BadGrammar naming a rule with two ways back to itself that cannot be told apart by how they begin."""
    core = _on_cycles(rules)
    finder = _Apart(rules, core)
    for name in rules:
        if name in core:
            for one, two in _choices(rules[name], name, core):
                if not finder.apart(one, two):
                    raise BadGrammar(
                        f"The grammar cannot be used: the rule {name!r} leads back to itself in two ways that may "
                        "begin alike.",
                        remedy="Begin each with a text of its own.",
                        param="grammar",
                    )


def _on_cycles(rules: Mapping[str, Alternatives]) -> set[str]:
    """The rules that lead back to themselves, and those on the way from one such to another."""
    down = {name: set(_names(alternatives)) for name, alternatives in rules.items()}
    up: dict[str, set[str]] = {name: set() for name in rules}
    for name, below in down.items():
        for other in below:
            up[other].add(name)
    core = set(rules)
    for links, back in ((down, up), (up, down)):
        counts = {name: len(links[name] & core) for name in core}
        ends = [name for name in core if not counts[name]]
        while ends:
            end = ends.pop()
            core.discard(end)
            for other in back[end] & core:
                counts[other] -= 1
                if not counts[other]:
                    ends.append(other)
    return core


def _names(alternatives: Alternatives) -> Iterator[str]:
    for item in (item for items in alternatives for item in items):
        if isinstance(item.what, str):
            yield item.what
        elif isinstance(item.what, tuple):
            yield from _names(item.what)


def _choices(alternatives: Alternatives, rule: str, core: set[str]) -> Iterator[tuple[Sequence, Sequence]]:
    """Pairs of ways to go on, both of which lead into `core`."""
    yield from combinations([items for items in alternatives if _deepens(items, rule, core)], 2)
    for items in alternatives:
        for number, item in enumerate(items):
            rest = items[number + 1 :]
            if item.least != item.most and _leads((item,), core) and _leads(rest, core):
                yield (replace(item, least=1, most=1), *rest), rest
            if isinstance(item.what, tuple):
                yield from _choices(item.what, rule, core)


def _leads(items: Sequence, core: set[str]) -> bool:
    return not core.isdisjoint(_names((items,)))


def _deepens(items: Sequence, rule: str, core: set[str]) -> bool:
    """Whether a way leads into `core`; a rule that ends with itself leaves nothing on the stack."""
    ends_so = bool(items) and items[-1] == Item(rule)
    return _leads(items[:-1] if ends_so else items, core)


class _Apart:
    """Tells ways apart by their first texts."""

    def __init__(self, rules: Mapping[str, Alternatives], core: set[str]) -> None:
        self._rules = rules
        self._core = core
        self._steps = 0

    def apart(self, one: Sequence, two: Sequence, depth: int = 0) -> bool:
        """Whether no text begins both, as far as texts show before a recursion; False where that takes too long."""
        self._steps += 1
        if depth > 40 or self._steps > _MOST_STEPS:
            return False
        while one and two and one[0] == two[0] and not _leads(one[:1], self._core):
            one, two = one[1:], two[1:]
        if not (_leads(one, self._core) and _leads(two, self._core)):
            return True  # what leads nowhere deeper ends, and its stacks with it
        for first, second in ((one, two), (two, one)):
            if (ways := self._opened(first)) is not None:
                return all(self.apart(way, second, depth + 1) for way in ways)
        a, b = one[0].text, two[0].text
        if not a or not b:
            return False
        length = min(len(a), len(b))
        if a[:length] != b[:length]:
            return True
        return self.apart(_without(one, length), _without(two, length), depth + 1)

    def _opened(self, items: Sequence) -> list[Sequence] | None:
        """The ways that `items` begin with, its first one written out; None where that is a text or a character."""
        head, rest = items[0], items[1:]
        if head.least == 0 or head.most != 1:
            once = replace(head, least=1, most=1)
            again = () if head.most == 1 else (replace(head, least=0, most=None),)
            return [(once, *again, *rest), *([rest] if not head.least else [])]
        if isinstance(head.what, int):
            return None
        return [(*way, *rest) for way in (self._rules[head.what] if isinstance(head.what, str) else head.what)]


def _without(items: Sequence, length: int) -> Sequence:
    """`items` without the first `length` characters of its first text."""
    text = items[0].text[length:]
    return (Item(len(text), text=text), *items[1:]) if text else items[1:]
