"""What a model sees with, from its config: the sizes of its vision tower, and how much of a picture it takes at once.

How many pixels the processor leaves of a picture is preprocessor_config.json's to say; here stands the most that it
can be, for memory. How many tokens one picture takes exactly, only the processor knows (engine/loops/sight.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from modules.errors import BadConfig
from modules.memory.model.config import number

_QWEN = ("qwen2_vl", "qwen2_5_vl")
_TILED = ("idefics3", "smolvlm")
# Idefics3's processor cuts a picture into tiles of the tower's size: its longest side is so many, and one shows all.
_TILES_A_SIDE = 4


@dataclass(frozen=True, slots=True)
class Vision:
    """A vision tower. `patch` and `image` are sides in pixels; `tiles` pictures of `image` by `image` at most are made
    of one, 0 where patches are taken of the picture as large as it is, up to `most_pixels` (0: not said); `merged`
    patches by as many become one token.
    """

    hidden: int
    intermediate: int
    heads: int
    patch: int
    image: int
    tiles: int
    merged: int
    text_hidden: int
    most_pixels: int = 0

    @property
    def channels(self) -> int:
        """Numbers of one pixel; towers for films take every picture twice, as two frames."""
        return 3 if self.tiles else 6

    def patches(self, side: int) -> int:
        """The most patches of one picture with no side longer than `side` pixels."""
        if self.tiles:
            return (self.image // self.patch) ** 2 * self.tiles
        across = -(-side // (self.patch * self.merged)) * self.merged
        most = self.most_pixels // self.patch**2
        return min(across * across, most) if most else across * across

    def tokens(self, side: int) -> int:
        """The most tokens of one picture, marks around it not counted."""
        return self.patches(side) // (self.merged * self.merged)


def read_vision(config: Mapping[str, Any], model_type: str, text_hidden: int) -> Vision:
    """The Vision that config.json describes. Raises BadConfig naming a field that is missing or impossible."""
    tower = config.get("vision_config")
    if not isinstance(tower, Mapping):
        raise BadConfig(
            "config.json has no vision_config, which a model that sees must have.",
            remedy="Fetch it again.", param="vision_config",
        )  # fmt: skip
    qwen = model_type in _QWEN
    # Qwen2-VL calls the tower's own size embed_dim, and the language model's hidden_size (configuration_qwen2_vl.py).
    hidden = number(
        tower, ("embed_dim",) if model_type == "qwen2_vl" else ("hidden_size",), 1, 2**20, default=_usual(model_type)
    )
    wider = number(tower, ("mlp_ratio",), 1, 64, default=4) if model_type == "qwen2_vl" else 4
    merging = "spatial_merge_size" if qwen else "scale_factor"
    return Vision(
        hidden=hidden,
        intermediate=number(tower, ("intermediate_size",), 1, 2**24, default=hidden * wider),
        heads=number(tower, ("num_attention_heads", "num_heads"), 1, 2**16, default=16),
        patch=number(tower, ("patch_size",), 1, 1024, default=14 if qwen else 32),
        image=number(tower, ("image_size",), 1, 2**16, default=224),
        tiles=0 if qwen else _TILES_A_SIDE**2 + 1 if model_type in _TILED else 1,
        merged=1 if model_type == "llava" else number(tower if qwen else config, (merging,), 1, 64, default=2),
        text_hidden=text_hidden,
    )


def with_processor(vision: Vision, said: Mapping[str, Any]) -> Vision:
    """`vision` with what the fields of preprocessor_config.json say of tiles and pixels."""
    size, tile = said.get("size"), said.get("max_image_size")
    longest = size.get("longest_edge") if isinstance(size, Mapping) else None
    if vision.tiles > 1 and isinstance(tile, Mapping):
        side = number(tile, ("longest_edge",), 1, 2**16, default=vision.image)
        across = -(-number({"longest_edge": longest}, ("longest_edge",), 1, 2**16, default=side) // side)
        return replace(vision, image=side, tiles=across * across + 1)
    if not vision.tiles:
        pixels = number({**said, "longest_edge": longest}, ("max_pixels", "longest_edge"), 1, 2**40, default=0)
        return replace(vision, most_pixels=pixels)
    return vision


def _usual(model_type: str) -> int:
    """The tower's size where the config leaves it out (transformers 5.23, configuration_*.py)."""
    return {"qwen2_vl": 1280, "qwen2_5_vl": 3584, "llava": 1024}.get(model_type, 1152)
