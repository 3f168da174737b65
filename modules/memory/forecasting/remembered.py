"""What follows from a model alone, worked out once: the page asks for plans at every move of a slider."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from modules.memory.model.model_spec import ModelSpec

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")
_SPECS_KEPT = 4
_VALUES_KEPT = 1000


class PerSpec(Generic[Key, Value]):
    """`compute(spec, key)`, remembered for the last few specs. A spec is told by identity: comparing costs more."""

    def __init__(self, compute: Callable[[ModelSpec, Key], Value]) -> None:
        self._compute = compute
        self._known: OrderedDict[int, tuple[ModelSpec, dict[Key, Value]]] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, spec: ModelSpec, key: Key) -> Value:
        """The remembered value, or a new one."""
        with self._lock:
            _, values = self._known.setdefault(id(spec), (spec, {}))
            self._known.move_to_end(id(spec))
            while len(self._known) > _SPECS_KEPT:
                self._known.popitem(last=False)
            if len(values) > _VALUES_KEPT:
                values.clear()
        value = values.get(key)
        if value is None:
            value = values[key] = self._compute(spec, key)
        return value
