"""What a lower precision costs in quality, as a ratio of perplexities, and how sure that is.

Two sources. Measured here: a model of 135 M parameters on tests/data/prose.txt (docs/log.md) loses 2 % in 8 bits, 26 %
in nf4, 50 % in fp4. Published, from 2 to 70 B: LLM.int8() within 0.5 %; blocks of 4 bits, rounded to the nearest,
2.4 to 3.7 % (Llama 2 70B: Q4_1 2.4, Q4_0 3.6; a 2 B model: IQ4_NL 3.7; Llama 2 7B: nf4 3.5). Between 135 M and 2 B a
straight line through both on logarithmic scales. It tells nothing of any one model: hence a range.
"""

from __future__ import annotations

import math

from modules.memory.forecasting.forecast import Quantization, RunSpec

# Perplexity added: at `_SMALL` parameters and fewer, as measured; at `_LARGE` and more, as published.
_SMALL, _LARGE = 135e6, 2e9
_LOSSES: dict[Quantization, tuple[float, float]] = {
    "none": (0.0, 0.0), "int8": (0.02, 0.005), "nf4": (0.26, 0.035), "fp4": (0.5, 0.06),
}  # fmt: skip
_DOUBLE_QUANT_LOSS = (0.01, 0.001)
_NARROWED_LOSS = 0.0005
# Of one size and format, models lose up to this many times more or less.
_SPREAD = 1.7


def expected_quality(run: RunSpec, parameters: int, *, narrowed: bool = False) -> float:
    """The expected perplexity as stored over that of `run`, up to 1; `narrowed`: from 32 bits to 16 as well."""
    loss = _between(*_LOSSES[run.quantization], parameters)
    if run.double_quant and run.quantization != "none":
        loss += _between(*_DOUBLE_QUANT_LOSS, parameters)
    return 1 / (1 + loss + (_NARROWED_LOSS if narrowed else 0.0))


def loss_text(quality: float) -> str:
    """`2 to 6 % of quality`, `under 1 % of quality`; "" where nothing worth telling is lost."""
    loss = 1 / quality - 1
    if loss <= 2 * _NARROWED_LOSS:
        return ""
    low, high = 100 * loss / _SPREAD, 100 * loss * _SPREAD
    return f"{low:.0f} to {high:.0f} % of quality" if high >= 1 else "under 1 % of quality"


def _between(small: float, large: float, parameters: int) -> float:
    """The loss of a model of so many parameters, given those of a small and of a large one."""
    if not small or parameters >= _LARGE:
        return large
    share = math.log(max(parameters, _SMALL) / _SMALL) / math.log(_LARGE / _SMALL)
    return small * math.exp(share * math.log(large / small))
