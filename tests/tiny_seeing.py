"""Tiny random models that see, as folders that look like downloaded ones: `tiny_seeing("llava", folder)`.

fp32 safetensors, the byte-level tokenizer with the family's marks of pictures, the image processor that Snug uses
(Pillow's), and a chat template of content parts. The text they write means nothing, but it depends on the pictures.
"""

from __future__ import annotations

import io
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image, ImageDraw
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from modules.messages import Picture
from tests.tiny_models import BYTE_VOCAB, EOS_ID, PAD_ID, byte_tokenizer

FAMILIES = ("idefics3", "smolvlm", "llava", "qwen2_vl", "qwen2_5_vl")
_TILED_MARKS = ("<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>",
                *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)))  # fmt: skip
_QWEN_MARKS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
_MARKS = {"llava": ("<image>",), "idefics3": _TILED_MARKS, "smolvlm": _TILED_MARKS, "qwen2_vl": _QWEN_MARKS,
          "qwen2_5_vl": _QWEN_MARKS}  # fmt: skip
_PLACE = {"qwen2_vl": "<|vision_start|><|image_pad|><|vision_end|>"}
_PLACE["qwen2_5_vl"] = _PLACE["qwen2_vl"]
_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}PLACE{% elif part['type'] == 'text' %}"
    "{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_TEXT: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 2048, "tie_word_embeddings": False,
    "bos_token_id": 256, "eos_token_id": EOS_ID, "pad_token_id": PAD_ID,
}  # fmt: skip
_TOWER: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 56,
    "patch_size": 14,
}  # fmt: skip
_MROPE = {"rope_type": "default", "type": "mrope", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}


def tiny_seeing(family: str, folder: Path) -> Path:
    """The folder `folder`/`family` holding a model of one of FAMILIES, made at the first call."""
    target = folder / family
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(dir=folder, prefix=".building-"))
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": list(_MARKS[family])})
    tokenizer.chat_template = _TEMPLATE.replace("PLACE", place_of(family))
    tokenizer.save_pretrained(building)
    _image_processor(family).save_pretrained(building)
    (building / "processor_config.json").write_text(json.dumps(_processor_settings(family)))
    model = _model(family, tokenizer)
    model.save_pretrained(building)
    try:
        building.rename(target)
    except OSError:  # another worker was first
        shutil.rmtree(building)
    return target


def place_of(family: str) -> str:
    """How the template of a family writes the place of a picture."""
    return _PLACE.get(family, "<image>")


def picture(seed: int, width: int = 90, height: int = 60, media_type: str = "image/png") -> Picture:
    """A picture of a few coloured shapes, another one for each `seed`."""
    image = Image.new("RGB", (width, height), (40 * seed % 256, 90, 200 - 30 * seed % 200))
    draw = ImageDraw.Draw(image)
    draw.ellipse((5 * seed % width, 8, width // 2, height - 4), fill=(250, 30 * seed % 256, 20))
    draw.line((0, height, width, seed * 7 % height), fill=(255, 255, 255), width=3)
    file = io.BytesIO()
    image.save(file, media_type.removeprefix("image/"))
    return Picture(width, height, media_type, file.getvalue())  # type: ignore[arg-type]


def tiny_seeing_config(family: str) -> Any:
    """The config of a tiny model of one of FAMILIES."""
    marks = dict(zip(_MARKS[family], range(BYTE_VOCAB, BYTE_VOCAB + 100), strict=False))
    vocab = BYTE_VOCAB + len(_MARKS[family])
    kind: Any
    if family == "llava":
        return transformers.LlavaConfig(
            vision_config=transformers.CLIPVisionConfig(**_TOWER),
            text_config=transformers.LlamaConfig(vocab_size=vocab, **_TEXT),
            image_token_index=marks["<image>"], vision_feature_layer=-2, vision_feature_select_strategy="default",
            image_seq_length=16,
        )  # fmt: skip
    if family in ("idefics3", "smolvlm"):
        kind = transformers.Idefics3Config if family == "idefics3" else transformers.SmolVLMConfig
        return kind(
            vision_config=_TOWER, text_config={"model_type": "llama", "vocab_size": vocab, **_TEXT},
            image_token_id=marks["<image>"], scale_factor=2, tie_word_embeddings=False,
            pad_token_id=PAD_ID,
        )  # fmt: skip
    kind = transformers.Qwen2VLConfig if family == "qwen2_vl" else transformers.Qwen2_5_VLConfig
    tower: dict[str, Any] = {
        "depth": 2,
        "num_heads": 4,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    if family == "qwen2_vl":
        tower |= {"embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2}
    else:
        tower |= {"hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 64, "window_size": 56,
                  "fullatt_block_indexes": [1]}  # fmt: skip
    text = {"vocab_size": vocab, **_TEXT, "rope_parameters": dict(_MROPE)}
    return kind(
        vision_config=tower, text_config=text, tie_word_embeddings=False,
        image_token_id=marks["<|image_pad|>"], video_token_id=marks["<|video_pad|>"],
        vision_start_token_id=marks["<|vision_start|>"], vision_end_token_id=marks["<|vision_end|>"],
    )  # fmt: skip


def _model(family: str, tokenizer: Any) -> Any:
    config = tiny_seeing_config(family)
    torch.manual_seed(0)
    auto: Any = transformers.AutoModelForImageTextToText
    model = auto.from_config(config, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(sum(family.encode()))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                small = "patch_embed" in name or "position" in name
                weight.normal_(0, 0.05 if small else 0.2, generator=generator)
        for table in (model.get_input_embeddings(), model.get_output_embeddings()):
            table.weight[256:] = 0
    model.generation_config.eos_token_id = EOS_ID
    model.generation_config.pad_token_id = PAD_ID
    return model


def _image_processor(family: str) -> Any:
    if family == "llava":
        return CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    if family in ("idefics3", "smolvlm"):
        kind = Idefics3ImageProcessorPil if family == "idefics3" else SmolVLMImageProcessorPil
        return kind(size={"longest_edge": 112}, max_image_size={"longest_edge": 56})
    return Qwen2VLImageProcessorPil(size={"shortest_edge": 56 * 56, "longest_edge": 112 * 112})


def _processor_settings(family: str) -> dict[str, Any]:
    if family == "llava":
        return {"processor_class": "LlavaProcessor", "patch_size": 14, "vision_feature_select_strategy": "default",
                "num_additional_image_tokens": 1, "image_token": "<image>"}  # fmt: skip
    if family in ("idefics3", "smolvlm"):
        return {"processor_class": "Idefics3Processor", "image_seq_len": 4}
    return {"processor_class": "Qwen2VLProcessor"}
