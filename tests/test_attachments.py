"""Attached files become text, or are refused with a remedy, whatever strangers put into them."""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.attachments.extracted import MAX_CHARACTERS, MAX_FILE_BYTES, clean_name, clean_text
from modules.attachments.extracting import Extractor
from modules.attachments.pdf import read_pdf
from modules.attachments.reading import read
from modules.attachments.worker import answer
from modules.errors import BadAttachment
from modules.messages import Attachment
from tests.small_files import archive, docx, docx_with_body, locked_pdf, looped, pdf, pdf_of, repacked, squeezed

GERMAN = "Grüße aus Köln: schöne Straßen, ähnlich übermütige Größen und dösige Bären hören, wie es über Öfen flötet. "
FRENCH = "Le café était fermé, alors l'élève est allé à la bibliothèque pour étudier jusqu'à midi et manger un gâteau. "
SPANISH = (
    "El niño comió piña mañana; señor Ñandú, ¿cómo está usted? Aquí hay más información sobre la canción española. "
)
POLISH = "Zażółć gęślą jaźń, a potem idź do sklepu po świeże bułki i mleko dla całej rodziny na jutrzejsze śniadanie. "
CZECH = "Příliš žluťoučký kůň úpěl ďábelské ódy, a pak šel domů, kde si uvařil čaj a četl knihu o dějinách města. "
JAPANESE = "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。何でも薄暗いじめじめした所で泣いていた。"
RUSSIAN = "Съешь же ещё этих мягких французских булок, да выпей чаю, и расскажи друзьям о хорошей погоде за окном. "
WHOLE = {"pdf": pdf("Some text."), "docx": docx("Some text.")}


@pytest.fixture
def extractor() -> Iterator[Extractor]:
    made = Extractor()
    yield made
    made.close()


def refusal(data: bytes, name: str = "file.x") -> str:
    """What is said of a file that is not taken, remedy included."""
    with pytest.raises(BadAttachment) as caught:
        read(data, name)
    assert caught.value.remedy
    return str(caught.value)


@pytest.mark.parametrize(
    ("data", "text", "about"),
    [
        ("# Ünïcode\r\nwith\ttabs\r\n".encode(), "# Ünïcode\nwith\ttabs", "Text"),
        (codecs.BOM_UTF8 + "naïve".encode(), "naïve", "Text"),
        ("naïve".encode("utf-16"), "naïve", "Text, read as utf-16"),
        ("naïve text without a mark".encode("utf-16-le"), "naïve text without a mark", "Text, read as utf-16-le"),
        ("café".encode("latin-1"), "café", "Text, read as cp1252"),
        (b"\x1b[31mred\x1b[0m and plain\x07" + b" text" * 20, "red and plain" + " text" * 20, "Text"),
        (b"{" + b'"a": 1}', '{"a": 1}', "Text"),
    ],
)
def test_text_is_read_in_the_encoding_that_it_has(data: bytes, text: str, about: str) -> None:
    found = read(data, "a.txt")
    assert (found.kind, found.text, found.about, found.cut) == ("text", text, about, "")


def test_a_text_may_begin_as_sounds_and_archives_do() -> None:
    for beginning in ("ID3", "OggS", "Rar!", "BZh", "GIF8", "MZ", "PK"):
        assert read(f"{beginning} is how some files begin.".encode(), "a.txt").kind == "text"


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (GERMAN, "cp1252"),
        (FRENCH, "cp1252"),
        (SPANISH, "cp1252"),
        (RUSSIAN, "cp1251"),
        (RUSSIAN, "koi8-r"),
        (POLISH, "cp1250"),
        (CZECH, "cp1250"),
        (JAPANESE, "shift_jis"),
    ],
)
@pytest.mark.parametrize("times", [1, 8])
def test_old_encodings_are_told_by_the_letters_in_them(text: str, encoding: str, times: int) -> None:
    found = read((text * times).encode(encoding), "a.txt")
    assert found.text == clean_text(text * times)
    assert found.about.startswith("Text, read as ")


def test_one_broken_sign_does_not_make_another_encoding_of_a_text() -> None:
    late = read((GERMAN * 1000).encode() + b"\xff" + (GERMAN * 10).encode(), "a.log")
    assert late.text.startswith(GERMAN) and late.text.count("\ufffd") == 1
    assert late.about == "Text"
    old = read(b"plain " * 20_000 + GERMAN.encode("cp1252"), "a.log")
    assert old.text.endswith(GERMAN) and old.about == "Text, read as cp1252"


def test_a_long_text_is_cut_at_a_lines_end_and_says_so() -> None:
    found = read(b"a line of text\n" * 60_000, "log.txt")
    assert len(found.text) <= MAX_CHARACTERS and found.text.endswith("a line of text")
    assert found.cut == f"Only the first {len(found.text):,} of 899,999 characters were taken."
    huge = read(b"a line of text\n" * 400_000, "log.txt")
    assert "the file is longer" in huge.cut


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is empty"),
        (b" \n\t\n", "is empty"),
        (bytes(range(256)) * 8, "holds no text"),
        (os.urandom(4096), "holds no text"),
        (b"text and then\x00\x00\x00 zeros", "holds no text"),
        (b"\x89PNG\r\n\x1a\n", "damaged picture"),
        (b"RIFF\x00\x00\x00\x00WEBP", "damaged picture"),
        (b"{\\rtf1 x}", "an RTF document"),
        (b"\x7fELF" + bytes(100), "a program"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(100), "Save it as DOCX"),
        (b"PK\x03\x04 nothing", "damaged archive"),
        (archive(a_txt=b"x"), "is an archive"),
        (archive(xl__workbook_xml=b"x"), "a spreadsheet"),
        (archive(word__document_xml=b"x"), "cannot be read as a Word document"),
        (b"%PDF-1.7 and then nothing", "cannot be read as a PDF"),
        (pdf("", ""), "2 pages but no text"),
        (locked_pdf("password"), "locked with a password"),
        (docx(), "has no text"),
    ],
)
def test_what_is_no_text_is_refused_by_what_it_holds_with_a_remedy(data: bytes, said: str) -> None:
    assert said in refusal(data, "harmless.txt")


def test_pages_of_a_pdf_are_numbered_and_those_without_text_are_counted() -> None:
    found = read(pdf("First things.", "", "Last things."), "a.pdf")
    assert found.text == "[Page 1]\nFirst things.\n\n[Page 3]\nLast things."
    assert (found.kind, found.about, found.cut) == ("pdf", "PDF, 3 pages", "1 page of 3 has no text.")
    assert read(locked_pdf(""), "a.pdf").text == "[Page 1]\nA secret.", "only changes are locked, not reading"


def test_a_pdf_that_takes_too_long_is_read_as_far_as_the_time_goes() -> None:
    found = read_pdf(pdf("one", "two", "three"), "a.pdf", read_s=0)
    assert (found.text, found.cut) == (
        "[Page 1]\none",
        "Only pages 1 to 1 of 3 were read: the rest takes too long to read.",
    )
    long = read_pdf(pdf(*["words " * 20_000] * 6), "a.pdf")
    assert long.cut == "Only pages 1 to 5 of 6 were read: the rest is too long."
    assert len(long.text) <= MAX_CHARACTERS


@pytest.mark.parametrize(
    "hostile",
    [
        pdf_of(squeezed(400_000_000)),
        pdf_of(looped()),
        pdf_of(b"", kids="2 0 R 4 0 R"),
        pdf_of(b"", kids="4 0 R " * 10**6),
    ],
    ids=["a stream that unpacks to 400 MB", "a form that draws itself", "pages in a ring", "a million pages"],
)
def test_a_hostile_pdf_is_refused_by_what_it_holds_not_by_the_clock(extractor: Extractor, hostile: bytes) -> None:
    with pytest.raises(BadAttachment) as caught:
        extractor.extract("a.pdf", hostile)
    assert caught.value.remedy and re.search("cannot be read|can be read|no text", caught.value.message)


def test_a_word_document_keeps_headings_lists_tables_and_what_others_inserted() -> None:
    found = read(docx("Plain.", heading="A head", table=[["a", "b"], ["c", "d"]]), "a.docx")
    assert found.text == "## A head\nPlain.\n\na | b\nc | d"
    body = (
        b"<w:p><w:ins><w:r><w:t>Inserted</w:t></w:r></w:ins><w:del><w:r><w:delText>gone</w:delText></w:r></w:del>"
        b"<w:r><w:tab/><w:t>tabbed</w:t><w:br/><w:t>below</w:t></w:r></w:p>"
        b"<w:sdt><w:sdtContent><w:p><w:r><w:t>in a field</w:t></w:r></w:p></w:sdtContent></w:sdt>"
    )
    assert read(docx_with_body(body), "a.docx").text == "Inserted\ttabbed\nbelow\nin a field"


def test_bombs_of_zip_and_xml_do_not_go_off() -> None:
    zeros = repacked(docx("x"), {"word/media/a.bin": bytes(300 * 1024**2)})
    assert "unpacks to" in refusal(zeros)
    assert "unpacks to" in refusal(repacked(docx("x"), {"word/document.xml": b"<a>" * 20_000_000}))
    assert "unpacks to" in refusal(repacked(docx("x"), {"word/document.xml": b"<a/>" * 2_100_000}))
    lol = b'<!DOCTYPE l [<!ENTITY a "lolololol">%s]>' % b"".join(
        b'<!ENTITY %c "%s">' % (98 + n, b"&%c;" % (97 + n) * 10) for n in range(9)
    )
    said = answer(b"\x00\x01a" + docx_with_body(b"<w:p><w:r><w:t>&j; end</w:t></w:r></w:p>", lol))
    assert "text" not in said and said["error"]["remedy"], "libxml2 stops it"


def test_a_deeply_nested_document_is_refused_or_read_but_never_hangs() -> None:
    deep = b"<w:sdt>" * 200 + b"<w:p><w:r><w:t>deep</w:t></w:r></w:p>" + b"</w:sdt>" * 200
    assert read(docx_with_body(deep), "a.docx").text == "deep"
    deeper = b"<w:sdt>" * 5000 + b"</w:sdt>" * 5000
    assert "cannot be read" in refusal(docx_with_body(deeper))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(WHOLE)), st.data())
def test_damaged_files_are_read_or_refused(kind: str, data: st.DataObject) -> None:
    whole = WHOLE[kind]
    at = data.draw(st.integers(8, len(whole) - 1))
    hurt = whole[:at] + data.draw(st.binary(max_size=20)) + whole[at + data.draw(st.integers(0, 50)) :]
    said = answer(b"\x00\x01a" + hurt)
    assert said.get("text") or said["error"]["remedy"]


def test_the_process_answers_with_text_errors_and_names_as_data(extractor: Extractor) -> None:
    assert extractor.extract("a.docx", docx("Hello.")).text == "Hello."
    with pytest.raises(BadAttachment, match=r"x name\.txt is empty") as caught:
        extractor.extract("../x\nname.txt", b"")
    assert caught.value.remedy
    with pytest.raises(BadAttachment, match=r"takes files up to 32"):
        extractor.extract("a.txt", bytes(MAX_FILE_BYTES + 1))


def test_a_file_that_takes_too_long_is_killed_and_the_next_one_is_read() -> None:
    hasty = Extractor(extract_s=0.001)
    with pytest.raises(BadAttachment, match="took longer"):
        hasty.extract("a.txt", b"text" * 1_000_000)
    assert Extractor().extract("a.txt", b"text").text == "text"


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("/etc/passwd", "passwd"), ("C:\\Users\\me\\notes.txt", "notes.txt"),
        ("a\nb\x00c\u202etxt.exe", "a b c txt.exe"),
        ("", "file"), ("..", ".."), ("x" * 300 + ".pdf", "x" * 115 + "….pdf"), ("\ud83d.txt", ".txt"),
    ],
)  # fmt: skip
def test_names_are_one_printable_line_without_folders(given: str, shown: str) -> None:
    assert clean_name(given) == shown


@given(st.text(st.characters() | st.sampled_from("\x1b[m \n\r\t\x0c\ufeff"), max_size=60))
def test_a_clean_text_stays_as_it_is(text: str) -> None:
    cleaned = clean_text(text)
    assert clean_text(cleaned) == cleaned
    cleaned.encode()


def test_an_attachment_has_no_content_of_its_own() -> None:
    assert set(Attachment.__slots__) == {
        "id",
        "name",
        "kind",
        "size_bytes",
        "characters",
        "about",
        "cut",
        "width",
        "height",
    }


def test_a_run_of_blanks_is_cleaned_in_no_time() -> None:
    """Once quadratic: 2.5e11 steps for a text of the size that is taken, with every thread of the server waiting."""
    assert clean_text(" " * 500_000 + "x") == " " * 500_000 + "x"
    assert clean_text("a" + " " * 500_000 + "\nb") == "a\nb"
