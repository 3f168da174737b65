"""Messages → token ids that fit the model's context, with content never read as control tokens.

Whole turns are dropped from the oldest on until the rest fits; the system prompt and the last user message always stay.
A model without a chat template gets a plain transcript; an encoder-decoder model gets the last user message alone.
Rendering is in rendering.py, tokenizing in the engine.
"""

from __future__ import annotations

import json
import secrets
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol
from weakref import WeakKeyDictionary

from modules.chat.forms import PLAIN, Form, cut_at
from modules.chat.rendering import ChatTemplate, Rendered, render_pieces
from modules.chat.templates import TemplateWorker
from modules.chat.thinking import opened_by
from modules.engine.base import ModelInfo, TextPiece, Words
from modules.engine.intake import check_generates
from modules.errors import BadChatTemplate, BadValue, ContextLengthExceeded
from modules.messages import ChatMessage, Picture
from modules.on_behalf import own_key

LEAST_FREE_SHARE = 4  # at least a quarter of the context stays free for the reply, less if it may not be that long
LONGEST_TOKEN_CHARACTERS = 256  # no tokenizer packs more of a real text into one token
# No reply goes on while a tokenizer reads: long texts are counted a piece at a time, and what lies beyond so many
# characters for each token of the context, or MOST_READ, is taken to be like what was read.
PIECE, MOST_OF_A_TOKEN, MOST_READ = 100_000, 8, 1_000_000
_COUNTS_KEPT = 20_000
_CUT = "The beginning of the text lies outside the model's context."
_BREAK = "\u200b"  # a space without width
_BREAKS: tuple[Callable[[str], str], ...] = (
    lambda text: "".join(c + _BREAK if c in "<[|｜{▁" else c for c in text),
    _BREAK.join,
)
_MOST_ASKED = 64  # groups of texts in which control tokens are looked for

Ids = tuple[int, ...]


class PromptEngine(Protocol):
    """What prompts need of an engine: EngineHost has it."""

    @property
    def info(self) -> ModelInfo:
        """What is loaded."""

    def encode(self, pieces: Sequence[TextPiece]) -> list[int]:
        """Token ids of the pieces, content never as control tokens."""


@dataclass(frozen=True, slots=True)
class BuiltPrompt:
    """A prompt ready to submit.

    `reply_ids` are what the reply already holds, `stop` strings to add to the request's own, `dropped` the number of
    messages that did not fit, `notice` "" or what else had to be changed, for people. `opens` is "" or the mark of a
    thought that the prompt has begun already. An engine that takes words gets `words` and no ids. `told` are sentences
    that are kept with the reply. `pictures` are those whose places are in the prompt, in order.
    """

    prompt_ids: Ids
    reply_ids: Ids = ()
    stop: tuple[str, ...] = ()
    dropped: int = 0
    notice: str = ""
    words: Words | None = None
    opens: str = ""
    told: tuple[str, ...] = ()
    pictures: tuple[Picture, ...] = ()

    @property
    def held_tokens(self) -> int:
        """How many tokens there are before the first new one; 0 where the engine takes words."""
        return len(self.prompt_ids) + len(self.reply_ids)


class Prompts:
    """Builds prompts. Safe to use from any thread."""

    def __init__(self, worker: TemplateWorker) -> None:
        self._worker = worker
        self._counts: WeakKeyDictionary[PromptEngine, dict[bytes, int]] = WeakKeyDictionary()
        self._counts_lock = threading.Lock()

    def close(self) -> None:
        """End the template process."""
        self._worker.close()

    def chat(
        self,
        engine: PromptEngine,
        messages: Sequence[ChatMessage],
        *,
        max_new_tokens: int,
        reply_start: str | None = None,
        truncate: bool,
        form: Form = PLAIN,
        lead: str = "",
        begun: str = "",
    ) -> BuiltPrompt:
        """The prompt for a reply to `messages`, which goes on from `reply_start` if that is given.

        `lead` is how the reply begins for the model, not for the reader; an engine that takes words is not told of it.
        So is `begun`, in which control tokens are ones.
        Where a template of `form` fails, the model's own is taken, and the notice says so.

        Raises ContextLengthExceeded if the messages do not fit, or with `truncate` if even the system prompt and the
        last user message do not; BadValue without messages; BadChatTemplate; NotAvailableHere for a model that writes
        no replies.
        """
        check_generates(engine.info)
        turns = [replace(m, content=whole_characters(m.content)) for m in messages]
        if not engine.info.sees:
            turns = [blind(turn) for turn in turns]
        start = whole_characters(reply_start or "")
        if not any(m.role != "system" for m in turns):
            raise BadValue("There is no message to answer.", remedy="Send at least one user message.", param="messages")
        if engine.info.takes == "words":
            asked = [ChatMessage("user", form.swap)] if form.speaker == "user" else []
            words = (*form.arranged(turns), *asked)
            return BuiltPrompt((), words=Words(words, reply_start=start, may_drop=truncate))
        if engine.info.is_encoder_decoder:
            return self._last_message_alone(engine, turns, start)
        free = free_tokens(engine.info, max_new_tokens)
        lead = whole_characters(lead)
        limit = engine.info.context_tokens - free
        fit = _Fit(self, engine, turns, start, form, lead=lead, begun=begun, limit=limit, free=free)
        try:
            return fit.build(truncate=truncate)
        except BadChatTemplate as error:
            if not form.template:
                raise
            built = replace(fit, form=replace(form, template="")).build(truncate=truncate)
            because = f"This conversation's own chat template failed, so the model's was used: {error.message}"
            return replace(built, notice=" ".join(part for part in (because, built.notice) if part))

    def completion(
        self, engine: PromptEngine, text: str, *, max_new_tokens: int, truncate: bool = False, behind: Ids = ()
    ) -> BuiltPrompt:
        """The prompt for a raw text, in which control tokens may be written by hand. BOS is put before it once.

        `behind` are tokens that follow the text, as the model once wrote them. Raises ContextLengthExceeded if it does
        not fit; with `truncate` its beginning is left out instead. Raises NotAvailableHere as `chat` does.
        """
        info = engine.info
        check_generates(info)
        if info.takes == "words":
            return BuiltPrompt((), words=Words(text=whole_characters(text)))
        free = 0 if info.is_encoder_decoder else free_tokens(info, max_new_tokens)
        if behind:
            return _followed(self, engine, text, behind, info.context_tokens - free)
        limit = info.context_tokens - free
        characters = limit * LONGEST_TOKEN_CHARACTERS
        cut = len(text) > characters
        if cut and not truncate:
            raise _too_long(f"The text has {len(text):,} characters", info, free)
        read = self.most_worth_reading(engine, text[-characters:], limit)
        if read < len(text) and not truncate:
            raise _too_long(f"The text has {len(text):,} characters", info, free)
        ids = engine.encode([TextPiece(whole_characters(text[-read:] if read else ""), template=True)])
        ids, cut = ids or self.beginning(engine), cut or read < len(text)
        whole = _wrapped(ids, info)
        if len(whole) <= limit and not cut:
            return BuiltPrompt(whole)
        if not truncate:
            raise _too_long(f"The text has {len(whole):,} tokens", info, free)
        spare = len(whole) - len(ids)
        kept = _wrapped(ids[max(0, len(ids) - (limit - spare)) :], info)
        return BuiltPrompt(kept, notice=_CUT)

    def unbounded(
        self,
        engine: PromptEngine,
        messages: Sequence[ChatMessage],
        *,
        reply_start: str | None = None,
        form: Form = PLAIN,
    ) -> BuiltPrompt:
        """The prompt that `chat` makes where everything fits, for who wants to see or count it.

        Raises BadValue without messages, BadChatTemplate, ContextLengthExceeded for what no model could read, and
        NotAvailableHere as `chat` does.
        """
        check_generates(engine.info)
        if engine.info.takes == "words" or engine.info.is_encoder_decoder:
            return self.chat(engine, messages, max_new_tokens=1, reply_start=reply_start, truncate=False, form=form)
        turns = [replace(m, content=whole_characters(m.content)) for m in messages]
        if not engine.info.sees:
            turns = [blind(turn) for turn in turns]
        if not any(m.role != "system" for m in turns):
            raise BadValue("There is no message to answer.", remedy="Send at least one user message.", param="messages")
        refuse_giant(turns, engine.info, 0)
        start = whole_characters(reply_start or "")
        return _Fit(self, engine, turns, start, form, limit=sys.maxsize, free=0).attempt(turns)

    def render(self, engine: PromptEngine, messages: Sequence[ChatMessage], form: Form = PLAIN) -> Rendered:
        """The messages as pieces of text, through the model's chat template (or that of `form`) or as a transcript."""
        info = engine.info
        image_token = info.image_token if info.sees else ""
        if not (form.template or info.chat_template):
            return Rendered(form.transcript(messages, image_token))
        rendered = render_pieces(self.template(engine, form), messages, lambda content: neutralised(engine, content))
        if sum(1 for piece in rendered.pieces if piece.picture) != sum(len(m.pictures) for m in messages):
            raise BadChatTemplate(
                "The chat template leaves out a picture, or has no place for it.",
                remedy="Use the model's own template, or write something beside the picture.",
            )
        return rendered

    def template(self, engine: PromptEngine, form: Form = PLAIN) -> ChatTemplate:
        """The model's chat template, or that of `form`, ready to render."""
        info = engine.info
        return ChatTemplate(
            form.template or info.chat_template,
            info.special_tokens,
            self._worker,
            form.variables,
            arguments_as_text=form.arguments_as_text,
            image_token=info.image_token if info.sees else "",
            own=bool(form.template),
            longest=info.context_tokens * LONGEST_TOKEN_CHARACTERS,
        )

    def count(self, engine: PromptEngine, content: str) -> int:
        """Tokens of one message's content, remembered; of one that is far too long for the context, about so many."""
        key = own_key(content)
        with self._counts_lock:
            counts = self._counts.setdefault(engine, {})
            if key in counts:
                return counts[key]
        counted = self._counted(engine, content)
        with self._counts_lock:
            if len(counts) >= _COUNTS_KEPT:
                counts.clear()
            counts[key] = counted
        return counted

    def _counted(self, engine: PromptEngine, content: str) -> int:
        read = content[: min(MOST_READ, max(PIECE, MOST_OF_A_TOKEN * engine.info.context_tokens))]
        counted = sum(
            len(engine.encode([TextPiece(whole_characters(read[start : start + PIECE]))]))
            for start in range(0, len(read), PIECE)
        )
        return counted * len(content) // max(1, len(read))

    def most_worth_reading(self, engine: PromptEngine, text: str, limit: int, *, template: bool = True) -> int:
        """How many of a long text's last characters have more than `limit` tokens already; all, where they may fit."""
        if len(text) <= 2 * PIECE or 4 * len(text) <= limit:  # a character is four tokens at most, its bytes
            return len(text)
        counted, start = 0, len(text)
        while start > 0 and counted <= limit:
            begin = max(0, start - PIECE)
            piece = TextPiece(whole_characters(text[begin:start]), template=template)
            counted += len(engine.encode([piece])) - 1  # the next may begin within a token
            start = begin
        return len(text) if counted <= limit else len(text) - start

    def picture_tokens(self, engine: PromptEngine, picture: Picture) -> int:
        """Tokens of one picture for an engine that sees, remembered; 0 where nothing says."""
        info = engine.info
        if not info.sees or not info.image_token:
            return 0
        place = TextPiece(info.image_token, template=True, picture=(picture.width, picture.height))
        key = own_key("picture", f"{picture.width} {picture.height}")
        with self._counts_lock:
            counts = self._counts.setdefault(engine, {})
            if key in counts:
                return counts[key]
        counted = len(engine.encode([place]))
        with self._counts_lock:
            counts[key] = counted
        return counted

    def length(self, engine: PromptEngine, text: str) -> int:
        """Tokens of a text, remembered, as `count` has them; a guess for an engine that tells no tokens."""
        return len(text) // 4 + 1 if engine.info.takes == "words" else self.count(engine, text)

    def _last_message_alone(self, engine: PromptEngine, turns: Sequence[ChatMessage], start: str) -> BuiltPrompt:
        text = next((m.content for m in reversed(turns) if m.role == "user"), turns[-1].content)
        refuse_giant([ChatMessage("user", text)], engine.info, 0)
        ids = _wrapped(engine.encode([TextPiece(text)]), engine.info)
        if len(ids) > engine.info.context_tokens:
            raise _too_long(f"The last message has {len(ids):,} tokens", engine.info, 0)
        return BuiltPrompt(ids, tuple(engine.encode([TextPiece(start)])) if start else ())

    def beginning(self, engine: PromptEngine) -> list[int]:
        """A token to begin an empty text with."""
        special = engine.info.special_tokens
        token = special.get("bos_token") or special.get("eos_token") or ""
        ids = engine.encode([TextPiece(token, template=True)]) if token else []
        if not ids and not engine.info.text_prefix_ids:
            raise BadValue("The text is empty, and this model has no token to begin with.", remedy="Write something.")
        return [] if engine.info.text_prefix_ids else ids


@dataclass(frozen=True, slots=True)
class _Fit:
    """The search for how many of the oldest turns must go. `limit` tokens are for prompt and reply so far."""

    prompts: Prompts
    engine: PromptEngine
    turns: Sequence[ChatMessage]
    reply_start: str
    form: Form
    limit: int
    free: int
    lead: str = ""
    begun: str = ""

    def build(self, *, truncate: bool) -> BuiltPrompt:
        """Render from the oldest turn that may fit; drop as many as were too much; again until it fits."""
        starts = self._starts()
        first = self._first_worth_trying(starts) if truncate else 0
        if not truncate or first == len(starts) - 1:
            refuse_giant(self._kept(starts[first]), self.engine.info, self.free)
        while True:
            kept = self._kept(starts[first])
            built = self.attempt(kept)
            excess = len(built.prompt_ids) + len(built.reply_ids) - self.limit
            if excess <= 0:
                pictures = tuple(picture for turn in kept for picture in turn.pictures)
                return replace(built, dropped=len(self.turns) - len(kept), pictures=pictures)
            if not truncate or first + 1 == len(starts):
                raise self._refusal(built, truncated=truncate)
            overhead = max(0, len(built.prompt_ids) - self._tokens(kept)) // len(kept)
            first = self._after_dropping(excess, starts, first, overhead)

    def _starts(self) -> list[int]:
        """Places where the history may begin: after the system prompt, else at a user message, the last at most."""
        system = next(n for n, turn in enumerate(self.turns) if turn.role != "system")
        users = [n for n, turn in enumerate(self.turns) if turn.role == "user" and n > system]
        return [system, *users]

    def _kept(self, start: int) -> list[ChatMessage]:
        system = self.turns[: self._starts()[0]]
        return [*system, *self.turns[start:]]

    def _first_worth_trying(self, starts: list[int]) -> int:
        """Index of the earliest start whose contents alone do not already exceed the limit."""
        if sum(len(turn.content) for turn in self.turns) <= 2 * self.limit and not any(t.pictures for t in self.turns):
            return 0
        first = len(starts) - 1
        left = self.limit - self._tokens(self._kept(starts[first]))
        while first > 0:
            left -= self._tokens(self.turns[starts[first - 1] : starts[first]])
            if left < 0:
                break
            first -= 1
        return first

    def _after_dropping(self, excess: int, starts: list[int], first: int, overhead: int) -> int:
        """Index of the first start that leaves out about `excess` tokens."""
        while excess > 0 and first + 1 < len(starts):
            dropped = self.turns[starts[first] : starts[first + 1]]
            excess -= self._tokens(dropped) + overhead * len(dropped)
            first += 1
        return first

    def _tokens(self, turns: Sequence[ChatMessage]) -> int:
        """Tokens of the contents; for one that cannot fit anyway, just more than the limit."""
        giant = self.limit * LONGEST_TOKEN_CHARACTERS
        counts = (
            self.prompts.count(self.engine, turn.content) if len(turn.content) <= giant else self.limit + 1
            for turn in turns
        )
        pictures = (picture for turn in turns for picture in turn.pictures)
        return sum(counts) + sum(self.prompts.picture_tokens(self.engine, picture) for picture in pictures)

    def attempt(self, kept: Sequence[ChatMessage]) -> BuiltPrompt:
        """The prompt with these turns, whatever its length."""
        info, form = self.engine.info, self.form
        pieces, notice, stop = self._pieces(kept)
        pieces = (*pieces, TextPiece(self.lead)) if self.lead else pieces
        pieces = (*pieces, TextPiece(self.begun, template=True)) if self.begun else pieces
        opens = opened_by("".join(piece.text for piece in pieces))
        said = "".join(piece.text for piece in pieces if not piece.picture)
        read = self.prompts.most_worth_reading(self.engine, said, self.limit, template=False)
        if read < len(said):  # the rest is like that: nobody waits while all of it is read
            return BuiltPrompt((0,) * ((self.limit + 1) * len(said) // read))
        prompt = self.engine.encode(pieces)
        start = self.reply_start.removeprefix(opens)
        reply: Sequence[int] = ()
        if start:
            start = f" {start}" if form.prefix else start
            together = self.engine.encode([*pieces, TextPiece(start)])
            continues = together[: len(prompt)] == prompt
            reply = together[len(prompt) :] if continues else self.engine.encode([TextPiece(start)])
        if form.template or info.chat_template:
            return BuiltPrompt(tuple(prompt), tuple(reply), stop, notice=notice, opens=opens)
        return BuiltPrompt(_wrapped(prompt, info), tuple(reply), tuple(dict.fromkeys((*form.stop, *stop))))

    def _pieces(self, kept: Sequence[ChatMessage]) -> tuple[tuple[TextPiece, ...], str, tuple[str, ...]]:
        """The prompt up to where the speaker begins, what had to be changed, and where to stop."""
        form = self.form
        stop = form.stop if form.stop_at_names or form.prefix else ()
        arranged = form.arranged(kept)
        if form.speaker == "assistant" or form.prefix:
            rendered = self.prompts.render(self.engine, arranged, form)
            prefix = (TextPiece(form.prefix),) if form.prefix else ()
            return (*rendered.pieces, *prefix), rendered.notice, stop
        mark = f"m{secrets.token_hex(16)}"
        rendered = self.prompts.render(self.engine, [*arranged, ChatMessage("user", mark)], form)
        pieces, after = cut_at(rendered.pieces, mark)
        return pieces, rendered.notice, (*stop, after) if after else stop

    def _refusal(self, built: BuiltPrompt, *, truncated: bool) -> ContextLengthExceeded:
        what = "The last message, with the system prompt, has" if truncated else "The messages have"
        if built.reply_ids:
            what = "The messages and the reply so far have"
        return _too_long(f"{what} {len(built.prompt_ids) + len(built.reply_ids):,} tokens", self.engine.info, self.free)


def _followed(prompts: Prompts, engine: PromptEngine, text: str, behind: Ids, limit: int) -> BuiltPrompt:
    """The prompt for a text with tokens behind it, cut at its beginning to `limit` tokens."""
    room = limit - len(behind)
    most = max(0, room) * LONGEST_TOKEN_CHARACTERS
    ids = engine.encode([TextPiece(whole_characters(text[len(text) - min(len(text), most) :]), template=True)])
    ids = ids or ([] if text else prompts.beginning(engine))
    whole = _wrapped(ids, engine.info)
    if len(whole) <= room and len(text) <= most:
        return BuiltPrompt((*whole, *behind))
    border = len(whole) - len(ids)
    kept = [*ids, *behind][len(ids) + len(behind) - max(1, limit - border) :]
    return BuiltPrompt(_wrapped(kept, engine.info), notice=_CUT)


def blind(turn: ChatMessage) -> ChatMessage:
    """`turn` for a model that cannot see: it is told that there was a picture, and no more."""
    if not turn.pictures:
        return turn
    count = len(turn.pictures)
    what = "a picture" if count == 1 else f"{count} pictures"
    told = f"[The user attached {what}, which you cannot see.]"
    return replace(turn, content=f"{told}\n\n{turn.content}".strip(), pictures=())


def free_tokens(info: ModelInfo, max_new_tokens: int) -> int:
    """How much of the context a prompt must leave free: the longest reply, but no more than a quarter of it."""
    return min(max_new_tokens, largest_share(info))


def largest_share(info: ModelInfo) -> int:
    """The most of the context that is ever kept free for a reply, in tokens; 0 where the context is not known."""
    return info.context_tokens // LEAST_FREE_SHARE


def whole_characters(text: str) -> str:
    """`text` with surrogate pairs joined and lone ones replaced, since no tokenizer can read them."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def neutralised(engine: PromptEngine, content: str) -> str:
    """`content` such that it holds no control token even when it is encoded as template text."""
    if stays_text(engine, content):
        return content
    harmless = _BREAKS[0](content)
    return harmless if stays_text(engine, harmless) else _BREAKS[1](content)


def all_neutralised(engine: PromptEngine, texts: Sequence[str]) -> dict[str, str]:
    """Those of `texts` that hold a control token, each with what it becomes: asked of the engine for many at once, so
    that where too many hold one, others are broken up too.
    """
    groups, found, asked = deque([list(dict.fromkeys(texts))]), list[str](), 0
    while groups:
        group = groups.popleft()
        asked += 1
        if asked <= _MOST_ASKED and stays_text(engine, json.dumps(group, ensure_ascii=False)):
            continue
        if asked > _MOST_ASKED or len(group) == 1:
            found += group
        else:
            groups += [group[: len(group) // 2], group[len(group) // 2 :]]
    harmless = [_BREAKS[0](text) for text in found]
    if not stays_text(engine, json.dumps(harmless, ensure_ascii=False)):
        harmless = [_BREAKS[1](text) for text in found]
    return dict(zip(found, harmless, strict=True))


def stays_text(engine: PromptEngine, text: str) -> bool:
    """Whether `text` holds no control token when it is encoded as template text."""
    return engine.encode([TextPiece(text, template=True)]) == engine.encode([TextPiece(text)])


def _wrapped(ids: Sequence[int], info: ModelInfo) -> Ids:
    """`ids` with what the tokenizer puts before a text, once, and after it for an encoder."""
    prefix, suffix = info.text_prefix_ids, info.text_suffix_ids if info.is_encoder_decoder else ()
    has_prefix = bool(prefix) and tuple(ids[: len(prefix)]) == prefix
    has_suffix = bool(suffix) and tuple(ids[-len(suffix) :]) == suffix
    return (*(() if has_prefix else prefix), *ids, *(() if has_suffix else suffix))


def refuse_giant(messages: Sequence[ChatMessage], info: ModelInfo, free: int) -> None:
    """Refuse at once what would only keep the tokenizer busy for minutes."""
    characters = sum(len(message.content) for message in messages)
    if characters > info.context_tokens * LONGEST_TOKEN_CHARACTERS:
        raise _too_long(f"The messages have {characters:,} characters", info, free)


def _too_long(what: str, info: ModelInfo, free: int) -> ContextLengthExceeded:
    kept = f", of which {free:,} are kept free for the reply" if free else ""
    return ContextLengthExceeded(
        f"{what}; the context of {info.name} holds {info.context_tokens:,} tokens{kept}.",
        remedy="Shorten the text, ask for a shorter reply, or load the model with a larger --ctx-size."
        if info.can_grow
        else "Shorten the text or ask for a shorter reply: this model was made for no more.",
        param="messages",
    )
