"""On a GPU: decode speed of a random-weight 7B-shaped model through our engine against plain `model.generate`.

`python -m benchmarks.gpu [--shape 7b|1b|tiny] [--kinds bf16 bf16-static …] [--repeats 3]`. Needs no page and no
network: the engine runs in its own process as under the server. Without a GPU it says so and ends.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from benchmarks.common import finish, median, spread
from benchmarks.generate_worker import answer, load
from benchmarks.limit import planned
from modules.engine.base import Delta, Finished, GenerationRequest
from modules.engine.host.host import EngineHost
from modules.hardware import read_inventory
from modules.machine_speeds import measure
from modules.memory.model.spec import inspect
from modules.memory.planning.planner import Question, make_plan
from modules.models.starting import load_engine_for
from modules.sampling import GenerationParams
from modules.settings import LoadOptions

CONTEXTS = (100, 2000)
NEW_TOKENS = 128
OPTIONS: dict[str, dict[str, Any]] = {
    "bf16": {"dtype": "bf16"}, "bf16-static": {"dtype": "bf16", "kv_cache": "static"}, "int8": {"load_in_8bit": True},
    "nf4": {"load_in_4bit": True}, "nf4-static": {"load_in_4bit": True, "kv_cache": "static"},
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "14b": {
        "hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40,
        "num_key_value_heads": 8,
    },
    "1b": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32},
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
}  # fmt: skip


def make_model(folder: Path, shape: str) -> Path:
    """A LLaMA of that shape with random bf16 weights and a byte-level tokenizer, saved under `folder`."""
    vocab = 32000 if shape != "tiny" else 512
    config = LlamaConfig(vocab_size=vocab, max_position_embeddings=16384, **SHAPES[shape])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    path = folder / f"random-{shape}"
    model.save_pretrained(path)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    byte_level = Tokenizer(models.BPE({piece: index + 3 for index, piece in enumerate(alphabet)}, []))
    byte_level.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    byte_level.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_level, eos_token="</s>", bos_token="<s>")
    tokenizer.save_pretrained(path)
    del model
    if device == "cuda":
        torch.cuda.empty_cache()
    return path


def start_engine(path: Path, kind: str, folder: Path) -> EngineHost:
    """Our engine on `path`."""
    options = LoadOptions(model=path.name, ctx_size=4096, **OPTIONS[kind])
    plan = make_plan(Question(inspect(path), options, read_inventory(folder), folder))
    return EngineHost.start(plan, load_engine_for(plan))


def run_ours(host: EngineHost, ids: list[int], number: int) -> dict[str, float]:
    """One reply through the engine process, timed on this side of its pipe."""
    params = GenerationParams(temperature=0, max_new_tokens=NEW_TOKENS, ban_eos_token=True)
    start = time.perf_counter()
    first = last = 0.0
    for event in host.submit(GenerationRequest(f"gpu-{number}", "bench", tuple(ids), params)):
        if isinstance(event, Delta):
            last = time.perf_counter()
            first = first or last
        elif isinstance(event, Finished):
            if event.error is not None:
                raise event.error
            return {
                "first_token_s": first - start,
                "tokens_per_s": event.timings.tokens_per_s,
            }
    raise RuntimeError("the generation ended without Finished")


def compare(path: Path, kind: str, repeats: int, folder: Path) -> list[dict[str, Any]]:
    """Both sides, one after the other, since each may need the whole card."""
    theirs: dict[int, list[dict[str, Any]]] = {}
    prompts = {context: [3 + (index * 7919) % 250 for index in range(context)] for context in CONTEXTS}
    weights = kind.removesuffix("-static")
    model = load(str(path), weights)
    if torch.cuda.is_available() and weights == "bf16":
        model = model.to("cuda")
    for context, ids in prompts.items():
        runs = [answer(model, {"ids": ids, "new_tokens": NEW_TOKENS}) for _ in range(repeats + 1)]
        theirs[context] = runs[1:]
    del model
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    rows = []
    host = start_engine(path, kind, folder)
    try:
        for context, ids in prompts.items():
            ours = [run_ours(host, ids, index) for index in range(repeats + 1)][1:]
            speeds = [run["tokens_per_s"] for run in ours]
            others = [run["tokens_per_s"] for run in theirs[context]]
            ratio = median(speeds) / median(others)
            print(
                f"{kind:5} {context:5} tokens   snug {spread(speeds)}   generate {spread(others)} tok/s   × {ratio:.2f}"
            )
            rows.append({"kind": kind, "context": context, "snug": speeds, "generate": others, "ratio": ratio})
        rows.append({"kind": kind, "stats": dataclasses.asdict(host.stats()), "loop": host.info.loop})
    finally:
        host.close()
    return rows


def main() -> None:
    """Run every kind asked for, where a GPU is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    here = [kind for kind in OPTIONS if torch.cuda.is_available() or not kind.endswith("-static")]
    parser.add_argument("--kinds", nargs="+", choices=here, default=here)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    if not torch.cuda.is_available() and arguments.shape != "tiny":
        print("There is no CUDA GPU here: nothing was measured. (--shape tiny tries the script itself on the CPU.)")
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        path = make_model(folder, arguments.shape)
        rows = [row for kind in arguments.kinds for row in compare(path, kind, arguments.repeats, folder)]
        models = {kind: planned(path, OPTIONS[kind]) for kind in arguments.kinds}
    rates = measure()
    read_Bps = rates.get("cuda:0", rates["cpu"])["read_Bps"]
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    figures = {"gpu": gpu, "new_tokens": NEW_TOKENS, "read_Bps": read_Bps, "models": models, "rows": rows}
    finish(f"gpu-{arguments.shape}", figures)


if __name__ == "__main__":
    main()
