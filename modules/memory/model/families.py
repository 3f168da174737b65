"""Which model families can generate or embed, read from transformers' source text so that torch is not imported.

Also what cannot be told from config.json: the name that a family gives to its base model, by which placements name
modules. Knows nothing of files or memory.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from modules.errors import UnsupportedModel
from modules.memory.model.layers import RECURRENT_TYPES

_GENERATING = "Snug chats with causal models (Llama, GPT, Qwen, …) and encoder-decoders (T5, BART)."
# Families that read pictures as Snug gives them to them, each held against transformers' own `generate` in
# tests/test_sight.py. Others need more than vectors in place of tokens: masks of their own, vectors for several layers.
SEEING = frozenset({"idefics3", "smolvlm", "llava", "qwen2_vl", "qwen2_5_vl"})
# Encoders that embed texts here, each held against transformers in tests/test_encoder.py.
ENCODING = frozenset({
    "bert", "roberta", "xlm-roberta", "camembert", "mpnet", "distilbert", "electra", "modernbert",
})  # fmt: skip
_EMBEDDING = "Snug embeds with BERT, RoBERTa, XLM-RoBERTa, MPNet, ModernBERT and their kin, and with causal models."
_SEEN = "Of models that see, Snug runs Idefics3, SmolVLM, LLaVA, Qwen2-VL and Qwen2.5-VL."
# Heads that classify or fill gaps; a model saved with one of them has no trained way to continue a text.
_TASK_HEADS = re.compile(
    r"For(MaskedLM|SequenceClassification|TokenClassification|QuestionAnswering|MultipleChoice|NextSentencePrediction"
    r"|RewardModel|ImageClassification|CTC|AudioClassification|FeatureExtraction|Retrieval|PreTraining)$"
)
# Of them, those whose base model is an encoder as any other.
_READS = ("ForMaskedLM", "ForPreTraining")
# T5 and its kin say base_model_prefix = "transformer" but hold encoder and decoder directly.
_WITHOUT_BASE = frozenset({"t5", "mt5", "umt5", "longt5", "switch_transformers", "t5gemma", "fsmt"})
_SOUND = re.compile(r"audio|speech|voxtral|asr|flamingo|moss_transcribe|seamless")


@dataclass(frozen=True, slots=True)
class Family:
    """The class that will be loaded, whether it has an encoder, and whether it takes pictures."""

    architecture: str
    is_encoder_decoder: bool
    sees: bool = False


@cache
def transformers_folder() -> Path:
    """Where transformers is installed; found without importing it."""
    found = importlib.util.find_spec("transformers")
    if found is None or found.origin is None:
        raise UnsupportedModel("The transformers package is not installed.", remedy="Run ./start.sh once.")
    return Path(found.origin).parent


@cache
def _names(mapping: str) -> dict[str, str]:
    """One of the OrderedDicts of models/auto/modeling_auto.py: model_type → class name."""
    for statement in _auto_tree().body:
        targets = statement.targets if isinstance(statement, ast.Assign) else []
        if targets and isinstance(targets[0], ast.Name) and targets[0].id == mapping:
            value = getattr(statement, "value", None)
            if isinstance(value, ast.Call) and value.args:
                return {kind: _first(name) for kind, name in ast.literal_eval(value.args[0])}
    return {}


def _first(name: str | tuple[str, ...]) -> str:
    return name if isinstance(name, str) else name[0]


@cache
def _auto_tree() -> ast.Module:
    source = transformers_folder() / "models" / "auto" / "modeling_auto.py"
    return ast.parse(source.read_text(encoding="utf-8"))


def check_can_generate(model_type: str, architecture: str, *, is_decoder: bool, custom_code: bool) -> Family:
    """The Family of a model, by config.json's model_type and architectures[0] ("" where absent).

    Raises UnsupportedModel, saying why, for encoders, classifiers, speech and image models and unknown types.
    `custom_code` models bring their own classes: they pass.
    """
    label = architecture or model_type or "this model"
    causal, sequence = (
        _names("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"),
        _names("MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES"),
    )
    if _TASK_HEADS.search(architecture):
        raise UnsupportedModel(f"{label} scores or labels text; it cannot generate.", remedy=_GENERATING)
    as_causal = architecture != "" and architecture == causal.get(model_type)
    if _hears(model_type) and not as_causal:
        raise UnsupportedModel(f"{label} ({model_type}) listens to sound; Snug cannot load it.", remedy=_GENERATING)
    if model_type in sequence and not as_causal:
        return Family(sequence[model_type], is_encoder_decoder=True)
    seeing = _names("MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES")
    if model_type in SEEING and model_type in seeing:
        return Family(seeing[model_type], is_encoder_decoder=False, sees=True)
    if model_type in causal:
        reads_only = model_type in _names("MODEL_FOR_MASKED_LM_MAPPING_NAMES") and model_type not in sequence
        if reads_only and not is_decoder:
            raise UnsupportedModel(f"{label} is an encoder: it reads text but cannot generate.", remedy=_GENERATING)
        return Family(causal[model_type], is_encoder_decoder=False)
    if custom_code:
        return Family(architecture or model_type, is_encoder_decoder=False)
    if model_type in _names("MODEL_MAPPING_NAMES"):
        sees = model_type in seeing
        what = "sees in a way that Snug has not been tried with" if sees else "cannot generate text"
        remedy = _SEEN if sees else _GENERATING
        raise UnsupportedModel(f"{label} ({model_type}) {what}; Snug cannot load it.", remedy=remedy)
    raise UnsupportedModel(
        f"The installed transformers does not know the model type {model_type[:60]!r}.",
        remedy="Update transformers, or use --trust-remote-code if the model brings its own code and you trust it.",
    )


def is_encoder(model_type: str, architecture: str, *, is_decoder: bool) -> bool:
    """Whether a folder that says nothing of embedding holds an encoder of a family that embeds texts here.

    Not one that was trained to label or to score.
    """
    bare = not architecture or not _TASK_HEADS.search(architecture) or architecture.endswith(_READS)
    return model_type in ENCODING and bare and not is_decoder


def check_can_embed(model_type: str, architecture: str) -> Family:
    """The Family of a model that is to embed texts: its base model, without any head. Raises UnsupportedModel."""
    generates = _names("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES")
    decodes = model_type in generates and model_type not in _names("MODEL_FOR_MASKED_LM_MAPPING_NAMES")
    decodes = decodes and model_type not in _names("MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES")
    decodes = decodes and model_type not in SEEING and model_type not in RECURRENT_TYPES
    base = _names("MODEL_MAPPING_NAMES").get(model_type)
    if base is None or not (decodes or model_type in ENCODING):
        label = architecture or model_type
        raise UnsupportedModel(f"{label} ({model_type}): Snug does not embed with this family.", remedy=_EMBEDDING)
    return Family(base, is_encoder_decoder=False)


def _hears(model_type: str) -> bool:
    return model_type in _names("MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES") or bool(_SOUND.search(model_type))


@cache
def base_prefix(model_type: str) -> str:
    """The attribute under which a family's head class keeps its base model ("model", "transformer"); "" if none.

    Source: `base_model_prefix` in the family's modeling file. "model" where the file does not say.
    """
    if model_type in _WITHOUT_BASE:
        return ""
    for folder in _model_folders(model_type):
        for source in sorted((transformers_folder() / "models" / folder).glob("modeling_*.py")):
            found = re.search(r'^    base_model_prefix = "(\w*)"', source.read_text(encoding="utf-8"), re.MULTILINE)
            if found:
                return found.group(1)
    return "model"


def _model_folders(model_type: str) -> tuple[str, str]:
    """Folders that may hold a family's code: gemma3_text lives in gemma3, xlm-roberta in xlm_roberta."""
    name = re.sub(r"\W", "_", model_type)
    return name, name.removesuffix("_text")


@cache
def gguf_architectures() -> frozenset[str]:
    """The GGUF architectures that transformers can turn into PyTorch models (integrations/ggml.py)."""
    source = (transformers_folder() / "integrations" / "ggml.py").read_text(encoding="utf-8")
    for statement in ast.parse(source).body:
        targets = statement.targets if isinstance(statement, ast.Assign) else []
        if targets and isinstance(targets[0], ast.Name) and targets[0].id == "GGUF_CONFIG_MAPPING":
            keys = (
                statement.value.keys
                if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Dict)
                else []
            )
            return frozenset(str(key.value) for key in keys if isinstance(key, ast.Constant)) - {"general", "tokenizer"}
    return frozenset()
