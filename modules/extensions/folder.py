"""The folder of extensions: which there are, and what they say of themselves. None is run here."""

from __future__ import annotations

import ast
from pathlib import Path

from modules.errors import BadFlag, BadName
from modules.files import safe_path


def installed(folder: Path) -> list[str]:
    """Names of all that could be started."""
    return sorted(path.parent.name for path in folder.glob("*/script.py"))


def about(path: Path) -> str:
    """The first line of a script's docstring, read without running it."""
    try:
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    except (OSError, SyntaxError, ValueError, RecursionError):
        return ""
    return text.strip().split("\n", 1)[0][:200]


def find_script(folder: Path, name: str) -> Path:
    """The script of an extension. Raises BadFlag for a name that is no folder with a script.py in `folder`."""
    try:
        path = safe_path(folder, name) / "script.py"
    except BadName as error:
        raise BadFlag(f"--extensions: {error.message}", remedy=error.remedy, param="extensions") from error
    if path.is_file():
        return path.resolve()
    there = installed(folder)
    remedy = f"There are: {', '.join(there)}." if there else f"Put its folder into {folder.name}/."
    raise BadFlag(f"--extensions {name}: there is no {path}.", remedy=remedy, param="extensions")
