"""Files as people attach them, made here: PDF, DOCX, and hostile ones."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Sequence

from docx import Document
from pypdf import PdfReader, PdfWriter


def pdf(*pages: str) -> bytes:
    """A PDF with a line of text on each page; "" is an empty page."""
    return pdf_of(*(_stream(f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET".encode()) for text in pages))


def pdf_of(*contents: bytes, kids: str = "") -> bytes:
    """A PDF with these content streams, one a page; `kids` stands in the place of the list of pages."""
    listed = " ".join(f"{4 + 2 * number} 0 R" for number in range(len(contents)))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids or listed}] /Count {len(contents)} >>".encode(),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for number, content in enumerate(contents):
        page = (
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {5 + 2 * number} 0 R"
            f" /Resources << /Font << /F1 3 0 R >> /XObject << /A {5 + 2 * number} 0 R >> >> >>"
        )
        objects += page.encode(), content
    return _numbered(objects)


def squeezed(size: int) -> bytes:
    """A content stream that unpacks to so many blanks."""
    return _stream(zlib.compress(b" " * size, 9), b"/Filter /FlateDecode ")


def looped() -> bytes:
    """A content stream that draws itself."""
    about = b"/Type /XObject /Subtype /Form /BBox [0 0 9 9] /Resources << /XObject << /A 5 0 R >> >> "
    return _stream(b"/A Do", about)


def _stream(content: bytes, about: bytes = b"") -> bytes:
    return b"<< %s/Length %d >>\nstream\n%s\nendstream" % (about, len(content), content)


def _numbered(objects: Sequence[bytes]) -> bytes:
    sink, places = io.BytesIO(), []
    sink.write(b"%PDF-1.4\n")
    for number, body in enumerate(objects, start=1):
        places.append(sink.tell())
        sink.write(b"%d 0 obj\n%s\nendobj\n" % (number, body))
    start = sink.tell()
    sink.write(b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1))
    sink.writelines(b"%010d 00000 n \n" % place for place in places)
    sink.write(b"trailer << /Root 1 0 R /Size %d >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, start))
    return sink.getvalue()


def locked_pdf(password: str, owner: str = "owner") -> bytes:
    """A PDF that `password` opens."""
    writer, sink = PdfWriter(clone_from=PdfReader(io.BytesIO(pdf("A secret.")))), io.BytesIO()
    writer.encrypt(password, owner, algorithm="RC4-128")
    writer.write(sink)
    return sink.getvalue()


def docx(*paragraphs: str, heading: str = "", table: Sequence[Sequence[str]] = ()) -> bytes:
    """A Word document."""
    document, sink = Document(), io.BytesIO()
    if heading:
        document.add_heading(heading, 2)
    for text in paragraphs:
        document.add_paragraph(text)
    if table:
        made = document.add_table(len(table), len(table[0]))
        for row, texts in enumerate(table):
            for column, text in enumerate(texts):
                made.cell(row, column).text = text
    document.save(sink)
    return sink.getvalue()


def docx_with_body(body: bytes, before: bytes = b"") -> bytes:
    """A Word document whose body is this XML; `before` stands in front of the root."""
    main = b"http://schemas.openxmlformats.org/wordprocessingml/2006/main"
    xml = b'<?xml version="1.0"?>%s<w:document xmlns:w="%s"><w:body>%s</w:body></w:document>' % (before, main, body)
    return repacked(docx("x"), {"word/document.xml": xml})


def repacked(archive: bytes, parts: dict[str, bytes]) -> bytes:
    """The same archive with other parts."""
    sink = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            if name not in parts:
                new.writestr(name, old.read(name))
        for name, data in parts.items():
            new.writestr(name, data)
    return sink.getvalue()


def archive(**parts: bytes) -> bytes:
    """A ZIP archive; `__` in a name stands for a slash, `_` before its ending for a dot."""
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as new:
        for name, data in parts.items():
            new.writestr(name.replace("__", "/").replace("_", "."), data)
    return sink.getvalue()


def endless_jpeg(scans: int, side: int = 64) -> bytes:
    """A progressive JPEG, grey, that goes over its picture again so many times: 7 ms each at 4000 × 4000 pixels."""

    def segment(mark: int, body: bytes) -> bytes:
        return b"\xff" + bytes([mark]) + (len(body) + 2).to_bytes(2, "big") + body

    size = side.to_bytes(2, "big")
    blocks = (side // 8) ** 2
    head = (
        b"\xff\xd8" + segment(0xDB, b"\x00" + b"\x01" * 64) + segment(0xC2, b"\x08" + size + size + b"\x01\x01\x11\x00")
    )
    codes = b"\x01" + b"\x00" * 15  # one code, of one bit
    tables = segment(0xC4, b"\x00" + codes + b"\x00") + segment(0xC4, b"\x10" + codes + b"\xe0")
    first = segment(0xDA, b"\x01\x01\x00\x00\x00\x00") + b"\x00" * -(-blocks // 8)
    nothing_more = segment(0xDA, b"\x01\x01\x00\x01\x3f\x00") + b"\x00\x01" * -(-blocks // 16_384)
    return head + tables + first + nothing_more * scans + b"\xff\xd9"
