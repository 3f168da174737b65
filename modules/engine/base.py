"""What every engine is: the requests it takes, the events it gives, and the face that hosts and loops share.

An Engine lives in the engine process (or a thread, in tests). It never calls back into chat, API or page code:
it gets frozen values and emits frozen events. engine/host/host.py carries both across the process border.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from modules.errors import SnugError
from modules.extensions.script import EngineScript
from modules.forms.tools import CallShape
from modules.memory.planning.planner import Plan
from modules.messages import ChatMessage, Picture
from modules.sampling import GenerationParams

FinishReason = Literal["stop", "length", "cancelled", "error"]
EXIT_GPU_LOST = 76
"""The exit code of an engine process whose GPU takes no more calls."""
EXIT_SERVER_GONE = 77
"""The exit code of an engine process whose own server (vLLM) ended."""


@dataclass(frozen=True, slots=True)
class Words:
    """A prompt for an engine that keeps its tokenizer and its template to itself: a conversation, or a raw `text`.

    `reply_start` is what the reply holds already ("continue"). With `may_drop` the oldest turns may be left out where
    the whole does not fit.
    """

    messages: tuple[ChatMessage, ...] = ()
    text: str = ""
    reply_start: str = ""
    may_drop: bool = False


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One generation. `prompt_ids` go to the encoder of an encoder-decoder model, else to the model itself.

    `reply_ids` are tokens that the reply already holds ("continue"): they follow the prompt (in the decoder of an
    encoder-decoder model), count as reply for penalties, and are not emitted again. An engine that takes words
    (ModelInfo.takes) gets `words` and no ids. To `embed` is to make one Embedding of the prompt and no token.
    `shape` are tool calls that the whole reply must consist of, where the engine can hold it to that, or may, beside a
    form that `params` name; `shows` are control tokens whose text belongs to the reply's.
    The last `held_ids` of `reply_ids` belong to the form that the reply is held to; what is before them does not.
    `scripts` are extensions whose logits processors take part; engines that have no logits ignore them. `pictures`
    are those of the prompt in order, whose tokens stand in `prompt_ids` (ModelInfo.image_token, as often as encoded).
    `queue_s` is how long it waits for its turn before it ends with TimedOut, in seconds; 0 without end.
    With `scored` the prompt's own tokens are told of as Scored, and the end token of the reply as a token of it;
    without `writes` the prompt is only read. Both only where ModelInfo.scores.
    What an engine keeps of a text that it has read serves later requests of the same `whose` alone: how much of a
    prompt was known already would tell one person what another has written.
    """

    id: str
    user: str
    prompt_ids: tuple[int, ...]
    params: GenerationParams
    reply_ids: tuple[int, ...] = ()
    words: Words | None = None
    embed: bool = False
    scripts: tuple[EngineScript, ...] = ()
    pictures: tuple[Picture, ...] = ()
    shape: CallShape | None = None
    shows: tuple[str, ...] = ()
    held_ids: int = 0
    queue_s: float = 0.0
    scored: bool = False
    writes: bool = True
    whose: str = ""

    @property
    def held_tokens(self) -> int:
        """How many tokens there are before the first new one."""
        return len(self.prompt_ids) + len(self.reply_ids)

    @property
    def has_form(self) -> bool:
        """Whether the reply is held to a form."""
        return bool(self.shape or self.params.json_schema or self.params.grammar)


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token's natural-log probability under the raw model distribution, with its likeliest alternatives.

    `text` is the token by itself, `adds` what it added to the reply's text where it stands: "" while a character is
    incomplete, and for special tokens. `spelt` are the bytes of the token and of each of `top`, where one of their
    texts is not all of them: parts of characters. An id of -1: the server that made it tells texts only.
    """

    token_id: int
    text: str
    logprob: float
    top: tuple[tuple[int, str, float], ...] = ()
    adds: str = ""
    spelt: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one generation; `cached_tokens` of the prompt were not computed again.

    What the reply already held counts as prompt: it was read, and is not told again.
    """

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int

    def moved(self, made: int) -> Usage:
        """The counts of all of a reply whose first `made` tokens another engine wrote, and this one read."""
        prompt = max(0, self.prompt_tokens - made)
        return Usage(prompt, min(self.cached_tokens, prompt), self.completion_tokens + made)


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds spent waiting, reading the prompt, until the first token (since submit), and decoding after it.

    `drafted_tokens` were guessed and checked several at a time, `accepted_tokens` of them were what the reply says.
    """

    queue_s: float
    prefill_s: float
    first_token_s: float
    decode_s: float
    decoded_tokens: int
    drafted_tokens: int = 0
    accepted_tokens: int = 0

    @property
    def tokens_per_s(self) -> float:
        """Decode speed after the first token; 0 where fewer than two tokens were made."""
        return (self.decoded_tokens - 1) / self.decode_s if self.decoded_tokens > 1 and self.decode_s > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Queued:
    """The request waits; `position` 0 is next."""

    position: int


@dataclass(frozen=True, slots=True)
class Prefill:
    """`done` of `total` prompt tokens are read, `cached` of them by an earlier request."""

    done: int
    total: int
    cached: int = 0


@dataclass(frozen=True, slots=True)
class Delta:
    """New text (always whole characters, never part of a stop string) and the tokens that made it."""

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Scored:
    """How likely tokens of the prompt are, each after those before it, from the one at `start` on.

    The first token of a prompt follows nothing: its log-probability is NaN. Where a prompt is read again, `start` goes
    back, and what was told from there on counts no more.
    """

    start: int
    tokens: tuple[TokenLogprob, ...]


@dataclass(frozen=True, slots=True)
class Embedding:
    """The vector of a text: of length 1 through llama.cpp, else as the model's folder or its server has it."""

    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Degraded:
    """The engine had to do `what` because of `why`; the reply goes on. `extension` is whose fault it is, "" mostly."""

    what: str
    why: str
    extension: str = ""


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of every generation. `error` is set if and only if `reason` is "error".

    `stopped_by` is the stop string that ended the reply, "" where none did.
    """

    reason: FinishReason
    usage: Usage
    timings: Timings
    error: SnugError | None = None
    stopped_by: str = ""


Event = Queued | Prefill | Delta | Scored | Embedding | Degraded | Finished
Emit = Callable[[Event], None]


@dataclass(frozen=True, slots=True)
class TextPiece:
    """A stretch of a prompt. Only a `template` piece may become control tokens; content never does.

    With a `picture`, the width and height of one, the piece is a picture's place: encoded as many tokens as that takes.
    """

    text: str
    template: bool = False
    picture: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a load is. `fraction` is 0 to 1, `stage` a short phrase for people."""

    stage: str
    fraction: float


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a loaded model says of itself. `placement` gives bytes of weights per device, `modules` where each went.

    `loop` is the generation loop in use, `loop_reason` why. `end_texts` are the texts of the end tokens;
    `longest_context` is what the model was made for, 0 where nothing says; `special_tokens` maps a name ("bos_token")
    to its text. `text_prefix_ids` and `text_suffix_ids` are what the tokenizer itself puts around a plain text
    (`add_special_tokens=True`): Llama's BOS, T5's end token. An engine that `takes` "words" encodes nothing and may
    not know its `context_tokens`, which are 0 then. `adapters` are the LoRA adapters that change the model.
    `lacks` names the sampling parameters that it cannot do, each with what becomes of it, in words.
    `embeds` says what makes one vector of a text's tokens, "" where the engine does not, `embed_tokens` how many a text
    may have, 0 where nothing says. `tells_logprobs` is False where it is known to refuse them. `sees` says that it
    takes pictures, `image_token` how its template writes the place of one, "" where it takes words. `loaded_at` is in
    seconds since 1970.
    """

    name: str
    architecture: str
    loop: Literal["batched", "serial", "encoder", "zero3", "llamacpp", "remote"]
    loop_reason: str
    context_tokens: int
    vocab_size: int
    is_encoder_decoder: bool
    dtype: str
    quantization: str
    chat_template: str
    special_tokens: dict[str, str]
    end_texts: tuple[str, ...]
    placement: dict[str, int]
    modules: dict[str, str]
    load_s: float
    peak_bytes: int
    warnings: tuple[str, ...] = ()
    longest_context: int = 0
    text_prefix_ids: tuple[int, ...] = ()
    text_suffix_ids: tuple[int, ...] = ()
    takes: Literal["tokens", "words"] = "tokens"
    adapters: tuple[str, ...] = ()
    embeds: Literal["", "mean", "cls", "last", "server"] = ""
    embed_tokens: int = 0
    lacks: dict[str, str] = field(default_factory=dict)
    tells_logprobs: bool = True
    sees: bool = False
    image_token: str = ""
    loaded_at: int = field(default_factory=lambda: int(time.time()), compare=False)

    @property
    def generates(self) -> bool:
        """Whether it writes replies; else it makes embeddings and nothing else."""
        return self.loop != "encoder"

    @property
    def scores(self) -> bool:
        """Whether it tells the log-probabilities of a prompt's own tokens (GenerationRequest.scored)."""
        return self.loop in ("batched", "serial") and not self.is_encoder_decoder

    @property
    def can_grow(self) -> bool:
        """Whether the model could be loaded with a longer context than it has."""
        return not self.longest_context or self.context_tokens < self.longest_context


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A glance at a running engine. Bytes of the engine's own process and, per GPU id, of its allocator.

    `peak_bytes` are their most since the load began ("cpu" is the process), `longest_tokens` the longest conversation.
    """

    active: int = 0
    queued: int = 0
    rss_bytes: int = 0
    gpu_bytes: dict[str, int] = field(default_factory=dict)
    kv_tokens_used: int = 0
    kv_tokens_total: int = 0
    longest_tokens: int = 0
    peak_bytes: dict[str, int] = field(default_factory=dict)


OnProgress = Callable[[Progress], None]


class Engine(Protocol):
    """Owns one loaded model. Every method but `load` and `close` may be called from any thread at any time."""

    @property
    def info(self) -> ModelInfo:
        """What was loaded."""

    def submit(self, request: GenerationRequest, emit: Emit) -> None:
        """Take a request and return at once. `emit` is called from the engine's thread, last with Finished.

        Raises ContextLengthExceeded or QueueFull instead of accepting what cannot run.
        """

    def cancel(self, request_id: str) -> None:
        """End one request within a token; its Finished("cancelled") follows. Unknown ids are ignored."""

    def encode(self, pieces: Sequence[TextPiece]) -> list[int]:
        """Token ids of the pieces in order, without any that the tokenizer would add by itself."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of `token_ids`, control tokens included."""

    def stats(self) -> EngineStats:
        """How busy the engine is now."""

    def close(self) -> None:
        """Cancel everything and free the model."""


class LoadEngine(Protocol):
    """A way to load: plan in, engine out. Runs inside the engine process; picklable by name (a module function)."""

    def __call__(self, plan: Plan, on_progress: OnProgress) -> Engine: ...
