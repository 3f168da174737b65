"""The Notebook tab: one text, continued by the model without any chat template, with its history and its tokens."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import gradio as gr
from pydantic import Field

from modules.chat.counting import TokenCounter
from modules.chat.notebook import Completion, Gap, Notebook
from modules.chat.notebooks import Notebooks, Page
from modules.errors import Busy, StaleView
from modules.sampling import GenerationParams
from modules.services import Services
from modules.ui.notebook_views import choice_view, look_view, page_view, piece_view, segments
from modules.ui.views import MAX_HZ, Json, printable
from modules.ui.widgets import Body, Nothing, Pick, door, owner_of, scripted

OVERLAP = 64
"""Pieces that a look repeats: the page may miss a look, and asks for all of them where it missed more."""


class Seen(Body):
    """A request about the notebook of the `revision` that the page shows."""

    revision: int


class Text(Seen):
    """A text in place of the one of that revision."""

    text: str


class Turn(Seen):
    by: int = Field(ge=-1, le=1)


class Again(Seen):
    tokens: bool = False
    params: GenerationParams = GenerationParams()


class Complete(Again):
    """The text on show, cut where the model is to write; what is `selected` gives way. Without `insert` all stays
    before that."""

    before: str
    selected: str = ""
    after: str = ""
    insert: bool = False


class One(Body):
    """A token: of a run, or without one of the completion under way."""

    run: int | None = None
    number: int = Field(ge=0)


class Take(Seen):
    run: int
    number: int = Field(ge=0)
    taken: int = Field(ge=0, le=20)
    params: GenerationParams = GenerationParams()


class NotebookDoors:
    """What the page may ask for."""

    def __init__(self, services: Services) -> None:
        self.notebook = Notebook(services.models, services.store, services.prompts, services.chat)
        self.models, self.chat = services.models, services.chat
        self.counter = TokenCounter()
        self.streams = not services.settings.no_stream

    def load_text(self, owner: str, _: Nothing) -> Json:
        """The notebook as it was left, and what the model is still writing into it."""
        running = self.notebook.running(owner)  # first: its end changes the page
        return page_view(self.notebook.kept.page(owner)) | {"running": _started(running) if running else None}

    def save_text(self, owner: str, body: Text) -> Json:
        """Keep the text. If another page changed it meanwhile the answer is {"stale": the notebook} instead, and
        {"busy": True} while the model writes, which would write over it."""
        try:
            return self._unless_stale(owner, lambda: self.notebook.save(owner, body.text, body.revision))
        except Busy:
            return {"busy": True}

    def undo(self, owner: str, body: Seen) -> Json:
        """Take the last change back."""
        return self._travel(owner, body.revision, lambda kept: kept.undo)

    def redo(self, owner: str, body: Seen) -> Json:
        """Make it again."""
        return self._travel(owner, body.revision, lambda kept: kept.redo)

    def turn(self, owner: str, body: Turn) -> Json:
        """Show another version of the last change."""
        return self._travel(owner, body.revision, lambda kept: lambda of, revision: kept.turn(of, revision, body.by))

    def _travel(self, owner: str, revision: int, move: Callable[[Notebooks], Callable[[str, int], Page]]) -> Json:
        return self._unless_stale(owner, lambda: self.notebook.travel(owner, revision, move))

    def _unless_stale(self, owner: str, change: Callable[[], Page | Completion]) -> Json:
        try:
            changed = change()
        except StaleView:
            return {"stale": page_view(self.notebook.kept.page(owner))}
        return page_view(changed) if isinstance(changed, Page) else {"running": _started(changed)}

    def complete(self, owner: str, body: Complete) -> Json:
        """Let the model go on with the text, unless another page changed it meanwhile, as in `save_text`."""
        gap = Gap(body.before + body.selected + body.after, "", "")
        if body.insert:
            gap = Gap(body.before, body.selected, body.after, inserted=bool(body.after), fills=True)
        return self._unless_stale(
            owner, lambda: self.notebook.complete(owner, body.revision, gap, body.params, tokens=body.tokens)
        )

    def again(self, owner: str, body: Again) -> Json:
        """Write the last completion anew, as another version."""
        return self._unless_stale(
            owner, lambda: self.notebook.again(owner, body.revision, body.params, tokens=body.tokens)
        )

    def take(self, owner: str, body: Take) -> Json:
        """Put an alternative in a token's place and go on from there."""
        return self._unless_stale(
            owner,
            lambda: self.notebook.take(owner, body.revision, body.run, body.number, body.taken, body.params),
        )

    def stop_text(self, owner: str, body: Pick) -> Json:
        """End the completion; what it wrote stays."""
        self.chat.stop(owner, body.id)
        return {}

    def tokens(self, owner: str, _: Nothing) -> Json:
        """The text in segments, as far as it is known by token."""
        page = self.notebook.kept.page(owner)
        runs = {span.run: self.notebook.kept.run(owner, span.run).tokens for span in page.spans}
        return {"revision": page.revision, "segments": list(segments(page, runs))}

    def pieces(self, owner: str, _: Nothing) -> Json:
        """All that the completion under way has written."""
        running = self.notebook.running(owner)
        return {"pieces": [piece_view(token) for token in running.recorder.pieces()] if running else None}

    def choice(self, owner: str, body: One) -> Json:
        """A token's alternatives."""
        return choice_view(self.notebook.choice(owner, body.run, body.number))

    def measure(self, owner: str, _: Nothing) -> Json:
        """How many tokens the text has, and what the loaded model can do; nothing without a model."""
        info = self.models.state.info
        if info is None or self.models.state.status != "ready":
            return {"tokens": None}
        engine = self.models.engine()
        count = self.counter.count(engine, self.notebook.kept.text(owner))
        return {
            "tokens": count.tokens,
            "exact": count.exact,
            "context": info.context_tokens,
            "model": info.name,
            "fills": self.notebook.filling.tokens_of(engine) is not None,
            "tells": info.tells_logprobs,
        }

    async def follow(self, request: gr.Request) -> AsyncIterator[Json]:
        """The running completion, from its beginning to its end; `beat` tells equal looks apart."""
        owner = owner_of(request)
        running = self.notebook.running(owner)
        if running is None:
            yield {"gone": True} | page_view(self.notebook.kept.page(owner))
            return
        beat, shown = 0, 0
        async for view in running.reply.updates(max_hz=MAX_HZ):
            beat += 1
            look = look_view(running, view, max(0, shown - OVERLAP), show_text=self.streams) | {"beat": beat}
            shown = look["from"] + len(look["pieces"])
            yield look | ({"page": page_view(self.notebook.kept.page(owner))} if view.finished else {})


def _started(completion: Completion) -> Json:
    gap = completion.gap
    return {"id": completion.reply.message_id, "before": printable(gap.before), "after": printable(gap.after)}


def build(services: Services) -> None:
    """Put the tab's content here."""
    doors = NotebookDoors(services)
    scripted(
        "snug.mountNotebook",
        door(Nothing, "load_text", doors.load_text),
        door(Text, "save_text", doors.save_text),
        door(Seen, "undo", doors.undo),
        door(Seen, "redo", doors.redo),
        door(Turn, "turn", doors.turn),
        door(Complete, "complete", doors.complete),
        door(Again, "again", doors.again),
        door(Take, "take", doors.take),
        door(Pick, "stop_text", doors.stop_text),
        door(Nothing, "tokens", doors.tokens),
        door(Nothing, "pieces", doors.pieces),
        door(One, "choice", doors.choice),
        door(Nothing, "measure", doors.measure),
        follow=doors.follow,
        show="snug.onNotebookLive",
    )
