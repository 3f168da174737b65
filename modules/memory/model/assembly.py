"""One ModelSpec from the parts that the readers of folders, GGUF files and the hub found."""

from __future__ import annotations

from pathlib import Path

from modules.memory.model.model_spec import ModelSpec, Prequantized, Source, TensorInfo
from modules.memory.model.naming import bare_modules, stored_dtype
from modules.memory.model.shape import Shape


def assemble(
    name: str, path: Path, source: Source, architecture: str, model_type: str, shape: Shape,
    tensors: tuple[TensorInfo, ...], tied: bool, warnings: tuple[str, ...],
    *, is_encoder_decoder: bool, prequantized: Prequantized, rotary: bool,
) -> ModelSpec:  # fmt: skip
    return ModelSpec(
        name=name,
        path=path,
        source=source,
        architecture=architecture,
        model_type=model_type,
        is_encoder_decoder=is_encoder_decoder,
        tensors=tensors,
        tied_embeddings=tied,
        stored_dtype=stored_dtype(tensors, source),
        warnings=warnings,
        bare_modules=bare_modules(tensors, tied=tied, is_encoder_decoder=is_encoder_decoder, rotary=rotary),
        prequantized=prequantized,
        **shape.as_fields(),
    )


def context_warning(shape: Shape) -> list[str]:
    return (
        []
        if shape.context_stated
        else [f"The model does not state its context length; {shape.max_context} is assumed."]
    )
