"""One extensions/NAME/script.py as a module, in the web process or the engine's: what it imports comes from here.

Its imports are answered by its own `__import__`, so that nothing else in the process sees the stand-ins: libraries that
are not in this process, text-generation-webui's modules, and files of the extension's own folder. Running it is all
that this does; hooks are manager.py's, a deadline is the caller's.
"""

from __future__ import annotations

import builtins
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from modules.extensions.absent import stand_in

OF_WEBUI = "is a part of text-generation-webui that Snug does not have"
OURS = "snug"
OF_OTHERS = "belongs to another extension: each has its own files only"


@dataclass(frozen=True, slots=True)
class EngineScript:
    """A script that the engine's process is to run for one request; `params` is JSON."""

    name: str
    path: str
    params: str


class Face:
    """A module of text-generation-webui as far as Snug has it; the rest are stand-ins, noted in `needs`."""

    def __init__(self, name: str, parts: Mapping[str, Any], needs: list[str]) -> None:
        self.__name__ = name
        self._needs = needs
        vars(self).update(parts)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        whole = f"{self.__name__}.{name}"
        if whole not in self._needs:
            self._needs.append(whole)
        return stand_in(whole, OF_WEBUI)


class Script:
    """A script and what it has imported. `needs` names parts of text-generation-webui that it asks for in vain."""

    def __init__(
        self,
        name: str,
        path: Path,
        *,
        faces: Mapping[str, Mapping[str, Any]] = {},
        absent: Mapping[str, str] = {},
        private: str = "snug_extensions",
    ) -> None:
        """`faces`: name of one of text-generation-webui's modules, or OURS → what it has.
        `absent`: library → why it is not here.

        `private` is the package under which the process knows the modules, since some libraries look there.
        """
        self.name = name
        self.path = path
        self.needs: list[str] = []
        self._absent = absent
        self._private = private
        self._loading = False
        self._parts: dict[str, ModuleType] = {}
        named = {face if face == OURS else f"modules.{face}": parts for face, parts in faces.items()}
        self._faces = {face: Face(face, parts, self.needs) for face, parts in named.items()}
        self.module: ModuleType | None = None

    def run(self) -> ModuleType:
        """Run it from top to bottom. Raises whatever it raises."""
        self._loading = True
        try:
            self.module = self._load(f"extensions.{self.name}.script", self.path)
        finally:
            self._loading = False
        return self.module

    def _load(self, dotted: str, path: Path) -> ModuleType:
        private = f"{self._private}.{dotted.partition('.')[2]}"
        spec = importlib.util.spec_from_file_location(private, path)
        if spec is None or spec.loader is None:
            raise ImportError(f"{path.name} is not a Python file")
        module = importlib.util.module_from_spec(spec)
        module.__package__ = dotted if path.name == "__init__.py" else dotted.rpartition(".")[0]
        vars(module)["__builtins__"] = {**vars(builtins), "__import__": self._import}
        self._parts[dotted] = sys.modules[private] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del self._parts[dotted], sys.modules[private]
            raise
        return module

    def _import(
        self,
        name: str,
        globals: Mapping[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> Any:
        """As `__import__`."""
        if level:
            name, level = importlib.util.resolve_name("." * level + name, str((globals or {}).get("__package__"))), 0
        top = name.partition(".")[0]
        if top in self._absent:
            return stand_in(name if fromlist else top, self._absent[top], lambda: self._loading)
        if top == "extensions":
            return self._own(name, fromlist or ())
        if top == "modules" or name in self._faces:
            return self._face(name, fromlist or ())
        return builtins.__import__(name, globals, locals, fromlist or (), level)

    def _face(self, name: str, fromlist: Sequence[str]) -> Any:
        if name == "modules":
            return Face("modules", {part: self._face(f"modules.{part}", ("*",)) for part in fromlist}, self.needs)
        face = self._faces.get(name) or Face(name, {}, self.needs)
        return face if fromlist or "." not in name else Face("modules", {name.partition(".")[2]: face}, self.needs)

    def _own(self, name: str, fromlist: Sequence[str]) -> Any:
        """A file of the extension's folder."""
        package = f"extensions.{self.name}"
        if name != package and not name.startswith(f"{package}."):
            return stand_in(name if fromlist else "extensions", OF_OTHERS)
        leaf = self._file(name)
        for part in fromlist:
            if not hasattr(leaf, part) and self._path_of(f"{name}.{part}"):
                setattr(leaf, part, self._file(f"{name}.{part}"))
        if fromlist:
            return leaf
        whole: Any = leaf
        for part in reversed(name.split(".")[1:]):
            outer = ModuleType("outer")
            setattr(outer, part, whole)
            whole = outer
        return whole

    def _file(self, name: str) -> ModuleType:
        if name in self._parts:
            return self._parts[name]
        if path := self._path_of(name):
            return self._load(name, path)
        if name == f"extensions.{self.name}":
            return ModuleType(name)
        raise ModuleNotFoundError(f"there is no {name.replace('.', '/')}.py", name=name)

    def _path_of(self, name: str) -> Path | None:
        parts = name.split(".")[2:]
        base = self.path.parent.joinpath(*parts)
        for path in (base / "__init__.py",) if not parts else (base.with_suffix(".py"), base / "__init__.py"):
            if path.is_file():
                return path
        return None
