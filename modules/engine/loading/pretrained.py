"""A Plan in the terms of transformers: the keyword arguments of `from_pretrained`.

Pure: it reads no file, no GPU and no torch state, so it can be tested for machines that we do not have.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    BitsAndBytesConfig,
    GgufConfig,
)

from modules.errors import NotAvailableHere
from modules.memory.forecasting.forecast import DType
from modules.memory.planning.planner import Plan

TORCH_DTYPES: dict[DType, torch.dtype] = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}


def from_pretrained_kwargs(plan: Plan) -> dict[str, Any]:
    """What to pass to AutoModel….from_pretrained, beside the folder of `source_folder(plan)`.

    Raises NotAvailableHere for combinations that transformers cannot load.
    """
    kwargs: dict[str, Any] = {
        "dtype": TORCH_DTYPES[plan.run.dtype],
        "device_map": {name: _device_key(device) for name, device in plan.placement.items()} or {"": "cpu"},
        "attn_implementation": plan.run.attention,
        "trust_remote_code": plan.trust_remote_code,
        "use_safetensors": True,
        "local_files_only": True,
    }
    if "disk" in plan.placement.values():
        if plan.disk_cache_dir is None:
            raise NotAvailableHere(
                f"{plan.spec.name}: layers are to go to disk, but no folder is named for them.",
                remedy="Use --disk, with --disk-cache-dir FOLDER if you like.",
                param="disk",
            )
        kwargs["offload_folder"] = str(plan.disk_cache_dir)
    if plan.spec.source == "gguf":
        kwargs["gguf_file"] = plan.spec.path.name
    quantization_config = _quantization_config(plan)
    if quantization_config is not None:
        kwargs["quantization_config"] = quantization_config
    return kwargs


def auto_class(plan: Plan) -> Any:
    """The class of transformers that knows the class of the model."""
    if plan.spec.embedder is not None:
        return AutoModel
    if plan.spec.vision is not None:
        return AutoModelForImageTextToText
    return AutoModelForSeq2SeqLM if plan.spec.is_encoder_decoder else AutoModelForCausalLM


def source_folder(plan: Plan) -> Path:
    """The folder that transformers loads from; a .gguf file lies in it."""
    return plan.spec.path.parent if plan.spec.source == "gguf" else plan.spec.path


def _device_key(device: str) -> str | int:
    """GPUs by number: accelerate runs what is offloaded on the first of a set of devices, and only numbers have an
    order in sets (dispatch_model; a set of names begins with another GPU in every process)."""
    return int(device.removeprefix("cuda:")) if device.startswith("cuda:") else device


def _quantization_config(plan: Plan) -> Any:
    """A BitsAndBytesConfig or GgufConfig; None where the files say themselves how they are quantized, or nothing is."""
    run = plan.run
    if plan.spec.source == "gguf":
        if run.quantization != "none":
            raise NotAvailableHere(
                f"{plan.spec.name} is a GGUF file; bitsandbytes cannot quantize it a second time.",
                remedy="Drop --load-in-8bit or --load-in-4bit.",
                param="load_in_8bit" if run.quantization == "int8" else "load_in_4bit",
            )
        return GgufConfig(dequantize=True)
    if run.quantization == "none" or plan.spec.prequantized != "none":
        return None
    # The flag also governs 4-bit: modules off the GPU then stay in 16 or 32 bits instead of being refused.
    bitsandbytes: Any = BitsAndBytesConfig
    if run.quantization == "int8":
        return bitsandbytes(load_in_8bit=True, llm_int8_enable_fp32_cpu_offload=plan.offloads_quantized)
    return bitsandbytes(
        load_in_4bit=True,
        bnb_4bit_quant_type=run.quantization,
        bnb_4bit_use_double_quant=run.double_quant,
        bnb_4bit_compute_dtype=TORCH_DTYPES[run.compute_dtype],
        llm_int8_enable_fp32_cpu_offload=plan.offloads_quantized,
    )
