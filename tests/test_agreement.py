"""How far two replies agree, where their texts part, and how that is told."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modules.compare.agreement import Agreement, agreement, parting
from modules.compare.report import as_markdown, facts, fence, pieces
from modules.compare.values import Asked, ColumnView, Memory, Trial, View
from modules.errors import LoadFailed
from modules.sampling import GenerationParams
from modules.settings import LoadOptions
from modules.units import MiB


def agree(mine: object, others: object, *, mine_ended: bool = True, others_ended: bool = True) -> Agreement:
    return agreement(mine, others, mine_ended=mine_ended, others_ended=others_ended)  # type: ignore[arg-type]


def test_tokens_are_equal_at_their_place_up_to_the_shorter_length() -> None:
    found = agree((1, 2, 3, 9, 5), (1, 2, 3, 4, 5, 6))
    assert found == Agreement("tokens", equal=4, common=5, first=3)
    assert found.share == pytest.approx(0.8)


def test_words_are_compared_where_either_side_has_a_text_alone() -> None:
    assert agree("The cat  sat\ndown", "The cat sat up") == Agreement("words", equal=3, common=4, first=3)


def test_a_reply_that_ended_before_the_other_differs_there_and_one_that_is_being_written_does_not() -> None:
    assert agree((1, 2), (1, 2, 3)).first == 2
    assert agree((1, 2), (1, 2, 3), mine_ended=False).first is None
    assert agree((1, 2, 3), (1, 2), others_ended=False).first is None


def test_what_is_empty_agrees_with_everything_so_far() -> None:
    found = agree((), (1, 2), mine_ended=False)
    assert (found.share, found.first) == (1.0, None)


@given(st.lists(st.integers(0, 3), max_size=30), st.lists(st.integers(0, 3), max_size=30))
def test_agreement_is_symmetric_and_the_first_difference_is_the_first(one: list[int], two: list[int]) -> None:
    here, there = agree(one, two), agree(two, one)
    assert here == there
    if here.first is not None:
        assert one[: here.first] == two[: here.first]
        assert one[here.first : here.first + 1] != two[here.first : here.first + 1]
    else:
        assert one == two


def test_texts_part_at_the_beginning_of_a_word() -> None:
    assert parting("The sky is bluish today", "The sky is blue today") == len("The sky is ")
    assert parting("The sky", "The sky is blue") is None
    assert parting("same", "same") is None
    assert parting("a", "b") == 0


def view(*columns: ColumnView, finished: bool = True) -> View:
    asked = Asked("m", None, LoadOptions.model_validate({"model": "m"}), "greedy", GenerationParams(temperature=0))
    trial = Trial("Why is | the sky\nblue?", (asked,) * len(columns), 32, 7)
    return View("c1", trial, ("Side by side.",), columns, finished=finished)


def column(text: str, tokens: tuple[int, ...] = (), **more: object) -> ColumnView:
    base = ColumnView("tiny", "16-bit on the CPU", "greedy", "done", text=text, tokens=tokens, count=len(tokens))
    return ColumnView(**{name: getattr(base, name) for name in ColumnView.__slots__} | {"ended": "stop"} | more)


def test_the_first_column_is_cut_wherever_others_part_from_it() -> None:
    seen = view(column("one two three four"), column("one two 3"), column("one zwei"))
    assert [(piece.text, piece.others) for piece in pieces(seen, 0)] == [
        ("one ", ()), ("two ", (3,)), ("three four", (2,)),
    ]  # fmt: skip
    assert [(piece.text, piece.others) for piece in pieces(seen, 1)] == [("one two ", ()), ("3", (1,))]
    assert pieces(view(column(""), column("x")), 0) == []


def test_tokens_are_held_against_each_other_only_within_one_vocabulary() -> None:
    first = column("a b", (1, 2), vocabulary="v")
    told = dict(facts(view(first, column("a c", (1, 3), vocabulary="v")), 1))
    assert told["Agreement"] == "50 %: 1 of 2 tokens are the same"
    assert told["First difference"] == "token 2"
    told = dict(facts(view(first, column("a c", (7, 9), vocabulary="w")), 1))
    assert told["Agreement"] == "50 %: 1 of 2 words are the same"
    assert dict(facts(view(first, column("a b", (), vocabulary="v")), 1))["First difference"] == "none in 2 words"


def test_all_but_one_of_many_equal_tokens_is_not_rounded_to_all() -> None:
    tokens = tuple(range(1000))
    told = dict(facts(view(column("a", tokens, vocabulary="v"), column("a", (*tokens[:-1], 5), vocabulary="v")), 1))
    assert told["Agreement"].startswith("99 %")


def test_the_markdown_holds_prompt_figures_texts_marks_and_errors() -> None:
    memory = (Memory("cpu", 600 * MiB, 570 * MiB),)
    fast = column(
        "Because ```air```.", (1, 2), vocabulary="v", tokens_per_s=28.4, forecast_tokens_per_s=(20, 30), memory=memory
    )
    failed = ColumnView("big", "", "greedy", "failed", error=LoadFailed("It broke.", remedy="Mend it."))
    text = as_markdown(view(fast, column("Because light.", (1, 3), vocabulary="v"), failed))
    assert "> Why is | the sky\n> blue?" in text
    assert "| Speed | 28 tokens/s (forecast alone: 20 to 30) |" in text
    assert "| CPU memory | 570 MiB (forecast 600 MiB) |" in text
    assert "````text\nBecause ⟨≠⟩```air```.\n````" in text
    assert "It broke. Mend it." in text
    assert {line.count("|") for line in text.splitlines() if line.startswith("|")} == {5}


def test_a_fence_is_longer_than_any_in_the_text() -> None:
    assert fence("a").startswith("```text")
    assert fence("````").startswith("`````text")
