"""A preset as the text of a file: GenerationParams ↔ YAML in the form of text-generation-webui, whose files open as
they are; SillyTavern's text completion presets (JSON) too.

What a file does not say is off, as there: temperature and top_p are 1 then, and penalties look at 1,024 tokens. What
Snug cannot do is named in the notes. No file is touched here.
"""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass
from typing import Any, TypeGuard

import yaml
from pydantic import ValidationError

from modules.errors import BadPreset
from modules.sampling import UNSAVED, GenerationParams
from modules.yaml_files import parse_yaml

Values = dict[str, Any]
OFF = GenerationParams(temperature=1, top_p=1)
"""What an empty file stands for."""
PENALTY_RANGE = 1024
"""How far penalties look back where a file does not say."""
CUTOFF_UNIT = 1e-4
"""text-generation-webui writes epsilon_cutoff and eta_cutoff in these units."""
_MOST = 1e15  # of any number in a preset; products of larger ones may be none that Python has
DRY_BREAKERS = {"\n", ":", '"', "*"}
_OWN = frozenset(GenerationParams.model_fields) - UNSAVED
_ALIASES = {
    "temp": "temperature", "rep_pen": "repetition_penalty", "rep_pen_range": "repetition_penalty_range",
    "freq_pen": "frequency_penalty", "presence_pen": "presence_penalty", "nsigma": "top_n_sigma",
    "dynatemp": "dynamic_temperature", "min_temp": "dynatemp_low", "max_temp": "dynatemp_high",
    "encoder_rep_pen": "encoder_repetition_penalty",
}  # fmt: skip
# What has no place here: the value that changes nothing, and why there is none.
_FOREIGN: dict[str, tuple[Any, str]] = {
    "guidance_scale": (1, "Snug has no guidance by a negative prompt"),
    "negative_prompt": ("", "Snug has no guidance by a negative prompt"),
    "penalty_alpha": (0, "Snug has no contrastive search"),
    "num_beams": (1, "Snug has no beam search"),
    "length_penalty": (1, "Snug has no beam search"),
    "early_stopping": (False, "Snug has no beam search"),
    "min_length": (0, "Snug sets no least length"),
    "adaptive_target": (0, "Snug has no adaptive sampling"),
    "adaptive_decay": (0.9, "Snug has no adaptive sampling"),
    "custom_token_bans": ("", "Snug bans no single tokens"),
    "grammar_string": ("", "a grammar belongs to one request of the API"),
    "custom_stopping_strings": ("", "stop strings stand under Parameters"),
    "skip_special_tokens": (True, "Snug never shows special tokens"),
    "add_bos_token": (True, "the model's own tokenizer decides that"),
    "auto_max_new_tokens": (False, "the longest reply is a number here"),
    "truncation_length": (0, "the context is chosen as the model is loaded"),
    "max_tokens_second": (0, "Snug slows no reply down"),
    "max_updates_second": (0, "Snug chooses that itself"),
    "prompt_lookup_num_tokens": (0, "guessing ahead is chosen as the model is loaded"),
    "static_cache": (False, "the cache is chosen as the model is loaded"),
    "enable_thinking": (True, "thinking is set for each conversation, under Setup"),
    "reasoning_effort": ("medium", "thinking is set for each conversation, under Setup"),
}
_TRANSLATED = frozenset(
    {"do_sample", "dynamic_temperature", "dynatemp_low", "dynatemp_high", "dry_sequence_breakers", "sampler_priority"}
)
_HEAT = {"temperature", "dynamic_temperature", "quadratic_sampling"}
_TRUNCATIONS = (
    "top_k", "top_p", "min_p", "typical_p", "tfs", "top_a", "epsilon_cutoff", "eta_cutoff", "xtc",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Preset:
    """What a file stands for; a sentence about each thing in it that Snug cannot do; the comment it begins with."""

    params: GenerationParams
    notes: tuple[str, ...] = ()
    about: str = ""


def read_preset(name: str, text: str) -> Preset:
    """The preset in a file's `text`; `name` is for errors. Raises BadPreset naming the line or field."""
    try:
        values = parse_yaml(text)
    except ValueError as error:
        raise BadPreset(
            f"The preset {name!r} cannot be read: {error}.", remedy="Correct or remove the file."
        ) from error
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise BadPreset(f"The preset {name!r} must hold lines of the form name: value.", remedy="Correct the file.")
    values = {_ALIASES.get(key, key): value for key, value in values.items()}
    foreign = not values.keys().isdisjoint(_FOREIGN.keys() | _TRANSLATED)
    notes = _leave_out(name, values, foreign=foreign)
    notes += _translate(values, foreign=foreign)
    params = _params(name, values)
    return Preset(params, tuple(notes), _comment(text))


def write_preset(params: GenerationParams) -> str:
    """The text of a file from which `read_preset` makes the same parameters, all but a request's own."""
    content = params.model_dump(mode="json", exclude=set(UNSAVED))
    off = OFF.model_dump(mode="json")
    written = {name: value for name, value in content.items() if value != off[name]}
    if _penalizes(content):
        written["repetition_penalty_range"] = params.repetition_penalty_range
    text: str = yaml.safe_dump(written, sort_keys=False, allow_unicode=True)
    # In escapes where it would come back changed (U+0085).
    return text if yaml.safe_load(text) == written else yaml.safe_dump(written, sort_keys=False)


def _leave_out(name: str, values: Values, *, foreign: bool) -> list[str]:
    """Take what Snug does not know out of `values`, and name it. Raises BadPreset where it may be a slip."""
    notes, unknown = [], []
    for key in [key for key in values if key not in _OWN and key not in _TRANSLATED]:
        value = values.pop(key)
        if key in _FOREIGN:
            off, why = _FOREIGN[key]
            if value != off and value not in (None, "", []):
                notes.append(f"{key} {_short(value)} is left out: {why}.")
        elif foreign:
            if value not in (None, "", [], {}, False, 0):
                unknown.append(_short(key))
        else:
            near = difflib.get_close_matches(str(key), _OWN, n=1)
            raise BadPreset(
                f"The preset {name!r} holds the unknown parameter {str(key)[:60]!r}.",
                remedy=f"Did you mean {near[0]}?" if near else "Remove that line.",
                param=str(key)[:60],
            )
    if unknown:
        notes.append(f"Snug does not know {', '.join(unknown[:20])}{' and more' if len(unknown) > 20 else ''}.")
    return notes


def _translate(values: Values, *, foreign: bool) -> list[str]:
    """Put `values` as text-generation-webui means them into Snug's own, in place; name what cannot be."""
    for key in ("epsilon_cutoff", "eta_cutoff"):
        value = values.get(key)
        if _is_number(value) and (value >= 1 or foreign):
            values[key] = value * CUTOFF_UNIT
    for key, value in values.items():
        if isinstance(value, float) and value.is_integer() and _takes_whole_numbers(key):
            values[key] = int(value)
    values.setdefault("temperature", 1)
    values.setdefault("top_p", 1)
    if _penalizes(values):
        values.setdefault("repetition_penalty_range", PENALTY_RANGE)
    notes = []
    for translate in (_dynamic_temperature, _mirostat_1, _breakers, _priority):
        notes += translate(values)
    if values.pop("do_sample", True) is False:
        values["temperature"] = 0
    return notes


def _dynamic_temperature(values: Values) -> list[str]:
    dynamic = values.pop("dynamic_temperature", False)
    low, high = values.pop("dynatemp_low", 1), values.pop("dynatemp_high", 1)
    if not dynamic:
        return []
    if not (_is_number(low) and _is_number(high) and 0 <= low <= high):
        return [f"The dynamic temperature from {_short(low)} to {_short(high)} is left out: that is no range."]
    values["temperature"], values["dynatemp_range"] = (low + high) / 2, (high - low) / 2
    return []


def _mirostat_1(values: Values) -> list[str]:
    if values.get("mirostat_mode") != 1 or values["mirostat_mode"] is True:
        return []
    values["mirostat_mode"] = 0
    return ["mirostat_mode 1 is left out: Snug has mode 2."]


def _breakers(values: Values) -> list[str]:
    """Where DRY's runs end: always at the same four characters here."""
    given = values.pop("dry_sequence_breakers", None)
    try:
        breakers = json.loads(f"[{given}]") if isinstance(given, str) else given
    except (ValueError, RecursionError):  # nested too deeply
        breakers = given
    usual = not breakers or (isinstance(breakers, list) and {str(item) for item in breakers} == DRY_BREAKERS)
    if usual or not values.get("dry_multiplier"):
        return []
    return ['dry_sequence_breakers are left out: DRY ends its runs at line ends, ":", "*" and quotation marks.']


def _priority(values: Values) -> list[str]:
    """The order of the samplers, as far as it says whether the temperature comes first or last."""
    given = values.pop("sampler_priority", None)
    items = given.replace(",", "\n").split("\n") if isinstance(given, str) else given
    if not isinstance(items, list):
        return []
    order = [str(item).strip() for item in items]
    used = [item for item in order if item in _TRUNCATIONS and _is_used(values, item)]
    places = [order.index(item) for item in used]
    heat = [order.index(item) for item in order if item in _HEAT and _is_used(values, item)]
    ours = [item for item in _TRUNCATIONS if item in used]
    if heat and places:
        if min(heat) > max(places):
            values["temperature_last"] = True
        elif max(heat) > min(places):
            return ["sampler_priority is left out: the temperature comes first or last here, not in between."]
    return [] if used == ours else [f"sampler_priority is left out: the order here is {', '.join(ours)}."]


def _is_used(values: Values, sampler: str) -> bool:
    if sampler == "temperature":
        return bool(values.get("temperature") != 1)
    name = {"dynamic_temperature": "dynatemp_range", "quadratic_sampling": "smoothing_factor", "xtc": "xtc_probability"}
    key = name.get(sampler, sampler)
    return bool(values.get(key, getattr(OFF, key)) != getattr(OFF, key))


def _penalizes(values: Values) -> bool:
    return any(
        values.get(key, off) != off
        for key, off in (("repetition_penalty", 1), ("presence_penalty", 0), ("frequency_penalty", 0))
    )


def _params(name: str, values: Values) -> GenerationParams:
    """The parameters that `values` name. Raises BadPreset naming the field."""
    if isinstance(values.get("stop"), list):
        values = values | {"stop": tuple(values["stop"])}
    try:
        return GenerationParams.model_validate(values, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        problem = f"{first['msg'][:1].lower()}{first['msg'][1:]}"
        raise BadPreset(
            f"The preset {name!r} cannot be used: {field} is {_short(first['input'])}; {problem}.",
            remedy="Correct the file.",
            param=field,
        ) from error


def _comment(text: str) -> str:
    first = text.lstrip("\ufeff").partition("\n")[0]
    return first[1:].strip()[:200] if first.startswith("#") else ""


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _MOST


def _takes_whole_numbers(key: str) -> bool:
    field = GenerationParams.model_fields.get(key)
    return field is not None and (field.annotation is int or key == "mirostat_mode")


def _short(value: object) -> str:
    return repr(value)[:60]
