"""config.json of a model as a whole: its family, shape and quantization, and that it asks for no code of its own.

Single fields are checked in config.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from modules.errors import BadConfig, RemoteCodeDisabled, UnsupportedModel
from modules.memory.model.config import read_json, refuse_remote_code
from modules.memory.model.families import Family, check_can_generate
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
_CODE_FILES = ("modeling_*.py", "configuration_*.py", "tokenization_*.py", "modelling_*.py")


@dataclass(frozen=True, slots=True)
class CheckedConfig:
    """A config that passed. `text` is the part that describes the language model, `custom` says that code comes too."""

    whole: Mapping[str, Any]
    text: Mapping[str, Any]
    model_type: str
    family: Family
    shape: Shape
    prequantized: Prequantized
    custom: bool
    vision: Vision | None = None

    @property
    def rotary(self) -> bool:
        """Whether positions are rotated into queries and keys."""
        return any(key.startswith("rope_") or key in _ROTARY_KEYS for key in self.text)


def check_config(file: Path, name: str, *, trust_remote_code: bool) -> CheckedConfig:
    """What the config `file` says of the model `name`. Raises BadConfig, RemoteCodeDisabled or UnsupportedModel."""
    config = read_json(file)
    if not trust_remote_code:
        refuse_remote_code(config, name)
    model_type = _text(config, "model_type")
    architecture = _architecture(config)
    custom = trust_remote_code and "auto_map" in config
    is_decoder = config.get("is_decoder") is True
    family = check_can_generate(model_type, architecture, is_decoder=is_decoder, custom_code=custom)
    prequantized = _prequantized(config, name)
    text_config = _text_config(config)
    shape = read_shape(text_config, model_type, encoder_decoder=family.is_encoder_decoder)
    vision = read_vision(config, model_type, shape.hidden_size) if family.sees else None
    return CheckedConfig(config, text_config, model_type, family, shape, prequantized, custom, vision)


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
