"""Other encodings, clocks that are far away, folders with spaces and signs: what reads and writes runs there too.

A subset of the tests, started anew in each place (F11).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SUBSET = [
    "tests/test_units.py", "tests/test_files.py", "tests/test_presets.py", "tests/test_preset_files.py",
    "tests/test_characters.py", "tests/test_yaml_files.py", "tests/test_user_data.py", "tests/test_clocks.py",
    "tests/test_ledger.py", "tests/test_importing.py", "tests/test_texts.py", "tests/test_formats.py",
]  # fmt: skip
DAILY = SUBSET[:4]
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
PLACES = {
    "plain": {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "TZ": "Pacific/Chatham"},
    "chinese": {"LC_ALL": "zh_CN.GBK", "LANGUAGE": "zh_CN", "PYTHONIOENCODING": "gbk", "TZ": "Asia/Kathmandu"},
    "turkish": {"LC_ALL": "tr_TR.UTF-8", "LANGUAGE": "tr_TR", "PYTHONIOENCODING": "cp1254", "TZ": "Europe/Istanbul"},
    "windows": {"PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0", "TZ": "America/St_Johns"},
    "far": {"PYTHONUTF8": "1", "TZ": "Pacific/Kiritimati"},
}


def run_in(place: str, folder: Path, tests: list[str]) -> None:
    odd = folder / "Meine Daten — 資料 ü"
    odd.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist",
         f"--basetemp={odd / 'work'}", *tests],
        cwd=ROOT, env=os.environ | PLACES[place], capture_output=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout.decode("utf-8", "replace")[-3000:]


def test_what_reads_and_writes_files_runs_in_a_plain_place(tmp_path: Path) -> None:
    run_in("plain", tmp_path, DAILY)


SAVE = """
import sys
from pathlib import Path
from modules.chat.presets import Presets
from modules.errors import BadName
from modules.sampling import GenerationParams
presets = Presets(Path("presets"), Path(sys.argv[1]) / "presets")
presets.save("Mine", GenerationParams(stop=("\\xfc",)))
assert presets.get("Mine").stop == ("\\xfc",)
for name in ("F\\xfcr mich", "\\u767e"):
    try:
        presets.save(name, GenerationParams())
    except BadName as error:
        print(ascii(error.message))
"""


def test_a_name_that_the_file_names_of_a_place_cannot_hold_is_named(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "utf8=0", "-c", SAVE, str(tmp_path)],
        cwd=ROOT, env=os.environ | ASCII, capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode("utf-8", "replace")
    assert done.stdout.count(b"holds a character that file names may not hold") == 2


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_the_subset_runs_in_every_place(place: str, tmp_path: Path) -> None:
    run_in(place, tmp_path, SUBSET)
