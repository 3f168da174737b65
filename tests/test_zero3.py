"""ZeRO-3 for real: engine processes and followers as under the deepspeed launcher, on the CPU, in step and by name."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from modules.engine.base import Delta, GenerationRequest, Progress
from modules.engine.host import EngineHost
from modules.engine.worker import LoadByName
from modules.errors import EngineDied, LoadFailed, NotAvailableHere, SnugError
from modules.memory.planner import Plan, make_plan
from modules.memory.spec import inspect
from modules.sampling import GenerationParams
from modules.settings import LoadOptions
from tests.fakes import fake_inventory
from tests.tiny_models import tiny_model

STARTER = Path("models/SmolLM2-135M-Instruct")
LOAD = LoadByName("modules.engine.zero3:load")
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
    return make_plan(
        inspect(path), options, fake_inventory(), user_cache_dir=path.parent / "cache", trust_remote_code=False
    )


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
    prompt_ids = tuple(host.encode([_piece(prompt)]))
    return GenerationRequest(name, "", prompt_ids, GenerationParams(temperature=0, max_new_tokens=tokens))


def _piece(text: str) -> Any:
    from modules.engine.base import TextPiece

    return TextPiece(text)


def tokens_of(host: EngineHost, asked: GenerationRequest) -> list[int]:
    generation = host.submit(asked)
    return [token for event in generation if isinstance(event, Delta) for token in event.token_ids]


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
