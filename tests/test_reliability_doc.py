"""docs/reliability.md tells of every row of the study what holds it; what it names is there."""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from functools import cache
from pathlib import Path

import httpx
import pytest

from benchmarks.reliability import BEGIN, END, MEASURES, merged, table
from benchmarks.reliability_rows.advisories import audit, pinned
from benchmarks.reliability_rows.brief import BRIEF, brief_table
from benchmarks.reliability_rows.content import find_banned
from benchmarks.reliability_rows.suite import counted

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


def between_marks(page: str) -> str:
    return page.partition(BEGIN + "\n")[2].partition(END)[0]


def test_the_figures_of_docs_and_readme_are_those_of_the_last_measurement() -> None:
    results = ROOT / "benchmarks" / "results"
    rows = json.loads((results / "reliability.json").read_text(encoding="utf-8"))["rows"]
    assert [row["goal"] for row in rows] == list(MEASURES) == list(BRIEF)
    assert table(rows) == (results / "reliability.md").read_text(encoding="utf-8") == between_marks(PAGE)
    assert brief_table(rows) == between_marks((ROOT / "README.md").read_text(encoding="utf-8"))


def test_a_measurement_that_broke_or_was_not_made_says_so_in_the_readme() -> None:
    def row(passed: bool | None, measured: str, verdict: str) -> dict[str, object]:
        return {"goal": 1, "figures": {}, "passed": passed, "measured": measured, "verdict": verdict}

    lines = brief_table(
        [row(False, "it broke: OSError", "FAIL"), row(None, "no Chromium", "not measured")]
    ).splitlines()
    assert [line.split(" | ")[-2:] for line in lines[2:]] == [["it broke: OSError", "FAIL |"], ["—", "not measured |"]]


def test_flaws_that_the_package_index_tells_are_found_for_the_versions_it_tells_of() -> None:
    flaw = {"id": "PYSEC-1", "fixed_in": ["1.1"], "withdrawn": None}
    pages = {
        "/sound/1.0/json": {"info": {"version": "1.0"}, "vulnerabilities": [flaw | {"withdrawn": "2026-01-01"}]},
        "/flawed/1.0/json": {"info": {"version": "1.0"}, "vulnerabilities": [flaw]},
        "/newest/json": {"info": {"version": "1.0"}, "vulnerabilities": [flaw]},
        "/older/json": {"info": {"version": "2.0"}, "vulnerabilities": []},
    }

    def answer(request: httpx.Request) -> httpx.Response:
        page = pages.get(request.url.path)
        return httpx.Response(200, json=page) if page else httpx.Response(404)

    with httpx.Client(transport=httpx.MockTransport(answer), base_url="http://index.test") as index:
        found = audit(dict.fromkeys(("sound", "flawed", "newest", "older", "unknown"), "1.0"), index)
    assert found.answered == ["sound", "flawed", "newest"]
    assert found.unanswered == ["older 1.0", "unknown 1.0"]
    assert found.flaws == [f"{name} 1.0: PYSEC-1, mended in ['1.1']" for name in ("flawed", "newest")]
    assert {"torch", "gradio", "jinja2", "uvloop"} <= pinned().keys()


def test_the_suites_last_line_is_counted() -> None:
    assert counted("FAILED a - 3 passed\n1 failed, 2012 passed, 3 skipped, 2 errors in 61.20s (0:01:01)\n") == {
        "failed": 1, "passed": 2012, "skipped": 3, "errors": 2,
    }  # fmt: skip


def test_a_quick_run_does_not_take_the_place_of_a_whole_one_that_passed_unless_it_failed() -> None:
    def row(goal: int, whole: bool, passed: bool | None, measured: str) -> dict[str, object]:
        return {"goal": goal, "whole": whole, "passed": passed, "measured": measured, "asked": "", "verdict": ""}

    old = [row(1, True, True, "whole"), row(2, False, True, "quick"), row(3, True, True, "whole")]
    new = [row(3, False, False, "broke"), row(1, False, True, "quick"), row(2, False, True, "newer")]
    assert [kept["measured"] for kept in merged(old, new)] == ["whole", "newer", "broke"]
    left_out = [row(2, True, None, "not measured"), row(4, True, None, "never measured")]
    assert [kept["measured"] for kept in merged(old, left_out)] == ["whole", "quick", "whole", "never measured"]
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
