"""What a model's shape is, from the checked fields of its config: sizes, heads, layers, cache.

Families name the same thing differently; the names are here. Raises BadConfig naming a field.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from modules.errors import BadConfig
from modules.memory.model.config import number
from modules.memory.model.layers import (
    MAX_LAYERS,
    RECURRENT_TYPES,
    LayerKind,
    layer_kinds,
    layer_kv_elements,
    recurrent_state,
)

MAX_CONTEXT = 2**31

_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_DECODER_LAYERS = ("num_decoder_layers", "decoder_layers", *_LAYERS)
_ENCODER_LAYERS = ("encoder_layers", "num_layers", "num_hidden_layers")
# Nemotron-H states its layers by listing them.
_LAYER_LISTS = ("layers_block_type", "hybrid_override_pattern")
_HIDDEN = ("hidden_size", "n_embd", "d_model", "dim")
_HEADS = ("num_attention_heads", "n_head", "n_heads", "decoder_attention_heads", "num_heads")
_KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv")
_INTERMEDIATE = ("intermediate_size", "ffn_dim", "decoder_ffn_dim", "d_ff", "n_inner", "ffn_hidden_size")
_ROUTED = ("num_experts_per_tok", "moe_topk")
_CONTEXT = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "n_ctx", "seq_length")
# Families whose learned position table ends at max_context: beyond it there is nothing to look up.
_LEARNED_POSITIONS = frozenset(
    {"gpt2", "gpt_bigcode", "gpt_neo", "opt", "openai-gpt", "bart", "mbart", "pegasus", "marian", "blenderbot",
     "biogpt", "xglm", "blenderbot-small", "led", "plbart", "mvp", "prophetnet", "bigbird_pegasus", "ctrl", "gpt-sw3"}
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A model's shape.

    `layers` counts decoder layers, `layer_kinds` says what each keeps; `kv_elements` is one token in one attention
    layer's cache, `layer_kv_elements` the same layer by layer where layers differ, else empty; `state_elements` and
    `state_fp32` one recurrent layer's whole state. `latent_attention`: the cache holds MLA's compressed rows.
    `context_stated`: False where `max_context` is a guess.
    """

    layers: int
    hidden_size: int
    intermediate_size: int
    attention_heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    max_context: int
    encoder_layers: int = 0
    learned_positions: bool = False
    kv_elements: int = 0
    layer_kinds: tuple[LayerKind, ...] = ()
    sliding_window: int = 0
    experts: int = 0
    experts_per_token: int = 0
    state_elements: int = 0
    state_fp32: int = 0
    context_stated: bool = True
    latent_attention: bool = False
    layer_kv_elements: tuple[int, ...] = ()

    def as_fields(self) -> dict[str, Any]:
        """Field by field, to make a ModelSpec of."""
        return {field.name: getattr(self, field.name) for field in fields(Shape)}


def read_shape(config: Mapping[str, Any], model_type: str, *, encoder_decoder: bool) -> Shape:
    """The Shape that config.json describes. Raises BadConfig naming a field that is missing or impossible."""
    recurrent = model_type in RECURRENT_TYPES
    hidden = number(config, _HIDDEN, 1, 2**20)
    listed = next((len(config[name]) for name in _LAYER_LISTS if isinstance(config.get(name), list | str)), None)
    layers = number(config, _DECODER_LAYERS if encoder_decoder else _LAYERS, 1, MAX_LAYERS, default=listed or None)
    heads = number(config, _HEADS, 1, 2**16, default=1 if recurrent else None)
    kv_heads = _kv_heads(config, heads)
    # Falcon's newer decoder repeats its grouped heads before they are cached (modeling_falcon.py).
    cached_heads = heads if config.get("new_decoder_architecture") is True else kv_heads
    head_dim = number(config, ("head_dim", "d_kv", "attention_head_dim", "kv_channels"), 1, 2**16, default=0)
    head_dim = head_dim or max(1, hidden // heads)
    window = number(config, ("sliding_window", "attention_window_size", "attention_chunk_size"), 0, 2**31, default=0)
    lora_rank = number(config, ("kv_lora_rank",), 1, 2**20, default=0)
    rope_dim = number(config, ("qk_rope_head_dim",), 0, 2**20, default=0)
    state, state_fp32 = recurrent_state(config, model_type, hidden, heads * head_dim * head_dim)
    context = number(config, _CONTEXT, 1, MAX_CONTEXT, default=0)
    kinds = layer_kinds(config, model_type, layers, window)
    experts = number(config, ("num_local_experts", "num_experts", "n_routed_experts"), 0, 2**16, default=0)
    return Shape(
        layers=layers,
        encoder_layers=number(config, _ENCODER_LAYERS, 1, MAX_LAYERS) if encoder_decoder else 0,
        hidden_size=hidden,
        intermediate_size=number(_widest(config), _INTERMEDIATE, 1, 2**24, default=4 * hidden),
        attention_heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=number(config, ("vocab_size",), 1, 2**25),
        max_context=context or 2048,
        learned_positions=model_type in _LEARNED_POSITIONS,
        kv_elements=lora_rank + rope_dim if lora_rank else 2 * cached_heads * head_dim,
        layer_kinds=kinds,
        sliding_window=window,
        experts=experts,
        experts_per_token=_experts_per_token(config, experts),
        state_elements=state,
        state_fp32=state_fp32,
        context_stated=context > 0,
        latent_attention=lora_rank > 0,
        layer_kv_elements=() if lora_rank else layer_kv_elements(config, model_type, kinds, cached_heads, head_dim),
    )


def _widest(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """`config` with the largest of an intermediate_size that is listed layer by layer (Gemma 3n)."""
    sizes = config.get("intermediate_size")
    if isinstance(sizes, list) and sizes and all(type(size) is int for size in sizes):
        return {**config, "intermediate_size": max(sizes)}
    return config


def _kv_heads(config: Mapping[str, Any], heads: int) -> int:
    """Heads of keys and values: grouped where the config says so, one for multi-query models (Falcon-7B, BigCode)."""
    if config.get("new_decoder_architecture") is not True and config.get("multi_query") is True:
        return 1
    kv_heads = number(config, _KV_HEADS, 1, 2**16, default=heads)
    if kv_heads > heads or heads % kv_heads:
        problem = (
            f"more than the {heads} heads" if kv_heads > heads else f"and {heads} heads cannot be shared among them"
        )
        raise BadConfig(
            f"config.json: num_key_value_heads is {kv_heads}, {problem}.",
            remedy="Fetch the model again.",
            param="num_key_value_heads",
        )
    return kv_heads


def _experts_per_token(config: Mapping[str, Any], experts: int) -> int:
    """How many experts each token is routed to, of `experts`."""
    routed = number(config, _ROUTED, 0, 2**16, default=min(experts, 2))
    if experts and routed > experts:
        raise BadConfig(
            f"config.json: num_experts_per_tok is {routed}, more than the {experts} experts.",
            remedy="Fetch the model again.",
            param="num_experts_per_tok",
        )
    return routed
