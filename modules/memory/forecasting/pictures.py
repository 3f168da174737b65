"""What looking at one picture takes: the vision tower's activations, as a formula. tests/test_vision_memory.py holds it
against what real towers allocate.
"""

from __future__ import annotations

from modules.memory.forecasting.budget import Figure
from modules.memory.forecasting.forecast import RunSpec, element_bytes
from modules.memory.model.vision import Vision

_ROTARY_BYTES = 36  # a patch and number of its width: states, q, k and v, both rotated and half rotated in fp32
_PIXEL_COPIES = 3  # as the processor made them, on the device, in the tower's precision


def picture_figure(vision: Vision, run: RunSpec) -> Figure:
    """Most bytes alive beyond the weights while a picture as large as may be is encoded, its vectors included.

    P patches of all its tiles at once: P·e·(5h + 3I) for the widest layer, or P·36·h where positions are rotated into
    queries and keys, which is done in fp32; P·patch²·3·4 for each copy of the pixels, h·patch²·3·e for the first
    layer's weights as oneDNN wants them, tokens·e·2·h_text for what the projector makes. Eager attention holds all
    scores besides: heads·tiles·n²·10.
    """
    width, side = element_bytes(run.dtype), run.picture_side
    patches, tokens = vision.patches(side) + (vision.tiles == 1), vision.tokens(side)  # one more stands for the whole
    layer = width * (5 * vision.hidden + 3 * vision.intermediate)
    rotary = 0 if vision.tiles else _ROTARY_BYTES * vision.hidden
    tower = patches * max(layer, rotary)
    pixels = patches * vision.patch**2 * vision.channels * 4 * _PIXEL_COPIES
    first = vision.hidden * vision.patch**2 * vision.channels * width
    made = tokens * width * 2 * vision.text_hidden
    scores = 0
    if run.attention == "eager":
        tiles = max(1, vision.tiles)
        scores = vision.heads * tiles * (patches // tiles) ** 2 * 10
    each = f"{width} B · (5 · {vision.hidden:,} + 3 · {vision.intermediate:,})"
    if rotary > layer:
        each = f"{_ROTARY_BYTES} B · {vision.hidden:,}"
    text = (
        f"{patches:,} patches · ({each} + pixels "
        f"{pixels // max(1, patches):,} B) + {tokens:,} tokens · {width} B · 2 · {vision.text_hidden:,} "
        f"+ first layer {first:,} B"
    )
    if scores:
        text += f" + scores {scores:,} B"
    return Figure(tower + pixels + first + made + scores, "formula", text)
