"""Every number of seconds in the code: found by reading the sources, and told apart in tests/test_deadlines.py."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent
# A number given to one of these, or by one of these names, is a time to wait.
WAITS = {
    "acquire", "broken_within", "communicate", "fail_after", "finish", "join", "move_on_after", "result", "settimeout",
    "wait", "wait_for",
}  # fmt: skip
NAMES = {"timeout", "timeout_s", "connect", "timeout_graceful_shutdown", "seconds"}
_SIGNS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add, ast.Mult: operator.mul, ast.Div: operator.truediv,
}  # fmt: skip


def numbers_of_seconds() -> dict[str, float]:
    """The seconds by place: `modules/check.py: _MODE_TIMEOUT_S`, or `…: join(5)` for a number in a call."""
    found: dict[str, float] = {}
    for path in [ROOT / "server.py", *sorted((ROOT / "modules").rglob("*.py"))]:
        name = path.relative_to(ROOT).as_posix()
        known: dict[str, float] = {}
        for place, seconds in _in_source(ast.parse(path.read_text(encoding="utf-8")), known):
            found[f"{name}: {place}"] = seconds
    return found


def _in_source(tree: ast.Module, known: dict[str, float]) -> Iterator[tuple[str, float]]:
    for node in ast.walk(tree):
        target, value = _assigned(node)
        if target and value is not None and (seconds := _number(value, known)) is not None:
            known[target] = seconds
            if _is_seconds(target):
                yield target, seconds
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _defaults(node)
        elif isinstance(node, ast.Call):
            yield from _in_call(node)


def _assigned(node: ast.AST) -> tuple[str, ast.expr | None]:
    if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
        return node.targets[0].id, node.value
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return node.target.id, node.value
    return "", None


def _is_seconds(name: str) -> bool:
    return name.endswith(("_S", "_TIMEOUT", "_SECONDS")) or (name.endswith("_s") and not name.endswith("_per_s"))


def _number(node: ast.expr, known: Mapping[str, float]) -> float | None:
    """What a sum or product of numbers and of names that stand above is; None for anything else, and for zero."""
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        return float(node.value) or None
    if isinstance(node, ast.Name):
        return known.get(node.id)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "timedelta":
        units = {"hours": 3600.0, "minutes": 60.0, "seconds": 1.0}
        given = {one.arg: _number(one.value, known) or 0.0 for one in node.keywords}
        return sum(units[str(unit)] * number for unit, number in given.items())
    if isinstance(node, ast.BinOp) and type(node.op) in _SIGNS:
        left, right = _number(node.left, known), _number(node.right, known)
        return None if left is None or right is None else _SIGNS[type(node.op)](left, right)
    return None


def _defaults(node: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[tuple[str, float]]:
    """Parameters in seconds whose default is a number of its own, not a name's."""
    given = node.args.posonlyargs + node.args.args
    pairs = [*zip(given[len(given) - len(node.args.defaults) :], node.args.defaults, strict=True)]
    named = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
    pairs += [(one, default) for one, default in named if default]
    for parameter, default in pairs:
        seconds = _number(default, {})
        if seconds is not None and (_is_seconds(parameter.arg) or parameter.arg in NAMES):
            yield f"{node.name}({parameter.arg})", seconds


def _in_call(node: ast.Call) -> Iterator[tuple[str, float]]:
    called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    for keyword in node.keywords:
        if keyword.arg and (keyword.arg in NAMES or _is_seconds(keyword.arg)):
            seconds = _number(keyword.value, {})
            if seconds is not None:
                yield f"{called}({keyword.arg}={seconds:g})", seconds
    if called in WAITS:
        for argument in node.args:
            seconds = _number(argument, {})
            if seconds is not None:
                yield f"{called}({seconds:g})", seconds
