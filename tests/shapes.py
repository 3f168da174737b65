"""Model shapes and machines that no test machine has, as values: published sizes, whole GiB of memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from modules.hardware import Device, Inventory
from modules.memory.model.shape import read_shape
from modules.memory.model.spec import ModelSpec, TensorInfo, block_of
from modules.settings import LoadOptions
from modules.units import GiB

NO_FLAGS = LoadOptions.model_validate({})
STORED = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
ELEMENT_BYTES = {"BF16": 2, "F16": 2, "F32": 4}


def machine(gpus: int = 0, gpu_gib: float = 0, *, ram_gib: float = 64, disk_gib: float = 500) -> Inventory:
    """A machine with everything free."""
    cards = [Device(f"cuda:{i}", "cuda", "card", int(gpu_gib * GiB), int(gpu_gib * GiB)) for i in range(gpus)]
    cpu = Device("cpu", "cpu", "cpu", int(ram_gib * GiB), int(ram_gib * GiB))
    disk = Device("disk", "disk", "/disk", int(disk_gib * GiB), int(disk_gib * GiB))
    return Inventory(tuple(cards), cpu, disk, 8)


def llama(size: Literal["7B", "13B", "33B", "65B", "70B"], *, context: int = 4096, dtype: str = "F16") -> ModelSpec:
    """LLaMA and Llama 2 as published."""
    hidden, layers, heads, kv_heads, inner = {
        "7B": (4096, 32, 32, 32, 11008), "13B": (5120, 40, 40, 40, 13824), "33B": (6656, 60, 52, 52, 17920),
        "65B": (8192, 80, 64, 64, 22016), "70B": (8192, 80, 64, 8, 28672),
    }[size]  # fmt: skip
    return _like_llama(f"Llama-{size}", hidden, inner, layers, heads, kv_heads, context, dtype)


def random_llama(*, hidden: int, layers: int, heads: int, kv_heads: int, context: int, dtype: str) -> ModelSpec:
    """A model like Llama of any size."""
    return _like_llama(f"Llama-{layers}x{hidden}", hidden, hidden * 3, layers, heads, kv_heads, context, dtype)


def small_llama() -> ModelSpec:
    """TinyLlama 1.1B."""
    return _like_llama("TinyLlama-1.1B", 2048, 5632, 22, 32, 4, 2048, "BF16")


def _like_llama(
    name: str, hidden: int, inner: int, layers: int, heads: int, kv_heads: int, context: int, dtype: str
) -> ModelSpec:
    narrow = hidden * kv_heads // heads
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens": (32000, hidden)}
    for layer in range(layers):
        base = f"model.layers.{layer}"
        shapes |= {f"{base}.self_attn.{name}_proj": (hidden, hidden) for name in "qo"}
        shapes |= {f"{base}.self_attn.{name}_proj": (narrow, hidden) for name in "kv"}
        shapes |= {f"{base}.mlp.{name}_proj": (inner, hidden) for name in ("gate", "up")}
        shapes[f"{base}.mlp.down_proj"] = (hidden, inner)
        shapes |= {f"{base}.{name}_layernorm": (hidden,) for name in ("input", "post_attention")}
    shapes |= {"model.norm": (hidden,), "lm_head": (32000, hidden)}
    config = {
        "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "intermediate_size": inner, "vocab_size": 32000,
        "max_position_embeddings": context,
    }  # fmt: skip
    return make_spec(name, "llama", config, shapes, dtype=dtype, bare=("model.rotary_emb",))


def mixtral() -> ModelSpec:
    """Mixtral 8x7B."""
    hidden, inner, experts = 4096, 14336, 8
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens": (32000, hidden)}
    for layer in range(32):
        base = f"model.layers.{layer}"
        shapes |= {f"{base}.self_attn.{name}_proj": (hidden, hidden) for name in "qo"}
        shapes |= {f"{base}.self_attn.{name}_proj": (1024, hidden) for name in "kv"}
        shapes[f"{base}.mlp.gate"] = (experts, hidden)
        for expert in range(experts):
            at = f"{base}.mlp.experts.{expert}"
            shapes |= {f"{at}.w1": (inner, hidden), f"{at}.w2": (hidden, inner), f"{at}.w3": (inner, hidden)}
    shapes |= {"model.norm": (hidden,), "lm_head": (32000, hidden)}
    config = {
        "hidden_size": hidden, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "intermediate_size": inner, "vocab_size": 32000, "max_position_embeddings": 32768,
        "num_local_experts": experts, "num_experts_per_tok": 2,
    }  # fmt: skip
    spec = make_spec("Mixtral-8x7B", "mixtral", config, shapes, dtype="BF16", bare=("model.rotary_emb",))
    return replace(spec, experts=experts, experts_per_token=2)


def gptj() -> ModelSpec:
    """GPT-J 6B."""
    hidden, inner = 4096, 16384
    shapes: dict[str, tuple[int, ...]] = {"transformer.wte": (50400, hidden)}
    for layer in range(28):
        base = f"transformer.h.{layer}"
        shapes |= {f"{base}.attn.{name}_proj": (hidden, hidden) for name in ("q", "k", "v", "out")}
        shapes |= {
            f"{base}.mlp.fc_in": (inner, hidden),
            f"{base}.mlp.fc_out": (hidden, inner),
            f"{base}.ln_1": (hidden,),
        }
    shapes |= {"transformer.ln_f": (hidden,), "lm_head": (50400, hidden)}
    config = {"n_embd": hidden, "n_layer": 28, "n_head": 16, "vocab_size": 50400, "n_positions": 2048}
    return make_spec("GPT-J-6B", "gptj", config, shapes, dtype="F16")


def t5_3b() -> ModelSpec:
    """T5-3B: a narrow model with wide attention."""
    shapes: dict[str, tuple[int, ...]] = {"shared": (32128, 1024)}
    for side, attentions in (("encoder", ("SelfAttention",)), ("decoder", ("SelfAttention", "EncDecAttention"))):
        for layer in range(24):
            for i, attention in enumerate(attentions):
                base = f"{side}.block.{layer}.layer.{i}.{attention}"
                shapes |= {f"{base}.{name}": (4096, 1024) for name in "qkv"} | {f"{base}.o": (1024, 4096)}
            base = f"{side}.block.{layer}.layer.{len(attentions)}.DenseReluDense"
            shapes |= {f"{base}.wi": (16384, 1024), f"{base}.wo": (1024, 16384)}
        shapes[f"{side}.final_layer_norm"] = (1024,)
    config = {
        "d_model": 1024, "num_layers": 24, "num_decoder_layers": 24, "num_heads": 32, "d_kv": 128, "d_ff": 16384,
        "vocab_size": 32128, "n_positions": 512,
    }  # fmt: skip
    spec = make_spec(
        "t5-3b", "t5", config, shapes, dtype="F32", bare=("lm_head", "encoder.embed_tokens", "decoder.embed_tokens")
    )
    return replace(spec, tied_embeddings=True)


def make_spec(
    name: str,
    model_type: str,
    config: dict[str, Any],
    shapes: dict[str, tuple[int, ...]],
    *,
    dtype: str,
    bare: tuple[str, ...] = (),
) -> ModelSpec:
    """A ModelSpec of module names and shapes, as inspect would make it of files."""
    tensors = []
    for module, sizes in shapes.items():
        count = 1
        for size in sizes:
            count *= size
        tensors.append(
            TensorInfo(f"{module}.weight", sizes, dtype, count * ELEMENT_BYTES[dtype], block_of(f"{module}.weight"))
        )
    both = model_type == "t5"
    shape = read_shape(config, model_type, encoder_decoder=both)
    return ModelSpec(
        name=name, path=Path("models") / name, source="safetensors", architecture=name, model_type=model_type,
        is_encoder_decoder=both, tensors=tuple(tensors), tied_embeddings=False, stored_dtype=STORED[dtype],
        bare_modules=bare, **shape.as_fields(),
    )  # fmt: skip
