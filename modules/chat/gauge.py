"""How full the context is, and what would be left out, from counts of each message that are kept: cheap while typing.

The exact prompt is what preview.py shows. What a template adds to a message is measured once a template.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

from modules.chat.forms import Form
from modules.chat.prompts import PromptEngine, Prompts, free_tokens
from modules.errors import BadChatTemplate, ContextLengthExceeded
from modules.messages import ChatMessage
from modules.on_behalf import own_key

_USUAL_OVERHEAD = 5
_KEPT = 1000  # templates; people write their own
_SAMPLE = "Hello."
COUNTED_CONTEXTS = 2  # of the newest messages; the rest is estimated


@dataclass(frozen=True, slots=True)
class Gauge:
    """Tokens of a prompt before anything is left out, of a context of so many, of which `reply` stay free.

    `dropped` of the oldest messages will not fit. All are 0 where the context is not known.
    """

    tokens: int = 0
    context: int = 0
    reply: int = 0
    dropped: int = 0


@dataclass(frozen=True, slots=True)
class _Overheads:
    """Tokens that a template adds: once, to a system message, and to each other message."""

    once: int
    system: int
    message: int


class Gauges:
    """Measures prompts. Safe to use from any thread."""

    def __init__(self, prompts: Prompts) -> None:
        self._prompts = prompts
        self._known: WeakKeyDictionary[PromptEngine, dict[bytes, _Overheads]] = WeakKeyDictionary()
        self._lock = threading.Lock()

    def measure(self, engine: PromptEngine, turns: Sequence[ChatMessage], form: Form, *, max_new_tokens: int) -> Gauge:
        """The gauge for a prompt of these turns."""
        info = engine.info
        counts = info.takes == "tokens" and info.generates and not info.is_encoder_decoder
        if not counts or not info.context_tokens:
            return Gauge()
        overheads = self._overheads(engine, form)
        costs = self._costs(engine, turns, form, overheads)
        total = overheads.once + sum(costs)
        if form.command:
            total += overheads.message + sum(self._prompts.count(engine, text) for text in _around(form))
        free = free_tokens(info, max_new_tokens)
        return Gauge(total, info.context_tokens, free, _dropped(turns, costs, total - (info.context_tokens - free)))

    def _costs(
        self, engine: PromptEngine, turns: Sequence[ChatMessage], form: Form, overheads: _Overheads
    ) -> list[int]:
        """Tokens of each turn; those that are far beyond the context are estimated by how long they are.

        What is left out is the same: it depends on the turns that fit.
        """
        costs, counted, characters = [0] * len(turns), 0, 1
        for number in reversed(range(len(turns))):
            turn = turns[number]
            if turn.role == "system" or counted <= COUNTED_CONTEXTS * engine.info.context_tokens:
                costs[number] = self._cost(engine, turn, form, overheads)
                counted += costs[number]
                characters += len(turn.content)
            else:
                costs[number] = 1 + len(turn.content) * counted // characters
        return costs

    def _cost(self, engine: PromptEngine, turn: ChatMessage, form: Form, overheads: _Overheads) -> int:
        if turn.role == "system":
            return self._prompts.count(engine, turn.content) + overheads.system
        shown = sum(self._prompts.picture_tokens(engine, picture) for picture in turn.pictures)
        if form.command:
            return shown + self._prompts.count(engine, f"{form.name_of(turn)}: {turn.content}\n")
        return shown + self._prompts.count(engine, turn.content) + overheads.message

    def _overheads(self, engine: PromptEngine, form: Form) -> _Overheads:
        asked = json.dumps([form.template, dict(form.variables), form.user, form.char], sort_keys=True)
        key = own_key(asked)
        with self._lock:
            known = self._known.setdefault(engine, {})
            if key in known:
                return known[key]
        measured = self._measured(engine, replace(form, command="", closing=""))
        with self._lock:
            if len(known) >= _KEPT:
                known.clear()
            known[key] = measured
        return measured

    def _measured(self, engine: PromptEngine, form: Form) -> _Overheads:
        system, user, reply = (ChatMessage(role, _SAMPLE) for role in ("system", "user", "assistant"))
        sample = self._prompts.count(engine, _SAMPLE)
        try:
            one, three, told = (
                len(engine.encode(self._prompts.render(engine, turns, form).pieces)) - len(turns) * sample
                for turns in ([user], [user, reply, user], [system, user])
            )
        except (BadChatTemplate, ContextLengthExceeded):
            return _Overheads(_USUAL_OVERHEAD, _USUAL_OVERHEAD, _USUAL_OVERHEAD)
        message = max(0, (three - one + 1) // 2)
        return _Overheads(max(0, one - message), max(0, told - one), message)


def _around(form: Form) -> tuple[str, str]:
    """What chat-instruct says beside the chat itself."""
    return form.arranged([])[-1].content, form.prefix


def _dropped(turns: Sequence[ChatMessage], costs: Sequence[int], excess: int) -> int:
    """How many of the oldest turns go: up to a user message each time, as prompts.py drops them."""
    said = [number for number, turn in enumerate(turns) if turn.role != "system"]
    users = [number for number in said if turns[number].role == "user"]
    if not said or not users:
        return 0
    at = said[0]
    for start in (number for number in users if number > at):
        if excess <= 0:
            break
        excess -= sum(costs[at:start])
        at = start
    return at - said[0]
