"""One process that renders chat templates for all tests of a run that do not look at the process itself."""

from __future__ import annotations

from modules.chat.templates import TemplateWorker


class LastingTemplateWorker(TemplateWorker):
    """Goes on when whoever used it closes it: to start one for every test would take longer than most of them."""

    def close(self) -> None:
        """Stay. The process ends with its standard input, and so with the tests."""

    @property
    def pid(self) -> int | None:
        """The process; None where none was asked yet."""
        process = self._worker._process
        return process.pid if process else None


TEMPLATES = LastingTemplateWorker()
