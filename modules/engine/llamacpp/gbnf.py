"""GBNF grammars, checked before llama.cpp's parser and matcher see them: syntax, names, and what would take for ever.

llama.cpp's parser recurses without a limit, and its matcher follows every way to begin a rule at each token. Not here:
matching; what llama.cpp refuses beyond this comes back as its error. Syntax: llama.cpp's grammars/README.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NoReturn

from modules.engine.llamacpp.gbnf_growth import Alternatives, Item, check_growth
from modules.errors import BadGrammar
from modules.units import KiB

MAX_BYTES = 64 * KiB
MAX_DEPTH = 40
MAX_REPEATS = 2000
# Elements after repetitions are written out: llama.cpp copies the whole grammar at every token.
MAX_ELEMENTS = 20_000
# Ways to begin, or to be empty, of one rule: the matcher follows all of them.
MAX_WAYS = 2_000
_MAX_CHAIN = 60

_TOKEN = re.compile(
    r"""(?P<space>[ \t]+|\#[^\r\n]*)|(?P<line>\r?\n)|(?P<assign>::=)|(?P<name>[A-Za-z0-9-]+)
    |(?P<literal>"(?:[^"\\\r\n]|\\(?:[nrt"\\\[\]]|x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}))*")
    |(?P<class>\[\^?(?:[^\]\\\r\n]|\\(?:[nrt"\\\[\]]|x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}))*\])
    |(?P<repeat>[*+?]|\{[ \t]*[0-9]{1,9}[ \t]*(?:,[ \t]*(?:[0-9]{1,9}[ \t]*)?)?\})|(?P<mark>[()|.])""",
    re.VERBOSE,
)
_ESCAPED = re.compile(r"\\(?:x..|u.{4}|U.{8}|.)")
_CLASS_PART = re.compile(rf"{_ESCAPED.pattern}|.", re.DOTALL)


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    line: int


@dataclass(frozen=True, slots=True)
class _Ways:
    """In how many ways something can begin, and be empty."""

    begin: int
    empty: int

    def then(self, other: _Ways) -> _Ways:
        """This, followed by `other`."""
        return _Ways(self.begin + self.empty * other.begin, self.empty * other.empty)


_NOTHING = _Ways(0, 1)


def rules_of(grammar: str) -> dict[str, Alternatives]:
    """Its rules by name. Raises BadGrammar naming the line that is none."""
    return _Parser(grammar).rules()


def check_gbnf(grammar: str) -> None:
    """Raise BadValue, naming the line or the rule, for a grammar that llama.cpp cannot take or would not end with."""
    if len(grammar.encode()) > MAX_BYTES:
        raise _bad(f"it is larger than {MAX_BYTES // KiB} KiB", "Make it smaller.")
    rules = rules_of(grammar)
    if "root" not in rules:
        raise _bad("it has no rule named root", "Begin with root ::= …")
    _Checker(rules).check()
    check_growth(rules)


class _Parser:
    """The rules of a grammar by name."""

    def __init__(self, grammar: str) -> None:
        self._tokens = list(_tokens(grammar))
        self._at = 0

    def rules(self) -> dict[str, Alternatives]:
        """All of them, every name that they use among them."""
        rules: dict[str, Alternatives] = {}
        used: dict[str, int] = {}
        while self._skip_lines().kind != "end":
            name = self._take("name", "the name of a rule")
            self._take("assign", f"::= after {name.text}")
            self._skip_lines()
            rules[name.text] = self._alternatives(used, 0)
            if self._now.kind not in ("line", "end"):
                self._fail(f"{self._now.text!r} cannot stand here")
        for unknown in (name for name in used if name not in rules):
            raise _bad(f"line {used[unknown]} names the rule {unknown!r}, which does not exist", "Add it.")
        return rules

    def _alternatives(self, used: dict[str, int], depth: int) -> Alternatives:
        if depth > MAX_DEPTH:
            self._fail(f"groups lie deeper than {MAX_DEPTH} in each other")
        found = [self._sequence(used, depth)]
        while self._now.text == "|":
            self._at += 1
            self._skip_lines()
            found.append(self._sequence(used, depth))
        return tuple(found)

    def _sequence(self, used: dict[str, int], depth: int) -> tuple[Item, ...]:
        items: list[Item] = []
        while True:
            if depth:
                self._skip_lines()
            token = self._now
            if token.kind in ("name", "literal", "class") or token.text in ("(", "."):
                self._at += 1
                items.append(self._item(token, used, depth))
            elif token.kind == "repeat" and items:
                self._at += 1
                items[-1] = self._repeated(items[-1], token)
            else:
                return tuple(items)

    def _item(self, token: _Token, used: dict[str, int], depth: int) -> Item:
        if token.kind == "name":
            used.setdefault(token.text, token.line)
            return Item(token.text)
        if token.kind == "literal":
            text = _ESCAPED.sub(_unescaped, token.text[1:-1])
            return Item(len(text), text=text)
        if token.text != "(":
            return Item(1, fits=_class_of(token.text))
        group = self._alternatives(used, depth + 1)
        self._skip_lines()
        self._take("mark", "a closing bracket", ")")
        return Item(group)

    def _repeated(self, item: Item, token: _Token) -> Item:
        if (item.least, item.most) != (1, 1):
            self._fail("one repetition follows another")
        named: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}
        numbers = [int(number) for number in re.findall("[0-9]+", token.text)]
        least, most = named.get(token.text) or (
            numbers[0], numbers[-1] if "," not in token.text or len(numbers) > 1 else None
        )  # fmt: skip
        if max(numbers, default=0) > MAX_REPEATS:
            self._fail(f"more than {MAX_REPEATS} repetitions")
        if most is not None and most < max(least, 1):
            self._fail(f"{token.text} repeats nothing")
        return replace(item, least=least, most=most)

    @property
    def _now(self) -> _Token:
        return self._tokens[self._at]

    def _skip_lines(self) -> _Token:
        while self._now.kind == "line":
            self._at += 1
        return self._now

    def _take(self, kind: str, wanted: str, text: str = "") -> _Token:
        token = self._now
        if token.kind != kind or (text and token.text != text):
            self._fail(f"{wanted} is missing")
        self._at += 1
        return token

    def _fail(self, problem: str) -> NoReturn:
        raise _bad(f"line {self._now.line}: {problem}", "Correct it; llama.cpp's grammars/README.md has the syntax.")


def _unescaped(found: re.Match[str]) -> str:
    code = found.group()[1:]
    if code[0] in "xuU":
        return chr(int(code[1:], 16) % 0x110000)
    return {"n": "\n", "r": "\r", "t": "\t"}.get(code, code)


def _class_of(text: str) -> Callable[[str], bool]:
    """Whether a character is in the class that `text` spells."""
    if text == ".":
        return lambda _: True
    other = text.startswith("[^")
    inner = text[2:-1] if other else text[1:-1]
    parts = _CLASS_PART.findall(inner)
    spans: list[tuple[str, str]] = []
    while parts:
        low = high = parts.pop(0)
        if len(parts) > 1 and parts[0] == "-":
            high, parts = parts[1], parts[2:]
        spans.append((_ESCAPED.sub(_unescaped, low), _ESCAPED.sub(_unescaped, high)))
    return lambda character: any(low <= character <= high for low, high in spans) != other


def _tokens(grammar: str) -> Iterator[_Token]:
    at, line = 0, 1
    while at < len(grammar):
        found = _TOKEN.match(grammar, at)
        if found is None:
            what = "a literal that does not end" if grammar[at] == '"' else f"{grammar[at : at + 12]!r} is no grammar"
            raise _bad(f"line {line}: {what}", "Correct it; llama.cpp's grammars/README.md has the syntax.")
        kind = str(found.lastgroup)
        if kind != "space":
            yield _Token(kind, found.group(), line)
        line += kind == "line"
        at = found.end()
    yield _Token("end", "", line)


class _Checker:
    """What a grammar's rules cost the matcher."""

    def __init__(self, rules: dict[str, Alternatives]) -> None:
        self._rules = rules
        self._known: dict[str, _Ways] = {}
        self._open: list[str] = []

    def check(self) -> None:
        """Raise BadValue for rules that begin with themselves, or in too many ways; too much to copy."""
        for name in self._rules:
            self._of_rule(name)
        for name, alternatives in self._rules.items():
            self._check_rests(name, alternatives)
        if (size := sum(map(_size, self._rules.values()))) > MAX_ELEMENTS:
            raise _bad(f"written out it has {size:,} elements, more than {MAX_ELEMENTS:,}", "Repeat less.")

    def _of_rule(self, name: str) -> _Ways:
        if name in self._known:
            return self._known[name]
        if name in self._open:
            raise _bad(f"the rule {name!r} begins with itself", "Let each recursion follow some text.")
        if len(self._open) >= _MAX_CHAIN:
            raise _bad(f"more than {_MAX_CHAIN} rules begin with one another", "Use fewer rules.")
        self._open.append(name)
        self._known[name] = ways = self._of_alternatives(name, self._rules[name])
        self._open.pop()
        return ways

    def _of_alternatives(self, rule: str, alternatives: Alternatives) -> _Ways:
        begin = empty = 0
        for items in alternatives:
            ways = self._of_sequence(rule, items)
            begin, empty = begin + ways.begin, empty + ways.empty
        return self._bounded(rule, _Ways(begin, empty))

    def _of_sequence(self, rule: str, items: tuple[Item, ...]) -> _Ways:
        ways = _NOTHING
        for item in items:
            if not ways.empty:  # what follows text is no way to begin, and may be the rule itself
                break
            ways = self._bounded(rule, ways.then(self._of_item(rule, item)))
        return ways

    def _of_item(self, rule: str, item: Item) -> _Ways:
        what = item.what
        if isinstance(what, int):
            one = _Ways(1, 0) if what else _NOTHING
        else:
            one = self._of_rule(what) if isinstance(what, str) else self._of_alternatives(rule, what)
        if item.most == 1:
            return _Ways(one.begin, one.empty + (not item.least))
        if one.empty:
            raise _bad(f"the rule {rule!r} repeats what may be empty", "Let what is repeated have a character.")
        return _Ways(one.begin, int(not item.least))

    def _check_rests(self, rule: str, alternatives: Alternatives) -> None:
        """What can follow a part of a sequence is begun there."""
        for items in alternatives:
            for start, item in enumerate(items):
                self._of_sequence(rule, items[start : start + MAX_WAYS])
                if isinstance(item.what, tuple):
                    self._check_rests(rule, item.what)

    @staticmethod
    def _bounded(rule: str, ways: _Ways) -> _Ways:
        if max(ways.begin, ways.empty) > MAX_WAYS:
            raise _bad(f"the rule {rule!r} can begin in more than {MAX_WAYS:,} ways", "Make it less ambiguous.")
        return ways


def _size(alternatives: Alternatives) -> int:
    """Elements after repetitions are written out, nested ones as llama.cpp keeps them: once."""
    return sum(_item_size(item) for items in alternatives for item in items) + len(alternatives)


def _item_size(item: Item) -> int:
    inner = item.what if isinstance(item.what, int) else 1 if isinstance(item.what, str) else _size(item.what)
    return inner * max(1, item.least) + 3 * ((item.most or item.least + 1) - item.least)


def _bad(problem: str, remedy: str) -> BadGrammar:
    return BadGrammar(f"The grammar cannot be used: {problem}.", remedy=remedy, param="grammar")
