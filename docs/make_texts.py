"""Writes locales/snug.pot, and brings locales/*.po up to date: `python -m docs.make_texts`. A test keeps them true.

English stays where it is said. It is found there: `t("…")` and `tn("…", "…", count)` in scripts and in Python, what
Gradio's controls are given, what settings and parameters are described with, and sentences of the other rooms, whose
f-strings become templates. With the name of a language it says what that one lacks.
"""

from __future__ import annotations

import ast
import io
import itertools
import re
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from babel.messages.catalog import Catalog
from babel.messages.jslexer import Token, tokenize, unquote_string
from babel.messages.pofile import read_po, write_po

from docs.composed_texts import COMPOSED
from modules import sampling, settings
from modules.texts.catalogue import DECLARED, LOCALES, TEMPLATE
from modules.ui.labels import METHODS, STOP_INFO, label_of

ROOT = Path(__file__).parent.parent
STATIC = ROOT / "modules" / "ui" / "static"
DOORS = (
    "modules/api/doors/door_page.py",
    "modules/api/doors/lock.py",
    "modules/api/accounts.py",
    "modules/api/conversations.py",
)
"""Routes of the API of which the page shows what they say."""
SILENT = (
    "modules/ui/", "modules/texts/", "modules/api/", "modules/plan_command/", "modules/check.py",
    "modules/settings", "modules/startup.py", "modules/starter.py", "modules/download_command.py",
    "modules/engine/zero3/", "modules/engine/llamacpp/gbnf", "modules/engine/llamacpp/schema_grammar.py",
    "modules/memory/forecasting/training.py", "modules/memory/dryruns/training_dryrun.py", "modules/outgoing.py",
    "modules/chat/casting.py", "modules/chat/forms.py", "modules/engine/host/child.py",
    "modules/engine/host/generation.py",
    "modules/engine/process/", "modules/engine/loading/library_messages.py", "modules/memory/known_gpus.py",
    "modules/models/state.py", "modules/extensions/deadline.py",
)  # fmt: skip
"""Rooms whose sentences the page never shows, or that have doors of their own below."""
SHORT = ("modules/compare/report.py", "modules/memory/forecasting/budget.py", "modules/downloads/", "modules/models/")
"""Rooms of which single words are shown too."""
SHOWN = {"label", "info", "placeholder", "title"}
WITH_TEXT = {"Button", "HTML", "Markdown", "Accordion", "Tab", "Group", "Checkbox", "Textbox"}
_PHRASE = re.compile(r"[^\W\d_]{2,}[,.;:’”)]? [“(]?[^\W\d_]{2,}")
_WORD = re.compile(r"[A-Z][a-z]+(?: [a-z]+)*")
_NO_TEXT = re.compile(
    r"\b(?:SELECT|INSERT|CREATE|UPDATE|DELETE FROM|ALTER|PRAGMA|WHERE|BEGIN|JOIN|ORDER BY)\b|= \?|, ?\?\)"
    r"|%[sd]|\\[dsw]|</?\w+>|^--|\w\[\w|\w_id\b|^(?:[\w.]+, )+[\w.]+$|^engine [a-z]+$"
)


class Found(NamedTuple):
    """A message where it was found."""

    text: str
    plural: str
    path: str


# Scripts


def from_scripts() -> Iterator[Found]:
    """What scripts give to `t` and `tn`, and the table of keys."""
    for path in sorted(STATIC.glob("*.js")):
        source, name = path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix()
        for text, plural in calls_in_script(source):
            yield Found(text, plural, name)
        if path.name == "keys.js":
            for text in re.findall(r'(?:group|does): "([^"]*)"', source):
                yield Found(text, "", name)


def calls_in_script(source: str) -> Iterator[tuple[str, str]]:
    """The texts in `t("…")`, and those in `tn("…", "…"`, also within template strings."""
    for tokens in _levels(source):
        for at, token in enumerate(tokens):
            name = token.value.removeprefix("snug.")
            if token.type != "name" or name not in ("t", "tn") or tokens[at - 1].value == "function":
                continue
            following = tokens[at + 1 : at + 5]
            if len(following) < 2 or following[0].value != "(" or following[1].type != "string":
                continue
            plural = unquote_string(following[3].value) if name == "tn" else ""
            yield unquote_string(following[1].value), plural


def _levels(source: str) -> Iterator[list[Token]]:
    """The tokens of a script, and those of each expression within its template strings."""
    tokens = [token for token in tokenize(source) if token.type not in ("linecomment", "multilinecomment")]
    yield tokens
    for token in tokens:
        if token.type == "template_string":
            for inner in _expressions(token.value[1:-1]):
                yield from _levels(inner)


def _expressions(template: str) -> Iterator[str]:
    """What stands in ${…}."""
    at = template.find("${")
    while at >= 0:
        depth, end = 1, at + 2
        while end < len(template) and depth:
            depth += {"{": 1, "}": -1}.get(template[end], 0)
            end += 1
        yield template[at + 2 : end - 1]
        at = template.find("${", end)


def bare_in_script(source: str) -> Iterator[str]:
    """Strings that look like words for people and are not given to `t`."""
    for tokens in _levels(source):
        for at, token in enumerate(tokens):
            before = [other.value.removeprefix("snug.") for other in tokens[max(0, at - 4) : at]]
            if token.type == "string" and is_human(text := unquote_string(token.value)):
                said = before[-2:] in (["t", "("], ["tn", "("]) or before[:2] == ["tn", "("]
                compared = before[-2:] in (["==", "="], ["!=", "="]) or "".join(before).endswith("selectTab(")
                if not said and not compared:
                    yield text
            if token.type == "template_string" and is_human(_fixed(token.value)):
                yield token.value


def _fixed(template: str) -> str:
    for inner in _expressions(template):
        template = template.replace("${" + inner + "}", " ")
    return template.strip("`").strip()


def is_human(text: str) -> bool:
    """Whether a string of a script is for people: several words, or one with a capital."""
    if re.search(r"[#\[\]=<>{}]|^\.|--|^M[\d ]|^https?:|^aria-|^data-|^snug[.:]|var\(|^\(", text):
        return False
    return bool(_PHRASE.search(text)) or bool(re.fullmatch(r"\W*[A-Z][a-z]+[\w’' -]*[.…!?]?\W*", text))


# The page's Python


def from_page() -> Iterator[Found]:
    """What modules/ui and the doors give to `t`, `tn` and errors, and what Gradio's controls get."""
    for path in (*sorted((ROOT / "modules" / "ui").glob("*.py")), *(ROOT / door for door in DOORS)):
        name = path.relative_to(ROOT).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            texts = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
            if called in ("t", "tn", "checked") and texts:
                yield Found(texts[0], texts[1] if called == "tn" else "", name)
            elif is_error(called):
                for text in itertools.chain.from_iterable(map(templates, _arguments(node))):
                    yield Found(text, "", name)
            for text in control_texts(node, called):
                yield Found(text, "", DECLARED)


def control_texts(node: ast.Call, called: str) -> Iterator[str]:
    """Texts in a call of one of Gradio's controls, or of Tab: labels, help, and what stands in HTML."""
    gradio = isinstance(node.func, ast.Attribute) and getattr(node.func.value, "id", "") == "gr"
    if not gradio and called != "Tab":
        return
    with_text = called in WITH_TEXT
    named = [kw.value for kw in node.keywords if kw.arg in SHOWN or (with_text and kw.arg == "value")]
    for arg in (*node.args[:2], *named) if with_text or called == "Tab" else named:
        if isinstance(arg, ast.Constant) and isinstance(arg.value, str):
            yield from (text for text in html_texts(arg.value) if called != "Tab" or text[:1].isupper())


class _Texts(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_data(self, data: str) -> None:
        """A stretch of text between two tags."""
        if re.search(r"[^\W\d_]{2,}", data):
            self.found.append(data.strip())


def html_texts(html: str) -> list[str]:
    """The texts between the tags, as the page's script finds them."""
    parser = _Texts()
    parser.feed(html)
    return parser.found


# What comes with Snug


def from_extensions() -> Iterator[Found]:
    """Names, first lines and controls of the extensions that come with Snug, and what their scripts give to `t`."""
    for path in sorted((ROOT / "extensions").glob("*/script.py")):
        name = path.relative_to(ROOT).as_posix()
        tree = ast.parse(path.read_text(encoding="utf-8"))
        yield Found((ast.get_docstring(tree) or "").partition("\n")[0], "", name)
        for node in ast.walk(tree):
            if isinstance(node, ast.Dict):
                titled = (value for key, value in zip(node.keys, node.values, strict=True) if _is(key, "display_name"))
                yield from (Found(str(title.value), "", name) for title in titled if isinstance(title, ast.Constant))
            elif isinstance(node, ast.Call):
                called = node.func.attr if isinstance(node.func, ast.Attribute) else ""
                yield from (Found(text, "", name) for text in control_texts(node, called))
        if (script := path.with_name("page.js")).exists():
            source, name = script.read_text(encoding="utf-8"), script.relative_to(ROOT).as_posix()
            yield from (Found(text, plural, name) for text, plural in calls_in_script(source))


def from_characters() -> Iterator[Found]:
    """What the gallery says of the characters that come with Snug."""
    for path in sorted((ROOT / "characters").glob("*.yaml")):
        notes = str(yaml.safe_load(path.read_text(encoding="utf-8")).get("creator_notes", ""))
        yield Found(" ".join(notes.split()), "", path.relative_to(ROOT).as_posix())


def _is(node: ast.AST | None, text: str) -> bool:
    return isinstance(node, ast.Constant) and node.value == text


# What is declared once


def declared() -> Iterator[Found]:
    """Labels, help and choices of settings and parameters."""
    texts: list[str] = []
    groups = {settings.flag_of(name).group for name in settings.LoadOptions.model_fields}
    texts += [title for group, title in settings.GROUP_TITLES.items() if group in groups]
    for name, field in settings.LoadOptions.model_fields.items():
        texts += [label_of(name), field.description or ""]
    texts += sampling.GROUP_TITLES.values()
    for found in sampling.controls().values():
        for name, control in found.items():
            texts += [control.label, sampling.GenerationParams.model_fields[name].description or ""]
    texts += [
        path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("#").strip()
        for path in sorted((ROOT / "presets").glob("*.yaml"))
    ]
    texts += ["Stop strings", STOP_INFO, "default", "chosen by Snug", "off", *METHODS, *METHODS.values()]
    return (Found(text, "", DECLARED) for text in texts if text)


# The other rooms


def from_rooms() -> Iterator[Found]:
    """Errors and sentences of the rooms below the page."""
    for text in COMPOSED:
        yield Found(text, "", "modules/memory/planning/explaining.py")
    for path in sorted((ROOT / "modules").rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if name == "modules/settings.py":
            calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call) and is_error(_called(node)))
            for text in itertools.chain.from_iterable(templates(arg) for node in calls for arg in _arguments(node)):
                yield Found(text, "", name)
        if not name.startswith(SILENT):
            for text in sentences(tree, short=name.startswith(SHORT)):
                yield Found(text, "", name)


def _owner(node: ast.Call) -> str:
    return getattr(node.func.value, "id", "") if isinstance(node.func, ast.Attribute) else ""


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def is_error(name: str) -> bool:
    """Whether a class of this name is one of modules/errors.py."""
    return name in _ERRORS


_ERRORS = {
    node.name
    for node in ast.parse((ROOT / "modules" / "errors.py").read_text(encoding="utf-8")).body
    if isinstance(node, ast.ClassDef)
} | {"refuse"}


def _arguments(node: ast.Call) -> list[ast.expr]:
    """What an error is given to say."""
    return [*node.args[:2], *(keyword.value for keyword in node.keywords if keyword.arg in ("remedy", "message"))]


def sentences(tree: ast.AST, *, short: bool = False) -> Iterator[str]:
    """All texts for people, but docstrings, what is logged, and what a ValueError says."""
    for node in _spoken(tree):
        if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str)):
            for text in templates(node):
                fixed = re.sub(r"\{\w+\}", " X ", text)
                phrase = _PHRASE.search(fixed) and not _NO_TEXT.search(text)
                if phrase or (short and _WORD.fullmatch(text)):
                    yield text


def _spoken(node: ast.AST) -> Iterator[ast.AST]:
    """Every node that may be said to somebody; of f-strings the whole alone."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
            continue
        if isinstance(child, ast.Call) and _owner(child) in ("log", "logging", "re", "warnings"):
            continue
        if isinstance(child, (ast.JoinedStr, ast.Constant)):
            yield child
            if isinstance(child, ast.JoinedStr):
                for part in child.values:
                    if isinstance(part, ast.FormattedValue):
                        yield from _spoken(part)
            continue
        yield from _spoken(child)


def templates(node: ast.expr | ast.AST) -> Iterator[str]:
    """The texts that an expression may become, values as {names}; nothing for what is no text."""
    if isinstance(node, ast.IfExp):
        yield from templates(node.body)
        yield from templates(node.orelse)
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        yield from templates(node.left)
        yield from templates(node.right)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        if re.search(r"[^\W\d_]{2,}", node.value):
            yield node.value.strip()
    elif isinstance(node, ast.JoinedStr):
        names: dict[str, str] = {}
        for combination in itertools.islice(itertools.product(*(_part(part, names) for part in node.values)), 8):
            text = "".join(combination).strip()
            if re.search(r"[^\W\d_]{2,}", re.sub(r"\{\w+\}", "", text)):
                yield text


def _part(part: ast.expr, names: dict[str, str]) -> list[str]:
    """The texts that a piece of an f-string may be."""
    if isinstance(part, ast.Constant):
        return [str(part.value)]
    assert isinstance(part, ast.FormattedValue)
    value = part.value
    if isinstance(value, ast.IfExp):
        both = (value.body, value.orelse)
        if all(isinstance(one, ast.Constant) and isinstance(one.value, str) for one in both):
            return [str(one.value) for one in both]  # type: ignore[attr-defined]
    source = ast.unparse(value) + ast.unparse(part.format_spec) if part.format_spec else ast.unparse(value)
    if source not in names:
        wanted, number = _name(value), 2
        name = wanted
        while name in names.values():
            name, number = f"{wanted}{number}", number + 1
        names[source] = name
    return [f"{{{names[source]}}}"]


def _name(node: ast.AST) -> str:
    """A word for a value: the last name in its expression."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name.strip("_").lower()
        case ast.Call(args=[first, *_]):
            return _name(first)
        case ast.Call(func=ast.Attribute(value=inner)) | ast.Subscript(value=inner) | ast.BinOp(left=inner):
            return _name(inner)
        case _:
            return "value"


# The files


@cache
def found() -> dict[tuple[str, str], list[str]]:
    """Every message with the files that say it, in the order of the files."""
    messages: dict[str, tuple[str, list[str]]] = {}
    said = (from_scripts(), declared(), from_page(), from_extensions(), from_characters(), from_rooms())
    for text, plural, path in itertools.chain.from_iterable(said):
        known, paths = messages.get(text, ("", []))
        messages[text] = (known or plural, paths if path in paths else [*paths, path])
    return {(text, plural): paths for text, (plural, paths) in messages.items()}


def render(code: str = "", translated: dict[str, Any] | None = None) -> str:
    """A catalogue as text: the template, or that of a language with translations by text."""
    catalogue = Catalog(locale=code.replace("-", "_") or None, charset="utf-8")
    for (text, plural), paths in found().items():
        catalogue.add((text, plural) if plural else text, (translated or {}).get(text), [(path, 1) for path in paths])
    out = io.BytesIO()
    write_po(out, catalogue, width=0, omit_header=True, include_lineno=False)
    return (head_of(code) if code else "") + out.getvalue().decode("utf-8")


def head_of(code: str) -> str:
    """The lines that programs for translators look for."""
    forms = Catalog(locale=code.replace("-", "_")).plural_forms
    return (
        f'msgid ""\nmsgstr ""\n"Project-Id-Version: Snug\\n"\n"Language: {code}\\n"\n'
        f'"Content-Type: text/plain; charset=utf-8\\n"\n"Plural-Forms: {forms}\\n"\n\n'
    )


def translations(path: Path) -> dict[str, Any]:
    """What a catalogue says already."""
    with path.open("rb") as file:
        catalogue = read_po(file, locale=path.stem.replace("-", "_"))
    said = {}
    for message in catalogue:
        text = message.id if isinstance(message.id, str) else message.id[0]
        if text and message.string and not message.fuzzy:
            said[text] = message.string
    return said


def lacking(code: str) -> list[str]:
    """The messages that a language has no words for."""
    said = translations(LOCALES / f"{code}.po")
    return [text for text, _ in found() if text not in said]


def main(arguments: Iterable[str]) -> None:
    """Write all, or list what the named languages lack."""
    codes = list(arguments)
    for code in codes:
        missing = lacking(code)
        print(  # noqa: T201
            f"{code}: {len(missing)} of {len(found())} texts stay English", *missing, sep="\n  "
        )
    if codes:
        return
    TEMPLATE.write_text(render(), encoding="utf-8")
    for path in sorted(LOCALES.glob("*.po")):
        path.write_text(render(path.stem, translations(path)), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
