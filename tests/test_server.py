"""The whole program, started as a user starts it, with the starter model."""

from __future__ import annotations

import json
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.conftest import STARTER_MODEL
from tests.server_rig import ROOT, RunningServer, free_port, running_server

STARTER = STARTER_MODEL.name
pytestmark = [pytest.mark.model, pytest.mark.xdist_group("server")]


def start_and_fail(*flags: str) -> str:
    """The one line that a start with `flags` ends with, after exit code 2."""
    done = subprocess.run(
        [sys.executable, "server.py", *flags], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2, done
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr, done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server that has the starter model loaded in bf16."""
    user_data = tmp_path_factory.mktemp("user_data")
    with running_server(user_data, "--model", STARTER, "--dtype", "bf16") as running:
        running.wait_for_page()
        running.wait_until_ready()
        yield running


def ask(server: RunningServer, **body: object) -> httpx.Response:
    """One chat completion."""
    question = [{"role": "user", "content": "What is the capital of France?"}]
    request = {"model": "any", "messages": question, "temperature": 0, "max_tokens": 16, **body}
    return httpx.post(f"{server.base}/v1/chat/completions", json=request, timeout=120)


def test_it_answers_on_the_page_and_the_api(server: RunningServer) -> None:
    assert "Paris" in ask(server).json()["choices"][0]["message"]["content"]
    page = httpx.get(server.address, timeout=30)
    assert page.status_code == 200 and "Snug" in page.text
    assert server.text.count("\n") == 1, server.text  # the address and nothing else


def test_the_web_process_holds_no_torch_and_the_engine_does(server: RunningServer) -> None:
    maps = {process.pid: Path(f"/proc/{process.pid}/maps").read_text() for process in server.tree()}
    with_torch = {pid for pid, content in maps.items() if "libtorch" in content}
    assert with_torch and server.process.pid not in with_torch


def test_an_idle_server_leaves_the_cores_to_the_model(server: RunningServer) -> None:
    web = psutil.Process(server.process.pid)
    before, start = web.num_ctx_switches().voluntary, time.monotonic()
    time.sleep(2)
    a_second = (web.num_ctx_switches().voluntary - before) / (time.monotonic() - start)
    assert a_second < 300, "Gradio's queue alone looks for work 1000 times a second unless told otherwise"


def test_nothing_connects_to_the_outside(server: RunningServer) -> None:
    ask(server)
    for process in server.tree():
        for connection in process.net_connections(kind="inet"):
            for end in (connection.laddr, connection.raddr):
                assert not end or end.ip in ("127.0.0.1", "::1"), connection


def test_a_taken_port_is_named_and_nothing_is_started(server: RunningServer, tmp_path: Path) -> None:
    port = server.base.rsplit(":", 1)[1]
    line = start_and_fail("--listen-port", port, "--user-data-dir", str(tmp_path / "other"))
    assert f"--listen-port {port}" in line and "another program" in line
    assert not (tmp_path / "other").exists()


def test_a_second_server_on_the_same_user_data_is_refused_by_pid(server: RunningServer) -> None:
    arguments = server.process.args
    assert isinstance(arguments, list)
    folder = arguments[arguments.index("--user-data-dir") + 1]
    line = start_and_fail("--user-data-dir", folder, "--listen-port", str(free_port()))
    assert f"pid {server.process.pid}" in line


def test_an_address_that_is_not_ours_is_named(tmp_path: Path) -> None:
    for host in ("203.0.113.77", "no.such.host.invalid", "not an address"):
        assert host in start_and_fail("--listen-host", host, "--user-data-dir", str(tmp_path))


def test_killing_the_engine_costs_one_reply_and_the_next_one_reloads(server: RunningServer) -> None:
    body = {
        "model": "any", "prompt": "Once upon a time", "max_tokens": 400, "temperature": 0, "ban_eos_token": True,
        "stream": True,
    }  # fmt: skip
    engines = [process for process in server.tree() if "modules.engine.host.worker" in " ".join(process.cmdline())]
    assert len(engines) == 1
    text, error = "", None
    with httpx.stream("POST", f"{server.base}/v1/completions", json=body, timeout=120) as response:
        for line in response.iter_lines():
            if line.startswith("data: {"):
                chunk = json.loads(line[6:])
                error = chunk.get("error") or error
                text += "".join(choice["text"] for choice in chunk.get("choices", []))
                if len(text) > 20 and engines[0].is_running():
                    engines[0].kill()
    assert error is not None and error["code"] == "engine_died" and "SIGKILL" in error["message"]
    assert "memory" not in error["message"]  # plenty was free
    assert "Paris" in ask(server).json()["choices"][0]["message"]["content"]


def test_listening_needs_a_secret_that_is_printed_once_and_guests_manage_nothing(
    tmp_path: Path,
) -> None:
    with running_server(tmp_path, "--listen", "--model", STARTER) as server:
        server.wait_for_page()
        secret = re.search(r"\?token=([\w-]{22,})", server.address)
        server.wait_for_text("Guests and programs")  # a line of its own, after the address
        guests = re.search(r"Guests and programs, .*\?token=([\w-]{22,})", server.text)
        assert secret is not None and guests is not None
        assert [server.text.count(each) for each in (secret[1], guests[1])] == [1, 1]
        for path in ("/", "/v1/models", "/gradio_api/info"):
            assert httpx.get(server.base + path, timeout=30).status_code == 401
        allowed = httpx.get(server.base + "/v1/models", headers={"Authorization": f"Bearer {secret[1]}"}, timeout=30)
        assert allowed.status_code == 200
        for key, expected in ((secret[1], 200), (guests[1], 403)):
            stats = httpx.get(server.base + "/v1/internal/stats", headers={"x-api-key": key}, timeout=30)
            assert stats.status_code == expected
        visible = [" ".join(process.cmdline()) for process in server.tree()]
        assert not any(each in line for line in visible for each in (secret[1], guests[1]))


def test_sigterm_in_mid_reply_keeps_the_text_ends_the_engine_and_exits_in_time(tmp_path: Path) -> None:
    with running_server(tmp_path, "--model", STARTER, "--dtype", "bf16") as server:
        server.wait_for_page()
        assert time.monotonic() - server.started < 30
        server.wait_until_ready()
        tree = server.tree()
        body = {"model": "x", "prompt": "Once", "max_tokens": 2000, "ban_eos_token": True, "stream": True}
        with httpx.stream("POST", f"{server.base}/v1/completions", json=body, timeout=60) as response:
            lines = response.iter_lines()
            for line in lines:
                if '"text": "' in line or '"text":"' in line:
                    break
            server.process.send_signal(signal.SIGTERM)
            begin = time.monotonic()
            rest = "".join(lines)
        server.process.wait(timeout=20)
        assert time.monotonic() - begin < 10
        assert '"finish_reason"' in rest or '"error"' in rest
        _, alive = psutil.wait_procs(tree, timeout=5)
        assert not alive
        with sqlite3.connect(tmp_path / "snug.db") as database:
            assert database.execute("PRAGMA quick_check").fetchone() == ("ok",)


def test_a_port_below_1_or_taken_by_someone_else_is_never_swapped_for_another(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        assert port in start_and_fail("--listen-port", port, "--user-data-dir", str(tmp_path))


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--model", "gpt-j-6B"), "gpt-j-6B"),
        (("--model", "../outside"), "../outside"),
        (("--attn-implementation", "flash_attention_2"), "flash_attention_2"),
        (("--gpu-memory", "10", "10", "10", "10", "10", "10", "10", "10", "10"), "--gpu-memory"),
    ],
)
def test_what_is_not_there_is_named_and_nothing_is_served(flags: tuple[str, ...], named: str, tmp_path: Path) -> None:
    assert named in start_and_fail(*flags, "--listen-port", str(free_port()), "--user-data-dir", str(tmp_path))
