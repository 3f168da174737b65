"""From replies to the JSON of OpenAI's Responses API: whole responses, and the typed events of a stream. Pure.

A stream is response.created and in_progress; for each item of output its beginning, its text and its end; then
response.completed, incomplete or failed. Events are numbered.
"""

from __future__ import annotations

import time
import uuid
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Literal

from modules.api.errors import error_object
from modules.api.shapes import Json, token_json
from modules.api.single import End
from modules.api.sse import event
from modules.chat.reply_reading import CallArguments, CallBegun, Part, Said, Thought
from modules.engine.base import TokenLogprob, Usage
from modules.errors import SnugError

Kind = Literal["reasoning", "message", "function_call"]
_MOST_UNTOLD = 4096  # tokens of a stream; more than a reader of replies holds back
_PREFIXES: dict[Kind, str] = {"reasoning": "rs", "message": "msg", "function_call": "fc"}
_EVENTS: dict[Kind, str] = {
    "reasoning": "response.reasoning_text", "message": "response.output_text",
    "function_call": "response.function_call_arguments",
}  # fmt: skip


@dataclass(slots=True)
class Item:
    """One item of a response's output: a thought, the message, or the `call` of a tool, of a `namespace` or of none.
    A thought that is `summed` is told where clients look for the summary of one.
    """

    kind: Kind
    text: str = ""
    call: CallBegun | None = None
    namespace: str = ""
    summed: bool = False
    key: str = ""
    logprobs: list[Json] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.key = self.key or f"{_PREFIXES[self.kind]}_{uuid.uuid4().hex}"

    def json(self, status: str, *, empty: bool = False) -> Json:
        """The item; `empty` before it has content."""
        item: Json = {"id": self.key, "type": self.kind, "status": status}
        if self.call is not None:
            told = {"call_id": self.call.id, "name": self.call.name, "arguments": "" if empty else self.text}
            return item | told | ({"namespace": self.namespace} if self.namespace else {})
        parts = [] if empty else [self.part]
        if self.kind == "reasoning":
            return item | ({"summary": parts} if self.summed else {"content": parts, "summary": []})
        return item | {"content": parts, "role": "assistant"}

    @property
    def part(self) -> Json:
        """The one part of its content."""
        if self.kind == "reasoning":
            return {"type": "summary_text" if self.summed else "reasoning_text", "text": self.text}
        return {"type": "output_text", "text": self.text, "annotations": [], "logprobs": list(self.logprobs)}

    @property
    def text_event(self) -> str:
        """What events that tell more of it begin with."""
        return "response.reasoning_summary_text" if self.summed else _EVENTS[self.kind]

    @property
    def part_event(self) -> str:
        """What events that begin and end its part begin with."""
        return "response.reasoning_summary_part" if self.summed else "response.content_part"

    @property
    def part_place(self) -> Json:
        """Where its one part stands, in events; nowhere in a call."""
        return {} if self.call is not None else {"summary_index" if self.summed else "content_index": 0}


class Output:
    """The items of one response as they grow."""

    def __init__(self, shape: ResponseShape) -> None:
        self.items: list[Item] = []
        self._shape = shape

    def add(self, part: Part) -> tuple[bool, str]:
        """Take in a part: whether it began an item, and what it added to the last one."""
        if isinstance(part, CallBegun):
            self.items.append(Item("function_call", call=part, namespace=self._shape.namespaces.get(part.name, "")))
            return True, ""
        kind: Kind = "reasoning" if isinstance(part, Thought) else "message"
        begins = isinstance(part, (Thought, Said)) and (not self.items or self.items[-1].kind != kind)
        if begins:
            self.items.append(Item(kind, summed=kind == "reasoning" and self._shape.sums_up))
        text = part.text if isinstance(part, (Thought, Said, CallArguments)) else ""
        self.items[-1].text += text
        return begins, text

    @property
    def lacks_message(self) -> bool:
        """Whether there is neither a message nor a call."""
        return not any(item.kind != "reasoning" for item in self.items)


@dataclass(frozen=True, slots=True)
class ResponseShape:
    """How one response is told; `repeated` are the fields that repeat what the client sent, `namespaces` those of its
    tools that have one, by their names. `sums_up`: thoughts are told as their own summaries.
    `alternatives` beside each token of the message, None for no log-probabilities.
    """

    model: str
    repeated: Json
    namespaces: Mapping[str, str] = field(default_factory=dict)
    sums_up: bool = False
    alternatives: int | None = None
    key: str = field(default_factory=lambda: f"resp_{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, parts: Sequence[Part], end: End) -> Json:
        """A response in one piece."""
        output = Output(self)
        for part in parts:
            output.add(part)
        if output.lacks_message:
            output.add(Said(""))
        untold = Untold(end.logprobs)
        for item in output.items:
            told = untold.take(item.text)
            item.logprobs = self.tokens(told) if item.kind == "message" else []
        return self.at_end(output.items, end)

    def tokens(self, logprobs: Sequence[TokenLogprob]) -> list[Json]:
        """Log-probabilities as they are told, if they are."""
        return [] if self.alternatives is None else [token_json(token, self.alternatives) for token in logprobs]

    def events(self, prompt_tokens: int) -> ResponseEvents:  # noqa: ARG002 - counts are told at the end alone
        """The response as a stream."""
        return ResponseEvents(self)

    def at(self, status: str, output: Sequence[Json] = (), usage: Json | None = None, **more: object) -> Json:
        """The response as it is now."""
        return self.repeated | {
            "id": self.key, "object": "response", "created_at": self.created, "completed_at": None, "model": self.model,
            "status": status, "output": list(output), "usage": usage, "error": None, "incomplete_details": None,
            "previous_response_id": None, "store": False, "background": False,
            "service_tier": "default",
        } | more  # fmt: skip

    def at_end(self, items: Sequence[Item], end: End) -> Json:
        """The response with all that came, and why it ended."""
        whole = end.finished.reason != "length"
        output = [item.json("completed" if whole or item is not items[-1] else "incomplete") for item in items]
        details = None if whole else {"reason": "max_output_tokens"}
        usage = usage_json(end.finished.usage, items)
        done_at = int(time.time()) if whole else None
        return self.at(
            "completed" if whole else "incomplete", output, usage, incomplete_details=details, completed_at=done_at
        )


class Untold:
    """The tokens of a reply that were not told yet with the text that they made. Marks around thoughts and calls are
    part of no text.
    """

    def __init__(self, logprobs: Sequence[TokenLogprob] = ()) -> None:
        self._tokens = list(logprobs)

    def add(self, logprobs: Sequence[TokenLogprob]) -> None:
        """More of them."""
        self._tokens = [*self._tokens, *logprobs][-_MOST_UNTOLD:]

    def take(self, text: str) -> list[TokenLogprob]:
        """Those that made `text`, which comes next; what is before them is told no more."""
        start = "".join(token.adds for token in self._tokens).find(text) if text else -1
        if start < 0:
            return []
        ends = list(accumulate(len(token.adds) for token in self._tokens))
        first, last = bisect_left(ends, start), bisect_left(ends, start + len(text))
        first += bool(start) and ends[first] == start  # that token ends before; parts of a character add nothing
        told, self._tokens = self._tokens[first : last + 1], self._tokens[last + 1 :]
        return told


class ResponseEvents:
    """The events of one stream."""

    def __init__(self, shape: ResponseShape) -> None:
        self._shape = shape
        self._output = Output(shape)
        self._open: Item | None = None
        self._number = -1
        self._untold = Untold()

    def begin(self, cached_tokens: int) -> bytes:  # noqa: ARG002 - told at the end
        """What every stream begins with."""
        now = self._shape.at("in_progress")
        return self._event("response.created", response=now) + self._event("response.in_progress", response=now)

    def parts(self, parts: Sequence[Part], logprobs: Sequence[TokenLogprob] = ()) -> bytes:
        """What the client hears of more of the reply; tokens are told with the text that they are part of."""
        self._untold.add(logprobs)
        return b"".join(self._part(part) for part in parts)

    def end(self, end: End, degraded: Json) -> bytes:
        """What every stream ends with that ends well."""
        rest = self._part(Said("")) if self._output.lacks_message else b""
        at_end = self._shape.at_end(self._output.items, end) | degraded
        rest += self._stop(at_end["status"])
        return rest + self._event(f"response.{at_end['status']}", response=at_end)

    def failure(self, error: SnugError, request_id: str) -> bytes:  # noqa: ARG002 - this dialect tells it as header
        """The last event of a stream that `error` ends."""
        told = error_object(error)["error"]
        output = [item.json("incomplete") for item in self._output.items]
        return self._event("response.failed", response=self._shape.at("failed", output, error=told))

    def _part(self, part: Part) -> bytes:
        begins, text = self._output.add(part)
        told = self._shape.tokens(self._untold.take(text))
        begun = self._stop("completed", before=1) + self._start() if begins else b""
        if not text or self._open is None:
            return begun
        if self._open.kind == "message":
            self._open.logprobs += told
        return begun + self._in_item(f"{self._open.text_event}.delta", delta=text, **self._extra(told))

    def _start(self) -> bytes:
        item = self._open = self._output.items[-1]
        added = self._in_output("response.output_item.added", item=item.json("in_progress", empty=True))
        if item.call is not None:
            return added
        empty = Item(item.kind, summed=item.summed).part
        return added + self._in_item(f"{item.part_event}.added", **item.part_place, part=empty)

    def _stop(self, status: str, *, before: int = 0) -> bytes:
        """The end of the item that is open, if one is; `before`: how many items have begun after it."""
        item, self._open = self._open, None
        if item is None:
            return b""
        place = {"output_index": len(self._output.items) - 1 - before, "item_id": item.key}
        name = item.text_event
        if item.call is not None:
            done = self._event(f"{name}.done", **place, name=item.call.name, arguments=item.text)
        else:
            extra: Json = {"logprobs": list(item.logprobs)} if item.kind == "message" else {}
            done = self._event(f"{name}.done", **place, **item.part_place, text=item.text, **extra)
            done += self._event(f"{item.part_event}.done", **place, **item.part_place, part=item.part)
        last = {"output_index": place["output_index"], "item": item.json(status)}
        return done + self._event("response.output_item.done", **last)

    def _extra(self, told: Sequence[Json]) -> Json:
        """What deltas of the open item hold besides: of a message the log-probabilities that are `told` with it."""
        if self._open is None or self._open.call is not None:
            return {}
        return self._open.part_place | ({"logprobs": told} if self._open.kind == "message" else {})

    def _in_item(self, name: str, /, **fields: Any) -> bytes:
        return self._in_output(name, item_id=self._output.items[-1].key, **fields)

    def _in_output(self, name: str, /, **fields: Any) -> bytes:
        return self._event(name, output_index=len(self._output.items) - 1, **fields)

    def _event(self, name: str, /, **fields: Any) -> bytes:
        self._number += 1
        return event({"type": name, "sequence_number": self._number} | fields, name)


def usage_json(usage: Usage, items: Sequence[Item]) -> Json:
    """The Responses API's `usage`; tokens of thoughts by their share of the text."""
    thought = sum(len(item.text) for item in items if item.kind == "reasoning")
    share = thought / (sum(len(item.text) for item in items) or 1)
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": round(usage.completion_tokens * share)},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
