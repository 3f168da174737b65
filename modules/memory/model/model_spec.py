"""What is known of a model before a byte of its weights is read: values only. spec.py makes them.

Torch-free and picklable. `Description` is what building the model without weights tells (meta.py), `Describe` whoever
can do that.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from modules.memory.model.embedder import Embedder
from modules.memory.model.shape import Shape
from modules.memory.model.vision import Vision

Source = Literal["safetensors", "gguf", "remote"]
Prequantized = Literal["none", "int8", "nf4", "fp4"]

_BLOCK = re.compile(r"^(.*?\.)??(\w+)\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One stored tensor under the name that it has in the loaded model; `block` is its repeated block or "".

    `dtype` and `size_bytes` are as stored.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    size_bytes: int
    block: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec(Shape):
    """A model, as its headers or its config describe it: its Shape, and what it consists of.

    `bare_modules` are modules of the loaded model that hold no stored tensor of their own (rotary tables, tied heads)
    and yet must be placed. `prequantized` is the bitsandbytes format of the file itself.

    `buffers` are tensors that no file holds and every loaded model has (rotary tables, masks), as they are once loaded;
    known where the model was built on the meta device. `weights_here`: False where only config and headers are, so
    that the model can be planned and not loaded. `kept_fp32` are tensors that stay fp32 in a 16-bit model,
    `kept_fp32_in_fp16` those that do where it is fp16, `linear_weights` the matrices that bitsandbytes would replace;
    None where not known. `vision` is what a model sees with, None for one that reads text alone; `embedder` how a model
    that embeds texts makes one vector of one, None for a model that generates.
    """

    name: str
    path: Path
    source: Source
    architecture: str
    model_type: str
    is_encoder_decoder: bool
    tensors: tuple[TensorInfo, ...]
    tied_embeddings: bool
    stored_dtype: str
    warnings: tuple[str, ...] = ()
    bare_modules: tuple[str, ...] = ()
    prequantized: Prequantized = "none"
    buffers: tuple[TensorInfo, ...] = ()
    weights_here: bool = True
    kept_fp32: frozenset[str] = frozenset()
    kept_fp32_in_fp16: frozenset[str] = frozenset()
    linear_weights: frozenset[str] | None = None
    vision: Vision | None = None
    embedder: Embedder | None = None

    @property
    def parameters(self) -> int:
        """How many numbers the files hold."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors)

    @property
    def fused_experts(self) -> bool:
        """Whether this is a mixture of experts: transformers 5 fuses their matrices into 3-D tensors on loading, out of
        bitsandbytes' reach and rewritten if they go to disk.
        """
        return self.experts > 1


@dataclass(frozen=True, slots=True)
class Description:
    """What a model of a config consists of once loaded, in the dtype that the config states.

    `tensors` are parameters and stored buffers, shared ones once; `buffers` what no file holds; `bare_modules` modules
    outside the blocks that own no stored tensor and yet must be placed. `replaceable` are the names of the matrices of
    plain linear layers, which bitsandbytes could quantize; `kept_fp32` of what stays fp32 in a
    16-bit model, `kept_fp32_in_fp16` in an fp16 one.
    """

    architecture: str
    tensors: tuple[TensorInfo, ...]
    buffers: tuple[TensorInfo, ...]
    bare_modules: tuple[str, ...]
    replaceable: frozenset[str]
    kept_fp32: frozenset[str]
    kept_fp32_in_fp16: frozenset[str]


Describe = Callable[[Path], Description]
"""From a folder with a config.json that inspect has checked. Raises SnugError."""


def block_of(name: str) -> str:
    """The repeated block that a tensor belongs to: `model.layers.3.mlp.up.weight` → `model.layers.3`, else ""."""
    match = _BLOCK.match(name)
    return f"{match.group(1) or ''}{match.group(2)}.{match.group(3)}" if match else ""
