"""text-generation-webui's `state` and `history` ↔ what Snug knows of a reply: parameters, names, texts.

Pure. Only what a hook has changed is read back, and each value is checked like one that comes from the page.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from modules.messages import ChatMessage, Role
from modules.sampling import UNSAVED, GenerationParams

State = dict[str, Any]
BEGIN = "<|BEGIN-VISIBLE-CHAT|>"  # in place of a question where a chat begins with a greeting
_SAMPLING = tuple(name for name in GenerationParams.model_fields if name not in UNSAVED | {"stop"})


@dataclass(frozen=True, slots=True)
class Scene:
    """Who talks, and what the model is told before the chat; `command` is chat-instruct's."""

    name1: str
    name2: str
    context: str = ""
    custom_system_message: str = ""
    command: str = ""


_KEYS = {"name1": "name1", "name2": "name2", "context": "context", "custom_system_message": "custom_system_message",
         "command": "chat-instruct_command"}  # fmt: skip


def state_of(params: GenerationParams, scene: Scene, history: Mapping[str, Any], **more: Any) -> State:
    """The dict that hooks are given; `more` is put into it as it is."""
    return {
        **{name: getattr(params, name) for name in _SAMPLING},
        "do_sample": not params.greedy,
        "custom_stopping_strings": ", ".join(json.dumps(text) for text in params.stop),
        **{key: getattr(scene, name) for name, key in _KEYS.items()},
        "history": history,
        "stream": True,
        **more,
    }


def params_of(state: State, params: GenerationParams) -> tuple[GenerationParams, list[str]]:
    """The parameters as `state` has them, and what in it cannot be used."""
    wanted: dict[str, Any] = {}
    for name in _SAMPLING:
        if name in state and state[name] != getattr(params, name):
            wanted[name] = _whole(state[name]) if isinstance(getattr(params, name), int) else _fraction(state[name])
    problems = []
    stops = state.get("custom_stopping_strings", "")
    if stops != ", ".join(json.dumps(text) for text in params.stop):
        try:
            wanted["stop"] = tuple(json.loads(f"[{stops}]"))
        except (ValueError, TypeError):
            problems.append('custom_stopping_strings is not a list of texts like "a", "b"')
    if state.get("do_sample") is False and not params.greedy and "temperature" not in wanted:
        wanted["temperature"] = 0.0
    for name in tuple(wanted):
        try:
            GenerationParams.model_validate(params.model_dump() | {name: wanted[name]})
        except ValidationError as error:
            problems.append(f"{name}: {error.errors()[0]['msg']}, not {str(wanted.pop(name))[:40]!r}")
    return GenerationParams.model_validate(params.model_dump() | wanted), problems


def scene_of(state: State, scene: Scene) -> tuple[Scene, list[str]]:
    """Names and texts as `state` has them, and what in it cannot be used."""
    values, problems = {}, []
    for name, key in _KEYS.items():
        value = state.get(key, getattr(scene, name))
        values[name] = value if isinstance(value, str) else getattr(scene, name)
        if not isinstance(value, str):
            problems.append(f"{key} is {type(value).__name__}, not text")
    return Scene(**values), problems


def pairs(said: Sequence[tuple[ChatMessage, str]]) -> dict[str, Any]:
    """A history of what was said, each message with how the page shows it, as pairs of question and reply."""
    internal: list[list[str]] = []
    visible: list[list[str]] = []
    for turn, shown in said:
        if turn.role == "user":
            internal.append([turn.content, ""])
            visible.append([shown, ""])
        elif internal and not internal[-1][1]:
            internal[-1][1], visible[-1][1] = turn.content, shown
        else:
            internal.append([BEGIN if not internal else "", turn.content])
            visible.append(["", shown])
    return {"internal": internal, "visible": visible, "metadata": {}}


def turns_of(history: object) -> list[ChatMessage] | None:
    """What was said, as a hook has left it; None where it is no such history."""
    internal = history.get("internal") if isinstance(history, dict) else None
    if not isinstance(internal, list):
        return None
    turns: list[ChatMessage] = []
    for pair in internal:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            return None
        question, reply = pair
        if question.strip() and question != BEGIN:
            _say(turns, "user", question)
        if reply.strip():
            _say(turns, "assistant", reply)
    return turns


def _say(turns: list[ChatMessage], role: Role, text: str) -> None:
    """Add a message; two of one speaker become one, since many templates refuse them."""
    if turns and turns[-1].role == role:
        text = f"{turns.pop().content}\n\n{text}"
    turns.append(ChatMessage(role, text))


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _fraction(value: Any) -> Any:
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value
