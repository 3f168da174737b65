"""How the next token is chosen: every parameter declared once.

Sliders, presets, API fields, their ranges and their documentation derive from GenerationParams.
engine/loops/sampler.py turns it into logits processors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from modules.errors import BadValue
from modules.few import FIRST_FAULT

Group = Literal["common", "truncation", "heat", "repetition", "mirostat", "other"]
GROUP_TITLES: dict[Group, str] = {
    "common": "The usual ones",
    "truncation": "Cut off unlikely words",
    "heat": "Shape the temperature",
    "repetition": "Avoid repetition",
    "mirostat": "Mirostat",
    "other": "Seed and ending",
}
MAX_STOP_STRINGS = 64
MAX_STOP_TOKENS = 256
UNSAVED = frozenset({"grammar", "json_schema", "logit_bias", "min_tokens", "sampled_logprobs", "stop_token_ids"})
"""Parameters of one request's own: no slider shows them and no preset keeps them."""
StopString = Annotated[str, Field(min_length=1, max_length=500)]
StopToken = Annotated[int, Field(ge=0, lt=2**31)]


@dataclass(frozen=True, slots=True)
class Control:
    """How the page shows one parameter: its `label`, `group`, slider `step` and the slider's own, narrower range."""

    label: str
    group: Group
    step: float = 0.01
    minimum: float | None = None
    maximum: float | None = None


class GenerationParams(BaseModel):
    """The sampling parameters of one request. Frozen; unknown fields are refused; ranges are checked by name, and
    no text, truth value or fraction passes for a number that it is not.

    With `temperature=0` decoding is greedy. A value of 0 (or 1 for `top_p`, `typical_p`, `repetition_penalty`)
    switches a sampler off. Order: penalties, no-repeat n-grams, DRY, top-n-sigma, temperature (dynamic or not),
    smoothing, top-k, top-p, min-p, typical, tail-free, top-a, epsilon, eta, XTC (`temperature_last` moves temperature
    and smoothing to the end); mirostat replaces every truncation.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    max_new_tokens: Annotated[int, Control("Longest reply (tokens)", "common", 1, 16, 4096)] = Field(
        default=512, ge=1, le=1_000_000, description="The reply ends after this many tokens at the latest."
    )
    temperature: Annotated[float, Control("Temperature", "common", 0.01, 0, 2)] = Field(
        default=0.7, ge=0, le=100, description="Higher is more surprising. 0 always takes the likeliest token."
    )
    top_p: Annotated[float, Control("Top P", "common", minimum=0.01)] = Field(
        default=0.9, gt=0, le=1, description="Keep the likeliest tokens that together reach this probability. 1 is off."
    )
    top_k: Annotated[int, Control("Top K", "common", 1, 0, 200)] = Field(
        default=0, ge=0, le=1_000_000, description="Keep this many likeliest tokens. 0 is off."
    )
    min_p: Annotated[float, Control("Min P", "common")] = Field(
        default=0.0, ge=0, le=1, description="Drop tokens less likely than this share of the likeliest one. 0 is off."
    )
    typical_p: Annotated[float, Control("Typical P", "truncation", minimum=0.01)] = Field(
        default=1.0, gt=0, le=1, description="Keep tokens about as surprising as the text usually is here. 1 is off."
    )
    top_n_sigma: Annotated[float, Control("Top N sigma", "truncation", 0.01, 0, 5)] = Field(
        default=0.0,
        ge=0,
        le=100,
        description="Keep tokens whose score is this close to the best, in standard deviations. 1 is usual, 0 is off.",
    )
    tfs: Annotated[float, Control("Tail-free sampling", "truncation", minimum=0.01)] = Field(
        default=1.0, gt=0, le=1, description="Cut where the probabilities level off into a long tail. 1 is off."
    )
    top_a: Annotated[float, Control("Top A", "truncation")] = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Drop tokens less likely than this times the square of the likeliest one's probability. 0 is off.",
    )
    epsilon_cutoff: Annotated[float, Control("Epsilon cutoff", "truncation", 0.0001, 0, 0.01)] = Field(
        default=0.0, ge=0, lt=1, description="Drop tokens less likely than this probability. 0 is off."
    )
    eta_cutoff: Annotated[float, Control("Eta cutoff", "truncation", 0.0001, 0, 0.01)] = Field(
        default=0.0, ge=0, lt=1, description="As epsilon, but milder where many tokens are plausible. 0 is off."
    )
    xtc_threshold: Annotated[float, Control("XTC threshold", "truncation", 0.01, 0, 0.5)] = Field(
        default=0.1, ge=0, le=1, description="XTC drops all but the least likely of the tokens above this probability."
    )
    xtc_probability: Annotated[float, Control("XTC probability", "truncation")] = Field(
        default=0.0, ge=0, le=1, description="How often XTC strikes, for less obvious words. 0 is off."
    )
    dynatemp_range: Annotated[float, Control("Temperature range", "heat", 0.01, 0, 2)] = Field(
        default=0.0,
        ge=0,
        le=100,
        description="The temperature moves by up to this: down where the model is sure, up where it is not. 0 is off.",
    )
    dynatemp_exponent: Annotated[float, Control("Temperature range curve", "heat", 0.01, 0.1, 5)] = Field(
        default=1.0, gt=0, le=100, description="Above 1, the temperature stays low until the model is quite unsure."
    )
    smoothing_factor: Annotated[float, Control("Smoothing", "heat", 0.01, 0, 10)] = Field(
        default=0.0,
        ge=0,
        le=100,
        description="Evens out the best tokens and sinks the rest. Also called quadratic. 0 is off.",
    )
    smoothing_curve: Annotated[float, Control("Smoothing curve", "heat", 0.01, 1, 10)] = Field(
        default=1.0, ge=1, le=100, description="With smoothing: above 1, unlikely tokens sink faster."
    )
    temperature_last: Annotated[bool, Control("Temperature last", "heat")] = Field(
        default=False, description="Apply the temperature after the truncations instead of before them."
    )
    repetition_penalty: Annotated[float, Control("Repetition penalty", "common", 0.01, 1, 2)] = Field(
        default=1.0, gt=0, le=10, description="Above 1, tokens that already occurred become less likely. 1 is off."
    )
    repetition_penalty_range: Annotated[int, Control("Penalty range (tokens)", "repetition", 64, 0, 4096)] = Field(
        default=0,
        ge=0,
        le=1_000_000,
        description="Repetition, presence and frequency penalty look at this many last tokens. 0 is all of them.",
    )
    presence_penalty: Annotated[float, Control("Presence penalty", "repetition", 0.01, -2, 2)] = Field(
        default=0.0, ge=-10, le=10, description="Above 0, tokens that the reply already holds become less likely."
    )
    frequency_penalty: Annotated[float, Control("Frequency penalty", "repetition", 0.01, -2, 2)] = Field(
        default=0.0, ge=-10, le=10, description="The same, the more so the more often the reply holds the token."
    )
    encoder_repetition_penalty: Annotated[float, Control("Stay with the prompt", "repetition", 0.01, 0.8, 1.5)] = Field(
        default=1.0, gt=0, le=10, description="Above 1, tokens that the prompt holds become likelier. 1 is off."
    )
    no_repeat_ngram_size: Annotated[int, Control("No repeated n-grams of size", "repetition", 1, 0, 20)] = Field(
        default=0, ge=0, le=1000, description="No run of this many tokens occurs twice. 0 is off."
    )
    dry_multiplier: Annotated[float, Control("DRY strength", "repetition", 0.01, 0, 5)] = Field(
        default=0.0,
        ge=0,
        le=100,
        description="Strength of the penalty on going on with a repetition. 0.8 is usual, 0 is off.",
    )
    dry_base: Annotated[float, Control("DRY base", "repetition", 0.01, 1, 4)] = Field(
        default=1.75, ge=1, le=100, description="How fast the DRY penalty grows with the length of the repeated run."
    )
    dry_allowed_length: Annotated[int, Control("DRY allowed length", "repetition", 1, 1, 20)] = Field(
        default=2, ge=1, le=1000, description="Repeated runs up to this many tokens stay free."
    )
    mirostat_mode: Annotated[Literal[0, 2], Control("Mirostat mode", "mirostat", 2, 0, 2)] = Field(
        default=0,
        description="Mode 2 holds the text's surprise near a target, in place of every truncation. 0 is off.",
    )
    mirostat_tau: Annotated[float, Control("Mirostat tau", "mirostat", 0.01, 0, 10)] = Field(
        default=5.0, ge=0, le=100, description="The target surprise, in bits a token."
    )
    mirostat_eta: Annotated[float, Control("Mirostat eta", "mirostat")] = Field(
        default=0.1, ge=0, le=1, description="How fast mirostat corrects itself."
    )
    seed: Annotated[int, Control("Seed", "other", 1, -1, 2**31 - 1)] = Field(
        default=-1, ge=-1, le=2**63 - 1, description="The same seed gives the same reply. -1 draws a new one each time."
    )
    ban_eos_token: Annotated[bool, Control("Never end by itself", "other")] = Field(
        default=False,
        description="Forbid the end token: the reply ends at its length limit or a stop string.",
    )
    stop: Annotated[tuple[StopString, ...], FIRST_FAULT] = Field(
        default=(), max_length=MAX_STOP_STRINGS, strict=False, description="The reply ends before any of these strings."
    )
    stop_token_ids: Annotated[tuple[StopToken, ...], FIRST_FAULT] = Field(
        default=(), max_length=MAX_STOP_TOKENS, strict=False, description="The reply ends before any of these tokens."
    )
    min_tokens: int = Field(
        default=0, ge=0, le=1_000_000, description="No token ends the reply before it has this many. 0 is off."
    )
    logprobs: int = Field(
        default=0, ge=0, le=100, description="Report the log-probabilities of each token and of this many alternatives."
    )

    sampled_logprobs: bool = Field(
        default=False,
        description="Report log-probabilities as the samplers leave them, not as the model has them.",
    )
    grammar: str = Field(default="", max_length=65_536, description="A GBNF grammar that the reply follows.")
    json_schema: str = Field(
        default="", max_length=65_536, description="A JSON schema, as JSON, that the reply follows."
    )

    logit_bias: tuple[tuple[int, float], ...] = Field(
        default=(), max_length=1024, description="Token ids, each with what is added to its score."
    )

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if self.grammar and self.json_schema:
            raise BadValue(
                "A reply can follow a grammar or a JSON schema, not both.",
                remedy="Leave out grammar or response_format.",
                param="grammar",
            )
        return self

    @property
    def greedy(self) -> bool:
        """True where no random draw is made."""
        return self.temperature == 0


def control_of(name: str) -> Control | None:
    """How the page shows the parameter `name`; None for those without a slider (`stop`, `logprobs`, UNSAVED)."""
    found = [item for item in GenerationParams.model_fields[name].metadata if isinstance(item, Control)]
    return found[0] if found else None


def controls() -> dict[Group, dict[str, Control]]:
    """Every parameter that the page shows, by group, in the order of declaration."""
    grouped: dict[Group, dict[str, Control]] = {group: {} for group in get_args(Group)}
    for name in GenerationParams.model_fields:
        if control := control_of(name):
            grouped[control.group][name] = control
    return grouped
