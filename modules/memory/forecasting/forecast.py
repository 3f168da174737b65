"""How many bytes a run of a model needs on a device, by what they are for. Formulas, each with its source.

Pure arithmetic over a ModelSpec and a RunSpec. It does not know machines and decides nothing.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Literal

from modules.memory.forecasting import llamacpp_sizes
from modules.memory.forecasting.kv_cache import BITS, LAYERS_ON_GPU, UNPACKING, KVCache, packed_bytes, work_bytes
from modules.memory.forecasting.remembered import PerSpec
from modules.memory.model.layers import LayerKind
from modules.memory.model.spec import ModelSpec, TensorInfo
from modules.units import MiB

DType = Literal["bfloat16", "float16", "float32"]
DTYPE_FLAGS: dict[DType, str] = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
"""What --dtype and people call them."""
Quantization = Literal["none", "int8", "nf4", "fp4"]
Runtime = Literal["torch", "llamacpp"]

# CUDA context, cuBLAS and loaded kernels: 0.45 to 0.65 GiB a GPU, derived from accelerate's published table. The
# upper end; not yet measured here.
CUDA_CONTEXT_BYTES = 650 * MiB
# An idle engine process with torch and transformers imported is 334 MiB; the first forward adds up to 140 (measured).
CPU_PROCESS_BYTES = 480 * MiB

_FLOATS = frozenset({"BF16", "F16", "F32", "F64"})
# transformers gives these no SDPA path: scores are materialised whatever was asked for (dry runs on 5.23).
_EAGER_ONLY = frozenset({"gptj", "bloom", "gemma2", "codegen", "mpt", "t5", "mt5", "umt5", "longt5", "mpnet"})
# Families whose T5-like `wo` bitsandbytes leaves alone (_keep_in_fp32_modules).
_KEPT_WO = frozenset({"t5", "mt5", "umt5", "longt5", "switch_transformers", "udop", "pop2piano"})
# Families whose linear layers are transformers' Conv1D.
_CONV1D = frozenset({"gpt2", "openai-gpt"})
# The router's correction of DeepSeek-V3 and its kin (_keep_in_fp32_modules_strict).
_KEPT_FP32 = ("e_score_correction_bias",)
_TOKEN_TABLES = (
    "embed_tokens.weight", "wte.weight", "shared.weight", "word_embeddings.weight", "embed_in.weight",
    "embeddings.weight", "tokens_embed.weight",
)  # fmt: skip
_NOT_LINEAR = re.compile(r"norm|embed|relative_attention_bias|\bw[tp]e\b|ln_|conv1d|rotary|position|\.A_log|\.router\.")


@dataclass(frozen=True, slots=True)
class RunSpec:
    """How a model is to be run. `picture_side` is the longest side of a picture, in pixels, for a model that sees."""

    dtype: DType
    quantization: Quantization = "none"
    double_quant: bool = False
    compute_dtype: DType = "bfloat16"
    context_tokens: int = 4096
    prefill_chunk: int = 512
    attention: str = "sdpa"
    kv_cache: KVCache = "plain"
    runtime: Runtime = "torch"
    picture_side: int = 1536


def element_bytes(dtype: DType) -> int:
    """Bytes of one number."""
    return 4 if dtype == "float32" else 2


def elements(tensor: TensorInfo) -> int:
    """How many numbers a tensor holds."""
    return math.prod(tensor.shape)


def is_quantizable(spec: ModelSpec, tensor: TensorInfo) -> bool:
    """Whether bitsandbytes would quantize this tensor: the matrix of a plain linear layer inside a block.

    Source: transformers 5.23, integrations/bitsandbytes.py: only `type(module) is nn.Linear` or Conv1D is replaced,
    so FalconLinear and experts fused into 3-D tensors stay as they are; heads, tied tables and `wo` of T5 are kept.
    Known for certain where the model was built on the meta device, else by these rules.
    """
    if spec.linear_weights is not None:
        return tensor.name in spec.linear_weights
    matrix = len(tensor.shape) == 2 and tensor.name.endswith(".weight") and bool(tensor.block)
    if not matrix or _NOT_LINEAR.search(tensor.name) or spec.model_type == "falcon":
        return False
    routed = ".experts." in tensor.name or tensor.name.endswith((".gate.weight", ".router.weight"))
    if spec.fused_experts and routed:
        return False
    return not (spec.model_type in _KEPT_WO and tensor.name.endswith(".wo.weight"))


def quantizable(spec: ModelSpec) -> tuple[TensorInfo, ...]:
    """The stored tensors that bitsandbytes would quantize."""
    return _QUANTIZABLE(spec, "")


def largest_quantizable(spec: ModelSpec) -> int:
    """How many numbers the largest of them holds; 0 without any."""
    return _LARGEST_QUANTIZABLE(spec, "")


def _find_quantizable(spec: ModelSpec, _: str) -> tuple[TensorInfo, ...]:
    return tuple(tensor for tensor in spec.tensors if is_quantizable(spec, tensor))


def _find_largest(spec: ModelSpec, _: str) -> int:
    return max((elements(tensor) for tensor in quantizable(spec)), default=0)


_QUANTIZABLE = PerSpec(_find_quantizable)
_LARGEST_QUANTIZABLE = PerSpec(_find_largest)


def _rows_and_columns(spec: ModelSpec, tensor: TensorInfo) -> tuple[int, int]:
    """(outputs, inputs) of a linear layer's matrix; transformers' Conv1D stores it the other way round."""
    rows, columns = tensor.shape
    return (columns, rows) if spec.model_type in _CONV1D else (rows, columns)


def int8_bytes(out_features: int, in_features: int) -> int:
    """A bitsandbytes int8 matrix: one byte a weight and one fp32 scale a row (byte-exact, bitsandbytes 0.50)."""
    return out_features * in_features + 4 * out_features


def four_bit_bytes(count: int, *, double_quant: bool) -> int:
    """A bitsandbytes nf4 or fp4 matrix of `count` weights with blocks of 64: half a byte a weight and its scales."""
    return -(-count // 2) + four_bit_meta_bytes(count, double_quant=double_quant)


def four_bit_meta_bytes(count: int, *, double_quant: bool) -> int:
    """What belongs to `count` 4-bit weights beside the weights (byte-exact, bitsandbytes 0.50).

    An fp32 maximum a block of 64 and a code book of 64 bytes; double quantization makes the maxima one byte, with
    fp32 maxima of their own per 256, a code book of 1024 bytes and an offset.
    """
    blocks = -(-count // 64)
    scales = blocks + 4 * -(-blocks // 256) + 1024 + 4 if double_quant else 4 * blocks
    return scales + 64


def tensor_bytes(spec: ModelSpec, tensor: TensorInfo, run: RunSpec, *, quantize: bool = True) -> int:
    """Bytes of one tensor once loaded; with `quantize` False as an offloaded layer keeps it, unquantized."""
    if run.runtime == "llamacpp":
        return tensor.size_bytes
    if spec.prequantized != "none" and tensor.dtype not in _FLOATS:
        return tensor.size_bytes
    if spec.source == "safetensors" and tensor.dtype not in _FLOATS:
        return tensor.size_bytes
    if quantize and run.quantization != "none" and spec.prequantized == "none" and is_quantizable(spec, tensor):
        if run.quantization == "int8":
            return int8_bytes(*_rows_and_columns(spec, tensor))
        return four_bit_bytes(elements(tensor), double_quant=run.double_quant)
    return elements(tensor) * _kept_element_bytes(spec, tensor, run)


def tensor_meta_bytes(spec: ModelSpec, tensor: TensorInfo, run: RunSpec) -> int:
    """Of `tensor_bytes`, what is scales, code books and offsets. Files that are quantized already store them apart."""
    if spec.prequantized != "none":
        scales = tensor.dtype not in _FLOATS or tensor.name.endswith((".absmax", ".nested_absmax", ".SCB"))
        return tensor.size_bytes if scales and not tensor.name.endswith(".weight") else 0
    if run.quantization == "none" or not is_quantizable(spec, tensor):
        return 0
    if run.quantization == "int8":
        return 4 * _rows_and_columns(spec, tensor)[0]
    return four_bit_meta_bytes(elements(tensor), double_quant=run.double_quant)


def _kept_element_bytes(spec: ModelSpec, tensor: TensorInfo, run: RunSpec) -> int:
    """What transformers keeps in fp32 in a 16-bit model: `_keep_in_fp32_modules` for fp16, the strict ones always."""
    kept = tensor.name in spec.kept_fp32 or tensor.name.endswith(_KEPT_FP32)
    if run.dtype == "float16":
        kept = kept or tensor.name in spec.kept_fp32_in_fp16
        kept = kept or (spec.model_type in _KEPT_WO and tensor.name.endswith(".wo.weight"))
    return 4 if kept else element_bytes(run.dtype)


def tied_copies(spec: ModelSpec) -> frozenset[str]:
    """Stored tensors that become the same memory as the token table, and so cost nothing more."""
    names = {tensor.name for tensor in spec.tensors}
    copies = {"lm_head.weight"} if spec.tied_embeddings and any(map(is_token_table, names)) else set()
    if spec.is_encoder_decoder and any(name.endswith("shared.weight") for name in names):
        copies |= {
            name for name in names if name.endswith(("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"))
        }
    return frozenset(copies & names)


def is_token_table(name: str) -> bool:
    """Whether `name` is the table that turns token ids into vectors."""
    return name.endswith(_TOKEN_TABLES)


def weight_bytes(spec: ModelSpec, run: RunSpec) -> int:
    """Bytes of all weights once loaded, shared tables counted once."""
    copies = tied_copies(spec)
    stored = sum(tensor_bytes(spec, tensor, run) for tensor in spec.tensors if tensor.name not in copies)
    return stored + buffer_bytes(spec, run)


def buffer_bytes(spec: ModelSpec, run: RunSpec) -> int:
    """Bytes of the buffers that no file holds, as far as they are known: rotary tables stay fp32, masks are bytes."""
    return sum(tensor_bytes(spec, buffer, run, quantize=False) for buffer in spec.buffers)


def layer_cache_bytes(spec: ModelSpec, run: RunSpec, layer: int, tokens: int) -> int:
    """KV cache, or recurrent state, of decoder layer `layer` after `tokens` tokens of one conversation.

    Per attention layer 2 × kv_heads × head_dim elements a token (MLA: kv_lora_rank + qk_rope_head_dim); a sliding
    layer keeps its window less one and the chunk being read, a hybrid one a state beside its attention; an
    encoder-decoder keeps as much again for cross-attention; a layer of fewer bits see kv_cache.py. Byte for byte what
    transformers' caches hold in tests/test_exact_bytes.py, packed ones in tests/test_packed_cache.py.
    """
    kind = _layer_kind(spec, layer)
    if run.runtime == "llamacpp":
        return llamacpp_sizes.layer_cache_bytes(spec, kind, tokens, run.prefill_chunk, run.kv_cache)
    width = element_bytes(run.dtype)
    if kind == "shared":
        return 0
    if kind == "full" and run.kv_cache in BITS:
        return packed_bytes(spec.kv_heads, spec.head_dim, tokens, bits=BITS[run.kv_cache], width=width)
    state = spec.state_elements * width + spec.state_fp32 * 4 if kind in ("recurrent", "hybrid") else 0
    if kind == "recurrent":
        return state
    kept = min(tokens, spec.sliding_window - 1 + run.prefill_chunk) if kind == "sliding" else tokens
    each = spec.layer_kv_elements[layer] if spec.layer_kv_elements else spec.kv_elements
    return state + kept * each * width * (2 if spec.is_encoder_decoder else 1)


def _layer_kind(spec: ModelSpec, layer: int) -> LayerKind:
    return spec.layer_kinds[layer] if layer < len(spec.layer_kinds) else "full"


def layer_cache_away(spec: ModelSpec, run: RunSpec, layer: int, tokens: int) -> int:
    """Of `layer_cache_bytes`, what lies in CPU memory beside a GPU that computes."""
    away = run.kv_cache == "offloaded" and _layer_kind(spec, layer) in ("full", "hybrid")
    return layer_cache_bytes(spec, run, layer, tokens) if away else 0


def kv_work_bytes(spec: ModelSpec, run: RunSpec) -> int:
    """What computing with a cache that is not plain takes on each device that computes, beside the cache itself.

    One layer unpacked; of an offloaded cache the layers that are on the GPU at once; llama.cpp reads it as it is kept.
    """
    if run.runtime == "llamacpp":
        return 0
    if run.kv_cache in BITS:
        return work_bytes(
            spec.kv_heads, spec.head_dim, run.context_tokens,
            bits=BITS[run.kv_cache], width=element_bytes(run.dtype),
        )  # fmt: skip
    away = (layer_cache_away(spec, run, layer, run.context_tokens) for layer in range(spec.layers))
    return LAYERS_ON_GPU * max(away, default=0)


def kv_traffic_bytes(spec: ModelSpec, run: RunSpec, tokens: int) -> int:
    """Bytes that are read and written for the cache of `tokens` tokens while one more is computed."""
    kept = kv_cache_bytes(spec, run, tokens)
    if run.kv_cache not in UNPACKING or run.runtime == "llamacpp":
        return kept
    return kept + int(UNPACKING[run.kv_cache] * kv_cache_bytes(spec, replace(run, kv_cache="plain"), tokens))


def kv_cache_bytes(spec: ModelSpec, run: RunSpec, tokens: int) -> int:
    """The whole cache of one conversation of `tokens` tokens, an encoder's output included."""
    encoder = tokens * spec.hidden_size * element_bytes(run.dtype) if spec.is_encoder_decoder else 0
    return encoder + sum(layer_cache_bytes(spec, run, layer, tokens) for layer in range(spec.layers))


def prefill_peak_bytes(spec: ModelSpec, run: RunSpec, *, with_head: bool) -> int:
    """Most bytes alive beyond weights and cache while a chunk of the prompt is read on one device.

    SDPA: T·e·(4h + 3I). Eager: a·T·S·(10 at 16 bits, 8 at 32) + T·e·(4h + 2ad + 2kd). The head makes logits of one
    position: V·(e + 4). The largest of these. Against dry runs of Llama-like models: total within 0.5 %, worst 1.6 %.
    An encoder reads its input whole.
    """
    if run.runtime == "llamacpp":
        return llamacpp_sizes.compute_bytes(spec, run.context_tokens, run.prefill_chunk)
    width = element_bytes(run.dtype)
    tokens = run.context_tokens if spec.is_encoder_decoder else min(run.prefill_chunk, run.context_tokens)
    routed = max(1, spec.experts_per_token)
    mlp = tokens * width * (4 * spec.hidden_size + 3 * spec.intermediate_size * routed)
    peaks = [mlp]
    if is_eager(spec, run):
        scores = spec.attention_heads * tokens * run.context_tokens * (8 if width == 4 else 10)
        heads = 2 * spec.head_dim * (spec.attention_heads + spec.kv_heads)
        peaks.append(scores + tokens * width * (4 * spec.hidden_size + heads))
    if with_head:
        peaks.append(spec.vocab_size * (width + 4))
    return max(peaks)


def is_eager(spec: ModelSpec, run: RunSpec) -> bool:
    """Whether the scores of attention are materialised."""
    return run.attention == "eager" or spec.model_type in _EAGER_ONLY


def dequantize_bytes(spec: ModelSpec, run: RunSpec) -> int:
    """What computing with the largest quantized matrix needs: 4-bit a dequantized copy, int8 its inputs and outputs.

    4-bit: N·K·e. int8: T·in·2 + T·out·(4 + 2) (bitsandbytes 0.50, functional.py and autograd/_functions.py).
    """
    if run.quantization == "none":
        return 0
    if run.quantization == "int8":
        return max((run.prefill_chunk * (2 * t.shape[1] + 6 * t.shape[0]) for t in quantizable(spec)), default=0)
    return largest_quantizable(spec) * element_bytes(run.compute_dtype)
