"""Chat templates rendered in a process of their own, which is killed when one takes too long or too much.

A template is code that came with a model. The sandbox keeps it from reaching out; only a process boundary keeps it from
never ending or from eating the memory. What the rendered text means is not decided here: see prompts.py.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modules.errors import BadChatTemplate
from modules.killable import KillableWorker, WorkerDoesNotStart, WorkerEnded, WorkerLate
from modules.units import MiB, format_size

RENDER_S = 1.8  # of the 2 that a refusal may take
RENDER_BYTES = 64 * MiB
MAX_TEMPLATE_CHARACTERS = 1_000_000
_START_S = 30.0
_COPIES = 12  # a text stands in memory as JSON, as variables, as the rendered parts, as their sum, as JSON again
_WORKER = Path(__file__).with_name("template_worker.py")
REMEDY = "Use another model, or correct the chat template in the model's folder."


class TemplateRefused(BadChatTemplate):
    """The template itself said no, or is wrong: with other messages it may render."""


class TemplateWorker:
    """One rendering process, started when first needed and again after it was killed. Safe from any thread."""

    def __init__(self, *, render_s: float = RENDER_S) -> None:
        # It inherits no environment, so no secrets.
        inherited = {name: os.environ[name] for name in ("SYSTEMROOT", "TZ") if name in os.environ}
        self._render_s = render_s
        self._worker = KillableWorker([sys.executable, "-I", "-X", "utf8", str(_WORKER)], inherited, start_s=_START_S)

    def render(self, template: str, variables: Mapping[str, Any]) -> str:
        """The rendered text. `variables` are JSON values.

        Raises TemplateRefused with the template's own words, BadChatTemplate if it takes longer than two seconds,
        more memory than 64 MiB (and a share for the messages), or ends its process.
        """
        if len(template) > MAX_TEMPLATE_CHARACTERS:
            raise BadChatTemplate(
                f"The chat template is {format_size(len(template))} long; "
                f"Snug takes up to {format_size(MAX_TEMPLATE_CHARACTERS)}.",
                remedy=REMEDY,
            )
        request = json.dumps({"template": template, "variables": variables}, allow_nan=False)
        limits = {"memory_bytes": RENDER_BYTES + _COPIES * len(request), "cpu_s": int(self._render_s) + 1}
        payload = json.dumps(limits)[:-1] + "," + request[1:]
        reply = self._exchange(payload.encode("ascii"))
        if "error" in reply:
            raise TemplateRefused(f"The chat template cannot be used: {reply['error'].rstrip('.')}.", remedy=REMEDY)
        return str(reply["text"])

    def close(self) -> None:
        """End the process. A later render starts it again."""
        self._worker.close()

    def _exchange(self, payload: bytes) -> dict[str, str]:
        try:
            return self._worker.ask(payload, timeout_s=self._render_s)
        except WorkerDoesNotStart as error:
            raise BadChatTemplate(
                "The process that renders chat templates does not start.", remedy="Is jinja2 installed? Run ./start.sh."
            ) from error
        except WorkerEnded as error:
            late = isinstance(error, WorkerLate)
            what = f"takes longer than {self._render_s:.0f} s" if late else "ended the process that renders it"
            raise BadChatTemplate(f"The chat template {what}.", remedy=REMEDY) from error
