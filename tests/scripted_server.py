"""A Snug with a scripted engine in a process of its own, for tests that kill it.

`python -m tests.scripted_server PORT FOLDER SCRIPT` prints "ready", and ends with its standard input. SCRIPT is a
Script as JSON.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path

from modules import heap
from modules.settings import Settings
from tests.fakes import Script
from tests.page_rig import ROOT, start_snug

ON_AND_ON = Script(reply="and so on ", endless=True, tokens_per_s=40)


@contextmanager
def scripted_server(
    port: int, folder: Path, script: Script = ON_AND_ON, *, before: Callable[[], None] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """Start one that is ready, its folders below `folder`; at the end it is gone. `before` runs in its process."""
    command = [sys.executable, "-m", "tests.scripted_server", str(port), str(folder), json.dumps(asdict(script))]
    process = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=before
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def main() -> None:
    """Serve until nobody listens any more."""
    heap.prepare_server()  # as server.py does
    port, folder = int(sys.argv[1]), Path(sys.argv[2])
    values = json.loads(sys.argv[3])
    folders = {"model_dir": folder / "models", "user_data_dir": folder / "user_data"}
    for path in folders.values():
        path.mkdir(parents=True, exist_ok=True)
    with ExitStack() as parts:
        script = Script(**values | {"end_texts": tuple(values["end_texts"])})
        start_snug(Settings.model_validate(folders), parts, script, port=port)
        gc.collect()  # Gradio drops event loops unclosed: three descriptors each, till the collector comes by
        print("ready", flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
