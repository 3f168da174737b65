"""Logging in, keys and rights, through the whole app's doors."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Iterator

import httpx
import pytest

from modules.accounts import passwords
from modules.accounts.attempts import WRONG_TRIES
from modules.accounts.directory import Account
from modules.api.accounts import Marks
from tests.household import HERE, WORDS, Household, household_below

PAGE = {"accept": "text/html,*/*"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Household]:
    with household_below(tmp_path_factory.mktemp("home")) as made:
        yield made


async def log_in(client: httpx.AsyncClient, name: str, password: str) -> httpx.Response:
    data = {"name": name, "password": password}
    return await client.post("/login", data=data, headers={"origin": str(client.base_url).rstrip("/")})


async def test_a_browser_sees_where_to_log_in_and_a_program_is_told(home: Household) -> None:
    async with home.client() as guest:
        for path in ("/", "/login", "/config", "/gradio_api/info"):
            page = await guest.get(path, headers=PAGE)
            assert page.status_code == (200 if path == "/login" else 401), path
            assert 'name="password"' in page.text
            policy = page.headers["content-security-policy"]
            assert policy.startswith("default-src 'none'")
            assert "script" not in policy
            assert "<script" not in page.text
        told = await guest.get("/v1/models")
    assert told.status_code == 401
    assert told.json()["error"]["code"] == "unauthorized"


async def test_the_door_speaks_the_language_that_was_chosen_else_that_of_the_browser(home: Household) -> None:
    async with home.client(address="10.9.9.8") as guest:
        german = await guest.get("/", headers=PAGE | {"accept-language": "de-AT,en;q=0.5"})
        assert '<html lang="de" dir="ltr">' in german.text
        assert "Willkommen zurück" in german.text
        assert "Welcome back" not in german.text
        guest.headers["cookie"] = "snug_language=de"
        failed = await log_in(guest, "Ana", "")
        assert "Name und Passwort sind beide nötig." in failed.text
        wrong = await log_in(guest, "Ana", "wrong")
        assert '<html lang="de"' in wrong.text
        assert wrong.status_code == 401
        guest.headers["cookie"] = "snug_language=ar-XB"
        assert '<html lang="ar-XB" dir="rtl">' in (await guest.get("/login")).text
        guest.headers["cookie"] = "snug_language=en"
        english = await guest.get("/login", headers={"accept-language": "de"})
        assert "Welcome back" in english.text


async def test_logging_in_and_out(home: Household) -> None:
    async with home.client() as guest:
        inside = await log_in(guest, "ana", WORDS["Ana"])
        assert (inside.status_code, inside.headers["location"]) == (303, "/")
        cookie = inside.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert "secure" not in cookie, "this is http"
        assert (await guest.get("/account")).json() == {"name": "Ana", "admin": True}
        assert (await guest.get("/login")).headers["location"] == "/"
        assert (await guest.get("/", headers=PAGE)).status_code == 200
        kept = dict(guest.cookies)
        assert (await guest.post("/logout", headers={"origin": HERE})).headers["location"] == "/login"
        assert list(guest.cookies) == ["snug_known_7860"], "which lets nobody in"
        assert (await guest.get("/account")).status_code == 401
        guest.cookies.update(kept)
        assert (await guest.get("/account")).status_code == 401, "the session has ended, not only its cookie"


async def test_behind_https_the_cookie_is_secure(home: Household) -> None:
    async with home.client(base="https://127.0.0.1:7860") as guest:
        told = (await log_in(guest, "Ben", WORDS["Ben"])).headers["set-cookie"].lower()
        assert told.startswith("__host-snug_session_7860=")
        assert "secure" in told
        assert (await guest.get("/account")).status_code == 200
        assert (
            "__host-"
            in (await guest.post("/logout", headers={"origin": "https://127.0.0.1:7860"})).headers["set-cookie"].lower()
        )
        assert list(guest.cookies) == ["__Host-snug_known_7860"]


async def test_over_https_no_cookie_counts_that_a_sibling_host_can_set(home: Household) -> None:
    token = home.accounts.begin_session(home.accounts.named("Ben"))
    async with home.client(base="https://127.0.0.1:7860") as guest:
        guest.headers["cookie"] = f"snug_session_7860={token}"
        assert (await guest.get("/account")).status_code == 401
        guest.headers["cookie"] = f"__Host-snug_session_7860={token}"
        assert (await guest.get("/account")).json()["name"] == "Ben"


async def test_logging_in_again_ends_the_browsers_session_before(home: Household) -> None:
    async with home.client() as guest:
        await log_in(guest, "Ben", WORDS["Ben"])
        before = guest.cookies["snug_session_7860"]
        await log_in(guest, "Ana", WORDS["Ana"])
        assert (await guest.get("/account")).json()["name"] == "Ana"
    assert home.accounts.by_session(before) is None


async def test_wrong_keys_from_an_address_keep_no_right_one_waiting(home: Household) -> None:
    _, secret = home.accounts.make_key(home.accounts.named("Ben").id, "script")
    async with home.client(address="192.0.2.99") as programs:
        for number in range(WRONG_TRIES + 1):
            last = await programs.get("/v1/models", headers={"authorization": f"Bearer {number}"})
        assert last.status_code == 429
        assert (await programs.get("/v1/models", headers={"authorization": f"Bearer {secret}"})).status_code == 200


@pytest.mark.parametrize(
    ("name", "password"), [("Ana", "wrong"), ("Nobody", WORDS["Ana"]), ("", ""), ("Ana", ""), ("<script>", "\x00")]
)
async def test_a_failed_login_says_so_and_nothing_more(home: Household, name: str, password: str) -> None:
    async with home.client(address="10.9.9.9") as guest:
        failed = await log_in(guest, name, password)
        assert failed.status_code in (400, 401)
        assert 'role="alert"' in failed.text
        assert "<script>" not in failed.text
        assert "set-cookie" not in failed.headers


async def test_a_form_that_is_not_the_pages_is_told_what_is_missing(home: Household) -> None:
    async with home.client(address="10.9.9.7") as guest:
        for body in (b"a=1&" * 100, b"%ff%00=&" * 8, b"\xff" * 1000, b""):
            answer = await guest.post("/login", content=body, headers={"origin": HERE})
            assert answer.status_code == 400, body[:20]
            assert "Both name and password are needed." in answer.text


async def test_a_hundred_wrong_passwords_are_slowed_down_and_the_owner_gets_in(home: Household) -> None:
    async with home.client(address="192.0.2.7") as known, home.client(address="198.51.100.1") as guesser:
        assert (await log_in(known, "Ben", WORDS["Ben"])).status_code == 303
        statuses = [(await log_in(guesser, "Ben", f"guess {number}")).status_code for number in range(100)]
        assert statuses == [401] * WRONG_TRIES + [429] * (100 - WRONG_TRIES)
        assert (await log_in(guesser, "Ben", WORDS["Ben"])).status_code == 429
        assert (await log_in(known, "Ben", WORDS["Ben"])).status_code == 303, "from where Ben has logged in before"
    async with home.client(address="198.51.100.2") as elsewhere:
        assert (await log_in(elsewhere, "Ben", "guess")).status_code == 429, "the name waits too"


async def test_a_browser_that_was_there_before_waits_for_nobodys_guesses_wherever_it_is(home: Household) -> None:
    home.accounts.add("Ida", "ida by the ide")
    home.accounts.add("Jan", "jan in january")
    async with home.client(address="192.0.2.50") as ida, home.client(address="192.0.2.51") as guesser:
        assert (await log_in(ida, "Ida", "ida by the ide")).status_code == 303
        assert (await log_in(ida, "Jan", "jan in january")).status_code == 303, "another person at the same browser"
        kept = {"cookie": f"snug_known_7860={ida.cookies['snug_known_7860']}"}
        for number in range(WRONG_TRIES + 1):
            last = await log_in(guesser, "Ida", f"guess {number}")
        assert last.status_code == 429
    for address in ("192.0.2.52", "192.0.2.51"):  # elsewhere, and behind the guesser's own address
        async with home.client(address=address) as stranger, home.client(address=address, headers=kept) as known:
            assert (await log_in(stranger, "Ida", "ida by the ide")).status_code == 429
            assert (await log_in(known, "Ida", "ida by the ide")).status_code == 303
            marks = known.cookies["snug_known_7860"]
            assert marks[44:] + marks[:44] == kept["cookie"].partition("=")[2], "of both, the last one first"
            kept = {"cookie": f"snug_known_7860={marks[44:] + marks[:44]}"}
    async with home.client(address="192.0.2.53", headers=kept) as known:
        guesses = [(await log_in(known, "Ida", f"guess {number}")).status_code for number in range(WRONG_TRIES + 1)]
        assert guesses == [401] * WRONG_TRIES + [429], "it waits for its own"


async def test_no_mark_of_a_known_browser_is_anybody_elses(home: Household) -> None:
    kept = {name: home.accounts.kept_of(name) for name in ("Ana", "Ben", "Nobody")}
    cookie = Marks(Marks("").with_one(kept["Ana"])).with_one(kept["Ben"])
    numbers = {name: Marks(cookie).number(kept[name]) for name in kept}
    assert numbers["Ana"] and numbers["Ben"] and not numbers["Nobody"]
    assert Marks(cookie).with_one(kept["Ana"]).startswith(numbers["Ana"]), "the same one for as long as it is good"
    assert not Marks(Marks("").with_one("")).number(""), "who has no password is nobody"
    for other in ("", "x" * 44, "\ufffd" * 44, cookie[1:], cookie[:43], cookie.swapcase()):
        assert not Marks(other).number(kept["Ana"]), other
    for number in range(9):
        cookie = Marks(cookie).with_one(f"password {number}")
    assert len(cookie) == 4 * 44 and re.fullmatch(r"[A-Za-z0-9_-]+", cookie), "as the doors let a cookie pass"


async def test_who_has_an_account_guesses_no_faster_at_another(home: Household) -> None:
    home.accounts.add("Eve", "evening primrose")
    home.accounts.add("Una", "under a nimbus")
    spellings = ["Una", "ＵＮＡ", "𝐔na", "U𝐧a", "𝐔𝐧𝐚", " una ", "Ⓤna", "ᵁna", "uｎa", "unａ"]
    guesses = []
    async with home.client(address="192.0.2.20") as eve:
        for round_, name in enumerate(spellings):
            for number in range(3):
                guesses.append((await log_in(eve, name, f"guess {round_} {number}")).status_code)
            assert (await log_in(eve, "Eve", "evening primrose")).status_code in (303, 429)
    assert guesses.count(401) == WRONG_TRIES, "one name in many letters, her own password in between"
    async with home.client(address="192.0.2.21") as shared:  # a machine at which Cleo logs in too
        home.accounts.add("Cleo", "nile and barge")
        assert (await log_in(shared, "Cleo", "nile and barge")).status_code == 303
        tried = []
        for number in range(2 * WRONG_TRIES):
            tried.append((await log_in(shared, "Cleo", f"guess {number}")).status_code)
            await log_in(shared, "Eve", "evening primrose")
    assert tried.count(401) == WRONG_TRIES


async def test_a_flood_of_guesses_is_counted_and_takes_nobody_elses_turn(
    home: Household, monkeypatch: pytest.MonkeyPatch
) -> None:
    verify, together, most, counting = home.accounts.verify, 0, 0, threading.Lock()

    def slow(name: str, password: str) -> Account:
        nonlocal together, most
        with counting:
            together, most = together + 1, max(most, together + 1)
        time.sleep(0.01)
        try:
            return verify(name, password)
        finally:
            with counting:
                together -= 1

    monkeypatch.setattr(home.accounts, "verify", slow)
    async with home.client(address="192.0.2.30") as flood:
        guesses = [log_in(flood, f"nobody {number}", f"guess {number}") for number in range(60)]
        statuses = [answer.status_code for answer in await asyncio.gather(*guesses)]
    assert most <= passwords.AT_ONCE
    assert WRONG_TRIES <= statuses.count(401) < WRONG_TRIES + passwords.AT_ONCE


async def test_the_same_login_a_hundred_times_takes_one_place_and_a_wrong_one_is_looked_at_once(
    home: Household, monkeypatch: pytest.MonkeyPatch
) -> None:
    verify, looked, let_go = home.accounts.verify, [], threading.Event()
    for name in ("Max", "Joe"):
        home.accounts.add(name, f"the effort of {name}")

    def held(name: str, password: str) -> Account:
        looked.append((name, password))
        if name == "Max":
            let_go.wait(5)
        return verify(name, password)

    monkeypatch.setattr(home.accounts, "verify", held)
    async with home.client(address="192.0.2.40") as flood, home.client(address="192.0.2.41") as other:
        for _ in range(30):
            assert (await log_in(flood, "Ana", "the same wrong one")).status_code == 401
        assert looked == [("Ana", "the same wrong one")]
        home.accounts.set_password(home.accounts.named("Max").id, "the same wrong one")
        several = [asyncio.ensure_future(log_in(flood, "Max", "the same wrong one")) for _ in range(20)]
        while looked[-1][0] != "Max":
            await asyncio.sleep(0.001)
        assert (await log_in(other, "Joe", "the effort of Joe")).status_code == 303, "Max is still being looked at"
        assert looked[1:] == [("Max", "the same wrong one"), ("Joe", "the effort of Joe")]
        let_go.set()
        assert {answer.status_code for answer in await asyncio.gather(*several)} == {303}


async def test_a_password_that_was_wrong_is_right_once_it_is_set(home: Household) -> None:
    home.accounts.add("Kim", "kim by the sea")
    async with home.client(address="192.0.2.42") as browser:
        for _ in range(2):
            assert (await log_in(browser, "Kim", "a new one for Kim")).status_code == 401
        home.accounts.set_password(home.accounts.named("Kim").id, "a new one for Kim")
        assert (await log_in(browser, "Kim", "a new one for Kim")).status_code == 303
        assert (await log_in(browser, "Lea", "lea on the lake")).status_code == 401
        home.accounts.add("Lea", "lea on the lake")
        assert (await log_in(browser, "Lea", "lea on the lake")).status_code == 303


async def test_a_login_from_another_sites_form_is_refused(home: Household) -> None:
    async with home.client() as guest:
        data = {"name": "Ana", "password": WORDS["Ana"]}
        refused = await guest.post("/login", data=data, headers={"origin": "http://evil.example"})
    assert refused.status_code == 403
    assert "set-cookie" not in refused.headers


async def test_a_link_from_another_site_leads_home_although_the_cookie_is_strict(home: Household) -> None:
    link = PAGE | {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    async with home.client() as guest:
        first = await guest.get("/", headers=link)
        assert 'http-equiv="refresh"' in first.text
        again = await guest.get("/", headers=link | {"sec-fetch-site": "same-origin"})
        assert 'name="password"' in again.text, "once, not in a circle"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([("authorization", "Bearer {}")], 200),
        ([("Authorization", "bearer   {} ")], 200),
        ([("x-api-key", "{}")], 200),
        ([("authorization", "Bearer {}"), ("x-api-key", "{}")], 200),
        ([("authorization", "Bearer {}"), ("x-api-key", "wrong")], 401),
        ([("authorization", "Bearer {}"), ("authorization", "Bearer wrong")], 401),
        ([("authorization", "Basic {}")], 401),
        ([("authorization", "{}")], 401),
        ([("api-key", "{}")], 401),
        ([("cookie", "snug_session_7860={}")], 401),
        ([("cookie", "key={}")], 401),
    ],
)
async def test_a_key_counts_in_two_headers_and_nowhere_else(
    home: Household, headers: list[tuple[str, str]], status: int
) -> None:
    async with home.client(address="10.1.1.1") as guest:
        sent = [(name.encode(), value.format(home.keys["Ben"]).encode()) for name, value in headers]
        assert (await guest.get("/v1/models", headers=sent)).status_code == status
        assert (await guest.get("/v1/models", params={"key": home.keys["Ben"], "token": "x"})).status_code == 401


async def test_a_wrong_key_beside_a_right_cookie_opens_nothing(home: Household) -> None:
    async with home.client("Ana", address="10.1.1.2") as ana:
        assert (await ana.get("/v1/models")).status_code == 200
        assert (await ana.get("/v1/models", headers={"x-api-key": "wrong"})).status_code == 401


@pytest.mark.parametrize(
    "path",
    ["/v1/models", "//v1/models", "/v1//models", "/v1/../v1/models", "/%76%31/models", "/v1%2fmodels", "/v1/models/",
     "/v1/models;x", "/V1/MODELS", "/./v1/models", "/login/../v1/models", "/login/x", "/login%2f..%2fv1/models",
     "/account", "/gradio_api/../v1/models", "/health", "/openapi.json", "/metrics"],
)  # fmt: skip
async def test_no_spelling_of_a_path_lets_anybody_in(home: Household, path: str) -> None:
    async with home.client() as guest:
        for method in ("GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE"):
            answer = await guest.request(method, path)
            assert answer.status_code == 401, (method, path)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/internal/model/load"),
        ("POST", "/v1/internal/model/unload"),
        ("GET", "/v1/internal/downloads"),
        ("POST", "/v1/internal/downloads"),
        ("DELETE", "/v1/internal/downloads/x"),
        ("GET", "/v1/internal/whatever/comes"),
        ("POST", "//v1/internal/model/unload"),
        ("GET", "/metrics"),
    ],
)
async def test_what_is_for_administrators_is_refused_to_the_others(home: Household, method: str, path: str) -> None:
    for key, allowed in (("Ben", False), ("Ana", False), ("admin", True)):
        async with home.program(home.keys[key]) as program:
            answer = await program.request(method, path, json={})
            if path.startswith("//"):
                assert answer.status_code == 404, "no route, whoever asks"
            else:
                assert (answer.status_code != 403) is allowed, (key, path, answer.text)


@pytest.mark.parametrize("header", ["x-forwarded-user", "remote-user", "x-remote-user", "x-real-ip", "x-forwarded-for"])
async def test_nobody_is_somebody_by_a_proxys_header(home: Household, header: str) -> None:
    async with home.client() as guest:
        assert (await guest.get("/account", headers={header: "Ana"})).status_code == 401


async def test_a_new_password_ends_the_other_sessions(home: Household) -> None:
    home.accounts.add("Cy", "first password")
    async with home.client("Cy") as here, home.client("Cy") as there:
        wrong = await home.ask(here, "change_password", {"old": "nonsense", "new": "second password"})
        assert wrong["problem"]["code"] == "bad_value"
        both = {"old": "first password", "new": "second password"}
        assert await home.ask(here, "change_password", both) == {"done": True}
        assert (await here.get("/account")).status_code == 200
        assert (await there.get("/account")).status_code == 401


async def test_the_first_account_closes_a_running_machine_for_one(home: Household) -> None:
    everybody = home.accounts.people()
    assert everybody, "and it was made after the app was"
    async with home.client() as guest:
        assert (await guest.get("/v1/models")).status_code == 401
