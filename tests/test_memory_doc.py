"""docs/memory.md and its pictures are what the script makes of the planner, the formulas and the results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from docs.make_memory import fill, render
from docs.memory_page import accuracy, sparse
from docs.memory_page.models import Models, read_models
from docs.memory_page.sixteen import parameters

DOCS = Path(__file__).parent.parent / "docs"
REMEDY = "docs/{} is not what the script makes now. Write it anew: python -m docs.make_memory"
# As their makers or the hub publish them.
PUBLISHED = {
    "LLaMA-7B": 6_738_415_616, "LLaMA-13B": 13_015_864_320, "LLaMA-33B": 32_528_943_616, "LLaMA-65B": 65_285_660_672,
    "Llama-3-8B": 8_030_261_248, "GPT-J-6B": 6_050_882_784, "OPT-6.7B": 6_658_473_984, "OPT-30B": 29_974_540_288,
    "BLOOMZ-7B1": 7_069_016_064, "T5-small": 60_506_624, "T5-large": 737_668_096, "T5-3B": 2_851_598_336,
    "GPT-2": 124_439_808, "GPT-2-large": 774_030_080,
}  # fmt: skip


@pytest.fixture(scope="module")
def models() -> Models:
    """The models that the seeds name."""
    return read_models()


def test_the_page_and_its_pictures_are_what_the_script_makes() -> None:
    for name, content in render().items():
        assert (DOCS / name).read_text(encoding="utf-8") == content, REMEDY.format(name)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_config_builds_the_model_that_was_published(models: Models, name: str) -> None:
    assert parameters(models[name]) == PUBLISHED[name]


def test_a_place_without_a_value_and_a_value_without_a_place_are_named() -> None:
    assert fill("a {{one}} b", {"one": "1"}) == "a 1 b"
    with pytest.raises(ValueError, match="one, two"):
        fill("a {{one}} b", {"two": "2"})


def test_results_that_were_not_taken_say_how_to_take_them(tmp_path: Path) -> None:
    told = accuracy.render(tmp_path)
    assert told.count("Not taken yet") == told.count("### ")
    assert "python -m benchmarks.memory --parts families" in told


def test_a_result_that_lacks_a_field_is_named_with_what_to_do(tmp_path: Path) -> None:
    machine = {"cpu": "a CPU", "cores": 2, "torch": "2"}
    row = {"what": "prefill", "family": "llama", "way": "sdpa", "tokens": 96, "forecast": 100}
    record = {"command": "python", "machine": machine, "rows": [{**row, "real": 80}]}
    file = tmp_path / "memory-families.json"
    file.write_text(json.dumps(record))
    assert "+25.00 %" in accuracy.render(tmp_path)
    file.write_text(json.dumps({**record, "rows": [row]}))
    with pytest.raises(ValueError, match=r"memory-families\.json has no 'real'.*benchmarks\.memory --parts families"):
        accuracy.render(tmp_path)


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize(("dtype", "bits"), [(torch.float32, 32), (torch.float16, 16)])
@pytest.mark.parametrize(("index", "index_bits"), [(torch.int32, 32), (torch.int64, 64)])
def test_the_sum_of_csr_is_what_torch_allocates(
    dtype: torch.dtype, bits: int, index: torch.dtype, index_bits: int
) -> None:
    dense = torch.rand(64, 96, generator=torch.Generator().manual_seed(0)).to(dtype)
    dense[dense < 0.9] = 0
    made = dense.to_sparse_csr()
    parts = (made.crow_indices().to(index), made.col_indices().to(index), made.values())
    matrix = torch.sparse_csr_tensor(*parts, size=dense.shape)
    held = (matrix.crow_indices(), matrix.col_indices(), matrix.values())
    assert sum(part.nbytes for part in held) == sparse.csr_bytes(64, matrix.values().numel(), bits, index_bits)
