"""A script's functions as implementations of the hooks: whatever their arguments are called, and however few they are.

Arguments go by name where the names agree with those of hooks.py, else by place, as older scripts have them.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from types import ModuleType, SimpleNamespace
from typing import Any

from modules.extensions.hooks import NAMES, NOT_CALLED, Hooks, implements

_LATER_DROPPED = {"eos_token": None}  # arguments of earlier days of text-generation-webui, with what they get
_LIKE = 0.8


def plugin_of(module: ModuleType) -> SimpleNamespace:
    """What pluggy registers. Raises TypeError for a function that asks for more than its hook gives."""
    found = {}
    for name in NAMES:
        function = getattr(module, name, None)
        if callable(function):
            found[name] = implements(adapted(name, function))
    return SimpleNamespace(**found)


def adapted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with the arguments of the hook `name`. Raises TypeError where it wants others."""
    signature = inspect.signature(getattr(Hooks, name))
    given = [parameter for parameter in signature.parameters if parameter != "self"]
    taken = inspect.signature(function).parameters
    placed = _placing(name, given, taken)
    rest = [argument for argument in given if argument not in placed.values()]
    by_name = any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values())

    def call(**values: Any) -> Any:
        places, options = [], {argument: values[argument] for argument in rest} if by_name else {}
        for parameter, argument in placed.items():
            value = values[argument] if argument else _LATER_DROPPED[parameter]
            if taken[parameter].kind is inspect.Parameter.KEYWORD_ONLY:
                options[parameter] = value
            else:
                places.append(value)
        return function(*places, **options)

    parameters = [inspect.Parameter(argument, inspect.Parameter.POSITIONAL_OR_KEYWORD) for argument in given]
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__name__ = name
    return call


def _placing(name: str, given: list[str], taken: Mapping[str, inspect.Parameter]) -> dict[str, str]:
    """Each of the function's parameters with the hook's argument that it gets ("": one of earlier days)."""
    placed: dict[str, str] = {}
    left = [argument for argument in given if argument not in taken]
    for parameter, details in taken.items():
        if details.kind in (details.VAR_KEYWORD, details.VAR_POSITIONAL):
            continue
        if parameter in given:
            placed[parameter] = parameter
        elif parameter in _LATER_DROPPED:
            placed[parameter] = ""
        elif left and details.kind is not details.KEYWORD_ONLY:
            placed[parameter] = left.pop(0)
        elif details.default is details.empty:
            raise TypeError(f"{name} wants {parameter!r}; it is given ({', '.join(given)})")
        elif details.kind is not details.KEYWORD_ONLY:
            break  # its default, and theirs of all that follow by place
    return placed


def remarks(module: ModuleType) -> list[str]:
    """What a script's author should know: names that look like a hook's, and hooks that Snug does not have."""
    said = []
    for name, value in vars(module).items():
        if name in NOT_CALLED:
            said.append(f"{name} is text-generation-webui's; Snug does not use it")
        elif inspect.isfunction(value) and value.__module__ == module.__name__ and name not in NAMES:
            near = difflib.get_close_matches(name, [n for n in NAMES if "_" in n], 1, _LIKE)
            if near and not name.startswith("_"):
                said.append(f"{name} is no hook and is never called: is {near[0]} meant?")
    return said
