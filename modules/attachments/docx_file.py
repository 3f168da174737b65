"""DOCX → text by python-docx: paragraphs, headings, lists, tables and text boxes in the order of the document.

Headers, footers, footnotes, comments and what is marked as deleted are not read.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from docx import Document
from docx.opc.exceptions import PackageNotFoundError
from docx.oxml.ns import qn

from modules.attachments.extracted import Extracted, clean_text, refuse, shortened
from modules.units import MiB, format_size

if TYPE_CHECKING:
    from docx.document import Document as WordDocument

MAX_UNPACKED_BYTES = 256 * MiB
MAX_PART_BYTES = 48 * MiB
MAX_PARTS = 5_000
MAX_TAGS = 2_000_000  # in all parts; each element takes some 150 bytes and four millionths of a second
_TEXT, _TAB, _PARAGRAPH, _TABLE, _ROW, _CELL = (qn(f"w:{tag}") for tag in ("t", "tab", "p", "tbl", "tr", "tc"))
_BREAKS = {qn("w:br"), qn("w:cr")}
_UNREAD = {qn("w:del"), qn("w:moveFrom"), "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback",
           qn("w:pPr"), qn("w:instrText")}  # fmt: skip
_HURT = (PackageNotFoundError, SyntaxError, zipfile.BadZipFile, zlib.error, KeyError, ValueError, AttributeError,
         TypeError, EOFError, OSError, NotImplementedError, RecursionError)  # fmt: skip
_DEEPEST = 12  # tables in tables


def read_docx(data: bytes, name: str) -> Extracted:
    """The text of a Word document. Raises BadAttachment for one that is damaged, empty or unpacks to too much."""
    _check_size(data, name)
    try:
        document = Document(io.BytesIO(data))
        text = "\n".join(_blocks(document, document.element.body, 0))
    except _HURT as error:
        why = " ".join(str(error).split())[:120].rstrip(".") or type(error).__name__
        refuse(f"{name} cannot be read as a Word document: {why}.", "Open it in a word processor and save it anew.")
    if not text.strip():
        refuse(f"{name} has no text.", "Attach a document that has some.")
    kept, cut = shortened(clean_text(text))
    return Extracted("docx", kept, "Word document", cut)


def _check_size(data: bytes, name: str) -> None:
    """Raise BadAttachment for an archive that unpacks to more than any document needs; no more is unpacked here."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            parts = archive.infolist()
            written = [part for part in parts if part.filename.endswith((".xml", ".rels"))]
            whole = sum(part.file_size for part in parts)
            largest = max((part.file_size for part in written), default=0)
            too_much = len(parts) > MAX_PARTS or whole > MAX_UNPACKED_BYTES or largest > MAX_PART_BYTES
            too_much = too_much or sum(archive.read(part).count(b"<") for part in written) > MAX_TAGS
    except (zipfile.BadZipFile, zlib.error, RuntimeError, ValueError, OSError, EOFError, NotImplementedError):
        refuse(f"{name} is damaged.", "Open it in a word processor and save it anew.")
    if too_much:
        refuse(
            f"{name} unpacks to {format_size(whole)} in {len(parts):,} parts: no document needs that.",
            "Open it in a word processor and save it as a new DOCX, or as PDF.",
        )


def _blocks(document: WordDocument, parent: Any, depth: int) -> Iterator[str]:
    """The lines of what is in `parent`."""
    for element in parent:
        if element.tag == _PARAGRAPH:
            yield _prefix(document, element) + "".join(_words(element))
        elif element.tag == _TABLE and depth < _DEEPEST:
            yield from _rows(document, element, depth)
        elif element.tag not in _UNREAD and len(element):  # content controls, tracked insertions
            yield from _blocks(document, element, depth)


def _rows(document: WordDocument, table: Any, depth: int) -> Iterator[str]:
    yield ""
    for row in table.iter(_ROW):
        if next(row.iterancestors(_TABLE)) is not table:
            continue  # of a table inside this one
        cells = [cell for cell in row.iter(_CELL) if next(cell.iterancestors(_ROW)) is row]
        yield " | ".join(" ".join(" ".join(_blocks(document, cell, depth + 1)).split()) for cell in cells)
    yield ""


def _words(parent: Any) -> Iterator[str]:
    """The text of a paragraph, that of its text boxes included."""
    for element in parent:
        if element.tag == _TEXT:
            yield element.text or ""
        elif element.tag == _TAB:
            yield "\t"
        elif element.tag in _BREAKS:
            yield "\n"
        elif element.tag == _PARAGRAPH:
            yield "\n" + "".join(_words(element))
        elif element.tag not in _UNREAD:
            yield from _words(element)


def _prefix(document: WordDocument, paragraph: Any) -> str:
    """How Markdown marks a heading or an entry of a list, "" for a plain paragraph."""
    style = paragraph.style
    name = (document.styles.element.get_by_id(style).name_val or "") if style and _known(document, style) else ""
    kind, _, level = name.casefold().partition(" ")
    if kind == "heading" and level.isdecimal():
        return "#" * min(int(level), 6) + " "
    return {"title": "# ", "list": "- "}.get(kind, "")


def _known(document: WordDocument, style: str) -> bool:
    return document.styles.element.get_by_id(style) is not None
