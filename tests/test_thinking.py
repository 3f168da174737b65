"""Thoughts before an answer: found, timed, and as optional as the template makes them."""

from __future__ import annotations

import time

import pytest

from modules.chat.thinking import MARKS, Parts, Stopwatch, answer_of, choices, opened_by, split, variables

QWEN = "{%- if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>{% endif %}"
GPT_OSS = (
    '{%- if reasoning_effort is not defined %}{% set reasoning_effort = "medium" %}{% endif %}{{ reasoning_effort }}'
)
GRANITE = "{%- if thinking %}Think first.{% endif %}"


@pytest.mark.parametrize(("opening", "closing"), MARKS)
def test_a_thought_ends_where_its_own_mark_closes(opening: str, closing: str) -> None:
    assert split(f"{opening}\nhm\n{closing}\n\nYes") == Parts("hm", "Yes")
    assert split(f"\n{opening}\nhm") == Parts("hm", "", thinking=True)
    assert answer_of(f"{opening}x{closing}\n\nYes") == "Yes"


def test_what_is_no_thought_stays_as_it_is() -> None:
    for text in ("", "  Hi", "About <think>tags</think>: they are fun.", "</think> alone"):
        assert split(text) == Parts("", text)
        assert answer_of(text) == text
    assert answer_of("<think></think>Yes") == "Yes"


def test_a_prompt_that_begins_a_thought_is_seen() -> None:
    assert opened_by("…<|im_start|>assistant\n<think>\n") == "<think>\n"
    assert opened_by("…assistant\n<think>\n\n</think>\n\n") == ""
    assert opened_by("") == ""


def test_a_template_offers_what_it_reads() -> None:
    assert choices(QWEN) == ("off", "on")
    assert variables(QWEN, "off") == {"enable_thinking": False}
    assert choices(GPT_OSS) == ("low", "medium", "high")
    assert variables(GPT_OSS, "high") == {"reasoning_effort": "high"}
    assert variables(GRANITE, "on") == {"thinking": True}
    assert variables(QWEN, "high") == {} and variables(QWEN, "") == {}
    for silent in ("", "{{ messages }}", "I am thinking.", "{{ message.thinking }}", "{{ '<thinking>' }}"):
        assert choices(silent) == ()


def test_a_thought_is_timed_from_its_first_token_to_its_end() -> None:
    times = iter(float(n) for n in range(100))
    watch, text = Stopwatch(now=lambda: next(times)), ""
    for new in ("<th", "ink>", "a", "b", "</thi", "nk>", "Yes", " indeed"):
        text += new
        watch.see(text, len(new))
    assert watch.seconds == 4.0
    plain = Stopwatch(now=lambda: next(times))
    plain.see("Hello", 5)
    plain.see("Hello<think>", 7)
    assert plain.seconds == 0.0


@pytest.mark.parametrize("piece", ["{%", "{{", "{% ", "{%}"])
def test_a_template_of_openings_alone_is_read_at_once(piece: str) -> None:
    started = time.perf_counter()
    assert choices(piece * 60_000) == ()
    assert time.perf_counter() - started < 5
