"""How many ways through a grammar llama.cpp's matcher follows, counted along a reply's text.

It keeps a stack for each way in which the text so far may have come about, and tries the whole vocabulary on each of
them at every token. How many there are shows only as the text grows: hundreds of alternatives that begin alike are few
ways after a letter, or hundreds to the end. As llama.cpp's src/llama-grammar.cpp has it: equal stacks are one, and what
ends a rule leaves nothing on them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from modules.engine.llamacpp.gbnf_growth import Alternatives, Item, Sequence

_END = 0  # the place behind a sequence
_DONE = 0  # the stack with nothing on it


@dataclass(slots=True)
class _Place:
    """In a sequence, before a character (that `fits`) or before one of the ways of a rule."""

    next: int
    fits: Callable[[str], bool] | None = None
    rule: int = 0


class Stacks:
    """The ways through `rules`, from root on. Not thread-safe."""

    def __init__(self, rules: Mapping[str, Alternatives]) -> None:
        self._places: list[_Place] = [_Place(_END)]
        self._ways: list[list[int]] = [[] for _ in rules]  # of each rule: its places to begin
        self._numbers = {name: number for number, name in enumerate(rules)}
        for name, alternatives in rules.items():
            self._ways[self._numbers[name]] = self._alternatives(alternatives)
        self._cells: list[tuple[int, int]] = [(_END, _DONE)]  # stacks: the place on top, and the stack below
        self._known: dict[tuple[int, int], int] = {}
        self._now: set[int] = set()
        for place in self._ways[self._numbers["root"]]:
            self._now |= self._opened(place, _DONE)

    def __len__(self) -> int:
        """How many ways there are now."""
        return len(self._now)

    def push(self, text: str) -> int:
        """The text goes on. How many ways each of its characters left open, together."""
        return sum(map(self._take, text))

    def _take(self, character: str) -> int:
        """A character that none of the ways has, beside a control token, which has no text, say, is passed."""
        fitting: dict[int, bool] = {}
        after: set[int] = set()
        for stack in self._now:
            number, below = self._cells[stack]
            place = self._places[number]
            if place.fits is not None and fitting.setdefault(number, place.fits(character)):
                after |= self._opened(place.next, below)
        self._now = after or self._now
        return len(self._now)

    def _opened(self, number: int, below: int) -> set[int]:
        """The stacks, each with a character on top, that a place leads to with the stack `below` it."""
        found: set[int] = set()
        waiting, seen = [(number, below)], {(number, below)}
        while waiting:
            number, below = waiting.pop()
            place = self._places[number]
            if number == _END:
                further = [self._cells[below]] if below != _DONE else []
                if not further:
                    found.add(_DONE)
            elif place.fits is not None:
                found.add(self._stack(number, below))
                continue
            else:
                rest = below if place.next == _END else self._stack(place.next, below)
                further = [(way, rest) for way in self._ways[place.rule]]
            waiting += [one for one in further if one not in seen]
            seen.update(further)
        return found

    def _stack(self, number: int, below: int) -> int:
        key = number, below
        if key not in self._known:
            self._known[key] = len(self._cells)
            self._cells.append(key)
        return self._known[key]

    def _alternatives(self, alternatives: Alternatives) -> list[int]:
        return [self._sequence(items) for items in alternatives]

    def _sequence(self, items: Sequence) -> int:
        """The place where `items` begin."""
        begin = _END
        for item in reversed(items):
            begin = self._item(item, begin)
        return begin

    def _item(self, item: Item, following: int) -> int:
        """The place where an item begins that `following` comes after."""
        if item.least == item.most == 1:
            return self._once(item, following)
        inner = self._rule([self._once(item, _END)])
        if item.most is None:
            again = self._rule([])
            self._ways[again] = [self._call(inner, self._call(again, _END)), _END]
            following = self._call(again, following)
        else:
            option = None
            for _ in range(item.most - item.least):
                rest = _END if option is None else self._call(option, _END)
                option = self._rule([self._call(inner, rest), _END])
            following = following if option is None else self._call(option, following)
        for _ in range(item.least):
            following = self._call(inner, following)
        return following

    def _once(self, item: Item, following: int) -> int:
        if isinstance(item.what, str):
            return self._call(self._numbers[item.what], following)
        if isinstance(item.what, tuple):
            return self._call(self._rule(self._alternatives(item.what)), following)
        if item.fits is not None:
            return self._place(_Place(following, item.fits))
        for character in reversed(item.text):
            following = self._place(_Place(following, character.__eq__))
        return following

    def _rule(self, ways: list[int]) -> int:
        self._ways.append(ways)
        return len(self._ways) - 1

    def _call(self, rule: int, following: int) -> int:
        return self._place(_Place(following, rule=rule))

    def _place(self, place: _Place) -> int:
        self._places.append(place)
        return len(self._places) - 1
