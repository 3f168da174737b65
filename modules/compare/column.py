"""One column while it runs: what the runner's threads write, pages read."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import Any

from modules.compare.values import ColumnView
from modules.engine.base import Degraded, Delta, Event, Finished, Prefill, Progress, Queued
from modules.errors import EngineDied, SnugError


class Column:
    """Thread-safe. Once it is over nothing changes it."""

    def __init__(self, view: ColumnView) -> None:
        self._lock = threading.Lock()
        self._view = view
        self._parts: list[str] = []
        self._tokens: list[int] = []
        self._first: float | None = None

    def view(self) -> ColumnView:
        """The column as it is now."""
        with self._lock:
            if self._parts:
                self._view = replace(
                    self._view, text=(self._view.text + "".join(self._parts)).lstrip(), tokens=tuple(self._tokens)
                )
                self._parts.clear()
            return self._view

    def change(self, **changes: Any) -> None:
        """Let `changes` of ColumnView be seen."""
        with self._lock:
            if not self._view.over:
                self._view = replace(self._view, **changes)

    def note_after(self, **changes: Any) -> None:
        """Let what was measured of a column that is over be seen."""
        with self._lock:
            self._view = replace(self._view, **changes)

    def loading(self, progress: Progress) -> None:
        """How far its model's load is."""
        self.change(stage="loading", progress=progress)

    def again(self, note: str) -> None:
        """It waits once more, for another try."""
        self.change(stage="waiting", progress=None, note=note)

    def fail(self, error: SnugError) -> None:
        """It ends with `error`; what it holds stays."""
        self.view()
        self.change(stage="failed", progress=None, error=error)

    def stop(self) -> None:
        """It ends with what it holds."""
        self.view()
        self.change(stage="stopped", progress=None)

    def take(self, event: Event) -> None:
        """The next event of its reply."""
        match event:
            case Queued(position):
                words = "You are next" if not position else f"Waiting, {position} before you"
                self.change(stage="reading", progress=Progress(words, 0.0))
            case Prefill(done=done, total=total):
                self.change(stage="reading", progress=Progress("Reading the prompt", done / max(1, total)))
            case Delta():
                self._add(event)
            case Degraded(what, why):
                self.change(note=f"{why} {what}")
            case Finished():
                self._finish(event)

    def _add(self, delta: Delta) -> None:
        with self._lock:
            if self._view.over:
                return
            now = time.monotonic()
            if self._first is None:
                self._first = now
            self._parts.append(delta.text)
            self._tokens += delta.token_ids
            count, passed = len(self._tokens), now - self._first
            speed = (count - 1) / passed if count > 1 and passed > 0 else 0.0
            self._view = replace(self._view, stage="writing", progress=None, count=count, tokens_per_s=speed)

    def _finish(self, event: Finished) -> None:
        self.view()
        timings, usage = event.timings, event.usage
        self.change(
            count=usage.completion_tokens,
            prompt_tokens=usage.prompt_tokens,
            first_token_s=timings.first_token_s,
            tokens_per_s=timings.tokens_per_s,
        )
        if event.reason == "error":
            self.fail(event.error or EngineDied("The engine stopped without saying why.", remedy="Try again."))
        elif event.reason == "cancelled":
            self.stop()
        else:
            self.change(stage="done", progress=None, ended=event.reason)
