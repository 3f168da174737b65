"""The client of the dry-run worker: answers, memory, deadlines, damage."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from modules.errors import BadConfig, NotAvailableHere, SnugError, TimedOut, UnsupportedModel
from modules.memory.dryruns import asking
from modules.memory.dryruns.asking import DryRuns
from modules.memory.forecasting.forecast import RunSpec
from modules.memory.forecasting.training import TrainingRun
from modules.memory.model.describing import known_description
from modules.memory.model.meta import describe
from modules.memory.model.spec import ModelSpec
from tests.shapes import llama
from tests.test_host import until

LLAMA_70B: dict[str, Any] = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 8192, "intermediate_size": 28672,
    "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 128256,
    "max_position_embeddings": 131072, "tie_word_embeddings": False,
}  # fmt: skip
RUN = RunSpec("bfloat16", context_tokens=8192)


def model_of(folder: Path, **changes: Any) -> ModelSpec:
    """A model of which only the config is here."""
    path = folder / f"model-{len(list(folder.iterdir()))}"
    path.mkdir()
    (path / "config.json").write_text(json.dumps({**LLAMA_70B, **changes}))
    return replace(llama("70B"), path=path)  # of the rest only name and format matter here


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DryRuns]:
    """One client for the tests that leave it alive."""
    client = DryRuns(tmp_path_factory.mktemp("cache"))
    yield client
    client.close()


def test_a_70b_model_is_known_from_its_config_alone(runs: DryRuns, tmp_path: Path) -> None:
    peaks = runs.measure(model_of(tmp_path), RUN)
    assert peaks.weights == pytest.approx(70_553_706_496 * 2, rel=1e-6)
    assert peaks.kv_cache == 2 * 80 * 8 * 128 * 8192 * 2
    assert 0 < peaks.decode_peak < peaks.prefill_peak < 1_000_000_000


def test_what_is_not_known_comes_later_and_stays(runs: DryRuns, tmp_path: Path) -> None:
    spec = model_of(tmp_path, num_hidden_layers=7)
    assert runs.peaks(spec, RUN) is None
    measured = runs.measure(spec, RUN)
    assert runs.peaks(spec, RUN) == measured


def test_answers_outlive_the_process_and_serve_without_a_worker(tmp_path: Path) -> None:
    spec = model_of(tmp_path, num_hidden_layers=3)
    first = DryRuns(tmp_path / "cache")
    measured = first.measure(spec, RUN)
    first.close()
    second = DryRuns(tmp_path / "cache", answer_s=0.001)  # a question would fail
    assert second.peaks(spec, RUN) == measured
    second.close()


def test_a_training_step_is_answered_too(runs: DryRuns, tmp_path: Path) -> None:
    peaks = runs.training(model_of(tmp_path, num_hidden_layers=5), TrainingRun(tokens=64))
    assert peaks.gradients == pytest.approx(peaks.weights, rel=1e-6)
    assert peaks.peak > peaks.weights + peaks.gradients + peaks.optimizer


def test_a_step_on_a_gpu_is_another_question(runs: DryRuns, tmp_path: Path) -> None:
    spec = model_of(tmp_path, num_hidden_layers=5)
    on_gpu, on_cpu = (runs.training(spec, TrainingRun(tokens=64), kind=kind) for kind in ("cuda", "cpu"))
    assert on_gpu.weights == on_cpu.weights
    assert on_gpu.peak > on_gpu.weights * 4.9 > on_cpu.peak  # torch's AdamW works on all tensors at once there


def test_the_worker_of_dry_runs_tells_what_a_model_consists_of(runs: DryRuns, tmp_path: Path) -> None:
    config = model_of(tmp_path).path
    found = runs.describe(config, cache_folder=tmp_path / "described")
    assert found == describe(config / "config.json")
    assert known_description(config, tmp_path / "described") == found
    (config / "config.json").write_text(json.dumps({**LLAMA_70B, "hidden_size": 8190}))
    with pytest.raises(BadConfig):
        runs.describe(config, cache_folder=tmp_path / "described")


def test_a_description_that_takes_too_long_is_named_as_such(tmp_path: Path) -> None:
    client = DryRuns(tmp_path / "cache", answer_s=0.01)
    with pytest.raises(TimedOut, match="Building the model"):
        client.describe(model_of(tmp_path).path, cache_folder=tmp_path / "described")
    client.close()


def test_a_worker_that_does_not_start_is_told_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As when its file was moved: plans go on by formulas, so that nothing else would tell."""
    monkeypatch.setattr(asking, "_TORCH_WORKER", "modules.memory.dryruns.moved_away")
    client = DryRuns(tmp_path / "cache")
    with pytest.raises(NotAvailableHere, match="does not start"):
        client.measure(model_of(tmp_path), RUN)
    client.close()
    assert "does not start" in caplog.text


def test_a_worker_that_was_prepared_answers_and_leaves_no_answer_of_its_own(tmp_path: Path) -> None:
    client = DryRuns(tmp_path / "cache")
    client.prepare()
    assert client.measure(model_of(tmp_path, num_hidden_layers=2), RUN).weights > 0
    assert len(list((tmp_path / "cache").iterdir())) == 1
    client.close()
    with pytest.raises(NotAvailableHere):
        client.prepare()


def test_a_run_that_takes_too_long_is_killed_named_and_not_tried_again(tmp_path: Path) -> None:
    client = DryRuns(tmp_path / "cache", answer_s=0.05)
    spec = model_of(tmp_path)
    with pytest.raises(TimedOut, match="longer than"):
        client.measure(spec, RUN)
    assert client.peaks(spec, RUN) is None
    started = time.monotonic()
    with pytest.raises(TimedOut):
        client.measure(spec, RUN)
    assert time.monotonic() - started < 1
    client.close()


def test_a_run_that_took_too_long_is_tried_again_after_a_while(tmp_path: Path) -> None:
    client = DryRuns(tmp_path / "cache", answer_s=0.05, retry_s=0.0)
    spec = model_of(tmp_path)
    for answered in (1, 2):
        with pytest.raises(TimedOut, match="longer than"):
            client.measure(spec, RUN)
        assert client.answered == answered
    client.close()


def test_what_cannot_be_built_is_refused_and_the_worker_lives_on(runs: DryRuns, tmp_path: Path) -> None:
    odd = model_of(tmp_path, hidden_size=8190)
    with pytest.raises(SnugError) as caught:
        runs.measure(odd, RUN)
    assert isinstance(caught.value, BadConfig | UnsupportedModel)
    assert runs.measure(model_of(tmp_path, num_hidden_layers=2), RUN).weights > 0


def test_damaged_answers_are_asked_for_again(tmp_path: Path) -> None:
    spec = model_of(tmp_path, num_hidden_layers=2)
    client = DryRuns(tmp_path / "cache")
    measured = client.measure(spec, RUN)
    client.close()
    (kept,) = (tmp_path / "cache").iterdir()
    kept.write_text('{"weights": "many"}')
    again = DryRuns(tmp_path / "cache")
    assert again.measure(spec, RUN) == measured
    again.close()


def test_a_closed_client_says_so(tmp_path: Path) -> None:
    client = DryRuns(tmp_path / "cache")
    client.close()
    with pytest.raises(NotAvailableHere):
        client.measure(model_of(tmp_path), RUN)


def test_workers_whose_memory_is_wanted_end_at_once_and_the_question_may_be_asked_again(tmp_path: Path) -> None:
    client = DryRuns(tmp_path / "cache", idle_s=60)
    try:
        spec = model_of(tmp_path, num_hidden_layers=5)
        assert client.known_peaks(spec, RUN) is None
        assert not client.busy
        assert client.peaks(spec, RUN) is None
        until(lambda: client.held_bytes > 0, 30)
        client.let_go()
        until(lambda: not client.busy, 10)
        assert (client.held_bytes, client.answered) == (0, 0)
        peaks = client.measure(spec, RUN)
        assert client.answered == 1
        assert client.known_peaks(spec, RUN) == peaks
        client.let_go()
        until(lambda: client.held_bytes == 0, 10)
    finally:
        client.close()


def test_of_too_many_questions_the_oldest_are_given_up_and_idle_workers_end(tmp_path: Path) -> None:
    client = DryRuns(tmp_path / "cache", idle_s=0.1, most_waiting=1)
    try:
        specs = [model_of(tmp_path, num_hidden_layers=layers) for layers in (3, 4, 5)]
        for spec in specs:
            assert client.peaks(spec, RUN) is None
        until(lambda: not client.busy, 60)
        assert client.known_peaks(specs[-1], RUN) is not None
        assert client.answered < len(specs)
        until(lambda: client.held_bytes == 0, 30)
    finally:
        client.close()
