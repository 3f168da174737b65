"""The process of dry runs: questions from stdin, answers to stdout, one at a time. asking.py starts and watches it.

It builds models of configs that strangers wrote, so it may be killed at any moment, writes no files, and ends itself
where a config wants more memory or time than any model needs. Messages are as in killable.py.
"""

from __future__ import annotations

import dataclasses
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import torch

from modules.answering import no_core_dumps, serve, told
from modules.errors import BadConfig, SnugError, UnsupportedModel
from modules.memory.dryruns.dryrun import count_peaks
from modules.memory.dryruns.training_dryrun import count_training
from modules.memory.forecasting.forecast import RunSpec
from modules.memory.forecasting.training import TrainingRun
from modules.memory.model.meta import describe_as_json
from modules.units import GiB

MOST_BYTES = 4 * GiB
_SPARE_S = 5


def answer(request: Mapping[str, Any]) -> dict[str, Any]:
    """What `request` asks for, bytes or a description, or an error under "error"; within the time that it gives."""
    name = request["name"]
    limit_time(request["answer_s"])
    try:
        if request["question"] == "ready":
            return {}
        return describe_as_json(Path(request["file"])) if request["question"] == "describe" else _count(request)
    except SnugError as error:
        return told(error)
    except MemoryError:
        return told(BadConfig(f"The dry run of {name} needs too much memory.", remedy="Check its config.json."))
    except Exception as error:  # a family's code may do anything with numbers that it was not made for
        why = " ".join(f"{type(error).__name__}: {error}".split())[:240]
        return told(UnsupportedModel(f"{name} cannot be dry-run ({why}).", remedy="Snug's formulas are used."))
    finally:
        limit_time(0)


def _count(request: Mapping[str, Any]) -> dict[str, Any]:
    file, asked = Path(request["file"]), request["run"]
    if request["question"] == "training":
        return dataclasses.asdict(count_training(file, _known(TrainingRun, asked), request["kind"]))
    return dataclasses.asdict(count_peaks(file, _known(RunSpec, asked), request["kind"]))


def _known(kind: Any, values: Mapping[str, Any]) -> Any:
    """A dataclass of `kind` from those of `values` that are its fields."""
    names = {field.name for field in dataclasses.fields(kind)}
    return kind(**{name: value for name, value in values.items() if name in names})


def close_doors() -> None:
    """No files written, no core dumps, and no more memory than a dry run can need."""
    no_core_dumps()
    if sys.platform != "win32":
        import resource

        for limit, value in ((resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_DATA, MOST_BYTES)):
            resource.setrlimit(limit, (value, value))


def limit_time(seconds: float) -> None:
    """End the process after `seconds` and some, should nobody watch the clock any more."""
    if sys.platform != "win32":
        signal.alarm(int(seconds) + _SPARE_S if seconds else 0)


if __name__ == "__main__":
    close_doors()
    torch.set_num_threads(psutil.cpu_count(logical=False) or 1)  # as the engine: kernels have buffers for each thread
    serve(sys.stdin.buffer, sys.stdout.buffer, answer)
