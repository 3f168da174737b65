"""Extensions change texts in order; one that fails is named and passed over."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from modules.errors import BadFlag
from modules.extensions import Extensions

BROKEN = {
    "raises": ("raise RuntimeError('no')", "RuntimeError: no"),
    "misspelt": ("def setup(:", "SyntaxError"),
    "needs": ("import a_module_that_is_not_there", "ModuleNotFoundError"),
    "exits": ("import sys; sys.exit(3)", "SystemExit"),
    "bad_setup": ("def setup(): 1 / 0", "ZeroDivisionError"),
}


def write(folder: Path, name: str, source: str) -> None:
    (folder / name).mkdir()
    (folder / name / "script.py").write_text(source)


def started(folder: Path, *names: str, timeout_s: float = 30) -> Extensions:
    extensions = Extensions(folder, names)
    extensions.start(timeout_s)
    return extensions


def test_hooks_run_in_the_order_given(tmp_path: Path) -> None:
    write(tmp_path, "shout", "def input_modifier(text): return text.upper()")
    write(tmp_path, "greet", "def input_modifier(text): return 'hi ' + text\ndef output_modifier(t): return t + '!'")
    assert started(tmp_path, "shout", "greet").modify_input("you") == "hi YOU"
    assert started(tmp_path, "greet", "shout").modify_input("you") == "HI YOU"
    assert started(tmp_path, "greet").modify_output("done") == "done!"


def test_setup_is_called_once(tmp_path: Path) -> None:
    write(
        tmp_path, "count", "calls = []\ndef setup(): calls.append(1)\ndef input_modifier(text): return str(len(calls))"
    )
    assert started(tmp_path, "count", "count").modify_input("") == "1"


@pytest.mark.parametrize("name", BROKEN)
def test_one_that_cannot_start_is_off_with_the_reason_and_the_others_run(name: str, tmp_path: Path) -> None:
    source, reason = BROKEN[name]
    write(tmp_path, name, source)
    write(tmp_path, "good", "def output_modifier(text): return 'ok'")
    extensions = started(tmp_path, name, "good")
    assert extensions.names == ["good"] and extensions.modify_output("x") == "ok"
    assert extensions.problems[0].extension == name and reason in extensions.problems[0].reason


def test_one_that_never_finishes_importing_is_given_up(tmp_path: Path) -> None:
    write(tmp_path, "stuck", "import threading\nthreading.Event().wait(60)")
    assert "did not start" in started(tmp_path, "stuck", timeout_s=0.2).problems[0].reason


@pytest.mark.parametrize("body", ["raise ValueError('x')", "return None", "return 7", "return 'a' * 10_000_001"])
def test_a_hook_that_misbehaves_leaves_the_text_as_it_was(body: str, tmp_path: Path) -> None:
    write(tmp_path, "bad", f"def input_modifier(text):\n    {body}")
    extensions = started(tmp_path, "bad")
    assert [extensions.modify_input("mine") for _ in range(3)] == ["mine"] * 3
    assert len(extensions.problems) == 1 and "input_modifier" in extensions.problems[0].reason


@pytest.mark.parametrize("name", ["absent", "../outside", "", "a/b", "good.py"])
def test_only_folders_with_a_script_can_be_named(name: str, tmp_path: Path) -> None:
    write(tmp_path, "good", "")
    with pytest.raises(BadFlag, match="--extensions"):
        Extensions(tmp_path, [name])


def test_hooks_may_be_called_from_many_threads(tmp_path: Path) -> None:
    write(tmp_path, "twice", "def input_modifier(text): return text * 2")
    extensions, results = started(tmp_path, "twice"), []
    threads = [threading.Thread(target=lambda: results.append(extensions.modify_input("a"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=10)
    assert results == ["aa"] * 8
