"""A whole Snug in the test's own loop, in which Ana (an administrator) and Ben have accounts; its model is a script."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio
import httpx
from argon2 import PasswordHasher
from fastapi import FastAPI
from starlette.routing import Mount

from modules.accounts import passwords
from modules.accounts.directory import Accounts
from modules.extensions.manager import Extensions
from modules.services import Services
from modules.settings import LoadOptions, Settings
from tests.fakes import Script
from tests.page_rig import app_of, parts_of

HERE = "http://127.0.0.1:7860"
WORDS = {"Ana": "correct horse", "Ben": "battery staple"}
QUICK = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)


@dataclass
class Household:
    """The app, its parts, and what people have."""

    app: FastAPI
    services: Services
    keys: dict[str, str] = field(default_factory=dict)

    @property
    def accounts(self) -> Accounts:
        assert self.services.accounts is not None
        return self.services.accounts

    @property
    def page(self) -> gradio.Blocks:
        """Gradio's page."""
        mounted = next(route.app for route in reversed(self.app.routes) if isinstance(route, Mount))
        return mounted.get_blocks()  # type: ignore[attr-defined]

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        """With what starts and ends with a server: Gradio's queue."""
        async with self.app.router.lifespan_context(self.app):
            yield

    def client(
        self, name: str = "", *, address: str = "127.0.0.1", base: str = HERE, **options: Any
    ) -> httpx.AsyncClient:
        """A browser of that person's, logged in; of nobody's without a name."""
        transport = httpx.ASGITransport(self.app, client=(address, 5), raise_app_exceptions=False)
        cookies = {}
        if name:
            cookies["snug_session_7860"] = self.accounts.begin_session(self.accounts.named(name))
        return httpx.AsyncClient(transport=transport, base_url=base, cookies=cookies, timeout=30, **options)

    def program(self, key: str) -> httpx.AsyncClient:
        """A program that shows a key."""
        return self.client(headers={"authorization": f"Bearer {key}"})

    def holders(self, name: str) -> list[int]:
        """The parts of the page that have a door of this name."""
        return [
            number for number, block in self.page.blocks.items()
            if getattr(getattr(block, name, None), "_is_server_fn", False)
        ]  # fmt: skip

    async def ask(
        self, client: httpx.AsyncClient, name: str, body: Any, *, session: str = "a", holder: int | None = None
    ) -> Any:
        """What the page's door `name` answers: its first one, or that of `holder`."""
        if holder is None:
            holder = next(iter(self.holders(name)), 0)
        asked = {"data": body, "component_id": holder, "session_hash": session, "fn_name": name}
        headers = {"content-type": "application/json"}
        return (await client.post("/gradio_api/component_server", content=self.json(asked), headers=headers)).json()

    @staticmethod
    def json(body: Any) -> bytes:
        """As a browser writes it, halves of characters included."""
        return json.dumps(body).encode("ascii")


@contextmanager
def household(
    settings: Settings, script: Script | None = None, *, loaded: bool = True, extensions: Extensions | None = None
) -> Iterator[Household]:
    """Start one; passwords are hashed quickly."""
    costly, passwords._hasher = passwords._hasher, QUICK
    with ExitStack() as parts:
        parts.callback(setattr, passwords, "_hasher", costly)
        services = parts_of(settings, parts, script or Script(), extensions=extensions)
        if loaded:
            services.models.load(LoadOptions.model_validate({"model": "tiny"}))
        home = Household(app_of(services), services)
        for name, word in WORDS.items():
            person = home.accounts.add(name, word)
            _, home.keys[name] = home.accounts.make_key(person.id, "test")
        ana = home.accounts.named("Ana")
        _, home.keys["admin"] = home.accounts.make_key(ana.id, "admin", admin=True)
        yield home


def household_below(folder: Path, script: Script | None = None) -> AbstractContextManager[Household]:
    """One whose models and user data are new folders below `folder`."""
    folders = {"model_dir": folder / "models", "user_data_dir": folder / "user_data"}
    for path in folders.values():
        path.mkdir()
    return household(Settings.model_validate(folders), script)
