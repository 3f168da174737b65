"""Chat templates rendered in a process of their own, which is killed when one takes too long or too much.

A template is code that came with a model, or that somebody wrote into a conversation. The sandbox keeps it from
reaching out; only a process boundary keeps it from never ending or from eating the memory. People take turns, and
those whose template is their own wait for one another alone. What the rendered text means is not decided here.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from modules.engine.turns import Turns
from modules.errors import BadChatTemplate
from modules.killable import KillableWorker, WorkerDoesNotStart, WorkerEnded, WorkerLate, bare_environment
from modules.on_behalf import ASKED_FOR
from modules.units import MiB, format_size

RENDER_S = 1.8  # of the 2 that a refusal may take
RENDER_BYTES = 64 * MiB
MAX_TEMPLATE_CHARACTERS = 1_000_000
_START_S = 30.0
_INHERITED = ("SYSTEMROOT", "TZ", "PYTHONPATH")  # nothing that tells of the user
_COPIES = 12  # a text stands in memory as JSON, as variables, as the rendered parts, as their sum, as JSON again
REMEDY = "Use another model, or correct the chat template in the model's folder."


class TemplateRefused(BadChatTemplate):
    """The template itself said no, or is wrong: with other messages it may render."""


class TemplateWorker:
    """Two rendering processes: for the templates of models, and for those that people have written. Each is started
    when first needed and again after it was killed. Safe from any thread.
    """

    def __init__(self, *, render_s: float = RENDER_S) -> None:
        self._render_s = render_s
        command = [sys.executable, "-P", "-X", "utf8", "-m", "modules.chat.template_worker"]
        environment = {name: value for name, value in bare_environment().items() if name in _INHERITED}
        self._worker, self._peoples = (KillableWorker(command, environment, start_s=_START_S) for _ in range(2))
        self._turns = {worker: Turns() for worker in (self._worker, self._peoples)}

    def render(self, template: str, variables: Mapping[str, Any], *, own: bool = False) -> str:
        """The rendered text. `variables` are JSON values; `own`: somebody wrote this template.

        Raises TemplateRefused with the template's own words, BadChatTemplate if it takes longer than two seconds,
        more memory than 64 MiB (and a share for the messages), or ends its process; QueueFull.
        """
        if len(template) > MAX_TEMPLATE_CHARACTERS:
            raise BadChatTemplate(
                f"The chat template is {format_size(len(template))} long; "
                f"Snug takes up to {format_size(MAX_TEMPLATE_CHARACTERS)}.",
                remedy=REMEDY,
            )
        whose = ASKED_FOR.get() if own else ""
        request = json.dumps({"template": template, "whose": whose, "variables": variables}, allow_nan=False)
        limits = {"memory_bytes": RENDER_BYTES + _COPIES * len(request), "cpu_s": int(self._render_s) + 1}
        payload = json.dumps(limits)[:-1] + "," + request[1:]
        reply = self._exchange(self._peoples if own else self._worker, payload.encode("ascii"))
        if "error" in reply:
            raise TemplateRefused(f"The chat template cannot be used: {reply['error'].rstrip('.')}.", remedy=REMEDY)
        return str(reply["text"])

    def close(self) -> None:
        """End the processes. A later render starts them again."""
        for worker in self._turns:
            worker.close()

    def _exchange(self, worker: KillableWorker, payload: bytes) -> dict[str, str]:
        try:
            with self._turns[worker].turn(ASKED_FOR.get()):
                return worker.ask(payload, timeout_s=self._render_s)
        except WorkerDoesNotStart as error:
            raise BadChatTemplate(
                "The process that renders chat templates does not start.", remedy="Is jinja2 installed? Run ./start.sh."
            ) from error
        except WorkerEnded as error:
            late = isinstance(error, WorkerLate)
            what = f"takes longer than {self._render_s:.0f} s" if late else "ended the process that renders it"
            raise BadChatTemplate(f"The chat template {what}.", remedy=REMEDY) from error
