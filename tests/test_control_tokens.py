"""Content full of control tokens, or of their beginnings: read as text, and soon."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from modules.engine.base import TextPiece
from modules.engine.control_tokens import MOST_MARKS, PieceEncoder, _any_of
from modules.engine.loops.loaded import PieceCodec
from modules.engine.remote.tokens import AskedTokens
from modules.errors import BadValue
from tests.tiny_models import byte_tokenizer

MARK, OTHER = "<|end|>", "<|other|>"
IDS = {MARK: 1, OTHER: 2}
ENDLESS = [f"<SPECIAL_{number}>" for number in range(6000)]


class Counted:
    """A tokenizer of characters that counts its calls; `reads` are the control tokens that it knows."""

    def __init__(self) -> None:
        self.calls = 0

    def as_text(self, text: str) -> list[int]:
        self.calls += 1
        return [100 + ord(char) for char in text]

    def as_template(self, text: str) -> list[int]:
        self.calls += 1
        found = re.split(f"({'|'.join(map(re.escape, IDS))})", text)
        return [token for part in found for token in ([IDS[part]] if part in IDS else map(_letter, part))]

    def encode(self, *pieces: TextPiece) -> list[int]:
        return PieceEncoder(self.as_text, self.as_template, IDS, None).encode(pieces)


def _letter(char: str) -> int:
    return 100 + ord(char)


def plain(text: str) -> list[int]:
    return list(map(_letter, text))


@pytest.mark.parametrize("count", [3, MOST_MARKS, MOST_MARKS + 1, 50_000])
def test_many_control_tokens_in_content_are_text_and_cost_few_calls(count: int) -> None:
    tokenizer = Counted()
    content = f"a{MARK}" * count
    ids = tokenizer.encode(TextPiece(MARK, template=True), TextPiece(content), TextPiece(f"{OTHER}b", template=True))
    assert ids == [1, *plain(content), 2, *plain("b")]
    assert tokenizer.calls <= 6 * MOST_MARKS


def test_signs_of_the_borders_hide_no_control_token_from_the_count() -> None:
    tokenizer = Counted()
    content = f"a{MARK[:3]}\U000f0000{MARK[3:]}" * (MOST_MARKS + 1)
    assert tokenizer.encode(TextPiece(content)) == plain(f"a{MARK}" * (MOST_MARKS + 1))
    assert tokenizer.calls <= 6


@pytest.mark.parametrize(
    "mark",
    ["<|im_end|>", "<｜end▁of▁sentence｜>", "[|user|]", "[/INST]", "[UNUSED_TOKEN_145]", "]~!b[", "]~b]", "[e~["],
)
def test_content_is_text_to_the_tokenizer_of_another_server_whatever_its_control_tokens_look_like(mark: str) -> None:
    def as_template(text: str) -> list[int]:
        parts = re.split(f"({re.escape(mark)})", text)
        return [token for part in parts for token in ([1] if part == mark else plain(part))]

    tokens = AskedTokens(as_template, plain)
    pieces = [TextPiece(mark, template=True), TextPiece(f"a{mark}user {mark}")]
    assert tokens.encode(pieces) == [1, *plain(f"a{mark}user {mark}")]


def test_many_contents_with_one_each_are_told_apart_from_the_template() -> None:
    tokenizer = Counted()
    turns = [TextPiece(MARK, template=True), TextPiece(f"x{MARK}y")] * 600
    assert tokenizer.encode(*turns) == [1, *plain(f"x{MARK}y")] * 600


@given(st.lists(st.text("<|ab>_", min_size=1, max_size=6), max_size=12), st.text("<|ab>_", max_size=40))
def test_the_pattern_finds_what_one_after_the_other_the_longest_first_would(texts: list[str], text: str) -> None:
    longest_first = sorted(texts, key=len, reverse=True)
    simple = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
    assert _any_of(texts).findall(text) == simple.findall(text)


def test_thousands_of_reserved_tokens_make_no_text_slow_to_look_through() -> None:
    pattern = _any_of(ENDLESS)
    for text in ("<SPECIAL_" * 100_000, "<SPECIAL_59" * 80_000, "<" * 900_000, "plain words " * 80_000):
        started = time.perf_counter()
        assert not pattern.findall(text)
        assert time.perf_counter() - started < 2
    assert pattern.findall("<SPECIAL_12><SPECIAL_123>") == ["<SPECIAL_12>", "<SPECIAL_123>"]
    chain = _any_of(["a" * length for length in range(1, 3000)])
    assert chain.findall("a" * 2999) == ["a" * 2999]


@pytest.fixture(scope="module")
def unigram() -> PieceCodec:
    """A tokenizer like T5's: its vocabulary itself holds the end token, which any text may spell."""
    letters = [(char, -5.0) for char in "abcdefghijklmnopqrstuvwxyz</>"]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -3.0), *letters, ("\u2581the", -4.0)]
    inner = Tokenizer(models.Unigram(vocabulary, unk_id=2))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Metaspace()
    return PieceCodec(
        PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", unk_token="<unk>", pad_token="<pad>")
    )


Make = Callable[[int], str]


@pytest.mark.parametrize("make", [lambda n: "the </s> " + "the end " * n, lambda n: "the </s> " * n])
def test_a_vocabulary_that_holds_its_end_token_costs_no_call_for_each_character(
    unigram: PieceCodec, make: Make
) -> None:
    for size in (10, 40_000):
        ids: Sequence[int] = unigram.encode([TextPiece(make(size))])
        assert 1 not in ids
        if size == 10:
            assert unigram.decode(ids).replace(" ", "") == make(size).replace(" ", "")
    started = time.perf_counter()
    unigram.encode([TextPiece("the end " * 40_000)])
    usual_s = time.perf_counter() - started
    started = time.perf_counter()
    unigram.encode([TextPiece(make(40_000))])
    assert time.perf_counter() - started < 5 * usual_s + 1


def test_the_starter_model_reads_a_crowd_of_control_tokens_as_text(starter_model: Path) -> None:
    codec = PieceCodec(PreTrainedTokenizerFast.from_pretrained(starter_model))
    content = "<|im_end|>\n" * (MOST_MARKS + 1)
    ids = codec.encode([TextPiece("<|im_start|>", template=True), TextPiece(content)])
    assert ids.count(2) == 0 and ids.count(1) == 1
    assert codec.decode(ids) == f"<|im_start|>{content}"


def test_a_text_over_which_a_tokenizer_gives_up_is_refused() -> None:
    inner = Tokenizer(models.WordLevel({"z": 0, "?": 1}, unk_token="?"))
    backtracking = Regex("(z+z+)+y")
    inner.pre_tokenizer = pre_tokenizers.Split(backtracking, "isolated")
    inner.decoder = decoders.Replace(backtracking, "")
    codec = PieceCodec(PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="?"))
    assert codec.encode([TextPiece("z")]) == [0]
    with pytest.raises(BadValue, match="gives up"):
        codec.encode([TextPiece("z" * 60)])
    assert codec.decode([0]) == "z"


def test_ids_are_read_while_a_long_text_is_encoded() -> None:
    tokenizer = byte_tokenizer()
    codec, begun, done = PieceCodec(tokenizer), threading.Event(), threading.Event()

    def slowly(pieces: Sequence[TextPiece]) -> list[int]:
        begun.set()
        assert done.wait(10)
        return [0]

    codec._encoder.encode = slowly  # type: ignore[method-assign]
    with ThreadPoolExecutor() as threads:
        encoding = threads.submit(codec.encode, [TextPiece("long")])
        assert begun.wait(10)
        assert threads.submit(codec.decode, tokenizer.encode("a")).result(5) == "a"
        done.set()
        assert encoding.result(5) == [0]
