"""What is kept of a text to answer sooner serves the person who wrote it: its time would tell others that it was."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace

import pytest

from modules.chat.counting import TokenCounter
from modules.chat.forms import Form
from modules.chat.gauge import Gauges
from modules.chat.prompts import Prompts
from modules.chat.template_worker import answer
from modules.chat.templates import TemplateWorker
from modules.engine.base import ModelInfo, OnProgress, TextPiece
from modules.engine.form_reading import Form as ReplyForm
from modules.engine.form_reading import FormReader
from modules.engine.host.host import EngineHost
from modules.engine.remote.tokens import AskedTokens
from modules.memory.planning.planner import Plan
from modules.messages import ChatMessage, Picture
from modules.on_behalf import ASKED_FOR, own_key
from modules.ui.kept_html import KeptHtml
from tests.fakes import Script, ScriptedEngine, fake_plan

SAID = "The code of my card is 4711."


@contextmanager
def asking(name: str) -> Iterator[None]:
    """For a person."""
    before = ASKED_FOR.set(name)
    try:
        yield
    finally:
        ASKED_FOR.reset(before)


@dataclass
class Works:
    """What is asked again and again, and how much work that made so far."""

    ask: Callable[[], object]
    done: Callable[[], int]

    def makes_work(self, name: str) -> bool:
        """Whether it does, asked for a person."""
        before = self.done()
        with asking(name):
            self.ask()
        return self.done() > before


@dataclass(eq=False)
class Tokenizer:
    """A PromptEngine that counts what it is asked."""

    info: ModelInfo = field(
        default_factory=lambda: replace(
            ScriptedEngine(Script(), fake_plan()).info, chat_template="", sees=True, image_token="<image>"
        )
    )
    asked: int = 0

    def encode(self, pieces: Sequence[TextPiece]) -> list[int]:
        self.asked += 1
        return [ord(char) for piece in pieces for char in piece.text]


def counted() -> Works:
    engine, prompts = Tokenizer(), Prompts(TemplateWorker())
    return Works(lambda: prompts.count(engine, SAID), lambda: engine.asked)


def pictured() -> Works:
    engine, prompts = Tokenizer(), Prompts(TemplateWorker())
    return Works(lambda: prompts.picture_tokens(engine, Picture(640, 480)), lambda: engine.asked)


def gauged() -> Works:
    """Two texts that are counted alike, so that only the names of the form are new."""
    engine, gauges = Tokenizer(), Gauges(Prompts(TemplateWorker()))
    for name in ("Ana", "Ben"):
        with asking(name):
            gauges.measure(engine, [ChatMessage("user", "Hello.")], Form(), max_new_tokens=10)
    form = Form(user="Ana Example", char="Dr Example")
    turns = [ChatMessage("user", "Hello.")]
    return Works(lambda: gauges.measure(engine, turns, form, max_new_tokens=10), lambda: engine.asked)


def noted() -> Works:
    engine, counter = Tokenizer(), TokenCounter()
    return Works(lambda: counter.count(engine, SAID), lambda: engine.asked)


def drawn() -> Works:
    made: list[str] = []

    def render(text: str) -> str:
        made.append(text)
        return text

    kept = KeptHtml(render)
    return Works(lambda: kept.html(SAID), lambda: len(made))


def marked() -> Works:
    """Words that may be control tokens of another server."""
    asked: list[str] = []

    def plain(text: str) -> list[int]:
        asked.append(text)
        return list(map(ord, text))

    words = ("[Ana_Example]", "<ana@example.org>")
    tokens, pieces = AskedTokens(plain, plain), [TextPiece(" ".join(words))]
    return Works(lambda: tokens.encode(pieces), lambda: sum(map(asked.count, words)))


KEPT = {made.__name__: made for made in (counted, pictured, gauged, noted, drawn, marked)}


@pytest.mark.parametrize("kept", KEPT)
def test_what_one_person_wrote_is_as_new_as_ever_to_another(kept: str) -> None:
    works = KEPT[kept]()
    assert works.makes_work("person Ana")
    assert not works.makes_work("person Ana"), "nothing is kept at all"
    assert works.makes_work("person Ben")
    assert not works.makes_work("person Ben")


def test_a_form_is_read_once_for_each_person(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[bytes] = []

    def ask(_: FormReader, question: bytes, __: str) -> str:
        read.append(question)
        return str(len(read))

    monkeypatch.setattr(FormReader, "_ask", ask)
    with closing(FormReader()) as reader:
        form = ReplyForm("guidance", json_schema=json.dumps({"enum": ["Ana Example", "nobody"]}))
        found = [reader.read(form, whose) for whose in ("Ana", "Ana", "Ben", "Ana", "Ben")]
    assert found == ["1", "1", "2", "1", "2"]


def test_a_template_of_ones_own_is_compiled_for_each_person_and_a_models_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, str]] = []
    compiled: list[tuple[str, str]] = []

    class Rendered:
        def render(self, **_: object) -> str:
            return ""

    def compile_template(template: str, whose: str) -> Rendered:
        compiled.append((template, whose))
        return Rendered()

    def exchange(_: TemplateWorker, __: object, payload: bytes) -> dict[str, str]:
        asked.append(json.loads(payload))
        return answer(asked[-1], compile_template)

    monkeypatch.setattr(TemplateWorker, "_exchange", exchange)
    worker = TemplateWorker()
    for name in ("Ana", "Ben"):
        with asking(name):
            worker.render("own", {}, own=True)
            worker.render("the model's", {})
    assert compiled == [("own", "Ana"), ("the model's", ""), ("own", "Ben"), ("the model's", "")]


class Hears(ScriptedEngine):
    """An engine whose tokens are for whom it was asked."""

    def encode(self, _: Sequence[TextPiece]) -> list[int]:
        return list(map(ord, ASKED_FOR.get()))


def hears(plan: Plan, on_progress: OnProgress) -> Hears:
    return Hears(Script(), plan)


def test_an_engine_hears_for_whom_it_is_asked() -> None:
    with closing(EngineHost.start(fake_plan(), hears, in_process=True)) as host:
        for name in ("person Ana", "person Ben", ""):
            with asking(name):
                assert host.encode([TextPiece("x")]) == list(map(ord, name))


def test_a_key_is_somebodys_and_tells_texts_apart() -> None:
    texts = [("ab", "c"), ("a", "bc"), ("abc",), ("",), (), ("\ud800",), ("a" * 100_000,)]
    keys = {own_key(*text) for text in texts}
    assert len(keys) == len(texts) and {own_key(*text) for text in texts} == keys
    with asking("person Ben"):
        assert not {own_key(*text) for text in texts} & keys
