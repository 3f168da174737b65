"""One process that renders chat templates for all tests of a run that do not look at the process itself."""

from __future__ import annotations

from modules.chat.templates import TemplateWorker


class LastingTemplateWorker(TemplateWorker):
    """Goes on when whoever used it closes it: to start one for every test would take longer than most of them."""

    def close(self) -> None:
        """Stay. The processes end with their standard input, and so with the tests."""

    @property
    def pids(self) -> set[int]:
        """Its processes, of which there are as many as were asked."""
        return {worker._process.pid for worker in self._turns if worker._process}


TEMPLATES = LastingTemplateWorker()
