"""Who asks: a person with an account, or, on a machine for one, whoever sits at it. A value, and the right to it.

The doors in front (api/doors/guard.py) put it into every request; page and API read it there and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from modules.errors import Forbidden, Unauthorized

STATE = "person"
"""Under which name a request's state holds who asks."""


@dataclass(frozen=True, slots=True)
class Person:
    """`owner` is whose conversations these are; `id` and `name` are "" where nobody has an account.

    `session` is what is kept of the browser session that this request came by.
    """

    id: str
    name: str
    owner: str
    admin: bool
    session: bytes = field(default=b"", repr=False, compare=False)

    def require_admin(self, deed: str) -> None:
        """Raise Forbidden, with `deed` ("Loading a model") named, for who has not the right of an administrator."""
        if not self.admin:
            raise Forbidden(
                f"{deed} is for administrators, and {self.name or 'this key'} is none.",
                remedy="Ask who runs this Snug.",
            )


THE_ONE = Person(id="", name="", owner="", admin=True)
"""Who asks on a machine for one: everybody is the same person, and may do everything."""

GUEST = Person(id="", name="", owner="", admin=False)
"""The same person by the secret for guests and programs: without the right of an administrator."""


def person_in(scope: Mapping[str, Any]) -> Person:
    """Who sent the request of this ASGI scope. Raises Unauthorized where no door has let anybody in."""
    found = scope.get("state", {}).get(STATE)
    if not isinstance(found, Person):
        raise Unauthorized("Nobody has been let in.", remedy="Log in first.")
    return found
