"""docs/routes.md is what the running app's doors do: route × who asks, at 12 Hosts and from 4 Origins."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from docs.make_routes import HERE, IDENTITIES, Doors, doors, rows
from modules.accounts import passwords
from tests.household import QUICK

TABLE = Path(__file__).parent.parent / "docs" / "routes.md"
FOREIGN_HOSTS = (
    "evil.example", "127.0.0.1.evil.example:7860", "localhost.", "192.168.1.5", "0.0.0.0", "[::2]", "localhost:7860:1",
    "", "user@localhost",
)  # fmt: skip
OWN_HOSTS = ("127.0.0.1:7860", "LOCALHOST:7860", "[::1]:9000")
FOREIGN_ORIGINS = ("http://evil.example", "null")


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    costly, passwords._hasher = passwords._hasher, QUICK
    with ExitStack() as parts:
        parts.callback(setattr, passwords, "_hasher", costly)
        yield doors(tmp_path_factory.mktemp("house"), parts)


def written() -> dict[tuple[str, str], list[str]]:
    """The table as it is committed."""
    lines = re.findall(r"^\| ([A-Z]+) \| `([^`]+)` \| (.*) \|$", TABLE.read_text(encoding="utf-8"), re.MULTILINE)
    return {(method, path): cells.split(" | ") for method, path, cells in lines}


async def test_the_table_of_routes_is_true_and_whole(house: Doors) -> None:
    """A new route: make the table anew (`python -m docs.make_routes`) and look at what its line says."""
    lines = [line for line in TABLE.read_text(encoding="utf-8").splitlines() if re.match(r"\| [A-Z]+ \|", line)]
    assert lines == await rows(house)


FOR_ALL = r"/token/|/model/(list|info)$|/(encode|decode|token-count|chat-prompt|logits|plan|stop-generation)$"
"""Of Snug's own routes those that answer everybody who is let in."""


def test_the_table_says_what_it_should() -> None:
    table = written()
    assert len(table) > 80
    assert all(len(cells) == len(IDENTITIES) for cells in table.values())
    for (method, path), (nobody, wrong, person, administrator) in table.items():
        if path != "/login":
            assert nobody == wrong == "401", (method, path)
        if path.startswith("/v1/internal/"):
            assert administrator == "in"
            assert person == "403" or re.search(FOR_ALL, path) or method == "GET", path
    assert table["POST", "/v1/internal/model/load"] == ["401", "401", "403", "in"]
    assert table["POST", "/v1/chat/completions"] == ["401", "401", "in", "in"]
    assert table["POST", "/gradio_api/queue/join"] == ["401", "401", "in", "in"]
    assert table["GET", "/monitoring"] == ["401", "401", "404", "404"]


async def test_every_route_refuses_foreign_hosts_and_origins_whoever_asks(house: Doors) -> None:
    table, asked = written(), 0
    for (method, path), cells in table.items():
        for name, cell in zip(IDENTITIES, cells, strict=True):
            who = house.identity(name)
            for host in FOREIGN_HOSTS:
                status, told = await house.ask(method, path, [("host", host), *who])
                assert status == 421, (method, path, name, host)
                assert not any(header.startswith("access-control") for header in told)
            for host in OWN_HOSTS:
                origins = ("", f"http://{host.lower()}", *FOREIGN_ORIGINS)
                for origin in origins if host == HERE else origins[:1]:
                    sent = [("host", host), *who, *([("origin", origin)] if origin else [])]
                    status, told = await house.ask(method, path, sent)
                    asked += 1
                    expected = 403 if origin in FOREIGN_ORIGINS else 204 if cell == "in" else int(cell)
                    assert status == expected, (method, path, name, host, origin)
                    assert not any(header.startswith("access-control") for header in told), (path, origin)
                    assert told["x-content-type-options"] == "nosniff"
                    assert "frame-ancestors 'none'" in told["content-security-policy"]
    assert asked > 1500


async def test_a_path_that_nobody_listed_is_shut_or_asks_who_it_is(house: Doors) -> None:
    for path in ("/new", "/v1/internal/new", "/metrics/new", "/gradio_api/new", "/v1/new"):
        for name, expected in (("nobody", {401}), ("person", {403, 404, 204})):
            status, _ = await house.ask("GET", path, [("host", HERE), *house.identity(name)])
            assert status in expected, (path, name)
    status, _ = await house.ask("POST", "/v1/internal/new", [("host", HERE), *house.identity("person")])
    assert status == 403
