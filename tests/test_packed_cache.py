"""KV caches in 8 and 4 bits: to the byte what the planner says, near to what was computed, cut back, gone on with."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from operator import eq
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.engine.base import TextPiece
from modules.engine.loading.huggingface import load as load_engine
from modules.engine.loops.choice import why_not_batched
from modules.engine.loops.loaded import LoadedModel
from modules.engine.loops.packed_cache import PackedLayer, Work, cache_maker
from modules.engine.loops.rows import CausalRow, Shelf
from modules.engine.loops.serial import SerialEngine
from modules.memory.forecasting.forecast import RunSpec, kv_work_bytes, layer_cache_bytes
from modules.memory.forecasting.kv_cache import BLOCK_TOKENS, KVCache, value_group, why_not
from modules.memory.model.spec import inspect
from tests.conftest import STARTER_MODEL
from tests.exact_rows import load as load_tiny
from tests.loading_rig import PROSE, plan_of, quiet
from tests.loop_rig import Ask, greedy, load
from tests.tiny_families import CONFIGS, tiny_folder
from tests.tiny_models import tiny_model

PACKED: tuple[KVCache, ...] = ("int8", "int4")
TOKENS = 330
HEADS, HEAD_DIM = 2, 96


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def with_cache(loaded: LoadedModel, kind: KVCache) -> LoadedModel:
    """`loaded` as if its plan had named `kind`."""
    return replace(loaded, plan=replace(loaded.plan, run=replace(loaded.plan.run, kv_cache=kind)))


def states(tokens: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys, of which some channels are much larger than the others as real ones are, and values."""
    generator = torch.Generator().manual_seed(seed)
    keys, values = (torch.randn(1, HEADS, tokens, HEAD_DIM, generator=generator) for _ in range(2))
    keys[..., ::17] = 20 + keys[..., ::17] * 5
    return keys.to(dtype), values.to(dtype)


def read_all(layer: PackedLayer, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """All that `layer` holds, unpacked; one more token is read for that."""
    keys, values = layer.update(*states(1, 99, dtype))
    return keys[:, :, :-1].clone(), values[:, :, :-1].clone()


@pytest.mark.parametrize("kind", PACKED)
@pytest.mark.parametrize("family", CONFIGS)
def test_the_bytes_of_each_family_are_those_of_the_forecast(family: str, kind: KVCache, models: Path) -> None:
    spec = inspect(tiny_folder(family, models / "families"))
    if reason := why_not(kind, spec, 0):
        pytest.skip(reason)
    run = RunSpec("bfloat16", context_tokens=TOKENS, kv_cache=kind)
    model = load_tiny(spec, dtype=torch.bfloat16)
    loaded: Any = type("Loaded", (), {})()
    loaded.model, loaded.plan, loaded.info = (
        model,
        type("P", (), {"run": run}),
        type("I", (), {"context_tokens": TOKENS}),
    )
    row = CausalRow(model, torch.device("cpu"), cache_maker(loaded)())
    ids = [3 + number % 200 for number in range(TOKENS)]
    for start in range(0, TOKENS, 100):
        row.read(ids[start : start + 100])
    packed = {index: layer for index, layer in enumerate(row.cache.layers) if isinstance(layer, PackedLayer)}
    assert len(packed) == spec.layer_kinds.count("full")
    expected = {index: layer_cache_bytes(spec, run, index, TOKENS) for index in packed}
    assert {index: layer.size_bytes for index, layer in packed.items()} == expected
    work = next(iter(packed.values())).work
    apart = 0 if kind == "int8" else (TOKENS - 64) // 64 * 64 * spec.kv_heads * spec.head_dim // 2
    assert work.size_bytes + apart == kv_work_bytes(spec, run)


@pytest.mark.parametrize(("bits", "most"), [(8, 1 / 250), (4, 1 / 14)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_comes_back_is_within_half_a_step_of_what_was_computed(bits: int, most: float, dtype: torch.dtype) -> None:
    layer, (keys, values) = PackedLayer(bits, Work(1000)), states(640, dtype=dtype)
    layer.update(keys, values)
    found_keys, found_values = read_all(layer, dtype)
    rounding = 2 * torch.finfo(dtype).eps
    blocks = keys[:, :, :576].float().view(1, HEADS, -1, BLOCK_TOKENS, HEAD_DIM)
    steps = (blocks.amax(3) - blocks.amin(3) if bits == 4 else 2 * blocks.abs().amax(3)) * most + rounding * 40
    off = (found_keys.float() - keys.float())[:, :, :576].abs().view(blocks.shape).amax(3)
    assert bool((off <= steps).all())
    group = value_group(HEAD_DIM)
    groups = values[:, :, :576].float().view(1, HEADS, 576, -1, group)
    steps = (groups.amax(4) - groups.amin(4) if bits == 4 else 2 * groups.abs().amax(4)) * most + rounding * 5
    off = (found_values.float() - values.float())[:, :, :576].abs().view(groups.shape).amax(4)
    assert bool((off <= steps).all())
    assert torch.equal(found_keys[:, :, 576:], keys[:, :, 576:])
    assert torch.equal(found_values[:, :, 576:], values[:, :, 576:])


@settings(max_examples=60, deadline=None)
@given(bits=st.sampled_from([8, 4]), cuts=st.lists(st.integers(1, 400), max_size=8), total=st.integers(1, 700))
def test_however_a_text_is_read_the_same_is_kept(bits: int, cuts: list[int], total: int) -> None:
    keys, values = states(total)
    whole, pieces = PackedLayer(bits, Work(2000)), PackedLayer(bits, Work(2000))
    whole.update(keys, values)
    edges = sorted({0, total, *(cut for cut in cuts if cut < total)})
    for start, end in pairwise(edges):
        found, _ = pieces.update(keys[:, :, start:end], values[:, :, start:end])
        assert torch.equal(found[:, :, start:], keys[:, :, start:end])  # what is being read is as computed
    assert pieces.get_seq_length() == total
    assert all(torch.equal(one, other) for one, other in zip(read_all(whole), read_all(pieces), strict=True))


@settings(max_examples=60, deadline=None)
@given(bits=st.sampled_from([8, 4]), total=st.integers(1, 700), length=st.integers(0, 700), more=st.integers(1, 300))
def test_a_layer_cut_back_goes_on_as_its_copy_does_and_is_never_packed_twice(
    bits: int, total: int, length: int, more: int
) -> None:
    keys, values = states(total)
    layer = PackedLayer(bits, Work(2000))
    layer.update(keys, values)
    before = [part.clone() for part in read_all(layer)]
    layer.crop(-1)
    kept = layer.keepable(min(length, total))
    assert kept <= length
    assert min(length, total) - kept < BLOCK_TOKENS
    copy = layer.copy_prefix(kept)
    layer.crop(kept - total)
    assert layer.get_seq_length() == copy.get_seq_length() == kept
    new = states(more, seed=1)
    for one in (layer, copy):
        found = [part.clone() for part in one.update(*new)]
        for old, now, fresh in zip(before, found, new, strict=True):
            assert torch.equal(now[:, :, :kept], old[:, :, :kept])
            assert torch.equal(now[:, :, kept:], fresh)


@pytest.mark.parametrize("kind", PACKED)
def test_a_chat_goes_on_from_what_is_packed_and_reads_less_than_a_block_anew(kind: KVCache, models: Path) -> None:
    loaded = with_cache(load(tiny_model("llama", models)), kind)
    assert why_not_batched(loaded) == f"with --kv-cache {kind} requests run one at a time"
    engine = SerialEngine(loaded)
    try:
        prompt = [65 + n % 50 for n in range(300)]
        first = Ask("1", prompt, greedy(20)).run(engine)
        assert len(first.tokens) == 20
        longer = [*prompt, *first.tokens, 65, 66]
        second = Ask("2", longer, greedy(5)).run(engine)
        assert second.end.usage.cached_tokens == len(longer) - 3
        other = [*prompt[:150], 70, 71]
        third = Ask("3", other, greedy(5)).run(engine)
        assert third.end.usage.cached_tokens == 128  # whole blocks
        fourth = Ask("4", [*prompt[:50], 70, 71], greedy(5)).run(engine)
        assert fourth.end.usage.cached_tokens == 0
        assert fourth.end.reason == "length"
    finally:
        engine.close()


def test_rows_on_the_shelf_share_the_memory_that_layers_are_unpacked_in(models: Path) -> None:
    loaded = with_cache(load(tiny_model("llama", models)), "int8")
    new_cache = cache_maker(loaded)
    rows = [CausalRow(loaded.model, loaded.device, new_cache()) for _ in range(2)]
    for row in rows:
        row.read([5] * 200)
    shelf = Shelf(10**9)
    for row in rows:
        shelf.put(row)
    works = {id(layer.work) for row in rows for layer in row.cache.layers}
    assert len(works) == 1
    assert shelf.size_bytes == sum(layer.size_bytes for row in rows for layer in row.cache.layers)


@pytest.mark.model
@pytest.mark.parametrize(("kind", "least"), [("int8", 0.95), ("int4", 0.85)])
def test_the_starter_model_chats_and_chooses_the_tokens_that_it_would_have(
    kind: KVCache, least: float, tmp_path: Path
) -> None:
    """Tokens: the most likely one after each of the prose's, read 64 at a time, most of it from packed ones."""
    engine: Any = load_engine(plan_of(STARTER_MODEL, cache=tmp_path, ctx_size=1536, kv_cache=kind), quiet)
    try:
        assert (engine.info.loop, engine.info.loop_reason) == (
            "serial", f"with --kv-cache {kind} requests run one at a time",
        )  # fmt: skip
        text = PROSE.read_text(encoding="utf-8")
        turn = f"<|im_start|>user\n{text[:2000]}\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
        prompt = engine.encode([TextPiece(turn, template=True)])
        first = Ask("1", prompt, greedy(40)).run(engine)
        assert "Paris" in first.text
        longer = [*prompt, *first.tokens, *engine.encode([TextPiece("<|im_end|>\n", template=True)])]
        assert Ask("2", longer, greedy(4)).run(engine).end.usage.cached_tokens >= len(prompt) + len(first.tokens) - 1
        ids = engine.encode([TextPiece(text, template=False)])[:1000]
        plain, packed = (likely_tokens(with_cache(engine.loaded, each), ids) for each in ("plain", kind))
        agree = sum(map(eq, plain[128:], packed[128:])) / len(plain[128:])
        print(f"{kind}: {agree:.1%} of the most likely tokens are the same")
        assert agree >= least
    finally:
        engine.close()


@torch.no_grad()
def likely_tokens(loaded: LoadedModel, ids: list[int]) -> list[int]:
    """The most likely token after each of `ids`."""
    cache, found = cache_maker(loaded)(), []
    for start in range(0, len(ids), 64):
        piece = torch.tensor([ids[start : start + 64]])
        found += loaded.model(piece, past_key_values=cache, use_cache=True).logits[0].argmax(-1).tolist()
    return found


@pytest.mark.parametrize(("head_dim", "group"), [(64, 64), (128, 64), (80, 40), (96, 48), (256, 64), (7, 7), (134, 2)])
def test_the_group_of_a_value_divides_it(head_dim: int, group: int) -> None:
    assert value_group(head_dim) == group
