"""`--plan` with `--engine-url`: nothing to plan; who answers there, with which model and how long a context."""

from __future__ import annotations

from contextlib import closing
from typing import Any

from rich.console import Console
from rich.text import Text

from modules.engine.remote.client import RemoteClient
from modules.engine.remote.connecting import Found, find_out
from modules.errors import SnugError
from modules.memory.planning.elsewhere import plan_elsewhere
from modules.plan_command.as_json import error_json
from modules.remote_server import RemoteServer


def ask(server: RemoteServer) -> Found | SnugError:
    """Who answers at the address, or why nobody does. Raises BadFlag for a key file that cannot be read."""
    with closing(RemoteClient(server.url, server.read_key())) as client:
        try:
            return find_out(client, server)
        except SnugError as error:
            return error


def elsewhere_json(server: RemoteServer, answer: Found | SnugError) -> dict[str, Any]:
    """What `--plan --json` prints of it."""
    found = answer if isinstance(answer, Found) else None
    return {
        "model": {"name": found.model if found else server.name},
        "mode": "infer",
        "fits": found is not None,
        "elsewhere": {
            "url": server.url,
            "server": found.title if found else None,
            "context_tokens": found.context_tokens or None if found else None,
            "prompts_travel_as": None if found is None else "words" if found.tokens is None else "tokens",
        },
        "error": None if found else error_json(answer) if isinstance(answer, SnugError) else None,
    }


def print_elsewhere(console: Console, server: RemoteServer, answer: Found | SnugError) -> None:
    """The same for people."""
    console.print(Text(f"{server.name}: runs elsewhere", style="bold"))
    console.print(Text(plan_elsewhere(server).reasons[0]))
    if isinstance(answer, SnugError):
        console.print(Text(str(answer), style="red"))
        return
    context = f"{answer.context_tokens:,} tokens of context" if answer.context_tokens else "context not told"
    how = "messages" if answer.tokens is None else "token ids"
    console.print(
        Text(f"{answer.title} answers, with {answer.model or 'its model'}: {context}; prompts travel as {how}.")
    )
