"""A GGUF file as the PyTorch model that transformers turns it into. Its header is checked in gguf.py."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from modules.errors import BadConfig, BadGguf, UnsupportedModel
from modules.memory.model.assembly import assemble, context_warning
from modules.memory.model.families import check_can_generate, gguf_architectures
from modules.memory.model.formats import StoredTensor
from modules.memory.model.gguf import ArrayValue, GgufHeader
from modules.memory.model.gguf_parts import read_whole_gguf
from modules.memory.model.model_spec import ModelSpec, TensorInfo, block_of
from modules.memory.model.naming import check_blocks
from modules.memory.model.shape import Shape, read_shape

# Tensor groups of a GGUF file in the terms of transformers' models: token table, block, final norm, head.
_GGUF_MODULES = {
    "gpt2": ("transformer.wte", "transformer.h", "transformer.ln_f"),
    "bloom": ("transformer.word_embeddings", "transformer.h", "transformer.ln_f"),
    "falcon": ("transformer.word_embeddings", "transformer.h", "transformer.ln_f"),
    "mamba": ("backbone.embeddings", "backbone.layers", "backbone.norm_f"),
}
_GGUF_DEFAULT_MODULES = ("model.embed_tokens", "model.layers", "model.norm")


def inspect_gguf(path: Path) -> ModelSpec:
    """A GGUF file as the PyTorch model that transformers turns it into: tensors counted at 16 bits."""
    header = read_whole_gguf(path)
    architecture = str(header.metadata.get("general.architecture", ""))[:60]
    model_type = {
        "qwen2moe": "qwen2_moe",
        "qwen3moe": "qwen3_moe",
        "gpt-oss": "gpt_oss",
        "minimax-m2": "minimax_m2",
    }.get(architecture, architecture)
    if model_type not in gguf_architectures():
        raise UnsupportedModel(
            f"{path.name} holds the GGUF architecture {architecture!r}, which transformers cannot convert.",
            remedy="Get the model in safetensors format.",
        )
    family_type = {"gemma3": "gemma3_text", "gemma4": "gemma4_text", "deci": "llama"}.get(model_type, model_type)
    family = check_can_generate(family_type, "", is_decoder=True, custom_code=False)
    if family.sees:
        raise UnsupportedModel(
            f"{path.name} is the language model of one that sees; transformers cannot make that of a GGUF file.",
            remedy="Get the model in safetensors format.",
        )
    shape = _shape(path, _gguf_config(header, architecture), family_type, encoder_decoder=family.is_encoder_decoder)
    tensors = tuple(_gguf_tensor(tensor, model_type) for tensor in header.tensors)
    check_blocks(tensors, shape.layers, path.name)
    tied = not any(tensor.name == "lm_head.weight" for tensor in tensors)
    return assemble(
        path.stem, path, "gguf", family.architecture, family_type, shape, tensors, tied, tuple(context_warning(shape)),
        is_encoder_decoder=family.is_encoder_decoder, prequantized="none",
        rotary=any(key.startswith(f"{architecture}.rope.") for key in header.metadata),
    )  # fmt: skip


def _shape(path: Path, config: dict[str, Any], family_type: str, *, encoder_decoder: bool) -> Shape:
    """The Shape of a header's fields. Raises BadGguf naming the file, which has no config.json."""
    try:
        return read_shape(config, family_type, encoder_decoder=encoder_decoder)
    except BadConfig as error:
        told = error.message.replace("config.json", path.name, 1)
        raise BadGguf(told, remedy=error.remedy, param=error.param) from error


def _gguf_config(header: GgufHeader, architecture: str) -> dict[str, Any]:
    """The config.json fields that a GGUF header states."""
    fields = {
        "block_count": "num_hidden_layers", "embedding_length": "hidden_size", "vocab_size": "vocab_size",
        "context_length": "max_position_embeddings", "feed_forward_length": "intermediate_size",
        "attention.head_count": "num_attention_heads", "attention.head_count_kv": "num_key_value_heads",
        "attention.key_length": "head_dim", "attention.sliding_window": "sliding_window",
        "expert_count": "num_experts", "expert_used_count": "num_experts_per_tok",
        "ssm.state_size": "state_size", "ssm.conv_kernel": "conv_kernel",
    }  # fmt: skip
    config: dict[str, Any] = {}
    for key, name in fields.items():
        value = header.metadata.get(f"{architecture}.{key}")
        if isinstance(value, ArrayValue):
            value = max(value.items, default=None)
        if value is not None:
            config[name] = value
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    if "vocab_size" not in config and isinstance(tokens, ArrayValue):
        config["vocab_size"] = tokens.length
    return config


def _gguf_tensor(tensor: StoredTensor, model_type: str) -> TensorInfo:
    """A GGUF tensor under a name by which the loaded model's modules can be placed."""
    embedding, blocks, norm = _GGUF_MODULES.get(model_type, _GGUF_DEFAULT_MODULES)
    name = re.sub(r"^blk\.", blocks + ".", tensor.name)
    name = re.sub(r"^token_embd\.", embedding + ".", name)
    name = re.sub(r"^output_norm\.", norm + ".", name)
    name = re.sub(r"^output\.", "lm_head.", name)
    info = TensorInfo(name, tensor.shape, tensor.dtype, tensor.size_bytes)
    return replace(info, block=block_of(name))
