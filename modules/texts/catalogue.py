"""The page's words in other languages: locales/NAME.po, in which English sentences are the keys.

`Catalogue` knows which languages there are; `Texts` is one of them. What has no translation stays English. Nothing here
knows of requests or of pages.
"""

from __future__ import annotations

import gettext
import hashlib
import json
import logging
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from modules.texts.matching import Templates
from modules.texts.negotiating import ENGLISH
from modules.texts.pseudo import ACCENTED, MIRRORED, pseudo

log = logging.getLogger(__name__)

LOCALES = Path(__file__).parent.parent.parent / "locales"
TEMPLATE = LOCALES / "snug.pot"
PAGE = "modules/ui/static/"
"""Where a message must come from to be sent to every page."""
DECLARED = "modules/ui/labels.py"
"""The location of what Gradio's controls say: it comes with the page's config."""
EXTENSIONS = "extensions/"
"""Where those that come with Snug are; their controls are the page's too."""
COMPOSING = ("modules/memory/planning/", "modules/memory/forecasting/")
"""Where sentences are put together of pieces."""
_PSEUDO = (ACCENTED, MIRRORED)
_NAME = re.compile(r"\{(\w+)\}")
_SENTENCE_END = re.compile(r"(?<=[.!?]) ")
_NUMBER = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+\.\d+")
_AMOUNT = re.compile(
    r"[−–\-+±×≈ ]*[\d½][\d.,]*(?:(?: ?– ?| to | / )\d[\d.,]*)?"
    r"(?: ?(?:[KMGT]i?B|B|%|ms|s|min|h)\b| %)*(?: \d+ (?:s|min))?"
)
_JOINT = re.compile(r"( \+ | = |, | and |; |: | · )")
_DEEP = 4
_LONGEST = 4000  # characters; no sentence of ours is, and what holds somebody's text stays as it is


@dataclass(frozen=True, slots=True)
class Message:
    """A key of the catalogue: its plural if it has one, whether pages get it, whether its values are pieces of ours."""

    text: str
    plural: str
    on_page: bool
    composed: bool = False


@dataclass(frozen=True, slots=True)
class Language:
    """A language as people choose it: `name` in itself, `direction` "ltr" or "rtl"."""

    code: str
    name: str
    direction: str


class Texts:
    """One language."""

    def __init__(
        self,
        language: Language,
        messages: Mapping[str, Message],
        translated: Mapping[str, tuple[str, ...]],
        form_of: Callable[[int], int],
        separators: tuple[str, str] = (".", ","),
    ) -> None:
        self.language = language
        self._messages = messages
        self._translated = translated
        self._form_of = form_of
        self._decimal, self._group = separators

    def get(self, text: str, values: Mapping[str, object] | None = None) -> str:
        """`text` in this language, with `values` in the places of the names in braces."""
        return self._filled(self._form(text, 0) or text, values or {})

    def plural(self, one: str, many: str, count: int, values: Mapping[str, object] | None = None) -> str:
        """The form for `count`, which is a value too."""
        english = one if count == 1 else many
        shown = self._form(one, self._form_of(count)) if one in self._translated else english
        return self._filled(shown or english, {"count": count, **(values or {})})

    def tell(self, sentence: str) -> str:
        """A complete English text of another room: whole, or as far as its sentences are known."""
        if not sentence or len(sentence) > _LONGEST or self.language.code == ENGLISH:
            return sentence
        if (whole := self._told(sentence)) is not None:
            return whole
        sentences = _SENTENCE_END.split(sentence)
        told, at = [], 0
        while at < len(sentences):
            for end in range(min(len(sentences), at + 12), at, -1):
                known = self._told(" ".join(sentences[at:end]))
                if known is not None:
                    told.append(known)
                    at = end
                    break
            else:
                told.append(self.amount(sentences[at]))
                at += 1
        return " ".join(told)

    def _told(self, text: str, depth: int = 0) -> str | None:
        """As a message, by its template, or piece by piece; None for none of them. No text is told by halves."""
        if (known := self._form(text, 0)) is not None:
            return known
        if depth > _DEEP:
            return None
        for match in self._templates.find(text):
            composed = self._messages[match.template].composed
            values = {name: self._value(value, depth, composed=composed) for name, value in match.values.items()}
            if None not in values.values():
                return self._filled(self._form(match.template, 0) or match.template, values)
        if text and text[-1] in ",;:." and (known := self._told(text[:-1], depth + 1)) is not None:
            return known + text[-1]
        return self._pieces(text, depth)

    def _value(self, value: str, depth: int, *, composed: bool) -> str | None:
        """What stands in a sentence. Those about plans hold no names but pieces of ours, which must be known too;
        elsewhere a text of several words may be one of ours."""
        if " " not in value:
            return self._form(value, 0) if composed and value in self._translated else self.amount(value)
        known = self._told(value, depth + 1)
        amount = self.amount(value)
        return amount if known is None and (not composed or _AMOUNT.fullmatch(value)) else known

    def _pieces(self, text: str, depth: int) -> str | None:
        """A text of pieces, each of which is known, an amount, or a name."""
        pieces = _JOINT.split(text)
        if len(pieces) == 1:
            return None
        told, known = [], False
        for piece in pieces:
            said = self._form(piece, 0) if _JOINT.fullmatch(piece) else self._told(piece, depth + 1)
            known |= said is not None and not _JOINT.fullmatch(piece)
            if said is None and " " in piece.strip() and not _JOINT.fullmatch(piece) and not _AMOUNT.fullmatch(piece):
                return None
            told.append(self.amount(piece) if said is None else said)
        return "".join(told) if known else None

    def amount(self, value: str) -> str:
        """`4,096` and `7.9 GiB` with this language's signs; anything else as it is."""
        if (self._decimal, self._group) == (".", ",") or not _AMOUNT.fullmatch(value):
            return value
        signs = {".": self._decimal, ",": self._group}
        shown = _NUMBER.sub(lambda found: "".join(signs.get(sign, sign) for sign in found.group()), value)
        return shown.replace(" to ", "–")

    def _form(self, text: str, number: int) -> str | None:
        forms = self._translated.get(text)
        return (forms[min(number, len(forms) - 1)] or None) if forms else None

    def _filled(self, text: str, values: Mapping[str, object]) -> str:
        def value(match: re.Match[str]) -> str:
            if match.group(1) not in values:
                return match.group()
            found = values[match.group(1)]
            return self.amount(f"{found:,}") if isinstance(found, int) else str(found)

        return _NAME.sub(value, text) if values else text

    @cached_property
    def _templates(self) -> Templates:
        known = [message for message in self._messages.values() if not message.plural]
        return Templates(
            (message.text for message in known), short=(message.text for message in known if message.composed)
        )

    @cached_property
    def script(self) -> str:
        """What a page needs of it, as a script; the same text for all pages."""
        shown = {text: forms for text, forms in self._translated.items() if self._messages[text].on_page}
        data: dict[str, Any] = {
            "messages": {text: forms[0] if len(forms) == 1 else forms for text, forms in shown.items()},
            "forms": [self._form_of(count) for count in range(201)],
        }
        return f"window.snugTexts = {json.dumps(data, ensure_ascii=False)};\n".replace("</", "<\\/")

    @cached_property
    def version(self) -> str:
        """Another one whenever the script is."""
        return hashlib.sha256(self.script.encode()).hexdigest()[:12]


class Catalogue:
    """All languages, read when they are first asked for."""

    def __init__(self, folder: Path = LOCALES) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._read: dict[str, Texts] = {}

    @cached_property
    def codes(self) -> tuple[str, ...]:
        """Every language but English, the two for developers included; a file that names no language is none."""
        return (*(code for code in sorted(path.stem for path in self._folder.glob("*.po")) if _is_code(code)), *_PSEUDO)

    @cached_property
    def offered(self) -> tuple[Language, ...]:
        """What people choose from, English first."""
        return (Language(ENGLISH, "English", "ltr"), *(_described(code) for code in self.codes if code not in _PSEUDO))

    def texts(self, code: str) -> Texts:
        """One of `codes`; English for anything else."""
        with self._lock:
            if code not in self._read:
                self._read[code] = self._texts(code)
            return self._read[code]

    def _texts(self, code: str) -> Texts:
        if code in _PSEUDO:
            return _pseudo_texts(code, read_messages(self._folder / TEMPLATE.name))
        if code in self.codes:
            try:
                return _read_texts(self._folder / f"{code}.po")
            except (OSError, ValueError) as error:
                log.warning("The translation %s.po cannot be read (%s); the page stays English.", code, error)
        return Texts(Language(ENGLISH, "English", "ltr"), {}, {}, _english_form)


def _is_code(code: str) -> bool:
    from babel import Locale, UnknownLocaleError  # only where there is another language than English

    try:
        Locale.parse(code, sep="-")
    except (UnknownLocaleError, ValueError):
        log.warning("locales/%s.po is not named like a language, and left out.", code)
        return False
    return True


def _english_form(count: int) -> int:
    return int(count != 1)


def _described(code: str) -> Language:
    from babel import Locale

    locale = Locale.parse(code, sep="-")
    name = locale.get_display_name(code) or code
    return Language(code, name[:1].upper() + name[1:], locale.text_direction)


def _pseudo_texts(code: str, messages: Mapping[str, Message]) -> Texts:
    translated = {
        text: tuple(map(pseudo, (text, message.plural) if message.plural else (text,)))
        for text, message in messages.items()
    }
    direction = "rtl" if code == MIRRORED else "ltr"
    return Texts(Language(code, pseudo("English"), direction), messages, translated, _english_form)


def _read_texts(path: Path) -> Texts:
    from babel import Locale
    from babel.messages.pofile import read_po

    with path.open("rb") as file:
        catalogue = read_po(file, locale=path.stem.replace("-", "_"))
    messages: dict[str, Message] = {}
    translated: dict[str, tuple[str, ...]] = {}
    for found in catalogue:
        if found.id and not found.fuzzy:
            text, plural = (found.id, "") if isinstance(found.id, str) else (str(found.id[0]), str(found.id[1]))
            messages[text] = Message(text, plural, _on_page(found.locations), _composed(found.locations))
            forms = (found.string,) if isinstance(found.string, str) else tuple(map(str, found.string or ()))
            if forms and all(forms):
                translated[text] = forms
    symbols = Locale.parse(path.stem, sep="-").number_symbols["latn"]
    form_of = gettext.c2py(catalogue.plural_expr)
    return Texts(_described(path.stem), messages, translated, form_of, (symbols["decimal"], symbols["group"]))


def read_messages(path: Path) -> dict[str, Message]:
    """The keys of a template."""
    from babel.messages.pofile import read_po

    with path.open("rb") as file:
        catalogue = read_po(file)
    found: dict[str, Message] = {}
    for message in catalogue:
        if message.id:
            text, plural = (message.id, "") if isinstance(message.id, str) else (str(message.id[0]), str(message.id[1]))
            found[text] = Message(text, plural, _on_page(message.locations), _composed(message.locations))
    return found


def _on_page(locations: list[tuple[str, int]]) -> bool:
    return any(path.startswith((PAGE, DECLARED, EXTENSIONS)) for path, _ in locations)


def _composed(locations: list[tuple[str, int]]) -> bool:
    return all(path.startswith(COMPOSING) for path, _ in locations)
