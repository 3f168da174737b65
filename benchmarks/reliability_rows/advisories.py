"""Known flaws of the libraries that Snug stands on, as the package index tells them: what pip-audit asks for."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
from packaging.requirements import Requirement

from benchmarks.common import ROOT


@dataclass(slots=True)
class Audit:
    """Of which libraries the index told something, of which not, and what it told."""

    answered: list[str] = field(default_factory=list)
    unanswered: list[str] = field(default_factory=list)
    flaws: list[str] = field(default_factory=list)


def pinned() -> dict[str, str]:
    """Name, in lower case, and version of every library of requirements.txt."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    wanted = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {one.name.lower(): next(iter(one.specifier)).version for one in wanted}


def package_index() -> httpx.Client:
    """A client of the index's JSON; pip knows where that is."""
    from pip._internal.models.index import PyPI

    return httpx.Client(base_url=PyPI.pypi_url, verify=ssl.create_default_context(), timeout=20)


def audit(versions: Mapping[str, str], index: httpx.Client) -> Audit:
    """Ask for each version; where the index has no page of a version, its page of the newest one, if it is that one."""
    found = Audit()
    for name, version in versions.items():
        page = _page(index, f"/{name}/{version}/json") or _page(index, f"/{name}/json")
        if page.get("info", {}).get("version") != version:
            found.unanswered.append(f"{name} {version}")
            continue
        found.answered.append(name)
        flaws = [flaw for flaw in page["vulnerabilities"] if not flaw.get("withdrawn")]
        found.flaws += [f"{name} {version}: {flaw['id']}, mended in {flaw['fixed_in']}" for flaw in flaws]
    return found


def _page(index: httpx.Client, path: str) -> dict[str, Any]:
    """What the index says; nothing where it does not answer."""
    try:
        answer = index.get(path)
        return dict(answer.json()) if answer.status_code == 200 else {}
    except (httpx.HTTPError, ValueError):
        return {}
