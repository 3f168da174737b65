"""`python -O` leaves out every assert: what Snug refuses must be refused all the same (A20)."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI

from modules.api.doors.guard import install_guard
from modules.errors import SnugError
from modules.files import safe_path
from modules.memory.model.formats import read_safetensors
from modules.memory.model.spec import inspect
from modules.settings import LoadOptions, Settings
from modules.yaml_files import parse_yaml
from tests.api_desk import CHAT, USER, Desk

ROOT = Path(__file__).parent.parent
REFUSED = {
    "foreign host": "421 wrong_host",
    "foreign origin": "403 forbidden",
    "body": "413 body_too_large",
    "count": "400 bad_value",
    "role": "400 bad_value",
    "token": "400 bad_value",
    "context": "400 context_length_exceeded",
    "remote code": "400 bad_value",
    "model name": "400 bad_name",
    "no secret": "401 unauthorized",
    "wrong secret": "401 unauthorized",
    "right secret": "200",
    "many wrong secrets": "429 too_many_attempts",
    "no secret at all": "ValueError",
    "name": "bad_name",
    "pickle": "pickle_refused",
    "header": "bad_safetensors",
    "code": "remote_code_disabled",
    "alias": "ValueError",
    "flag": "ValueError",
}


def told(response: httpx.Response) -> str:
    code = response.json().get("error", {}).get("code", "") if response.content else ""
    return f"{response.status_code} {code}".strip()


async def asked(folder: Path) -> dict[str, str]:
    """What the API says to requests that must be refused, with its doors in front."""
    for name in ("models", "user_data"):
        (folder / name).mkdir()
    desk = Desk(Settings.model_validate({"model_dir": folder / "models", "user_data_dir": folder / "user_data"})).load()
    chat, said = "/v1/chat/completions", dict[str, str]()
    try:
        async with desk.client() as client:

            async def post(name: str, path: str = chat, headers: dict[str, str] | None = None, **body: Any) -> None:
                said[name] = told(await client.post(path, json=body, headers=headers))

            await post("foreign host", headers={"Host": "evil.example"}, **CHAT)
            await post("foreign origin", headers={"Origin": "http://evil.example"}, **CHAT)
            await post("body", messages=[USER[0] | {"content": "x" * 11 * 2**20}])
            await post("count", n=10**6, **CHAT)
            await post("role", messages=[{"role": "root", "content": "x"}])
            await post("token", "/v1/completions", prompt=[-1])
            await post("context", "/v1/completions", prompt="word " * 10_000)
            await post("remote code", "/v1/internal/model/load", model="x", args={"trust_remote_code": True})
            await post("model name", "/v1/internal/model/load", model="../x")
    finally:
        desk.close()
    return said | await at_the_lock()


async def at_the_lock() -> dict[str, str]:
    """The same of a server with a secret."""
    app = FastAPI()

    @app.get("/v1/thing")
    def thing() -> dict[str, str]:
        return {}

    install_guard(app, host="192.0.2.1", port=7860, access_token="right")
    said = {}
    transport = httpx.ASGITransport(app, client=("192.0.2.7", 5))
    async with httpx.AsyncClient(transport=transport, base_url="http://192.0.2.1:7860") as client:
        for name, key in (("no secret", None), ("right secret", "right"), ("wrong secret", "wrong")):
            said[name] = told(await client.get("/v1/thing", headers={"x-api-key": key} if key else {}))
        for number in range(30):
            said["many wrong secrets"] = told(await client.get("/v1/thing", headers={"x-api-key": str(number)}))
    return said


def tried(folder: Path) -> dict[str, str]:
    """What the readers of files and names say to what must be refused."""
    pickled, headed, coded = (folder / name for name in ("pickled", "headed.safetensors", "coded"))
    pickled.mkdir()
    (pickled / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    headed.write_bytes(b"\xff" * 32)
    coded.mkdir()
    (coded / "config.json").write_text('{"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}')
    tries: dict[str, Callable[[], object]] = {
        "no secret at all": lambda: install_guard(FastAPI(), host="0.0.0.0", port=1, access_token=None),
        "name": lambda: safe_path(folder, "../x"),
        "pickle": lambda: inspect(pickled),
        "header": lambda: read_safetensors(headed),
        "code": lambda: inspect(coded),
        "alias": lambda: parse_yaml("a: &a [1]\nb: *a"),
        "flag": lambda: LoadOptions.model_validate({"ctx_size": -1}),
    }
    said = {}
    for name, attempt in tries.items():
        try:
            attempt()
            said[name] = "let through"
        except SnugError as error:
            said[name] = error.code
        except ValueError:
            said[name] = "ValueError"
    return said


async def everything() -> dict[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        return await asked(Path(folder)) | tried(Path(folder))


async def test_what_is_refused_is_refused_without_asserts_too() -> None:
    done = subprocess.run(
        [sys.executable, "-O", "-m", "tests.test_without_asserts"],
        cwd=ROOT, env={**os.environ, "PYTHONOPTIMIZE": "1"}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said.pop("asserts") == "left out"
    assert said == REFUSED == await everything()


def asserts_are() -> str:
    try:
        assert not sys.argv
    except AssertionError:
        return "in force"
    return "left out"


if __name__ == "__main__":
    print(json.dumps(asyncio.run(everything()) | {"asserts": asserts_are()}))
