"""How much of Gradio's queue one person may hold: streams that run, and what they said that nobody has fetched.

Gradio works on a set number of events at once, whoever's they are, and keeps what they say for 2,000 sessions, of
which the oldest give way. Somebody who begins streams and reads none would have others wait for theirs, or lose them.
"""

from __future__ import annotations

from collections.abc import MutableMapping, MutableSet
from typing import Any, Protocol

from gradio.server_messages import EventMessage, ProcessCompletedMessage

from modules.errors import QueueFull

STREAMS_AT_ONCE = 32
"""Events of one person in Gradio's queue, and sessions that hold something for them."""
MOST_UNREAD = 600
"""Messages that wait for one session: those of the seconds in which a connection that reads nothing is ended."""


class Queued(Protocol):
    """An event in Gradio's queue."""

    _id: str
    session_hash: str
    alive: bool


class Queue(Protocol):
    """What is asked of Gradio's queue; what waits for a session is there from its first event on, oldest first."""

    event_ids_to_events: MutableMapping[str, Any]
    pending_messages_per_session: MutableMapping[str, Any]
    pending_event_ids_session: MutableMapping[str, MutableSet[str]]

    def send_message(self, event: Any, event_message: Any) -> None:
        """Keep one for an event's session."""


class Streams:
    """A queue's events by person. A person's sessions begin with the same prefix."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._send = queue.send_message
        queue.send_message = self.send  # type: ignore[method-assign]

    def send(self, event: Queued, event_message: EventMessage) -> None:
        """As the queue's `send_message`. An event whose messages nobody reads ends; only its end is kept."""
        messages = self._queue.pending_messages_per_session.get(event.session_hash)
        if messages is None:
            event.alive = False
        elif event.alive and messages.qsize() >= MOST_UNREAD:
            while not messages.empty():
                messages.get_nowait()
            self._send(event, ProcessCompletedMessage(output={}, success=True))
            event.alive = False
        else:
            self._send(event, event_message)

    def session_of(self, event_id: str) -> str | None:
        """Whose an event is that is under way; None for none."""
        event: Queued | None = self._queue.event_ids_to_events.get(event_id)
        return None if event is None else event.session_hash

    def make_room(self, prefix: str) -> None:
        """For one more event of this person: what the oldest of their sessions hold goes. Raises QueueFull."""
        queue = self._queue
        running = [event.session_hash for event in queue.event_ids_to_events.values()]
        running = [session for session in running if session.startswith(prefix)]
        if len(running) >= STREAMS_AT_ONCE:
            raise QueueFull("Too many of your replies are on show.", remedy="Close some pages.")
        kept = [session for session in queue.pending_messages_per_session if session.startswith(prefix)]
        over = len(kept) - STREAMS_AT_ONCE + 1
        for session in [session for session in kept if session not in running][: max(over, 0)]:
            del queue.pending_messages_per_session[session]
        left = [session for session in queue.pending_event_ids_session if session.startswith(prefix)]
        for session in left:
            if session not in queue.pending_messages_per_session and session not in running:
                del queue.pending_event_ids_session[session]
