"""What a model is, read from config.json, safetensors headers or a GGUF header: never from its weights."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from modules.errors import BadConfig, BadName, ModelNotFound, RemoteCodeDisabled, SnugError, UnsupportedModel
from modules.files import safe_path
from modules.memory.config import LayerKind, Shape, read_json, read_shape, refuse_remote_code
from modules.memory.families import base_prefix, check_can_generate, gguf_architectures
from modules.memory.formats import PICKLE_SUFFIXES, StoredTensor, read_model_tensors
from modules.memory.gguf import ArrayValue, GgufHeader, read_gguf

Source = Literal["safetensors", "gguf"]
Prequantized = Literal["none", "int8", "nf4", "fp4"]

_BLOCK = re.compile(r"^(.*?\.)??(\w+)\.(\d+)\.")
_OUTPUT_HEADS = ("lm_head", "embed_out", "output")
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model", "vocab.txt", "sentencepiece.bpe.model",
    "tekken.json", "source.spm",
)  # fmt: skip
_ROTARY_KEYS = ("rotary_pct", "rotary_emb_base")
_CODE_FILES = ("modeling_*.py", "configuration_*.py", "tokenization_*.py", "modelling_*.py")
_STORED_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float32"}
# safetensors checkpoints of these families name their modules otherwise than the loaded model (conversion_mapping.py).
_RENAMED = (
    (re.compile(r"^language_model\.model\."), "model.language_model."),
    (re.compile(r"^language_model\.lm_head\."), "lm_head."),
    (re.compile(r"^(vision_tower|multi_modal_projector)\."), r"model.\1."),
    (re.compile(r"^embed_out\."), "lm_head."),
)
# Tensor groups of a GGUF file in the terms of transformers' models: token table, block, final norm, head.
_GGUF_MODULES = {
    "gpt2": ("transformer.wte", "transformer.h", "transformer.ln_f"),
    "bloom": ("transformer.word_embeddings", "transformer.h", "transformer.ln_f"),
    "falcon": ("transformer.word_embeddings", "transformer.h", "transformer.ln_f"),
    "mamba": ("backbone.embeddings", "backbone.layers", "backbone.norm_f"),
}
_GGUF_DEFAULT_MODULES = ("model.embed_tokens", "model.layers", "model.norm")


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


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model on disk, as its headers describe it.

    `layers` counts decoder layers, `layer_kinds` says what each keeps; `kv_elements` is one token in one attention
    layer's cache; `state_elements` and `state_fp32` one recurrent layer's whole state. `bare_modules` are modules of
    the loaded model that hold no stored tensor of their own (rotary tables, tied heads) and yet must be placed.
    `prequantized` is the bitsandbytes format of the file itself. `fused_experts`: experts become 3-D tensors on
    loading, out of bitsandbytes' reach and rewritten if they go to disk.
    """

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
    encoder_layers: int = 0
    learned_positions: bool = False
    kv_elements: int = 0
    layer_kinds: tuple[LayerKind, ...] = ()
    sliding_window: int = 0
    experts: int = 0
    experts_per_token: int = 0
    state_elements: int = 0
    state_fp32: int = 0
    bare_modules: tuple[str, ...] = ()
    prequantized: Prequantized = "none"

    @property
    def fused_experts(self) -> bool:
        """Whether this is a mixture of experts: transformers 5 fuses their matrices into 3-D tensors."""
        return self.experts > 1


def inspect(path: Path, *, trust_remote_code: bool = False) -> ModelSpec:
    """The ModelSpec of a model folder or a .gguf file, from headers only.

    Raises ModelNotFound, BadConfig, BadSafetensors, BadGguf, PickleRefused, RemoteCodeDisabled or UnsupportedModel.
    """
    if path.is_dir():
        return _inspect_folder(path, trust_remote_code=trust_remote_code)
    if path.suffix.lower() == ".gguf":
        return _inspect_gguf(path)
    if not path.exists():
        raise ModelNotFound(f"There is no model {path.name!r}.", remedy="Choose one that is in the models folder.")
    raise UnsupportedModel(
        f"{path.name} is neither a model folder nor a .gguf file.",
        remedy="Put safetensors files into a folder together with their config.json and tokenizer.",
    )


def _inspect_folder(folder: Path, *, trust_remote_code: bool) -> ModelSpec:
    if not (folder / "config.json").exists():
        read_model_tensors(folder)  # names the nearer problem where only pickles are
        raise BadConfig(f"{folder.name} has no config.json.", remedy="Fetch the model again, with all its files.")
    config = read_json(folder / "config.json")
    if not trust_remote_code:
        _refuse_code(folder, config)
    model_type = _text(config, "model_type")
    architecture = _architecture(config)
    custom = trust_remote_code and "auto_map" in config
    is_decoder = config.get("is_decoder") is True
    family = check_can_generate(model_type, architecture, is_decoder=is_decoder, custom_code=custom)
    prequantized = _prequantized(config, folder.name)
    text_config = _text_config(config)
    shape = read_shape(text_config, model_type, encoder_decoder=family.is_encoder_decoder)
    stored = read_model_tensors(folder)
    tensors = _named(stored, model_type)
    tied = _is_tied(config, text_config, tensors)
    if not custom:
        _check_blocks(tensors, shape.layers, folder.name)
    warnings = [*_tokenizer_warning(folder), *_context_warning(shape)]
    return _spec(
        folder.name, folder, "safetensors", family.architecture, model_type, shape, tensors, tied, tuple(warnings),
        is_encoder_decoder=family.is_encoder_decoder, prequantized=prequantized,
        rotary=any(key.startswith("rope_") or key in _ROTARY_KEYS for key in text_config),
    )  # fmt: skip


def _spec(
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
        layers=shape.layers,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        attention_heads=shape.attention_heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        vocab_size=shape.vocab_size,
        max_context=shape.max_context,
        tied_embeddings=tied,
        stored_dtype=_stored_dtype(tensors, source),
        warnings=warnings,
        encoder_layers=shape.encoder_layers,
        learned_positions=shape.learned_positions,
        kv_elements=shape.kv_elements,
        layer_kinds=shape.kinds,
        sliding_window=shape.sliding_window,
        experts=shape.experts,
        experts_per_token=shape.experts_per_token,
        state_elements=shape.state_elements,
        state_fp32=shape.state_fp32,
        bare_modules=_bare_modules(tensors, tied=tied, is_encoder_decoder=is_encoder_decoder, rotary=rotary),
        prequantized=prequantized,
    )


def _refuse_code(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise RemoteCodeDisabled for code named in the configs or lying in the folder."""
    refuse_remote_code(config, folder.name)
    for name in ("tokenizer_config.json", "generation_config.json", "processor_config.json"):
        if (folder / name).exists():
            refuse_remote_code(read_json(folder / name), folder.name)
    for pattern in _CODE_FILES:
        for path in folder.glob(pattern):
            raise RemoteCodeDisabled(
                f"{folder.name} brings code of its own ({path.name}), which is off.",
                remedy="If you trust its publisher, start Snug with --trust-remote-code.",
            )


def _text(config: Mapping[str, Any], name: str) -> str:
    value = config.get(name)
    if not isinstance(value, str) or not value or len(value) > 100:
        raise BadConfig(
            f"config.json: {name} is {str(value)[:40]!r}, not a name.", remedy="Fetch it again.", param=name
        )
    return value


def _architecture(config: Mapping[str, Any]) -> str:
    names = config.get("architectures")
    if names is None or names == []:
        return ""
    if not isinstance(names, list) or not all(isinstance(name, str) and len(name) <= 200 for name in names):
        raise BadConfig(
            "config.json: architectures is not a list of names.", remedy="Fetch it again.", param="architectures"
        )
    return str(names[0])


def _text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part that describes the language model: models that also read images nest it."""
    for name in ("text_config", "llm_config", "decoder"):
        nested = config.get(name)
        if isinstance(nested, dict) and "hidden_size" not in config:
            return nested
    return config


def _prequantized(config: Mapping[str, Any], name: str) -> Prequantized:
    """The bitsandbytes format of already quantized files. Raises UnsupportedModel for formats that need more."""
    quantization = config.get("quantization_config")
    if not quantization:
        return "none"
    if not isinstance(quantization, dict):
        raise BadConfig("config.json: quantization_config is not an object.", remedy="Fetch it again.")
    method = str(quantization.get("quant_method", ""))[:40]
    if method in ("bitsandbytes", "bitsandbytes_8bit", "bitsandbytes_4bit") or quantization.get("load_in_4bit"):
        if quantization.get("load_in_4bit") is True:
            return "fp4" if quantization.get("bnb_4bit_quant_type") == "fp4" else "nf4"
        return "int8"
    needs = {
        "gptq": "the gptqmodel package and a GPU", "awq": "the gptqmodel package and a GPU",
        "fp8": "a GPU with FP8 units", "mxfp4": "a GPU and the triton kernels",
        "compressed-tensors": "the compressed-tensors package and a GPU",
    }.get(method, f"support for {method or 'an unnamed method'}")  # fmt: skip
    raise UnsupportedModel(
        f"{name} is quantized with {method or 'an unnamed method'}; that needs {needs}, which Snug does not carry.",
        remedy="Get the model unquantized and use --load-in-8bit or --load-in-4bit, or get it as GGUF.",
    )


def _named(stored: tuple[StoredTensor, ...], model_type: str) -> tuple[TensorInfo, ...]:
    """The stored tensors under their names in the loaded model, each with its repeated block."""
    prefix = base_prefix(model_type)
    names = [_renamed(tensor.name) for tensor in stored]
    bare = bool(prefix) and not any(name.startswith(prefix + ".") for name in names)
    result = []
    for tensor, name in zip(stored, names, strict=True):
        if bare and not name.startswith(tuple(head + "." for head in _OUTPUT_HEADS)):
            name = f"{prefix}.{name}"
        result.append(TensorInfo(name, tensor.shape, tensor.dtype, tensor.size_bytes, block_of(name)))
    return tuple(result)


def _renamed(name: str) -> str:
    for pattern, replacement in _RENAMED:
        name = pattern.sub(replacement, name)
    return name


def block_of(name: str) -> str:
    """The repeated block that a tensor belongs to: `model.layers.3.mlp.up.weight` → `model.layers.3`, else ""."""
    match = _BLOCK.match(name)
    return f"{match.group(1) or ''}{match.group(2)}.{match.group(3)}" if match else ""


def _check_blocks(tensors: tuple[TensorInfo, ...], layers: int, name: str) -> None:
    """Raise BadConfig if blocks are missing: transformers would fill them with random numbers and only warn."""
    stems = Counter(block.rpartition(".")[0] for block in {tensor.block for tensor in tensors if tensor.block})
    blocks = max(stems.values(), default=0)
    if blocks < layers:
        raise BadConfig(
            f"{name} should have {layers} layers, but its files hold {blocks}.",
            remedy="Fetch the model again, with all its files.",
            param="num_hidden_layers",
        )


def _is_tied(config: Mapping[str, Any], text_config: Mapping[str, Any], tensors: tuple[TensorInfo, ...]) -> bool:
    """Whether input and output share one table: as the config says; where it is silent, if no head is stored."""
    for source in (config, text_config):
        value = source.get("tie_word_embeddings")
        if isinstance(value, bool):
            return value
    return not any(tensor.name.startswith(tuple(head + "." for head in _OUTPUT_HEADS)) for tensor in tensors)


def _stored_dtype(tensors: tuple[TensorInfo, ...], source: Source) -> str:
    """The PyTorch name of the dtype that holds most bytes; a GGUF file becomes 16-bit when it is loaded."""
    if source == "gguf":
        return "bfloat16"
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        sizes[tensor.dtype] += tensor.size_bytes
    known = [name for name, _ in sizes.most_common() if name in _STORED_NAMES]
    return _STORED_NAMES[known[0]] if known else "bfloat16"


def _bare_modules(
    tensors: tuple[TensorInfo, ...], *, tied: bool, is_encoder_decoder: bool, rotary: bool
) -> tuple[str, ...]:
    """Modules of the loaded model without stored tensors of their own that a placement must name nevertheless."""
    modules = {tensor.name.rpartition(".")[0] for tensor in tensors}
    block = next((tensor.block for tensor in tensors if tensor.block), "")
    base = block.rpartition(".")[0].rpartition(".")[0]
    wanted = ["lm_head"] if tied else []
    if rotary and not is_encoder_decoder and base:
        wanted.append(f"{base}.rotary_emb")
    if is_encoder_decoder:
        top = "model." if any(name.startswith("model.") for name in modules) else ""
        wanted += [f"{top}{part}" for part in ("shared", "encoder.embed_tokens", "decoder.embed_tokens")]
    return tuple(name for name in wanted if name not in modules)


def _tokenizer_warning(folder: Path) -> list[str]:
    if any((folder / name).exists() for name in _TOKENIZER_FILES):
        return []
    return [f"{folder.name} has no tokenizer file; it cannot be loaded without one."]


def _context_warning(shape: Shape) -> list[str]:
    return (
        []
        if shape.context_stated
        else [f"The model does not state its context length; {shape.max_context} is assumed."]
    )


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """One model under the models folder. `problem` says why it cannot be loaded; "" if nothing speaks against it."""

    name: str
    kind: Literal["folder", "gguf"]
    size_bytes: int
    problem: str = ""


def list_models(model_dir: Path, *, trust_remote_code: bool = False) -> list[ModelEntry]:
    """Every model folder and .gguf file in `model_dir`, by name. Reads headers only and waits on nothing.

    Names that check_name refuses and links that lead out of `model_dir` are left out.
    """
    entries = []
    for found in sorted(model_dir.iterdir(), key=lambda path: path.name.lower()) if model_dir.is_dir() else ():
        try:
            path = safe_path(model_dir, found.name)
            is_folder = path.is_dir()
        except (BadName, OSError, RuntimeError):  # RuntimeError: a loop of links, on Python 3.11
            continue
        if is_folder and _looks_like_model(path):
            entries.append(_entry(path, "folder", trust_remote_code=trust_remote_code))
        elif not is_folder and path.suffix.lower() == ".gguf":
            entries.append(_entry(path, "gguf", trust_remote_code=trust_remote_code))
    return entries


def _looks_like_model(folder: Path) -> bool:
    """Whether a folder holds anything of a model; an unreadable one is listed, with its problem."""
    suffixes = {".safetensors", ".gguf", *PICKLE_SUFFIXES}
    try:
        return any(entry.name == "config.json" or Path(entry.name).suffix in suffixes for entry in os.scandir(folder))
    except OSError:
        return True


def _entry(path: Path, kind: Literal["folder", "gguf"], *, trust_remote_code: bool) -> ModelEntry:
    problem = ""
    try:
        inspect(path, trust_remote_code=trust_remote_code)
    except SnugError as error:
        problem = str(error)
    except OSError as error:
        problem = f"It cannot be read: {error.strerror}."
    return ModelEntry(path.name, kind, _size(path), problem)


def _size(path: Path) -> int:
    """Bytes of the weight files: of a folder its safetensors, of a file itself. 0 if unreadable."""
    try:
        files = (
            [path] if path.is_file() else [Path(e.path) for e in os.scandir(path) if e.name.endswith(".safetensors")]
        )
        return sum(file.stat().st_size for file in files)
    except OSError:
        return 0


def _inspect_gguf(path: Path) -> ModelSpec:
    """A GGUF file as the PyTorch model that transformers turns it into: tensors counted at 16 bits."""
    header = read_gguf(path)
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
    config = _gguf_config(header, architecture)
    shape = read_shape(config, family_type, encoder_decoder=family.is_encoder_decoder)
    tensors = tuple(_gguf_tensor(tensor, model_type) for tensor in header.tensors)
    _check_blocks(tensors, shape.layers, path.name)
    tied = not any(tensor.name == "lm_head.weight" for tensor in tensors)
    warnings = ("This GGUF file is unpacked to 16 bits when it is loaded.", *_context_warning(shape))
    return _spec(
        path.stem, path, "gguf", family.architecture, family_type, shape, tensors, tied, warnings,
        is_encoder_decoder=family.is_encoder_decoder, prequantized="none",
        rotary=any(key.startswith(f"{architecture}.rope.") for key in header.metadata),
    )  # fmt: skip


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
