"""Logits processors of extensions, in the engine's process: their scripts are run here too, with torch and the model.

One that fails, returns something else than scores, or takes too long is out for the rest of its reply, which goes on;
who is to blame is told. Which scripts those are comes with the request, from the web process alone.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import LogitsProcessorList

from modules.engine.loops.loaded import LoadedModel
from modules.engine.loops.processors import OnHistory, Penalty
from modules.extensions.adapter import adapted
from modules.extensions.deadline import Overdue, Watch, call_within
from modules.extensions.faults import brief
from modules.extensions.hooks import IN_THE_ENGINE
from modules.extensions.script import OURS, EngineScript, Script

ABSENT = {"gradio": "is not in the engine's process: ui() runs in the web process"}
START_S = 30.0
STEP_S = 2.0
LARGEST_LOGIT = 1e30

Blame = Callable[[str, str], None]


class ForeignScripts:
    """The scripts that this engine has run so far, each once."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self._scripts: dict[str, Script] = {}
        self._late: set[str] = set()  # names: they would keep every reply waiting
        self._watch = Watch(STEP_S)

    def processors(self, scripts: Sequence[EngineScript], ids: Sequence[int], blame: Blame) -> list[Penalty]:
        """What the scripts add for one reply to `ids`; those that fail add nothing, and are told to `blame`."""
        found: list[Penalty] = []
        device = self._loaded.device
        for wanted in scripts:
            if wanted.name in self._late:
                blame(wanted.name, f"{IN_THE_ENGINE} is off until the model is loaded again: it did not return")
                continue
            try:
                made = call_within(START_S, lambda wanted=wanted: self._made(wanted, ids), name=wanted.name)  # type: ignore[misc]
            except Exception as error:  # it is not ours, and must not end the loop
                if isinstance(error, Overdue):
                    self._late.add(wanted.name)
                blame(wanted.name, f"{IN_THE_ENGINE} failed: {brief(error)}")
                continue
            found += [_Foreign(wanted.name, OnHistory(one, ids, device), self._watch, blame) for one in made]
        return found

    def _made(self, wanted: EngineScript, ids: Sequence[int]) -> list[Any]:
        module = self._module(wanted)
        params = getattr(module, "params", None)
        if isinstance(params, dict):
            params.update(json.loads(wanted.params))
        hook = adapted(IN_THE_ENGINE, getattr(module, IN_THE_ENGINE))
        input_ids = torch.tensor([list(ids)], dtype=torch.long, device=self._loaded.device)
        made = hook(processor_list=LogitsProcessorList(), input_ids=input_ids)
        if not isinstance(made, list) or not all(callable(one) for one in made):
            raise TypeError(f"returned {type(made).__name__}, not a list of logits processors")
        return list(made)

    def _module(self, wanted: EngineScript) -> Any:
        if wanted.path not in self._scripts:
            script = Script(
                wanted.name, Path(wanted.path), faces=self._faces(wanted.name), absent=ABSENT, private="snug_in_engine"
            )
            script.run()
            self._scripts[wanted.path] = script
        return self._scripts[wanted.path].module

    def _faces(self, name: str) -> dict[str, dict[str, Any]]:
        loaded, logger = self._loaded, logging.getLogger(f"extension.{name}")

        def encode(text: str, *_: Any, **__: Any) -> torch.Tensor:
            ids: list[int] = loaded.tokenizer.encode(str(text), add_special_tokens=False)
            return torch.tensor([ids], dtype=torch.long, device=loaded.device)

        def decode(token_ids: Any, *_: Any, **__: Any) -> str:
            return str(loaded.tokenizer.decode(token_ids))

        shared = {
            "model": loaded.model,
            "tokenizer": loaded.tokenizer,
            "model_name": loaded.info.name,
            "args": SimpleNamespace(),
        }
        return {
            "shared": shared,
            "text_generation": {"encode": encode, "decode": decode},
            "logging_colors": {"logger": logger},
            OURS: {"logger": logger},
        }


class _Foreign:
    """One processor behind its guard: a Penalty that is passed over once it has failed."""

    def __init__(self, name: str, processor: OnHistory, watch: Watch, blame: Blame) -> None:
        self._name = name
        self._processor = processor
        self._watch = watch
        self._blame = blame
        self._failed = False

    def add(self, token_id: int) -> None:
        """As Penalty."""
        self._processor.add(token_id)

    def __call__(self, scores: torch.Tensor) -> torch.Tensor:
        """As Penalty."""
        if self._failed:
            return scores
        try:
            return _checked(self._watch.call(self._name, lambda: self._processor(scores.clone())), scores)
        except BaseException as error:  # it is not ours, and must not end the loop
            self._failed = True
            self._blame(self._name, f"its logits processor failed: {brief(error)}")
            return scores


def _checked(made: Any, scores: torch.Tensor) -> torch.Tensor:
    if not isinstance(made, torch.Tensor) or made.shape != scores.shape:
        raise TypeError("it returned something else than scores of the same shape")
    checked: torch.Tensor = made.to(scores.device, scores.dtype).clamp(max=LARGEST_LOGIT)
    if bool(checked.isnan().any()):
        raise ValueError("it returned scores that are not numbers")
    return checked
