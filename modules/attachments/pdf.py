"""PDF → text, page by page, by pypdf. What is on the pages as pictures only is not read."""

from __future__ import annotations

import io
import logging
import time
from typing import NoReturn

from pypdf import PasswordType, PdfReader
from pypdf.errors import DependencyError, PyPdfError

from modules.attachments.extracted import MAX_CHARACTERS, Extracted, clean_text, cut_at_line, refuse

READ_S = 20.0  # then what has been read must do

_HURT = (PyPdfError, ValueError, TypeError, KeyError, IndexError, AttributeError, OSError, ArithmeticError,
         RecursionError, AssertionError, NotImplementedError)  # fmt: skip
_LOCKED_REMEDY = "Open it with its password, print it into a new PDF, and attach that."


def read_pdf(data: bytes, name: str, *, read_s: float = READ_S) -> Extracted:
    """The text of all pages, or of the first ones: up to MAX_CHARACTERS, or what can be read in `read_s`.

    Raises BadAttachment for a file that is locked, damaged or without text.
    """
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # it tells the log of every oddity of a file
    reader = _opened(data, name)
    try:
        pages = len(reader.pages)
    except _HURT as error:
        _refuse_damaged(name, error)
    ends, parts, characters, bare, hurt = time.monotonic() + read_s, [], 0, 0, 0
    done, why = 0, ""
    for number in range(pages):
        try:
            text = clean_text(reader.pages[number].extract_text())
        except _HURT:
            text, hurt = "", hurt + 1
        done = number + 1
        if text.strip():
            parts.append(f"[Page {done}]\n{text}")
            characters += len(parts[-1]) + 2
        else:
            bare += 1
        if characters > MAX_CHARACTERS:
            why = "the rest is too long"
        elif time.monotonic() > ends:
            why = "the rest takes too long to read"
        if why:
            break
    if not parts:
        _refuse_bare(name, pages, hurt)
    whole = "\n\n".join(parts)
    kept = cut_at_line(whole, MAX_CHARACTERS) if len(whole) > MAX_CHARACTERS else whole
    return Extracted("pdf", kept, f"PDF, {_pages(pages)}", _cut(done, pages, why, bare, shortened=kept != whole))


def _opened(data: bytes, name: str) -> PdfReader:
    try:
        reader = PdfReader(io.BytesIO(data), strict=False)
        if reader.is_encrypted and reader.decrypt("") == PasswordType.NOT_DECRYPTED:
            refuse(f"{name} is locked with a password.", _LOCKED_REMEDY)
    except DependencyError:
        refuse(f"{name} is encrypted.", _LOCKED_REMEDY)
    except _HURT as error:
        _refuse_damaged(name, error)
    return reader


def _cut(done: int, pages: int, why: str, bare: int, *, shortened: bool) -> str:
    if shortened or done < pages:
        read = f"Only pages 1 to {done:,} of {pages:,} were read" if done < pages else "The last page was cut"
        return f"{read}: {why}."
    return f"{_pages(bare)} of {pages:,} {'has' if bare == 1 else 'have'} no text." if bare else ""


def _pages(count: int) -> str:
    return "1 page" if count == 1 else f"{count:,} pages"


def _refuse_damaged(name: str, error: Exception) -> NoReturn:
    why = " ".join(str(error).split())[:120].rstrip(".") or type(error).__name__
    refuse(f"{name} cannot be read as a PDF: {why}.", "Is the file whole? Open it and print it into a new PDF.")


def _refuse_bare(name: str, pages: int, hurt: int) -> NoReturn:
    if hurt == pages and pages:
        refuse(f"No page of {name} can be read.", "Open it and print it into a new PDF.")
    refuse(
        f"{name} has {_pages(pages)} but no text: it holds pictures of pages, as scanners make them.",
        "Let a text recognition (OCR) add the text, for example with ocrmypdf, and attach the result.",
    )
