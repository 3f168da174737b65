"""What people do in the notebook: let the model go on, fill a gap, write the last completion anew, take another token.

A prompt is made of token ids where they are known: what the model wrote is never read again as text, so that a
token taken from its alternatives is exactly that token. The text, its history and its tokens are notebooks.py's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

from modules.chat.filling import Filling
from modules.chat.notebooks import Notebooks, Page
from modules.chat.passages import Run, Span, Token, Tokens
from modules.chat.prompts import BuiltPrompt, Ids, Prompts
from modules.chat.recording import Recorder
from modules.chat.running import RunningReply
from modules.chat.service import NOTEBOOK, ChatService
from modules.chat.store import Store
from modules.chat.writing import Outcome, Task
from modules.engine.base import ModelInfo
from modules.engine.host.host import EngineHost
from modules.engine.text import UNFINISHED
from modules.errors import NotAvailableHere, NotFound, StaleView
from modules.models.manager import ModelManager
from modules.sampling import GenerationParams

ALTERNATIVES = 10  # told with each token
REMOTE_ALTERNATIVES = 5  # what OpenAI's completions allow
_CONTEXT_TOKENS = 16  # enough to know how a token reads where it stands


@dataclass(frozen=True, slots=True)
class Gap:
    """Where the model is to write: between two texts, in the place of what was `removed` there.

    `chosen` is the token that a person put there first; `inserted` says that what follows is to stay, `fills` that the
    model may read it, if it can.
    """

    before: str
    removed: str
    after: str
    inserted: bool = False
    fills: bool = False
    chosen: Token | None = None

    @property
    def text(self) -> str:
        """The whole text as it is before."""
        return self.before + self.removed + self.after


@dataclass(frozen=True, slots=True)
class Completion:
    """A completion under way: its reply as everybody sees it, its tokens, and the texts around it."""

    reply: RunningReply
    recorder: Recorder
    gap: Gap
    asked_tokens: bool


@dataclass(frozen=True, slots=True)
class Choice:
    """A token of the text with what could stand in its place. `by_ids`: it can be continued from exactly."""

    token: Token
    by_ids: bool


class Notebook:
    """The notebooks of all owners in action. Every method may be called from any thread."""

    def __init__(self, models: ModelManager, store: Store, prompts: Prompts, chat: ChatService) -> None:
        self._models, self._prompts, self._chat = models, prompts, chat
        self.kept: Notebooks = store.notebooks
        self.filling = Filling()
        self._completions: dict[str, Completion] = {}
        self._lock = threading.Lock()

    def running(self, owner: str) -> Completion | None:
        """The completion that is being written, None if there is none."""
        reply = self._chat.running(owner, NOTEBOOK)
        completion = self._completions.get(owner)
        return completion if reply and completion and completion.reply is reply else None

    def save(self, owner: str, text: str, revision: int) -> Page:
        """Keep the text as edited. Raises StaleView, Busy, StoreFailed."""
        with self._chat.changing(owner, NOTEBOOK):
            return self.kept.save(owner, text, revision)

    def travel(self, owner: str, revision: int, move: Callable[[Notebooks], Callable[[str, int], Page]]) -> Page:
        """Go back or forth in the history: `move` picks the way. Raises StaleView, Busy, StoreFailed."""
        with self._chat.changing(owner, NOTEBOOK):
            return move(self.kept)(owner, revision)

    def complete(self, owner: str, revision: int, gap: Gap, params: GenerationParams, *, tokens: bool) -> Completion:
        """Keep the text and let the model write in its gap. With `tokens` their probabilities are asked for.

        Raises StaleView, Busy, StoreFailed. Whatever the model does wrong is told by the reply.
        """
        with self._chat.changing(owner, NOTEBOOK):
            return self._write(owner, revision, gap, params, tokens=tokens)

    def again(self, owner: str, revision: int, params: GenerationParams, *, tokens: bool) -> Completion:
        """Write the last completion anew, as another version. Raises NotFound if the last change is none, StaleView."""
        with self._chat.changing(owner, NOTEBOOK):
            page, (splice, run) = self.kept.page(owner), self.kept.last(owner)
            if not page.again or page.step is None:
                raise NotFound("The last change is no completion.", remedy="Undo what came after it, or generate.")
            before = self.kept.undo(owner, revision)
            at, end = splice.at, splice.at + len(splice.removed)
            gap = Gap(before.text[:at], before.text[at:end], before.text[end:])
            gap = replace(gap, inserted=run.inserted if run else bool(gap.after))
            if run is not None:
                gap = replace(gap, fills=run.filled, chosen=run.tokens[0] if run.chosen and run.tokens else None)
            return self._write(owner, before.revision, gap, params, tokens=tokens, back_to=page.step)

    def choice(self, owner: str, run_id: int | None, number: int) -> Choice:
        """A token with its alternatives; without a run, one of the completion under way. Raises NotFound."""
        running = self.running(owner)
        if run_id is None and running is not None:
            found = running.recorder.pieces(number)
            by_ids = True
        else:
            run = self.kept.run(owner, run_id or 0)
            found, by_ids = list(run.tokens[number:]), self._knows(run)
        if not found:
            raise NotFound("This token is gone.", remedy="Look at the text again.")
        return Choice(found[0], by_ids and all(ident >= 0 for ident, _, _ in found[0].top))

    def take(
        self, owner: str, revision: int, run_id: int, number: int, taken: int, params: GenerationParams
    ) -> Completion | Page:
        """Put an alternative, the `taken`-th, in a token's place, drop what follows and let the model go on from there.

        Of a run that was inserted only its own rest is dropped. An alternative that ends the text only drops.
        Raises NotFound, StaleView, Busy, StoreFailed, NotAvailableHere.
        """
        page, run = self.kept.page(owner), self.kept.run(owner, run_id)
        span = next((one for one in page.spans if one.run == run_id and one.first <= number < one.last), None)
        if revision != page.revision:
            raise StaleView("The notebook was changed in another tab.", remedy="Look at it again.")
        if span is None or not 0 <= taken < len(run.tokens[number].top):
            raise NotFound("This token is gone.", remedy="Look at the text again.")
        behind = run.tokens[span.first : number]
        at = span.start + sum(len(token.adds) for token in behind)
        end = max(one.end for one in page.spans if one.run == run_id) if run.inserted else len(page.text)
        gap = Gap(page.text[:at], page.text[at:end], page.text[end:], inserted=run.inserted, fills=run.filled)
        info = self._models.state.info
        if info is not None and run.tokens[number].top[taken][1] in info.end_texts:
            return self.save(owner, gap.before + gap.after, revision)
        chosen = self._chosen(run.tokens[number], taken, behind, by_ids=self._knows(run))
        return self.complete(owner, revision, replace(gap, chosen=chosen), params, tokens=True)

    def tells(self) -> bool:
        """Whether the loaded model may tell probabilities, as far as one knows before asking."""
        info = self._models.state.info
        return info is None or info.tells_logprobs

    def _chosen(self, instead_of: Token, taken: int, behind: Tokens, *, by_ids: bool) -> Token:
        """The alternative as a token of its own, read where it stands."""
        ident, alone, logprob = instead_of.top[taken]
        if ident < 0 or not by_ids:
            return Token(-1, alone, alone, logprob, instead_of.top)
        engine = self._models.engine()
        context = [token.id for token in behind[-_CONTEXT_TOKENS:] if token.id >= 0]
        before = engine.decode(context).rstrip(UNFINISHED) if context else ""
        after = engine.decode([*context, ident])
        whole = after.rstrip(UNFINISHED)
        if whole != after and engine.info.loop in ("llamacpp", "remote"):
            raise NotAvailableHere(
                "This token is a part of a character, and the engine cannot go on from there.",
                remedy="Choose another token, or write the character yourself.",
            )
        adds = whole[len(before) :] if whole.startswith(before) else engine.decode([ident]).rstrip(UNFINISHED)
        return Token(ident, adds, alone, logprob, instead_of.top)

    def _knows(self, run: Run) -> bool:
        """Whether the model that answers has the tokens that a run is made of."""
        info = self._models.state.info
        same = info is not None and (run.model, run.vocab_size) == (info.name, info.vocab_size)
        return same and info is not None and info.takes == "tokens"

    def _write(
        self,
        owner: str,
        revision: int,
        gap: Gap,
        params: GenerationParams,
        *,
        tokens: bool,
        back_to: int | None = None,
    ) -> Completion:
        step = self.kept.begin(owner, revision, gap.text, len(gap.before), len(gap.removed))
        asked = self._alternatives(asked=tokens)
        recorder = Recorder([gap.chosen] if gap.chosen else [])
        spans = self.kept.page(owner).spans
        keeper = _InNotebook(self, owner, step, gap, recorder, back_to)

        params = params.model_copy(update={"logprobs": asked})
        part = self._chat.text_part(params)

        def build(engine: EngineHost) -> BuiltPrompt:
            keeper.info, keeper.fills = engine.info, self._fills(engine, gap)
            before = part.reads(gap.before, engine.info) if part else gap.before
            room = (part.params if part else params).max_new_tokens
            if before != gap.before:  # nothing is known of its tokens
                return self._prompt(owner, engine, replace(gap, before=before), (), room, fills=keeper.fills)
            return self._prompt(owner, engine, gap, spans, room, fills=keeper.fills)

        task = Task(owner, params, build, keeper, trim_start=False, part=part, watch=recorder.take)
        with self._lock:
            reply = self._chat.start(owner, NOTEBOOK, task, gap.chosen.adds if gap.chosen else "")
            completion = self._completions[owner] = Completion(reply, recorder, gap, bool(asked))
        return completion

    def _alternatives(self, *, asked: bool) -> int:
        """How many to ask for. Of transformers always, so that a look may come later.

        llama.cpp sorts the whole vocabulary for them at each token, and of a server they are traffic.
        """
        info = self._models.state.info
        if info is None:
            return ALTERNATIVES
        if not info.tells_logprobs or (info.loop in ("llamacpp", "remote") and not asked):
            return 0
        return REMOTE_ALTERNATIVES if info.loop == "remote" else ALTERNATIVES

    def _fills(self, engine: EngineHost, gap: Gap) -> bool:
        return gap.fills and bool(gap.after.strip()) and self.filling.tokens_of(engine) is not None

    def _prompt(
        self, owner: str, engine: EngineHost, gap: Gap, spans: tuple[Span, ...], room: int, *, fills: bool
    ) -> BuiltPrompt:
        """The prompt up to the gap: text, then the tokens that stand right before it where the model wrote them."""
        chosen = gap.chosen
        if engine.info.takes == "words" or (chosen is not None and chosen.id < 0):
            return self._prompts.completion(
                engine, gap.before + (chosen.adds if chosen else ""), max_new_tokens=room, truncate=True
            )
        start, behind = self._behind(owner, len(gap.before), spans, fills=fills, last_only=chosen is not None)
        ids = (*behind, *((chosen.id,) if chosen else ()))
        before = gap.before[:start]
        tokens = self.filling.tokens_of(engine) if fills else None
        if tokens is not None:
            built = self.filling.prompt(engine, tokens, before, gap.after, max_new_tokens=room, behind=len(ids))
            return replace(built, reply_ids=ids)
        if engine.info.is_encoder_decoder:
            built = self._prompts.completion(
                engine, before if chosen else gap.before, max_new_tokens=room, truncate=True
            )
            return replace(built, reply_ids=ids if chosen else ())
        built = self._prompts.completion(engine, before, max_new_tokens=room, truncate=True, behind=ids)
        if not chosen or len(built.prompt_ids) <= len(ids):
            return built
        return replace(built, prompt_ids=built.prompt_ids[: -len(ids)], reply_ids=ids)

    def _behind(
        self, owner: str, end: int, spans: tuple[Span, ...], *, fills: bool, last_only: bool
    ) -> tuple[int, Ids]:
        """The tokens that end at a position, without a break, and where they begin.

        With `last_only` those of one run. A gap is filled behind tokens that fill it already, and no others.
        """
        ids: Ids = ()
        for span in reversed([span for span in spans if span.end <= end]):
            if span.end != end or (last_only and ids):
                break
            run = self.kept.run(owner, span.run)
            found = tuple(token.id for token in run.tokens[span.first : span.last])
            if not found or min(found) < 0 or not self._knows(run) or (fills and not run.filled):
                break
            ids, end = found + ids, span.start
        return end, ids


@dataclass(slots=True)
class _InNotebook:
    """Keeps a completion in the step that was begun for it."""

    notebook: Notebook
    owner: str
    step: int
    gap: Gap
    recorder: Recorder
    back_to: int | None
    info: ModelInfo | None = None
    fills: bool = False

    def journal(self, text: str) -> None:
        """As Keeper."""
        self.notebook.kept.journal(self.step, text)

    def finish(self, text: str, outcome: Outcome) -> None:
        """As Keeper; where nothing came of it the text is as it was before."""
        chosen = self.gap.chosen
        nothing = not text or (outcome.status == "error" and chosen is not None and text == chosen.adds)
        if nothing and not self.recorder.made:
            self.notebook.kept.abandon(self.owner, self.back_to)
            return
        if outcome.modified is not None and outcome.modified != text:  # an extension's words, not the model's tokens
            self.notebook.kept.finish(self.owner, outcome.modified, None)
        else:
            self.notebook.kept.finish(self.owner, text, self._run(text))

    def _run(self, text: str) -> Run | None:
        if self.info is None:
            return None
        gap = self.gap
        return Run(
            self.recorder.tokens(text),
            self.info.name,
            self.info.vocab_size,
            inserted=gap.inserted,
            filled=self.fills,
            chosen=int(gap.chosen is not None),
        )
