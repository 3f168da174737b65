"""Extensions: extensions/NAME/script.py, started by `--extensions NAME …`, in the order given.

A script may define `setup()`, called once; `input_modifier(text)`, what the model reads in place of a user message; and
`output_modifier(text)`, what is kept in place of a finished reply. One that fails is named, logged and passed over:
the chat goes on as if it were not there. Only flags enable extensions; nothing here can be reached by a request.
"""

from __future__ import annotations

import importlib.util
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from modules.errors import BadFlag, BadName
from modules.files import safe_path

log = logging.getLogger(__name__)

START_TIMEOUT_S = 30.0
MAX_TEXT = 10_000_000


@dataclass(frozen=True, slots=True)
class Problem:
    """Why an extension is off, or which of its hooks failed."""

    extension: str
    reason: str


class Extensions:
    """The extensions of one start. Hooks may be called from any thread."""

    def __init__(self, folder: Path, names: Sequence[str] = ()) -> None:
        """Check the names. Raises BadFlag for one that is no folder with a script.py in `folder`."""
        self._scripts = [(name, _script(folder, name)) for name in dict.fromkeys(names)]
        self._modules: list[tuple[str, ModuleType]] = []
        self._problems: list[Problem] = []

    @property
    def names(self) -> list[str]:
        """Those that run."""
        return [name for name, _ in self._modules]

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What failed so far."""
        return tuple(self._problems)

    def start(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Import every script and call its `setup`; one that fails or takes longer than `timeout_s` stays off."""
        for name, path in self._scripts:
            result: list[ModuleType | str] = []
            thread = threading.Thread(target=_start, args=(name, path, result), name=f"extension {name}", daemon=True)
            thread.start()
            thread.join(timeout_s)
            outcome = result[0] if result else f"it did not start within {timeout_s:.0f} s"
            if isinstance(outcome, ModuleType):
                self._modules.append((name, outcome))
            else:
                self._report(name, f"it is off: {outcome}")

    def modify_input(self, text: str) -> str:
        """What the model is to read in place of the user message `text`."""
        return self._chain("input_modifier", text)

    def modify_output(self, text: str) -> str:
        """What is to be kept in place of the finished reply `text`."""
        return self._chain("output_modifier", text)

    def _chain(self, hook: str, text: str) -> str:
        """`text` through that hook of every extension; where one fails, its input passes on unchanged."""
        for name, module in self._modules:
            function: Callable[[str], object] | None = getattr(module, hook, None)
            if function is None:
                continue
            try:
                changed = function(text)
            except Exception as error:
                self._report(name, f"{hook} failed: {_brief(error)}")
                continue
            if isinstance(changed, str) and len(changed) <= max(MAX_TEXT, len(text)):
                text = changed
            else:
                what = "too long a text" if isinstance(changed, str) else f"{type(changed).__name__}, not text"
                self._report(name, f"{hook} returned {what}")
        return text

    def _report(self, name: str, reason: str) -> None:
        problem = Problem(name, reason)
        if problem not in self._problems:
            self._problems.append(problem)
            log.warning("Extension %s: %s.", name, reason)


def _script(folder: Path, name: str) -> Path:
    try:
        path = safe_path(folder, name) / "script.py"
    except BadName as error:
        raise BadFlag(f"--extensions: {error.message}", remedy=error.remedy, param="extensions") from error
    if path.is_file():
        return path
    there = sorted(script.parent.name for script in folder.glob("*/script.py"))
    remedy = f"There are: {', '.join(there)}." if there else f"Put its folder into {folder.name}/."
    raise BadFlag(f"--extensions {name}: there is no {path}.", remedy=remedy, param="extensions")


def _start(name: str, path: Path, result: list[ModuleType | str]) -> None:
    """Import and set up one script; appends the module, or the reason why not."""
    try:
        spec = importlib.util.spec_from_file_location(f"snug_extension_{name}", path)
        if spec is None or spec.loader is None:
            result.append("Python cannot import it")
            return
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        if callable(setup := getattr(module, "setup", None)):
            setup()
    except (Exception, SystemExit) as error:
        result.append(_brief(error))
    else:
        result.append(module)


def _brief(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200].rstrip(".: ")
