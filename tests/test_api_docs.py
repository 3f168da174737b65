"""The Python examples of docs/api.md run against a real server; docs/watching.md names the metrics that there are."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from modules.settings import Settings
from tests.api_desk import CHAT, FOX, desk_with, served
from tests.fakes import Script

DOCS = Path(__file__).parent.parent / "docs"


def python_examples() -> list[str]:
    return re.findall(r"```python\n(.*?)```", (DOCS / "api.md").read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("code", python_examples(), ids=lambda code: code.split()[1])
def test_every_python_example_runs(settings: Settings, capsys: pytest.CaptureFixture[str], code: str) -> None:
    with desk_with(settings, Script()) as desk, served(desk.app) as port:
        exec(compile(code.replace("localhost:7860", f"127.0.0.1:{port}"), "docs/api.md", "exec"), {})
        assert len(desk.engine.requests) >= 1
    assert FOX in capsys.readouterr().out


def test_the_documentation_names_every_metric_and_no_other(settings: Settings) -> None:
    with desk_with(settings, Script()) as desk, served(desk.app) as port:
        httpx.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=CHAT)
        text = httpx.get(f"http://127.0.0.1:{port}/metrics").text
    families = {
        family.name + ("_total" if family.type == "counter" else "")
        for family in text_string_to_metric_families(text)
        if family.name.startswith("snug_") and not family.name.endswith("_created")
    }
    table = (DOCS / "watching.md").read_text(encoding="utf-8").split("## Alive")[0]
    rows = [line.split(" | ")[0] for line in table.splitlines() if line.startswith("| `snug")]
    listed = {re.sub(r"\{.*", "", name) for row in rows for name in re.findall(r"`(snug_[^`]+)`", row)}
    assert listed == families
