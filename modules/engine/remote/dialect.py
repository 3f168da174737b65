"""GenerationParams in the words of each kind of server, and what that server cannot do, by name. Pure.

What a kind takes is written down here from its source or documentation; an unknown one is asked for OpenAI's own fields
alone. Whatever a user switched on and the server lacks is told, never left out without a word.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Literal

from modules.engine.llamacpp.sampling import MISSING, notices, sampling_fields
from modules.errors import BadValue, NotAvailableHere
from modules.sampling import GenerationParams

Kind = Literal["openai", "vllm", "sglang", "llamacpp", "transformers", "snug"]
TITLES: dict[Kind, str] = {
    "openai": "an OpenAI-compatible server", "vllm": "vLLM", "sglang": "SGLang", "llamacpp": "llama-server",
    "transformers": "transformers serve", "snug": "Snug",
}  # fmt: skip
# Every parameter that changes which tokens come, and the value that switches it off.
_OFF: dict[str, float] = {
    "top_k": 0, "min_p": 0, "typical_p": 1, "top_n_sigma": 0, "tfs": 1, "top_a": 0, "epsilon_cutoff": 0,
    "eta_cutoff": 0, "xtc_probability": 0, "dynatemp_range": 0, "smoothing_factor": 0, "temperature_last": False,
    "repetition_penalty": 1, "repetition_penalty_range": 0, "presence_penalty": 0, "frequency_penalty": 0,
    "encoder_repetition_penalty": 1, "no_repeat_ngram_size": 0, "dry_multiplier": 0, "mirostat_mode": 0,
    "ban_eos_token": False,
}  # fmt: skip
# What counts even where the likeliest token is taken each time.
_GREEDY = frozenset(
    {"repetition_penalty", "repetition_penalty_range", "presence_penalty", "frequency_penalty",
     "encoder_repetition_penalty", "no_repeat_ngram_size", "dry_multiplier", "ban_eos_token"}
)  # fmt: skip
_OPENAI = frozenset({"presence_penalty", "frequency_penalty"})
_VLLM = _OPENAI | {"top_k", "min_p", "repetition_penalty", "ban_eos_token"}
_ABLE: dict[Kind, frozenset[str]] = {
    "openai": _OPENAI,
    "vllm": _VLLM,
    "sglang": _VLLM,
    "llamacpp": frozenset(_OFF) - frozenset(MISSING),
    "transformers": frozenset(
        {"top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "repetition_penalty", "no_repeat_ngram_size"}
    ),
    "snug": frozenset(_OFF),
}
_ENDS: frozenset[Kind] = frozenset({"vllm", "sglang", "snug"})
"""Which servers know `stop_token_ids` and `min_tokens`."""
SEPARATING: frozenset[Kind] = frozenset({"vllm", "snug"})
"""Which servers keep what they know of prompts apart by a request's `cache_salt`."""
_STOPS = {"openai": 4}  # OpenAI's own limit; Snug looks for all of them itself in any case
_CONTINUES: dict[Kind, dict[str, Any]] = {
    "vllm": {"add_generation_prompt": False, "continue_final_message": True},
    "sglang": {"add_generation_prompt": False, "continue_final_message": True},
}


@dataclass(frozen=True, slots=True)
class Asked:
    """The sampling fields of a request, and sentences about what they leave out."""

    fields: dict[str, Any]
    told: tuple[str, ...] = ()


def ask_for(kind: Kind, params: GenerationParams, *, chat: bool, context_tokens: int, grammar: str = "") -> Asked:
    """How to ask a server of `kind` for `params`. Raises BadValue for log-probabilities that it does not give.

    `context_tokens` 0: not known. `grammar`: the GBNF that a reply of llama-server's follows, and one of another
    Snug's that must call.
    """
    if params.logprobs and kind == "transformers":
        raise BadValue("transformers serve gives no log-probabilities.", remedy="Leave logprobs out.", param="logprobs")
    if params.sampled_logprobs and kind != "llamacpp":
        raise BadValue(
            f"{TITLES[kind]} tells what its model computed, not what samplers leave.",
            remedy="Leave out use_samplers.",
            param="use_samplers",
        )
    missing = [name for name, off in _OFF.items() if name not in _ABLE[kind] and getattr(params, name) != off]
    if params.repetition_penalty == 1 and not params.presence_penalty and not params.frequency_penalty:
        missing = [name for name in missing if name != "repetition_penalty_range"]
    if params.greedy:
        missing = [name for name in missing if name in _GREEDY]
    ends: dict[str, Any] = {"stop_token_ids": list(params.stop_token_ids), "min_tokens": params.min_tokens}
    ends = {name: value for name, value in ends.items() if value}
    missing += [name for name in ends if kind not in _ENDS]
    told = [_left_out(missing, kind)] if missing else []
    fields: dict[str, Any] = {"temperature": params.temperature, "top_p": params.top_p}
    if kind == "snug":
        fields = params.model_dump(
            exclude={"stop", "logprobs", "sampled_logprobs", "max_new_tokens", "json_schema", "logit_bias"}
        )
    elif kind == "llamacpp":
        fields = sampling_fields(params, context_tokens, grammar)
        told += notices(params)
    elif kind == "transformers":
        fields |= {"generation_config": json.dumps(_generation_config(params))}
    else:
        fields |= {"presence_penalty": params.presence_penalty, "frequency_penalty": params.frequency_penalty}
    if kind in ("vllm", "sglang"):
        fields |= {
            "top_k": params.top_k or -1, "min_p": params.min_p, "repetition_penalty": params.repetition_penalty,
            "ignore_eos": params.ban_eos_token, **ends,
        }  # fmt: skip
    fields |= {"grammar": grammar} if kind == "snug" and grammar else _form(kind, params)
    if params.logit_bias and kind not in ("llamacpp", "transformers"):
        fields["logit_bias"] = {str(token): bias for token, bias in params.logit_bias}
    elif params.logit_bias and kind == "transformers":
        told.append(_left_out(["logit_bias"], kind))
    if params.seed >= 0:
        fields.setdefault("seed", params.seed)
    if params.stop:
        fields["stop"] = list(params.stop[: _STOPS.get(kind)])
    if params.logprobs and kind != "llamacpp":
        fields |= {"logprobs": True, "top_logprobs": params.logprobs} if chat else {"logprobs": params.logprobs}
    return Asked(fields, tuple(told))


def lacks(kind: Kind) -> dict[str, str]:
    """The parameters that a server of `kind` does not know, and what becomes of each, in words."""
    return dict.fromkeys((name for name in _OFF if name not in _ABLE[kind]), f"{TITLES[kind]} leaves this out.")


def _form(kind: Kind, params: GenerationParams) -> dict[str, Any]:
    """The form that the reply is to follow. Raises NotAvailableHere where the server would let it take any."""
    if (params.grammar and kind not in ("snug", "llamacpp")) or (params.json_schema and kind == "transformers"):
        raise NotAvailableHere(
            f"{TITLES[kind]} cannot hold a reply to {'a grammar' if params.grammar else 'a JSON schema'}.",
            remedy="Leave the field out.",
            param="grammar" if params.grammar else "response_format",
        )
    if not params.json_schema or kind == "llamacpp":  # llama-server gets both as a grammar
        return {}
    schema = {"name": "reply", "strict": True, "schema": json.loads(params.json_schema)}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}


def kept_apart(kind: Kind, whose: str) -> dict[str, Any]:
    """What makes a server lend what it keeps of prompts to the same person's requests alone; {} where none can be asked
    to. What it gets tells nobody's name."""
    if kind not in SEPARATING or not whose:
        return {}
    return {"cache_salt": hashlib.blake2b(whose.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()}


def counts_asked_for(kind: Kind) -> dict[str, Any]:
    """What makes a stream carry its token counts."""
    options: dict[str, Any] = {"include_usage": True}
    if kind in ("vllm", "sglang"):
        options["continuous_usage_stats"] = True
    return {} if kind == "transformers" else {"stream_options": options}


def continuing(kind: Kind) -> dict[str, Any]:
    """Fields that let a chat go on in its last message. Raises BadValue for a server that only begins new ones."""
    if kind not in _CONTINUES:
        raise BadValue(
            f"This reply cannot be continued: {TITLES[kind]} begins a new one for each question.",
            remedy="Regenerate it.",
            param="message_id",
        )
    return _CONTINUES[kind]


def _left_out(names: list[str], kind: Kind) -> str:
    listed = ", ".join(names)
    return f"{listed} {'was' if len(names) == 1 else 'were'} left out: {TITLES[kind]} has no such setting."


def _generation_config(params: GenerationParams) -> dict[str, Any]:
    """What `transformers serve` makes its GenerationConfig of; without it a model's own defaults would decide."""
    config: dict[str, Any] = {
        "do_sample": not params.greedy,
        "repetition_penalty": params.repetition_penalty,
        "no_repeat_ngram_size": params.no_repeat_ngram_size,
    }
    if not params.greedy:
        config |= {
            name: getattr(params, name) for name in ("top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
        }
    return config
