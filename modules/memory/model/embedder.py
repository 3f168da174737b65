"""How a model folder makes one vector of a text: what sentence-transformers writes beside a model's config.

Read are modules.json with the files of the modules that it names, sentence_bert_config.json, and of
config_sentence_transformers.json the names of prompts, which are told and not applied. Modules other than Transformer,
Pooling and Normalize are refused. Nothing that a file names is run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from modules.errors import BadConfig, BadName, RemoteCodeDisabled, UnsupportedModel
from modules.files import safe_path
from modules.memory.model.config import number, read_json, read_json_list

Pooling = Literal["mean", "cls", "last"]
MODULES = "modules.json"
SETTINGS = "sentence_bert_config.json"
PROMPTS = "config_sentence_transformers.json"

_KINDS: dict[str, Pooling] = {"mean": "mean", "cls": "cls", "lasttoken": "last"}
# The fields of 1_Pooling/config.json before sentence-transformers 5.4, which now writes one `pooling_mode`.
_FLAGS = {
    "pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean", "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_max_tokens": "max", "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}  # fmt: skip
_LONGEST = 2**31
_OTHERS = "Snug embeds with Transformer, Pooling (mean, first or last token) and Normalize alone: choose another model."
# How people who publish such models name prefixes; longer lists are cut.
_PROMPTS_NAMED = 6


@dataclass(frozen=True, slots=True)
class Embedder:
    """How the vectors of a text's tokens become one.

    `normalizes`: it is brought to length 1. `longest_tokens` is the most that a text may have, 0 where the folder does
    not say; `lowercases`: texts are read in small letters. `prompts` are the names of the prefixes that it was trained
    with. `stated` is False where the folder says nothing and the mean is assumed.
    """

    pooling: Pooling
    normalizes: bool = False
    longest_tokens: int = 0
    lowercases: bool = False
    prompts: tuple[str, ...] = ()
    stated: bool = True


def read_embedder(folder: Path) -> Embedder | None:
    """What `folder` says of embedding; None where it has no modules.json.

    Raises BadConfig, UnsupportedModel for modules that are not built here, RemoteCodeDisabled for those of others.
    """
    if not (folder / MODULES).exists():
        return None
    pooling, normalizes = _modules(folder)
    settings = _optional(folder / SETTINGS)
    return Embedder(
        pooling=pooling,
        normalizes=normalizes,
        longest_tokens=number(settings, ("max_seq_length",), 1, _LONGEST, default=0) or tokenizer_limit(folder),
        lowercases=settings.get("do_lower_case") is True,
        prompts=_prompts(folder),
    )


def tokenizer_limit(folder: Path) -> int:
    """The longest text that tokenizer_config.json names, in tokens; 0 where it names none (a number beyond sense)."""
    limit = _optional(folder / "tokenizer_config.json").get("model_max_length")
    return limit if type(limit) is int and 0 < limit < _LONGEST else 0


def prompt_warning(name: str, embedder: Embedder) -> list[str]:
    """What to say of a model that was trained with prefixes."""
    if not embedder.prompts:
        return []
    named = ", ".join(embedder.prompts)
    return [
        f"{name} was trained with prefixes ({named}). Snug adds none: put them before your texts, "
        f"as {PROMPTS} writes them."
    ]


def _modules(folder: Path) -> tuple[Pooling, bool]:
    """The pooling of modules.json, and whether a Normalize follows."""
    kinds, paths = [], []
    for module in read_json_list(folder / MODULES):
        kind, path = (module.get("type"), module.get("path")) if isinstance(module, dict) else (None, None)
        if not isinstance(kind, str) or not isinstance(path, str):
            raise BadConfig(f"{MODULES} lists something that is no module.", remedy="Fetch the model again.")
        if not kind.startswith("sentence_transformers."):
            raise RemoteCodeDisabled(
                f"{folder.name} wants to run code of its own ({kind[:80]} in {MODULES}), which Snug does not.",
                remedy=_OTHERS,
            )
        kinds.append(kind.rpartition(".")[2][:40])
        paths.append(path)
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]) or paths[0]:
        raise UnsupportedModel(f"{folder.name} embeds with {', then '.join(kinds) or 'nothing'}.", remedy=_OTHERS)
    return _pooling(folder, paths[1]), len(kinds) == 3


def _pooling(folder: Path, path: str) -> Pooling:
    """The one kind that the config of the Pooling module names."""
    try:
        config = read_json(safe_path(folder, path) / "config.json")
    except BadName as error:
        raise BadConfig(f"{MODULES} names the folder {path[:40]!r}.", remedy="Fetch the model again.") from error
    stated = config.get("pooling_mode")
    named = [stated] if isinstance(stated, str) else [kind for flag, kind in _FLAGS.items() if config.get(flag) is True]
    if len(named) != 1 or named[0] not in _KINDS:
        told = " and ".join(str(kind)[:40] for kind in named) or "nothing"
        raise UnsupportedModel(f"{folder.name} makes one vector of a text by {told}.", remedy=_OTHERS)
    return _KINDS[named[0]]


def _prompts(folder: Path) -> tuple[str, ...]:
    """The names of prompts that are not empty."""
    prompts = _optional(folder / PROMPTS).get("prompts")
    if not isinstance(prompts, Mapping):
        return ()
    named = [str(name)[:40] for name, text in prompts.items() if isinstance(text, str) and text.strip()]
    return (*named[:_PROMPTS_NAMED], "…") if len(named) > _PROMPTS_NAMED else tuple(named)


def _optional(file: Path) -> dict[str, Any]:
    """The object in a file that need not be there."""
    return read_json(file) if file.exists() else {}
