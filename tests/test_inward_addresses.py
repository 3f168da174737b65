"""What takes an address on the page or in the API asks nobody on this machine, nor anybody else (B8)."""

from __future__ import annotations

import base64
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from modules.settings import Settings
from tests.household import Household, household


class Listener:
    """A canary: it counts who connects."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self.connections = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.connections += 1
            connection.close()

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def canary() -> Iterator[Listener]:
    listener = Listener()
    yield listener
    listener.close()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Household]:
    folder: Path = tmp_path_factory.mktemp("inward")
    for name in ("models", "user_data"):
        (folder / name).mkdir()
    settings = Settings.model_validate({"model_dir": folder / "models", "user_data_dir": folder / "user_data"})
    with household(settings) as made:
        yield made


def addresses(port: int) -> list[str]:
    """One place in many spellings."""
    hosts = ("127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "2130706433", "0x7f.1", "0.0.0.0", "user@127.0.0.1")
    return [f"{kind}://{host}:{port}/x.png" for host in hosts for kind in ("http", "https")] + [f"//127.0.0.1:{port}/x"]


async def test_gradios_own_routes_ask_nobody(home: Household, canary: Listener) -> None:
    async with home.at_work(), home.client("Ana") as ana:
        for address in addresses(canary.port):
            for route in ("file=", "proxy=", "reverse_proxy=", "stream/", "file/", "deep_link?url=", "upload?url="):
                for prefix in ("/gradio_api/", "/"):
                    answer = await ana.get(prefix + route + address)
                    assert answer.status_code in (303, 307, 400, 403, 404, 405), (route, address, answer.status_code)
        file = {
            "path": addresses(canary.port)[0],
            "url": addresses(canary.port)[0],
            "meta": {"_type": "gradio.FileData"},
        }
        for number, event in home.page.fns.items():
            data = [file for _ in event.inputs]
            body = {"data": data, "event_data": file, "fn_index": number, "session_hash": "a", "trigger_id": None}
            for path in ("run/predict", "queue/join"):
                await ana.post(f"/gradio_api/{path}", content=home.json(body), headers=JSON)
        await ana.get("/gradio_api/queue/data", params={"session_hash": "nobody"})
        for number, block in home.page.blocks.items():
            for name in {
                name for name in dir(type(block)) if getattr(getattr(block, name, None), "_is_server_fn", False)
            }:
                await home.ask(ana, name, file, holder=number)
    assert canary.connections == 0


JSON = {"content-type": "application/json"}


async def test_pictures_cards_and_downloads_by_address_ask_nobody(home: Household, canary: Listener) -> None:
    async with home.client("Ana") as ana, home.program(home.keys["admin"]) as program:
        for address in addresses(canary.port):
            part = {"type": "image_url", "image_url": {"url": address}}
            asked = {"messages": [{"role": "user", "content": [part, {"type": "text", "text": "What is it?"}]}]}
            assert (await program.post("/v1/chat/completions", json=asked)).status_code == 400, address
            source = {"type": "image", "source": {"type": "url", "url": address}}
            message = {"role": "user", "content": [source]}
            assert (
                await program.post("/v1/messages", json={"messages": [message], "max_tokens": 5})
            ).status_code == 400, address
            assert (await program.post("/v1/internal/downloads", json={"name": address})).status_code == 400, address
            assert "problem" in await home.ask(ana, "look", {"text": address}, holder=home.holders("pause")[0])
            card = {"data": {"name": "Eve", "avatar": address, "description": f"![x]({address})"}}
            data = base64.b64encode(json.dumps(card).encode()).decode()
            await home.ask(ana, "import_card", {"name": "a.json", "data": data})
    assert canary.connections == 0
