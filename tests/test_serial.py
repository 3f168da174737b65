"""The serial loop: the same tokens as model.generate for every family, and what every loop must do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from modules.engine.base import Prefill, TextPiece
from modules.engine.loops.loaded import LoadedModel
from modules.engine.loops.loop import LoopEngine
from modules.engine.loops.rows import CausalRow, Shelf, common_prefix
from modules.engine.loops.serial import SerialEngine, steps
from tests.loop_behaviour import PROMPT, LoopBehaviour
from tests.loop_rig import Ask, generated, greedy, load
from tests.tiny_models import CAUSAL, ENCODER_DECODER, tiny_model


class TestSerial(LoopBehaviour):
    def make_engine(self, loaded: LoadedModel, **options: Any) -> LoopEngine:
        return SerialEngine(loaded, **options)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.mark.parametrize("family", CAUSAL)
def test_greedy_tokens_are_those_of_generate_with_and_without_prefix_reuse(family: str, models: Path) -> None:
    loaded = load(tiny_model(family, models))
    engine = SerialEngine(loaded)
    try:
        prompt = loaded.tokenizer.encode(PROMPT * 2, add_special_tokens=False)
        first = Ask("fresh", prompt, greedy(40)).run(engine)
        assert first.tokens == generated(loaded, prompt, 40)
        assert first.end.usage.cached_tokens == 0
        longer = [*prompt, *first.tokens, 65, 66]
        second = Ask("next turn", longer, greedy(30)).run(engine)
        assert second.tokens == generated(loaded, longer, 30)
        assert second.end.usage.cached_tokens == len(longer) - 3  # the last token was never read
        other = [*prompt[:50], 70, 71]
        third = Ask("another branch", other, greedy(30)).run(engine)
        assert third.tokens == generated(loaded, other, 30)
        assert third.end.usage.cached_tokens == (0 if family in ("gemma3", "mamba2") else 50)
    finally:
        engine.close()


@pytest.mark.parametrize("family", ENCODER_DECODER)
def test_encoder_decoder_models_give_the_tokens_of_generate_and_go_on_with_a_reply(family: str, models: Path) -> None:
    loaded = load(tiny_model(family, models))
    engine = SerialEngine(loaded)
    try:
        prompt = loaded.tokenizer.encode(PROMPT, add_special_tokens=False)
        want = generated(loaded, prompt, 40)
        ask = Ask("1", prompt, greedy(40)).run(engine)
        assert ask.tokens == want
        assert [e for e in ask.events if isinstance(e, Prefill)] == [
            Prefill(0, len(prompt)),
            Prefill(len(prompt), len(prompt)),
        ]
        assert Ask("2", prompt, greedy(30), reply_ids=want[:10]).run(engine).tokens == want[10:]
        assert engine.stats().active == 0
    finally:
        engine.close()


def test_a_forced_first_token_is_read_by_the_decoder_but_is_no_part_of_the_reply(models: Path) -> None:
    loaded = load(tiny_model("bart", models))
    loaded.model.generation_config.forced_bos_token_id = 70
    engine = SerialEngine(loaded)
    try:
        want = generated(loaded, [65, 66, 67], 20)
        assert want[0] == 70
        assert Ask("1", [65, 66, 67], greedy(19)).run(engine).tokens == want[1:]
    finally:
        engine.close()


def test_steps_alone_reads_in_stretches_and_ends_where_choose_says(models: Path) -> None:
    loaded = load(tiny_model("llama", models))
    chosen = iter([5, 6, None])
    row = CausalRow(loaded.model, loaded.device)
    made = list(steps(row, [1, 2, 3, 4, 5], lambda _: next(chosen), chunk=2))
    assert made == [Prefill(0, 5), Prefill(2, 5), Prefill(4, 5), Prefill(5, 5), 5, 6]
    assert row.tokens == [1, 2, 3, 4, 5, 5, 6]


def test_the_growing_cache_gives_the_very_logits_of_the_librarys_own(models: Path) -> None:
    loaded = load(tiny_model("llama", models))
    ids = torch.randint(0, 200, (600,), generator=torch.Generator().manual_seed(0)).tolist()
    ours = CausalRow(loaded.model, loaded.device)
    theirs = CausalRow(loaded.model, loaded.device, DynamicCache(config=loaded.model.config))
    for start, end in [(0, 250), (250, 257), *((n, n + 1) for n in range(257, 600))]:
        assert torch.equal(ours.read(ids[start:end]), theirs.read(ids[start:end]))
    assert ours.keep_prefix(100)
    assert theirs.keep_prefix(100)
    assert torch.equal(ours.read(ids[:50]), theirs.read(ids[:50]))


def test_the_shelf_keeps_within_its_budget_and_drops_the_oldest(models: Path) -> None:
    loaded = load(tiny_model("llama", models))
    rows = []
    for first in (1, 2, 3):
        row = CausalRow(loaded.model, loaded.device)
        row.read([first] * 40)
        rows.append(row)
    shelf = Shelf(2 * rows[0].size_bytes)
    for row in rows:
        shelf.put(row)
    assert shelf.size_bytes == 2 * rows[0].size_bytes
    assert shelf.take([1] * 41) is None
    assert shelf.take([3] * 41) is rows[2]
    assert shelf.token_count == 40


def test_a_row_that_shares_only_a_system_prompt_is_copied_and_its_own_chat_goes_on(models: Path) -> None:
    loaded = load(tiny_model("llama", models))
    engine = SerialEngine(loaded)
    try:
        system = [65 + n % 20 for n in range(40)]
        chat = [*system, *range(100, 180)]
        Ask("1", chat, greedy(5)).run(engine)
        other = Ask("2", [*system, 99, 98], greedy(5)).run(engine)
        assert other.end.usage.cached_tokens == 40
        assert other.tokens == generated(loaded, [*system, 99, 98], 5)
        again = Ask("3", [*chat, 97], greedy(5)).run(engine)
        assert again.end.usage.cached_tokens == len(chat)
        assert again.tokens == generated(loaded, [*chat, 97], 5)
    finally:
        engine.close()


def test_common_prefix_counts_the_tokens_that_both_begin_with() -> None:
    assert [common_prefix([1, 2, 3], other) for other in ([], [1], [1, 2, 4], [1, 2, 3, 4])] == [0, 1, 2, 3]


def test_an_engine_encodes_pieces_and_decodes_control_tokens(models: Path) -> None:
    engine = SerialEngine(load(tiny_model("llama", models)))
    try:
        ids = engine.encode([TextPiece("<|im_start|>", template=True), TextPiece("<|im_end|>"), TextPiece("é")])
        assert engine.decode(ids) == "<|im_start|><|im_end|>é"
        assert sum(token >= 256 for token in ids) == 1
    finally:
        engine.close()
