"""docs/reliability.md tells of every row of the study what holds it; what it names is there."""

from __future__ import annotations

import ast
import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from benchmarks.reliability import BEGIN, END, MEASURES, merged, table
from benchmarks.reliability_rows.content import find_banned

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in PAGE.splitlines()
    if re.match(r"\| [SMPCRABULFX]\d+ \|", line)
]
ASKED = {"S": 10, "M": 15, "P": 8, "C": 20, "R": 7, "A": 20, "B": 12, "U": 9, "L": 8, "F": 11, "X": 7}


@cache
def named_in(file: str) -> frozenset[str]:
    """The test functions of a file below tests/; those of a class too."""
    tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def test_every_row_of_the_study_is_there_once() -> None:
    names = [row[0] for row in ROWS]
    assert names == [f"{group}{number}" for group, count in ASKED.items() for number in range(1, count + 1)]
    assert Counter(name[0] for name in names) == ASKED


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_every_test_that_is_named_exists_and_the_state_fits(row: list[str]) -> None:
    _, _, held_by, state = row
    named = [] if held_by == "—" else held_by.split("<br>")
    for one in named:
        file, _, name = one.partition("::")
        assert name.startswith("test_") and name in named_in(file), one
    word, _, why = state.partition(":")
    assert word in ("held", "partly", "missing")
    assert named or word == "missing"
    assert why.strip() or word != "partly"


def test_the_figures_are_those_of_the_last_measurement() -> None:
    kept = (ROOT / "benchmarks" / "results" / "reliability.md").read_text(encoding="utf-8")
    assert PAGE.partition(BEGIN)[2].partition(END)[0].strip() == kept.strip()
    assert re.findall(r"^\| (\d+) \|", kept, re.MULTILINE) == [str(number) for number in MEASURES]


def test_a_quick_run_does_not_take_the_place_of_a_whole_one_that_passed_unless_it_failed() -> None:
    def row(goal: int, whole: bool, passed: bool | None, measured: str) -> dict[str, object]:
        return {"goal": goal, "whole": whole, "passed": passed, "measured": measured, "asked": "", "verdict": ""}

    old = [row(1, True, True, "whole"), row(2, False, True, "quick"), row(3, True, True, "whole")]
    new = [row(3, False, False, "broke"), row(1, False, True, "quick"), row(2, False, True, "newer")]
    assert [kept["measured"] for kept in merged(old, new)] == ["whole", "newer", "broke"]
    assert table(merged(old, new)).count("\n") == 5


@pytest.mark.parametrize(
    "line",
    ["eval(x)", "exec(x)", "pickle.loads(x)", "pickle.Unpickler(x)", "yaml.load(x)", "run(x, shell=True)",
     "self._secret == given", "given != password", "token == given"],
)  # fmt: skip
def test_what_the_code_must_not_do_is_found(line: str) -> None:
    assert len(list(find_banned(line, "modules/api/some.py"))) == 1
    allowed = "yaml.safe_load(x); run(x, shell=False); compare_digest(secret, given); word == 'token'; model.eval()"
    assert list(find_banned(allowed, "modules/api/some.py")) == []
