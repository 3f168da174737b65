"""The notebook over a real store and a scripted engine: what the model is asked, exactly, and what is kept of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from modules.chat.counting import LONGEST_STRETCH, TokenCounter
from modules.chat.filling import Filling, GapTokens
from modules.chat.notebook import Completion, Gap, Notebook
from modules.chat.notebooks import Page
from modules.chat.passages import Token
from modules.chat.prompts import Prompts
from modules.chat.running import ReplyView
from modules.chat.service import ChatService
from modules.chat.store import Store
from modules.engine.base import ModelInfo, OnProgress, TextPiece
from modules.errors import Busy, NotAvailableHere, NotFound, StaleView
from modules.memory.planning.planner import Plan
from modules.models.manager import ModelManager
from modules.sampling import GenerationParams
from modules.settings import LoadOptions, Settings
from tests import fakes
from tests.fakes import Script, ScriptedEngine, fake_plan, make_model_folder, read_script
from tests.rendering import TEMPLATES
from tests.test_service import PATIENCE, roomy

PARAMS = GenerationParams(max_new_tokens=200)
GAP = GapTokens("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")


class Asked(ScriptedEngine):
    """A scripted engine that can be looked into. `changes` make its ModelInfo another one's."""

    loaded: ClassVar[list[Asked]] = []

    def __init__(self, script: Script, plan: Plan, changes: dict[str, Any]) -> None:
        super().__init__(script, plan)
        self._info = replace(self._info, **changes)
        self.loaded.append(self)

    @property
    def asked(self) -> list[str]:
        """The prompts, each with the reply so far behind a bar."""
        return [f"{self.decode(one.prompt_ids)}|{self.decode(one.reply_ids)}" for one in self.requests]


@dataclass(frozen=True)
class LoadAsked:
    """Its LoadEngine."""

    changes: tuple[tuple[str, Any], ...]

    def __call__(self, plan: Plan, on_progress: OnProgress) -> Asked:
        return Asked(read_script(plan.spec.path), plan, dict(self.changes))


@dataclass
class World:
    notebook: Notebook
    store: Store
    models: ModelManager

    @property
    def engine(self) -> Asked:
        return Asked.loaded[-1]

    def write(self, text: str, *, insert: int | None = None, params: GenerationParams = PARAMS) -> Page:
        """A completion of `text` (or in the midst of it), to its end."""
        gap = Gap(text, "", "") if insert is None else Gap(text[:insert], "", text[insert:], inserted=True, fills=True)
        return self.end(self.notebook.complete("", self.page.revision, gap, params, tokens=True))

    def end(self, completion: Completion | Page) -> Page:
        if isinstance(completion, Completion):
            end_of(completion)
        return self.page

    @property
    def page(self) -> Page:
        return self.store.notebooks.page("")

    def tokens(self) -> str:
        """The text with a bar between tokens; what is not known by token is in brackets."""
        page, shown, at = self.page, "", 0
        for span in page.spans:
            shown += f"[{page.text[at : span.start]}]" if span.start > at else ""
            run = self.store.notebooks.run("", span.run)
            shown += "|".join(token.adds for token in run.tokens[span.first : span.last]) + " "
            at = span.end
        return (shown + (f"[{page.text[at:]}]" if at < len(page.text) else "")).strip()


def end_of(completion: Completion, timeout_s: float = 20) -> ReplyView:
    deadline = time.monotonic() + timeout_s
    view = completion.reply.view()
    while not view.finished:
        assert time.monotonic() < deadline
        view = completion.reply.wait(view.version, deadline - time.monotonic())
    return view


def world_of(models: ModelManager, settings: Settings, parts: ExitStack, **options: object) -> World:
    """A notebook over a store of its own, the model loaded; `parts` ends it."""
    parts.callback(models.close)
    store = Store(settings.user_data_dir / "snug.db")
    parts.callback(store.close)
    prompts = Prompts(TEMPLATES)
    parts.callback(prompts.close)
    chat = ChatService(models, store, prompts)
    parts.callback(chat.shutdown, 2)
    models.load(LoadOptions.model_validate(options))
    return World(Notebook(models, store, prompts, chat), store, models)


MakeWorld = Callable[..., World]


@pytest.fixture
def make_world(settings: Settings) -> Iterator[MakeWorld]:
    with ExitStack() as parts:

        def make(script: Script, **changes: Any) -> World:
            make_model_folder(settings.model_dir, "tiny", script)
            load = LoadAsked(tuple(changes.items()))
            models = ModelManager(
                settings, loaders={"transformers": load}, read_inventory=roomy, patience=PATIENCE, drain_s=0.1,
                in_process=True,
            )  # fmt: skip
            return world_of(models, settings, parts, model="tiny")

        yield make


def test_a_text_is_continued_kept_and_known_by_token(make_world: MakeWorld) -> None:
    world = make_world(Script(reply=" ab"))
    page = world.write("Once")
    assert (page.text, world.tokens()) == ("Once ab", "[Once] |a|b")
    assert world.notebook.choice("", page.run, 1).by_ids
    assert world.store.notebooks.undo("", page.revision).text == "Once"


def test_one_completion_at_a_time(make_world: MakeWorld) -> None:
    world = make_world(Script(reply="x", endless=True, tokens_per_s=50))
    running = world.notebook.complete("", 0, Gap("Once", "", ""), PARAMS, tokens=True)
    with pytest.raises(Busy):
        world.notebook.complete("", 0, Gap("Twice", "", ""), PARAMS, tokens=True)
    with pytest.raises(Busy):
        world.notebook.save("", "Thrice", world.page.revision)
    assert world.notebook.running("") is running
    running.reply.stop()
    end_of(running)
    assert world.notebook.running("") is None
    assert world.page.text.startswith("Once")


def test_without_a_model_the_text_and_what_stood_behind_it_stay(make_world: MakeWorld) -> None:
    world = make_world(Script(reply=" a"))
    world.write("Once")
    world.models.unload()
    view = end_of(world.notebook.complete("", world.page.revision, Gap("O", "nce", "!"), PARAMS, tokens=True))
    assert view.error is not None
    assert (world.page.text, world.page.undo) == ("Once!", True)


def test_the_last_completion_is_written_anew_as_another_version(make_world: MakeWorld) -> None:
    world = make_world(Script(reply=" a"))
    first = world.write("Once")
    page = world.end(world.notebook.again("", first.revision, PARAMS, tokens=True))
    assert (page.text, page.version, page.versions) == ("Once a", 2, 2)
    assert world.engine.asked == ["Once|", "Once|"]
    edited = world.notebook.save("", "Once more", page.revision)
    with pytest.raises(NotFound):
        world.notebook.again("", edited.revision, PARAMS, tokens=True)


def test_writing_anew_that_fails_shows_what_stood_there(make_world: MakeWorld) -> None:
    world = make_world(Script(reply=" a"))
    first = world.write("Once")
    world.models.unload()
    page = world.end(world.notebook.again("", first.revision, PARAMS, tokens=True))
    assert (page.text, page.version, page.versions) == ("Once a", 1, 1)


def test_what_the_model_wrote_is_never_read_again_as_text(make_world: MakeWorld) -> None:
    world = make_world(Script(reply="<eos>"))  # the script says it by letters, and as a text it would be one token
    world.write("Once ")
    written = list(b"<eos>")
    page = world.write(world.page.text)
    assert list(world.engine.requests[-1].prompt_ids[-5:]) == written
    world.write(page.text + " typed")
    assert list(world.engine.requests[-1].prompt_ids[-7:]) == [fakes.CONTROL_IDS["<eos>"], *b" typed"]


def test_an_alternative_goes_on_from_its_id_and_drops_what_follows(make_world: MakeWorld) -> None:
    world = make_world(Script(reply=" xyz"))
    page = world.write("Once")
    assert page.run is not None
    taken = world.notebook.take("", page.revision, page.run, 2, 1, PARAMS)
    assert world.end(taken).text == "Once xb xyz"
    assert world.engine.asked[-1] == "Once| xb"
    assert world.tokens() == "[Once] |x b| |x|y|z"
    again = world.end(world.notebook.again("", world.page.revision, PARAMS, tokens=True))
    assert (again.text, world.engine.asked[-1]) == ("Once xb xyz", "Once| xb")
    back = world.store.notebooks.undo("", again.revision)
    assert back.text == "Once xyz"


def test_an_alternative_that_ends_the_text_only_ends_it(make_world: MakeWorld) -> None:
    world = make_world(Script(reply=" xyz", end_texts=("a",)))
    page = world.write("Once")
    assert page.run is not None
    assert world.notebook.take("", page.revision, page.run, 1, 0, PARAMS) == world.page
    assert (world.page.text, len(world.engine.requests)) == ("Once ", 1)


def test_an_alternative_of_a_text_that_changed_meanwhile_is_refused(make_world: MakeWorld) -> None:
    world = make_world(Script(reply=" xyz"))
    page = world.write("Once")
    assert page.run is not None
    later = world.notebook.save("", "Once", page.revision)
    with pytest.raises(StaleView):
        world.notebook.take("", page.revision, page.run, 1, 0, PARAMS)
    with pytest.raises(NotFound):
        world.notebook.take("", later.revision, page.run, 1, 0, PARAMS)


def test_tokens_of_another_model_are_taken_as_text(make_world: MakeWorld) -> None:
    world = make_world(Script(reply=" xyz"))
    page = world.write("Once")
    assert page.run is not None
    run = world.store.notebooks.run("", page.run)
    assert world.notebook._knows(run)
    assert not world.notebook._knows(replace(run, model="another"))


def test_half_a_character_as_an_alternative_is_refused_where_the_engine_cannot_go_on(make_world: MakeWorld) -> None:
    world = make_world(Script(reply="é"), loop="llamacpp")
    page = world.write("Caf")
    assert page.run is not None
    run = world.store.notebooks.run("", page.run)
    assert [token.adds for token in run.tokens] == ["", "é"]
    half = replace(run.tokens[0], top=((0xC3, "\ufffd", -0.1),))
    with pytest.raises(NotAvailableHere):
        world.notebook._chosen(half, 0, (), by_ids=True)


def test_a_gap_is_filled_with_the_models_own_tokens_for_it(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, text in enumerate(GAP.all, start=max(fakes.CONTROL_IDS.values()) + 1):
        monkeypatch.setitem(fakes.CONTROL_IDS, text, number)
    monkeypatch.setattr(fakes, "CONTROL_TOKENS", (*fakes.CONTROL_TOKENS, *GAP.all))
    world = make_world(Script(reply="MID"))
    page = world.write("ab cd", insert=3)
    assert page.text == "ab MIDcd"
    assert world.engine.asked == ["<|fim_prefix|>ab <|fim_suffix|>cd<|fim_middle|>|"]
    assert "<|fim_pad|>" in world.engine.requests[0].params.stop
    assert page.run is not None
    page = world.end(world.notebook.take("", page.revision, page.run, 1, 0, PARAMS))
    assert world.engine.asked[-1] == "<|fim_prefix|>ab <|fim_suffix|>cd<|fim_middle|>|Ma"
    assert page.text.startswith("ab Ma")
    assert page.text.endswith("cd")
    world.notebook.filling = Filling()
    world.write(page.text, insert=page.text.index("cd"))
    assert world.engine.asked[-1].startswith("<|fim_prefix|>ab <|fim_suffix|>cd<|fim_middle|>|Ma")


def test_a_model_without_such_tokens_writes_from_what_stands_before(make_world: MakeWorld) -> None:
    world = make_world(Script(reply="MID"))
    assert world.write("ab cd", insert=3).text == "ab MIDcd"
    assert world.engine.asked == ["ab |"]
    page = world.page
    assert page.run is not None
    assert world.end(world.notebook.take("", page.revision, page.run, 0, 0, PARAMS)).text == "ab aMIDcd"


def test_an_engine_that_tells_no_probabilities_writes_all_the_same(make_world: MakeWorld) -> None:
    world = make_world(Script(reply=" ab"), tells_logprobs=False)
    completion = world.notebook.complete("", 0, Gap("Once", "", ""), PARAMS, tokens=True)
    end_of(completion)
    assert (world.page.text, world.page.spans) == ("Once ab", ())
    assert not completion.asked_tokens
    assert world.engine.requests[0].params.logprobs == 0
    assert world.page.again


def test_llamacpp_is_asked_for_probabilities_only_where_they_are_shown(make_world: MakeWorld) -> None:
    world = make_world(Script(reply=" ab"), loop="llamacpp")
    world.end(world.notebook.complete("", 0, Gap("Once", "", ""), PARAMS, tokens=False))
    world.write(world.page.text)
    assert [request.params.logprobs for request in world.engine.requests] == [0, 10]


def test_a_remote_engine_is_asked_for_probabilities_only_where_they_are_shown(make_world: MakeWorld) -> None:
    world = make_world(Script(reply=" ab"), loop="remote", takes="words")
    world.end(world.notebook.complete("", 0, Gap("Once", "", ""), PARAMS, tokens=False))
    world.write(world.page.text)
    assert [request.params.logprobs for request in world.engine.requests] == [0, 5]
    page = world.page
    assert page.run is not None
    assert not world.notebook.choice("", page.run, 0).by_ids
    world.end(world.notebook.take("", page.revision, page.run, 0, 1, PARAMS))
    words = world.engine.requests[-1].words
    assert words is not None
    assert words.text == "Once abb"


def test_the_tokens_of_a_running_completion_have_alternatives_too(make_world: MakeWorld) -> None:
    world = make_world(Script(reply="x", endless=True, tokens_per_s=100))
    running = world.notebook.complete("", 0, Gap("Once", "", ""), PARAMS, tokens=True)
    while running.recorder.made < 3:
        view = running.reply.view()
        running.reply.wait(view.version, 5)
    assert world.notebook.choice("", None, 2).token.adds == "x"
    running.reply.stop()
    end_of(running)


def test_a_long_text_behind_tokens_is_cut_at_its_beginning(make_world: MakeWorld) -> None:
    world = make_world(Script(reply=" ab"))
    context = world.engine.info.context_tokens
    text = "".join(f"{number} " for number in range(context))
    world.write(text)
    page = world.write(world.page.text)
    request = world.engine.requests[-1]
    assert len(request.prompt_ids) == context - PARAMS.max_new_tokens
    assert page.text.encode().startswith(text.encode())
    assert world.engine.decode(request.prompt_ids).endswith(f"{context - 1}  ab")


class Bytes:
    """A PromptEngine of bytes that counts what it is asked to read."""

    def __init__(self, context: int = 100, **changes: object) -> None:
        self.info: ModelInfo = replace(ScriptedEngine(Script(), fake_plan(context_tokens=context)).info, **changes)  # type: ignore[arg-type]
        self.read = 0
        self.lock = threading.Lock()

    def encode(self, pieces: Sequence[TextPiece]) -> list[int]:
        text = "".join(piece.text for piece in pieces)
        with self.lock:
            self.read += len(text)
        for number, token in enumerate(GAP.all):
            text = text.replace(token, chr(0xE000 + number))
        return list(map(ord, text))


def test_a_gap_that_does_not_fit_keeps_what_is_nearest() -> None:
    engine = Bytes(context=100)
    before, after = "".join(map(chr, range(300, 700))), "".join(map(chr, range(1000, 1400)))
    for texts in ((before, after), (before, "!"), ("?", after), ("", "")):
        built = Filling().prompt(engine, GAP, *texts, max_new_tokens=20)
        ids = built.prompt_ids
        assert len(ids) <= 80
        assert bool(built.notice) == (len("".join(texts)) > 80)
        first, second = ids.index(0xE001), ids.index(0xE002)
        assert texts[0].endswith("".join(map(chr, ids[1:first])))
        assert texts[1].startswith("".join(map(chr, ids[first + 1 : second])))
    both = Filling().prompt(engine, GAP, before, after, max_new_tokens=20).prompt_ids
    assert both.index(0xE001) > 40
    assert both.index(0xE002) - both.index(0xE001) > 10


def test_while_one_types_only_what_changed_is_read_again() -> None:
    engine, counter = Bytes(), TokenCounter()
    text = "".join(f"{number:099}\n" for number in range(1000))
    whole = counter.count(engine, text)
    assert (whole.tokens, whole.exact, engine.read) == (len(text), False, len(text))
    counter.count(engine, text + "y")
    assert engine.read - len(text) < 3 * LONGEST_STRETCH
    engine.read = 0
    assert counter.count(engine, text[:50_000] + "z" + text[50_000:]).tokens == len(text) + 1
    assert engine.read < 3 * LONGEST_STRETCH


def test_a_giant_text_is_counted_without_reading_all_of_it() -> None:
    engine = Bytes()
    counted = TokenCounter().count(engine, "".join(map(chr, range(32, 55032))) * 200).tokens
    assert abs(counted / (55_000 * 200) - 1) < 0.01
    assert engine.read <= 1_000_000


def test_short_texts_are_counted_exactly_and_words_guessed() -> None:
    prefix = Bytes(text_prefix_ids=(1,))
    assert TokenCounter().count(prefix, "abc") == TokenCounter().count(prefix, "abc")
    assert (TokenCounter().count(prefix, "abc").tokens, TokenCounter().count(prefix, "").tokens) == (4, 0)
    assert not TokenCounter().count(Bytes(takes="words"), "abcd").exact


@pytest.mark.model
def test_the_starter_model_goes_on_from_its_own_tokens_exactly(settings: Settings, starter_model: Path) -> None:
    """From the token that stands there the same text follows; from half a character goes a whole one."""
    with ExitStack() as parts:
        models = ModelManager(
            settings.model_copy(update={"model_dir": starter_model.parent}),
            read_inventory=roomy,
        )
        world = world_of(models, settings, parts, model=starter_model.name, ctx_size=512)
        store = world.store
        greedy = GenerationParams(temperature=0, max_new_tokens=12)
        page = world.write("The capital of France is", params=greedy)
        assert page.run is not None
        first = store.notebooks.run("", page.run)
        assert "Paris" in page.text
        assert "".join(token.adds for token in first.tokens) == page.text.removeprefix("The capital of France is")
        assert all(token.logprob == token.top[0][2] for token in first.tokens)
        page = world.end(world.notebook.take("", page.revision, page.run, 4, 0, greedy))
        assert page.run is not None
        second = store.notebooks.run("", page.run)
        assert [token.id for token in second.tokens[:8]] == [token.id for token in first.tokens[4:]]
        assert second.tokens[1].logprob == pytest.approx(first.tokens[5].logprob, abs=0.1)
        half = models.engine().encode([TextPiece("🦊")])[0]
        page = world.notebook.save("", "The fox emoji: 🦊 🦊 🦊 ", page.revision)
        chosen = world.notebook._chosen(Token(0, "", "", 0.0, ((half, "\ufffd", -1.0),)), 0, (), by_ids=True)
        assert chosen.adds == ""
        gap = Gap(page.text, "", "", chosen=chosen)
        before, page = page.text, world.end(world.notebook.complete("", page.revision, gap, greedy, tokens=True))
        assert page.run is not None
        third = store.notebooks.run("", page.run)
        assert third.tokens[0].id == half
        assert page.text.startswith(before + "🦊")
        assert "".join(token.adds for token in third.tokens) == page.text.removeprefix(before)
