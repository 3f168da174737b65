"""Code in colours, by a process that is killed when some code takes too long: then it is shown without.

Pygments knows 500 languages by regular expressions, which Python follows without letting any other thread go on: 2,000
characters of C kept everybody waiting for 8 s, and the time grows with their third power.
"""

from __future__ import annotations

import atexit
import json
import logging
import sys
import threading
import time
from collections.abc import Callable

from modules.engine.turns import Turns
from modules.errors import QueueFull
from modules.killable import KillableWorker, WorkerEnded, bare_environment
from modules.on_behalf import ASKED_FOR

log = logging.getLogger(__name__)

HIGHLIGHT_S = 1.0  # 50,000 characters take a tenth of it
PLAIN_S = 60.0  # for so long whoever's code ended the process has none in colours
_START_S = 30.0


class Highlighter:
    """The process, started when first needed and again after it was killed; people take turns. Safe from any thread."""

    def __init__(self, *, highlight_s: float = HIGHLIGHT_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._highlight_s = highlight_s
        self._clock = clock
        command = [sys.executable, "-P", "-m", "modules.ui.highlight_worker"]
        self._worker = KillableWorker(command, bare_environment(), start_s=_START_S)
        self._turns = Turns()
        self._plain_until: dict[str, float] = {}
        self._lock = threading.Lock()

    def html(self, code: str, language: str) -> str | None:
        """`code` as HTML: spans with Pygments' class names. None for a language that it does not know, and for code
        that takes too long; then for all that the same person asks for in the next minute.
        """
        whose = ASKED_FOR.get()
        if self._is_plain(whose):
            return None
        question = json.dumps({"code": code, "language": language}).encode()
        try:
            with self._turns.turn(whose):
                if self._is_plain(whose):  # since it waits
                    return None
                found = self._worker.ask(question, timeout_s=self._highlight_s)["html"]
        except QueueFull:
            return None
        except WorkerEnded as error:
            log.info("Code in %r is shown without colours: %s", language, type(error).__name__)
            self._leave_plain(whose)
            return None
        return None if found is None else str(found)

    def close(self) -> None:
        """End the process. Later code starts it again."""
        self._worker.close()

    def _is_plain(self, whose: str) -> bool:
        with self._lock:
            return self._plain_until.get(whose, 0) > self._clock()

    def _leave_plain(self, whose: str) -> None:
        now = self._clock()
        with self._lock:
            self._plain_until = {one: until for one, until in self._plain_until.items() if until > now}
            self._plain_until[whose] = now + PLAIN_S


HIGHLIGHTER = Highlighter()
atexit.register(HIGHLIGHTER.close)
