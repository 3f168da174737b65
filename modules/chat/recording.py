"""What the model writes, token by token, kept while it is written: for the notebook's token view."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from modules.chat.passages import Token, Tokens, ends_of
from modules.engine.base import Delta, TokenLogprob

_NEAR = 4  # tokens of one character that an engine may have told no probability of


class Recorder:
    """Takes a reply's Deltas in order, from one thread; any thread may look."""

    def __init__(self, chosen: Sequence[Token] = ()) -> None:
        """`chosen`: tokens that a person put before what the model writes."""
        self._tokens: list[Token] = list(chosen)
        self._texts: list[str] = [token.adds for token in chosen]  # where no token is told, the text as it comes
        self._characters = sum(map(len, self._texts))
        self._told_characters = self._characters
        self._ready = len(self._tokens)
        self._chosen = len(self._tokens)

    @property
    def made(self) -> int:
        """Tokens that the model has told of so far; 0 where it tells none."""
        return len(self._tokens) - self._chosen

    @property
    def tells(self) -> bool:
        """Whether probabilities came with the text."""
        return any(token.logprob is not None for token in self._tokens[self._chosen :])

    def take(self, delta: Delta) -> None:
        """Keep the tokens of one Delta."""
        self._characters += len(delta.text)
        if delta.text:
            self._texts.append(delta.text)
        if delta.logprobs:
            for token in _matched(delta.token_ids, delta.logprobs):
                self._tokens.append(token)
                self._told_characters += len(token.adds)
        self._ready = self._count_ready()

    def pieces(self, begin: int = 0) -> list[Token]:
        """The text so far in pieces, from the `begin`-th on: tokens that are wholly shown, or texts without tokens."""
        if self.made:
            return self._tokens[begin : self._ready]
        return [Token(-1, text) for text in self._texts[begin:]]

    def tokens(self, text: str) -> Tokens:
        """The tokens of the reply's whole `text`: all that lie in it whole; none where they do not make it up."""
        said = "".join(token.adds for token in self._tokens)
        if not self.tells or not (text.startswith(said) or said.startswith(text)):
            return ()
        ends = ends_of(self._tokens)
        within = sum(1 for end in ends if end <= len(text))
        while within and not self._tokens[within - 1].adds and ends[within - 1] == len(text) < len(said):
            within -= 1  # half of a character that a stop string cut off
        return tuple(self._tokens[:within])

    def _count_ready(self) -> int:
        ready, end = len(self._tokens), self._told_characters
        while ready > self._chosen and end > self._characters:
            ready -= 1
            end -= len(self._tokens[ready].adds)
        return ready


def _matched(ids: Sequence[int], told: Sequence[TokenLogprob]) -> Iterator[Token]:
    """Each token told of, after the ids before it that nothing was told of.

    Where an id told of is not among them the ids are not to be trusted: it goes without.
    """
    at = 0
    for one in told:
        near = list(ids[at : at + _NEAR])
        known = one.token_id in near
        if known:
            for skipped in near[: near.index(one.token_id)]:
                yield Token(skipped, "")
            at += near.index(one.token_id) + 1
        yield Token(one.token_id if known or not ids else -1, one.adds, one.text, one.logprob, one.top)
