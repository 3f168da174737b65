"""Prompts of one person through llama.cpp leave others' replies room to go on."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

from modules.engine.base import GenerationRequest, ModelInfo
from modules.engine.llamacpp.engine import LlamaCppEngine
from modules.engine.llamacpp.reading import GIVEN_UP_PAUSE_S, MOST_PAUSE_S, Reading
from modules.sampling import GenerationParams


class Clock:
    """A time that a test sets."""

    now = 100.0

    def __call__(self) -> float:
        """The time."""
        return self.now


def wait_s(reading: Reading, whose: str, tokens: int = 400, *, beside_others: bool = True) -> float:
    """How long such a prompt waits."""
    return reading.wait_s(whose, tokens, beside_others=beside_others)


def test_one_long_prompt_of_a_person_is_read_at_a_time_and_short_ones_together() -> None:
    reading = Reading(512, Clock())
    reading.begin("a", "Ben", 5000)
    assert wait_s(reading, "Ben", 10, beside_others=False) == math.inf
    assert wait_s(reading, "Ana", 5000) == 0
    reading = Reading(512, Clock())
    reading.begin("a", "Ben", 200)
    assert wait_s(reading, "Ben", 300, beside_others=False) == 0
    assert wait_s(reading, "Ben", 313, beside_others=False) == math.inf


def test_after_a_prompt_others_have_as_long_a_time_to_themselves() -> None:
    clock = Clock()
    reading = Reading(512, clock)
    reading.begin("a", "Ben", 5000)
    clock.now += 3
    assert reading.end("a")
    assert not reading.end("a")
    assert wait_s(reading, "Ben") == 3
    assert wait_s(reading, "Ben", beside_others=False) == 0
    assert wait_s(reading, "Ana") == 0
    clock.now += 3
    assert wait_s(reading, "Ben") == 0


def test_a_pause_has_an_end_and_giving_up_saves_none() -> None:
    clock = Clock()
    reading = Reading(512, clock)
    reading.begin("a", "Ben", 5000)
    clock.now += 1000
    reading.end("a")
    assert wait_s(reading, "Ben") == MOST_PAUSE_S
    reading.begin("b", "Cleo", 5000)
    reading.end("b", given_up=True)
    assert wait_s(reading, "Cleo") == GIVEN_UP_PAUSE_S


class Rig(LlamaCppEngine):
    """Replies that read for ever; `begun` tells which have begun."""

    def __init__(self, server: Any, tokens: Any, info: ModelInfo) -> None:
        self.begun: list[str] = []
        self.two_begun, self.three_begun = threading.Event(), threading.Event()
        self.over = threading.Event()
        super().__init__(server, tokens, info)

    def _generate(self, reply: Any) -> Callable[[], None]:
        self.begun.append(reply.request.id)
        if len(self.begun) >= 2:
            (self.two_begun if len(self.begun) == 2 else self.three_begun).set()
        self.over.wait(5)
        return lambda: reply.finish("stop")


INFO = ModelInfo(
    name="tiny", architecture="", loop="llamacpp", loop_reason="", context_tokens=8192, vocab_size=10,
    is_encoder_decoder=False, dtype="", quantization="none", chat_template="", special_tokens={}, end_texts=(),
    placement={}, modules={}, load_s=0, peak_bytes=0,
)  # fmt: skip


class Tokens:
    """A tokenizer that nobody asks."""

    def encode_text(self, text: str) -> list[int]:
        """None."""
        return [0] * len(text)


class Server:
    """None."""

    guesses = False
    gpu_bytes: dict[str, int] = {}  # noqa: RUF012

    def close(self) -> None:
        """Nothing."""


def test_a_flood_of_long_prompts_lets_the_next_person_pass() -> None:
    engine = Rig(Server(), Tokens(), INFO)
    try:
        for number in range(5):
            ask(engine, f"ben {number}", "Ben", 1000)
        ask(engine, "ana", "Ana", 20)
        assert engine.two_begun.wait(5)
        assert not engine.three_begun.wait(0.1)
        assert engine.begun == ["ben 0", "ana"]
    finally:
        engine.over.set()
        engine.close()


def ask(engine: LlamaCppEngine, name: str, who: str, tokens: int) -> None:
    """A request of so many tokens."""
    params = GenerationParams(max_new_tokens=5)
    engine.submit(GenerationRequest(name, who, (1,) * tokens, params, whose=who), lambda _: None)
