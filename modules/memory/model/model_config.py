"""config.json of a model as a whole: its family, shape and quantization, and that it asks for no code of its own.

Single fields are checked in config.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from modules.errors import BadConfig, RemoteCodeDisabled, UnsupportedModel
from modules.memory.model.config import number, read_json, refuse_endless_counts, refuse_other_files, refuse_remote_code
from modules.memory.model.embedder import Embedder, read_embedder, tokenizer_limit
from modules.memory.model.families import Family, check_can_embed, check_can_generate, is_encoder
from modules.memory.model.layers import LayerKind
from modules.memory.model.model_spec import Prequantized
from modules.memory.model.shape import Shape, read_shape
from modules.memory.model.vision import Vision, read_vision

_ROTARY_KEYS = ("rotary_pct", "rotary_emb_base")
_DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "auto": ""}
# What a nested config leaves out where it is as transformers has it (configuration_llama.py): LLaVA 1.5 says little.
_DEFAULTS = {
    "llama": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "mistral": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
                "num_key_value_heads": 8},
}  # fmt: skip
# Families that count positions from behind the padding's id: of their tables so many rows are no positions.
_POSITIONS_AFTER_PADDING = frozenset({"roberta", "xlm-roberta", "camembert", "mpnet"})
_CODE_FILES = ("modeling_*.py", "configuration_*.py", "tokenization_*.py", "modelling_*.py")


@dataclass(frozen=True, slots=True)
class CheckedConfig:
    """A config that passed. `text` is the part that describes the language model, `custom` says that code comes too.

    `embedder` is None for a model that generates.
    """

    whole: Mapping[str, Any]
    text: Mapping[str, Any]
    model_type: str
    family: Family
    shape: Shape
    prequantized: Prequantized
    custom: bool
    vision: Vision | None = None
    embedder: Embedder | None = None

    @property
    def rotary(self) -> bool:
        """Whether positions are rotated into queries and keys."""
        return any(key.startswith("rope_") or key in _ROTARY_KEYS for key in self.text)


def check_config(file: Path, name: str, *, trust_remote_code: bool) -> CheckedConfig:
    """What the config `file` says of the model `name`. Raises BadConfig, RemoteCodeDisabled or UnsupportedModel.

    Beside a file called config.json, what says how a folder embeds is read too.
    """
    config = read_json(file)
    if not trust_remote_code:
        refuse_remote_code(config, name)
    refuse_other_files(config, name)
    refuse_endless_counts(config)
    model_type = _text(config, "model_type")
    architecture = _architecture(config)
    custom = trust_remote_code and "auto_map" in config
    is_decoder = config.get("is_decoder") is True
    embedder = None if custom else _embedder(file, model_type, architecture, is_decoder=is_decoder)
    if embedder is not None:
        family = check_can_embed(model_type, architecture)
    else:
        family = check_can_generate(model_type, architecture, is_decoder=is_decoder, custom_code=custom)
    prequantized = _prequantized(config, name)
    text_config = _text_config(config)
    if embedder is not None:
        shape = _reading_shape(text_config, model_type, embedder)
        return CheckedConfig(
            config, text_config, model_type, family, shape, prequantized, custom, embedder=embedder
        )  # fmt: skip
    shape = read_shape(text_config, model_type, encoder_decoder=family.is_encoder_decoder)
    vision = read_vision(config, model_type, shape.hidden_size) if family.sees else None
    return CheckedConfig(config, text_config, model_type, family, shape, prequantized, custom, vision)


def _embedder(file: Path, model_type: str, architecture: str, *, is_decoder: bool) -> Embedder | None:
    """How the model embeds: as its folder says, or by the mean where it is an encoder and nothing says so."""
    in_folder = file.name == "config.json"
    stated = read_embedder(file.parent) if in_folder else None
    if stated is not None or not is_encoder(model_type, architecture, is_decoder=is_decoder):
        return stated
    return Embedder("mean", longest_tokens=tokenizer_limit(file.parent) if in_folder else 0, stated=False)


def _reading_shape(config: Mapping[str, Any], model_type: str, embedder: Embedder) -> Shape:
    """The shape of a model that reads each text once: no layer keeps anything, a text ends where positions do."""
    shape = read_shape(config, model_type, encoder_decoder=False)
    positions = shape.max_context
    if model_type in _POSITIONS_AFTER_PADDING:
        positions -= number(config, ("pad_token_id",), 0, 2**25, default=1) + 1
    longest = min(positions, embedder.longest_tokens or positions)
    if longest < 1:
        raise BadConfig(
            "config.json: max_position_embeddings leaves no place for a token.",
            remedy="Fetch the model again.",
            param="max_position_embeddings",
        )
    nothing: LayerKind = "shared"
    return replace(
        shape,
        max_context=longest,
        context_stated=shape.context_stated or embedder.longest_tokens > 0,
        sliding_window=number(config, ("local_attention",), 0, 2**31, default=shape.sliding_window),
        layer_kinds=(nothing,) * shape.layers,
        layer_kv_elements=(),
    )


def stated_dtype(checked: CheckedConfig) -> str:
    """The precision that a config gives its files, in safetensors' words; "" if it gives none."""
    for config in (checked.whole, checked.text):
        for name in ("dtype", "torch_dtype"):
            if config.get(name) is not None:
                dtype = str(config[name]).removeprefix("torch.")
                if dtype not in _DTYPES:
                    raise BadConfig(
                        f"config.json: {name} is {dtype[:40]!r}; known are {', '.join(_DTYPES)}.",
                        remedy="Fetch it again.",
                        param=name,
                    )
                return _DTYPES[dtype]
    return ""


def is_code_file(name: str) -> bool:
    """Whether a file of a repository is Python code that transformers would run if it were trusted."""
    return any(fnmatch(name, pattern) for pattern in _CODE_FILES)


def refuse_code_files(folder: Path) -> None:
    """Raise RemoteCodeDisabled for code named in a config of the folder, or lying in it."""
    for name in ("config.json", "tokenizer_config.json", "generation_config.json", "processor_config.json",
                 "preprocessor_config.json"):  # fmt: skip
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
            return {**_DEFAULTS.get(str(nested.get("model_type")), {}), **nested}
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
