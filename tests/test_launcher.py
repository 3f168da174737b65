"""The deepspeed launcher starts server.py on every rank; all ranks generate, rank 0 serves the page."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import httpx
import psutil
import pytest

from tests.conftest import STARTER_MODEL
from tests.server_rig import RunningServer, free_port, running_server

pytestmark = [
    pytest.mark.model,
    pytest.mark.xdist_group("server"),
    pytest.mark.timeout(600),
    pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed"),
]


def launcher(ranks: int) -> tuple[str, ...]:
    """`deepspeed --num_gpus=N`, on a rendezvous port of its own."""
    script = Path(sys.executable).with_name("deepspeed")
    return (str(script), f"--num_gpus={ranks}", f"--master_port={free_port()}")


def question(server: RunningServer) -> str:
    """The greedy answer to a question that the starter model knows."""
    body = {
        "model": "any", "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "temperature": 0, "max_tokens": 12,
    }  # fmt: skip
    answer = httpx.post(f"{server.base}/v1/chat/completions", json=body, timeout=300)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


def engines(server: RunningServer) -> list[psutil.Process]:
    """The processes that hold the model, on all ranks."""
    return [
        process
        for process in server.tree()
        if any(
            name in " ".join(process.cmdline())
            for name in ("modules.engine.host.worker", "modules.engine.zero3.follower")
        )
    ]


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_launcher_starts_a_page_that_chats_and_survives_the_loss_of_an_engine(ranks: int, tmp_path: Path) -> None:
    flags = ("--deepspeed", "--chat", "--model", STARTER_MODEL.name)
    with running_server(tmp_path, *flags, command=launcher(ranks)) as server:
        server.wait_for_page()
        assert httpx.get(server.base, timeout=60).status_code == 200
        server.wait_until_ready()
        info = httpx.get(f"{server.base}/v1/internal/model/info", timeout=60).json()
        assert info["model"]["loop"] == "zero3"
        assert "Paris" in question(server)
        leader = next(process for process in engines(server) if "worker" in " ".join(process.cmdline()))
        assert len(engines(server)) == ranks
        leader.kill()
        assert "Paris" in question(server)
        tree = server.tree()
        server.interrupt()
    _, alive = psutil.wait_procs(tree, timeout=15)
    assert not alive
