"""JSON that is still being written: where a value ends, and where the members of an object lie. One step a character.

It finds borders and judges nothing: what lies between them is given to a real parser when it is whole.
"""

from __future__ import annotations

_OPEN, _CLOSE = frozenset("{["), frozenset("}]")


class JsonSpan:
    """One JSON object or list, fed as it comes.

    `text` is what was taken, `ended` turns True with its last character. `members` maps each key of an outermost object
    to where its value begins in `text`, and where it ends, None while it is being written.
    """

    def __init__(self) -> None:
        self.text = ""
        self.ended = False
        self.members: dict[str, tuple[int, int | None]] = {}
        self._depth = 0
        self._in_string = self._escaped = False
        self._string_at = 0
        self._key = ""
        self._reads_value = False

    def feed(self, text: str) -> int:
        """Take what belongs to the value; how many characters that were."""
        start = len(self.text)
        for number, character in enumerate(text):
            self._step(start + number, character, text, start)
            if self.ended:
                self.text += text[: number + 1]
                return number + 1
        self.text += text
        return len(text)

    def _step(self, place: int, character: str, new: str, start: int) -> None:
        if self._in_string:
            if self._escaped:
                self._escaped = False
            elif character == "\\":
                self._escaped = True
            elif character == '"':
                self._in_string = False
                if self._depth == 1 and not self._reads_value:
                    self._key = self._written(self._string_at + 1, place, new, start)
            return
        if self._depth == 1 and self._reads_value and self._begins(character):
            self.members[self._key] = (place, None)
        if character == '"':
            self._in_string, self._string_at = True, place
        elif character in _OPEN:
            self._depth += 1
        elif character in _CLOSE:
            if self._depth == 1:
                self._end_member(place)
            self._depth -= 1
            self.ended = self._depth <= 0
        elif self._depth == 1 and character == ":":
            self._reads_value = True
        elif self._depth == 1 and character == ",":
            self._end_member(place)

    def _begins(self, character: str) -> bool:
        return self._key not in self.members and not character.isspace() and character not in ",}"

    def _end_member(self, place: int) -> None:
        if self._reads_value and self._key in self.members and self.members[self._key][1] is None:
            self.members[self._key] = (self.members[self._key][0], place)
        self._reads_value = False

    def _written(self, first: int, last: int, new: str, start: int) -> str:
        """The characters from `first` to `last`, of which some may have come only now."""
        if first >= start:
            return new[first - start : last - start]
        return self.text[first:last] + new[: max(0, last - start)]
