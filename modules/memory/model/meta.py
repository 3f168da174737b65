"""Builds a config's model on torch's meta device, where tensors have shapes and no bytes, and lists what it holds.

`python -m modules.memory.model.meta FILE` prints the answer as JSON; describing.py asks. Classes come from transformers
alone: the config is handed over as values, so that no path leads to code that a model brings. Reads no weights.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
)
from transformers.core_model_loading import build_glob_alternation
from transformers.initialization import no_tie_weights
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module

from modules.errors import BadConfig, SnugError, UnsupportedModel
from modules.memory.model.describing import decode
from modules.memory.model.model_config import check_config
from modules.memory.model.model_spec import Description, block_of
from modules.units import GiB

MAX_HEAP_BYTES = 4 * GiB
_FORMATS = {
    torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
# What may not come from a file: it is decided here, or would lead transformers to fetch something.
_DROPPED = ("auto_map", "quantization_config", "_name_or_path", "attn_implementation", "_attn_implementation",
            "experts_implementation", "_experts_implementation", "_commit_hash", "transformers_version")  # fmt: skip


def describe(file: Path) -> Description:
    """What a model of the config `file` consists of. Raises BadConfig or UnsupportedModel."""
    return decode(describe_as_json(file))


def describe_as_json(file: Path) -> dict[str, Any]:
    """`describe` as plain values: [name, shape, dtype] a tensor, in the dtypes of a model that runs in bf16."""
    model = build(file)
    matrices = sorted(replaceable(model))  # as from_pretrained does: before tables are tied
    model.tie_weights()
    stored = model.state_dict().keys()
    kept = _kept_fp32(model, torch.bfloat16)
    buffers = list(model.named_buffers())
    owned = list(model.named_parameters()) + [(name, buffer) for name, buffer in buffers if name in stored]
    others = [(name, buffer) for name, buffer in buffers if name not in stored]
    return {
        "architecture": type(model).__name__,
        "tensors": [_entry(name, tensor, name in kept) for name, tensor in owned],
        "buffers": [_entry(name, buffer, False) for name, buffer in others],
        "bare_modules": list(_bare_modules(model, {name for name, _ in owned})),
        "replaceable": matrices,
        "kept_fp32": sorted(kept | {name for name, tensor in owned + others if tensor.dtype == torch.float32}),
        "kept_fp32_in_fp16": sorted(_kept_fp32(model, torch.float16)),
    }


def build(file: Path, *, attention: str | None = None) -> Any:
    """The model of a config file on the meta device, in bf16, for evaluation; nothing is tied yet.

    `attention` None: the family's own choice.

    Raises BadConfig or UnsupportedModel.
    """
    checked = check_config(file, file.parent.name, trust_remote_code=False)
    values = {name: value for name, value in checked.whole.items() if name not in _DROPPED}
    auto: Any = AutoModelForSeq2SeqLM if checked.family.is_encoder_decoder else AutoModelForCausalLM
    auto = AutoModelForImageTextToText if checked.family.sees else auto
    auto = AutoModel if checked.embedder is not None else auto
    try:
        config = _from_values(CONFIG_MAPPING[checked.model_type], values)
        with torch.device("meta"), no_tie_weights():
            model = auto.from_config(
                config, dtype=torch.bfloat16, attn_implementation=attention, trust_remote_code=False
            )
            if checked.embedder is not None:
                drop_pooler(model)
    except ImportError as error:
        raise UnsupportedModel(
            f"{checked.family.architecture} needs a package that is not installed: {str(error)[:160]}.",
            remedy="Choose another model.",
        ) from error
    except MemoryError as error:
        raise BadConfig("The model that the config describes has too many parts.", remedy="Check its sizes.") from error
    except Exception as error:  # whatever a family's code makes of impossible values
        raise BadConfig(
            f"transformers cannot build a {checked.model_type} model of this config: {_one_line(error)}.",
            remedy="Fetch the model's config again.",
        ) from error
    return model.eval()


def drop_pooler(model: Any) -> None:
    """Take away the layer that BERT and its kin put behind the first token for classifying: no embedding uses it."""
    if getattr(model, "pooler", None) is not None:
        model.pooler = None


def _from_values(config_class: Any, values: dict[str, Any]) -> Any:
    """A config of plain values, with the infinities that transformers writes as {"__float__": "Infinity"}."""
    return config_class.from_dict(config_class._decode_special_floats(values))


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:240]


def _entry(name: str, tensor: torch.Tensor, keep_fp32: bool) -> list[Any]:
    dtype = torch.float32 if keep_fp32 and tensor.dtype.is_floating_point else tensor.dtype
    return [name, list(tensor.shape), _FORMATS.get(dtype, "U8")]


def _kept_fp32(model: Any, dtype: torch.dtype) -> frozenset[str]:
    """Tensors that from_pretrained leaves in fp32 in a model of `dtype` (core_model_loading.py, dtype_plan)."""
    plan = model._get_dtype_plan(dtype)
    if not plan:
        return frozenset()
    pattern, _, _ = build_glob_alternation(list(plan))
    return frozenset(name for name in model.state_dict() if pattern.search(name))


def replaceable(model: Any) -> Iterator[str]:
    """Weights of the linear layers that transformers' bitsandbytes integration would replace, by its own rules."""
    skipped = HfQuantizer.get_modules_to_not_convert(model, None, model._keep_in_fp32_modules)
    for name, module in model.named_modules():
        plain = isinstance(module, Conv1D) or type(module) is torch.nn.Linear
        if plain and should_convert_module(name, skipped):
            yield f"{name}.weight"


def _bare_modules(model: Any, owned: set[str]) -> Iterator[str]:
    """Leaf modules outside the blocks that hold tensors, none of them in `owned`: rotary tables, tied heads."""
    owners = {name.rpartition(".")[0] for name in owned}
    for name, module in model.named_modules():
        holds = any(True for _ in module.parameters(recurse=False)) or any(True for _ in module.buffers(recurse=False))
        if holds and name and name not in owners and not block_of(f"{name}.x"):
            yield name


def _limit_memory() -> None:
    """A config with absurd sizes ends this process, not the machine."""
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (MAX_HEAP_BYTES, MAX_HEAP_BYTES))


def main(argv: list[str]) -> int:
    """Describe argv[0] on stdout."""
    _limit_memory()
    try:
        answer = describe_as_json(Path(argv[0]))
    except SnugError as error:
        answer = {"error": {"code": error.code, "message": error.message, "remedy": error.remedy}}
    sys.stdout.write(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
