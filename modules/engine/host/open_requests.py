"""The host's side of requests: which ones the engine has not finished, and who reads their events."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from modules.engine.base import Event, GenerationRequest
from modules.engine.host.generation import Generation
from modules.engine.host.wire import Cancel, Submit
from modules.errors import SnugError

__all__ = ["Follow", "OpenRequests"]

Follow = Callable[[GenerationRequest], Callable[[Event], None]]
"""Who wants to hear of requests: gets each, and gives what is told of its events."""


@dataclass(slots=True)
class _Owed:
    """A request for which the engine has not sent Finished."""

    since: float
    on_abandon: weakref.finalize[..., Generation]


class OpenRequests:
    """Requests of one engine. Every method may be called from any thread."""

    def __init__(self, post: Callable[[Submit | Cancel], None], follow: Follow | None = None) -> None:
        """`post` sends to the engine; it must neither block nor take a lock. `follow` hears of every request."""
        self._post = post
        self._follow = follow
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._open: weakref.WeakValueDictionary[str, Generation] = weakref.WeakValueDictionary()
        self._waited_for: set[Generation] = set()
        self._owed: dict[str, _Owed] = {}
        self._over: SnugError | None = None

    @property
    def owed(self) -> bool:
        """Whether the engine is not done with some request."""
        return bool(self._owed)

    def wait_idle(self, timeout_s: float) -> bool:
        """Whether the engine is done with every request, waiting for that at most `timeout_s`."""
        with self._idle:
            return self._idle.wait_for(lambda: not self._owed, timeout_s)

    def oldest_since(self, now: float) -> float:
        """Since when (time.monotonic) the engine has had the oldest request; `now` if it has none."""
        with self._lock:
            return min((owed.since for owed in self._owed.values()), default=now)

    def submit(self, request: GenerationRequest) -> Generation:
        """Send a request. Raises ValueError if one of this id is running."""
        listen = self._follow(request) if self._follow else None
        generation = Generation(request, partial(self._post, Cancel(request.id)), self._waited_for, listen)
        self._take_on(generation, request)
        return generation

    def adopt(self, generation: Generation) -> None:
        """Let `generation`, which another host gave up, go on here."""
        request = generation.move(partial(self._post, Cancel(generation.id)), self._waited_for)
        if request is None:
            generation.finish("cancelled" if generation.cancelled_at is not None else "length")
        else:
            self._take_on(generation, request)
            if generation.cancelled_at is not None:  # meanwhile: that Cancel may have gone out before the Submit
                self._post(Cancel(generation.id))

    def find(self, request_id: str) -> Generation | None:
        """Who reads the events of this request; None if nobody does any more."""
        return self._open.get(request_id)

    def stop(self, user: str, name: str = "") -> int:
        """Cancel what this user has open, or what of it goes by `name`; how many requests that are."""
        with self._lock:
            mine = [one for one in self._open.values() if one.user == user and (not name or name in one.id.split())]
        for generation in mine:
            generation.cancel()
        return len(mine)

    def settle(self, request_id: str) -> None:
        """The engine is done with a request."""
        with self._lock:
            owed = self._owed.pop(request_id, None)
            self._open.pop(request_id, None)
            if not self._owed:
                self._idle.notify_all()
        if owed is not None:
            owed.on_abandon.detach()

    def end_cancelled(self, now: float, after_s: float) -> None:
        """End for their readers those that were cancelled `after_s` ago and that a long step of the engine holds up."""
        with self._lock:
            generations = list(self._open.values())
        for generation in generations:
            if generation.cancelled_at is not None and now - generation.cancelled_at > after_s:
                generation.finish("cancelled")

    def leave(self, over: SnugError | None = None) -> list[Generation]:
        """The open generations, which are then forgotten; with `over`, later requests end with that error at once."""
        with self._lock:
            self._over = over or self._over
            generations = list(self._open.values())
            self._open.clear()
            for owed in self._owed.values():
                owed.on_abandon.detach()
            self._owed.clear()
            self._idle.notify_all()
        return generations

    def _take_on(self, generation: Generation, request: GenerationRequest) -> None:
        with self._lock:
            if request.id in self._owed:
                raise ValueError(f"request {request.id} is running already")
            over = self._over
            if over is None:
                # Cancelled when nobody holds it any more; posting is safe in a finalizer, taking locks would not be.
                abandon = weakref.finalize(generation, self._post, Cancel(request.id))
                abandon.atexit = False
                self._open[request.id] = generation
                self._owed[request.id] = _Owed(time.monotonic(), abandon)
                self._post(Submit(request))
        if over is not None:
            generation.finish("error", over)
