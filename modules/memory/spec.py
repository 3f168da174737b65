"""What a model is, read from config.json, safetensors headers or a GGUF header: never from its weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Source = Literal["safetensors", "gguf"]


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One stored tensor."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model on disk, as its headers describe it."""

    name: str
    path: Path
    source: Source
    architecture: str
    model_type: str
    is_encoder_decoder: bool
    tensors: tuple[TensorInfo, ...]
    layers: int
    hidden_size: int
    intermediate_size: int
    attention_heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    max_context: int
    tied_embeddings: bool
    stored_dtype: str
    warnings: tuple[str, ...] = ()
