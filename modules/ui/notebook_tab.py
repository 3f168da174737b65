"""The Notebook tab: one text in one area, continued by the model without any chat template."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator

import gradio as gr

from modules.chat.service import NOTEBOOK
from modules.sampling import GenerationParams
from modules.services import Services
from modules.ui.views import MAX_HZ, Json, notebook_view, printable
from modules.ui.widgets import Body, Nothing, Pick, door, owner_of, scripted


class Text(Body):
    """A text in place of the one that the page `known`."""

    text: str
    known: str


class Complete(Text):
    params: GenerationParams = GenerationParams()


class NotebookDoors:
    """What the page may ask for."""

    def __init__(self, services: Services) -> None:
        self.store, self.chat = services.store, services.chat
        self.streams = not services.settings.no_stream
        self._before: dict[str, str] = {}  # by owner, what the running completion completes
        self._keeping = threading.Lock()

    def load_text(self, owner: str, _: Nothing) -> Json:
        """The text as it was left, and whether the model is still writing it."""
        running = self.chat.running(owner, NOTEBOOK)
        text = printable(self.store.notebook(owner))
        if running is None:
            return {"text": text, "running": None}
        return {"text": text, "running": running.message_id, "before": printable(self._before.get(owner, text))}

    def save_text(self, owner: str, body: Text) -> Json:
        """Keep the text. If another page changed it meanwhile the answer is {"stale": its text} instead, and
        {"busy": True} while the model writes, which would write over it."""
        with self._keeping:
            if self.chat.running(owner, NOTEBOOK):
                return {"busy": True}
            stale = self._stale(owner, body)
            if not stale:
                self.store.save_notebook(owner, body.text)
        return stale

    def _stale(self, owner: str, body: Text) -> Json:
        kept = printable(self.store.notebook(owner))
        return {} if kept in (body.known, body.text) else {"stale": kept}

    def stop_text(self, owner: str, body: Pick) -> Json:
        """End the completion; what it wrote stays."""
        self.chat.stop(owner, body.id)
        return {}

    def complete(self, owner: str, body: Complete) -> Json:
        """Let the model go on with the text, unless another page changed it meanwhile, as in `save_text`."""
        with self._keeping:
            if stale := self._stale(owner, body):
                return stale
            reply = self.chat.complete(owner, body.text, body.params)
            self._before[owner] = body.text
        return {"running": reply.message_id}

    async def follow(self, request: gr.Request) -> AsyncIterator[Json]:
        """The running completion, from now to its end; `beat` tells equal looks apart."""
        owner = owner_of(request)
        reply = self.chat.running(owner, NOTEBOOK)
        if reply is None:
            yield {"gone": True, "text": printable(self.store.notebook(owner))}
            return
        beat, before = 0, self._before.get(owner, "")
        async for view in reply.updates(max_hz=MAX_HZ):
            beat += 1
            yield notebook_view(before, view, show_text=self.streams) | {"beat": beat}


def build(services: Services) -> None:
    """Put the tab's content here."""
    doors = NotebookDoors(services)
    scripted(
        "snug.mountNotebook",
        door(Nothing, "load_text", doors.load_text),
        door(Text, "save_text", doors.save_text),
        door(Complete, "complete", doors.complete),
        door(Pick, "stop_text", doors.stop_text),
        follow=doors.follow,
        show="snug.onNotebookLive",
    )
