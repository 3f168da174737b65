"""Other encodings, clocks that are far away, folders with spaces and signs: what reads and writes runs there too.

A subset of the tests, started anew in each place (F11).
"""

from __future__ import annotations

import os
import shutil
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


LOCALES = {"chinese": ("zh_CN", "GBK"), "turkish": ("tr_TR", "UTF-8")}


def own_locale(place: str, folder: Path) -> dict[str, str]:
    """Where the place's locale lies, made here; without localedef and its sources the C library falls back to ASCII."""
    if place not in LOCALES or shutil.which("localedef") is None or not Path("/usr/share/i18n/locales").exists():
        return {}
    language, charset = LOCALES[place]
    subprocess.run(["localedef", "-i", language, "-f", charset, str(folder / f"{language}.{charset}")], check=True)
    name = "import locale; locale.setlocale(locale.LC_ALL, ''); print(locale.getencoding())"
    told = subprocess.run(
        [sys.executable, "-c", name], env=os.environ | PLACES[place] | {"LOCPATH": str(folder)}, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    assert told.stdout.strip() == charset
    return {"LOCPATH": str(folder)}


def run_in(place: str, folder: Path, tests: list[str]) -> None:
    odd = folder / "Meine Daten — 資料 ü"
    odd.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist",
         f"--basetemp={odd / 'work'}", *tests],
        cwd=ROOT, env=os.environ | PLACES[place] | own_locale(place, folder), capture_output=True, timeout=900,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout.decode("utf-8", "replace")[-3000:]


def test_what_reads_and_writes_files_runs_in_a_plain_place(tmp_path: Path) -> None:
    run_in("plain", tmp_path, DAILY)


SAVE = """
import sys
from pathlib import Path
from modules.characters.library import free_id
from modules.chat.presets import Presets
from modules.errors import BadName
from modules.sampling import GenerationParams
presets = Presets(Path("presets"), Path(sys.argv[1]) / "presets")
presets.save("Mine", GenerationParams(stop=("\\xfc",)))
assert presets.get("Mine").stop == ("\\xfc",)
assert free_id("F\\xfcr mich", []) == "F r mich" and free_id("\\u767e", []) == "Character"
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
@pytest.mark.timeout(1000)
@pytest.mark.parametrize("place", PLACES)
def test_the_subset_runs_in_every_place(place: str, tmp_path: Path) -> None:
    run_in(place, tmp_path, SUBSET)
