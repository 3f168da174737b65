"""One request to llama.cpp: what to ask of its server, and its events as ours."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from modules.engine.base import Emit, FinishReason, GenerationRequest, TokenLogprob
from modules.engine.llamacpp.gbnf import rules_of
from modules.engine.llamacpp.gbnf_stacks import Stacks
from modules.engine.llamacpp.sampling import SEEDS, sampling_fields
from modules.engine.llamacpp.stream import Stream
from modules.engine.telling import Telling, spelt, with_text
from modules.engine.text import ReadyText

_PIECE_CHARACTERS = 8


class LlamaReply(Telling):
    """One request: llama.cpp's events → ours."""

    def __init__(
        self,
        request: GenerationRequest,
        emit: Emit,
        encode: Callable[[str], list[int]],
        *,
        longest: int,
        guesses: bool = False,
        grammar: str = "",
    ) -> None:
        """`encode` gives the ids of plain text; `longest`: tokens that one sequence may have. `guesses`: whether
        tokens are guessed ahead, which are counted then. `grammar`: the GBNF that it follows."""
        self._text = ReadyText(request.params.stop)
        super().__init__(
            request, emit, self._text, held=len(request.prompt_ids) + len(request.reply_ids), longest=longest
        )
        self.stream: Stream | None = None
        self.slot: int | None = None
        self._encode = encode
        self._longest = longest
        self._guesses = guesses
        self._grammar = grammar
        self._stacks: Stacks | None = None
        self._unfollowed = ""  # what `form_ways` has yet to tell of
        self._followed = 0  # tokens that it has told of
        self._written = 0
        self._before = 0  # written when this stream of llama.cpp's began
        self._guessed_before = 0, 0
        self.gives_way = False

    @property
    def new_tokens(self) -> int:
        """Tokens made so far, end token and `reply_ids` not counted."""
        return self._written

    @property
    def held_tokens(self) -> int:
        """What it holds: prompt and reply so far."""
        return self.request.held_tokens + self._written

    @property
    def writes(self) -> bool:
        """Whether its text is read, and it goes on."""
        return self._written > self._before

    @property
    def stays(self) -> bool:
        """Whether it cannot go on later: llama.cpp begins each form anew."""
        return bool(self._grammar)

    @property
    def most_tokens(self) -> int:
        """What it may take of the KV cache at most."""
        return len(self.request.prompt_ids) + len(self.request.reply_ids) + self.limit

    @property
    def body(self) -> dict[str, Any]:
        """The completion to ask of llama.cpp: what is left of it, where it gave way. Its samplers begin anew then."""
        shows, sampling = self.request.shows, sampling_fields(self.request.params, self._longest, self._grammar)
        return {
            **sampling,
            "seed": (sampling["seed"] + self._written) % SEEDS,  # who draws as at the beginning writes as there
            **({"preserved_tokens": list(shows)} if shows else {}),
            "prompt": self.ids,
            "n_predict": self.limit - self._written,
            "return_tokens": True,
            "return_progress": True,
            "timings_per_token": self._guesses,
        }

    def cancel(self) -> None:
        """End it at once, in the middle of a prompt too."""
        super().cancel()
        if self.stream is not None:
            self.stream.close()

    def begin_stream(self, stream: Stream) -> None:
        """Its events come from `stream` now."""
        self._before = self._written
        self._guessed_before = self.drafted_tokens, self.accepted_tokens
        self.stream = stream
        if self.gives_way:  # it was asked before there was a stream to close
            stream.close()

    def give_way(self) -> None:
        """End its stream: it goes on later, with another one."""
        self.gives_way = True
        if self.stream is not None:
            self.stream.close()

    def step_aside(self) -> None:
        """See Telling."""
        super().step_aside()
        self.gives_way = False

    def take(self, events: Iterable[Mapping[str, Any]]) -> FinishReason | None:
        """Tell what `events` say, their text at once. Says why the reply ends with them, None while it goes on."""
        texts: list[str] = []
        reason: FinishReason | None = None
        for event in events:
            if progress := event.get("prompt_progress"):
                if not self._before:
                    self.cached_tokens = max(self.cached_tokens, int(progress["cache"]))
                self.prefilled(int(progress["processed"]), int(progress["total"]))
                continue
            self.slot = event.get("id_slot", self.slot)
            if event.get("stop"):
                reason = self._take_end(event)
            elif self._ends_with(event):
                reason = "stop"
                break
            else:
                self._take_tokens(event)
            self._count_guesses(event.get("timings", {}))
            if self._grammar:
                self._unfollowed += str(event.get("content", ""))
            texts.append(self._text.push(str(event.get("content", ""))))
            if reason or self._text.finished:
                reason = reason or "stop"
                break
        self._show("".join(texts))
        return reason

    def form_ways(self) -> Iterator[tuple[int, float]]:
        """In how many ways its form was followed since this was asked last, at the start and after each character, and
        for how many tokens. Telling it takes time, more of a form that is dear, so it comes in pieces.
        """
        if self._stacks is None:
            self._stacks = Stacks(rules_of(self._grammar))
            yield len(self._stacks), 0
        text, tokens = self._unfollowed, self._written - self._followed
        self._unfollowed, self._followed = "", self._written
        for start in range(0, len(text), _PIECE_CHARACTERS):
            piece = text[start : start + _PIECE_CHARACTERS]
            yield self._stacks.push(piece), tokens * len(piece) / len(text)

    def _ends_with(self, event: Mapping[str, Any]) -> bool:
        """Whether it brings a token before which the reply ends; llama.cpp itself knows of none such."""
        return not set(self.request.params.stop_token_ids).isdisjoint(event.get("tokens", ()))

    def _take_tokens(self, event: Mapping[str, Any]) -> None:
        made = self._before + int(event["tokens_predicted"])
        ids = [int(token) for token in event.get("tokens", ())]
        # Of a character of several tokens only the last one's id is told: the others are read off its text.
        self._take_ids(ids if made - self._written == len(ids) else self._encode(str(event.get("content", ""))))
        self._written = made
        self._count(made)
        told = [_logprob(entry) for entry in event.get("completion_probabilities", ())]
        self._pending_logprobs += with_text(told, str(event.get("content", "")))

    def _take_end(self, event: Mapping[str, Any]) -> FinishReason:
        by_itself = event.get("stop_type") == "eos"
        if by_itself and self._pending_logprobs and not self._pending_logprobs[-1].text:
            self._pending_logprobs.pop()  # the end token, which is no part of the reply
        made = self._before + int(event["tokens_predicted"])
        self._written = made - by_itself
        self._count(made)
        if not self._before:
            self.cached_tokens = int(event.get("timings", {}).get("cache_n", self.cached_tokens))
        return "length" if event.get("stop_type") == "limit" else "stop"

    def _count_guesses(self, timings: Mapping[str, Any]) -> None:
        """llama.cpp tells these of replies that it guessed for; with each token where asked, so that no end misses
        them."""
        if "draft_n" in timings:
            drafted, accepted = self._guessed_before
            self.drafted_tokens = drafted + int(timings["draft_n"])
            self.accepted_tokens = accepted + int(timings.get("draft_n_accepted", 0))

    def _take_ids(self, ids: Sequence[int]) -> None:
        self.tokens += ids
        self._pending_ids += ids


def _logprob(entry: Mapping[str, Any]) -> TokenLogprob:
    """One token as llama.cpp tells it: log-probabilities of the model, or what its samplers left, as probabilities."""
    entries = entry.get("top_logprobs") or entry.get("top_probs") or ()
    top = tuple((int(one["id"]), str(one["token"]), _value(one)) for one in entries)
    return TokenLogprob(int(entry["id"]), str(entry["token"]), _value(entry), top, spelt=spelt([entry, *entries]))


def _value(entry: Mapping[str, Any]) -> float:
    if "logprob" in entry:
        return float(entry["logprob"])
    return math.log(entry["prob"]) if entry["prob"] > 0 else -math.inf
