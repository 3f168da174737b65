"""What the API's tests share: a whole API over a scripted engine, in the loop or behind a real server, and clients."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import struct
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import httpx
import openai
import pytest
import uvicorn
from fastapi import FastAPI

from modules import errors
from modules.api.app import Patience, build_api
from modules.api.doors.guard import install_guard
from modules.api.watching import install_watching
from modules.characters.library import Library
from modules.chat.prompts import Prompts
from modules.chat.store import Store
from modules.downloads.manager import Downloads
from modules.engine.base import Emit, Engine, GenerationRequest, ModelInfo, OnProgress
from modules.errors import SnugError
from modules.memory.planning.planner import Plan
from modules.models.manager import ModelManager
from modules.services import Services
from modules.settings import LoadOptions, Settings
from tests.fakes import Script, ScriptedEngine, ScriptedLoad, fake_inventory, make_model_folder
from tests.rendering import TEMPLATES

UNUSED: Any = None
MODEL = "scripted"
FOX = Script().reply
USER: Any = [{"role": "user", "content": "Hello"}]
CHAT: dict[str, Any] = {"messages": USER}
COMPLETION: dict[str, Any] = {"prompt": "Once"}


class Spied:
    """An Engine that passes everything on and tells of every request taken."""

    def __init__(self, engine: ScriptedEngine, taken: threading.Condition) -> None:
        self._engine = engine
        self._taken = taken
        self.cancel = engine.cancel
        self.encode = engine.encode
        self.decode = engine.decode
        self.stats = engine.stats
        self.close = engine.close

    @property
    def info(self) -> ModelInfo:
        return self._engine.info

    def submit(self, request: GenerationRequest, emit: Emit) -> None:
        self._engine.submit(request, emit)
        with self._taken:
            self._taken.notify_all()


DESKS: WeakValueDictionary[int, Desk] = WeakValueDictionary()


@dataclass(frozen=True)
class LoadAtDesk:
    """A LoadEngine that a host can pickle: it finds its desk again by number, in the same process."""

    desk: int

    def __call__(self, plan: Plan, on_progress: OnProgress) -> Engine:
        return DESKS[self.desk].load_engine(plan, on_progress)


def api_of(services: Services) -> FastAPI:
    """The whole API of real services, behind its doors, on this machine alone."""
    app = build_api(services)
    install_guard(app, host="127.0.0.1", port=7860, access_token=None)
    install_watching(app, services.models.meter)
    return app


class Desk:
    """Services, the app in front of them, and every engine that they loaded, newest last."""

    def __init__(
        self,
        settings: Settings,
        script: Script | None = None,
        *,
        patience: Patience = Patience(),  # noqa: B008
        store: Store | None = None,
    ) -> None:
        self._taken = threading.Condition()
        DESKS[id(self)] = self
        self.engines: list[ScriptedEngine] = []
        self.script = script or Script()
        self.settings = settings
        make_model_folder(settings.model_dir, MODEL)
        self.models = ModelManager(
            settings,
            loaders={"transformers": LoadAtDesk(id(self))},
            read_inventory=lambda _: fake_inventory(),
            drain_s=0.0,
            in_process=True,
        )
        self.prompts = Prompts(TEMPLATES)
        self.downloads = Downloads(settings.model_dir)
        services = Services(
            settings=settings, models=self.models, chat=UNUSED, store=store or UNUSED, prompts=self.prompts,
            presets=UNUSED, library=Library.of(Path("characters"), settings.user_data_dir), downloads=self.downloads,
        )  # fmt: skip
        self.app: FastAPI = build_api(services, patience=patience)
        install_guard(self.app, host="127.0.0.1", port=7860, access_token=None)
        install_watching(self.app, self.models.meter)

    def load_engine(self, plan: Plan, on_progress: OnProgress) -> Engine:
        """What a host runs: the scripted engine, with an eye on it."""
        engine = ScriptedLoad(self.script)(plan, on_progress)
        self.engines.append(engine)
        return Spied(engine, self._taken)

    @property
    def engine(self) -> ScriptedEngine:
        """The engine loaded last."""
        return self.engines[-1]

    def load(self, **options: Any) -> Desk:
        """Load the scripted model; returns this desk."""
        self.models.load(LoadOptions.model_validate({"model": MODEL} | options))
        return self

    def client(self) -> httpx.AsyncClient:
        """A client in the same loop. It reads whole responses only."""
        transport = httpx.ASGITransport(self.app)
        return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:7860")

    def wait_until_taken(self, count: int) -> None:
        """Return when the engine has got `count` requests."""
        with self._taken:
            assert self._taken.wait_for(lambda: len(self.engine.requests) >= count, 10)

    def idle_within(self, seconds: float) -> bool:
        """Whether the engine is done with everything after at most `seconds`."""
        return self.models.engine().wait_idle(seconds)

    def close(self) -> None:
        """End the engine, the template process and what is fetched."""
        self.downloads.close()
        self.models.close()
        self.prompts.close()


@contextlib.contextmanager
def served(app: FastAPI, *, sndbuf: int = 0) -> Iterator[int]:
    """The port of a real server on loopback, in a thread of its own; `sndbuf` bytes lie in a connection at most."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        if sndbuf:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, sndbuf)
        started = threading.Event()

        class Server(uvicorn.Server):
            async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                await super().startup(sockets)
                started.set()

        server = Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=2, ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="api server", daemon=True)
        thread.start()
        assert started.wait(20)
        yield listener.getsockname()[1]
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@contextlib.contextmanager
def desk_with(settings: Settings, script: Script, patience: Patience = Patience()) -> Iterator[Desk]:  # noqa: B008
    """An API with a loaded model that plays `script`."""
    desk = Desk(settings, script, patience=patience).load()
    try:
        yield desk
    finally:
        desk.close()


@contextlib.contextmanager
def sdk(desk: Desk) -> Iterator[openai.OpenAI]:
    """OpenAI's own client, connected to a real server."""
    with served(desk.app) as port, openai.OpenAI(
        base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=20
    ) as client:  # fmt: skip
        yield client


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The error object of a refusal, its shape checked."""
    body = response.json()
    assert set(body) == {"error"}, body
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["code"] in all_codes()
    assert "Traceback" not in body["error"]["message"]
    assert "/work" not in body["error"]["message"]
    return dict(body["error"])


def all_codes() -> set[str]:
    """The closed list: every SnugError's code."""

    def family(kind: type[SnugError]) -> Iterator[type[SnugError]]:
        yield kind
        for child in kind.__subclasses__():
            yield from family(child)

    return {kind.code for kind in family(SnugError) if kind.__module__ == errors.__name__}


@contextlib.contextmanager
def real_api(model: Path, user_data: Path, **options: Any) -> Iterator[str]:
    """The address of a real API, in this process, over a real model, loaded as `options` say."""
    settings = Settings.model_validate({"model_dir": model.parent, "user_data_dir": user_data, "listen_port": 7860})
    models = ModelManager(settings, read_inventory=lambda _: fake_inventory(), drain_s=0.0, in_process=True)
    prompts = Prompts(TEMPLATES)
    services = Services(
        settings=settings, models=models, chat=UNUSED, store=UNUSED, prompts=prompts, presets=UNUSED, library=UNUSED,
        downloads=UNUSED,
    )  # fmt: skip
    with contextlib.closing(prompts), contextlib.closing(models):
        models.load(LoadOptions.model_validate({"model": model.name} | options))
        with served(api_of(services)) as port:
            yield f"http://127.0.0.1:{port}/v1"


class RawClient:
    """A socket that speaks just enough HTTP to misbehave."""

    def __init__(
        self,
        port: int,
        body: dict[str, Any],
        *,
        path: str = "/v1/chat/completions",
        rcvbuf: int = 0,
        request_id: str = "",
    ) -> None:
        payload = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        head += f"X-Request-Id: {request_id}\r\n" if request_id else ""
        self.socket = socket.socket()
        if rcvbuf:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
        self.socket.settimeout(20)
        self.socket.connect(("127.0.0.1", port))
        self.socket.sendall(f"{head}Content-Length: {len(payload)}\r\n\r\n".encode() + payload)
        self._seen = b""

    def read_event(self) -> None:
        """Wait for the first whole event."""
        while not re.search(rb"data: .*\n\n", self._seen):
            received = self.socket.recv(4096)
            assert received, self._seen
            self._seen += received

    @property
    def answer_id(self) -> str:
        """The id of the answer, from what was read."""
        found = re.search(rb'"id":"([^"]+)"', self._seen)
        assert found is not None
        return found[1].decode()

    def read_all(self) -> bytes:
        """Everything up to the end of the chunked body."""
        while not self._seen.endswith(b"0\r\n\r\n"):
            received = self.socket.recv(4096)
            if not received:
                break
            self._seen += received
        chunks = re.findall(rb"data: [^\n]*\n\n", self._seen)
        return b"".join(chunks)

    def leave(self, how: str) -> None:
        """Close: politely, with a reset, or only the sending half."""
        if how == "half":
            self.socket.shutdown(socket.SHUT_WR)
            return
        if how == "reset":
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


@contextlib.contextmanager
def streaming(port: int, body: dict[str, Any], **options: Any) -> Iterator[RawClient]:
    client = RawClient(port, body, **options)
    try:
        yield client
    finally:
        client.socket.close()


@pytest.fixture
def desk(settings: Settings) -> Iterator[Desk]:
    """An API with a loaded model that says FOX."""
    desk = Desk(settings).load()
    yield desk
    desk.close()


@pytest.fixture
async def client(desk: Desk) -> AsyncIterator[httpx.AsyncClient]:
    """A client of it, in this process."""
    async with desk.client() as client:
        yield client
