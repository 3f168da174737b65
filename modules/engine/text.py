"""From token ids to text that may be shown: whole characters only, and never a part of a stop string.

Pure: it knows tokens as numbers and gets a `decode` function. It does not know about end tokens; the loops do not push
them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]

Spell = Callable[[int], bytes | None]

UNFINISHED = "\ufffd"  # what decoders put where bytes do not make up a character (yet)
LONGEST_HALF_CHARACTER = 3  # bytes of a character that lacks its last one
CONTEXT_TOKENS = 16
CONTEXT_PIECES = 3
MOST_PENDING_TOKENS = 8


class Detokenizer:
    """Turns tokens into text one by one, at a cost that does not grow with the length of the text.

    It decodes only the last few tokens, together with some before them, because a tokenizer of the SentencePiece kind
    drops the space before the first word that it is given. `decode` must not tidy up spaces around punctuation.
    """

    def __init__(self, decode: Decode, context_ids: Sequence[int] = ()) -> None:
        """`context_ids` are the tokens before the first one pushed; only the last few are used."""
        self._decode = decode
        self._context: deque[list[int]] = deque([list(context_ids[-CONTEXT_TOKENS:])], maxlen=CONTEXT_PIECES)
        self._pending: list[int] = []
        self._shown = decode(self._context[0]) if context_ids else ""  # of the text of context and pending tokens

    def push(self, token_id: int) -> str:
        """The text that `token_id` completes, "" while a character is incomplete."""
        self._pending.append(token_id)
        window = self._window()
        if window == self._shown:
            if len(self._pending) > MOST_PENDING_TOKENS:
                self._pending.clear()
            return ""
        half = min(len(window) - len(window.rstrip(UNFINISHED)), LONGEST_HALF_CHARACTER)
        ready = window[: len(window) - half]
        new, self._shown = ready[len(self._shown) :], max(ready, self._shown, key=len)
        if not half or len(self._pending) > MOST_PENDING_TOKENS:
            self._move_on(half)
        return new

    def flush(self) -> str:
        """The rest, without a character that the end of the reply cut in half."""
        return self._window()[len(self._shown) :].rstrip(UNFINISHED) if self._pending else ""

    def _window(self) -> str:
        """The text of context and pending tokens, the context cut where it does not begin with what was shown."""
        window = self._decode([*self._context_ids(), *self._pending])
        if window.startswith(self._shown):
            return window
        self._shown = self._shown.rstrip(UNFINISHED)
        if window.startswith(self._shown):
            return window
        # One invalid byte makes a byte-fallback decoder give up the characters before it too; those are shown already.
        self._context.clear()
        self._shown = ""
        return self._decode(self._pending)

    def _move_on(self, half: int) -> None:
        """Pending tokens become context; the last `half` characters of their text are not shown yet."""
        self._context.append(self._pending)
        self._pending = []
        text = self._decode(self._context_ids())
        self._shown = text[: len(text) - half]

    def _context_ids(self) -> list[int]:
        return [token_id for piece in self._context for token_id in piece]


class StopMatcher:
    """Finds the first of several strings in a growing text (Aho and Corasick, 1975): one step a character.

    The match that ends first counts, of several that end together the longest; how the text was cut does not matter.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._children: list[dict[str, int]] = [{}]
        self._depth = [0]
        self._match_length = [0]
        self._fallback = [0]
        for string in stop:
            self._add(string)
        self._link()
        self._state = 0
        self._held = ""
        self.match = ""

    @property
    def found(self) -> bool:
        """Whether `match` is one of the strings: the first that was met."""
        return bool(self.match)

    def push(self, text: str) -> str:
        """As much of all text so far, not yet returned, as cannot belong to a stop string."""
        if self.found:
            return ""
        buffer = self._held + text
        for position in range(len(self._held), len(buffer)):
            self._state = self._step(self._state, buffer[position])
            if length := self._match_length[self._state]:
                self.match, self._held = buffer[position + 1 - length : position + 1], ""
                return buffer[: position + 1 - length]
        shown = len(buffer) - self._depth[self._state]
        self._held = buffer[shown:]
        return buffer[:shown]

    def flush(self) -> str:
        """What was held back, now that no more text comes."""
        held, self._held = self._held, ""
        return held

    def _add(self, string: str) -> None:
        state = 0
        for character in string:
            if character not in self._children[state]:
                self._children[state][character] = len(self._children)
                self._children.append({})
                self._depth.append(self._depth[state] + 1)
                self._match_length.append(0)
                self._fallback.append(0)
            state = self._children[state][character]
        self._match_length[state] = self._depth[state]

    def _link(self) -> None:
        """Point each state to that of its longest proper suffix, breadth first."""
        queue = deque(self._children[0].values())
        while queue:
            state = queue.popleft()
            for character, child in self._children[state].items():
                self._fallback[child] = self._step(self._fallback[state], character)
                self._match_length[child] = self._match_length[child] or self._match_length[self._fallback[child]]
                queue.append(child)

    def _step(self, state: int, character: str) -> int:
        while state and character not in self._children[state]:
            state = self._fallback[state]
        return self._children[state].get(character, 0)


class TextStream:
    """The text of one reply as it may be shown, token by token.

    `finished` turns True when a stop string is complete: everything before it has then been returned by `push`.
    `added` is what the last token added, whether it may be shown yet or not.
    """

    def __init__(self, decode: Decode, stop: Sequence[str] = (), *, context_ids: Sequence[int] = ()) -> None:
        """`context_ids`: the prompt, and the reply so far when it goes on; they decide about the first space."""
        self._detokenizer = Detokenizer(decode, context_ids)
        self._matcher = StopMatcher(stop)
        self.added = ""

    @property
    def finished(self) -> bool:
        """True once a stop string was found; later tokens give no text."""
        return self._matcher.found

    @property
    def stopped_by(self) -> str:
        """The stop string that was found, "" before that."""
        return self._matcher.match

    def push(self, token_id: int) -> str:
        """New text to show after `token_id`, often "" while a character or a stop string may still be completed."""
        self.added = self._detokenizer.push(token_id)
        return self._matcher.push(self.added)

    def flush(self) -> str:
        """What is left at the end of the reply. May turn `finished` True; an incomplete character is dropped."""
        return self._matcher.push(self._detokenizer.flush()) + self._matcher.flush()


class ReadyText:
    """The text of a reply that comes as text: whole characters, end tokens left out by who made it."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._matcher = StopMatcher(stop)

    @property
    def finished(self) -> bool:
        """True once a stop string was found."""
        return self._matcher.found

    @property
    def stopped_by(self) -> str:
        """The stop string that was found, "" before that."""
        return self._matcher.match

    def push(self, text: str) -> str:
        """As much as may be shown."""
        return self._matcher.push(text)

    def flush(self) -> str:
        """What was held back."""
        return self._matcher.flush()
