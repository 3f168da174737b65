"""Bytes → text: which encoding they are in, and whether they are text at all. Told by what they hold, not by a name."""

from __future__ import annotations

import codecs
from typing import NoReturn

from charset_normalizer import from_bytes

from modules.attachments.extracted import MAX_CHARACTERS, Extracted, clean_text, refuse, shortened

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_SAMPLE_BYTES = 64 * 1024
_MOST_BYTES = 5 * MAX_CHARACTERS  # no more is decoded of a long file
_STRANGE_SHARE = 0.01
_SHORT_BYTES = 64  # below it nothing can be guessed from statistics
# What western texts have beside ASCII, and hardly ever more than a fifth of their letters. What central European texts
# have at the same bytes (ì ø š ž ý õ) is left out as far as it tells them apart.
_WESTERN = set("äöüßÄÖÜéèêëàâáçîïíôóûùúñÑåÅæÆøœÉÈÀÁÇÓÚÍ¿¡«»“”„‘’–—…€°§£ãª º·•®©\xa0")
_WESTERN_SHARE, _WESTERN_MOST = 0.95, 0.2
_TRIED = (
    "cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257", "cp1258", "koi8_r", "koi8_u",
    "iso8859_2", "iso8859_5", "iso8859_15", "cp437", "cp850", "cp866", "mac_roman", "shift_jis", "cp932", "euc_jp",
    "gb18030", "big5", "cp949", "euc_kr", "tis_620",
)  # fmt: skip
_NOT_STRANGE = set("\t\n\r\x0c\x1b\x08")
_SHOWN = {"utf-8": "", "utf-8-sig": "", "ascii": ""}


def read_text(data: bytes, name: str) -> Extracted:
    """The text of a file that is text. Raises BadAttachment for one that is not."""
    text, encoding = _decoded(data, name)
    if not text.strip():
        refuse(f"{name} is empty.", "Attach a file that has some text in it.")
    kept, cut = shortened(clean_text(text))
    if len(data) > _MOST_BYTES:
        cut = f"Only the first {len(kept):,} characters were taken: the file is longer than that."
    shown = _SHOWN.get(encoding, f", read as {encoding}")
    return Extracted("text", kept, f"Text{shown}", cut)


def _decoded(data: bytes, name: str) -> tuple[str, str]:
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return _checked(data[:_MOST_BYTES].decode(encoding, "replace"), name), encoding
    if b"\x00" in data:
        if encoding := _unmarked_utf16(data):
            return _checked(data[:_MOST_BYTES].decode(encoding, "replace"), name), encoding
        _refuse_binary(name)
    whole = len(data) <= _MOST_BYTES
    try:
        return _checked(codecs.getincrementaldecoder("utf-8")().decode(data[:_MOST_BYTES], final=whole), name), "utf-8"
    except UnicodeDecodeError as error:
        start = max(0, error.start - _SAMPLE_BYTES // 2)
        encoding = _guessed(data[start : start + _SAMPLE_BYTES])
    if not encoding:
        _refuse_binary(name)
    return _checked(data[:_MOST_BYTES].decode(encoding, "replace"), name), encoding


def _unmarked_utf16(data: bytes) -> str:
    """UTF-16 without a mark, if every other byte is mostly zero, as in texts of western alphabets."""
    sample = data[:_SAMPLE_BYTES]
    zeros = sample[0::2].count(0), sample[1::2].count(0)
    half = max(1, len(sample) // 2)
    if zeros[1] > 0.4 * half and zeros[0] < 0.05 * half:
        return "utf-16-le"
    return "utf-16-be" if zeros[0] > 0.4 * half and zeros[1] < 0.05 * half else ""


def _guessed(sample: bytes) -> str:
    """The encoding of bytes that are not sound UTF-8, "" for none."""
    if _is_damaged_utf8(sample):
        return "utf-8"
    if len(sample) < _SHORT_BYTES or _is_western(sample.decode("cp1252", "replace")):
        return "cp1252"
    best = from_bytes(sample, cp_isolation=list(_TRIED)).best()
    return best.encoding if best is not None else ""


def _is_damaged_utf8(sample: bytes) -> bool:
    """Whether nearly all signs beyond ASCII are UTF-8: a log into which something else was written, a cut-off end."""
    foreign = [sign for sign in sample.decode("utf-8", "replace") if sign >= "\x80"]
    return foreign.count("\ufffd") < 0.1 * len(foreign)


def _is_western(text: str) -> bool:
    """Whether a text makes sense as Windows-1252, the old encoding that files have most."""
    foreign = [sign for sign in text if sign >= "\x80"]
    letters = sum(1 for sign in text if sign.isalpha())
    familiar = sum(1 for sign in foreign if sign in _WESTERN)
    return familiar >= _WESTERN_SHARE * len(foreign) and len(foreign) <= _WESTERN_MOST * letters


def _checked(text: str, name: str) -> str:
    """`text`, unless so much of it is control characters or undecodable that it is no text."""
    sample = text[:_SAMPLE_BYTES]
    strange = sum(1 for sign in sample if (sign < " " and sign not in _NOT_STRANGE) or sign in "\x7f\ufffd")
    if strange > _STRANGE_SHARE * len(sample):
        _refuse_binary(name)
    return text


def _refuse_binary(name: str) -> NoReturn:
    refuse(f"{name} holds no text.", "Attach text, code, Markdown, PDF or DOCX.")
