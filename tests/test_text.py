"""Whole characters, right spaces, and no stop string ever shown, wherever the tokens cut the text."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from modules.engine.text import Decode, StopMatcher, TextStream

STARTER = Path("models/SmolLM2-135M-Instruct")
EMOJI = "né 👨‍👩‍👧‍👦 🇯🇵 日本 e\u0301 ✅️ \ufeff\u202e!"


class Pieces:
    """A tokenizer whose tokens are any byte strings; byte-level BPE decodes like this."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []

    def encode(self, pieces: Sequence[bytes]) -> list[int]:
        first = len(self.pieces)
        self.pieces.extend(pieces)
        return list(range(first, len(self.pieces)))

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(self.pieces[token_id] for token_id in ids).decode("utf-8", errors="replace")


def sentencepiece(words: Sequence[str]) -> Tokenizer:
    """A tokenizer of Llama's kind: 256 byte tokens, then `words`; it drops the space before the first word."""
    vocab = {f"<0x{byte:02X}>": byte for byte in range(256)} | {word: 256 + n for n, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def id_of(tokenizer: Tokenizer, word: str) -> int:
    found = tokenizer.token_to_id(word)
    assert found is not None
    return int(found)


def stream(ids: Sequence[int], decode: Decode, stop: Sequence[str] = (), context: Sequence[int] = ()) -> list[str]:
    """What a reader sees after each token and at the end."""
    text = TextStream(decode, stop, context_ids=context)
    shown = []
    for token_id in ids:
        shown.append(text.push(token_id))
        if text.finished:
            return shown
    return [*shown, text.flush()]


def test_every_two_cuts_of_an_emoji_text_give_the_text_back_in_whole_characters() -> None:
    data = EMOJI.encode()
    for first, second in itertools.combinations(range(len(data) + 1), 2):
        tokenizer = Pieces()
        ids = tokenizer.encode([data[:first], data[first:second], data[second:]])
        shown = stream(ids, tokenizer.decode)
        assert "".join(shown) == EMOJI, (first, second)
        assert not any("\ufffd" in piece for piece in shown)


@pytest.mark.parametrize("size", range(1, 12))
def test_tokens_of_any_fixed_number_of_bytes_never_show_half_a_character(size: int) -> None:
    data = (EMOJI * 5).encode()
    tokenizer = Pieces()
    ids = tokenizer.encode([data[start : start + size] for start in range(0, len(data), size)])
    shown = stream(ids, tokenizer.decode)
    assert "".join(shown) == EMOJI * 5
    assert not any("\ufffd" in piece for piece in shown)


@given(text=st.text(alphabet=st.characters(exclude_characters="\ufffd", codec="utf-8"), max_size=40), data=st.data())
def test_any_text_in_any_byte_pieces_comes_back_unchanged(text: str, data: st.DataObject) -> None:
    raw = text.encode()
    cuts = sorted(data.draw(st.sets(st.integers(0, len(raw)), max_size=12)))
    tokenizer = Pieces()
    ids = tokenizer.encode([raw[a:b] for a, b in itertools.pairwise([0, *cuts, len(raw)])])
    assert "".join(stream(ids, tokenizer.decode)) == text


def test_characters_appear_as_soon_as_their_last_byte_is_there() -> None:
    tokenizer = Pieces()
    ids = tokenizer.encode([bytes([byte]) for byte in "a👍b".encode()])
    assert stream(ids, tokenizer.decode) == ["a", "", "", "", "👍", "b", ""]


def test_a_character_cut_by_the_end_of_the_reply_is_dropped() -> None:
    tokenizer = Pieces()
    ids = tokenizer.encode([b"ok ", "👍".encode()[:3]])
    assert "".join(stream(ids, tokenizer.decode)) == "ok "


def test_bytes_that_never_become_a_character_do_not_hold_the_text_back() -> None:
    tokenizer = Pieces()
    ids = tokenizer.encode([b"a", *[b"\x80"] * 50, b"b", b"c"])
    shown = stream(ids, tokenizer.decode)
    assert "".join(shown) == "a" + "\ufffd" * 50 + "bc"
    assert "".join(shown[:20]).count("\ufffd") >= 10


def test_words_of_a_sentencepiece_tokenizer_keep_their_spaces() -> None:
    tokenizer = sentencepiece(["▁The", "▁cat", "▁", "s", "\n", "▁▁"])
    words = ["▁The", "▁cat", "s", "▁", "s", "\n", "▁cat", "▁▁", "▁", "▁The"]
    ids = [id_of(tokenizer, word) for word in words]
    assert "".join(stream(ids, tokenizer.decode)) == "The cats s\n cat    The"


def test_a_continued_sentencepiece_text_starts_with_its_space() -> None:
    tokenizer = sentencepiece(["▁The", "▁cat"])
    prompt, reply = [id_of(tokenizer, "▁The")], [id_of(tokenizer, "▁cat")]
    assert "".join(stream(reply, tokenizer.decode, context=prompt)) == " cat"


def test_byte_fallback_emoji_between_words_come_out_whole() -> None:
    tokenizer = sentencepiece(["▁The", "▁cat"])
    the, cat = id_of(tokenizer, "▁The"), id_of(tokenizer, "▁cat")
    shown = stream([the, *"👍🏽日".encode(), cat, *"é".encode()], tokenizer.decode)
    assert "".join(shown) == "The👍🏽日 caté"
    assert not any("\ufffd" in piece for piece in shown)


def test_an_invalid_byte_does_not_take_back_the_fallback_characters_before_it() -> None:
    tokenizer = sentencepiece(["▁The"])
    the = id_of(tokenizer, "▁The")
    assert "".join(stream([*"👍".encode(), 0xF0, the, the], tokenizer.decode)) == "👍\ufffd The The"


def test_a_continued_reply_completes_a_character_that_its_last_tokens_began() -> None:
    tokenizer = Pieces()
    before, after = tokenizer.encode(["ab👍".encode()[:4], "ab👍".encode()[4:]])
    assert "".join(stream([after], tokenizer.decode, context=[before])) == "👍"


def test_tokens_without_text_do_not_lose_the_space_of_the_next_word() -> None:
    tokenizer = sentencepiece(["▁The", "▁cat", "<none>"])
    the, cat, none = (id_of(tokenizer, word) for word in ("▁The", "▁cat", "<none>"))

    def decode(ids: Sequence[int]) -> str:
        return str(tokenizer.decode([token_id for token_id in ids if token_id != none]))

    assert "".join(stream([the, *[none] * 40, cat], decode)) == "The cat"


def test_the_cost_of_a_token_does_not_grow_with_the_text() -> None:
    tokenizer = Pieces()
    longest = 0

    def decode(ids: Sequence[int]) -> str:
        nonlocal longest
        longest = max(longest, len(ids))
        return tokenizer.decode(ids)

    ids = tokenizer.encode([b" word"] * 2000)
    assert "".join(stream(ids, decode)) == " word" * 2000
    assert longest <= 32


def reference(text: str, stop: Sequence[str]) -> str:
    """The text before the stop string that ends first, the longest of those that end together."""
    ends = [(text.index(s) + len(s), -len(s)) for s in stop if s in text]
    if not ends:
        return text
    end, negative_length = min(ends)
    return text[: end + negative_length]


@pytest.mark.parametrize(
    ("text", "stop"),
    [
        ("one\nUser: two", ["\nUser:"]),
        ("aaab", ["aab"]),
        ("abcabd", ["abd", "cab"]),
        ("xabcx", ["abc", "bc", "c"]),
        ("xabcx", ["abcd", "b"]),
        ("né👍🏽 日本", ["🏽 日"]),
        ("né👍🏽 日本", ["日本語", "本"]),
        ("(.*)[^a]+$", [".*)[", "+$"]),
        ("no stop at all", ["nope", "allx", "stoq"]),
        ("mississippi", ["ssissippix", "sippi", "issip"]),
    ],
)
def test_a_stop_string_is_found_at_every_cut_and_never_shown(text: str, stop: list[str]) -> None:
    expected = reference(text, stop)
    data = text.encode()
    for first, second in itertools.combinations(range(len(data) + 1), 2):
        tokenizer = Pieces()
        ids = tokenizer.encode([data[:first], data[first:second], data[second:]])
        shown = stream(ids, tokenizer.decode, stop)
        assert "".join(shown) == expected, (first, second)
        assert all("".join(shown[:n]) == expected[: len("".join(shown[:n]))] for n in range(len(shown)))


@given(
    text=st.text("ab", max_size=20),
    stop=st.lists(st.text("ab", min_size=1, max_size=5), max_size=64),
    size=st.integers(1, 7),
)
def test_overlapping_stop_strings_match_where_a_plain_search_finds_them(text: str, stop: list[str], size: int) -> None:
    matcher = StopMatcher(stop)
    shown = "".join(matcher.push(text[start : start + size]) for start in range(0, len(text), size)) + matcher.flush()
    assert shown == reference(text, stop)
    assert matcher.found == (any(string in text for string in stop))


def test_text_that_only_resembles_a_stop_string_is_shown_at_once_when_that_is_clear() -> None:
    matcher = StopMatcher(["###"])
    assert [matcher.push(piece) for piece in ("a", "#", "#", "b", "##")] == ["a", "", "", "##b", ""]
    assert matcher.flush() == "##"
    assert not matcher.found


def test_nothing_is_shown_after_a_stop_string() -> None:
    tokenizer = Pieces()
    text = TextStream(tokenizer.decode, ["END"])
    shown = [text.push(token_id) for token_id in tokenizer.encode([b"ok EN", b"D more", b"END"])]
    assert (shown, text.flush(), text.finished) == (["ok ", "", ""], "", True)


def test_sixty_four_long_stop_strings_cost_little() -> None:
    matcher = StopMatcher([("a" * 480 + f"{n:02}b") for n in range(64)])
    started = time.thread_time()
    shown = "".join(matcher.push("aaaa") for _ in range(5000)) + matcher.flush()
    assert len(shown) == 20_000
    assert time.thread_time() - started < 2


@pytest.mark.model
def test_the_starter_tokenizer_streams_an_emoji_text_at_every_cut() -> None:
    if not STARTER.exists():
        pytest.skip(f"{STARTER} is not there; ./start.sh fetches it")
    tokenizer = Tokenizer.from_file(str(STARTER / "tokenizer.json"))
    ids = tokenizer.encode(EMOJI, add_special_tokens=False).ids
    for cut in range(len(ids) + 1):
        shown = stream(ids[cut:], tokenizer.decode, context=ids[:cut])
        begun = TextStream(tokenizer.decode)
        before = "".join(begun.push(token_id) for token_id in ids[:cut])
        assert before + "".join(shown) == EMOJI, cut
        assert not any("\ufffd" in piece for piece in shown)
