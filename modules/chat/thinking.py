"""What a thinking model writes before its answer: where it ends, and how much of it a template lets one choose.

The marks are those that models in use write, and the variables those that their templates read.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

MARKS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|channel|>analysis<|message|>", "<|start|>assistant<|channel|>final<|message|>"),
)
LONGEST_MARK = max(len(mark) for pair in MARKS for mark in pair)
EFFORTS = ("low", "medium", "high")
# An opening within a statement begins another: text of openings alone is read once, not once for each.
_STATEMENT = re.compile(r"\{[%{]((?:(?!\{[%{]|[%}]\}).)*)[%}]\}", re.DOTALL)
_LITERAL = re.compile(r"'[^']*'|\"[^\"]*\"")
_SWITCHES = ("enable_thinking", "thinking")


@dataclass(frozen=True, slots=True)
class Parts:
    """A reply as thought and answer. `thinking` while the thought has not ended."""

    thought: str
    answer: str
    thinking: bool = False


class Stopwatch:
    """How long a growing reply thinks, looking at each new stretch of it once."""

    def __init__(self, text: str = "", *, now: Callable[[], float] = time.monotonic) -> None:
        """`text` is what the reply holds already; a thought in it is not measured again."""
        self._now = now
        self._began: float | None = None
        self._closing = ""
        self._done = bool(text)
        self.seconds = 0.0

    def see(self, text: str, new: int) -> None:
        """The whole text, of which the last `new` characters have just come."""
        if self._done:
            return
        if self._began is None:
            self._began = self._now()
        if not self._closing:
            begin = text.lstrip()
            self._closing = next((closing for opening, closing in MARKS if begin.startswith(opening)), "")
            self._done = not self._closing and not any(opening.startswith(begin) for opening, _ in MARKS)
            return
        self.seconds = self._now() - self._began
        self._done = text.find(self._closing, max(0, len(text) - new - len(self._closing))) >= 0


def split(text: str) -> Parts:
    """The parts of a reply that begins with a thought; any other is all answer."""
    begin = text.lstrip()
    for opening, closing in MARKS:
        if begin.startswith(opening):
            thought, closed, answer = begin[len(opening) :].partition(closing)
            return Parts(thought.strip(), answer.lstrip(), not closed)
    return Parts("", text)


def answer_of(text: str) -> str:
    """A reply without its thought: what is told to the model of it later."""
    parts = split(text)
    return parts.answer if parts.thought or parts.answer != text else text


def opened_by(prompt: str) -> str:
    """The mark with which a prompt ends, where the template itself begins the thought ("" mostly)."""
    end = prompt[-LONGEST_MARK - 8 :]
    for opening, _ in MARKS:
        if end.rstrip().endswith(opening):
            return end[end.rindex(opening) :]
    return ""


def choices(template: str) -> tuple[str, ...]:
    """What one may choose of thinking with this template, nothing mostly."""
    if reads(template, "reasoning_effort"):
        return EFFORTS
    return ("off", "on") if any(reads(template, name) for name in _SWITCHES) else ()


def choice_for(template: str, effort: str) -> str:
    """The choice that comes next to OpenAI's `reasoning_effort`; "" for "" and where the template offers none."""
    offered = choices(template)
    if not effort or not offered:
        return ""
    if offered != EFFORTS:
        return "off" if effort in ("none", "minimal") else "on"
    return effort if effort in EFFORTS else "low" if effort in ("none", "minimal") else "high"


def variables(template: str, choice: str) -> dict[str, Any]:
    """The template's variables for a choice; none for "" or for one that it does not offer."""
    if not choice or choice not in choices(template):
        return {}
    if choice in EFFORTS:
        return {"reasoning_effort": choice}
    return {name: choice == "on" for name in _SWITCHES if reads(template, name)}


def reads(template: str, name: str) -> bool:
    """Whether one of the template's statements reads a variable of that name."""
    word = re.compile(rf"(?<![\w.]){name}(?![\w(])")
    return any(word.search(_LITERAL.sub("", statement)) for statement in _STATEMENT.findall(template))
