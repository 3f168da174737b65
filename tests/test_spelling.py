"""The bytes of single tokens: together they are the text, wherever tokens cut it."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from modules.engine.base import TextPiece
from modules.engine.loops.loaded import PieceCodec
from modules.engine.telling import spelt
from tests.test_text import id_of, sentencepiece

TEXT = "Hi \U0001f99c\u4e2d \xe9\n\x00 b"


def codec_of(inner: Tokenizer) -> PieceCodec:
    return PieceCodec(PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>"))


def byte_level() -> Tokenizer:
    """A tokenizer of GPT-2's kind with a token for each byte, and one of two bytes of a character."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(alphabet)} | {"\xf0\u0141": 256}
    merges = [("\xf0", "\u0141")]
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return inner


def test_tokens_of_bytes_are_spelled_by_their_bytes() -> None:
    codec = codec_of(byte_level())
    ids = codec.encode([TextPiece(TEXT)])
    assert b"".join(codec.spelled(token) or b"?" for token in ids) == TEXT.encode()
    assert {codec.decode([token]) for token in ids} >= {"\ufffd"}, "texts alone do not tell"
    assert codec.spelled(codec.encode([TextPiece("</s>", template=True)])[0]) == b"</s>"
    assert codec.spelled(10**6) is None


def test_tokens_of_words_keep_their_spaces_and_tokens_of_bytes_their_byte() -> None:
    inner = sentencepiece(["\u2581The", "\u2581cat", "s"])
    codec = codec_of(inner)
    words = [id_of(inner, word) for word in ("\u2581The", "\u2581cat", "s")]
    assert [codec.spelled(word) for word in words] == [b" The", b" cat", b"s"]
    assert codec.decode([words[1]]) == "cat", "a decoder drops the space before the first word"
    assert [codec.spelled(byte) for byte in "\xe9".encode()] == [b"\xc3", b"\xa9"]


def test_of_tokens_of_another_kind_the_text_is_what_is_known() -> None:
    inner = Tokenizer(models.WordPiece({"har": 0, "##bour": 1}, unk_token="har"))
    inner.decoder = decoders.WordPiece()
    assert codec_of(inner).spelled(1) is None


@pytest.mark.parametrize(
    ("told", "found"),
    [
        ([{"token": "a", "bytes": [97]}], ()),
        ([{"token": "\ufffd", "bytes": [240]}, {"token": "a", "bytes": [97]}], (b"\xf0", b"a")),
        ([{"token": "\ufffd", "bytes": [240]}, {"token": "a"}], ()),
        ([{"token": "\ufffd", "bytes": None}], ()),
        ([{"token": "\ufffd", "bytes": [256]}], ()),
        ([{"token": "\ufffd", "bytes": ["a"]}], ()),
    ],
)
def test_bytes_that_another_server_tells_are_taken_where_all_are_there(
    told: list[dict[str, object]], found: tuple[bytes, ...]
) -> None:
    assert spelt(told) == found
