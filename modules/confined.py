"""A process, or a thread, that needs few files: from then on the kernel lets it open no others, nor connect by TCP.

For what reads what strangers wrote, by libraries that may follow it elsewhere. By Landlock, which Linux has since 5.13
(linux/landlock.h; a kernel may be built without it), and which nothing can undo. Imports nothing of Snug.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import TypeVar

_ROOT = Path(__file__).parent.parent
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same numbers on every architecture but Alpha
_VERSION_FLAG = 1
_PATH_BENEATH = 1
_NO_NEW_PRIVILEGES = 38  # of prctl; Landlock asks for it
_EXECUTE, _READ_FILE, _READ_FOLDER = 1 << 0, 1 << 2, 1 << 3
_KNOWN_RIGHTS = (0, 13, 14, 15, 15, 16)
"""How many rights to files each version of Landlock knows, from version 0 on; later ones know no more (until 7)."""
_TCP_SINCE, _ALL_TCP = 4, 0b11  # listening and connecting
_SCOPES_SINCE, _ALL_SCOPES = 6, 0b11  # abstract sockets and signals to others
_SYSTEM = (
    "/usr", "/lib", "/lib32", "/lib64", "/nix/store", "/gnu/store", "/home/linuxbrew/.linuxbrew",
    "/etc/ld.so.cache", "/etc/localtime", "/proc/cpuinfo", "/proc/meminfo", "/sys/devices/system/cpu",
    "/dev/null", "/dev/random", "/dev/urandom",
)  # fmt: skip
"""Where systems keep programs, libraries, time zones and what they tell of the machine."""
_OWN = "/proc/self"  # not all of /proc: to root it tells the environment of others, and so their secrets


Result = TypeVar("Result")


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scopes", ctypes.c_uint64))


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("rights", ctypes.c_uint64), ("folder", ctypes.c_int32))


def confined_to(paths: Iterable[Path], work: Callable[[], Result]) -> Result:
    """What `work` gives, done in a thread of its own, which can read Python's files, the system's and `paths` (files,
    and folders with all in them) alone, where the kernel can see to it. Links in them need their ends named too.
    """

    def alone() -> Result:
        confine(paths)
        return work()

    with ThreadPoolExecutor(1, "confined") as threads:
        return threads.submit(alone).result()


def confine(more: Iterable[Path] = ()) -> bool:
    """Let this thread, and all that it starts, read Python's files, the system's and `more` alone, write none, and
    connect to nothing by TCP. A process calls it before its other threads run. Whether the kernel can: where it
    cannot, nothing changes.
    """
    if not sys.platform.startswith("linux"):
        return False
    kernel = ctypes.CDLL(None, use_errno=True)
    version = kernel.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION_FLAG)
    if version < 1:
        return False
    every = (1 << _KNOWN_RIGHTS[min(version, len(_KNOWN_RIGHTS) - 1)]) - 1
    asked = _Ruleset(every, _ALL_TCP * (version >= _TCP_SINCE), _ALL_SCOPES * (version >= _SCOPES_SINCE))
    size = 8 if version < _TCP_SINCE else 16 if version < _SCOPES_SINCE else ctypes.sizeof(asked)
    rules = kernel.syscall(_CREATE_RULESET, ctypes.byref(asked), ctypes.c_size_t(size), 0)
    if rules < 0:
        return False
    try:
        for path in (*_python_and_system(), *more):
            _allow(kernel, rules, path)
        kernel.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
        return bool(kernel.syscall(_RESTRICT_SELF, rules, 0) == 0)
    finally:
        os.close(rules)


def _allow(kernel: ctypes.CDLL, rules: int, path: Path) -> None:
    """Reading, and running, of one file or of all in a folder."""
    own = str(path) == _OWN
    try:
        opened = _kept_open(_OWN) if own else os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:  # not on this system
        return
    try:
        rights = _EXECUTE | _READ_FILE | (_READ_FOLDER if path.is_dir() else 0)
        kernel.syscall(_ADD_RULE, rules, _PATH_BENEATH, ctypes.byref(_Beneath(rights, opened)), 0)
    finally:
        if not own:
            os.close(opened)


@cache
def _kept_open(path: str) -> int:
    """For good: the kernel would forget a place in /proc once nobody has it open, and the rule with it."""
    return os.open(path, os.O_PATH | os.O_CLOEXEC)


def _python_and_system() -> Iterator[Path]:
    """Not the folder of Snug itself, nor one around it: what belongs to the user lies there as a rule."""
    yield Path(_OWN)
    yield _ROOT / "modules"
    yield from map(Path, {*_SYSTEM, sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix})
    for name in {*sys.path, *os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)}:
        if name and not _ROOT.resolve().is_relative_to(Path(name).resolve()):
            yield Path(name)
