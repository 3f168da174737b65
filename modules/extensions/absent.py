"""Stand-ins for what an extension's script imports and this process does not have: torch in the web process, Gradio in
the engine's, and the parts of text-generation-webui that Snug lacks.

A script that only names one loads and runs; using it raises Absent, which says what is missing and where it is.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any


class Absent(ImportError):
    """A script has used what is not in this process."""


class _Kind(type):
    """Stand-ins are classes, so that a script may derive from them and write them in annotations."""

    _why: str
    _loading: Callable[[], bool]

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__") or "_snug_stand_in" not in cls.__dict__:
            raise AttributeError(name)
        return stand_in(f"{cls.__qualname__}.{name}", cls._why, cls._loading)

    def __call__(cls, *args: Any, **options: Any) -> Any:
        if "_snug_stand_in" not in cls.__dict__:
            return super().__call__(*args, **options)
        if not cls._loading():
            raise Absent(f"{cls.__qualname__} {cls._why}")
        if len(args) == 1 and inspect.isroutine(args[0]):  # a decorator: the function itself is fine
            return args[0]
        return stand_in(f"{cls.__qualname__}()", cls._why, cls._loading)

    def _used(cls, *_: Any) -> Any:
        raise Absent(f"{cls.__qualname__} {cls._why}")

    def __bool__(cls) -> bool:
        return True

    __getitem__ = __setitem__ = __iter__ = __len__ = __enter__ = __exit__ = __contains__ = _used
    __add__ = __radd__ = __sub__ = __mul__ = __truediv__ = __matmul__ = __lt__ = __gt__ = _used


def stand_in(name: str, why: str, loading: Callable[[], bool] = lambda: False) -> Any:
    """Something that may be imported as `name` and derived from; its use raises Absent: "`name` `why`".

    While `loading` says so, calls give another stand-in: a script may say `device = torch.device("cuda")` at its top.
    """
    namespace = {
        "_snug_stand_in": True,
        "_why": why,
        "_loading": staticmethod(loading),
        "__qualname__": name,
        "__class_getitem__": classmethod(lambda cls, _: cls),
    }
    return _Kind(name.rpartition(".")[2].replace("()", "") or "absent", (), namespace)
