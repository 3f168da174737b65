"""Under another name, behind a proxy, for another origin: --allowed-host, --trusted-proxy, --cors-origin."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from argon2 import PasswordHasher
from fastapi import FastAPI, Request

from modules.accounts import passwords
from modules.accounts.attempts import WRONG_TRIES
from modules.accounts.directory import Accounts
from modules.api.doors.guard import install_guard
from modules.errors import BadFlag
from modules.settings_reading import read_settings

NAME = "chat.example.org"
PROXY = "10.0.0.2"
TOKEN = "a-secret-of-many-letters"
GUESTS = "another-secret-of-letters"
APP = "https://app.example.org"


def house(**options: Any) -> FastAPI:
    """An app that tells who it thinks has come."""
    app = FastAPI()

    @app.get("/v1/thing")
    @app.post("/v1/thing")
    @app.get("/")
    def tell(request: Request) -> dict[str, Any]:
        names = [name for name in request.headers if name.startswith(("x-", "forwarded", "remote"))]
        return {"client": request.client.host if request.client else "", "scheme": request.url.scheme, "headers": names}

    usual: dict[str, Any] = {"host": "127.0.0.1", "port": 7860, "access_token": TOKEN}
    install_guard(app, **(usual | options))
    return app


def client(app: FastAPI, address: str = PROXY, base: str = f"http://{NAME}") -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app, client=(address, 5)), base_url=base)


KEY = {"x-api-key": TOKEN}
HEARSAY = {"x-forwarded-for": "192.0.2.9", "x-forwarded-proto": "https", "x-real-ip": "192.0.2.9", "remote-user": "Ana"}


def test_a_server_with_another_name_is_not_open() -> None:
    with pytest.raises(ValueError, match="access token"):
        install_guard(FastAPI(), host="127.0.0.1", port=7860, access_token=None, allowed_hosts=[NAME])


async def test_the_named_host_is_answered_and_no_other() -> None:
    app = house(allowed_hosts=[NAME])
    async with client(app) as guest:
        assert (await guest.get("/v1/thing", headers=KEY)).status_code == 200
        assert (await guest.get("/v1/thing")).status_code == 401
        assert (await guest.get("/v1/thing", headers=KEY | {"origin": f"https://{NAME}"})).status_code == 200
        for host in (f"{NAME}.evil.example", f"x.{NAME}", f"{NAME}.", "evil.example"):
            assert (await guest.get("/v1/thing", headers=KEY | {"host": host})).status_code == 421, host
        forwarded = KEY | {"host": "evil.example", "x-forwarded-host": NAME}
        assert (await guest.get("/v1/thing", headers=forwarded)).status_code == 421


@pytest.mark.parametrize(
    ("trusted", "address", "client_is", "scheme"),
    [
        ([PROXY], PROXY, "192.0.2.9", "https"),
        (["10.0.0.0/24"], PROXY, "192.0.2.9", "https"),
        ([PROXY], "10.0.0.3", "10.0.0.3", "http"),
        ([], PROXY, PROXY, "http"),
        ([], "127.0.0.1", "127.0.0.1", "http"),
    ],
)
async def test_a_proxys_word_counts_from_named_proxies_alone(
    trusted: list[str], address: str, client_is: str, scheme: str
) -> None:
    app = house(allowed_hosts=[NAME], trusted_proxies=trusted)
    async with client(app, address) as guest:
        told = (await guest.get("/v1/thing", headers=KEY | HEARSAY)).json()
        assert (told["client"], told["scheme"]) == (client_is, scheme)
        assert told["headers"] == ["x-api-key"], "nobody behind the doors hears of it"


async def test_the_address_in_front_of_the_last_proxy_counts_not_what_the_client_wrote() -> None:
    app = house(allowed_hosts=[NAME], trusted_proxies=[PROXY])
    async with client(app) as guest:
        told = await guest.get("/v1/thing", headers=KEY | {"x-forwarded-for": "127.0.0.1, 198.51.100.7"})
        assert told.json()["client"] == "198.51.100.7"


async def test_guesses_through_a_proxy_are_the_guessers() -> None:
    app = house(allowed_hosts=[NAME], trusted_proxies=[PROXY])
    async with client(app) as guest:
        for number in range(WRONG_TRIES + 1):
            headers = {"x-api-key": f"wrong {number}", "x-forwarded-for": "198.51.100.7"}
            last = await guest.get("/v1/thing", headers=headers)
        assert last.status_code == 429
        assert (last.headers["retry-after"], last.headers["x-should-retry"]) == ("60", "false")
        assert (await guest.get("/v1/thing", headers=KEY | {"x-forwarded-for": "192.0.2.1"})).status_code == 200


async def test_behind_https_the_secrets_cookie_is_secure() -> None:
    app = house(allowed_hosts=[NAME], trusted_proxies=[PROXY])
    async with client(app) as guest:
        for proto, secure in (("https", True), ("http", False)):
            entered = await guest.get("/", params={"token": TOKEN}, headers={"x-forwarded-proto": proto})
            assert entered.status_code == 303
            assert ("secure" in entered.headers["set-cookie"].lower()) is secure


async def test_a_named_origin_may_use_the_api_and_nothing_else() -> None:
    app = house(access_token=None, cors_origins=[APP])
    async with client(app, "127.0.0.1", "http://127.0.0.1:7860") as browser:
        sites = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "cors", "sec-fetch-dest": "empty"}
        answered = await browser.post("/v1/thing", headers={"origin": APP} | sites)
        assert answered.status_code == 200
        assert answered.headers["access-control-allow-origin"] == APP
        assert "access-control-allow-credentials" not in answered.headers
        asked = await browser.options(
            "/v1/thing", headers={"origin": APP, "access-control-request-method": "POST"} | sites
        )
        assert asked.status_code == 204
        assert "authorization" in asked.headers["access-control-allow-headers"]
        wanted = {"access-control-request-headers": "authorization,x-stainless-os, X-Stainless-Lang,b@d"}
        asked = await browser.options("/v1/thing", headers={"origin": APP} | wanted | sites)
        allowed = asked.headers["access-control-allow-headers"].split(", ")
        assert {"x-stainless-os", "x-stainless-lang", "x-api-key"} < set(allowed), "what OpenAI's own library sends"
        assert "b@d" not in allowed
        assert len(allowed) == len(set(allowed))
        assert "x-request-id" in asked.headers["access-control-expose-headers"]
        assert (await browser.get("/", headers={"origin": APP} | sites)).status_code == 403, "the page is not the API"
        for origin in ("https://app.example.org.evil.example", "http://app.example.org", "null", f"{APP}:444", "*"):
            refused = await browser.post("/v1/thing", headers={"origin": origin} | sites)
            assert refused.status_code == 403, origin
            assert "access-control-allow-origin" not in refused.headers
        assert (await browser.post("/v1/thing", headers=sites)).status_code == 403, "no Origin, but from elsewhere"
        assert "access-control-allow-origin" not in (await browser.get("/v1/thing")).headers


@pytest.fixture
def accounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Accounts]:
    monkeypatch.setattr(passwords, "_hasher", PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))
    opened = Accounts(tmp_path / "users.db")
    yield opened
    opened.close()


async def test_a_named_origins_page_needs_a_key_and_rides_on_nobodys_login(accounts: Accounts) -> None:
    app = house(cors_origins=[APP], accounts=accounts)
    ana = accounts.add("Ana", "correct horse")
    _, key = accounts.make_key(ana.id, "page")
    async with client(app, "127.0.0.1", "http://127.0.0.1:7860") as browser:
        browser.cookies.set("snug_session_7860", accounts.begin_session(ana))
        assert (await browser.get("/v1/thing")).status_code == 200, "the own page"
        assert (await browser.get("/v1/thing", headers={"origin": APP})).status_code == 401
        with_key = await browser.get("/v1/thing", headers={"origin": APP, "authorization": f"Bearer {key}"})
        assert with_key.status_code == 200


async def test_a_named_origins_page_rides_on_no_secret_that_a_browser_keeps() -> None:
    app = house(host="0.0.0.0", cors_origins=[APP], guest_token=GUESTS)
    async with client(app, "192.168.1.9", "http://127.0.0.1:7860") as browser:
        for name, secret in (("snug_7860", TOKEN), ("snug_7860_guest", GUESTS)):
            browser.cookies.set(name, secret)
            assert (await browser.post("/v1/thing")).status_code == 200, "the own page"
            sites = {"origin": APP, "sec-fetch-site": "same-site", "sec-fetch-mode": "no-cors"}
            assert (await browser.post("/v1/thing", headers=sites)).status_code == 401, "from another port, say"
            assert (await browser.post("/v1/thing", headers=sites | {"x-api-key": secret})).status_code == 200
            browser.cookies.clear()


async def test_accounts_close_a_server_and_its_secret_opens_it_no_more(accounts: Accounts) -> None:
    app = house(host="0.0.0.0", accounts=accounts)
    async with client(app, "192.168.1.9", "http://127.0.0.1:7860") as guest:
        assert (await guest.get("/v1/thing", headers=KEY)).status_code == 200
        ana = accounts.add("Ana", "correct horse")
        assert (await guest.get("/v1/thing", headers=KEY)).status_code == 401
        accounts.remove(ana.id)
        assert (await guest.get("/v1/thing", headers=KEY)).status_code == 401, "nobody left is not everybody"
        accounts.forget(ana.id)
        assert (await guest.get("/v1/thing")).status_code == 401
        assert (await guest.get("/v1/thing", headers=KEY)).status_code == 200


@pytest.mark.parametrize(
    "flags",
    [
        ("--allowed-host", "http://chat.example.org"),
        ("--allowed-host", "a b/c"),
        ("--allowed-host", "*"),
        ("--trusted-proxy", "proxy.example.org"),
        ("--trusted-proxy", "*"),
        ("--cors-origin", "*"),
        ("--cors-origin", "app.example.org"),
        ("--cors-origin", "https://app.example.org/path"),
        ("--cors-origin", "null"),
        ("--cors-origin", "app://"),
        ("--cors-origin", "file:///"),
    ],
)
def test_flags_that_would_open_too_much_or_mean_nothing_are_refused(flags: tuple[str, str]) -> None:
    with pytest.raises(BadFlag, match=flags[0]):
        read_settings(flags, {})


def test_several_of_each_may_be_named() -> None:
    settings = read_settings(["--allowed-host", "A.example", "b.example", "--trusted-proxy", "10.0.0.0/8,::1"], {})
    assert settings.allowed_host == ("a.example", "b.example")
    assert settings.trusted_proxy == ("10.0.0.0/8", "::1")
    apps = ("app://obsidian.md", "chrome-extension://abcdefghijklmnop")
    assert read_settings(["--cors-origin", *apps], {}).cors_origin == apps
    assert read_settings([], {"SNUG_CORS_ORIGIN": "https://a.example http://b.example:8080"}).cors_origin == (
        "https://a.example",
        "http://b.example:8080",
    )
