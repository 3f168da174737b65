"""GenerationParams as llama.cpp's own samplers take them, and what they cannot do, by name.

Pure. The order is the one documented at GenerationParams.
"""

from __future__ import annotations

import secrets
from typing import Any

from modules.errors import BadValue
from modules.sampling import GenerationParams

SEEDS = 2**32 - 1  # the last one means "draw one" to llama.cpp
# What llama.cpp has no sampler for, and the value that switches each off.
MISSING: dict[str, float] = {
    "tfs": 1, "top_a": 0, "epsilon_cutoff": 0, "eta_cutoff": 0, "smoothing_factor": 0, "encoder_repetition_penalty": 1,
    "no_repeat_ngram_size": 0,
}  # fmt: skip
_PENALTIES: dict[str, float] = {
    "repetition_penalty": 1, "presence_penalty": 0, "frequency_penalty": 0, "dry_multiplier": 0,
}  # fmt: skip
REPLY_PENALTIES = "The presence and frequency penalties count the prompt's tokens too."


def check_params(params: GenerationParams) -> None:
    """Raise BadValue for what llama.cpp cannot do."""
    for name, off in MISSING.items():
        if getattr(params, name) != off:
            raise _refusal(params, name, f"llama.cpp has no sampler for {name}", f"Set it to {off:g}")
    if params.min_tokens:
        raise _refusal(params, "min_tokens", "llama.cpp cannot keep a reply from ending early", "Leave min_tokens out")
    if params.mirostat_mode and not params.greedy:
        for name, off in _PENALTIES.items():
            if getattr(params, name) != off:
                raise _refusal(params, name, f"llama.cpp leaves out {name} under mirostat", f"Set it to {off:g}")


def lacks() -> dict[str, str]:
    """The parameters that llama.cpp has no sampler for, and what becomes of each, in words."""
    return {name: f"llama.cpp cannot do this: set it to {off:g}, or no reply begins." for name, off in MISSING.items()}


def notices(params: GenerationParams) -> tuple[str, ...]:
    """What comes out otherwise than with transformers, for people."""
    return (REPLY_PENALTIES,) if params.presence_penalty or params.frequency_penalty else ()


def sampling_fields(params: GenerationParams, context_tokens: int, grammar: str = "") -> dict[str, Any]:
    """The fields of a completion request, which is to follow the GBNF `grammar`. Penalties look at the whole text, DRY
    breaks at the same four characters.
    """
    chain = _chain(params)
    fields: dict[str, Any] = {
        "samplers": chain,
        "temperature": params.temperature,
        "top_k": params.top_k,
        "top_p": params.top_p,
        "min_p": params.min_p,
        "typical_p": params.typical_p,
        "top_n_sigma": params.top_n_sigma or -1,
        "dynatemp_range": params.dynatemp_range,
        "dynatemp_exponent": params.dynatemp_exponent,
        "xtc_probability": params.xtc_probability,
        "xtc_threshold": params.xtc_threshold,
        "repeat_penalty": params.repetition_penalty,
        "repeat_last_n": (params.repetition_penalty_range or context_tokens) if "penalties" in chain else 0,
        "presence_penalty": params.presence_penalty,
        "frequency_penalty": params.frequency_penalty,
        "dry_multiplier": params.dry_multiplier,
        "dry_base": params.dry_base,
        "dry_allowed_length": params.dry_allowed_length,
        "dry_penalty_last_n": context_tokens if "dry" in chain else 0,
        "dry_sequence_breakers": ["\n", ":", '"', "*"],
        "mirostat": 0 if params.greedy else params.mirostat_mode,
        "mirostat_tau": params.mirostat_tau,
        "mirostat_eta": params.mirostat_eta,
        "ignore_eos": params.ban_eos_token,
        "seed": params.seed % SEEDS if params.seed >= 0 else secrets.randbelow(SEEDS),
        "n_probs": params.logprobs,
        "post_sampling_probs": params.sampled_logprobs,
        "grammar": grammar,
        "logit_bias": [[token, bias] for token, bias in params.logit_bias],
    }
    return fields


def _chain(params: GenerationParams) -> list[str]:
    """The samplers that do something, in their order; each costs time a token."""
    chain = []
    if (params.repetition_penalty, params.presence_penalty, params.frequency_penalty) != (1, 0, 0):
        chain.append("penalties")
    if params.dry_multiplier:
        chain.append("dry")
    if params.greedy:
        return [*chain, "temperature"]
    truncations = [
        name
        for name, used in (
            ("top_k", params.top_k > 0), ("top_p", params.top_p < 1), ("min_p", params.min_p > 0),
            ("typ_p", params.typical_p < 1), ("xtc", params.xtc_probability > 0),
        )
        if used
    ]  # fmt: skip
    if params.top_n_sigma:
        chain.append("top_n_sigma")
    return [*chain, *truncations, "temperature"] if params.temperature_last else [*chain, "temperature", *truncations]


def _refusal(params: GenerationParams, name: str, problem: str, remedy: str) -> BadValue:
    return BadValue(
        f"{problem} ({getattr(params, name):g}).",
        remedy=f"{remedy}, or load the file with --loader transformers.",
        param=name,
    )
