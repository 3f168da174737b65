"""What a loaded model has that no file holds: tensors that are missing, and tables that its config asks for.

transformers makes both, of whatever size, once the files are read. Here they are counted before, for the plan knows the
files: a config can ask for more than the machine has. It touches an inner part of transformers 5.23: modeling_utils.py.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from transformers import PreTrainedModel

from modules.errors import BadConfig, BadSafetensors
from modules.memory.planning.planner import Plan
from modules.units import MiB, format_size

_MISSING_BYTES = 256 * MiB  # smaller ones are told after the load, when the library has sorted them
_TABLE_BYTES = 512 * MiB  # beyond those of the plan, which knows them once the model was described


@contextmanager
def counted_first(plan: Plan) -> Iterator[None]:
    """While a model is loaded, refuse to make what no file of `plan` holds, where it is large.

    Raises BadSafetensors for missing tensors, BadConfig for tables.
    """
    name = "_move_missing_keys_from_meta_to_device"
    make = getattr(PreTrainedModel, name)

    def count_and_make(model: Any, missing: Collection[str], *others: Any, **named: Any) -> Any:
        _refuse_missing(plan, model, missing)
        _refuse_tables(plan, model)
        return make(model, missing, *others, **named)

    with patch.object(PreTrainedModel, name, count_and_make):
        yield


def refuse_more_than_held(plan: Plan, numbers: int) -> None:
    """Raise BadSafetensors where a model of `numbers` parameters has many that the files lack. For ZeRO-3, which makes
    every tensor before it reads one."""
    lacking = numbers - plan.spec.parameters
    if plan.spec.prequantized == "none" and lacking > _MISSING_BYTES // 2:  # of two bytes each
        raise BadSafetensors(
            f"{plan.spec.name} lacks {lacking:,} of its {numbers:,} parameters.",
            remedy="Fetch the model again, with all its files.",
        )


def _refuse_missing(plan: Plan, model: Any, missing: Collection[str]) -> None:
    usual = model._keys_to_ignore_on_load_missing or ()
    shared = model.all_tied_weights_keys
    lacking = sorted(
        name for name in missing if name not in shared and not any(re.search(pattern, name) for pattern in usual)
    )
    made = _bytes(model.get_parameter_or_buffer(name) for name in lacking)
    if made > _MISSING_BYTES:
        raise BadSafetensors(
            f"{plan.spec.name} lacks {len(lacking)} of its tensors, {lacking[0]} among them: {format_size(made)}.",
            remedy="Fetch the model again, with all its files.",
        )


def _refuse_tables(plan: Plan, model: Any) -> None:
    planned = sum(tensor.size_bytes for tensor in plan.spec.buffers)
    made = _bytes(buffer for _, buffer in model.named_non_persistent_buffers())
    if made > planned + _TABLE_BYTES:
        raise BadConfig(
            f"The config.json of {plan.spec.name} asks for tables of {format_size(made)} that no file holds.",
            remedy="Check its sizes (max_position_embeddings, n_positions), or fetch the model again.",
        )


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
