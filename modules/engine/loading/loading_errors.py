"""Failures of a load by their names: what transformers, torch and the system raise → SnugError.

It decides nothing and cleans nothing up; the engine process ends after a failed load.
"""

from __future__ import annotations

import errno
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch

from modules.engine.loops.reply import is_out_of_memory
from modules.errors import (
    BadConfig,
    BadSafetensors,
    BadTokenizer,
    DiskFull,
    LoadFailed,
    NotAvailableHere,
    OutOfMemory,
    RemoteCodeDisabled,
    SnugError,
    UnsupportedModel,
)
from modules.memory.planning.planner import Plan
from modules.units import format_size

log = logging.getLogger(__name__)

# safetensors when it cannot map a file, torch when it cannot share or map memory.
_NO_MEMORY = re.compile(r"(?i)cannot allocate memory|not enough memory")

_FETCH_AGAIN = "Fetch the model again, with all its files."
_LESS = "Use --load-in-8bit, --load-in-4bit, --auto-devices or --disk, a shorter --ctx-size, or a smaller model."


@contextmanager
def named_failures(plan: Plan) -> Iterator[None]:
    """Raise a SnugError instead of whatever goes wrong inside; the original is its cause and goes to the log."""
    try:
        yield
    except SnugError:
        raise
    except Exception as error:
        log.info("loading %s failed", plan.spec.name, exc_info=error)
        raise name_failure(error, plan) from error


@contextmanager
def named_tokenizer_failures(plan: Plan) -> Iterator[None]:
    """As `named_failures`, for the tokenizer: what has no better name is BadTokenizer."""
    try:
        with named_failures(plan):
            yield
    except (LoadFailed, BadSafetensors) as error:
        cause = error.__cause__ or error
        raise BadTokenizer(
            f"The tokenizer of {plan.spec.name} cannot be read: {_cause(cause, plan)}.", remedy=_FETCH_AGAIN
        ) from cause


@contextmanager
def named_processor_failures(plan: Plan) -> Iterator[None]:
    """As `named_failures`, for the files that say how pictures are read: what has no better name is BadConfig."""
    try:
        with named_failures(plan):
            yield
    except (LoadFailed, BadSafetensors) as error:
        cause = error.__cause__ or error
        raise BadConfig(
            f"How {plan.spec.name} reads pictures cannot be told (preprocessor_config.json, processor_config.json): "
            f"{_cause(cause, plan)}.",
            remedy=_FETCH_AGAIN,
        ) from cause


def name_failure(error: Exception, plan: Plan) -> SnugError:
    """The SnugError that tells a user what `error` means for loading `plan`."""
    name, text, cause = plan.spec.name, str(error), _cause(error, plan)
    if is_out_of_memory(error) or _NO_MEMORY.search(text):
        return _out_of_memory(plan)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return DiskFull(
            f"The disk filled up while {name} was loading.",
            remedy="Free some space, or choose another --disk-cache-dir.",
        )
    if "trust_remote_code" in text:
        return RemoteCodeDisabled(
            f"{name} needs Python code of its own, which is off.",
            remedy="If you trust its publisher, start Snug with --trust-remote-code.",
        )
    if "StrictDataclass" in type(error).__name__:
        return BadConfig(f"The config.json of {name} cannot be right: {cause}.", remedy=_FETCH_AGAIN)
    if type(error).__name__ == "SafetensorError":
        return BadSafetensors(f"{name}: a weights file is damaged: {cause}.", remedy=_FETCH_AGAIN)
    if isinstance(error, FileNotFoundError) or (isinstance(error, OSError) and "no file named" in text):
        return BadSafetensors(f"{name}: a file is missing: {cause}.", remedy=_FETCH_AGAIN)
    if "Unrecognized configuration class" in text or "does not recognize this architecture" in text:
        return UnsupportedModel(
            f"{plan.spec.architecture or name} cannot generate text here.",
            remedy="Snug chats with causal models (Llama, GPT, Qwen, …) and encoder-decoders (T5, BART).",
        )
    if "does not support an attention implementation" in text:
        return NotAvailableHere(
            f"{name} does not support --attn-implementation {plan.run.attention}.", remedy="Use sdpa or eager.",
            param="attn_implementation",
        )  # fmt: skip
    return LoadFailed(f"{name} could not be loaded: {cause}.", remedy="The log says more.")


def _cause(error: BaseException, plan: Plan) -> str:
    """`in_one_line` without the folders of this machine."""
    text = in_one_line(error)
    for folder in (plan.spec.path.parent.resolve(), plan.spec.path.parent.absolute()):
        text = text.replace(f"{folder}{os.sep}", "")
    return text


def in_one_line(error: BaseException) -> str:
    """An exception in at most 300 characters, without the full stop."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300].rstrip(".: ")


def _out_of_memory(plan: Plan) -> OutOfMemory:
    """Needed (by the plan) against free (now) on every device of the plan."""
    needs = [
        f"{format_size(budget.total)} on {device} ({format_size(free_bytes(device))} are free now)"
        for device, budget in plan.budgets.items()
        if device != "disk"
    ]
    needed = f" It needs {' and '.join(needs)}." if needs else ""
    return OutOfMemory(f"Memory ran out while {plan.spec.name} was loading.{needed}", remedy=_LESS)


def free_bytes(device: str) -> int:
    """Bytes that are free on "cpu" or "cuda:N" at this moment."""
    if device == "cpu":
        return int(psutil.virtual_memory().available)
    free: int = torch.cuda.mem_get_info(torch.device(device))[0]
    return free
