"""The extensions of one start: extensions/NAME/script.py for each `--extensions NAME`, in the order given.

Finds, runs, calls and isolates them: one that fails, hangs or returns rubbish is named (in the log, on its card, under
the reply) and passed over, and the chat goes on as if it were not there. Only flags start one; a page may switch those
off and on again, no other. What the hooks are is hooks.py's, what a reply does with them chat/modifying.py's.
"""

from __future__ import annotations

import copy
import json
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pluggy

from modules.errors import NotFound
from modules.extensions.adapter import plugin_of, remarks
from modules.extensions.deadline import Overdue, call_within
from modules.extensions.faults import Check, Problem, brief, fault_of, is_text, trace_of
from modules.extensions.folder import about, find_script, installed
from modules.extensions.hooks import IN_THE_ENGINE, PROJECT, Hooks
from modules.extensions.params import plain, restore
from modules.extensions.script import EngineScript, Script
from modules.extensions.webui import ABSENT, Backend, Model, faces
from modules.files import atomic_write, safe_path

log = logging.getLogger(__name__)

START_TIMEOUT_S = 30.0
HOOK_TIMEOUT_S = 20.0
PROBLEMS_KEPT = 20

Told = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Card:
    """An extension as the page shows it. `running` is None for one that no flag has started."""

    name: str
    title: str
    about: str
    running: bool | None
    hooks: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()


@dataclass
class _Started:
    """An extension that was started; `script` is None where that failed."""

    name: str
    path: Path
    script: Script | None = None
    plugin: SimpleNamespace | None = None
    on: bool = True
    stuck: set[str] = field(default_factory=set)
    remarks: tuple[str, ...] = ()
    problems: list[Problem] = field(default_factory=list)
    kept: str = "{}"

    @property
    def params(self) -> dict[str, Any]:
        found = getattr(self.script.module, "params", None) if self.script else None
        return found if isinstance(found, dict) else {}


def copied(values: dict[str, Any]) -> dict[str, Any]:
    """The same for one hook alone, which may fail half way; as they are where something in them cannot be copied."""
    try:
        return copy.deepcopy(values)
    except Exception:  # what extensions put into the state is of any kind
        return values


def keep_state(values: dict[str, Any], given: dict[str, Any]) -> None:
    """What a hook that came through has put into the state that all hooks of a reply share."""
    if given is not values and isinstance(given.get("state"), dict):
        values["state"].clear()
        values["state"].update(given["state"])


def ignore(_: str) -> None:
    """Hear of something and do nothing."""


class Extensions:
    """The extensions of one start. Every method may be called from any thread."""

    def __init__(
        self,
        folder: Path,
        names: Sequence[str] = (),
        *,
        kept: Path | None = None,
        hook_timeout_s: float = HOOK_TIMEOUT_S,
    ) -> None:
        """`kept` is where params are kept. Raises BadFlag for a name that is no folder with a script.py in `folder`."""
        self._folder = folder
        self._kept = kept
        self._hook_timeout_s = hook_timeout_s
        self._model = Model()
        self._lock = threading.Lock()
        self._plugins = pluggy.PluginManager(PROJECT)
        self._plugins.add_hookspecs(Hooks)
        self._all = {name: _Started(name, find_script(folder, name)) for name in dict.fromkeys(names)}

    def connect(self, backend: Backend) -> None:
        """Give scripts a model to ask."""
        self._model.backend = backend

    @property
    def names(self) -> list[str]:
        """Those that run."""
        return [one.name for one in self._all.values() if one.plugin and one.on]

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What failed so far."""
        return tuple(problem for one in self._all.values() for problem in one.problems)

    def cards(self) -> list[Card]:
        """Those that were started, then those that could be."""
        cards = [
            Card(
                one.name, self.title(one.name), about(one.path), bool(one.plugin) and one.on,
                tuple(vars(one.plugin)) if one.plugin else (), one.remarks, tuple(one.problems),
            )
            for one in self._all.values()
        ]  # fmt: skip
        for name in installed(self._folder):
            if name not in self._all:
                cards.append(Card(name, name, about(self._folder / name / "script.py"), None))
        return cards

    def title(self, name: str) -> str:
        """How people call it."""
        title = self._all[name].params.get("display_name")
        return title[:80] if isinstance(title, str) and title.strip() else name

    def own_tab(self, name: str) -> bool:
        """Whether it asks for a tab of its own."""
        return self._all[name].params.get("is_tab") is True

    def start(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Run every script and its `setup`; one that fails or takes longer than `timeout_s` stays off."""
        for one in self._all.values():
            self._start(one, timeout_s)

    def switch(self, name: str, *, on: bool) -> None:
        """Switch one that was started off, or on again. Raises NotFound for any other."""
        one = self._all.get(name)
        if one is None or one.plugin is None:
            raise NotFound(
                f"The extension {name[:60]!r} was not started.", remedy="Start Snug with it: --extensions NAME."
            )
        one.on = on
        if on:
            one.problems.clear()
            one.stuck.clear()

    def having(self, hook: str) -> list[str]:
        """Names of those that run and have this hook, in order."""
        return [one.name for one in self._running(hook)]

    @property
    def take_part(self) -> bool:
        """Whether any runs."""
        return any(one.on and one.plugin for one in self._all.values())

    def change(
        self, hook: str, values: dict[str, Any], changed: tuple[str, ...], check: Check, told: Told, slow: Told = ignore
    ) -> Any:
        """`values[changed]` through that hook of every extension; where one fails, what it was given passes on.

        `check` says what is wrong with a result, "" for nothing; `told` hears of failures, `slow` whom people wait for.
        """
        for one in self._running(hook):
            given = copied(values)
            result, problem = self._call(one, hook, given, partial(slow, f"{one.name} is at work."))
            fault = problem or fault_of(result, check)
            if fault:
                told(self._report(one, fault if isinstance(fault, Problem) else Problem(one.name, fault, hook)))
            else:
                keep_state(values, given)
                values |= dict(zip(changed, result if len(changed) > 1 else (result,), strict=True))
        return tuple(values[name] for name in changed) if len(changed) > 1 else values[changed[0]]

    def texts(self, hook: str) -> dict[str, str]:
        """What each extension's hook without arguments gives: style sheets, scripts."""
        found = {}
        for one in self._running(hook):
            text, problem = self._call(one, hook, {}, lambda: None)
            if problem or (fault := fault_of(text, is_text)):
                self._report(one, problem or Problem(one.name, fault, hook))
            else:
                found[one.name] = str(text)
        return found

    def reply(self, values: dict[str, Any], told: Told) -> Iterator[str]:
        """The reply of the first extension that writes one itself, the whole so far each time; else nothing at all.

        Where it fails, it ends: what was given so far stands.
        """
        hook = "custom_generate_reply"
        one = next(iter(self._running(hook)), None)
        if one is None:
            return
        made, problem = self._call(one, hook, values, lambda: None)
        if made is None and problem is None:
            return
        if problem is None and not hasattr(made, "__next__"):
            made = iter(made if isinstance(made, list | tuple) else [made])
        while problem is None:
            text, problem = self._call_function(one, hook, partial(next, made, _END), lambda: None)
            if text is _END:
                return
            if problem is None and (fault := fault_of(text, is_text)):
                problem = Problem(one.name, fault, hook)
            if problem is None:
                yield str(text)
        if hasattr(made, "close"):
            with suppress(Exception):  # one that hangs cannot be closed
                call_within(1, made.close, name=f"extension {one.name}")
        told(self._report(one, problem))

    def build(self, name: str, make: Callable[[], Any]) -> Any | None:
        """What `make` gives, with the extension's own deadline; None, reported, where it fails."""
        one = self._all[name]
        built, problem = self._call_function(one, "ui", make, lambda: None)
        if problem:
            self._report(one, problem)
        return None if problem else built

    def run_ui(self, name: str) -> None:
        """Its `ui`, which raises what it raises."""
        plugin = self._all[name].plugin
        if plugin is not None:
            plugin.ui()

    def blame(self, name: str, hook: str, error: BaseException) -> Problem:
        """Report what an extension raised outside of a hook call: in a control's handler, in the engine."""
        one = self._all.get(name)
        problem = Problem(name, f"failed: {brief(error)}", hook, trace_of(error, one.path if one else Path()))
        if one is not None:
            self._report(one, problem)
        return problem

    def engine_scripts(self) -> tuple[EngineScript, ...]:
        """What the engine is to have for a reply."""
        return tuple(
            EngineScript(one.name, str(one.path), json.dumps(plain(one.params))) for one in self._running(IN_THE_ENGINE)
        )

    def stop_in_engine(self, name: str, why: str) -> None:
        """The engine has given this extension up."""
        if one := self._all.get(name):
            self._report(one, Problem(name, why, IN_THE_ENGINE))

    def keep(self, name: str) -> None:
        """Write an extension's params down if they have changed, as far as JSON can hold them."""
        one = self._all[name]
        text = json.dumps(plain(one.params), ensure_ascii=False, indent=1)
        with self._lock:
            if self._kept is None or text == one.kept:
                return
            try:
                self._kept.mkdir(parents=True, exist_ok=True)
                atomic_write(safe_path(self._kept, name, ".json"), text)
            except OSError as error:
                log.warning("The settings of the extension %s could not be kept: %s", name, error)
                return
            one.kept = text

    def _running(self, hook: str) -> list[_Started]:
        by_name = {
            impl.plugin_name: impl for impl in getattr(self._plugins.hook, hook).get_hookimpls()
        }  # in the order of registration
        return [one for one in self._all.values() if one.name in by_name and one.on and hook not in one.stuck]

    def _start(self, one: _Started, timeout_s: float) -> None:
        script = Script(one.name, one.path, faces=faces(one.name, self._model), absent=ABSENT)

        def run() -> SimpleNamespace:
            module = script.run()
            one.script = script
            if self._kept is not None:
                restore(one.params, safe_path(self._kept, one.name, ".json"))
            plugin = plugin_of(module)
            if hasattr(plugin, "setup"):
                plugin.setup()
            return plugin

        plugin, problem = self._call_function(one, "", run, lambda: None, timeout_s)
        if problem is not None or script.module is None:
            self._report(one, problem or Problem(one.name, "it is off: it has no code"))
            return
        needs = [f"it asks for {', '.join(script.needs[:8])}, which Snug does not have"] if script.needs else []
        one.remarks = (*needs, *remarks(script.module))
        for remark in one.remarks:
            log.warning("Extension %s: %s.", one.name, remark)
        try:
            self._plugins.register(plugin, one.name)
        except pluggy.PluginValidationError as error:
            self._report(one, Problem(one.name, f"it is off: {brief(error)}"))
            return
        one.plugin = plugin

    def _call(
        self, one: _Started, hook: str, values: dict[str, Any], slow: Callable[[], None]
    ) -> tuple[Any, Problem | None]:
        function = getattr(one.plugin, hook)
        return self._call_function(one, hook, lambda: function(**values), slow)

    def _call_function(
        self,
        one: _Started,
        hook: str,
        function: Callable[[], Any],
        slow: Callable[[], None],
        timeout_s: float | None = None,
    ) -> tuple[Any, Problem | None]:
        """(what it returned, None) or (None, what went wrong)."""
        off = "" if hook else "it is off: "
        try:
            limit = self._hook_timeout_s if timeout_s is None else timeout_s
            return call_within(limit, function, name=f"extension {one.name}", on_slow=slow), None
        except Overdue as error:
            if hook and hook != "ui":
                one.stuck.add(hook)
                off = "is off until it is switched off and on again: "
            return None, Problem(one.name, f"{off}{error}", hook)
        except Exception as error:  # it is not ours, and must not end what called it
            return None, Problem(one.name, f"{off or 'failed: '}{brief(error)}", hook, trace_of(error, one.path))

    def _report(self, one: _Started, problem: Problem) -> str:
        with self._lock:
            if problem not in one.problems:
                one.problems.append(problem)
                del one.problems[:-PROBLEMS_KEPT]
                log.warning("%s", problem.sentence)
        return problem.sentence


_END = object()
