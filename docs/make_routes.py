"""Writes docs/routes.md from the running app: `python -m docs.make_routes`. A test keeps the file true.

Every route of API and page, Gradio's included, asked by nobody, with a wrong key, by a person and by an administrator:
what the doors in front say. What lies behind the doors is not asked.
"""

from __future__ import annotations

import asyncio
import re
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from modules.accounts.directory import Accounts
from modules.api.app import build_api
from modules.api.doors.guard import install_guard
from modules.settings import Settings
from modules.ui.app import mount_ui
from modules.ui.sessions import OwnSessions
from modules.ui.streams import Streams

HERE = "127.0.0.1:7860"
IDENTITIES = ("nobody", "wrong key", "person", "administrator")
_INTRO = """# Routes

Made by `python -m docs.make_routes` from the running app; do not edit. Read by the tests: a new route fails them until
this file is made anew, and somebody has looked at what the new lines say.

Every route, asked at its own Host and without an Origin, on a Snug where people have accounts. “in”: the doors let the
request through to the route, whose own checks come then. A number is the refusal's status: 401 for who is not known,
403 for who has not the right, 404 for a route of Gradio's that Snug keeps shut. Any other Host gets 421 on every route,
any other Origin 403, whoever asks, but for the API where `--cors-origin` names it. On a machine for one whoever asks
counts as an administrator; with `--listen` and without accounts the guests' secret counts as a person.

| method | path | nobody | wrong key | person | administrator |
| --- | --- | --- | --- | --- | --- |
"""


@dataclass
class Doors:
    """The real doors, with nothing behind them: who gets through hears 204."""

    app: ASGIApp
    routes: list[tuple[str, str]]
    keys: dict[str, str]
    passed: int = field(default=0)

    async def ask(self, method: str, path: str, headers: list[tuple[str, str]]) -> tuple[int, dict[str, str]]:
        """The status and the headers of the answer."""
        status, told = 0, {}

        async def receive() -> Message:
            return {"type": "http.request", "body": b'{"session_hash": "s", "fn_index": 0}', "more_body": False}

        async def send(message: Message) -> None:
            nonlocal status, told
            if message["type"] == "http.response.start":
                status = message["status"]
                told = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in message["headers"]}

        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
        scope: Scope = {
            "type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b"",
            "root_path": "", "scheme": "http", "http_version": "1.1", "headers": raw, "state": {},
            "server": ("127.0.0.1", 7860), "client": ("127.0.0.1", 5),
        }  # fmt: skip
        await self.app(scope, receive, send)
        return status, told

    def identity(self, name: str) -> list[tuple[str, str]]:
        """The headers of who asks."""
        return [] if name == "nobody" else [("x-api-key", self.keys[name])]


def paths_of(app: Any, *, page: bool = False) -> Iterator[tuple[str, str, bool]]:
    """Method, a callable path and whether it is Gradio's, of every route; mounted ones included."""
    for route in iter_route_contexts(app.routes):
        inner = getattr(route.original_route, "app", None)
        if isinstance(inner, FastAPI):
            yield from paths_of(inner, page=True)
        for method in route.methods or ():
            yield method, re.sub(r"\{[^}]*\}", "x", route.path or "/"), page


def doors(folder: Path, parts: ExitStack) -> Doors:
    """Those of a whole Snug whose data lie in `folder`; `parts` ends it."""
    from modules import startup

    for name in ("models", "user_data"):
        (folder / name).mkdir(exist_ok=True)
    settings = Settings.model_validate({"model_dir": folder / "models", "user_data_dir": folder / "user_data"})
    services = parts.enter_context(startup.services(settings, settings.user_data_dir))
    accounts = services.accounts
    assert accounts is not None
    found = sorted(set(paths_of(mount_ui(build_api(services), services))))
    ours = {(method, path) for method, path, page in found if not page}
    return behind_doors(accounts, [(method, path) for method, path, _ in found], ours)


def behind_doors(accounts: Accounts, routes: list[tuple[str, str]], ours: set[tuple[str, str]]) -> Doors:
    """The doors in front of nothing, with a person and an administrator who have keys."""
    keys = {"wrong key": "snug-wrong"}
    for name, admin in (("administrator", True), ("person", False)):
        person = accounts.add(name, "a long password", admin=admin)
        keys[name] = accounts.make_key(person.id, "test", admin=admin)[1]

    async def through(scope: Scope, receive: Receive, send: Send) -> None:
        await Response(status_code=204)(scope, receive, send)

    gradios = OwnSessions(
        through, streams=Streams(gr.Blocks()._queue), files=Path("uploads"), events=(0,), parts=(0,), admin_events=()
    )

    async def house(scope: Scope, receive: Receive, send: Send) -> None:
        mine = (scope["method"], scope["path"]) in ours or scope["path"].startswith("/v1/")
        await (through if mine else gradios)(scope, receive, send)

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.mount("/", house)
    install_guard(app, host="127.0.0.1", port=7860, access_token=None, accounts=accounts)
    return Doors(app, list(dict.fromkeys(routes)), keys)


async def rows(house: Doors) -> list[str]:
    """The table's lines."""
    lines = []
    for method, path in house.routes:
        cells = []
        for name in IDENTITIES:
            status, _ = await house.ask(method, path, [("host", HERE), *house.identity(name)])
            cells.append("in" if status == 204 else str(status))
        lines.append(f"| {method} | `{path}` | {' | '.join(cells)} |")
    return lines


def render() -> str:
    """The whole page as Markdown."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as parts:
        house = doors(Path(folder), parts)
        return _INTRO + "\n".join(asyncio.run(rows(house))) + "\n"


if __name__ == "__main__":
    Path(__file__).with_name("routes.md").write_text(render(), encoding="utf-8")
