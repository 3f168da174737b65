"""ZeRO-3 for real: engine processes and followers as under the deepspeed launcher, on the CPU, in step and by name."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from modules.engine.base import Delta, Finished, GenerationRequest, TextPiece
from modules.engine.host.host import EngineHost, Generation
from modules.engine.host.worker import LoadByName
from modules.engine.zero3.load import Sizes, measure, zero3_config
from modules.errors import BadSafetensors, BadValue, EngineDied, NotAvailableHere, SnugError
from modules.memory.model.spec import inspect
from modules.memory.planning.planner import Plan, Question, make_plan
from modules.sampling import GenerationParams
from modules.settings import LoadOptions
from tests.fakes import fake_inventory
from tests.tiny_models import tiny_model

STARTER = Path("models/SmolLM2-135M-Instruct")
LOAD = LoadByName("modules.engine.zero3.doors:load")
PROMPT = "The harbour wakes before the town. Fishing boats"
WAIT_S = 240

StartRanks = Callable[..., None]


@pytest.fixture
def start_ranks(monkeypatch: pytest.MonkeyPatch) -> Iterator[StartRanks]:
    """Be rank 0's server among `size` ranks; the others run server.py as the deepspeed launcher runs it."""
    with ExitStack() as stack:

        def start(size: int) -> None:
            with socket.create_server(("127.0.0.1", 0)) as probe:
                port = probe.getsockname()[1]
            shared = {"WORLD_SIZE": size, "LOCAL_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            for name, value in {**shared, "RANK": 0, "LOCAL_RANK": 0}.items():
                monkeypatch.setenv(name, str(value))
            for rank in range(1, size):
                environment = {**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank)}
                command = [sys.executable, "server.py", f"--local_rank={rank}", "--deepspeed", "--chat"]
                stack.callback(end, subprocess.Popen(command, env=environment))

        yield start


def end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(20)
    finally:
        process.kill()


def plan_of(path: Path, **flags: Any) -> Plan:
    options = LoadOptions(deepspeed=True, **flags)
    return make_plan(Question(inspect(path), options, fake_inventory(), path.parent / "cache"))


@pytest.fixture
def host_of() -> Iterator[Callable[..., EngineHost]]:
    with ExitStack() as stack:

        def start(path: Path, **flags: Any) -> EngineHost:
            host = EngineHost.start(plan_of(path, **flags), LOAD)
            stack.callback(host.close)
            return host

        yield start


def starter() -> Path:
    if not STARTER.exists():
        pytest.skip(f"{STARTER} is not there; ./start.sh fetches it")
    return STARTER


def request(host: EngineHost, name: str, tokens: int = 12, prompt: str = PROMPT) -> GenerationRequest:
    prompt_ids = tuple(host.encode([TextPiece(prompt)]))
    return GenerationRequest(name, "", prompt_ids, GenerationParams(temperature=0, max_new_tokens=tokens))


def tokens_of(host: EngineHost, asked: GenerationRequest) -> list[int]:
    generation = host.submit(asked)
    return [token for event in generation if isinstance(event, Delta) for token in event.token_ids]


def end_at_first_text(running: Generation, end: Callable[[], None]) -> Finished:
    """Do `end` at the first text of a reply; how the reply then ended."""
    for event in running:
        if isinstance(event, Delta):
            end()
        elif isinstance(event, Finished):
            return event
    raise AssertionError("a reply without end")


def await_death(host: EngineHost) -> None:
    """Wait until `host` knows that its engine is gone."""
    finished = host.submit(GenerationRequest("last", "", (5,), GenerationParams(max_new_tokens=100_000))).result(
        WAIT_S
    )[1]
    assert isinstance(finished.error, SnugError)


def generated(path: Path, prompt_ids: Sequence[int], tokens: int, dtype: torch.dtype = torch.bfloat16) -> list[int]:
    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, local_files_only=True)
    with torch.inference_mode():
        ids = model.generate(torch.tensor([list(prompt_ids)]), do_sample=False, max_new_tokens=tokens)
    return [int(token) for token in ids[0, len(prompt_ids) :] if int(token) != model.config.eos_token_id]


@pytest.mark.model
@pytest.mark.parametrize("size", [1, 2])
def test_greedy_tokens_are_those_of_generate_whatever_the_number_of_ranks(
    size: int, start_ranks: StartRanks, host_of: Callable[..., EngineHost]
) -> None:
    start_ranks(size)
    host = host_of(starter(), bf16=True)
    asked = request(host, "one")
    assert tokens_of(host, asked) == generated(STARTER, asked.prompt_ids, 12)
    longer = request(host, "two", prompt=PROMPT + " leave")
    assert tokens_of(host, longer) == generated(STARTER, longer.prompt_ids, 12)
    assert host.info.loop == "zero3"
    assert host.info.placement == {"cpu": 2 * 134_515_008}


@pytest.mark.slow
@pytest.mark.model
def test_a_stopped_reply_leaves_the_ranks_in_step_and_caches_follow_prefixes(
    start_ranks: StartRanks, host_of: Callable[..., EngineHost]
) -> None:
    start_ranks(2)
    host = host_of(starter(), dtype="fp32")
    begun = host.submit(request(host, "stopped", 500))
    assert end_at_first_text(begun, begun.cancel).reason == "cancelled"
    for name, prompt in (("cut", PROMPT), ("branch", PROMPT[:-5] + "people"), ("new", "Once upon")):
        asked = request(host, name, 8, prompt)
        assert tokens_of(host, asked) == generated(STARTER, asked.prompt_ids, 8, torch.float32), name


@pytest.mark.model
def test_a_killed_engine_fails_its_reply_and_is_loaded_anew_with_all_ranks(
    start_ranks: StartRanks, host_of: Callable[..., EngineHost]
) -> None:
    start_ranks(2)
    host = host_of(starter(), bf16=True)
    running = host.submit(request(host, "killed", 500))
    assert host.pid is not None
    finished = end_at_first_text(running, partial(os.kill, host.pid, signal.SIGKILL))
    assert isinstance(finished.error, EngineDied)
    again = host_of(starter(), bf16=True)
    short = request(again, "again")
    assert tokens_of(again, short) == generated(STARTER, short.prompt_ids, 12)


@pytest.mark.slow
@pytest.mark.model
def test_a_lost_follower_ends_the_engine_and_the_next_load_works(
    start_ranks: StartRanks, host_of: Callable[..., EngineHost]
) -> None:
    start_ranks(2)
    host = host_of(starter(), bf16=True)
    follower = next(
        process
        for process in psutil.Process().children(recursive=True)
        if "modules.engine.zero3.follower" in process.cmdline()
    )
    finished = end_at_first_text(host.submit(request(host, "long", 500)), follower.kill)
    assert finished.error is not None
    await_death(host)
    again = host_of(starter(), bf16=True)
    assert len(tokens_of(again, request(again, "again", 3))) == 3


@pytest.mark.slow
@pytest.mark.model
def test_weights_on_disk_give_the_same_tokens_and_the_folder_is_left_clean(
    start_ranks: StartRanks, host_of: Callable[..., EngineHost], tmp_path: Path
) -> None:
    start_ranks(1)
    try:
        host = host_of(starter(), bf16=True, nvme_offload_dir=tmp_path)
    except NotAvailableHere as missing:
        pytest.skip(str(missing))
    on_disk = sum(file.stat().st_size for file in tmp_path.rglob("*.swp"))
    assert on_disk > 2 * 130_000_000
    asked = request(host, "disk", 6)
    assert tokens_of(host, asked) == generated(STARTER, asked.prompt_ids, 6)
    assert host.info.placement == {"disk": 2 * 134_515_008}
    host.close()
    assert not list(tmp_path.iterdir())


def test_an_encoder_decoder_model_runs_on_two_ranks(
    start_ranks: StartRanks, host_of: Callable[..., EngineHost], tmp_path: Path
) -> None:
    start_ranks(2)
    path = tiny_model("t5", tmp_path)
    host = host_of(path, dtype="fp32")
    model: Any = AutoModelForSeq2SeqLM.from_pretrained(path, dtype=torch.float32, local_files_only=True)
    for name in ("first", "second"):
        asked = request(host, name, 6, f"The {name} harbour wakes")
        expected = model.generate(torch.tensor([asked.prompt_ids]), do_sample=False, max_new_tokens=6)[0, 1:].tolist()
        assert tokens_of(host, asked) == [token for token in expected if token != model.config.eos_token_id]


@pytest.mark.parametrize(("dtype", "enabled"), [("bf16", "bf16"), ("fp16", "fp16"), ("fp32", None)])
def test_the_configuration_names_the_dtype_and_keeps_two_modules_at_a_time(
    dtype: str, enabled: str | None, tmp_path: Path
) -> None:
    plan = plan_of(tiny_model("llama", tmp_path), dtype=dtype)
    config = zero3_config(plan, Sizes(1000, 1200, 9000), on_gpu=True, nvme_folder=None)
    assert [name for name in ("bf16", "fp16") if config[name]["enabled"]] == ([enabled] if enabled else [])
    zero = config["zero_optimization"]
    assert (zero["stage"], zero["stage3_max_live_parameters"]) == (3, 2400)
    assert zero["offload_param"] == {"device": "cpu", "pin_memory": True}
    on_disk = zero3_config(plan, Sizes(1000, 1200, 9000), on_gpu=False, nvme_folder=tmp_path)
    offload = on_disk["zero_optimization"]["offload_param"]
    assert (offload["device"], offload["nvme_path"], offload["buffer_size"]) == ("nvme", str(tmp_path), 1000)


def test_a_model_of_which_much_is_missing_is_refused_before_it_is_shared_out(tmp_path: Path) -> None:
    folder = tiny_model("llama", tmp_path)
    assert measure(plan_of(folder)).total == inspect(folder).parameters
    config, weights = folder / "config.json", folder / "model.safetensors"
    config.write_text(json.dumps({**json.loads(config.read_text()), "intermediate_size": 2**20}))
    save_file({name: tensor for name, tensor in load_file(weights).items() if "mlp" not in name}, weights)
    with pytest.raises(BadSafetensors, match=r"llama lacks 402,\d+,\d+ of its 402"):
        measure(plan_of(folder))


def test_a_folder_for_weights_that_cannot_be_written_is_named(
    start_ranks: StartRanks, host_of: Callable[..., EngineHost], tmp_path: Path
) -> None:
    start_ranks(1)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BadValue, match="--nvme-offload-dir"):
        host_of(tiny_model("llama", tmp_path), nvme_offload_dir=tmp_path / "file")
