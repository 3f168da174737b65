"""The notebook's values as the page's JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from modules.chat.notebook import Choice, Completion
from modules.chat.notebooks import Page
from modules.chat.passages import Token
from modules.chat.running import ReplyView
from modules.ui.views import Json, printable, problem_view, stats_line, waiting_line
from modules.ui.words import told


def page_view(page: Page) -> Json:
    """The text, and what one may do with it."""
    return {
        "text": printable(page.text),
        "revision": page.revision,
        "undo": page.undo,
        "redo": page.redo,
        "again": page.again,
        "version": page.version,
        "versions": page.versions,
        "run": page.run,
    }


def piece_view(token: Token) -> list[str | float | None]:
    """What a token added and its probability; of one that added nothing also what it is by itself."""
    piece: list[str | float | None] = [printable(token.adds), _probability(token.logprob)]
    return piece if token.adds else [*piece, printable(token.text)]


def segments(page: Page, tokens_of: Mapping[int, Sequence[Token]]) -> Iterator[Json]:
    """The whole text in order: stretches of plain `text`, and `pieces` from the `first` token of a `run` on."""
    at = 0
    for span in page.spans:
        if span.start > at:
            yield {"text": printable(page.text[at : span.start])}
        pieces = [piece_view(token) for token in tokens_of[span.run][span.first : span.last]]
        yield {"run": span.run, "first": span.first, "pieces": pieces}
        at = span.end
    if at < len(page.text):
        yield {"text": printable(page.text[at:])}


def choice_view(choice: Choice) -> Json:
    """A token and its alternatives."""
    token = choice.token
    return {
        "text": printable(token.adds or token.text),
        "probability": _probability(token.logprob),
        "by_ids": choice.by_ids,
        "top": [
            {"text": printable(text), "probability": _probability(logprob), "taken": _same(token, ident, text)}
            for ident, text, logprob in token.top
        ],
    }


def _same(token: Token, ident: int, text: str) -> bool:
    return token.id == ident if ident >= 0 else token.text == text


def _probability(logprob: float | None) -> float | None:
    return None if logprob is None else round(math.exp(min(0.0, logprob)), 5)


def look_view(completion: Completion, view: ReplyView, begin: int, *, show_text: bool = True) -> Json:
    """One look at a completion: its pieces from the `begin`-th on, none where they are not to be shown yet."""
    recorder, done = completion.recorder, view.finished
    pieces = recorder.pieces(begin) if show_text or done else []
    return {
        "id": view.message_id,
        "from": begin,
        "pieces": [piece_view(token) for token in pieces],
        "made": recorder.made,
        "done": done,
        "stats": stats_line(view.stats),
        "waiting": waiting_line(view),
        "told": [told(sentence) for sentence in (view.notice, *view.told) if sentence],
        "silent": bool(done and view.text and completion.asked_tokens and not recorder.tells),
        "problem": problem_view(view.error) if view.error else None,
    }
