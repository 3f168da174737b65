"""The processor of a model that sees: its image processor (Pillow's, without torchvision) and how it writes pictures.

Videos are not read, so processors that insist on a video processor get none. What is done with it: loops/sight.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from transformers import (
    AutoImageProcessor,
    Idefics3Processor,
    LlavaProcessor,
    Qwen2_5_VLProcessor,
    Qwen2VLProcessor,
)

from modules.confined import confined_to
from modules.engine.loading.loading_errors import named_processor_failures
from modules.engine.loading.pretrained import source_folder
from modules.errors import BadConfig, UnsupportedModel
from modules.memory.model.config import read_json, refuse_other_processors
from modules.memory.model.links import followed_files
from modules.memory.planning.planner import Plan


class _WithoutVideo:
    """Mixed into a processor class: where a video processor is wanted, none will do."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        """As the library's, but None passes as a video processor."""
        if argument_name == "video_processor" and argument is None:
            return None
        return super().check_argument_for_proper_class(argument_name, argument)  # type: ignore[misc]


class _Qwen2VL(_WithoutVideo, Qwen2VLProcessor):
    """Qwen2-VL's, for pictures alone."""


class _Qwen25VL(_WithoutVideo, Qwen2_5_VLProcessor):
    """Qwen2.5-VL's, for pictures alone."""


# SmolVLM writes pictures as Idefics3 does; its own class needs packages for the timestamps of videos.
PROCESSORS: dict[str, Any] = {
    "idefics3": Idefics3Processor,
    "smolvlm": Idefics3Processor,
    "llava": LlavaProcessor,
    "qwen2_vl": _Qwen2VL,
    "qwen2_5_vl": _Qwen25VL,
}
_SETTINGS = "processor_config.json"
# The most that settings may ask for, whatever the picture: the plan knows its size, not what it is blown up to. Of a
# picture a hundred times as wide as high, the shorter side scaled to 1,024 makes 100 million pixels.
_MOST_SIDE, _MOST_SHORTER_SIDE, _MOST_FEWEST_PIXELS, _MOST_FRAMES, _MOST_TOKENS = 2048, 1024, 2048**2, 16, 65_536
_SIZES = ("size", "crop_size", "pad_size")
_NAMES_CLASSES = ("preprocessor_config.json", _SETTINGS, "config.json")


def load_processor(plan: Plan, tokenizer: Any) -> Any:
    """The processor of the model of `plan`, around its `tokenizer`.

    Raises BadConfig naming what is missing, UnsupportedModel for a class that is no processor's, and for ears.
    """
    folder = source_folder(plan)
    _refuse_ears(folder)
    for file in (folder / name for name in _NAMES_CLASSES):
        if file.exists():
            refuse_other_processors(read_json(file), plan.spec.name)
    with named_processor_failures(plan):
        read = partial(_processor, PROCESSORS[plan.spec.model_type], str(folder), tokenizer)
        processor = confined_to((folder, *followed_files(folder)), read)
    tiled = plan.spec.vision is not None and plan.spec.vision.tiles > 1  # whose sizes the plan counts
    _refuse_blown_up(processor, {} if tiled else dict(_sizes(processor.image_processor)), plan)
    return processor


def _refuse_blown_up(processor: Any, sizes: Mapping[str, float], plan: Plan) -> None:
    """Raise BadConfig where a small picture would become a large one, or more tokens than any picture has: each picture
    of whoever chats would take memory that nothing was planned for."""
    pixels = plan.spec.vision is not None and not plan.spec.vision.tiles  # of Qwen's kind, sizes are areas
    fewest = max(_MOST_FEWEST_PIXELS, plan.run.picture_side**2)
    images = processor.image_processor
    asked = {
        "temporal_patch_size": (getattr(images, "temporal_patch_size", 0), _MOST_FRAMES),
        "num_additional_image_tokens": (getattr(processor, "num_additional_image_tokens", 0), _MOST_TOKENS),
        "image_seq_len": (getattr(processor, "image_seq_len", 0), _MOST_TOKENS),
    }
    for name, value in sizes.items():
        most = _MOST_SHORTER_SIDE if name.endswith("shortest_edge") else _MOST_SIDE
        if not (pixels and name.endswith("longest_edge")):  # larger pictures are not made larger
            asked[name] = (value, fewest if pixels else most)
    for name, (value, most) in asked.items():
        if isinstance(value, (int, float)) and value > most:
            raise BadConfig(
                f"How {plan.spec.name} reads pictures cannot be right: {name} is {value:,}, of at most {most:,}.",
                remedy="Fetch the model again, or another copy of it.",
            )


def _sizes(images: Any) -> Iterator[tuple[str, float]]:
    """Every number in the sizes of an image processor: `size.shortest_edge`."""
    for field in _SIZES:
        size = getattr(images, field, None) or {}
        for name in ("height", "width", "shortest_edge", "longest_edge", "max_height", "max_width"):
            value = size.get(name) if isinstance(size, Mapping) else getattr(size, name, None)
            if isinstance(value, (int, float)):
                yield f"{field}.{name}", value


def _processor(kind: Any, folder: str, tokenizer: Any) -> Any:
    images = AutoImageProcessor.from_pretrained(folder, backend="pil", local_files_only=True, trust_remote_code=False)
    settings, _ = kind.get_processor_dict(folder, local_files_only=True)
    parts = {"image_processor": images, "tokenizer": tokenizer, "video_processor": None}
    return kind.from_args_and_dict([parts[name] for name in kind.get_attributes()], settings)


def _refuse_ears(folder: Path) -> None:
    """Raise UnsupportedModel where a model for sounds is named: transformers would load it from wherever it is said to
    lie, unplanned, unchecked and from pickles too. No model of PROCESSORS has one.
    """
    settings = read_json(folder / _SETTINGS) if (folder / _SETTINGS).exists() else {}
    if "audio_tokenizer" in settings or (folder / "audio_tokenizer_config.json").exists():
        raise UnsupportedModel(
            f"{folder.name} names another model, for sounds (audio_tokenizer), which Snug does not load.",
            remedy="Fetch the model again, or another copy of it.",
        )
