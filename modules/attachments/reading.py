"""A file's bytes → its text, by what they hold; what a file is called decides nothing."""

from __future__ import annotations

import io
import zipfile

from modules.attachments.docx_file import read_docx
from modules.attachments.extracted import MAX_PICTURE_SIDE, Extracted, refuse
from modules.attachments.pdf import read_pdf
from modules.attachments.picture import is_picture, read_picture
from modules.attachments.plain import read_text
from modules.errors import BadAttachment

_PDF_WITHIN = 1024  # bytes: some programs write something before the header
_AS_DOCX = "Save it as DOCX or PDF and attach that."
_PICTURE = "Save it as PNG, JPEG or WebP and attach that."
_KNOWN = (
    (b"GIF8", "a picture", _PICTURE),
    (b"BM", "a picture", _PICTURE),
    (b"II*\x00", "a picture", _PICTURE),
    (b"MM\x00*", "a picture", _PICTURE),
    (b"\x7fELF", "a program", "Attach its source text."),
    (b"MZ\x90", "a program", "Attach its source text."),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office document", _AS_DOCX),
    (b"SQLite format 3\x00", "a database", "Export what you need as text."),
    (b"\x1f\x8b", "a compressed file", "Unpack it first."),
    (b"7z\xbc\xaf\x27\x1c", "an archive", "Unpack it first."),
    (b"Rar!", "an archive", "Unpack it first."),
    (b"BZh", "a compressed file", "Unpack it first."),
    (b"\xfd7zXZ", "a compressed file", "Unpack it first."),
    (b"GGUF", "a model", "Put it into the models folder."),
    (b"ID3", "a sound", "Snug cannot hear; attach a transcript."),
    (b"OggS", "a sound", "Snug cannot hear; attach a transcript."),
    (b"fLaC", "a sound", "Snug cannot hear; attach a transcript."),
)
_ARCHIVES = (
    ("word/", "a Word document of a kind that Snug does not read", _AS_DOCX),
    ("xl/", "a spreadsheet", "Save the sheet as CSV, or print it into a PDF."),
    ("ppt/", "a presentation", "Print it into a PDF and attach that."),
    ("content.xml", "an OpenDocument file", _AS_DOCX),
    ("META-INF/container.xml", "an e-book", "Convert it to PDF or text."),
)


def read(data: bytes, name: str, *, most_side: int = MAX_PICTURE_SIDE) -> Extracted:
    """The text of a file called `name`, or its picture with no side longer than `most_side` pixels.

    Raises BadAttachment, with a remedy, for all that has none for Snug.
    """
    if not data:
        refuse(f"{name} is empty.", "Is the file whole?")
    if is_picture(data):
        return read_picture(data, name, most_side=most_side)
    if b"%PDF-" in data[:_PDF_WITHIN]:
        return read_pdf(data, name)
    if data.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _archive(data, name)
    if data.startswith(b"{\\rtf"):
        refuse(f"{name} is an RTF document, which Snug does not read.", _AS_DOCX)
    try:
        return read_text(data, name)
    except BadAttachment:  # only then: a text may begin with any of the letters that sounds and archives begin with
        _refuse_known(data, name)
        raise


def _refuse_known(data: bytes, name: str) -> None:
    """Say what a file is that is no text, where its first bytes tell."""
    if data[4:8] == b"ftyp":
        refuse(f"{name} is a film or a picture, which Snug does not read.", _PICTURE)
    for beginning, what, remedy in _KNOWN:
        if data.startswith(beginning):
            refuse(f"{name} is {what}, which Snug does not read.", remedy)


def _archive(data: bytes, name: str) -> Extracted:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            inside = set(archive.namelist())
    except (zipfile.BadZipFile, ValueError, OSError, EOFError, NotImplementedError):
        refuse(f"{name} is a damaged archive.", "Is the file whole?")
    if "word/document.xml" in inside and "word/vbaProject.bin" not in inside:
        return read_docx(data, name)
    for beginning, what, remedy in _ARCHIVES:
        if any(part.startswith(beginning) for part in inside):
            refuse(f"{name} is {what}.", remedy)
    return refuse(f"{name} is an archive.", "Unpack it and attach the files that matter.")
