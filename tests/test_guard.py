"""modules/api/doors/guard.py and lock.py, around an app that has what Snug's has: API routes and a Gradio page."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import AsyncIterator, Iterator
from itertools import product

import anyio
import gradio
import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.routing import iter_route_contexts
from starlette.routing import Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from modules import startup
from modules.api.app import build_api
from modules.api.doors import staying
from modules.api.doors.guard import BodyLimits, KnownHosts, NoHearsay, install_guard, is_loopback, new_access_token
from modules.api.doors.lock import LOCKED_S, WRONG_TRIES, Lock, Opened
from modules.api.doors.rights import need_of
from modules.errors import TooManyAttempts, Unauthorized
from modules.settings import Settings
from modules.ui.app import mount_ui
from modules.ui.widgets import is_for_admins

HERE = "127.0.0.1:7860"
FOREIGN_HOSTS = (
    "evil.example",
    "evil.example:7860",
    "127.0.0.1.evil.example",
    "localhost.evil.example",
    "localhost.",
    "127.0.0.1.",
    "127.0.0.2",
    "0.0.0.0",
    "192.168.1.5",
    "[::2]",
    "user@localhost",
    "localhost:port",
    "localhost:7860:7860",
    "",
)
FOREIGN_ORIGINS = (
    "null",
    "http://evil.example",
    "https://127.0.0.1.evil.example",
    "http://127.0.0.1:9999",
    "http://localhost:7860",
    "http://127.0.0.1",
    "file://",
    "",
)
TOKEN = "a-secret-of-many-letters"


class House:
    """An app behind the guard, with a page mounted last, that counts what reaches it."""

    def __init__(self, host: str = "127.0.0.1", token: str | None = None, *, page: bool = True) -> None:
        self.app = FastAPI()
        self.writes = 0

        @self.app.get("/v1/thing")
        def read() -> dict[str, int]:
            return {"writes": self.writes}

        @self.app.post("/v1/thing")
        async def write(request: Request) -> dict[str, int]:
            size = len(await request.body())
            self.writes += 1
            return {"size": size}

        @self.app.post("/v1/json")
        async def take(body: dict[str, str]) -> dict[str, int]:
            return {"size": len(body)}

        @self.app.get("/v1/crash")
        def crash() -> None:
            raise ValueError("/home/somebody/secret.py line 7")

        if page:
            with gradio.Blocks() as blocks:
                box = gradio.Textbox()
                gradio.Button().click(self._click, box, box)
            self.app = gradio.mount_gradio_app(self.app, blocks, path="/")
        limits = BodyLimits(body_bytes=1000, upload_bytes=5000)
        install_guard(self.app, host=host, port=7860, access_token=token, limits=limits)

    def _click(self, text: str) -> str:
        self.writes += 1
        return text

    def client(self, client: str = "127.0.0.1", base: str = f"http://{HERE}") -> httpx.AsyncClient:
        transport = httpx.ASGITransport(self.app, client=(client, 5), raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url=base)


@pytest.fixture(scope="module")
def house() -> House:
    return House()


@pytest.fixture
async def client(house: House) -> AsyncIterator[httpx.AsyncClient]:
    async with house.client() as client:
        yield client


def paths_of(app: FastAPI) -> Iterator[tuple[str, str]]:
    """Method and a callable path of every route, mounted ones included."""
    for route in iter_route_contexts(app.routes):
        inner = getattr(route.original_route, "app", None)
        if isinstance(inner, FastAPI):
            yield from paths_of(inner)
        for method in route.methods or ():
            yield method, re.sub(r"\{[^}]*\}", "x", route.path or "/")


def every_route(app: FastAPI) -> list[tuple[str, str]]:
    routes = sorted(set(paths_of(app)))
    assert ("POST", "/gradio_api/upload") in routes
    assert ("POST", "/gradio_api/queue/join") in routes
    return routes


def error_code(response: httpx.Response) -> str:
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return str(error["code"])


async def test_no_route_answers_to_a_foreign_host(house: House, client: httpx.AsyncClient) -> None:
    for (method, path), host in product(every_route(house.app), FOREIGN_HOSTS):
        response = await client.request(method, path, headers={"Host": host})
        assert response.status_code == 421, (method, path, host)


@pytest.mark.parametrize("headers", [[], [(b"host", b"localhost"), (b"host", b"localhost")]])
async def test_none_or_two_hosts_are_as_bad_as_a_foreign_one(
    house: House, headers: list[tuple[bytes, bytes]]
) -> None:  # fmt: skip
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/v1/thing", "query_string": b"", "headers": headers}
    await house.app(scope, receive, send)
    assert sent[0]["status"] == 421


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST:7860", "[::1]:7860", "127.0.0.1:9000"])
async def test_the_loopback_names_are_answered_at_any_port(client: httpx.AsyncClient, host: str) -> None:
    assert (await client.get("/v1/thing", headers={"Host": host})).status_code == 200


async def test_no_route_does_anything_for_a_foreign_origin(house: House, client: httpx.AsyncClient) -> None:
    before = house.writes
    for (method, path), origin in product(every_route(house.app), FOREIGN_ORIGINS):
        response = await client.request(method, path, headers={"Origin": origin})
        assert response.status_code == 403, (method, path, origin)
    assert house.writes == before


async def test_a_foreign_upload_is_refused_before_it_is_stored(client: httpx.AsyncClient) -> None:
    files = {"files": ("a.txt", b"hello")}
    refused = await client.post("/gradio_api/upload", files=files, headers={"Origin": "http://evil.example"})
    assert refused.status_code == 403
    own = await client.post("/gradio_api/upload", files=files, headers={"Origin": f"http://{HERE}"})
    assert own.status_code == 200


@pytest.mark.parametrize("origin", [f"http://{HERE}", f"https://{HERE}", None])
async def test_the_own_page_and_programs_may_write(client: httpx.AsyncClient, origin: str | None) -> None:
    headers = {} if origin is None else {"Origin": origin}
    assert (await client.post("/v1/thing", content=b"12", headers=headers)).json() == {"size": 2}


@pytest.mark.parametrize(
    ("site", "mode", "dest", "status"),
    [
        ("same-origin", "cors", "empty", 200),
        ("none", "navigate", "document", 200),
        ("cross-site", "navigate", "document", 200),
        ("cross-site", "no-cors", "image", 403),
        ("same-site", "no-cors", "script", 403),
        ("cross-site", "navigate", "iframe", 403),
    ],
)
async def test_another_site_may_link_here_and_nothing_else(
    client: httpx.AsyncClient, site: str, mode: str, dest: str, status: int
) -> None:
    headers = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": mode, "Sec-Fetch-Dest": dest}
    assert (await client.get("/v1/thing", headers=headers)).status_code == status


async def response_headers(app: ASGIApp, method: str, path: str, headers: dict[str, str]) -> dict[str, str]:
    """The headers of a response, whose body is not waited for: some routes stream for ever."""
    found: dict[str, str] = {}
    answered = anyio.Event()
    body: list[Message] = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> Message:
        if body:
            return body.pop()
        await answered.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            found.update((name.decode().lower(), value.decode()) for name, value in message["headers"])
            answered.set()

    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    scope: Scope = {"type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b""}
    scope.update(
        {"headers": raw, "http_version": "1.1", "scheme": "http", "server": ("127.0.0.1", 7860), "root_path": ""}
    )

    async def call() -> None:
        with contextlib.suppress(KeyError):  # Gradio's queue trips over sessions that never were
            await app(scope, receive, send)

    async with anyio.create_task_group() as group:
        group.start_soon(call)
        with anyio.fail_after(10):
            await answered.wait()
        group.cancel_scope.cancel()
    return found


async def test_no_response_opens_a_door_to_other_origins(house: House) -> None:
    for (method, path), origin in product(
        every_route(house.app), ("", f"http://{HERE}", "http://evil.example", "null")
    ):
        headers = {"Host": HERE} | ({"Origin": origin} if origin else {})
        answered = await response_headers(house.app, method, path, headers)
        assert answered["x-content-type-options"] == "nosniff", (method, path, origin)
        assert not any(name.startswith("access-control-") for name in answered), (method, path, origin)


async def test_every_response_carries_the_security_headers(client: httpx.AsyncClient) -> None:
    for path in ("/", "/config", "/v1/thing", "/v1/nothing", "/v1/crash", "/gradio_api/info"):
        headers = (await client.get(path)).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "same-origin"
        policy = headers["content-security-policy"]
        assert "frame-ancestors 'none'" in policy
        assert "http" not in policy, "no external origin"
        assert "*" not in policy
        if path.startswith("/v1"):
            assert headers["cache-control"] == "no-store"
            assert policy.startswith("default-src 'none'")
        else:
            assert headers["cache-control"] == "private, no-cache", "nothing that a cache between people keeps"
    assert "cache-control" not in (await client.get("/theme.css")).headers


async def test_a_crash_shows_nothing_of_the_inside(client: httpx.AsyncClient) -> None:
    response = await client.get("/v1/crash")
    assert response.status_code == 500
    assert error_code(response) == "internal_error"
    assert "home" not in response.text
    assert "line 7" not in response.text


async def chunks(content: bytes) -> AsyncIterator[bytes]:
    """`content` without a declared length."""
    for start in range(0, len(content), 100):
        yield content[start : start + 100]


@pytest.mark.parametrize(("path", "limit"), [("/v1/thing", 1000), ("/v1/json", 1000), ("/gradio_api/upload", 5000)])
async def test_a_body_that_is_too_large_is_refused_declared_or_not(
    house: House, client: httpx.AsyncClient, path: str, limit: int
) -> None:
    before = house.writes
    kinds = {"/v1/json": "application/json", "/gradio_api/upload": "multipart/form-data; boundary=b"}
    start = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n' if "upload" in path else b""
    body = start + b"x" * limit + (b"\r\n--b--\r\n" if "upload" in path else b"x")
    for content in (body, chunks(body)):
        response = await client.post(path, content=content, headers={"Content-Type": kinds.get(path, "text/plain")})
        assert response.status_code == 413
        assert error_code(response) == "body_too_large"
    assert house.writes == before


async def test_a_body_at_the_limit_passes(client: httpx.AsyncClient) -> None:
    assert (await client.post("/v1/thing", content=chunks(b"x" * 1000))).json() == {"size": 1000}


@pytest.mark.parametrize("length", ["-1", "1e3", "x", "99999999999999999999", "0" * 5000])
async def test_a_senseless_length_is_refused(client: httpx.AsyncClient, length: str) -> None:
    response = await client.post("/v1/thing", content=b"", headers={"Content-Length": length})
    assert response.status_code == 413


def test_a_server_for_others_must_have_a_secret() -> None:
    for host in ("0.0.0.0", "::", "192.168.1.5", "my-box"):
        with pytest.raises(ValueError, match="token"):
            install_guard(FastAPI(), host=host, port=7860, access_token=None)
    assert all(is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "127.8.8.8"))


def test_access_tokens_are_long_and_never_the_same() -> None:
    tokens = {new_access_token() for _ in range(100)}
    assert len(tokens) == 100
    assert all(len(token) >= 32 and re.fullmatch(r"[\w-]+", token) for token in tokens)


@pytest.mark.parametrize(
    ("bound", "name", "server", "accepted"),
    [
        ("127.0.0.1", "box", "127.0.0.1", False),
        ("127.0.0.1", "192.168.1.5", "192.168.1.5", False),
        ("0.0.0.0", "192.168.1.5", "192.168.1.5", True),
        ("0.0.0.0", "192.168.1.6", "192.168.1.5", False),
        ("0.0.0.0", "box", "192.168.1.5", True),
        ("0.0.0.0", "box.local", "192.168.1.5", True),
        ("0.0.0.0", "localhost", "127.0.0.1", True),
        ("0.0.0.0", "evil.example", "evil.example", False),
        ("::", "[fe80::1]", "fe80::1%eth0", True),
        ("192.168.1.5", "192.168.1.5", "192.168.1.5", True),
        ("192.168.1.5", "10.0.0.1", "192.168.1.5", False),
    ],
)
def test_a_server_answers_to_its_own_names_only(bound: str, name: str, server: str, accepted: bool) -> None:
    assert KnownHosts(bound, machine="Box").accepts(name, server) is accepted


@pytest.fixture
async def guest() -> AsyncIterator[httpx.AsyncClient]:
    """A client on the network of a server that listens to it."""
    async with House("0.0.0.0", TOKEN, page=False).client("192.168.1.9", "http://192.168.1.5:7860") as client:
        yield client


async def test_without_the_secret_no_route_answers() -> None:
    house = House("0.0.0.0", TOKEN)
    async with house.client("192.168.1.9", "http://192.168.1.5:7860") as guest:
        for method, path in every_route(house.app):
            response = await guest.request(method, path)
            assert response.status_code == 401, (method, path)
            assert response.headers["www-authenticate"].startswith("Bearer "), (method, path)


async def test_the_guests_secret_opens_no_administrators_route(settings: Settings) -> None:
    guests, statuses, told = "for-guests", {}, set()
    with startup.services(settings, settings.user_data_dir) as services:
        app = mount_ui(build_api(services), services)
        install_guard(app, host="0.0.0.0", port=7860, access_token=TOKEN, guest_token=guests)
        transport = httpx.ASGITransport(app, client=("192.168.1.9", 5), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://192.168.1.5:7860") as client:
            for method, path in every_route(app):
                if need_of(method, path) == "admin":
                    answer = await client.request(method, path, headers={"X-Api-Key": guests})
                    statuses[method, path] = (answer.status_code, error_code(answer))
            mounted = next(route.app for route in reversed(app.routes) if isinstance(route, Mount))
            page = mounted.get_blocks()  # type: ignore[attr-defined]
            events = [number for number, event in page.fns.items() if is_for_admins(event.fn)]
            for number, path in product(events, ("/gradio_api/run/predict", "/gradio_api/queue/join")):
                body = {"fn_index": number, "data": [], "session_hash": "guest"}
                answer = await client.post(path, json=body, headers={"X-Api-Key": guests})
                told.add((answer.status_code, answer.json().get("detail")))
            event = {"fn_index": events[0], "data": [], "session_hash": "guest"}
            let = await client.post("/gradio_api/run/predict", json=event, headers={"X-Api-Key": TOKEN})
            free = await client.get("/v1/models", headers={"X-Api-Key": guests})
            ours = await client.get("/v1/internal/stats", headers={"X-Api-Key": TOKEN})
            both = await client.get(
                "/v1/internal/stats", headers={"X-Api-Key": guests, "Authorization": f"Bearer {TOKEN}"}
            )
            door = await client.get("/", params={"token": guests})
    assert len(statuses) > 5
    assert set(statuses.values()) == {(403, "forbidden")}
    assert told == {(403, "This is for administrators.")} and let.status_code != 403
    assert (free.status_code, ours.status_code, both.status_code) == (200, 200, 200)
    assert (door.status_code, door.cookies["snug_7860_guest"]) == (303, guests)


async def test_a_link_with_the_guests_secret_takes_nothing_from_an_administrators_browser() -> None:
    guests = "for-guests"
    lock = Lock(TOKEN, guests=guests, cookie="snug_1")
    kept = [lock.welcome(secret).headers["set-cookie"].split(";")[0] for secret in (TOKEN, guests)]
    assert kept == [f"snug_1={TOKEN}", f"snug_1_guest={guests}"]

    def opened(*cookies: str) -> bool:
        headers = [(b"cookie", "; ".join(cookies).encode())]
        return lock.check({"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": headers}).admin

    assert not opened(kept[1])
    assert opened(*kept) and opened(*reversed(kept))


@pytest.mark.parametrize(
    ("name", "value", "status"),
    [
        ("Authorization", f"Bearer {TOKEN}", 200),
        ("authorization", f"bearer   {TOKEN} ", 200),
        ("X-Api-Key", TOKEN, 200),
        ("Cookie", f"other=1; snug_7860={TOKEN}", 200),
        ("Authorization", f"Basic {TOKEN}", 401),
        ("Authorization", f"Bearer {TOKEN}x", 401),
        ("Authorization", "Bearer", 401),
        ("Authorization", "Bearer gehëim", 401),
        ("X-Api-Key", "", 401),
        ("Cookie", f"snug_9999={TOKEN}", 401),
    ],
)
async def test_the_secret_opens_by_header_or_cookie(
    guest: httpx.AsyncClient, name: str, value: str, status: int
) -> None:  # fmt: skip
    response = await guest.get("/v1/thing", headers=[(name.encode(), value.encode())])
    assert response.status_code == status


@pytest.mark.parametrize("path", ["/", "/login", "/v1/thing"])
async def test_a_cookie_that_is_slow_to_read_is_not_read(guest: httpx.AsyncClient, path: str) -> None:
    """Python 3.11.7 took nine seconds for each, in which nobody else was answered."""
    backslashes = "\\" * 30_000
    for name in ("snug_7860", "snug_session_7860", "snug_language", "other"):
        headers = {"cookie": f'{name}="{backslashes}"', "accept": "text/html"}
        started = time.perf_counter()
        assert (await guest.get(path, headers=headers)).status_code == 401
        assert time.perf_counter() - started < 1


async def test_no_cookie_but_snugs_own_goes_behind_the_doors() -> None:
    seen: list[bytes] = []

    async def app(scope: Scope, _: Receive, __: Send) -> None:
        seen.extend(value for name, value in scope["headers"] if name == b"cookie")

    own = b"snug_session_7860=a-b_C9; snug_language=de"
    given = b'other=1;  snug_session_7860=a-b_C9;snug_language=de; snug_7860="q"; snug_x=a b; =; ;snug_Y=1'
    await NoHearsay(app)({"type": "http", "headers": [(b"cookie", given), (b"cookie", b"a=b")]}, _nothing, _nowhere)
    assert seen == [own, b""]


async def _nothing() -> Message:
    return {"type": "http.disconnect"}


async def _nowhere(_: Message) -> None:
    raise AssertionError


async def test_the_secret_in_the_address_becomes_a_cookie(guest: httpx.AsyncClient) -> None:
    response = await guest.get("/", params={"token": TOKEN})
    assert response.status_code == 303
    assert response.headers["location"] == "/"
    cookie = response.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert (await guest.get("/v1/thing")).status_code == 200, "the client keeps the cookie"


async def test_the_secret_in_any_other_address_is_nothing(guest: httpx.AsyncClient) -> None:
    assert (await guest.get("/v1/thing", params={"token": TOKEN})).status_code == 401
    assert (await guest.post("/", params={"token": TOKEN})).status_code == 401


async def test_the_address_loses_its_secret_before_anyone_can_log_it() -> None:
    seen: list[Scope] = []
    house = House("0.0.0.0", TOKEN, page=False)

    async def spy(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)
        await house.app(scope, receive, send)

    transport = httpx.ASGITransport(spy)
    async with httpx.AsyncClient(transport=transport, base_url=f"http://{HERE}") as client:
        await client.get("/", params={"token": TOKEN})
        await client.get("/", params={"token": "wrong"})
    assert [scope["query_string"] for scope in seen] == [b"", b""]


@pytest.mark.parametrize("query", [b"token=\xff", b"token=%ff", b"token=\xc3\xa9&x=\xff", b"token=%ud800"])
def test_a_secret_in_the_address_that_is_no_text_is_a_wrong_one(query: bytes) -> None:
    scope: Scope = {"type": "http", "method": "GET", "path": "/", "query_string": query, "headers": []}
    with pytest.raises(Unauthorized, match="not this server's secret"):
        Lock(TOKEN, cookie="snug").check(scope)
    assert scope["query_string"] == b""


async def test_a_browser_without_the_secret_sees_where_to_put_it(guest: httpx.AsyncClient) -> None:
    response = await guest.get("/", headers={"Accept": "text/html,*/*"})
    assert response.status_code == 401
    assert 'name="token"' in response.text
    assert error_code(await guest.get("/v1/thing", headers={"Accept": "text/html"})) == "unauthorized"


async def test_many_wrong_secrets_are_slowed_down(guest: httpx.AsyncClient) -> None:
    statuses = []
    for number in range(200):
        statuses.append((await guest.get("/v1/thing", headers={"X-Api-Key": f"wrong {number}"})).status_code)
    assert statuses == [401] * WRONG_TRIES + [429] * (200 - WRONG_TRIES)


def ask(lock: Lock, secret: str, client: str = "10.0.0.1") -> Opened:
    headers = [(b"x-api-key", secret.encode())]
    scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": headers}
    return lock.check(scope | {"client": (client, 1)})


def test_the_right_secret_works_again_after_the_wait_and_for_others_at_once() -> None:
    now = [0.0]
    lock = Lock("ключ", cookie="snug_1", clock=lambda: now[0])
    for number in range(WRONG_TRIES):
        with pytest.raises(Unauthorized):
            ask(lock, f"wrong {number}")
    with pytest.raises(TooManyAttempts):
        ask(lock, "ключ")
    assert ask(lock, "ключ", "10.0.0.2") == Opened(admin=True)
    now[0] += LOCKED_S + 1
    assert ask(lock, "ключ") == Opened(admin=True)


async def test_guesses_in_addresses_lock_nobody_out_who_has_the_cookie() -> None:
    """Any site's page can make a browser open them; over http it tells nobody whose page that was."""
    house = House("0.0.0.0", TOKEN, page=False)
    async with house.client("192.168.1.9") as client:
        owner = {"Cookie": f"snug_7860={TOKEN}"}
        for number in range(WRONG_TRIES):
            assert (await client.get("/", params={"token": f"wrong {number}"})).status_code == 401
        assert (await client.get("/", params={"token": TOKEN})).status_code == 429
        assert (await client.get("/v1/thing", headers=owner)).status_code == 200
        assert (await client.get("/v1/thing", params={"token": "wrong"}, headers=owner)).status_code == 200
        for number in range(WRONG_TRIES):
            assert (await client.get("/v1/thing", headers={"X-Api-Key": f"wrong {number}"})).status_code == 401
        assert (await client.get("/v1/thing", headers=owner)).status_code == 429, "a program's guesses are its user's"


def test_the_same_stale_secret_does_not_lock_anyone_out() -> None:
    lock = Lock("right", cookie="snug_1")
    for _ in range(5 * WRONG_TRIES):
        with pytest.raises(Unauthorized):
            ask(lock, "from before the restart")
    assert ask(lock, "right") == Opened(admin=True)


@pytest.fixture
def whole_app(settings: Settings) -> Iterator[FastAPI]:
    """Snug as server.py puts it together, without a model."""
    with startup.services(settings, settings.user_data_dir) as services:
        app = mount_ui(build_api(services), services)
        install_guard(app, host="127.0.0.1", port=7860, access_token=None)
        yield app


async def test_who_came_by_a_secret_is_done_with_once_somebody_has_an_account(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staying, "LOOK_EVERY_S", 0.0)
    with startup.services(settings, settings.user_data_dir) as services:
        app = build_api(services)
        install_guard(
            app, host="0.0.0.0", port=7860, access_token=TOKEN, guest_token="guests", accounts=services.accounts
        )

        async def slowly() -> AsyncIterator[bytes]:
            yield b'[{"conversations": [{"from": '
            assert services.accounts is not None
            services.accounts.add("Ana", "a password of hers")
            yield b'"human", "value": "a"}]}]'

        transport, headers = httpx.ASGITransport(app), {"Authorization": "Bearer guests"}
        async with httpx.AsyncClient(transport=transport, base_url=f"http://{HERE}", headers=headers) as client:
            answer = await client.post("/conversations", content=slowly())
        assert answer.status_code == 401 and services.store.list("") == []


async def test_no_route_of_snug_itself_serves_foreigners(whole_app: FastAPI) -> None:
    routes = every_route(whole_app)
    assert ("POST", "/v1/chat/completions") in routes
    assert ("POST", "/v1/internal/model/load") in routes
    async with httpx.AsyncClient(transport=httpx.ASGITransport(whole_app), base_url=f"http://{HERE}") as client:
        for method, path in routes:
            for host in FOREIGN_HOSTS:
                assert (await client.request(method, path, headers={"Host": host})).status_code == 421, (path, host)
            for origin in FOREIGN_ORIGINS:
                refused = await client.request(method, path, headers={"Origin": origin})
                assert refused.status_code == 403, (path, origin)
                assert not any(name.startswith("access-control-") for name in refused.headers)
                assert refused.headers["x-content-type-options"] == "nosniff"


async def test_the_page_of_snug_needs_no_other_origin(whole_app: FastAPI) -> None:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(whole_app), base_url=f"http://{HERE}") as client:
        page = await client.get("/")
    assert page.status_code == 200
    assert re.findall(r"""<(?:script|link|img)[^>]+(?:src|href)=["']https?://(?!127\.0\.0\.1)[^"']+""", page.text) == []
