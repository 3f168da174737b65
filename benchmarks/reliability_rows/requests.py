"""Figures of the API: made-up requests, clients that leave, and who gets in by which name from where."""

from __future__ import annotations

import asyncio
import json
import random
import re
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.reliability_rows.outcome import Outcome, Scale
from docs.make_routes import IDENTITIES as COLUMNS
from modules.accounts.directory import FILE, Accounts
from modules.api.app import build_api
from modules.sampling import GenerationParams
from modules.settings import Settings
from modules.ui.app import mount_ui
from tests.api_desk import all_codes, desk_with, served, streaming
from tests.fakes import Script, make_model_folder
from tests.page_rig import parts_of
from tests.server_rig import running_server
from tests.test_guard import FOREIGN_HOSTS, every_route
from tests.test_routes import written

HANG_S = 10.0
PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/internal/encode", "/v1/internal/token-count")
# What may stand where something else is expected.
JUNK: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 0.5, 1e308, -(2**63), 2**64, "", "x", "\x00", "\ud83d\ude00" * 50, "a" * 5000, [], {},
    [None], [[]], [{}], {"a": {"b": [1]}}, ["\x00"] * 3, "../../etc/passwd", "{{7*7}}", "%s%n", "<script>", "1e309",
)  # fmt: skip


@contextmanager
def empty_settings() -> Iterator[Settings]:
    """Settings with folders of their own."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("models", "user_data"):
            (Path(folder) / name).mkdir()
        yield Settings.model_validate(
            {"model_dir": Path(folder) / "models", "user_data_dir": Path(folder) / "user_data"}
        )


def sound_body(path: str, chance: random.Random) -> dict[str, Any]:
    """A request as a client may well send it."""
    sampling = {
        "temperature": chance.random() * 2, "top_p": chance.random(), "max_tokens": chance.randrange(1, 30),
        "seed": chance.randrange(1000), "stop": ["brown"], "n": chance.randrange(1, 3), "logprobs": False,
        "frequency_penalty": chance.random(), "stream": chance.random() < 0.3, "user": "somebody", "top_k": 40,
    }  # fmt: skip
    body = {name: value for name, value in sampling.items() if chance.random() < 0.3}
    if path.endswith("chat/completions"):
        turns = [{"role": "user", "content": "Hello \u767e"}, {"role": "assistant", "content": "Yes?"}] * 2
        return body | {"messages": turns[: chance.choice((1, 3))]}
    return body | {"prompt": chance.choice(("Once", ["one", "two"], [50, 51]))}


def spoil(value: Any, chance: random.Random) -> Any:
    """The same with junk somewhere in it."""
    if isinstance(value, dict) and value and chance.random() < 0.8:
        name = chance.choice([*value, *GenerationParams.model_fields, "messages", "response_format", "logit_bias"])
        if chance.random() < 0.1:
            return {other: kept for other, kept in value.items() if other != name}
        return value | {name: spoil(value.get(name), chance)}
    if isinstance(value, list) and value and chance.random() < 0.8:
        place = chance.randrange(len(value))
        return [*value[:place], spoil(value[place], chance), *value[place + 1 :]]
    return chance.choice(JUNK)


def broken_text(text: bytes, chance: random.Random) -> bytes:
    """JSON with a few bytes changed, cut or put in."""
    raw, at = bytearray(text), chance.randrange(len(text) + 1)
    raw[at : at + chance.randrange(4)] = chance.choice((b"", b"\x00", b"\xff", b'"', b"}", b"[" * 50, b"NaN", b"1e999"))
    return bytes(raw)


def made_up(scale: Scale) -> Outcome:
    """Requests of the API, half of them sound, against a scripted engine."""
    return asyncio.run(_made_up(scale))


async def _made_up(scale: Scale) -> Outcome:
    rounds, chance = scale.of(10_000, 1000), random.Random(2)
    statuses, codes, bad = Counter[int](), Counter[str](), list[str]()
    hangs, slowest_s = 0, 0.0
    with empty_settings() as settings, desk_with(settings, Script()) as desk:
        async with desk.client() as client:
            for number in range(rounds):
                path = chance.choice(PATHS[:2] if chance.random() < 0.8 else PATHS)
                body: Any = sound_body(path, chance)
                if number % 2:
                    body = spoil(body, chance)
                content = json.dumps(body).encode()
                content = broken_text(content, chance) if number % 10 == 9 else content
                started = time.monotonic()
                try:
                    async with asyncio.timeout(HANG_S):
                        answer = await client.post(path, content=content, headers={"Content-Type": "application/json"})
                except TimeoutError:
                    hangs += 1
                    continue
                slowest_s = max(slowest_s, time.monotonic() - started)
                statuses[answer.status_code] += 1
                if answer.status_code >= 400:
                    code = _code(answer)
                    codes[code] += 1
                    if answer.status_code >= 500 or code not in all_codes():
                        bad.append(f"{answer.status_code} {path} {content[:200]!r}")
    crashes = sum(count for status, count in statuses.items() if status >= 500)
    shapeless = sum(count for code, count in codes.items() if code not in all_codes())
    return Outcome(
        "10,000 generated API requests: 0 × 5xx, 0 hangs over 10 s, every error an error object, at most 60 codes",
        f"{rounds:,}: {statuses[200]:,} answered, {sum(codes.values()):,} refused, {crashes} × 5xx, {hangs} hangs "
        f"(slowest {slowest_s:.2f} s), {shapeless} without the error object, {len(all_codes())} codes in all",
        not (crashes or hangs or shapeless) and len(all_codes()) <= 60,
        not scale.quick,
        {"statuses": dict(statuses), "codes": dict(codes), "slowest_s": slowest_s, "bad": bad[:20]},
    )


def _code(answer: httpx.Response) -> str:
    """The code of an error object; what stands there instead."""
    try:
        error = answer.json()["error"]
        return str(error["code"]) if {"message", "type", "param", "code"} <= set(error) else "no error object"
    except (ValueError, KeyError, TypeError):
        return "no error object"


def departures(scale: Scale) -> Outcome:
    """Clients that leave at random points of replies with and without a stream, over real sockets."""
    rounds, chance, slowest_s, late = scale.of(200, 40), random.Random(3), 0.0, 0
    script = Script(endless=True, tokens_per_s=500, prefill_s=0.005)
    with empty_settings() as settings, desk_with(settings, script) as desk, served(desk.app) as port:
        process = psutil.Process()
        for number in range(-10, rounds):  # the first ten make what is made once
            if number == 0:
                before = process.num_fds(), _threads()
            stream = number % 2 == 0
            count = chance.choice((1, 1, 3))
            body = {"messages": [{"role": "user", "content": "Hello"}], "stream": stream, "max_tokens": 100_000,
                    "n": count}  # fmt: skip
            with streaming(port, body) as client:
                if stream and chance.random() < 0.7:
                    client.read_event()
                elif chance.random() < 0.7:
                    desk.wait_until_taken(count)
                left = time.monotonic()
                client.leave(chance.choice(("close", "reset", "half")))
                late += not desk.idle_within(1)
                slowest_s = max(slowest_s, time.monotonic() - left)
            desk.engine.requests.clear()
        desk.idle_within(5)
        active = desk.engine.stats().active
        after = _settled(process, before)
    leaked = max(0, after[0] - before[0] - 2), max(0, after[1] - before[1] - 2)
    return Outcome(
        "200 disconnects at random points: engine idle within 1.0 s in 100 %, 0 leaked slots, threads, descriptors",
        f"{rounds} disconnects: idle after at most {slowest_s * 1000:.1f} ms, {late} later than 1 s; {active} slots, "
        f"{leaked[1]} threads, {leaked[0]} descriptors left behind",
        not late and not active and leaked == (0, 0),
        not scale.quick,
        {"rounds": rounds, "slowest_s": slowest_s, "late": late, "before": before, "after": after},
    )


def _threads() -> int:
    """Threads but for those that a pool keeps for the next request: how many those are is the busy machine's doing."""
    return sum(1 for thread in threading.enumerate() if thread.name != "AnyIO worker thread")


def _settled(process: psutil.Process, before: tuple[int, int]) -> tuple[int, int]:
    """Descriptors and threads once they are as before, or after five seconds."""
    deadline = time.monotonic() + 5
    while True:
        now = process.num_fds(), _threads()
        if (now[0] <= before[0] and now[1] <= before[1]) or time.monotonic() > deadline:
            return now
        time.sleep(0.05)


# 0.0.0.0 is a name of a server that listens there.
HOSTS = ("own", *(host for host in FOREIGN_HOSTS if host != "0.0.0.0"))[:12]
ORIGINS = ("", "own", "null", "http://evil.example")
IDENTITIES = ("administrator", "person", "nobody", "wrong key")
_FILES = "/gradio_api/file="  # Gradio's own answer to a file that it does not serve is 403 too
_WRONG = "wrong-secret-of-many-letters"
_DOORS = "every route × 4 identities × 12 Hosts × 4 Origins: 0 differences from the table"
Table = dict[tuple[str, str], dict[str, str]]
"""Method and path: what each identity meets, "in" or a status, as docs/routes.md has it."""


def doors(scale: Scale) -> Outcome:
    """Every route of API and page of the real program under --listen: where people have accounts, and for one."""
    with empty_settings() as settings:
        make_model_folder(settings.model_dir, "tiny", Script())
        with ExitStack() as parts:
            services = parts_of(settings, parts, Script())
            routes = every_route(mount_ui(build_api(services), services))
        flags = ("--listen", "--model-dir", str(settings.model_dir))
        house: Table = {where: dict(zip(COLUMNS, cells, strict=True)) for where, cells in written().items()}
        unlisted = [f"{method} {path} stands in no table" for method, path in routes if (method, path) not in house]
        folder, keys = _household(settings.user_data_dir / "house")
        with running_server(folder, *flags) as server:
            server.wait_for_page()
            asked, differences = _knock(server.base, keys, house, scale)
        with running_server(settings.user_data_dir / "alone", *flags) as server:
            server.wait_for_page()
            secret = re.search(r"\?token=([\w-]+)", server.address)
            if secret is None:
                return Outcome(_DOORS, "the program prints no secret any more: this row has to learn the new way", None)
            keys = {"administrator": secret[1], "nobody": "", "wrong key": _WRONG}
            alone: Table = {where: {who: "in" if keys[who] == secret[1] else "401" for who in keys} for where in routes}
            asked_alone, differences_alone = _knock(server.base, keys, alone, scale)
    differences += unlisted + differences_alone
    asked += asked_alone
    return Outcome(
        _DOORS,
        f"{len(house)} routes × {len(IDENTITIES)} identities with accounts, {len(routes)} × {len(alone[routes[0]])} "
        f"on a machine for one, × {len(HOSTS)} hosts × {len(ORIGINS)} origins: {asked:,} requests, "
        f"{len(differences)} differences",
        not differences,
        not scale.quick,
        {"routes": len(house), "requests": asked, "differences": differences[:20]},
    )


def _household(folder: Path) -> tuple[Path, dict[str, str]]:
    """The folder, in which a person and an administrator have accounts; the keys of all identities."""
    folder.mkdir()
    keys = {}
    with closing(Accounts(folder / FILE)) as accounts:
        for name in IDENTITIES[:2]:
            admin = name == "administrator"
            person = accounts.add(name, "a long password", admin=admin)
            keys[name] = accounts.make_key(person.id, "figures", admin=admin)[1]
    return folder, {**keys, "nobody": "", "wrong key": _WRONG}


def _knock(base: str, keys: dict[str, str], table: Table, scale: Scale) -> tuple[int, list[str]]:
    """How many requests were sent, and which answers the table does not have."""
    differences, asked, port = list[str](), 0, int(base.rpartition(":")[2])
    for identity, key in keys.items():
        for number, ((method, path), meets) in enumerate(table.items()):
            for host in HOSTS:
                for origin in ORIGINS if not scale.quick else (ORIGINS[number % 4],):
                    if scale.quick and (number + len(host)) % 3:
                        continue
                    status = _status(port, method, path, host, origin, key)
                    asked += 1
                    if not _fits(status, host, origin, meets[identity], path):
                        differences.append(f"{method} {path} host={host} origin={origin} {identity}: {status}")
    return asked, differences


def _fits(status: int, host: str, origin: str, meets: str, path: str) -> bool:
    """Whether a request may be answered so. Never by 429: the same wrong secret again is no guess."""
    if host != "own":
        return status == 421
    if origin not in ("", "own"):
        return status == 403
    if meets != "in":
        return status == int(meets)
    return status not in (0, 401, 403, 421) or (status == 403 and path.startswith(_FILES))


def _status(port: int, method: str, path: str, host: str, origin: str, key: str) -> int:
    """The status of a request without a body, whose answer is not read further; 0 where nothing comes."""
    own = f"127.0.0.1:{port}"
    lines = [f"{method} {path} HTTP/1.1", f"Host: {own if host == 'own' else host}", "Content-Length: 0",
             "Connection: close"]  # fmt: skip
    if origin:
        lines.append(f"Origin: {f'http://{own}' if origin == 'own' else origin}")
    if key:
        lines.append(f"Authorization: Bearer {key}")
    with socket.create_connection(("127.0.0.1", port), timeout=HANG_S) as connection:
        connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        try:
            answer = connection.recv(100)
        except TimeoutError:
            return 0
    return int(answer.split()[1]) if answer.startswith(b"HTTP/1.1 ") else 0
