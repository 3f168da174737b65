"""One request to a server: what to ask of it, its events as ours.

What a server calls reasoning stands in the reply as <think>…</think>, and is left out of what it is sent of earlier
replies, as such servers expect.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from modules.engine.base import Emit, FinishReason, GenerationRequest, TokenLogprob, Usage, Words
from modules.engine.remote.client import DONE
from modules.engine.remote.complaints import MAX_WORDS
from modules.engine.remote.connecting import Found
from modules.engine.remote.dialect import SEPARATING, ask_for, continuing, counts_asked_for, kept_apart
from modules.engine.telling import Telling, spelt, with_text
from modules.engine.text import ReadyText
from modules.messages import ChatMessage

UNKNOWN_LENGTH = 2**31
MOST_NOTICES = 16
LONGEST_TOKEN_CHARACTERS = 256  # no tokenizer packs more of a real text into one token
_THOUGHT = re.compile(r"\A\s*<think>.*?</think>\s*", re.DOTALL)
_THINK, _THOUGHT_OUT = "<think>\n", "\n</think>\n\n"


class RemoteReply(Telling):
    """One request: a server's chunks → our events."""

    def __init__(
        self, request: GenerationRequest, emit: Emit, found: Found, grammar: str = "", *, shared: bool = False
    ) -> None:
        """`grammar`: the GBNF that it follows where that is for llama-server or another Snug to hold. `shared`: others
        ask this server too, so that what it knew of the prompt may be theirs. Raises BadValue for what this server
        cannot do at all."""
        self._text = ReadyText(request.params.stop)
        self._found = found
        self._tells_cached = found.kind in SEPARATING or not shared
        self._words = request.words
        chat = request.words is not None and bool(request.words.messages)
        longest = found.context_tokens or UNKNOWN_LENGTH
        held = len(request.prompt_ids) + len(request.reply_ids)
        super().__init__(request, emit, self._text, held=held, longest=longest)
        self._asked = ask_for(found.kind, request.params, chat=chat, context_tokens=longest, grammar=grammar)
        self._going_on = continuing(found.kind) if chat and request.words and request.words.reply_start else {}
        self.told = self._asked.told
        self.ended: FinishReason | None = None
        self.on_cancel: Callable[[], None] = lambda: None
        self._written = self._characters = self._notices = 0
        self._counted: Mapping[str, Any] = {}
        self._thinking = False

    @property
    def path(self) -> str:
        """The route to ask."""
        return "/chat/completions" if self._words is not None and self._words.messages else "/completions"

    @property
    def body(self) -> dict[str, Any]:
        """What to ask of it."""
        asked = {
            "stream": True, "max_tokens": self.limit, **self._asked.fields, **counts_asked_for(self._found.kind),
            **self._going_on, **kept_apart(self._found.kind, self.request.whose),
            **({"model": self._found.model} if self._found.model else {}),
        }  # fmt: skip
        if self._found.kind == "llamacpp" and self.request.shows:
            asked["preserved_tokens"] = list(self.request.shows)
        if self._words is None:
            if self._found.kind == "vllm":
                asked["return_token_ids"] = True
            return asked | {"prompt": [*self.request.prompt_ids, *self.request.reply_ids]}
        if not self._words.messages:
            return asked | {"prompt": self._words.text + self._words.reply_start}
        return asked | {"messages": _messages(self._words)}

    @property
    def new_tokens(self) -> int:
        """Tokens made so far, as the server counts them; else its events with text."""
        return _whole(self._counted.get("completion_tokens")) or self._written

    @property
    def began(self) -> bool:
        """Whether anything of it was told."""
        return self._written > 0

    def cancel(self) -> None:
        """End it at once."""
        super().cancel()
        self.on_cancel()

    def drop_oldest(self) -> int:
        """Leave out the older half of what may be left out; how many messages that was, 0 if there is none."""
        words = self._words
        if words is None or not words.may_drop or self.began:
            return 0
        system = [message for message in words.messages if message.role == "system"]
        turns = [message for message in words.messages if message.role != "system"]
        users = [number for number, message in enumerate(turns) if message.role == "user" and number]
        if not users:
            return 0
        first = users[len(users) // 2]
        self._words = Words((*system, *turns[first:]), words.text, words.reply_start, words.may_drop)
        return first

    def take(self, event: Mapping[str, Any]) -> FinishReason | None:
        """Tell what `event` says. Says why the reply ends with it where Snug ends it, None while it goes on."""
        if event is DONE:
            self.ended = self.ended or "stop"
            return None
        if isinstance(usage := event.get("usage"), dict):
            self._take_counts(usage)
        choices = event.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            return None
        choice = choices[0]
        self._take_notices(choice.get("degraded"))
        text = self._text_of(choice)
        ids = choice.get("token_ids")
        ids = [int(token) for token in ids] if isinstance(ids, list) else []
        if self._is_flooded(len(text), len(ids)):
            self.degraded("The reply was cut.", f"The server sends more than the {self.limit:,} tokens asked for.")
            self._thinking = False
            return "length"
        if text or ids:
            self._written += len(ids) or 1
            self._pending_ids += ids
            self.tokens += ids
            self._count(self.new_tokens)
            told = _logprobs(choice.get("logprobs"))
            if len(told) == len(ids):
                told = [replace(one, token_id=token) for one, token in zip(told, ids, strict=True)]
            self._pending_logprobs += with_text(told, text)
            self._show(self._text.push(text))
        if self._text.finished:
            return "stop"
        if reason := choice.get("finish_reason"):
            self.ended = "length" if reason == "length" else "stop"
            if reason == "content_filter":
                self.degraded("The reply was cut.", "The server's content filter struck.")
        return None

    def _is_flooded(self, characters: int, tokens: int) -> bool:
        """Whether more came by now than the tokens that were asked for can be."""
        self._characters += characters
        most = self.limit * LONGEST_TOKEN_CHARACTERS + len(_THINK + _THOUGHT_OUT)
        return self._characters > most or len(self.tokens) + tokens > len(self.request.reply_ids) + self.limit + 1

    def _take_notices(self, told: Any) -> None:
        """What the server had to give up, as another Snug tells it."""
        for one in told if isinstance(told, list) else ():
            if isinstance(one, dict) and self._notices < MOST_NOTICES:
                self._notices += 1
                self.degraded(str(one.get("what", ""))[:MAX_WORDS], str(one.get("why", ""))[:MAX_WORDS])

    def close_thought(self) -> None:
        """The reply is over: a thought that it ended in is closed."""
        if self._thinking:
            self._thinking = False
            self._show(self._text.push(_THOUGHT_OUT.rstrip()))

    def _text_of(self, choice: Mapping[str, Any]) -> str:
        """New text of a chunk, thoughts between their marks."""
        delta = choice.get("delta")
        if not isinstance(delta, dict):
            return str(choice.get("text") or "")
        thought = delta.get("reasoning_content") or delta.get("reasoning")
        text = ""
        if isinstance(thought, str):
            text = thought if self._thinking else _THINK + thought
            self._thinking = True
        if content := str(delta.get("content") or ""):
            text += _THOUGHT_OUT + content if self._thinking else content
            self._thinking = False
        return text

    def _take_counts(self, usage: Mapping[str, Any]) -> None:
        self._counted = usage
        details = usage.get("prompt_tokens_details")
        known = _whole(details.get("cached_tokens")) if isinstance(details, dict) else 0
        self.cached_tokens = known if self._tells_cached else 0
        if self.new_tokens:
            self._count(self.new_tokens)

    def _usage(self) -> Usage:
        prompt = _whole(self._counted.get("prompt_tokens")) or self.request.held_tokens
        return Usage(prompt, min(self.cached_tokens, prompt), self.new_tokens)


def _messages(words: Words) -> list[dict[str, Any]]:
    """The conversation as the server gets it, the reply so far last."""
    turns = [*words.messages, *([ChatMessage("assistant", words.reply_start)] if words.reply_start else ())]
    return [
        {"role": turn.role, "content": _content(turn) if turn.pictures else _without_thought(turn)} for turn in turns
    ]


def _content(turn: ChatMessage) -> list[dict[str, Any]]:
    """Pictures and text as OpenAI's API takes them together."""
    urls = [f"data:{one.media_type};base64,{base64.b64encode(one.data).decode()}" for one in turn.pictures]
    text = [{"type": "text", "text": turn.content}] if turn.content else []
    return [*({"type": "image_url", "image_url": {"url": url}} for url in urls), *text]


def _without_thought(turn: ChatMessage) -> str:
    return _THOUGHT.sub("", turn.content) if turn.role == "assistant" else turn.content


def _logprobs(told: Any) -> list[TokenLogprob]:
    """Log-probabilities in the chat's shape or in the completions'; what is not there is not told."""
    if not isinstance(told, dict):
        return []
    if isinstance(told.get("content"), list):
        return [_logprob(entry) for entry in told["content"]]
    texts, values, tops = told.get("tokens") or (), told.get("token_logprobs") or (), told.get("top_logprobs") or ()
    return [
        TokenLogprob(-1, str(text), float(value or 0), _pairs(tops[number] if number < len(tops) else None))
        for number, (text, value) in enumerate(zip(texts, values, strict=False))
    ]


def _logprob(entry: Mapping[str, Any]) -> TokenLogprob:
    top = tuple((_id(one), str(one["token"]), float(one["logprob"])) for one in entry.get("top_logprobs") or ())
    told = spelt([entry, *(entry.get("top_logprobs") or ())])
    return TokenLogprob(_id(entry), str(entry["token"]), float(entry["logprob"]), top, spelt=told)


def _pairs(top: Any) -> tuple[tuple[int, str, float], ...]:
    return tuple((-1, str(text), float(value)) for text, value in top.items()) if isinstance(top, dict) else ()


def _id(entry: Mapping[str, Any]) -> int:
    found = entry.get("id")
    return found if isinstance(found, int) else -1


def _whole(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 0
