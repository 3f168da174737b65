"""llama.cpp's dry fit of GGUF files: held against the buffers that it then allocates; hostile files and logs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from modules.errors import BadGguf, SnugError, UnsupportedModel
from modules.memory.dryruns.asking import DryRuns
from modules.memory.dryruns.llamacpp_fit import Buffers, read_fit
from modules.memory.forecasting.forecast import RunSpec, kv_cache_bytes, prefill_peak_bytes
from modules.memory.forecasting.kv_cache import KVCache
from modules.memory.forecasting.llamacpp_sizes import SLOTS
from modules.memory.model.spec import inspect
from modules.starter import fetch_gguf
from modules.units import MiB
from tests.llamacpp_load import ROOT, allocated
from tests.tiny_models import tiny_gguf

TABLE = "0.1 I common_memory_breakdown_print: |"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DryRuns]:
    client = DryRuns(tmp_path_factory.mktemp("cache"))
    yield client
    client.close()


def compare(runs: DryRuns, path: Path, run: RunSpec) -> None:
    """Hold the fit to the load; prints the row."""
    forecast, real = runs.fit(inspect(path), run), allocated(path, run)
    assert set(forecast) == set(real) == {"cpu"}
    ratio = forecast["cpu"].total / real["cpu"].total
    print(f"{path.stem} {run.context_tokens} {run.prefill_chunk}: {forecast['cpu'].total / MiB:.2f} MiB forecast, "
          f"{real['cpu'].total / MiB:.2f} allocated, ratio {ratio:.4f}")  # fmt: skip
    assert ratio == pytest.approx(1, abs=0.01)
    for purpose in ("context", "compute"):
        assert getattr(forecast["cpu"], purpose) == pytest.approx(getattr(real["cpu"], purpose), rel=0.01)


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_0"])
@pytest.mark.parametrize(("context", "chunk"), [(512, 512), (4096, 128), (8192, 512)])
def test_the_dry_fit_is_what_the_load_allocates(
    runs: DryRuns, tmp_path: Path, kind: str, context: int, chunk: int
) -> None:
    path = tiny_gguf(tmp_path, width=512, inner=1024, layers=4, kind=kind, context=8192)
    compare(runs, path, RunSpec("float16", context_tokens=context, prefill_chunk=chunk))


@pytest.mark.parametrize(("cache", "each"), [("plain", 64), ("int8", 34), ("int4", 18)])
@pytest.mark.parametrize(("context", "chunk"), [(1024, 512), (8192, 128)])
def test_packed_caches_take_what_their_formats_say(
    runs: DryRuns, tmp_path: Path, cache: KVCache, each: int, context: int, chunk: int
) -> None:
    path = tiny_gguf(tmp_path, width=512, inner=1024, layers=4, kind="Q8_0", context=8192)
    run = RunSpec("float16", context_tokens=context, prefill_chunk=chunk, kv_cache=cache, runtime="llamacpp")
    compare(runs, path, run)
    spec = inspect(path)
    assert kv_cache_bytes(spec, run, context) == 4 * context * 2 * 512 * each // 32
    outputs = SLOTS * spec.vocab_size * 4
    fit = runs.fit(spec, run)["cpu"]
    assert fit.context == pytest.approx(kv_cache_bytes(spec, run, context) + outputs, abs=0.02 * MiB)
    assert fit.compute + fit.context == pytest.approx(
        kv_cache_bytes(spec, run, context) + prefill_peak_bytes(spec, run, with_head=True), rel=0.02
    )


@pytest.mark.model
@pytest.mark.parametrize("context", [256, 2048, 8192])
def test_the_dry_fit_of_the_starters_file_is_what_its_load_allocates(runs: DryRuns, context: int) -> None:
    try:
        path = fetch_gguf(ROOT / "models" / ".gguf")
    except SnugError as error:
        pytest.skip(f"the starter's file cannot be fetched: {error}")
    compare(runs, path, RunSpec("float16", context_tokens=context))


def test_the_context_is_the_formula_of_a_16_bit_cache_and_one_row_of_logits_a_slot(
    runs: DryRuns, tmp_path: Path
) -> None:
    spec, run = inspect(tiny_gguf(tmp_path)), RunSpec("float16", context_tokens=1024)
    context = runs.fit(spec, run)["cpu"].context
    assert context == pytest.approx(kv_cache_bytes(spec, run, 1024), abs=0.05 * MiB)


def test_answers_outlive_the_process_until_the_file_changes(tmp_path: Path) -> None:
    path, run = tiny_gguf(tmp_path / "models"), RunSpec("float16", context_tokens=512)
    first = DryRuns(tmp_path / "cache")
    fit = first.fit(inspect(path), run)
    first.close()
    second = DryRuns(tmp_path / "cache")
    second.close()
    assert second.fit(inspect(path), run) == fit  # no worker could answer any more
    path.touch()
    with pytest.raises(Exception, match="ending"):
        second.fit(inspect(path), run)


def test_a_file_that_lacks_tensors_is_refused_by_name_and_the_worker_lives_on(runs: DryRuns, tmp_path: Path) -> None:
    sound = tiny_gguf(tmp_path)
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(sound.read_bytes().replace(b"blk.1.attn_q.weight", b"blk.1.attn_x.weight"))
    run = RunSpec("float16", context_tokens=512)
    with pytest.raises(BadGguf, match=r"blk\.1\.attn_q"):
        runs.fit(inspect(broken), run)
    assert runs.fit(inspect(sound), run)["cpu"].compute > 0


def test_the_table_of_several_devices_is_read_in_whole_mebibytes() -> None:
    log = [
        f"{TABLE} memory breakdown [MiB] | total   free    self   model   context   compute    unaccounted |",
        f"{TABLE}   - CUDA0 (RTX 4090)   | 24080 = 22000 + (1500 =  1000 +     400 +     100) +         580 |",
        f"{TABLE}   - Host               |                   153 =    92 +      45 +      16                |",
    ]
    assert read_fit(log, 0) == {
        "cuda:0": Buffers(1000 * MiB, 400 * MiB, 100 * MiB), "cpu": Buffers(92 * MiB, 45 * MiB, 16 * MiB),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("E llama_model_load: error loading model: unknown model architecture: 'nonesuch'", UnsupportedModel),
        ("E llama_model_load: error loading model: missing tensor 'token_embd.weight'", BadGguf),
        ("", BadGguf),
    ],
)
def test_a_log_without_figures_is_an_error_with_its_reason(line: str, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        read_fit([line], 0)
