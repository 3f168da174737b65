"""config.json, checked field by field: what a model's shape is, from a file that may say anything.

Raises BadConfig naming the field. Does not look at weights, and executes nothing that the file names.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from modules.errors import BadConfig, ModelNotFound, RemoteCodeDisabled
from modules.memory.formats import open_regular
from modules.units import MiB, format_size

LayerKind = Literal["full", "sliding", "recurrent", "shared"]
MAX_CONFIG_BYTES = 10 * MiB
MAX_LAYERS = 10_000
MAX_CONTEXT = 2**31
_MAX_CONTAINERS = 50_000
_MAX_DEPTH = 32

_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_DECODER_LAYERS = ("num_decoder_layers", "decoder_layers", *_LAYERS)
_ENCODER_LAYERS = ("encoder_layers", "num_layers", "num_hidden_layers")
_HIDDEN = ("hidden_size", "n_embd", "d_model", "dim")
_HEADS = ("num_attention_heads", "n_head", "n_heads", "decoder_attention_heads", "num_heads")
_KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv")
_INTERMEDIATE = ("intermediate_size", "ffn_dim", "decoder_ffn_dim", "d_ff", "n_inner", "ffn_hidden_size")
_CONTEXT = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "n_ctx", "seq_length")
# Families whose learned position table ends at max_context: beyond it there is nothing to look up.
_LEARNED_POSITIONS = frozenset(
    {"gpt2", "gpt_bigcode", "gpt_neo", "opt", "openai-gpt", "bart", "mbart", "pegasus", "marian", "blenderbot",
     "biogpt", "xglm", "blenderbot-small", "led", "plbart", "mvp", "prophetnet", "bigbird_pegasus", "ctrl", "gpt-sw3"}
)  # fmt: skip
_RECURRENT_TYPES = frozenset({"mamba", "mamba2", "falcon_mamba", "rwkv", "xlstm"})
_RECURRENT_KINDS = frozenset({"linear_attention", "mamba", "mamba2", "recurrent", "conv", "rwkv"})
_FULL_KINDS = frozenset({"full_attention", "attention", "global_attention", "hybrid"})
_SLIDING_KINDS = frozenset({"sliding_attention", "chunked_attention", "local_attention", "local"})
_CODE_KEYS = ("auto_map", "_attn_implementation_internal", "_experts_implementation_internal", "custom_pipelines")


@dataclass(frozen=True, slots=True)
class Shape:
    """A model's shape. `kv_elements` is what one token costs in one attention layer's cache, in elements.

    `kinds` has one entry per decoder layer. `state_elements` and `state_fp32` are one recurrent layer's state.
    """

    layers: int
    encoder_layers: int
    hidden_size: int
    intermediate_size: int
    attention_heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    max_context: int
    learned_positions: bool
    kv_elements: int
    kinds: tuple[LayerKind, ...]
    sliding_window: int
    experts: int
    experts_per_token: int
    state_elements: int
    state_fp32: int
    context_stated: bool


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, within limits of size, nesting and number. Raises BadConfig naming the file."""
    try:
        with open_regular(path) as file:
            raw = file.read(MAX_CONFIG_BYTES + 1)
    except ModelNotFound as error:
        raise BadConfig(error.message, remedy="Every model folder needs its config.json.") from error
    if len(raw) > MAX_CONFIG_BYTES:
        raise _bad(path.name, f"is larger than {format_size(MAX_CONFIG_BYTES)}")
    if raw.count(b"{") + raw.count(b"[") > _MAX_CONTAINERS:
        raise _bad(path.name, "has too many lists and objects")
    try:
        content = json.loads(raw, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise _bad(path.name, f"is not valid JSON ({str(error)[:80]})") from error
    if not isinstance(content, dict):
        raise _bad(path.name, "does not hold an object")
    _check_depth(path.name, content)
    return content


def refuse_remote_code(config: Mapping[str, Any], name: str) -> None:
    """Raise RemoteCodeDisabled if `config` names Python code, at any depth, in a key or as a kernel to fetch."""
    for key, value in _walk(config):
        asks = key in _CODE_KEYS and bool(value)
        # transformers fetches and runs a kernel for "org/repo" here; its own names hold no slash.
        asks = asks or (key.lstrip("_").startswith("attn_implementation") and "/" in str(value))
        if asks:
            raise RemoteCodeDisabled(
                f"{name} wants to run code of its own ({key} in config.json), which is off.",
                remedy="If you trust its publisher, start Snug with --trust-remote-code.",
            )


def _walk(value: object) -> Sequence[tuple[str, object]]:
    """Every (key, value) of every object inside `value`, at any depth."""
    found: list[tuple[str, object]] = []
    waiting: list[object] = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, Mapping):
            found += [(str(key), inner) for key, inner in item.items()]
            waiting += item.values()
        elif isinstance(item, list):
            waiting += item
    return found


def _check_depth(name: str, content: object) -> None:
    level: list[object] = [content]
    for _ in range(_MAX_DEPTH):
        level = [
            inner
            for item in level
            if isinstance(item, (dict, list))
            for inner in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return
    raise _bad(name, f"is nested deeper than {_MAX_DEPTH} levels")


def read_shape(config: Mapping[str, Any], model_type: str, *, encoder_decoder: bool) -> Shape:
    """The Shape that config.json describes. Raises BadConfig naming a field that is missing or impossible."""
    recurrent = model_type in _RECURRENT_TYPES
    hidden = number(config, _HIDDEN, 1, 2**20)
    layers = number(config, _DECODER_LAYERS if encoder_decoder else _LAYERS, 1, MAX_LAYERS)
    heads = number(config, _HEADS, 1, 2**16, default=1 if recurrent else None)
    kv_heads = _kv_heads(config, heads)
    head_dim = number(config, ("head_dim", "d_kv", "attention_head_size", "kv_channels"), 1, 2**16, default=0)
    head_dim = head_dim or max(1, hidden // heads)
    window = number(config, ("sliding_window", "attention_chunk_size"), 1, 2**31, default=0)
    lora_rank = number(config, ("kv_lora_rank",), 1, 2**20, default=0)
    rope_dim = number(config, ("qk_rope_head_dim",), 0, 2**20, default=0)
    state, state_fp32 = _recurrent_state(config, model_type, hidden)
    context = number(config, _CONTEXT, 1, MAX_CONTEXT, default=0)
    experts = number(config, ("num_local_experts", "num_experts", "n_routed_experts"), 0, 2**16, default=0)
    recurrent_layer: LayerKind = "recurrent"
    return Shape(
        layers=layers,
        encoder_layers=number(config, _ENCODER_LAYERS, 1, MAX_LAYERS) if encoder_decoder else 0,
        hidden_size=hidden,
        intermediate_size=number(config, _INTERMEDIATE, 1, 2**24, default=4 * hidden),
        attention_heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=number(config, ("vocab_size",), 1, 2**25),
        max_context=context or 2048,
        learned_positions=model_type in _LEARNED_POSITIONS,
        kv_elements=lora_rank + rope_dim if lora_rank else 2 * kv_heads * head_dim,
        kinds=(recurrent_layer,) * layers if recurrent else _layer_kinds(config, model_type, layers, window),
        sliding_window=window,
        experts=experts,
        experts_per_token=number(config, ("num_experts_per_tok", "moe_topk"), 0, 2**16, default=min(experts, 2)),
        state_elements=state,
        state_fp32=state_fp32,
        context_stated=context > 0,
    )


def number(config: Mapping[str, Any], names: Sequence[str], low: int, high: int, default: int | None = None) -> int:
    """The first of the fields `names` that is there and not null, a whole number from `low` to `high`."""
    for name in names:
        value = config.get(name)
        if value is None:
            continue
        whole = type(value) is int or (type(value) is float and math.isfinite(value) and value == int(value))
        if not whole or not low <= value <= high:
            raise BadConfig(
                f"config.json: {name} is {str(value)[:40]!r}; it must be a whole number from {low} to {high}.",
                remedy="Fetch the model again.",
                param=name,
            )
        return int(value)
    if default is None:
        raise BadConfig(f"config.json lacks {names[0]}.", remedy="Fetch the model again.", param=names[0])
    return default


def _kv_heads(config: Mapping[str, Any], heads: int) -> int:
    """Heads of keys and values: grouped where the config says so, one for multi-query models (Falcon-7B, BigCode)."""
    if config.get("new_decoder_architecture") is not True and config.get("multi_query") is True:
        return 1
    kv_heads = number(config, _KV_HEADS, 1, 2**16, default=heads)
    if kv_heads > heads:
        raise BadConfig(
            f"config.json: num_key_value_heads is {kv_heads}, more than the {heads} heads.",
            remedy="Fetch the model again.",
            param="num_key_value_heads",
        )
    return kv_heads


def _layer_kinds(config: Mapping[str, Any], model_type: str, layers: int, window: int) -> tuple[LayerKind, ...]:
    """What each decoder layer keeps per token: from layer_types, else from the family's own rule."""
    shared = number(config, ("num_kv_shared_layers",), 0, layers, default=0)
    stated = config.get("layer_types", config.get("layers_block_type"))
    kinds: list[LayerKind] = ["full"] * layers
    if isinstance(stated, list) and len(stated) == layers:
        kinds = [_kind(str(name), window) for name in stated]
    elif window and config.get("use_sliding_window") is not False:
        pattern = number(config, ("sliding_window_pattern", "_sliding_window_pattern"), 1, MAX_LAYERS, default=0)
        pattern = pattern or {"gemma2": 2, "gemma3_text": 6, "gemma3": 6}.get(model_type, 0)
        first = (
            number(config, ("max_window_layers",), 0, MAX_LAYERS, default=0) if "use_sliding_window" in config else 0
        )
        kinds = ["full" if (pattern and (i + 1) % pattern == 0) or i < first else "sliding" for i in range(layers)]
    kinds[layers - shared :] = ["shared"] * shared
    return tuple(kinds)


def _kind(name: str, window: int) -> LayerKind:
    if name in _RECURRENT_KINDS:
        return "recurrent"
    return "sliding" if name in _SLIDING_KINDS and window else "full"


def _recurrent_state(config: Mapping[str, Any], model_type: str, hidden: int) -> tuple[int, int]:
    """(elements in the model's dtype, elements in fp32) of one recurrent layer's state.

    Mamba 1, Mamba 2 and gated delta net as transformers' caches hold them; zero for models without such layers.
    """
    kernel = number(config, ("conv_kernel", "mamba_d_conv", "linear_conv_kernel_dim", "d_conv"), 1, 1024, default=4)
    states = number(config, ("state_size", "mamba_d_state", "ssm_state_size"), 1, 2**16, default=0)
    if "linear_num_value_heads" in config:
        value_heads = number(config, ("linear_num_value_heads",), 1, 2**16)
        key_heads = number(config, ("linear_num_key_heads",), 1, 2**16)
        key_dim = number(config, ("linear_key_head_dim",), 1, 2**16)
        value_dim = number(config, ("linear_value_head_dim",), 1, 2**16)
        return (2 * key_heads * key_dim + value_heads * value_dim) * kernel, value_heads * key_dim * value_dim
    if not states:
        return 0, 0
    expand = number(config, ("expand", "mamba_expand"), 1, 64, default=2)
    inner = number(config, ("intermediate_size",), 1, 2**24, default=expand * hidden)
    if model_type in ("mamba", "falcon_mamba"):
        return inner * kernel, inner * states
    groups = number(config, ("n_groups", "mamba_n_groups"), 1, 2**16, default=1)
    return (expand * hidden + 2 * groups * states) * kernel, expand * hidden * states


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not a number")


def _bad(name: str, problem: str) -> BadConfig:
    return BadConfig(f"{name} {problem}.", remedy="Fetch the model again.", param=name)
