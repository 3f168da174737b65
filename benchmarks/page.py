"""From the engine's last token to that text on the screen, in Chromium: in a new chat, and in one of 200 messages.

`python -m benchmarks.page [--repeats 10]`. Goals: at most 100 ms, and the long chat no slower than the short one.

The engine is a script that says 40 tokens a second and, as its last one, the time. The page notes when that text has
been drawn. Server and browser share this machine and its clock.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.common import finish, median, spread
from modules.engine.base import Delta, Emit, Engine, GenerationRequest, OnProgress
from modules.engine.host.worker import LoadByName
from modules.memory.planning.planner import Plan
from modules.messages import Role
from modules.settings import Settings
from modules.ui.chat_tab import SHOWN
from tests.fakes import Script, ScriptedEngine, ScriptedLoad
from tests.page_rig import CHROMIUM_ARGUMENTS, Snug, start_snug

LAST = "¶"
SCRIPT = Script(reply="It was a dark night, and the lamp of the lighthouse had gone out. " + LAST, tokens_per_s=40)
MESSAGES = 200
WATCH = """() => {
  window.drawn = [];
  new MutationObserver(() => {
    const all = document.querySelectorAll('.message.assistant .body');
    const found = all.length && all[all.length - 1].textContent.match(/at (\\d+\\.\\d+) s/);
    if (!found || window.drawn.some(([told]) => told === found[1])) return;
    const entry = [found[1], 0];
    window.drawn.push(entry);
    requestAnimationFrame(() => setTimeout(() => { entry[1] = Date.now() / 1000; }));
  }).observe(document.body, {childList: true, subtree: true, characterData: true});
}"""


def load(plan: Plan, on_progress: OnProgress) -> Engine:
    """The LoadEngine: a script whose last token is the time at which it was made."""
    engine = ScriptedLoad(SCRIPT)(plan, on_progress)
    submit = engine.submit

    def stamped(request: GenerationRequest, emit: Emit) -> None:
        def tell(event: Any) -> None:
            last = isinstance(event, Delta) and event.text == LAST
            emit(replace(event, text=f"at {time.time():.3f} s") if last else event)

        submit(request, tell)

    return _Stamped(engine, stamped)


class _Stamped:
    """A ScriptedEngine with another `submit`."""

    def __init__(self, engine: ScriptedEngine, submit: Any) -> None:
        self._engine = engine
        self.submit = submit

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


def fill(snug: Snug, messages: int) -> str:
    """A conversation of so many messages; its id."""
    store = snug.services.store
    conversation = store.create("", title=f"{messages} messages")
    parent = None
    for number in range(messages):
        text = f"Message {number}: **tide tables**, `code` and $x^2$.\n\n- one\n- two"
        role: Role = "assistant" if number % 2 else "user"
        parent = store.append("", conversation.id, parent, role, text, op_id=f"{conversation.id} {number}").id
    return conversation.id


def delays_ms(page: Any, repeats: int) -> list[float]:
    """Milliseconds from last token to screen, of `repeats` replies."""
    page.evaluate(WATCH)
    for turn in range(repeats + 1):
        page.fill("#snug-input", f"Go on, {turn}.")
        page.press("#snug-input", "Enter")
        page.wait_for_function("count => window.drawn.filter(([, at]) => at).length > count", arg=turn, timeout=60_000)
        page.wait_for_selector(".message.assistant.streaming", state="detached")
    return [1000 * (at - float(told)) for told, at in page.evaluate("() => window.drawn")][1:]


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=10)
    repeats = parser.parse_args().repeats
    from playwright.sync_api import sync_playwright

    chromium = os.environ.get("SNUG_TEST_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    with tempfile.TemporaryDirectory() as folder, ExitStack() as parts, sync_playwright() as playwright:
        settings = Settings.model_validate(
            {"model_dir": Path(folder) / "models", "user_data_dir": Path(folder) / "user_data"}
        )
        settings.user_data_dir.mkdir()
        snug = start_snug(settings, parts, SCRIPT, load=LoadByName("benchmarks.page:load"))
        browser = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_ARGUMENTS)
        rows = []
        for messages in (0, MESSAGES):
            conversation = fill(snug, messages)
            page = browser.new_page()
            page.goto(f"{snug.url}?c={conversation}")
            page.wait_for_selector("#snug-tabs")
            shown = min(messages, SHOWN)
            page.wait_for_function(f"document.querySelectorAll('.message').length >= {shown}")
            delays = delays_ms(page, repeats)
            print(f"{messages:4} messages before: last token to screen {spread(delays)} ms", flush=True)
            rows.append({"messages_before": messages, "delays_ms": [round(delay, 1) for delay in delays],
                         "median_ms": round(median(delays), 1)})  # fmt: skip
            page.close()
        browser.close()
    long_over_short = rows[1]["median_ms"] / rows[0]["median_ms"]  # type: ignore[operator]
    finish("page", {"goal": "<= 100 ms; long over short about 1", "rows": rows,
                    "long_over_short": round(long_over_short, 2)})  # fmt: skip


if __name__ == "__main__":
    main()
