"""Attention on the CPU: the numbers of torch's own, alone and in a batch of rows, and where it is used at all."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from modules.engine.loops import attention
from modules.engine.loops.attention import attend, attend_row_by_row, causal_attention, mask_unless_causal
from modules.engine.loops.paged import PagedModel
from modules.engine.loops.serial import SerialEngine
from tests.loop_rig import load
from tests.tiny_models import tiny_model

SHAPES = [(1, 300), (7, 300), (300, 300), (180, 700)]  # queries, keys


def states(
    queries: int, keys: int, *, heads: int = 6, kv_heads: int = 2, dtype: torch.dtype = torch.float32
) -> list[torch.Tensor]:
    """Query, key and value as models give them: heads first, not contiguous."""
    numbers = torch.Generator().manual_seed(queries * 1000 + keys)
    shapes = [(queries, heads, 32), (keys, kv_heads, 32), (keys, kv_heads, 24)]
    return [torch.randn(shape, generator=numbers).to(dtype).transpose(0, 1) for shape in shapes]


def expected(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    window: int | None = None,
    scaling: float | None = None,
) -> torch.Tensor:
    """Attention in fp32, position by position."""
    queries, keys = query.shape[1], key.shape[1]
    distance = torch.arange(keys - queries, keys)[:, None] - torch.arange(keys)[None]
    mask = (distance >= 0) & (distance < (window or keys))
    groups = query.shape[0] // key.shape[0]
    key, value = (states.float().repeat_interleave(groups, 0)[None] for states in (key, value))
    return scaled_dot_product_attention(query.float()[None], key, value, attn_mask=mask, scale=scaling)[0]


@pytest.mark.parametrize("window", [None, 50, 1000])
@pytest.mark.parametrize(("queries", "keys"), SHAPES)
@pytest.mark.parametrize("kv_heads", [1, 2, 6])
@pytest.mark.parametrize("products", [True, False])
def test_every_query_sees_itself_and_what_comes_before_within_the_window(
    queries: int, keys: int, kv_heads: int, window: int | None, products: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "multiplies_bf16", lambda: products)
    for dtype, tolerance in ((torch.float32, 2e-6), (torch.bfloat16, 3e-2)):
        query, key, value = states(queries, keys, kv_heads=kv_heads, dtype=dtype)
        found = causal_attention(query, key, value, window=window)
        assert found.dtype == dtype
        torch.testing.assert_close(
            found.float(), expected(query, key, value, window=window), atol=tolerance, rtol=tolerance
        )


def test_the_scaling_of_a_model_that_names_one_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "multiplies_bf16", lambda: True)
    for queries, keys in SHAPES:
        for dtype, tolerance in ((torch.float32, 2e-6), (torch.bfloat16, 3e-2)):
            query, key, value = states(queries, keys, dtype=dtype)
            want = expected(query, key, value, scaling=0.05)
            found = causal_attention(query, key, value, scaling=0.05).float()
            torch.testing.assert_close(found, want, atol=tolerance, rtol=tolerance)


class OneLayerCache:
    """A paged cache that has all keys and values already."""

    def __init__(self, key: torch.Tensor, value: torch.Tensor, window: int | None) -> None:
        self.layer_to_allocator = {
            0: SimpleNamespace(
                sliding_window=window, layer_type="kind", supports_block_table=False, index=0, tokens_per_page=32
            )
        }
        self._states = key[None], value[None]

    def update(self, **_: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """All there is, as PagedAttentionCache.update."""
        return self._states


@pytest.mark.parametrize("window", [None, 40])
def test_each_row_of_a_batch_sees_its_own_keys_only(window: int | None) -> None:
    rows = [states(queries, keys) for queries, keys in ((1, 39), (5, 120), (64, 64), (1, 1))]
    query, key, value = (torch.cat(parts, dim=1) for parts in zip(*rows, strict=True))
    ends = [torch.tensor([0, *(row[part].shape[1] for row in rows)]).cumsum(0).int() for part in (0, 1)]
    out, _ = attend_row_by_row(
        SimpleNamespace(layer_idx=0),
        query[None],
        key[None],
        value[None],
        None,
        cache=OneLayerCache(key, value, window),
        cu_seq_lens_q=ends[0],
        cu_seq_lens_k={"kind": ends[1]},
        read_index=[torch.empty(0, dtype=torch.int64)],
    )
    want = torch.cat([expected(*row, window=window) for row in rows], dim=1)
    torch.testing.assert_close(out[0], want.transpose(0, 1), atol=2e-6, rtol=2e-6)


def test_what_is_not_computed_row_by_row_is_refused() -> None:
    query, key, value = (part[None] for part in states(1, 4))
    refused: list[dict[str, Any]] = [{}, {"cache": object(), "softcap": 30.0}, {"cache": object(), "s_aux": key}]
    for unknown in refused:
        with pytest.raises(ValueError, match="paged cache"):
            attend_row_by_row(SimpleNamespace(layer_idx=0), query, key, value, None, **unknown)


def test_what_is_not_one_row_of_plain_causal_attention_goes_to_the_librarys_sdpa() -> None:
    module = SimpleNamespace(is_causal=False, num_key_value_groups=3)
    query, key, value = (torch.stack([part, part]) for part in states(9, 20))
    bias = torch.randn(1, 6, 9, 20)
    both_ways, _ = attend(module, query[:1], key[:1], value[:1], None, position_bias=bias)
    keys, values = (states[:1].repeat_interleave(3, 1) for states in (key, value))
    want = scaled_dot_product_attention(query[:1], keys, values, attn_mask=bias)
    torch.testing.assert_close(both_ways, want.transpose(1, 2), atol=2e-6, rtol=2e-6)
    mask = torch.rand(2, 1, 9, 20) < 0.5
    mask[..., 0] = True
    masked, _ = attend(module, query, key, value, mask)
    keys, values = (states.repeat_interleave(3, 1) for states in (key, value))
    want = scaled_dot_product_attention(query, keys, values, attn_mask=mask)
    torch.testing.assert_close(masked, want.transpose(1, 2), atol=2e-6, rtol=2e-6)


def test_no_mask_is_built_where_all_that_comes_before_is_seen() -> None:
    assert mask_unless_causal(batch_size=1, q_length=3, kv_length=8, q_offset=5) is None
    padded = torch.ones(1, 8, dtype=torch.bool)
    padded[0, 0] = False
    mask = mask_unless_causal(batch_size=1, q_length=3, kv_length=8, q_offset=5, attention_mask=padded)
    assert mask is not None
    assert mask[0, 0].tolist() == [[0 < key <= 5 + query for key in range(8)] for query in range(3)]


def test_models_on_the_cpu_use_it_while_an_engine_runs_and_only_in_the_place_of_sdpa(tmp_path: Path) -> None:
    loaded = load(tiny_model("llama", tmp_path))
    engine = SerialEngine(loaded)
    assert loaded.model.config._attn_implementation == attention.ONE_ROW
    engine.close()
    assert loaded.model.config._attn_implementation == "sdpa"
    paged = PagedModel(loaded, lambda _, scores: scores.argmax(-1).tolist())
    assert loaded.model.config._attn_implementation == attention.MANY_ROWS
    paged.close()
    assert loaded.model.config._attn_implementation == "sdpa"
    loaded.model.set_attn_implementation("eager")
    assert not attention.prefer_cpu_attention(loaded, many_rows=False)
    assert loaded.model.config._attn_implementation == "eager"


@pytest.mark.model
def test_in_bf16_the_starter_models_logits_stay_as_near_to_fp32_as_those_of_sdpa() -> None:
    folder = Path("models/SmolLM2-135M-Instruct")
    if not folder.exists():
        pytest.skip("models/SmolLM2-135M-Instruct is not there; ./start.sh fetches it")
    ids = torch.tensor([[1000 + (index * 7919) % 40000 for index in range(500)]])
    exact, near = load(folder), load(folder, dtype=torch.bfloat16)
    with torch.no_grad():
        want = exact.model(input_ids=ids).logits
        theirs = (near.model(input_ids=ids).logits - want).std() / want.std()
        assert attention.prefer_cpu_attention(near, many_rows=False)
        ours = (near.model(input_ids=ids).logits - want).std() / want.std()
    assert ours < 1.25 * theirs
