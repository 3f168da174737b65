"""modules/engine/loading/loading_errors.py: what goes wrong under a load, by its name."""

from __future__ import annotations

import errno
from dataclasses import replace

import pytest
import torch

from modules.engine.loading.loading_errors import named_failures, named_tokenizer_failures
from modules.errors import (
    BadFlag,
    BadTokenizer,
    DiskFull,
    LoadFailed,
    OutOfMemory,
    RemoteCodeDisabled,
    SnugError,
    UnsupportedModel,
)
from modules.memory.forecasting.budget import Budget, Figure
from modules.units import GiB
from tests.fakes import fake_plan

CASES: list[tuple[Exception, type[SnugError], str]] = [
    (MemoryError(), OutOfMemory, "Memory ran out"),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"), OutOfMemory, "Memory ran out"),
    (
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
        OutOfMemory,
        "ran",
    ),
    (
        RuntimeError("unable to mmap 269 bytes from file <x>: Cannot allocate memory (12)"),
        OutOfMemory,
        "Memory ran out",
    ),
    (RuntimeError("could not create a primitive"), OutOfMemory, "Memory ran out"),
    (RuntimeError("could not create a primitive descriptor for a matmul primitive"), LoadFailed, "could not create"),
    (OSError(errno.ENOSPC, "No space left on device"), DiskFull, "filled up"),
    (ValueError("Please pass the argument `trust_remote_code=True`"), RemoteCodeDisabled, "code of its own"),
    (ValueError("Unrecognized configuration class <class 'BertConfig'>"), UnsupportedModel, "cannot generate"),
    (KeyError("strange"), LoadFailed, "KeyError: 'strange'"),
]


@pytest.mark.parametrize(("error", "kind", "words"), CASES)
def test_each_failure_has_a_name_a_cause_and_a_remedy(error: Exception, kind: type[SnugError], words: str) -> None:
    with pytest.raises(kind, match=words) as caught, named_failures(fake_plan()):
        raise error
    assert caught.value.__cause__ is error
    assert caught.value.remedy
    assert "\n" not in caught.value.message


def test_out_of_memory_says_what_was_needed_and_what_is_free() -> None:
    plan = replace(
        fake_plan(),
        budgets={
            device: Budget.of({"weights": Figure(size * GiB, "exact")}) for device, size in (("cpu", 13), ("disk", 1))
        },
    )
    with (
        pytest.raises(OutOfMemory, match=r"needs 13\.0 GiB on cpu \(.* are free now\)\.") as caught,
        named_failures(plan),
    ):
        raise MemoryError
    assert "disk" not in caught.value.message


def test_folders_of_this_machine_stay_out_of_the_message() -> None:
    plan = fake_plan()
    folder = plan.spec.path.absolute()
    with pytest.raises(LoadFailed, match="scripted/part") as caught, named_failures(plan):
        raise RuntimeError(f"bad block in {folder}/part")
    assert str(folder.parent) not in caught.value.message


def test_named_errors_pass_unchanged() -> None:
    error = BadFlag("so")
    with pytest.raises(BadFlag) as caught, named_tokenizer_failures(fake_plan()):
        raise error
    assert caught.value is error


def test_a_tokenizers_failures_are_the_tokenizers() -> None:
    with pytest.raises(BadTokenizer, match="ValueError: no such token"), named_tokenizer_failures(fake_plan()):
        raise ValueError("no such token")
    with pytest.raises(OutOfMemory), named_tokenizer_failures(fake_plan()):
        raise MemoryError
