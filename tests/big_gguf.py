"""GGUF files of models that people run, as far as their headers go: the weights behind them are holes in the file."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import gguf

Size = Literal["1B", "3B", "7B", "8B", "13B", "70B"]
# (hidden, layers, heads, KV heads, inner, vocabulary, tied)
_SHAPES: dict[Size, tuple[int, int, int, int, int, int, bool]] = {
    "1B": (2048, 22, 32, 4, 5632, 32000, False),
    "3B": (3072, 28, 24, 8, 8192, 128256, True),
    "7B": (4096, 32, 32, 32, 11008, 32000, False),
    "8B": (4096, 32, 32, 8, 14336, 128256, False),
    "13B": (5120, 40, 40, 40, 13824, 32000, False),
    "70B": (8192, 80, 64, 8, 28672, 32000, False),
}
_Q4, _Q6, _F32 = (gguf.GGMLQuantizationType[name] for name in ("Q4_K", "Q6_K", "F32"))


def big_gguf(folder: Path, size: Size, *, context: int = 32768) -> Path:
    """Llama of that size in Q4_K_M: matrices of 4 bits, of 6 for the output, and for values and `ffn_down` in half of
    the layers (llama-quant.cpp). It takes a few MB of disk."""
    path = folder / f"Llama-{size}-Q4_K_M.gguf"
    hidden, layers, heads, kv_heads, inner, vocab, tied = _SHAPES[size]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(context)
    writer.add_embedding_length(hidden)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(hidden // heads)
    writer.add_vocab_size(vocab)
    writer.add_tokenizer_model("llama")
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words += [f"word{number}" for number in range(vocab - len(words))]
    writer.add_token_list(words)
    writer.add_token_scores([-float(number) for number in range(vocab)])
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * (vocab - 259))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    end = 0
    for name, (shape, kind) in _tensors(hidden, layers, kv_heads * hidden // heads, inner, vocab, tied=tied).items():
        block, stored = gguf.GGML_QUANT_SIZES[kind]
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        writer.add_tensor_info(f"{name}.weight", shape, _dtype(), count // block * stored, raw_dtype=kind)
        end += -(-count // block * stored // 32) * 32
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("r+b") as file:
        file.truncate(-(-path.stat().st_size // 32) * 32 + end)
    return path


def _dtype() -> type:
    import numpy

    return numpy.float32


def _tensors(
    hidden: int, layers: int, narrow: int, inner: int, vocab: int, *, tied: bool
) -> dict[str, tuple[tuple[int, ...], gguf.GGMLQuantizationType]]:
    found: dict[str, tuple[tuple[int, ...], gguf.GGMLQuantizationType]] = {
        "token_embd": ((vocab, hidden), _Q6 if tied else _Q4), "output_norm": ((hidden,), _F32),
    }  # fmt: skip
    if not tied:
        found["output"] = ((vocab, hidden), _Q6)
    for layer in range(layers):
        more = layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2
        wide = _Q6 if more else _Q4
        found |= {f"blk.{layer}.{name}_norm": ((hidden,), _F32) for name in ("attn", "ffn")}
        found |= {f"blk.{layer}.attn_{name}": ((hidden, hidden), _Q4) for name in ("q", "output")}
        found |= {f"blk.{layer}.attn_k": ((narrow, hidden), _Q4), f"blk.{layer}.attn_v": ((narrow, hidden), wide)}
        found |= {f"blk.{layer}.ffn_{name}": ((inner, hidden), _Q4) for name in ("gate", "up")}
        found[f"blk.{layer}.ffn_down"] = ((hidden, inner), wide)
    return found
