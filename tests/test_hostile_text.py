"""Model text on its way to the page: at every partial state nothing of it can run, load or pretend to be Snug's own."""

from __future__ import annotations

import re
import time
from html.parser import HTMLParser

import pytest

from modules.ui.markdown import StreamingMarkdown, render, render_modified
from tests.hostile_text import CANARY, VECTORS

_NAMES = """p br hr h1 h2 h3 h4 h5 h6 em strong s del a code pre span div blockquote ul ol li table thead tbody tr th
td button math semantics annotation mrow mi mn mo ms mtext mspace msup msub msubsup mfrac msqrt mroot
mover munder munderover mtable mtr mtd mlabeledtr mstyle mpadded mphantom menclose merror mmultiscripts
mprescripts none"""
PLAIN = set(_NAMES.split())
OWN = PLAIN | {"b", "i", "u", "small", "mark", "sub", "sup", "details", "summary", "img", "audio"}
LOADING = {
    "src",
    "srcset",
    "poster",
    "background",
    "data",
    "action",
    "formaction",
    "ping",
    "manifest",
    "srcdoc",
    "xlink:href",
}


class Judge(HTMLParser):
    """Reads HTML as a browser does, and notes what may not be in it."""

    def __init__(self, tags: set[str]) -> None:
        super().__init__(convert_charrefs=True)
        self.tags = tags
        self.faults: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.tags:
            self.faults.append(f"<{tag}>")
        for name, value in attrs:
            text = re.sub(r"[\x00-\x20]", "", value or "").lower()
            if name.startswith("on") or name in ("id", "name"):
                self.faults.append(f"{tag} {name}")
            if name in LOADING and not text.startswith("data:image/"):
                self.faults.append(f"{tag} {name}={value}")
            if name == "href" and not re.match(r"(https?:|mailto:|/|#|[^:]*$)", text):
                self.faults.append(f"{tag} {name}={value}")
            if name == "style" and re.search(r"url|expression|position|import", text):
                self.faults.append(f"{tag} {name}={value}")
            if name == "data-act" and (value != "copy-code" or dict(attrs).get("class") != "copy-code"):
                self.faults.append(f"{tag} {name}={value}")

    def handle_comment(self, data: str) -> None:
        self.faults.append(f"<!--{data}")

    def handle_decl(self, decl: str) -> None:
        self.faults.append(f"<!{decl}")


def faults(page: str, tags: set[str] = PLAIN) -> list[str]:
    judge = Judge(tags)
    judge.feed(page)
    judge.close()
    return judge.faults


def test_there_are_enough_of_them() -> None:
    assert len(set(VECTORS)) >= 150


@pytest.mark.parametrize("part", range(8))
def test_no_partial_state_of_a_hostile_text_has_anything_live(part: int) -> None:
    for vector in VECTORS[part::8]:
        text, streaming = f"So: {vector}\n\nand on", StreamingMarkdown()
        for end in range(1, len(text) + 1):
            blocks, tail = streaming.update(text[:end])
            page = "".join(blocks[-1:]) + tail
            assert faults(page) == [], (text[:end], page)
        assert faults(render(text)) == [], vector
        assert faults(render(vector)) == [], vector


def test_what_an_extension_makes_of_a_text_is_no_more_alive() -> None:
    for vector in VECTORS:
        page = render_modified(f"So: {vector}\n\nand on")
        assert faults(page, OWN) == [], (vector, page)


def test_a_picture_from_elsewhere_is_a_link_that_says_where_it_leads() -> None:
    page = render(f"![a cat](http://{CANARY}/cat.png)")
    assert "<img" not in page
    assert f"a cat ({CANARY})" in page
    assert 'rel="noopener noreferrer nofollow"' in page


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("https:///evil.example/x.png", "evil.example"),  # any number of slashes is as good as two to a browser
        ("HTTPS:evil.example", "evil.example"),
        ("//evil.example/x.png", "evil.example"),
        ("https://bank.example@evil.example/x.png", "evil.example"),
        (f"https://bank.example:{'x' * 100}@evil.example/x.png", "evil.example"),
        (f"https://bank.example.{'x' * 100}.evil.example/x.png", f"…{'x' * 87}.evil.example"),
        ("https://[::1]/x.png", "[::1]"),
    ],
)
def test_a_picture_of_whatever_address_names_the_host_that_a_browser_asks(address: str, host: str) -> None:
    assert f">a cat ({host})</a>" in render(f"![a cat]({address})")
    assert f">evil.example.bank.example ({host})</a>" in render(f"![evil.example.bank.example]({address})")


def test_a_picture_whose_text_names_its_host_does_not_name_it_twice() -> None:
    assert ">evil.example, a cat</a>" in render("![evil.example, a cat](https://evil.example/x.png)")
    assert ">https://evil.example/x.png</a>" in render("![](https://evil.example/x.png)")
    assert ">a cat</a>" in render("![a cat](/x.png)")


BOMBS = {
    "quotes": "> " * 50_000, "lists": "".join("  " * n + "- x\n" for n in range(300)), "backticks": "`" * 99_999,
    "ticks": "".join("`" * (n % 400) + " " for n in range(600)), "stars": "*" * 99_999, "mixed": "*_~" * 30_000,
    "brackets": "[" * 50_000 + "](x)" * 12_000, "columns": "|".join("x" * 5_000) + "\n" + "|".join(["-"] * 5_000),
    "rows": "|a|b|\n|-|-|\n" + "|x|y|\n" * 8_000, "entities": "&amp" * 24_000, "links": "[a](" * 20_000,
    "angle": "<" * 99_999, "tags": "<a " * 30_000, "comments": "<!--" * 20_000, "braces": "$" + "{" * 4_000 + "$",
    "fractions": "$" + "\\frac{" * 800 + "x" + "}{y}" * 800 + "$", "roots": "$" + "\\sqrt{" * 1500 + "}" * 1500 + "$",
    "def": "$\\def\\x{\\x\\x}\\x$" * 1000, "matrix": "$$\\begin{matrix}" + "a&" * 2000 + "\\end{matrix}$$",
    "scripts": "$x" + "^{x" * 1500 + "}" * 1500 + "$", "references": "[x]: /y\n" * 10_000 + "[x]" * 5_000,
    "fences": "```\n" * 20_000, "emphasis": "a**b" * 20_000, "autolinks": "<http://" * 10_000, "pipes": "|" * 99_999,
    "escapes": "\\" * 99_999, "dollars": "$a$ " * 20_000, "left": "$" + "\\left(" * 1500 + "$",
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_rendered_within_a_second_or_shown_as_text(name: str) -> None:
    started = time.thread_time()
    render(BOMBS[name])
    assert time.thread_time() - started < 3.0, "a loaded machine is slower than one"


@pytest.mark.parametrize("name", ["quotes", "brackets", "fences", "dollars", "lists"])
def test_a_bomb_that_grows_is_no_worse_at_its_last_letter(name: str) -> None:
    streaming = StreamingMarkdown()
    streaming.update(BOMBS[name][:-1])
    started = time.thread_time()
    streaming.update(BOMBS[name])
    assert time.thread_time() - started < 3.0
