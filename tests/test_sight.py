"""Models that see, in the serial loop: the tokens of transformers' own `generate` with its processor, in fp32."""

from __future__ import annotations

import io
import json
import queue
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from modules.engine.base import Delta, Event, Finished, GenerationRequest, TextPiece
from modules.engine.loading.eyes import load_processor
from modules.engine.loading.huggingface import load, load_tokenizer
from modules.engine.loops.rows import CausalRow
from modules.engine.loops.serial import SerialEngine
from modules.engine.loops.sight import Eyes
from modules.errors import BadConfig, BadValue, NotAvailableHere, UnsupportedModel
from modules.memory.forecasting.forecast import RunSpec
from modules.memory.model import meta
from modules.memory.model.spec import inspect
from modules.memory.planning.planner import Plan
from modules.messages import Picture
from modules.sampling import GenerationParams
from tests.loading_rig import plan_of
from tests.tiny_models import tiny_model
from tests.tiny_seeing import FAMILIES, picture, place_of, tiny_seeing

NEW_TOKENS = 24
TIMEOUT_S = 120.0
FIRST, SECOND = picture(1), picture(2, 60, 100)


@pytest.fixture(scope="module", params=FAMILIES)
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SerialEngine]:
    folder = tmp_path_factory.getbasetemp().parent / "tiny seeing"
    made = _engine(tiny_seeing(request.param, folder), family=request.param)
    yield made
    made.close()


def _engine(folder: Path, *, chunk: int = 7, side: int = 1536, family: str = "") -> SerialEngine:
    """Prompts are read in stretches that end in the middle of pictures."""
    spec = inspect(folder, describe=meta.describe)
    run = RunSpec("float32", context_tokens=1024, prefill_chunk=chunk, picture_side=side)
    engine = load(Plan(spec, run, "transformers", {"": "cpu"}), lambda _: None)
    assert isinstance(engine, SerialEngine)
    assert not family or engine.info.sees
    return engine


def pieces(engine: SerialEngine, *parts: str | Picture) -> list[TextPiece]:
    """A prompt as the tiny template writes it: texts are content."""
    mark, found = engine.info.image_token, [TextPiece("<|im_start|>user\n", template=True)]
    for part in parts:
        if isinstance(part, str):
            found.append(TextPiece(part))
            continue
        before, after = place_of(engine.loaded.plan.spec.model_type).split(mark)
        place = TextPiece(mark, template=True, picture=(part.width, part.height))
        found += TextPiece(before, template=True), place, TextPiece(after, template=True)
    return [*found, TextPiece("<|im_end|>\n<|im_start|>assistant\n", template=True)]


def generate(engine: SerialEngine, ids: Sequence[int], pictures: Sequence[Picture]) -> tuple[list[int], Finished]:
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    params = GenerationParams(temperature=0, max_new_tokens=NEW_TOKENS)
    engine.submit(GenerationRequest(uuid.uuid4().hex, "user", tuple(ids), params, pictures=tuple(pictures)), events.put)
    tokens: list[int] = []
    while True:
        event = events.get(timeout=TIMEOUT_S)
        if isinstance(event, Delta):
            tokens += event.token_ids
        if isinstance(event, Finished):
            assert event.error is None, event.error
            return tokens, event


@cache
def as_transformers_loads_it(folder: Path) -> Any:
    """The same model without anything of Snug's."""
    auto: Any = AutoModelForImageTextToText
    return auto.from_pretrained(folder, dtype=torch.float32).eval()


def theirs(engine: SerialEngine, text: str, pictures: Sequence[Picture]) -> tuple[list[int], list[int]]:
    """Prompt and greedy tokens of transformers' processor and `generate`."""
    eyes, model = engine.loaded.eyes, as_transformers_loads_it(engine.loaded.plan.spec.path)
    assert eyes is not None
    images = [Image.open(io.BytesIO(one.data)).convert("RGB") for one in pictures]
    inputs: Any = eyes._processor(images=images, text=text, return_tensors="pt")
    prompt = inputs["input_ids"][0].tolist()
    with torch.no_grad():
        made = model.generate(**inputs, do_sample=False, max_new_tokens=NEW_TOKENS)
    return prompt, made[0, len(prompt) :].tolist()


def test_prompts_and_greedy_tokens_are_those_of_the_processor_and_generate(engine: SerialEngine) -> None:
    place = place_of(engine.loaded.plan.spec.model_type)
    text = f"<|im_start|>user\n{place}What is it?{place} And this?<|im_end|>\n<|im_start|>assistant\n"
    prompt, wanted = theirs(engine, text, [FIRST, SECOND])
    ids = engine.encode(pieces(engine, FIRST, "What is it?", SECOND, " And this?"))
    assert ids == prompt
    tokens, end = generate(engine, ids, [FIRST, SECOND])
    assert tokens == wanted[: len(tokens)]
    assert len(tokens) >= NEW_TOKENS - 1  # of the last one nothing need be shown
    assert end.usage.prompt_tokens == len(prompt)


def test_another_picture_of_the_same_size_is_another_prompt_and_the_same_one_is_not_read_again(
    engine: SerialEngine,
) -> None:
    other = picture(9)
    ids = engine.encode(pieces(engine, FIRST, "Describe it."))
    seen, _ = generate(engine, ids, [FIRST])
    again, cached = generate(engine, ids, [FIRST])
    assert again == seen
    assert cached.usage.cached_tokens == len(ids) - 1
    different, fresh = generate(engine, ids, [other])
    assert different != seen
    assert fresh.usage.cached_tokens < ids.index(_image_id(engine)) + 1
    back, _ = generate(engine, ids, [FIRST])
    assert back == seen


def test_the_next_turn_goes_on_behind_the_picture_without_looking_at_it_again(
    engine: SerialEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = engine.encode(pieces(engine, SECOND, "What is it?"))
    generate(engine, first, [SECOND])
    turn = [*pieces(engine, SECOND, "What is it?"), TextPiece("A thing"), TextPiece("<|im_end|>\n", template=True)]
    text, both = engine.encode([*turn, *pieces(engine, FIRST, "And that?")]), [SECOND, FIRST]
    looked: list[tuple[int, int]] = []
    real = Eyes._processed
    monkeypatch.setattr(Eyes, "_processed", lambda self, image: looked.append(image.size) or real(self, image))  # type: ignore[func-returns-value]
    tokens, end = generate(engine, text, both)
    assert looked == [(FIRST.width, FIRST.height)]
    assert end.usage.cached_tokens >= len(first)
    engine._shelf.shrink(0)
    assert generate(engine, text, both)[0] == tokens


def test_what_users_type_is_no_picture(engine: SerialEngine) -> None:
    typed = "<image> <|image_pad|> <|vision_start|> <fake_token_around_image> " + engine.info.image_token
    without = engine.encode(pieces(engine, typed))
    assert _image_id(engine) not in without
    with_one = engine.encode(pieces(engine, FIRST, typed))
    alone = engine.encode(pieces(engine, FIRST))
    assert with_one.count(_image_id(engine)) == alone.count(_image_id(engine))
    generate(engine, without, [])


def test_a_chat_without_pictures_is_that_of_generate(engine: SerialEngine) -> None:
    ids = engine.encode(pieces(engine, "Hello there."))
    model = as_transformers_loads_it(engine.loaded.plan.spec.path)
    with torch.no_grad():
        made = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=NEW_TOKENS)
    tokens, _ = generate(engine, ids, [])
    assert tokens == made[0, len(ids) : len(ids) + len(tokens)].tolist()


def test_pictures_and_their_places_must_agree(engine: SerialEngine) -> None:
    ids = engine.encode(pieces(engine, FIRST, "What is it?"))
    with pytest.raises(BadValue, match="room for"):
        generate(engine, ids, [FIRST, SECOND])
    with pytest.raises(BadValue, match="room for 0 tokens"):
        generate(engine, engine.encode(pieces(engine, "What is it?")), [FIRST])


@pytest.mark.parametrize("family", ["smolvlm", "qwen2_5_vl"])
def test_in_16_8_and_4_bits_pictures_are_seen_too(family: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tiny_seeing(family, tmp_path_factory.getbasetemp().parent / "tiny seeing")
    for run in (RunSpec("bfloat16"), RunSpec("bfloat16", "int8"), RunSpec("bfloat16", "nf4")):
        planned = replace(run, context_tokens=512, prefill_chunk=64)
        plan = Plan(inspect(folder, describe=meta.describe), planned, "transformers", {"": "cpu"})
        engine = load(plan, lambda _: None)
        assert isinstance(engine, SerialEngine)
        try:
            tokens, _ = generate(engine, engine.encode(pieces(engine, FIRST, "What is it?")), [FIRST])
            assert tokens
        finally:
            engine.close()


def test_a_picture_larger_than_planned_for_is_scaled_down_before_it_is_looked_at(tmp_path: Path) -> None:
    engine = _engine(tiny_seeing("qwen2_vl", tmp_path), side=64, chunk=512)
    try:
        large, wide = picture(3, 640, 320), picture(3, 64, 32)
        as_large = engine.encode(pieces(engine, large)).count(_image_id(engine))
        assert as_large == engine.encode(pieces(engine, wide)).count(_image_id(engine))
        generate(engine, engine.encode(pieces(engine, large, "What is it?")), [large])
    finally:
        engine.close()


def test_a_model_that_reads_text_refuses_pictures_and_says_which_do_not(tmp_path: Path) -> None:
    engine = load(
        Plan(
            inspect(tiny_model("llama", tmp_path)), RunSpec("float32", context_tokens=256), "transformers", {"": "cpu"}
        ),
        lambda _: None,
    )
    try:
        assert not engine.info.sees
        request = GenerationRequest("1", "user", (1, 2), GenerationParams(), pictures=(FIRST,))
        with pytest.raises(NotAvailableHere, match="cannot see") as refused:
            engine.submit(request, lambda _: None)
        assert "Qwen2.5-VL" in refused.value.remedy
    finally:
        engine.close()


def test_rows_that_wait_for_their_next_turn_hold_no_pictures(engine: SerialEngine) -> None:
    generate(engine, engine.encode(pieces(engine, FIRST, "What is it?")), [FIRST])
    rows: list[CausalRow] = engine._shelf._rows
    assert rows
    assert all(getattr(row, "seen", None) is None for row in rows)


@pytest.mark.parametrize("file", ["preprocessor_config.json", "processor_config.json", "config.json"])
@pytest.mark.parametrize("name", ["AutoModelForImageTextToText", "BertTokenizer", "AutoImageProcessor"])
def test_pictures_are_read_by_no_class_that_is_a_models(file: str, name: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text(json.dumps({"image_processor": {"image_processor_type": name}}))
    plan: Any = SimpleNamespace(spec=SimpleNamespace(model_type="llava", source="safetensors", path=tmp_path, name="m"))
    with pytest.raises(UnsupportedModel, match=f"pictures read by '{name}'"):
        load_processor(plan, None)


BLOWN_UP = [
    ("llava", "preprocessor_config.json", {"size": {"shortest_edge": 16_000}}, "size.shortest_edge is 16,000"),
    ("llava", "preprocessor_config.json", {"crop_size": {"height": 16_000, "width": 9}}, "crop_size.height"),
    ("llava", "processor_config.json", {"num_additional_image_tokens": 10**9}, "num_additional_image_tokens"),
    ("idefics3", "processor_config.json", {"image_seq_len": 10**9}, "image_seq_len is 1,000,000,000"),
    ("qwen2_vl", "preprocessor_config.json", {"min_pixels": 10**8, "max_pixels": 10**9}, "size.shortest_edge"),
    ("qwen2_vl", "preprocessor_config.json", {"temporal_patch_size": 10**5}, "temporal_patch_size is 100,000"),
]


@pytest.mark.parametrize(("family", "file", "changes", "why"), BLOWN_UP)
def test_settings_that_blow_small_pictures_up_are_refused(
    family: str, file: str, changes: dict[str, Any], why: str, tmp_path: Path
) -> None:
    folder = tiny_seeing(family, tmp_path)
    settings = json.loads((folder / file).read_text())
    if "min_pixels" in changes:
        settings.pop("size", None)
    (folder / file).write_text(json.dumps({**settings, **changes}))
    plan = plan_of(folder)
    with pytest.raises(BadConfig, match=why):
        load_processor(plan, load_tokenizer(plan))


def test_pictures_are_planned_as_processor_config_says_where_it_says_it(tmp_path: Path) -> None:
    folder = tiny_seeing("idefics3", tmp_path)
    inside = {"size": {"longest_edge": 4000}, "max_image_size": {"longest_edge": 400}}
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": inside}))
    vision = inspect(folder).vision
    assert vision is not None
    assert (vision.image, vision.tiles) == (400, 101)


@pytest.mark.parametrize("file", ["processor_config.json", "audio_tokenizer_config.json"])
def test_no_model_for_sounds_is_loaded_from_elsewhere(file: str, tmp_path: Path) -> None:
    entry = {"audio_tokenizer_class": "AutoModel", "audio_tokenizer_name_or_path": "/elsewhere"}
    (tmp_path / file).write_text(json.dumps({"audio_tokenizer": entry} if file.startswith("proc") else entry))
    plan: Any = SimpleNamespace(spec=SimpleNamespace(model_type="llava", source="safetensors", path=tmp_path, name="m"))
    with pytest.raises(UnsupportedModel, match="names another model"):
        load_processor(plan, None)


def _image_id(engine: SerialEngine) -> int:
    assert engine.loaded.eyes is not None
    return engine.loaded.eyes.image_token_id
