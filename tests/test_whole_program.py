"""The whole program in an odd place: no network, another language and clock, signs in its folders; Ctrl-C twice."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest

from tests.conftest import STARTER_MODEL
from tests.page_doors import PageDoors
from tests.server_rig import RunningServer, running_server

pytestmark = [pytest.mark.model, pytest.mark.xdist_group("server")]

ODD = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "TZ": "Pacific/Chatham"}
# With the loopback alone: what tries to leave the machine fails at once.
ALONE = ("unshare", "--net", "--map-root-user", sys.executable, "-c",
         "import os, subprocess, sys; subprocess.run(['ip', 'link', 'set', 'lo', 'up'], check=False);"
         "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])")  # fmt: skip


def can_be_alone() -> bool:
    """Whether a network of its own can be made here."""
    if not shutil.which("unshare") or not shutil.which("ip"):
        return False
    tried = subprocess.run([*ALONE, "-c", "import socket; socket.create_server(('127.0.0.1', 0))"], capture_output=True)
    return tried.returncode == 0


def story(folder: Path) -> None:
    """A start, a chat, a page that writes while Ctrl-C is pressed twice, and a start after that."""
    user_data = folder / "Meine Daten — 資料 ü"
    flags = ("--model", STARTER_MODEL.name, "--dtype", "bf16")
    with running_server(user_data, *flags, environment=ODD) as server:
        server.wait_for_page()
        server.wait_until_ready()
        assert server.text.count("\n") == 1, server.text
        question = [{"role": "user", "content": "What is the capital of France? 🇫🇷"}]
        body = {"messages": question, "temperature": 0, "max_tokens": 16}
        answer = httpx.post(f"{server.base}/v1/chat/completions", json=body, timeout=120).json()
        assert "Paris" in answer["choices"][0]["message"]["content"]
        connections = [one for process in server.tree() for one in process.net_connections(kind="inet")]
        ends = {end.ip for one in connections for end in (one.laddr, one.raddr) if end}
        assert ends <= {"127.0.0.1", "::1"}
        chat, shown = begin_a_long_reply(server)
        tree = server.tree()
        for _ in range(2):
            os.killpg(server.process.pid, signal.SIGINT)
        assert server.process.wait(timeout=60) == 130
        _, alive = psutil.wait_procs(tree, timeout=20)
        assert alive == []
    with sqlite3.connect(user_data / "snug.db") as database:
        assert database.execute("PRAGMA quick_check").fetchone() == ("ok",)
        rows = database.execute(
            "SELECT content, status FROM messages WHERE conversation_id = ? AND role = 'assistant'", (chat,)
        )
        ((kept, status),) = rows.fetchall()
    assert status == "interrupted" and kept.startswith(shown)


def begin_a_long_reply(server: RunningServer) -> tuple[str, str]:
    """A conversation whose reply is under way, and what stands in the store of it already."""
    page = PageDoors(server.base)
    params = {"max_new_tokens": 4000, "ban_eos_token": True}
    sent = page.ask("send", text="Tell me a long story — ü 資料", op_id="operation-1", params=params)
    assert sent["accepted"], sent
    chat: str = sent["conversation"]["id"]
    while True:
        reply = page.ask("open", id=chat)["messages"][-1]
        assert reply["status"] == "streaming", reply
        if len(reply["text"]) > 20:
            return chat, str(reply["text"]).strip()


def test_without_a_network_in_another_language_and_clock_it_chats_and_ctrl_c_twice_keeps_what_was_written(
    tmp_path: Path,
) -> None:
    program = (
        "import sys; from pathlib import Path; from tests.test_whole_program import story; story(Path(sys.argv[1]))"
    )
    begin = ALONE if can_be_alone() else (sys.executable,)
    done = subprocess.run([*begin, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
