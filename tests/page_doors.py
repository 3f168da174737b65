"""The page's doors as its script uses them, over HTTP: for tests of the whole program without a browser."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import httpx


class PageDoors:
    """One open page of the server at `base`; each has a session of its own."""

    def __init__(self, base: str) -> None:
        self._base = base
        self.new_session()
        config: dict[str, Any] = httpx.get(f"{base}/config", timeout=30).json()
        self._homes: dict[str, int] = {}
        for part in config["components"]:
            for name in part["props"].get("server_fns") or ():
                self._homes.setdefault(name, part["id"])

    def new_session(self) -> None:
        """As after a reload."""
        self._session = uuid4().hex

    def ask(self, name: str, **body: Any) -> dict[str, Any]:
        """What the door `name` answers; the frame's own come before those of the tabs."""
        request = {
            "session_hash": self._session, "component_id": self._homes[name], "fn_name": name, "data": body,
        }  # fmt: skip
        answer = httpx.post(f"{self._base}/gradio_api/component_server/", json=request, timeout=60)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found
