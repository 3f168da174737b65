"""The page's words in other languages: found where they are said, matched where they come complete."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from docs import make_texts
from modules.texts.catalogue import LOCALES, TEMPLATE, Catalogue, Message, Texts, read_messages
from modules.texts.matching import Templates
from modules.texts.negotiating import choose_language
from modules.texts.pseudo import pseudo

ROOT = Path(__file__).parent.parent
GERMAN = Catalogue().texts("de")
MESSAGES = read_messages(TEMPLATE)
NAMES = re.compile(r"\{\w+\}")
SILENT_IN_PYTHON = {
    "your parameters", "the handler {handler}", "noopener noreferrer nofollow", "There is no such language.",
    "Cookie, Accept-Language", "plan-device over", "plan-device idle", "plan-bar small", "plan-bar lens", "way taken",
    "way unfit", "IBM Plex Sans", "IBM Plex Mono", "Value error,", "public, max-age={year_s}, immutable",
}  # fmt: skip
"""Texts of modules/ui that no person reads there: classes, headers, fonts."""
BARE_ALLOWED = {
    "Chat", "Characters", "Notebook", "Compare", "Model", "Parameters", "Extensions",
    "use strict", "Content-Type", "Files", "Escape", "Enter", "ArrowUp", "ArrowDown", "ArrowLeft", "ArrowRight", "Tab",
    "Ctrl", "Alt", "Shift", "Esc", "Any letter", "input, textarea", "offer-size lacks", "noreferrer noopener", "Snug",
    "your parameters", "`${title} · Snug`", "`${thread.conversation.title} · Snug`", "`Extension ${name}:`",
    "`width:${Math.max(48, Math.round(share * file.width))}px`",
}  # fmt: skip
"""Strings of scripts that look like words and are none: keys, headers, selectors, names."""


def texts(**translated: str) -> Texts:
    """A language with a few messages."""
    messages = {text: Message(text, "", False) for text in translated}
    forms = {text: (said,) for text, said in translated.items()}
    return Texts(GERMAN.language, messages, forms, lambda count: int(count != 1), (",", "."))


def test_the_template_is_what_the_sources_say() -> None:
    assert TEMPLATE.read_text(encoding="utf-8") == make_texts.render(), "run python -m docs.make_texts"


@pytest.mark.parametrize("path", sorted(LOCALES.glob("*.po")), ids=lambda path: path.stem)
def test_a_catalogue_has_the_messages_of_the_template_and_keeps_their_names(path: Path) -> None:
    known = make_texts.render(path.stem, make_texts.translations(path))
    assert path.read_text(encoding="utf-8") == known, "run python -m docs.make_texts"
    plurals = {text: message.plural for text, message in MESSAGES.items()}
    wrong = []
    for text, said in make_texts.translations(path).items():
        for form in (said,) if isinstance(said, str) else said:
            if set(NAMES.findall(form)) - set(NAMES.findall(text + plurals[text])):
                wrong.append((text, form))
            if plurals[text] == "" and set(NAMES.findall(form)) != set(NAMES.findall(text)):
                wrong.append((text, form))
    assert wrong == []


def test_a_language_with_more_plural_forms_gets_a_line_for_each(tmp_path: Path) -> None:
    path = tmp_path / "pl.po"
    path.write_text(TEMPLATE.read_text(encoding="utf-8"), encoding="utf-8")  # as docs/translating.md says
    path.write_text(make_texts.render("pl", make_texts.translations(path)), encoding="utf-8")
    text = path.read_text(encoding="utf-8").replace(
        'msgid "{count} token"\nmsgid_plural "{count} tokens"\nmsgstr[0] ""\nmsgstr[1] ""\nmsgstr[2] ""\n',
        'msgid "{count} token"\nmsgid_plural "{count} tokens"\nmsgstr[0] "{count} żeton"\nmsgstr[1] "{count} żetony"\n'
        'msgstr[2] "{count} żetonów"\n',
    )
    path.write_text(text, encoding="utf-8")
    polish = Catalogue(tmp_path).texts("pl")
    told = [polish.plural("{count} token", "{count} tokens", count) for count in (1, 2, 5, 22)]
    assert told == ["1 żeton", "2 żetony", "5 żetonów", "22 żetony"]
    assert polish.get("Close") == "Close"


def test_german_says_nearly_all_that_the_page_says() -> None:
    """English shows where a translation is missing: a new text need not wait for one, but most have one."""
    on_page = [text for text, message in MESSAGES.items() if message.on_page]
    said = make_texts.translations(LOCALES / "de.po")
    assert len([text for text in on_page if text in said]) > 0.9 * len(on_page)


def test_what_comes_with_snug_is_german_too() -> None:
    said = make_texts.translations(LOCALES / "de.po")
    texts = {found.text for found in (*make_texts.from_extensions(), *make_texts.from_characters())}
    assert {"Web search", "Shortest reply (tokens)", "0 is off", "Read aloud"} <= texts
    assert [text for text in texts if text not in said] == []
    assert all(MESSAGES[found.text].on_page for found in make_texts.from_extensions())


@pytest.mark.parametrize("path", sorted((ROOT / "extensions").glob("*/page.js")), ids=lambda path: path.parent.name)
def test_the_extensions_scripts_put_no_bare_words_on_the_page(path: Path) -> None:
    known = {"`${one.name} (${one.lang})`"}
    assert [text for text in make_texts.bare_in_script(path.read_text(encoding="utf-8")) if text not in known] == []


@pytest.mark.parametrize("path", sorted((ROOT / "modules/ui/static").glob("*.js")), ids=lambda path: path.name)
def test_scripts_put_no_bare_words_on_the_page(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    table = set(re.findall(r'(?:group|does): "([^"]*)"', source)) if path.name == "keys.js" else set()
    if path.name == "keys.js":
        table |= set(re.findall(r'keys: \["([^"]*)"', source)) | {"Ctrl+,"}
    assert [text for text in make_texts.bare_in_script(source) if text not in BARE_ALLOWED | table] == []


def test_bare_words_would_be_found() -> None:
    """Guards the guard."""
    source = (
        'el("p", {}, "Write a message"); el("p", {}, `Delete ${t("all")} now`, t("Saved")); x === "Chat"; "div.box"'
    )
    assert list(make_texts.bare_in_script(source)) == ["Write a message", '`Delete ${t("all")} now`']
    assert list(make_texts.calls_in_script('`a ${t("One {b}")} c`; tn("{count} x", "{count} y", 2)')) == [
        ("{count} x", "{count} y"), ("One {b}", ""),
    ]  # fmt: skip


@pytest.mark.parametrize("path", sorted((ROOT / "modules/ui").glob("*.py")), ids=lambda path: path.stem)
def test_python_puts_no_bare_words_into_html(path: Path) -> None:
    """What stands between two tags in a string is said by t(…), unless Gradio's controls get it once for all."""
    bare = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and list(make_texts.control_texts(node, getattr(node.func, "attr", ""))):
            for inner in ast.walk(node):
                inner.said = True  # type: ignore[attr-defined]
        said = getattr(node, "said", False)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and not said:
            bare += re.findall(r">([^<>{}]*[A-Za-z]{3,}[^<>{}]*)</", node.value)
    assert bare == []


@pytest.mark.parametrize("path", sorted((ROOT / "modules/ui").glob("*.py")), ids=lambda path: path.stem)
def test_python_of_the_page_says_nothing_that_the_catalogue_lacks(path: Path) -> None:
    known = set(MESSAGES) | {message.plural for message in MESSAGES.values()}
    tree = ast.parse(path.read_text(encoding="utf-8"))
    said = set(make_texts.sentences(tree)) - known - SILENT_IN_PYTHON
    assert [
        text
        for text in said
        if not re.search(r"snug\.|element, server|[;=]|var\(|^p br |^math |^xmlns |^span b ", text)
    ] == []
    labels = [
        keyword.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(getattr(node.func, "value", None), "id", "") == "gr"
        for keyword in node.keywords
        if keyword.arg in make_texts.SHOWN
    ]
    assert [ast.unparse(label) for label in labels if isinstance(label, ast.JoinedStr)] == []


def test_f_strings_become_templates_with_a_name_for_each_value() -> None:
    def found(source: str) -> list[str]:
        return list(make_texts.templates(ast.parse(source, mode="eval").body))

    assert found('f"{name} has {format_size(plan.total)}, {len(parts)} parts, {name} twice."') == [
        "{name} has {total}, {parts} parts, {name} twice."
    ]
    assert found("f\"{count} token{'s' if count > 1 else ''}\"") == ["{count} tokens", "{count} token"]
    assert found('"One." if x else "Two."') == ["One.", "Two."]
    assert found("f'{a}: {b}'") == []
    tree = ast.parse(
        '"""A docstring of words."""\nlog.info("not for people")\nx = "said to people"\ny = "SELECT a FROM b"'
    )
    assert list(make_texts.sentences(tree)) == ["said to people"]


def test_a_sentence_finds_its_template_and_its_values() -> None:
    templates = Templates(["{name} is larger than {size}.", "{name} is larger than {size} and older.", "{a}, {b}"])
    match = next(templates.find("cat.png is larger than 7 MiB."))
    assert match.template == "{name} is larger than {size}."
    assert match.values == {"name": "cat.png", "size": "7 MiB"}
    longer = next(templates.find("x is larger than 7 MiB and older."))
    assert longer.template == "{name} is larger than {size} and older."
    assert list(templates.find("salt, pepper")) == []
    again = Templates(["{name} is not {name} any more"])
    assert [match.values for match in again.find("a b is not a b any more")] == [{"name": "a b"}]
    assert list(again.find("a is not b any more")) == []
    many = Templates(["many {a} · {b} · {c} · {d} · {e} · {f} · {g} · {h} words"])
    assert list(many.find("many words" + " · " * 100_000)) == []  # in one pass, or never


def test_told_sentences_are_translated_whole_in_part_and_in_depth() -> None:
    some = texts(**{
        "{name} was not {what}: {why}.": "{name} wurde nicht {what}: {why}.",
        "the disk is full": "die Platte ist voll", "Try again.": "Noch einmal versuchen.", "saved": "gespeichert",
        "It needs {size}.": "Es braucht {size}.",
    })  # fmt: skip
    assert some.tell("saved was not saved: the disk is full.") == "saved wurde nicht saved: die Platte ist voll."
    assert some.tell("It needs 7.9 GiB. Nobody knows this. Try again.") == (
        "Es braucht 7,9 GiB. Nobody knows this. Noch einmal versuchen."
    )
    assert some.tell("") == ""
    assert some.tell("Llama-3.2-1B") == "Llama-3.2-1B"
    assert [some.amount(text) for text in ("4,096", "1,234.5 MiB", "3.2-beta", "× 1.002")] == [
        "4.096", "1.234,5 MiB", "3.2-beta", "× 1,002",
    ]  # fmt: skip


def test_an_error_of_the_store_is_told_in_german() -> None:
    told = GERMAN.tell("There is no preset Wild. Choose one from the list.")
    assert told == "Es gibt kein Preset Wild. Eines aus der Liste wählen."
    assert GERMAN.plural("{count} token", "{count} tokens", 1) == "1 Token"
    assert GERMAN.plural("{count} token", "{count} tokens", 4096) == "4.096 Tokens"
    assert GERMAN.get("{size} while loading", {"size": GERMAN.amount("1.002 GiB")}) == "1,002 GiB beim Laden"
    assert GERMAN.get("nobody has translated {this}", {"this": 1}) == "nobody has translated 1"


def test_what_a_plan_says_is_told_whole_or_not_at_all() -> None:
    told = GERMAN.tell("bf16: 2.05 GiB weights + 44.0 MiB KV cache = 2.54 GiB of 8.00 GiB free in CPU memory.")
    assert told == "bf16: 2,05 GiB Gewichte + 44,0 MiB KV-Cache = 2,54 GiB der 8,00 GiB, die im CPU-Speicher frei sind."
    faster = "8-bit also fits, but writes 6.0 times slower and loses 0 to 1 % of quality."
    assert (
        GERMAN.tell(faster) == "8 Bit passt auch, schreibt aber 6,0-mal langsamer und verliert 0 bis 1 % der Qualität."
    )
    unknown = "8-bit also fits, but writes nobody knows what."
    assert GERMAN.tell(unknown) == unknown


@given(st.text(max_size=300))
def test_no_text_makes_telling_fail(text: str) -> None:
    assert isinstance(GERMAN.tell(text), str)


@pytest.mark.parametrize(
    ("headers", "language"),
    [
        ({}, "en"),
        ({"accept-language": "de-AT,de;q=0.9,en;q=0.8"}, "de"),
        ({"accept-language": "fr, en;q=0.9, de;q=0.8"}, "en"),
        ({"accept-language": "fr, de;q=0.8"}, "de"),
        ({"accept-language": "de;q=0, fr"}, "en"),
        ({"accept-language": "de;q=x,,;"}, "en"),
        ({"cookie": "snug_language=en; a=b", "accept-language": "de"}, "en"),
        ({"cookie": "snug_language=../../etc", "accept-language": "de"}, "de"),
        ({"cookie": "a=[]; \x00", "accept-language": "de"}, "de"),
    ],
)
def test_the_cookie_decides_then_what_the_browser_likes(headers: dict[str, str], language: str) -> None:
    assert choose_language(headers, ("de", "en-XA")) == language


def test_what_is_no_language_is_english() -> None:
    assert Catalogue().texts("../secret").language.code == "en"
    assert Catalogue().texts("en").tell("Try again.") == "Try again."
    assert [language.code for language in Catalogue().offered][:2] == ["en", "de"]


def test_a_file_that_is_no_catalogue_leaves_the_page_english(tmp_path: Path) -> None:
    (tmp_path / "fr.po").write_bytes(b'msgid "Close"\nmsgstr "\xff\xfe"\n')
    (tmp_path / "my notes.po").write_text("nothing", encoding="utf-8")
    broken = Catalogue(tmp_path)
    assert [language.name for language in broken.offered] == ["English", "Français"]
    assert broken.texts("fr").get("Close") == "Close"
    assert broken.texts("my notes").language.code == "en"


def test_the_language_nobody_speaks_is_longer_and_keeps_names_and_tags() -> None:
    assert pseudo("Delete {name}?") == "[Délété {name}?··]"
    assert pseudo("<strong>{size}</strong> of it").startswith("[<strong>{size}</strong>")
    arabic = Catalogue().texts("ar-XB")
    assert arabic.language.direction == "rtl" and arabic.get("Save").startswith("[")
