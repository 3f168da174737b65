"""What extensions put into a text: a few harmless tags are shown, all else is text or gone."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path
from typing import Any

import pytest

from modules.ui.markdown import MAX_OPEN_TAGS, render_modified

PIXEL = "data:image/png;base64,iVBORw0KGgo="


@pytest.mark.parametrize(
    ("text", "markup"),
    [
        ("**a** <b>b</b>", "<strong>a</strong> <b>b</b>"),
        ('<span style="color: red" title="87 %">x</span>', '<span style="color:red" title="87 %">x</span>'),
        (f'<img src="{PIXEL}" alt="bee">', f'<img src="{PIXEL}" alt="bee">'),
        ('<audio controls src="data:audio/wav;base64,UklG"></audio>', 'src="data:audio/wav;base64,UklG"></audio>'),
        ("`<b>`", "<code>&lt;b&gt;</code>"),
        ("1 < 2 & 3", "1 &lt; 2 &amp; 3"),
    ],
)
def test_signs_of_style_pass(text: str, markup: str) -> None:
    assert markup in render_modified(text)


HOSTILE = (
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", '<img src="http://192.0.2.1/x.png">',
    '<span onclick="alert(1)" class="toast bad" data-act="delete" id="snug-send">x</span>',
    '<button data-act="delete">x</button>', '<a href="javascript:alert(1)">x</a>', "[a](data:text/html;base64,AA==)",
    '<span style="position: fixed; inset: 0; background: url(http://192.0.2.1/)">x</span>',
    "<iframe src=data:text/html,x></iframe>", "<style>body{display:none}</style>", "<form><input></form>",
    '<img src="data:image/svg+xml;base64,PHN2Zz4=">', "<svg onload=alert(1)>", "<!-- <b> --><math href=x>",
    "<b <script>alert(1)</script>", "<span style=color:red><span style='position:fixed'", "<object data=x></object>",
)  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_that_acts_loads_or_spoofs_passes(text: str) -> None:
    page = render_modified(f"before {text} after\n\n{text}\n\nend")
    bare = page.replace("&lt;", "").replace('rel="noopener noreferrer nofollow"', "")
    for tag in (
        "<script",
        "<iframe",
        "<svg",
        "<style",
        "<form",
        "<input",
        "<object",
        "<button",
        '<a href="data',
        '<a href="java',
    ):
        assert tag not in page, page
    if "<" in bare:
        for part in bare.split("<")[1:]:
            inside = part.split(">")[0]
            for sign in (
                "onerror",
                "onclick",
                "onload",
                'class="toast',
                "data-act",
                "id=",
                "position",
                "url(",
                "http://",
                "svg+xml",
            ):
                assert sign not in inside, page


def script(name: str) -> Any:
    """A shipped script, run plainly."""
    spec = importlib.util.spec_from_file_location(name, Path("extensions") / name / "script.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def token(text: str, probability: float) -> dict[str, Any]:
    return {"text": text, "probability": probability, "top": [(' "<b>\n', 0.5)]}


def test_perplexity_colours_unsure_words_and_leaves_code_formulas_and_marks_alone() -> None:
    coloured = script("perplexity_colors").coloured
    said = {" I": 0.9, " am": 0.6, " **": 0.1, "sure": 0.1, "**": 0.1, " `": 0.1, "code": 0.1, "`": 0.1, "\n\n$x$": 0.1}
    tokens = [token(text, probability) for text, probability in said.items()]
    text = "".join(one["text"] for one in tokens).strip()
    made = coloured(text, tokens)
    assert made.count("<span") == 2
    assert "`code`" in made
    assert "$x$" in made
    page = render_modified(made)
    assert "<strong><span" in page
    assert 'title="60% (&quot;' in page
    assert "<b>" not in page.replace("&lt;b>", "")


def test_perplexity_colours_what_was_continued_and_leaves_a_text_that_others_have_changed() -> None:
    coloured = script("perplexity_colors").coloured
    assert coloured("Begun and gone", [token(" gone", 0.1)]).startswith("Begun and <span")
    assert coloured("SOMETHING ELSE", [token("other", 0.1)]) == "SOMETHING ELSE"


@pytest.mark.parametrize("text", ["](" * 100_000, "\n" * 100_000 + "x"])
def test_what_colours_leave_alone_is_found_in_one_pass(text: str) -> None:
    colours = script("perplexity_colors")
    started = time.thread_time()
    assert not [*colours.FENCE.finditer(text), *colours.BLOCK.finditer(text)]
    assert time.thread_time() - started < 10


def test_a_tag_that_hides_behind_its_attributes_is_text() -> None:
    page = render_modified(
        '<button class="copy-code" data-act="delete" title="<">Go</button> <div class="toast" title="<">x</div> 1 < 2'
    )
    assert "<button" not in page, "the page knows its own buttons by data-act"
    assert "<div" not in page
    assert "1 &lt; 2" in page


@pytest.mark.parametrize(
    "text",
    [
        "<div>\n<" + "a" * 100_000, "<div>\n" + "<!--" * 25_000, "<!--" * 25_000 + "-->", "<div>" * 20_000,
        "x" + "<span>" * 8_000, "x<span><div></span></div>" * 2_000, "<b>" * 9 + "<p>x" * 5_000,
    ],
    ids=["name", "comments", "comment", "nested", "spans", "crossed", "paragraphs"],
)  # fmt: skip
def test_what_would_take_the_square_of_its_length_is_read_once(text: str) -> None:
    started = time.thread_time()
    render_modified(text)
    assert time.thread_time() - started < 3.0


def test_tags_without_end_are_text_below_a_depth_and_others_are_not() -> None:
    assert render_modified("x" + "<span>" * (MAX_OPEN_TAGS + 5)).count("<span>") == MAX_OPEN_TAGS
    for text, tag in (("<p>a\n", "<p>"), ("<br>", "<br>"), ("<i>a</i> ", "<i>"), ("<div><b>a</b></div>\n", "<b>")):
        assert render_modified(text * 500).count(tag) == 500


def test_a_comment_is_text_wherever_it_ends() -> None:
    for text in ("<!-- <b> -->", "a <!-- <b> --> b", "<!-- <b>", "<div>\n<!-- a --> <u>u</u> <!-- <b>"):
        page = render_modified(text)
        assert "&lt;!--" in page
        assert "<!--" not in page
    assert "<u>u</u>" in page
    assert "<b>" not in render_modified("<!-- <b> -->")
