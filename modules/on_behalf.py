"""For whom something is done, and what is held meanwhile, however deep down: set at the door of a request."""

from __future__ import annotations

from contextlib import ExitStack
from contextvars import ContextVar

ASKED_FOR: ContextVar[str] = ContextVar("asked_for", default="")
"""Who waits for it: api/doors/places.py says it for each request, chat/writing.py for each reply."""
UNTIL_ANSWERED: ContextVar[ExitStack | None] = ContextVar("until_answered", default=None)
"""What a request holds until its answer is sent, as api/doors/places.py lets go of it; None where nobody answers."""
