"""Markdown written by a model or a user → HTML that is safe to show, and cheap to show again at every token.

Raw HTML is text, images are links (nothing loads from elsewhere), code is highlighted, maths becomes MathML, and nh3
has the last word. What an extension has made of a text may carry a few tags of its own. Not for text of our own.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import nh3
from latex2mathml.converter import convert
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.rules_block import StateBlock
from markdown_it.rules_core import StateCore
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict
from mdit_py_plugins.amsmath import RE_OPEN, amsmath_block, amsmath_plugin
from mdit_py_plugins.dollarmath import dollarmath_plugin

from modules.ui.highlighting import HIGHLIGHTER
from modules.ui.words import t

MAX_MARKDOWN_CHARS = 100_000
MAX_OWN_CHARS = 400_000  # with the tags
MAX_CODE_CHARS = 50_000
MAX_MATH_CHARS = 5_000
MAX_FORMULAS = 2_000  # of one text; a browser takes as long again as it takes here

_HTML_NAMES = """p br hr h1 h2 h3 h4 h5 h6 em strong s del a code pre span div blockquote ul ol li table thead tbody
tr th td button"""
_MATHML_NAMES = """math semantics annotation mrow mi mn mo ms mtext mspace msup msub msubsup mfrac msqrt mroot mover
munder munderover mtable mtr mtd mlabeledtr mstyle mpadded mphantom menclose merror mmultiscripts mprescripts none"""
_MATHML_ATTRIBUTES = """xmlns display displaystyle mathvariant mathcolor stretchy fence form separator accent largeop
movablelimits symmetric minsize maxsize lspace rspace linethickness scriptlevel columnalign rowspacing columnspacing
columnlines rowlines columnspan notation width height depth voffset"""
_TAGS = {*_HTML_NAMES.split(), *_MATHML_NAMES.split()}
_ATTRIBUTES: dict[str, set[str]] = {
    "a": {"href", "title", "class", "target"},
    "span": {"class"},
    "div": {"class"},
    "code": {"class"},
    "pre": {"tabindex"},  # so that what is wider than the page scrolls by keys too
    "ol": {"start"},
    "th": {"class"},
    "td": {"class"},
    "button": {"class", "type", "data-act"},
    **{tag: set(_MATHML_ATTRIBUTES.split()) for tag in _MATHML_NAMES.split()},
}


def render(text: str) -> str:
    """The whole of `text` as HTML. Text too long to be worth parsing comes back as plain text."""
    if len(text) > MAX_MARKDOWN_CHARS:
        return _plain(text)
    return _clean(_parser().render(_normalise(text)))


class StreamingMarkdown:
    """Renders a growing text; blocks that can no longer change are rendered once.

    `update(text)` returns (blocks, tail): HTML of the finished top-level blocks, and of the one still being written.
    A text that does not begin with the previous one starts over.
    """

    def __init__(self) -> None:
        self._text = ""
        self._frozen = 0
        self._blocks: list[str] = []

    def update(self, text: str) -> tuple[list[str], str]:
        """The HTML of `text`, split into what is finished and what may still change."""
        text = _normalise(text)
        if not text.startswith(self._text):
            self._frozen, self._blocks = 0, []
        self._text = text
        tail = text[self._frozen :]
        if len(tail) > MAX_MARKDOWN_CHARS:
            return list(self._blocks), _plain(tail)
        tokens = _parser().parse(tail)
        cut = _start_of_last_block(tokens)
        if cut:
            lines = tail.splitlines(keepends=True)
            done = "".join(lines[:cut])
            self._blocks.append(_clean(_parser().render(done)))
            self._frozen += len(done)
            tail = tail[len(done) :]
            tokens = _parser().parse(tail)
        if tokens and tokens[-1].type not in ("fence", "code_block"):
            tokens = _parser().parse(_without_open_formula(tail))
        parser = _parser()
        return list(self._blocks), _clean(parser.renderer.render(tokens, parser.options, {}))


def may_hold_code(text: str) -> bool:
    """Whether drawing `text` may wait for the process that knows languages."""
    return "```" in text or "~~~" in text


def _start_of_last_block(tokens: Sequence[Token]) -> int:
    """The line on which the last top-level block begins; 0 where there is only one."""
    starts = [token.map[0] for token in tokens if token.level == 0 and token.map and token.nesting >= 0]
    return starts[-1] if len(starts) > 1 else 0


def _without_open_formula(tail: str) -> str:
    """`tail` up to a display formula that has begun and not ended: it is shown once it is whole."""
    start = tail.rfind("$$") if tail.count("$$") % 2 else -1
    bracket = tail.rfind("\\[")
    if bracket >= 0 and tail.find("\\]", bracket) < 0:
        start = bracket if start < 0 else min(start, bracket)
    return tail[:start] if start >= 0 else tail


def _normalise(text: str) -> str:
    """Line ends as markdown-it counts them; Python's splitlines() knows more kinds."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\x00", "\ufffd")
    for odd in ("\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"):
        text = text.replace(odd, " ")
    return text


def _plain(text: str) -> str:
    return f'<div class="plain">{html.escape(text)}</div>'


def _clean(markup: str) -> str:
    return nh3.clean(
        markup,
        tags=_TAGS,
        attributes=_ATTRIBUTES,
        url_schemes={"http", "https", "mailto"},
        link_rel="noopener noreferrer nofollow",
    )


# What extensions may put into a text beside Markdown: signs of style and what the text itself carries. No class and no
# data-… attribute, by which the page knows its own buttons.
_OWN_NAMES = "span b i u em strong small mark sub sup br hr p div details summary img audio"
_OWN_TAGS = set(_OWN_NAMES.split())
_OWN_ATTRIBUTES = {
    "span": {"style", "title"},
    "div": {"style"},
    "img": {"src", "alt", "title", "width", "height"},
    "audio": {"src", "controls"},
}
_OWN_STYLES = {"color", "background-color", "font-weight", "font-style", "text-decoration", "text-align"}
_OWN_SOURCES = {
    "img": re.compile(r"data:image/(png|jpeg|gif|webp);base64,"),
    "audio": re.compile(r"data:audio/[\w.+-]+[;,]"),
}
# What begins like a tag and is none here ("<" within an attribute) would be one to nh3, with all that Markdown makes.
# Nothing is read twice: a name without an end, or comments without one, would take the square of their length.
_COMMENT_END = "-->"
_TAG = re.compile(r"</?([a-zA-Z][\w-]*+)[^<>]*+>|<")
_TAG_OR_COMMENT = re.compile(rf"<!--.*?{_COMMENT_END}|{_TAG.pattern}", re.DOTALL)
_WITHOUT_END = {"br", "hr", "img"}
MAX_OPEN_TAGS = 100
"""Tags of extensions within one another; deeper ones are text. For each more, all that are open may be looked at."""


def render_modified(text: str) -> str:
    """A text from an extension as HTML: Markdown as in `render`, and tags of a few harmless kinds."""
    if len(text) > MAX_OWN_CHARS:
        return _plain(text)
    return nh3.clean(
        _parser(own_tags=True).render(_normalise(text)),
        tags=_TAGS | _OWN_TAGS,
        attributes={
            **_ATTRIBUTES,
            **{tag: _ATTRIBUTES.get(tag, set()) | more for tag, more in _OWN_ATTRIBUTES.items()},
        },
        url_schemes={"http", "https", "mailto", "data"},
        link_rel="noopener noreferrer nofollow",
        attribute_filter=_own_source,
        filter_style_properties=_OWN_STYLES,
    )


def _own_source(tag: str, name: str, value: str) -> str | None:
    """Pictures and sounds come with the text, never from elsewhere; links lead to pages."""
    if name == "src":
        return value if tag in _OWN_SOURCES and _OWN_SOURCES[tag].match(value) else None
    return None if name == "href" and value.strip().lower().startswith("data:") else value


def _own_tags(_: RendererHTML, tokens: Sequence[Token], index: int, _options: OptionsDict, env: EnvType) -> str:
    """Raw HTML with the tags that are allowed; the others as text."""
    content = tokens[index].content
    open_tags: list[str] = env.setdefault("open_tags", [])
    own_tag = partial(_own_tag, open_tags=open_tags)
    before, last, after = content.rpartition(_COMMENT_END)
    return _TAG_OR_COMMENT.sub(own_tag, before + last) + _TAG.sub(own_tag, after)


def _own_tag(found: re.Match[str], *, open_tags: list[str]) -> str:
    """One tag as it may stand, or as text. `open_tags` are those around it, at least: what ends is the innermost."""
    tag, name = found.group(), (found.group(1) or "").lower()
    if name not in _OWN_TAGS:
        return html.escape(tag)
    innermost = open_tags[-1:] == [name]
    if tag.startswith("</"):
        if innermost:
            open_tags.pop()
        return f"</{name}>"
    if name not in _WITHOUT_END and not (name == "p" and innermost):
        if len(open_tags) == MAX_OPEN_TAGS:
            return html.escape(tag)
        open_tags.append(name)
    safe = nh3.clean(
        tag, tags=_OWN_TAGS, attributes=_OWN_ATTRIBUTES, url_schemes={"data"}, attribute_filter=_own_source,
        filter_style_properties=_OWN_STYLES, link_rel=None,
    )  # fmt: skip
    if name in _OWN_SOURCES and "src=" not in safe:
        return html.escape(tag)
    return safe.removesuffix(f"</{name}>")


@cache
def _parser(*, own_tags: bool = False) -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": own_tags, "linkify": False, "breaks": True})
    parser.add_render_rule("html_inline", _own_tags)
    parser.add_render_rule("html_block", _own_tags)
    parser.enable(["table", "strikethrough"])
    parser.use(dollarmath_plugin, double_inline=True, allow_space=False, allow_digits=False, renderer=_math)
    parser.use(amsmath_plugin, renderer=lambda content: _math(content, {"display_mode": True}))
    parser.block.ruler.at("amsmath", _amsmath, {"alt": ["paragraph", "reference", "blockquote", "list"]})
    parser.inline.ruler.before("escape", "bracket_math", _bracket_math)
    parser.core.ruler.push("images_to_links", _images_to_links)
    parser.core.ruler.push("few_formulas", _few_formulas)
    parser.add_render_rule("math_inline_double", _display_math)
    parser.add_render_rule("fence", _fence)
    parser.add_render_rule("code_block", _fence)
    parser.add_render_rule("link_open", _link)
    parser.add_render_rule("th_open", _cell)
    parser.add_render_rule("td_open", _cell)
    parser.add_render_rule("table_open", lambda *_: '<div class="table"><table>')
    parser.add_render_rule("table_close", lambda *_: "</table></div>")
    return parser


_ENVIRONMENT = re.compile(RE_OPEN)


def _amsmath(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    r"""The plugin's rule, which looks for a formula's \end in all the lines that follow: once in vain is enough."""
    opening = _ENVIRONMENT.match(state.src, state.bMarks[start] + state.tShift[start])
    if opening is None or state.sCount[start] < state.blkIndent:
        return False
    unclosed: set[tuple[str, int]] = state.env.setdefault("unclosed", set())
    if (opening.group(), end) in unclosed:
        return False
    found = amsmath_block(state, start, end, silent)
    if not found:
        unclosed.add((opening.group(), end))
    return found


_BRACKETS = (("\\(", "\\)", "math_inline"), ("\\[", "\\]", "math_inline_double"))


def _bracket_math(state: Any, silent: bool) -> bool:
    r"""The inline rule for \( … \) and \[ … \], which models write more often than dollars."""
    for opening, closing, kind in _BRACKETS:
        if state.src.startswith(opening, state.pos):
            end = state.src.find(closing, state.pos + 2, min(state.posMax, state.pos + MAX_MATH_CHARS))
            content = state.src[state.pos + 2 : end].strip() if end > 0 else ""
            if not content:
                return False
            if not silent:
                token = state.push(kind, "math", 0)
                token.content = content
            state.pos = end + 2
            return True
    return False


_AUTHORITY = re.compile(r"(?:https?:[/\\]*|[/\\]{2,})([^/\\?#]*)", re.IGNORECASE)
_MOST_OF_A_HOST = 100  # characters


def _images_to_links(state: StateCore) -> None:
    """An image would be fetched from wherever the model says: show a link to it instead."""
    for token in state.tokens:
        children: list[Token] = []
        for child in token.children or []:
            if child.type != "image":
                children.append(child)
                continue
            source = str(child.attrs.get("src", ""))
            host = _host(source)
            name = child.content or source
            label = Token("text", "", 0, content=name if not host or _names(name, host) else f"{name} ({host})")
            children += [Token("link_open", "a", 1, attrs={"href": source}), label, Token("link_close", "a", -1)]
        token.children = children if token.children is not None else None


def _host(address: str) -> str:
    """Where an address leads, as browsers read it, to which any number of slashes is as good as two; "" for one without
    a host. Of a long one the end, which says whose it is.
    """
    found = _AUTHORITY.match(address)
    host = found[1].rpartition("@")[2] if found else ""
    return host if len(host) <= _MOST_OF_A_HOST else f"…{host[-_MOST_OF_A_HOST:]}"


def _names(text: str, host: str) -> bool:
    """Whether a host stands in a text by itself, and not as a part of another one."""
    return re.search(rf"(?<![\w.@:-]){re.escape(host)}(?![\w.@:-])", text.replace("//", " ")) is not None


def _link(_: RendererHTML, tokens: Sequence[Token], index: int, _options: OptionsDict, _env: EnvType) -> str:
    href = html.escape(str(tokens[index].attrs.get("href", "")))
    return f'<a href="{href}" title="{href}" target="_blank">'


def _cell(_: RendererHTML, tokens: Sequence[Token], index: int, _options: OptionsDict, _env: EnvType) -> str:
    """A table cell; its alignment becomes a class, since style attributes do not pass."""
    aligned = str(tokens[index].attrs.get("style", "")).removeprefix("text-align:")
    return f'<{tokens[index].tag} class="{aligned}">' if aligned in ("right", "center") else f"<{tokens[index].tag}>"


def _fence(_: RendererHTML, tokens: Sequence[Token], index: int, _options: OptionsDict, _env: EnvType) -> str:
    token = tokens[index]
    language = (token.info or "").strip().split(" ")[0][:30]
    return (
        f'<div class="code"><div class="code-head"><span>{html.escape(language or "text")}</span>'
        f'<button type="button" class="copy-code" data-act="copy-code">{t("Copy")}</button></div>'
        f'<pre tabindex="0"><code>{_highlight(token.content, language)}</code></pre></div>'
    )


def _highlight(code: str, language: str) -> str:
    """Code as spans of Pygments' short class names; plain where the language is unknown, or it takes too long."""
    found = HIGHLIGHTER.html(code, language) if language and len(code) <= MAX_CODE_CHARS else None
    return html.escape(code) if found is None else found


_NUMBERED = re.compile(r"\\(begin|end)\{(align|alignat|equation|gather|multline|eqnarray)\}")
_UNSAFE_MATH = re.compile(r"\\(?:href|url|html\w*|includegraphics|def|newcommand|renewcommand|require|class|style)\b")


def _few_formulas(state: StateCore) -> None:
    """After MAX_FORMULAS the others stay as written, in code; the last line says so."""
    inline = ("math_inline", "math_inline_double")
    formulas = [
        token
        for top in state.tokens
        for token in (top, *(top.children or []))
        if token.type in (*inline, "math_block", "amsmath")
    ]
    for token in formulas[MAX_FORMULAS:]:
        within = token.type in inline
        token.type, token.tag, token.info = ("code_inline" if within else "code_block"), "code", ""
    if len(formulas) > MAX_FORMULAS:
        said = t("Of {count} formulas the first {shown} are drawn.", count=len(formulas), shown=MAX_FORMULAS)
        note = [Token("em_open", "em", 1), Token("text", "", 0, content=said), Token("em_close", "em", -1)]
        state.tokens += [
            Token("paragraph_open", "p", 1, block=True),
            Token("inline", "", 0, content=said, children=note, block=True),
            Token("paragraph_close", "p", -1, block=True),
        ]


def _display_math(_: RendererHTML, tokens: Sequence[Token], index: int, _options: OptionsDict, _env: EnvType) -> str:
    return f'<span class="math block">{_math(tokens[index].content, {"display_mode": True})}</span>'


def _math(content: str, options: dict[str, Any]) -> str:
    """LaTeX as MathML, equations unnumbered; what cannot be converted stays as written, in code."""
    source = _NUMBERED.sub(r"\\\1{\2*}", content.strip())
    if len(source) > MAX_MATH_CHARS or _UNSAFE_MATH.search(source):
        return f"<code>{html.escape(source)}</code>"
    try:
        return convert(source, display="block" if options.get("display_mode") else "inline")
    except Exception:  # the converter raises many kinds of errors on what is not LaTeX
        return f"<code>{html.escape(source)}</code>"
