"""A spec held against the model that its config builds: what no file holds is added, what disagrees is told."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

from modules.memory.model.model_spec import Description, ModelSpec, TensorInfo

TOLERATED_SHARE = 0.005
_HEADS = ("lm_head.weight", "embed_out.weight")


def with_description(spec: ModelSpec, found: Description) -> ModelSpec:
    """`spec` with the buffers, kept precisions and replaceable matrices of `found`.

    A count of parameters that differs by more than 0.5 % becomes a warning. Files that are quantized already store
    something else than parameters: there nothing is compared.
    """
    names = {tensor.name for tensor in spec.tensors}
    known = found.replaceable <= names
    warning = _disagreement(spec, found) if spec.prequantized == "none" else ""
    return replace(
        spec,
        buffers=found.buffers,
        kept_fp32=found.kept_fp32,
        kept_fp32_in_fp16=found.kept_fp32_in_fp16,
        linear_weights=found.replaceable if known else None,
        bare_modules=tuple(name for name in found.bare_modules if name not in _owners(names)),
        warnings=(*spec.warnings, *([warning] if warning else [])),
    )


def _disagreement(spec: ModelSpec, found: Description) -> str:
    """The warning about parameters that are too many or too few in the files; "" if they agree."""
    built = count(found.tensors)
    shared = _shared_copies(spec, found)
    stored = count(tensor for tensor in spec.tensors if tensor.name not in shared)
    if abs(stored - built) <= TOLERATED_SHARE * built:
        return ""
    return (
        f"The files hold {stored:,} parameters; the model that config.json describes has {built:,} "
        f"({(stored - built) / built:+.1%}). One of the two is wrong."
    )


def _shared_copies(spec: ModelSpec, found: Description) -> frozenset[str]:
    """Tensors that some files store again though the model shares them: heads and tables of tied embeddings."""
    built = {tensor.name for tensor in found.tensors}
    again = {tensor.name for tensor in spec.tensors if tensor.name.endswith((*_HEADS, "embed_tokens.weight"))}
    return frozenset(again - built) if spec.tied_embeddings or spec.is_encoder_decoder else frozenset()


def count(tensors: Iterable[TensorInfo]) -> int:
    """How many numbers tensors hold together."""
    return sum(math.prod(tensor.shape) for tensor in tensors)


def _owners(names: set[str]) -> set[str]:
    return {name.rpartition(".")[0] for name in names}
