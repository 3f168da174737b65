"""Texts known by token: what a change does to them, and that nothing is mistaken for a token."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from modules.chat.passages import Span, Splice, Token, moved, pack_tokens, splice_between, unpack_tokens
from modules.chat.recording import Recorder
from modules.engine.base import Delta, TokenLogprob

texts = st.text("ab\ud83dé", max_size=12)


def run_of(*adds: str) -> tuple[Token, ...]:
    return tuple(Token(number, text, text, -0.5) for number, text in enumerate(adds))


def shown(text: str, spans: tuple[Span, ...], run: tuple[Token, ...]) -> list[tuple[str, str]]:
    """Each span's text, and what its tokens say it is."""
    return [
        (text[span.start : span.end], "".join(token.adds for token in run[span.first : span.last])) for span in spans
    ]


@given(texts, texts)
def test_a_change_leads_there_and_back(old: str, new: str) -> None:
    splice = splice_between(old, new)
    assert splice.apply(old) == new
    assert splice.take_back(new) == old
    assert not splice.removed or not splice.added or splice.removed[0] != splice.added[0]


@given(st.lists(st.sampled_from(["", "a", "bc", "def"]), min_size=1, max_size=8), st.data())
def test_after_any_change_the_tokens_that_are_left_say_what_stands_there(adds: list[str], data: st.DataObject) -> None:
    run, said = run_of(*adds), "".join(adds)
    text = f"<<{said}>>"
    spans: tuple[Span, ...] = (Span(2, len(said), 7, 0, len(run)),)
    for _ in range(3):
        at = data.draw(st.integers(0, len(text)))
        splice = Splice(at, text[at : data.draw(st.integers(at, len(text)))], data.draw(st.sampled_from(["", "xy"])))
        text, spans = splice.apply(text), moved(spans, splice, {7: run})
        for stands, told in shown(text, spans, run):
            assert stands == told


def test_an_edit_within_a_run_leaves_the_tokens_on_both_sides() -> None:
    run = run_of("The", " cat", " sat")
    spans = moved((Span(0, 11, 1, 0, 3),), Splice(4, "cat", "dog"), {1: run})
    assert spans == (Span(0, 3, 1, 0, 1), Span(7, 4, 1, 2, 3))


def test_half_a_character_stays_with_its_other_half() -> None:
    run = (Token(1, "a"), Token(2, ""), Token(3, "é"))
    assert moved((Span(0, 2, 1, 0, 3),), Splice(1, "", "x"), {1: run}) == (Span(0, 1, 1, 0, 1), Span(2, 1, 1, 1, 3))


def test_tokens_come_back_from_the_store_as_they_were() -> None:
    tokens = (Token(-1, "\ud83d", "x", None), Token(5, "", "<|x|>", -0.25, ((5, "<|x|>", -0.25), (6, "é", -1.5))))
    assert unpack_tokens(pack_tokens(tokens)) == tokens


def told(ident: int, adds: str) -> TokenLogprob:
    return TokenLogprob(ident, adds or "\ufffd", -0.5, (), adds)


def test_a_recorder_shows_only_tokens_whose_text_is_shown() -> None:
    recorder = Recorder()
    recorder.take(Delta("The", (1,), (told(1, "The"),)))
    recorder.take(Delta("", (2,), (told(2, " en"),)))  # held back: a stop string may begin here
    assert [token.adds for token in recorder.pieces()] == ["The"]
    recorder.take(Delta(" end", (3,), (told(3, "d"),)))
    assert [token.adds for token in recorder.pieces(1)] == [" en", "d"]
    assert [token.id for token in recorder.tokens("The end")] == [1, 2, 3]


def test_what_a_stop_string_cut_off_is_no_token_of_the_text() -> None:
    recorder = Recorder()
    recorder.take(Delta("Yes", (1, 2, 3), (told(1, "Yes"), told(2, ".\n"), told(3, ""))))
    assert [token.id for token in recorder.tokens("Yes.")] == [1]
    recorder = Recorder()
    recorder.take(Delta("Yes", (1, 2, 3), (told(1, "Yes"), told(2, ""), told(3, "é"))))
    assert [token.id for token in recorder.tokens("Yes")] == [1]


def test_tokens_that_do_not_make_up_the_text_are_not_kept() -> None:
    recorder = Recorder()
    recorder.take(Delta("Yes", (1,), (told(1, "No"),)))
    assert recorder.tokens("Yes") == ()


def test_an_engine_that_tells_nothing_still_shows_its_text() -> None:
    recorder = Recorder([Token(9, "A", "A", -1.0)])
    recorder.take(Delta("bc", (1, 2)))
    recorder.take(Delta("d"))
    assert [token.adds for token in recorder.pieces()] == ["A", "bc", "d"]
    assert (recorder.tells, recorder.made, recorder.tokens("Abcd")) == (False, 0, ())


def test_ids_of_a_character_that_only_its_last_token_was_told_of_are_kept() -> None:
    recorder = Recorder()
    recorder.take(Delta("aé", (1, 200, 201), (told(1, "a"), told(201, "é"))))
    assert [(token.id, token.adds) for token in recorder.tokens("aé")] == [(1, "a"), (200, ""), (201, "é")]
    mistaken = Recorder()
    mistaken.take(Delta("é", (77,), (told(201, "é"),)))  # read off the text, and read otherwise
    assert [token.id for token in mistaken.tokens("é")] == [-1]
