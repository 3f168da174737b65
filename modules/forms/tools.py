"""Tools that a client offers to a model, and the form of the calls that a reply is held to: values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Choice = Literal["none", "auto", "required"]
CALLS_AT_ONCE = 16
"""How many calls a reply can consist of that has to call: a small model that may go on calling does."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A function of the client's. `parameters` is the JSON schema of its arguments, {} where it takes any."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def told(self) -> dict[str, Any]:
        """The tool as chat templates expect it."""
        function: dict[str, Any] = {"name": self.name}
        if self.description:
            function["description"] = self.description
        return {"type": "function", "function": function | {"parameters": dict(self.parameters) or EMPTY}}


EMPTY: dict[str, Any] = {"type": "object", "properties": {}}
"""The schema of no arguments in particular."""


@dataclass(frozen=True, slots=True)
class Offer:
    """The tools of one request. With `only` the model must call the tool of that name; `parallel`: several at once."""

    tools: tuple[Tool, ...]
    choice: Choice = "auto"
    only: str = ""
    parallel: bool = True

    @property
    def must_call(self) -> bool:
        """Whether the reply has to be a call."""
        return bool(self.only) or self.choice == "required"

    @property
    def callable(self) -> tuple[Tool, ...]:
        """The tools that may be called."""
        return tuple(tool for tool in self.tools if not self.only or tool.name == self.only)


@dataclass(frozen=True, slots=True)
class CallPattern:
    """One way to write a call: `before`, arguments of the JSON schema `schema`, `after`."""

    before: str
    schema: str
    after: str


@dataclass(frozen=True, slots=True)
class Tags:
    """Arguments that each stand between tags: `key_before` KEY `key_after` VALUE `value_after`. Strings stand as they
    are, all else as JSON. `closing` ends a call: neither it nor `value_after` can stand in a string.
    """

    key_before: str
    key_after: str
    value_after: str
    closing: str


@dataclass(frozen=True, slots=True)
class CallShape:
    """A reply that consists of calls: `lead`, one of `calls`, more of them each after `between` where `several` may be
    (CALLS_AT_ONCE in all), `trail`. Control tokens are written as their texts. With `tags` arguments are no JSON
    object, but tagged.
    """

    calls: tuple[CallPattern, ...]
    lead: str = ""
    between: str = ""
    trail: str = ""
    several: bool = False
    tags: Tags | None = None


def shape_from(value: Mapping[str, Any]) -> CallShape:
    """The shape of which `value` is dataclasses.asdict."""
    calls, tags = tuple(CallPattern(**call) for call in value["calls"]), value["tags"]
    return CallShape(**(dict(value) | {"calls": calls, "tags": Tags(**tags) if tags else None}))
