"""Chat templates rendered in a process of their own, which is killed when one takes too long or too much.

A template is code that came with a model. The sandbox keeps it from reaching out; only a process boundary keeps it from
never ending or from eating the memory. What the rendered text means is not decided here: see prompts.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modules.errors import BadChatTemplate
from modules.units import MiB, format_size

RENDER_S = 2.0
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
        self._render_s = render_s
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

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
        with self._lock:
            reply = self._exchange(payload.encode("ascii"))
        if "error" in reply:
            raise TemplateRefused(f"The chat template cannot be used: {reply['error'].rstrip('.')}.", remedy=REMEDY)
        return str(reply["text"])

    def close(self) -> None:
        """End the process. A later render starts it again."""
        with self._lock:
            self._kill()

    def _exchange(self, payload: bytes) -> dict[str, str]:
        process = self._running()
        assert process.stdin is not None
        expired = threading.Event()
        clock = threading.Timer(self._render_s, _kill_late, (process, expired))
        clock.daemon = True
        clock.start()
        try:
            process.stdin.write(len(payload).to_bytes(4, "big") + payload)
            process.stdin.flush()
            return _receive(process)
        except (OSError, EOFError, ValueError) as error:
            self._kill()
            if expired.is_set():
                what = f"takes longer than {self._render_s:.0f} s"
            else:
                what = "ended the process that renders it"
            raise BadChatTemplate(f"The chat template {what}.", remedy=REMEDY) from error
        finally:
            clock.cancel()
            if expired.is_set():  # it may have struck in the moment of the answer
                self._kill()

    def _running(self) -> subprocess.Popen[bytes]:
        """The process, ready for a request."""
        if self._process is None or self._process.poll() is not None:
            self._kill()
            self._process = _start()
        return self._process

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def _start() -> subprocess.Popen[bytes]:
    """Start a worker and wait until it is ready. It inherits no environment, so no secrets."""
    inherited = {name: os.environ[name] for name in ("SYSTEMROOT", "TZ") if name in os.environ}
    process = subprocess.Popen(
        [sys.executable, "-I", "-X", "utf8", str(_WORKER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=inherited,
    )
    clock = threading.Timer(_START_S, process.kill)
    clock.daemon = True
    clock.start()
    try:
        _receive(process)
    except (EOFError, ValueError) as error:
        process.kill()
        process.communicate()
        raise BadChatTemplate(
            "The process that renders chat templates does not start.", remedy="Is jinja2 installed? Run ./start.sh."
        ) from error
    finally:
        clock.cancel()
    return process


def _kill_late(process: subprocess.Popen[bytes], expired: threading.Event) -> None:
    expired.set()
    process.kill()


def _receive(process: subprocess.Popen[bytes]) -> dict[str, str]:
    """One message. Raises EOFError if the process ends before it is whole."""
    assert process.stdout is not None
    header = process.stdout.read(4)
    length = int.from_bytes(header, "big")
    payload = process.stdout.read(length)
    if len(header) < 4 or len(payload) < length:
        raise EOFError
    message: dict[str, str] = json.loads(payload)
    return message
