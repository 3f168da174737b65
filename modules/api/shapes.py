"""From replies to OpenAI's JSON: whole answers and the chunks of a stream.

Two shapes share one face: ChatShape for /v1/chat/completions, CompletionShape for /v1/completions. A shape serves one
request, and its replies are told to it in order.
"""

from __future__ import annotations

import math
import time
import uuid
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Protocol

from modules.api.replies import Collected
from modules.chat.reply_reading import CallArguments, CallBegun, Part, ReplyReader, Said, Thought, put_together
from modules.engine.base import Degraded, Delta, Finished, FinishReason, Timings, TokenLogprob, Usage
from modules.messages import ToolCall

Json = dict[str, Any]

_REASONS: dict[FinishReason, str] = {"stop": "stop", "length": "length", "cancelled": "stop", "error": "stop"}


class Shape(Protocol):
    """How one route writes a choice."""

    @property
    def object(self) -> str:
        """The type of the whole answer."""

    @property
    def chunk_object(self) -> str:
        """The type of one chunk of a stream."""

    @property
    def id_prefix(self) -> str:
        """What ids of answers begin with."""

    def opening(self, index: int) -> Json:
        """The first chunk's choice."""

    def parts(self, index: int, delta: Delta) -> list[Json]:
        """The choices of chunks with new text."""

    def closing(self, index: int, finished: Finished) -> list[Json]:
        """The last chunks' choices: the very last is the only one with a finish reason."""

    def settled(self, index: int, text: str = "") -> bool:
        """Whether nothing more of a reply counts; `text` is new of one that is not streamed."""

    def notice(self, index: int) -> Json:
        """The choice of a chunk that says nothing itself."""

    def whole(self, index: int, reply: Collected) -> Json:
        """The choice of an answer in one piece."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """What every chunk of one answer shares; `model` is the name of the model that really answers."""

    shape: Shape
    model: str
    key: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def id(self) -> str:
        """What the answer goes by."""
        return f"{self.shape.id_prefix}-{self.key}"

    def whole(self, replies: Sequence[Collected], usage: Usage) -> Json:
        """An answer in one piece."""
        choices = [
            self.shape.whole(index, reply) | degraded_json(reply.degraded) for index, reply in enumerate(replies)
        ]
        return self._around(self.shape.object, choices) | {"usage": usage_json(usage)}

    def chunk(self, choice: Json) -> Json:
        """One chunk of a stream."""
        return self._around(self.shape.chunk_object, [choice])

    def usage_chunk(self, usage: Usage) -> Json:
        """The chunk that carries the token counts and no text."""
        return self._around(self.shape.chunk_object, []) | {"usage": usage_json(usage)}

    def _around(self, kind: str, choices: list[Json]) -> Json:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": "snug",  # Cerebras' library reads no stream without it
            "service_tier": "default",  # nor litellm's groq any answer
            "choices": choices,
        }


@dataclass(frozen=True, slots=True)
class ChatShape:
    """Choices of /v1/chat/completions; `alternatives` beside each token, None for no log-probabilities.

    `readers` part each reply into thought, answer and calls.
    """

    alternatives: int | None
    readers: Sequence[ReplyReader]
    heard: defaultdict[int, list[Part]] = field(default_factory=lambda: defaultdict(list))
    object: str = "chat.completion"
    chunk_object: str = "chat.completion.chunk"
    id_prefix: str = "chatcmpl"

    def opening(self, index: int) -> Json:
        return _choice(index, delta={"role": "assistant", "content": ""})

    def parts(self, index: int, delta: Delta) -> list[Json]:
        told = [_delta(part) for part in self.readers[index].feed(delta.text)]
        logprobs = self._logprobs(delta.logprobs) if delta.logprobs or told else None
        if not told and logprobs:
            told = [{"content": ""}]
        return [
            _choice(index, delta=one, logprobs=logprobs if number == 0 else None) for number, one in enumerate(told)
        ]

    def closing(self, index: int, finished: Finished) -> list[Json]:
        rest = [_choice(index, delta=_delta(part)) for part in self.readers[index].end()]
        return [*rest, self._ended(index, _choice(index, finished, delta={}))]

    def settled(self, index: int, text: str = "") -> bool:
        reader = self.readers[index]
        if text:
            self.heard[index] += reader.feed(text)
        return reader.done

    def notice(self, index: int) -> Json:
        return _choice(index, delta={"content": ""})

    def whole(self, index: int, reply: Collected) -> Json:
        read = put_together([*self.heard[index], *self.readers[index].end()])
        message: Json = {"role": "assistant", "content": read.answer, "refusal": None}
        if read.thought:
            message["reasoning_content"] = read.thought
        if read.calls:
            message |= {"content": read.answer or None, "tool_calls": [_call(call) for call in read.calls]}
        choice = _choice(index, reply.end, message=message, logprobs=self._logprobs(reply.logprobs))
        return self._ended(index, choice)

    def _ended(self, index: int, choice: Json) -> Json:
        """`choice`, whose reply ended with calls if it made any and was not cut."""
        called = self.readers[index].calls and choice["finish_reason"] == "stop"
        return choice | ({"finish_reason": "tool_calls"} if called else {})

    def _logprobs(self, tokens: Sequence[TokenLogprob]) -> Json | None:
        if self.alternatives is None:
            return None
        return {
            "content": [token_json(token, self.alternatives) for token in tokens],
            "refusal": None,
        }


@dataclass(frozen=True, slots=True)
class CompletionShape:
    """Choices of /v1/completions; `echoes` holds the text that each choice begins with ("" without echo).

    `ends` is for each choice where the text of the tokens told so far ends; what may be a stop string is not sent yet.
    """

    alternatives: int | None
    echoes: tuple[str, ...]
    ends: dict[int, int] = field(default_factory=dict)
    object: str = "text_completion"
    chunk_object: str = "text_completion"
    id_prefix: str = "cmpl"

    def opening(self, index: int) -> Json:
        return _choice(index, text=self.echoes[index])

    def parts(self, index: int, delta: Delta) -> list[Json]:
        return [_choice(index, text=delta.text, logprobs=self._logprobs(index, delta.logprobs))]

    def closing(self, index: int, finished: Finished) -> list[Json]:
        return [_choice(index, finished, text="")]

    def settled(self, index: int, text: str = "") -> bool:  # noqa: ARG002 - all of it counts
        return False

    def notice(self, index: int) -> Json:
        return _choice(index, text="")

    def whole(self, index: int, reply: Collected) -> Json:
        echo = self.echoes[index]
        logprobs = self._logprobs(index, reply.logprobs)
        if logprobs is not None and reply.scored:
            scored = self._told(reply.scored, _offsets_in(echo, reply.scored))
            logprobs = {name: scored[name] and scored[name] + logprobs[name] for name in logprobs}
        return _choice(index, reply.end, text=echo + reply.text, logprobs=logprobs)

    def _logprobs(self, index: int, tokens: Sequence[TokenLogprob]) -> Json | None:
        if self.alternatives is None:
            return None
        start = self.ends.setdefault(index, len(self.echoes[index]))
        *offsets, self.ends[index] = accumulate((len(token.adds) for token in tokens), initial=start)
        return self._told(tokens, offsets)

    def _told(self, tokens: Sequence[TokenLogprob], offsets: list[int]) -> Json:
        return {
            "tokens": [token.text for token in tokens],
            "token_logprobs": [_number(token.logprob) for token in tokens],
            "top_logprobs": [self._top(token) for token in tokens] if self.alternatives else None,
            "text_offset": offsets,
        }

    def _top(self, token: TokenLogprob) -> Json | None:
        """The alternatives by their texts; of those that look alike, the likeliest. None where nothing came before."""
        likeliest_last = reversed(token.top[: self.alternatives])
        return None if math.isnan(token.logprob) else {text: _number(value) for _, text, value in likeliest_last}


def _offsets_in(text: str, tokens: Sequence[TokenLogprob]) -> list[int]:
    """Where each token of a prompt begins in its `text`; 0 for what the tokenizer put before that."""
    ends = [0, *accumulate(len(token.adds) for token in tokens)]
    whole = "".join(token.adds for token in tokens)
    before = len(whole) - len(text) if whole.endswith(text) else 0
    return [min(max(0, end - before), len(text)) for end in ends[:-1]]


def _number(logprob: float) -> float | None:
    """As JSON knows it; OpenAI's own value for "very unlikely" is -9999."""
    return None if math.isnan(logprob) else max(logprob, -9999.0)


def _delta(part: Part) -> Json:
    """What is new, as a stream tells it."""
    match part:
        case Thought(text):
            return {"reasoning_content": text}
        case Said(text):
            return {"content": text}
        case CallBegun(index, call_id, name):
            function = {"name": name, "arguments": ""}
            return {"tool_calls": [{"index": index, "id": call_id, "type": "function", "function": function}]}
        case CallArguments(index, text):
            return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}


def _call(call: ToolCall) -> Json:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def usage_json(usage: Usage) -> Json:
    """OpenAI's `usage`."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def degraded_json(events: Sequence[Degraded]) -> Json:
    """Snug's own addition: what the engine had to give up for a reply, and why; nothing where it did not."""
    return {"degraded": [{"what": event.what, "why": event.why} for event in events]} if events else {}


def _choice(index: int, finished: Finished | None = None, *, logprobs: Json | None = None, **content: object) -> Json:
    choice: Json = {"index": index, **content, "logprobs": logprobs, "finish_reason": None}
    if finished is not None:
        choice |= {"finish_reason": _REASONS[finished.reason], "timings": _timings_json(finished.timings)}
    return choice


def _timings_json(timings: Timings) -> Json:
    """Snug's own addition: seconds, and decode speed."""
    return {
        "queue_s": round(timings.queue_s, 4),
        "prefill_s": round(timings.prefill_s, 4),
        "first_token_s": round(timings.first_token_s, 4),
        "decode_s": round(timings.decode_s, 4),
        "tokens_per_s": round(timings.tokens_per_s, 2),
        "drafted_tokens": timings.drafted_tokens,
        "accepted_tokens": timings.accepted_tokens,
    }


def token_json(token: TokenLogprob, alternatives: int) -> Json:
    """A token and its alternatives, each with its own bytes: texts alone lose parts of characters."""
    texts = [token.text, *(text for _, text, _ in token.top)]
    spelt = token.spelt or [text.encode() for text in texts]
    values = [token.logprob, *(value for *_, value in token.top)]
    own, *top = (_token(one, value) for one, value in zip(spelt, values, strict=True))
    return own | {"top_logprobs": top[:alternatives]}


def _token(spelt: bytes, logprob: float) -> Json:
    return {"token": spelt.decode(errors="replace"), "logprob": _number(logprob), "bytes": list(spelt)}
