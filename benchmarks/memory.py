"""How far the dry run is from what really happens: allocator peaks of tiny models of many families on this CPU.

`python -m benchmarks.memory [--parts families …] [--families llama …]` compares, byte by byte, with torch.profiler's
allocator events: prefill and decode of families, bitsandbytes, training steps, the engine's own loops. It prints every
row, the bad ones too; each part is kept as results/memory-PART.json. `--gpu` compares forecasts with torch's CUDA
allocator instead, for random weights of 1B, 7B and 14B (memory_gpu.py).
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import BitsAndBytesConfig, DynamicCache

from benchmarks.allocations import Allocated, measure, real_model, tensors_bytes
from benchmarks.common import finish
from benchmarks.memory_gpu import compare_on_gpu
from benchmarks.memory_loops import LOOP_FAMILIES, compare_loops
from modules.engine.rows import CausalRow, EncoderDecoderRow
from modules.memory.dryrun import DTYPES, Counted, count_run, fake_model
from modules.memory.forecast import DType, Quantization, RunSpec
from modules.memory.training import Optimizer, TrainingMode, TrainingRun
from modules.memory.training_dryrun import count_training, make_optimizer, make_trainable
from tests.tiny_models import CAUSAL, ENCODER_DECODER, FURTHER, tiny_config

FAMILIES = (*CAUSAL, *FURTHER, *ENCODER_DECODER)
PROMPTS = (96, 384, 1000)
QUANTIZED_FAMILIES = ("llama", "qwen3", "gpt_neox", "opt", "phi3", "gemma3")
TRAINED_FAMILIES = ("llama", "gpt2", "qwen3")
TRAINED_LAYERS, TRAINED_TOKENS, RANK = 6, 256, 8
_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Row:
    """One comparison; bytes. `ratio` is forecast / real."""

    what: str
    family: str
    way: str
    tokens: int
    forecast: int
    real: int

    @property
    def ratio(self) -> float:
        """1 where the forecast is exact."""
        return self.forecast / max(1, self.real)


def write_config(folder: Path, family: str, **changes: Any) -> Path:
    """The config file of a tiny model, in a folder of its own."""
    path = folder / f"{family}{len(list(folder.iterdir()))}"
    tiny_config(family, **changes).save_pretrained(path)
    return path / "config.json"


def read_prompt(model: Any, tokens: int) -> Any:
    """A row of `model` that has read `tokens` tokens at once into a plain cache; its logits stay with it."""
    if model.config.is_encoder_decoder:
        encoded = EncoderDecoderRow(model, _CPU, [1] * tokens)
        return encoded, encoded.read([1]).float()
    row = CausalRow(model, _CPU, DynamicCache(config=model.config))
    return row, row.read([1] * tokens).float()


def compare(model: Any, counted: Counted, family: str, way: str, tokens: int) -> Iterator[Row]:
    """Prefill and decode of a real model held against what was counted. All that lives beyond weights is compared."""
    with torch.no_grad():
        read_prompt(model, 4)  # a first call leaves things behind: tables, repacked weights
        (row, logits), prefill = measure(lambda: read_prompt(model, tokens))
        kept = prefill.kept - logits.nbytes
        del logits
        _, decode = measure(lambda: row.read([1]).float())
    yield Row("prefill", family, way, tokens, counted.kv_cache + counted.prefill_peak, prefill.peak)
    yield Row("decode", family, way, tokens, counted.kv_cache + counted.decode_peak, kept + decode.peak)


def count(file: Path, run: RunSpec, tokens: int) -> Counted:
    """The dry run of a whole prompt into a plain cache."""
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        return count_run(fake_model(file, run, "cpu"), tokens, tokens, cache="dynamic")


def compare_families(folder: Path, families: Sequence[str]) -> Iterator[Row]:
    """Every family, with sdpa and eager, in fp32 and bf16, at three lengths."""
    dtypes: tuple[DType, ...] = ("float32", "bfloat16")
    for family in families:
        file = write_config(folder, family)
        for attention in ("sdpa", "eager"):
            for dtype in dtypes:
                model = real_model(tiny_config(family), DTYPES[dtype], attention)
                used = model.config._attn_implementation
                if used != attention:  # the family has no sdpa: its row comes with eager
                    continue
                for tokens in PROMPTS:
                    counted = count(file, RunSpec(dtype, attention=attention), tokens)
                    yield from compare(model, counted, family, f"{used} {dtype}", tokens)


def compare_quantized(folder: Path, families: Sequence[str]) -> Iterator[Row]:
    """bitsandbytes on the CPU: the model after its first use, and its peaks."""
    formats: tuple[Quantization, ...] = ("nf4", "int8")
    dtypes: tuple[DType, ...] = ("float32", "bfloat16")
    for family in families:
        wide = {"hidden_size": 128, "num_hidden_layers": 3, "ffn_dim" if family == "opt" else "intermediate_size": 256}
        if family == "opt":
            wide["word_embed_proj_dim"] = 128
        file = write_config(folder, family, **wide)
        stored = file.parent / "weights"
        real_model(tiny_config(family, **wide), torch.float32, "sdpa").save_pretrained(stored)
        for quantization in formats:
            for dtype in dtypes:
                model = load_quantized(stored, quantization, DTYPES[dtype])
                with torch.no_grad():
                    read_prompt(model, 4)
                way = f"{quantization} {dtype}"
                for tokens in PROMPTS:
                    counted = count(file, RunSpec(dtype, quantization, compute_dtype=dtype), tokens)
                    yield from compare(model, counted, family, way, tokens)
                yield Row("weights", family, way, 0, counted.weights, tensors_bytes(model))


def load_quantized(stored: Path, quantization: Quantization, dtype: torch.dtype) -> Any:
    """A model that bitsandbytes quantizes while it is loaded."""
    options: dict[str, Any] = {"load_in_8bit": True}
    if quantization == "nf4":
        options = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}
    made: Any = BitsAndBytesConfig
    auto: Any = transformers.AutoModelForCausalLM
    return auto.from_pretrained(stored, quantization_config=made(**options), dtype=dtype).eval()


def compare_training(folder: Path, families: Sequence[str]) -> Iterator[Row]:
    """The second of two steps, when the optimizer has its states: the most alive, weights included."""
    modes: tuple[TrainingMode, ...] = ("full", "lora")
    optimizers: tuple[Optimizer, ...] = ("adamw", "sgd")
    dtypes: tuple[DType, ...] = ("float32", "bfloat16")
    for family in families:
        layers = {"n_layer" if family == "gpt2" else "num_hidden_layers": TRAINED_LAYERS}
        file = write_config(folder, family, **layers)
        for mode in modes:
            for optimizer in optimizers:
                for checkpointing in (False, True):
                    for dtype in dtypes:
                        run = TrainingRun(mode, 1, TRAINED_TOKENS, optimizer, checkpointing, RANK, dtype)
                        model = real_model(tiny_config(family, **layers), DTYPES[dtype], "sdpa")
                        real = real_step(model, run)
                        way = f"{mode} {optimizer} {dtype}{' checkpoints' if checkpointing else ''}"
                        yield Row("training", family, way, TRAINED_TOKENS, count_training(file, run).peak, real)


def real_step(model: Any, run: TrainingRun) -> int:
    """The most bytes alive in two steps of training `model`."""
    trained = make_trainable(model, run)
    optimizer = make_optimizer(trained, run)
    ids = torch.ones((run.batch, run.tokens), dtype=torch.long)

    def train() -> None:
        for _ in range(2):
            optimizer.zero_grad(set_to_none=True)
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()

    found: tuple[None, Allocated] = measure(train)
    return tensors_bytes(model) + found[1].peak


def compare_engine_loops(folder: Path, families: Sequence[str]) -> Iterator[Row]:
    """The loops that serve people."""
    return (Row(*values) for values in compare_loops(folder, families))


PARTS: dict[str, tuple[Sequence[str], Callable[[Path, Sequence[str]], Iterator[Row]]]] = {
    "quantized": (QUANTIZED_FAMILIES, compare_quantized),
    "training": (TRAINED_FAMILIES, compare_training),
    "loops": (LOOP_FAMILIES, compare_engine_loops),
    "families": (FAMILIES, compare_families),
}


def show(rows: Iterator[Row]) -> list[Row]:
    """Print rows as they come."""
    shown = []
    for row in rows:
        error = abs(row.ratio - 1)
        mark = "  <-- beyond 2 %" if error > 0.02 else "  <-- beyond 0.5 %" if error > 0.005 else ""
        print(
            f"{row.what:9} {row.family:12} {row.way:28} {row.tokens:5} forecast {row.forecast:>12,} "
            f"real {row.real:>12,}  {row.ratio:.4f}{mark}",
            flush=True,
        )
        shown.append(row)
    return shown


def summary(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Per kind of comparison: how many families are within 0.5 % and 2 % everywhere, and the worst row."""
    lines = []
    for what in dict.fromkeys(row.what for row in rows):
        mine = [row for row in rows if row.what == what]
        worst_of = {
            family: max(abs(row.ratio - 1) for row in mine if row.family == family)
            for family in {row.family for row in mine}
        }
        worst = max(mine, key=lambda row: abs(row.ratio - 1))
        lines.append(
            {"what": what, "rows": len(mine), "families": len(worst_of),
             "families_within_half_percent": sum(error <= 0.005 for error in worst_of.values()),
             "families_within_two_percent": sum(error <= 0.02 for error in worst_of.values()),
             "worst": f"{worst.family} {worst.way} {worst.tokens}", "worst_ratio": round(worst.ratio, 4)}
        )  # fmt: skip
        print(lines[-1])
    return lines


def main() -> None:
    """Compare everything, or only what a GPU does."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--gpu", action="store_true", help="compare with the CUDA allocator")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    if arguments.gpu:
        compare_on_gpu()
        return
    for part in arguments.parts:
        among, compare_part = PARTS[part]
        with tempfile.TemporaryDirectory() as scratch:
            chosen = [family for family in among if family in arguments.families]
            rows = show(compare_part(Path(scratch), chosen))
        lines = summary(rows)
        kept = [{**asdict(row), "ratio": round(row.ratio, 4)} for row in rows]
        finish(f"memory-{part}", {"threads": torch.get_num_threads(), "summary": lines, "rows": kept})


if __name__ == "__main__":
    main()
