"""No secret in a log, an error, a page or an answer (S10): canaries, many requests, and a look at all that came."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from modules.settings import Settings
from tests.household import HERE, Household, household

PASSWORD = "canary-password-5b1f"
HUB_TOKEN = "hf_canaryCanaryCanaryCanary77"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Household]:
    monkeypatch.setenv("HF_TOKEN", HUB_TOKEN)
    for name in ("models", "user_data"):
        (tmp_path / name).mkdir()
    (tmp_path / "hub-token").write_text(HUB_TOKEN, encoding="ascii")
    flags = {
        "model_dir": tmp_path / "models",
        "user_data_dir": tmp_path / "user_data",
        "hf_token_file": tmp_path / "hub-token",
    }
    with household(Settings.model_validate(flags)) as made:
        yield made


async def test_no_secret_is_ever_told(home: Household, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    cy = home.accounts.add("Cy", PASSWORD, admin=True)
    _, key = home.accounts.make_key(cy.id, "script", admin=True)
    token = home.accounts.begin_session(cy)
    seen: list[str] = []

    def note(answer: httpx.Response) -> None:
        seen.append(f"{answer.status_code} {answer.text} {answer.headers.multi_items()}")

    broken: tuple[Any, ...] = (
        {},
        {"messages": None},
        {"model": "../x", "messages": []},
        {"messages": [{"role": "x", "content": key}]},
        [],
    )
    async with home.client("Cy") as page, home.program(key) as program, home.client() as guest:
        page.cookies.set("snug_session_7860", token)
        for path in (
            "/",
            "/config",
            "/gradio_api/info",
            "/account",
            "/login",
            "/health",
            "/v1/models",
            "/openapi.json",
        ):
            for client in (page, program, guest):
                note(await client.get(path, headers={"accept": "text/html,*/*"}))
        for path in ("/v1/chat/completions", "/v1/completions", "/v1/internal/model/load", "/v1/internal/downloads"):
            for body in broken:
                for client in (page, program, guest):
                    note(await client.post(path, json=body))
        for name in ("who", "account", "cards", "choices", "pulse", "people", "conversations"):
            for body in ({}, {"id": "../../x"}, {"query": "x"}):
                seen.append(str(await home.ask(page, name, body)))
        for password in (PASSWORD + "x", "", "x" * 1001):
            note(await guest.post("/login", data={"name": "Cy", "password": password}, headers={"origin": HERE}))
        note(await guest.post("/login", content=b"\xff\x00=&&&", headers={"origin": HERE}))
        note(await guest.get("/", params={"token": key}))
        note(await program.get(f"/v1/{PASSWORD[:6]}/x"))
        seen.append(str(await home.ask(page, "change_password", {"old": PASSWORD + "y", "new": PASSWORD})))
    assert len(seen) > 100
    told = "\n".join([*seen, *(record.getMessage() for record in caplog.records if not record.name.startswith("http"))])
    for name, canary in (("password", PASSWORD), ("hub token", HUB_TOKEN), ("key", key), ("session", token)):
        assert canary not in told.replace(f"role': '{key}", ""), name
    settings = home.services.settings
    assert HUB_TOKEN not in settings.model_dump_json()
    assert HUB_TOKEN not in repr(settings)


def test_what_a_person_is_written_as_tells_no_session(home: Household) -> None:
    token = home.accounts.begin_session(home.accounts.named("Ana"))
    person = home.accounts.by_session(token)
    assert person is not None and person.session
    assert person.session.hex() not in repr(person)
    assert repr(person.session) not in repr(person)
