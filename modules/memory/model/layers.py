"""What each decoder layer keeps of a conversation: keys and values of all of it, of a window, or a state.

From the config's own list of layers, else by the rule of the family (transformers 5.23, configuration_*.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from modules.memory.model.config import number

LayerKind = Literal["full", "sliding", "recurrent", "hybrid", "shared"]
"""hybrid: attention and a state in one layer; shared: the layer keeps nothing of its own."""
MAX_LAYERS = 10_000

_RECURRENT: LayerKind = "recurrent"
RECURRENT_TYPES = frozenset({"mamba", "mamba2", "falcon_mamba", "rwkv", "xlstm"})
_RECURRENT_NAMES = frozenset({"linear_attention", "mamba", "mamba2", "recurrent", "conv", "rwkv"})
_SLIDING_NAMES = frozenset({"sliding_attention", "chunked_attention", "local_attention", "local"})
_SHARED_NAMES = frozenset({"moe", "mlp"})
# "M-M*E": a mixer a layer (Nemotron-H); layers of "-" and "E" keep nothing.
_MIXERS: dict[str, LayerKind] = {"M": "recurrent", "*": "full", "-": "shared", "E": "shared"}
# One full layer in so many, the last of each group, where the config does not say.
_FULL_EVERY = {
    "gemma2": 2, "gemma3": 6, "gemma3_text": 6, "gemma4": 6, "gemma4_text": 6, "cohere2": 4, "exaone4": 4, "gpt_oss": 2,
}  # fmt: skip
# Numbers a head of layers that see everything, where the config does not say (configuration_gemma4.py).
_FULL_HEAD_DIM = {"gemma4": 512, "gemma4_text": 512}
_MAMBA_1 = frozenset({"mamba", "falcon_mamba", "jamba", "zamba"})


def layer_kinds(config: Mapping[str, Any], model_type: str, layers: int, window: int) -> tuple[LayerKind, ...]:
    """The kind of each decoder layer: as the config lists them, else by the family's rule."""
    if model_type in RECURRENT_TYPES:
        return (_RECURRENT,) * layers
    shared = number(config, ("num_kv_shared_layers",), 0, layers, default=0)
    stated = next((config[name] for name in ("layer_types", "layers_block_type") if config.get(name)), None)
    if isinstance(stated, list) and len(stated) == layers:
        kinds = [_kind(str(name), window) for name in stated]
    else:
        kinds = _mixed(config, model_type, layers) or _windowed(config, model_type, layers, window)
    kinds[layers - shared :] = ["shared"] * shared
    return tuple(kinds)


def layer_kv_elements(
    config: Mapping[str, Any], model_type: str, kinds: tuple[LayerKind, ...], kv_heads: int, head_dim: int
) -> tuple[int, ...]:
    """What one token takes in each layer's cache, where layers have heads of their own; () where all are alike.

    Gemma 4's full layers have wider and fewer heads: as published `global_head_dim` and `num_global_key_value_heads`,
    the latter with attention_k_eq_v only; as transformers 5 saves it `per_layer_config`, by the layer's number.
    """
    stated = config.get("per_layer_config")
    if not isinstance(stated, Mapping):
        names = {"head_dim": "global_head_dim"}
        if config.get("attention_k_eq_v") is True:
            names["num_key_value_heads"] = "num_global_key_value_heads"
        full = {name: config.get(published) for name, published in names.items()}
        full["head_dim"] = full["head_dim"] or _FULL_HEAD_DIM.get(model_type)
        stated = {str(layer): full for layer, kind in enumerate(kinds) if kind == "full"}
    sizes = []
    for layer in range(len(kinds)):
        own = stated.get(str(layer))
        own = own if isinstance(own, Mapping) else {}
        heads = number(own, ("num_key_value_heads",), 1, 2**16, default=kv_heads)
        sizes.append(2 * heads * number(own, ("head_dim",), 1, 2**16, default=head_dim))
    return tuple(sizes) if len(set(sizes)) > 1 else ()


def _kind(name: str, window: int) -> LayerKind:
    if name in _RECURRENT_NAMES:
        return "recurrent"
    if name in _SHARED_NAMES:
        return "shared"
    if name.startswith("hybrid"):
        return "hybrid"
    return "sliding" if name in _SLIDING_NAMES and window else "full"


def _mixed(config: Mapping[str, Any], model_type: str, layers: int) -> list[LayerKind]:
    """The layers of families that mix attention with states; [] for others."""
    pattern = config.get("hybrid_override_pattern")
    if isinstance(pattern, str) and len(pattern) == layers and set(pattern) <= _MIXERS.keys():
        return [_MIXERS[letter] for letter in pattern]
    if model_type == "falcon_h1":
        return ["hybrid"] * layers
    if model_type in ("jamba", "zamba"):
        period = number(config, ("attn_layer_period",), 1, MAX_LAYERS, default=8 if model_type == "jamba" else 6)
        offset = number(config, ("attn_layer_offset",), 0, MAX_LAYERS, default=4)
        attends: LayerKind = "full" if model_type == "jamba" else "hybrid"
        return [attends if i % period == offset else "recurrent" for i in range(layers)]
    if model_type in ("bamba", "lfm2"):
        chosen = config.get("attn_layer_indices" if model_type == "bamba" else "full_attn_idxs")
        every = [] if model_type == "bamba" else list(range(layers))
        full = chosen if isinstance(chosen, list) else every
        return ["full" if i in full else "recurrent" for i in range(layers)]
    if model_type == "qwen3_next":
        every_n = number(config, ("full_attention_interval",), 1, MAX_LAYERS, default=4)
        return ["recurrent" if (i + 1) % every_n else "full" for i in range(layers)]
    if model_type == "recurrent_gemma":
        return ["sliding" if i % 3 == 2 else "recurrent" for i in range(layers)]
    return []


def _windowed(config: Mapping[str, Any], model_type: str, layers: int, window: int) -> list[LayerKind]:
    """Full layers, or windows with a full layer now and then."""
    if not window or config.get("use_sliding_window") is False:
        return ["full"] * layers
    named = ("sliding_window_pattern", "_sliding_window_pattern")
    letters = next((config[name] for name in named if isinstance(config.get(name), str)), "")
    pattern = len(letters) if letters else number(config, named, 0, MAX_LAYERS, default=0)
    pattern = pattern or _FULL_EVERY.get(model_type, 0)
    first = number(config, ("max_window_layers",), 0, MAX_LAYERS, default=0) if "use_sliding_window" in config else 0
    return ["full" if (pattern and (i + 1) % pattern == 0) or i < first else "sliding" for i in range(layers)]


def recurrent_state(config: Mapping[str, Any], model_type: str, hidden: int, head_state: int) -> tuple[int, int]:
    """(elements in the model's dtype, elements in fp32) of one recurrent layer's state.

    Mamba 1, Mamba 2, gated delta net, lightning attention (`head_state`: heads × head_dim²) and short convolutions as
    transformers' caches hold them; zero for models without such layers.
    """
    if model_type == "minimax":
        return head_state, 0
    if "linear_num_value_heads" in config:
        return _delta_net_state(config)
    if model_type == "recurrent_gemma":
        width = number(config, ("lru_width",), 1, 2**24, default=hidden)
        return width * (number(config, ("conv1d_width",), 2, 1024, default=4) - 1), width
    if "conv_L_cache" in config:
        return hidden * number(config, ("conv_L_cache",), 1, 1024), 0
    kernel = number(config, ("conv_kernel", "mamba_d_conv", "d_conv"), 1, 1024, default=4)
    states = number(config, ("state_size", "mamba_d_state", "ssm_state_size"), 1, 2**16, default=0)
    if not states:
        return 0, 0
    expand = number(config, ("expand", "mamba_expand"), 1, 64, default=2)
    if model_type in _MAMBA_1:
        sizes = ("intermediate_size",) if model_type in RECURRENT_TYPES else ()
        inner = number(config, sizes, 1, 2**24, default=expand * hidden)
        return inner * kernel, inner * states
    heads = number(config, ("mamba_num_heads",), 1, 2**16, default=0)
    head_dim = number(config, ("mamba_head_dim",), 1, 2**16, default=0)
    inner = number(config, ("mamba_d_ssm",), 1, 2**24, default=heads * head_dim or expand * hidden)
    groups = number(config, ("n_groups", "mamba_n_groups", "mamba_ngroups"), 1, 2**16, default=1)
    return (inner + 2 * groups * states) * kernel, inner * states


def _delta_net_state(config: Mapping[str, Any]) -> tuple[int, int]:
    value_heads = number(config, ("linear_num_value_heads",), 1, 2**16)
    key_heads = number(config, ("linear_num_key_heads",), 1, 2**16)
    key_dim = number(config, ("linear_key_head_dim",), 1, 2**16)
    value_dim = number(config, ("linear_value_head_dim",), 1, 2**16)
    kernel = number(config, ("linear_conv_kernel_dim",), 1, 1024, default=4)
    return (2 * key_heads * key_dim + value_heads * value_dim) * kernel, value_heads * key_dim * value_dim
