"""No deadline is shorter than three times what it usually takes on a busy machine (F10).

Every number of seconds in the code stands here, either with what is usual beside two programs that keep a core busy
each, on two cores, or as one whose end costs nothing. A new one fails the test until it is looked at.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from modules.attachments import extracting
from modules.attachments.extracting import Extractor
from modules.chat import templates
from modules.chat.store import Store
from modules.chat.templates import TemplateWorker
from modules.engine import form_reading
from modules.engine.form_reading import Form, FormReader
from modules.engine.host.host import EngineHost
from modules.engine.host.patience import PATIENCE
from modules.engine.host.worker import LoadByName
from modules.memory.model import describing
from modules.memory.model.describing import describe_in_process
from tests.crowd import busy_programs
from tests.deadlines import numbers_of_seconds
from tests.fakes import fake_plan, fake_request
from tests.small_files import pdf

TIMES = 3

# What ends, fails or is killed when its time is up, with the seconds that it usually takes on a busy machine. Measured:
# see `measured` below and docs/log.md; the others follow from what is done in them.
DEADLINES = {
    # a message across a network that is awake; who waits longer waits for a person or a machine elsewhere
    "modules/api/doors/connections.py: HEADERS_S": 1,
    "modules/api/doors/connections.py: headers_s": 1,
    "modules/api/doors/connections.py: HURRY_S": 1,
    "modules/api/doors/connections.py: hurry_s": 1,
    "modules/api/doors/connections.py: BODY_GRACE_S": 1,
    "modules/api/doors/connections.py: body_grace_s": 1,
    "modules/api/doors/connections.py: READING_S": 1,
    "modules/api/doors/connections.py: reading_s": 1,
    "modules/api/sse.py: SEND_TIMEOUT_S": 1,
    "modules/engine/remote/client.py: connect_s": 1,
    "modules/engine/remote/client.py: answer_s": 5,
    "modules/engine/remote/client.py: silence_s": 60,  # a long prompt on a slow machine
    "modules/engine/vllm/engine.py: replace(connect_s=5)": 0.5,  # on this machine
    "modules/engine/zero3/ranks.py: CONNECT_S": 0.5,
    "modules/memory/model/hub_client.py: REQUEST_TIMEOUT_S": 2,
    "modules/memory/model/hub_client.py: WHOLE_TIMEOUT_S": 10,
    "modules/outgoing.py: TIMEOUT_S": 2,
    # processes that start: a bare Python, one with torch
    "modules/attachments/extracting.py: _START_S": 2,
    "modules/chat/templates.py: _START_S": 2,
    "modules/engine/form_reading.py: _START_S": 2,
    "modules/ui/highlighting.py: _START_S": 2,
    "modules/engine/vllm/server.py: LOOK_S": 15,  # asks vLLM, torch and all, for its version
    "modules/engine/zero3/ranks.py: GATHER_TIMEOUT_S": 5,
    "modules/memory/dryruns/asking.py: _START_S": 15,
    "modules/memory/model/describing.py: TIMEOUT_S": 15,
    # what they are asked
    "modules/attachments/extracting.py: EXTRACT_S": 5,
    "modules/attachments/extracting.py: _WAIT_S": 15,  # for two others
    "modules/attachments/worker.py: MOST_CPU_S": 3,  # of the processor, not of the clock
    "modules/chat/taking_in.py: DRAW_S": 10,
    "modules/chat/templates.py: RENDER_S": 0.2,
    "modules/chat/shelf.py: LARGE_S": 10,  # another large conversation of the same person, as it is read and sent
    "modules/ui/side.py: EXPORT_S": 15,  # another export of the same person
    "modules/engine/form_reading.py: READ_S": 0.2,
    "modules/engine/form_worker.py: _LONGEST_S": 0.1,  # of the processor
    "modules/ui/highlighting.py: HIGHLIGHT_S": 0.1,
    "modules/ui/highlight_worker.py: _LONGEST_S": 0.1,
    "modules/memory/dryruns/asking.py: ANSWER_S": 8,
    "modules/machine_speeds.py: _MEASURING_S": 20,
    # extensions
    "modules/extensions/manager.py: START_TIMEOUT_S": 3,
    "modules/extensions/manager.py: HOOK_TIMEOUT_S": 1,
    "modules/engine/loops/foreign.py: START_S": 3,
    "modules/engine/loops/foreign.py: STEP_S": 0.05,
    # models; the watch over a load begins anew with every sign of progress
    "modules/check.py: _MODE_TIMEOUT_S": 60,
    "modules/engine/host/patience.py: load_s": 120,
    "modules/engine/host/patience.py: reply_s": 120,
    "modules/engine/host/patience.py: call_s": 1,
    "modules/engine/host/patience.py: queue_s": 60,
    "modules/engine/host/patience.py: close_s": 0.7,
    "modules/engine/intake.py: CLOSE_TIMEOUT_S": 5,  # the step under way
    "modules/engine/llamacpp/stream.py: LET_GO_S": 10,  # a piece of a prompt
    "modules/engine/loops/held.py: FIRST_S": 0.05,  # of the processor
    "modules/engine/loops/held.py: EACH_S": 0.002,
    "modules/engine/vllm/server.py: END_S": 5,
    "modules/engine/vllm/supervise.py: END_S": 3,
    "modules/engine/zero3/load.py: STEP_TIMEOUT": 300,
    "modules/models/slot.py: WAIT_FOR_LOAD_S": 120,
    # the files of SQLite, held by another program
    "modules/chat/database.py: LOCK_WAIT_S": 0.2,
    "modules/memory/planning/ledger.py: _LOCK_WAIT_S": 0.2,
    # last words, and ends that are insisted on
    "modules/engine/host/worker.py: LAST_WORDS_S": 0.1,
    "modules/engine/zero3/doors.py: LAST_WORDS_S": 0.2,
    "modules/engine/zero3/engine.py: FOLLOWERS_WORD_S": 0.5,
}

# What costs nothing when it is up: looks, pauses, ages, figures, and waits after which all goes on as it would have.
OTHERS = """
server.py: Config(timeout_graceful_shutdown=2)
modules/accounts/attempts.py: LOCKED_S
modules/accounts/directory.py: DAY_S SESSION_IDLE_S SESSION_LIFE_S SEEN_EVERY_S TIDY_EVERY_S
modules/api/doors/connections.py: IDLE_S idle_s
modules/api/doors/staying.py: LOOK_EVERY_S WAITING_S
modules/api/sse.py: KEEP_ALIVE_S
modules/attachments/pdf.py: READ_S
modules/chat/attached.py: WAITING_S SECRET_WAITING_S
modules/chat/incognito.py: UNSEEN_S
modules/chat/indexing.py: AT_ONCE_S PAUSE_S AGAIN_S
modules/chat/running.py: updates(heartbeat_s)
modules/chat/service.py: SHUTDOWN_S
modules/chat/shelf.py: SWEEP_EVERY_S FORGET_S _BREATH_S
modules/engine/host/calls.py: MOST_PAUSE_S
modules/chat/taking_in.py: STRETCH_S
modules/chat/trash.py: KEPT_S
modules/chat/writing.py: JOURNAL_EVERY_S SAVE_AGAIN_S
modules/compare/runner.py: UNWATCHED_S LOOK_S
modules/download_command.py: _LOOK_EVERY_S wait(15)
modules/downloads/job.py: SPEED_OVER_S _SAMPLE_S
modules/downloads/manager.py: END_S
modules/downloads/record.py: SOON_S
modules/downloads/telling.py: LONG_S
modules/engine/host/child.py: _LAST_LINES_S
modules/engine/host/host.py: TICK_S wait(1) finish(1)
modules/engine/host/patience.py: cancel_s
modules/engine/llamacpp/embedding.py: PASSED_BY_S
modules/engine/llamacpp/reading.py: MOST_PAUSE_S GIVEN_UP_PAUSE_S
modules/engine/llamacpp/stream.py: GATHER_S LOOK_S
modules/engine/loading/library_messages.py: _LEAST_STEP_S
modules/engine/loops/batched.py: GATHER_S
modules/engine/llamacpp/engine.py: LOOK_S
modules/engine/shares.py: LEAST_TURN_S PATIENCE_S
modules/engine/process/mappings.py: _EVERY_S
modules/engine/remote/client.py: return_s result(5) join(5)
modules/engine/remote/engine.py: _FIRST_PAUSE_S _CLOSE_S
modules/engine/vllm/engine.py: _LAST_WORDS_S replace(return_s=2)
modules/engine/vllm/server.py: wait(poll_s)
modules/engine/zero3/doors.py: LOOK_S _LAST_LINES_S
modules/engine/zero3/ranks.py: CONNECT_AGAIN_S
modules/extensions/deadline.py: SLOW_S END_S LOOK_EVERY_S
modules/files.py: ASIDE_S
modules/machine_speeds.py: _LOOK_EVERY_S _STOP_EVERY_S _CLOSING_S _BUSY_LOOK_S
modules/memory/dryruns/asking.py: IDLE_S RETRY_S join(timeout=10)
modules/memory/dryruns/worker.py: _SPARE_S
modules/memory/planning/choosing.py: COMFORTABLE_S
modules/memory/planning/comparing.py: _NOTICED_S
modules/memory/planning/speed.py: _GATHER_S
modules/models/loan.py: TICK_S
modules/models/manager.py: DRAIN_S
modules/plan_command/report.py: _DRY_RUNS_S _STEPS_S
modules/startup.py: DRY_RUNS_IDLE_S
modules/ui/app.py: QUEUE_LOOKS_EVERY_S QUEUE_REPORTS_EVERY_S
modules/ui/chat_tab.py: LONG_RENDER_S
modules/ui/compare_tab.py: LOOKS_PER_S
modules/ui/highlighting.py: PLAIN_S
modules/ui/page_texts.py: _YEAR_S
modules/ui/strip.py: FRESH_S
"""


def others() -> set[str]:
    lines = (line.partition(": ") for line in OTHERS.strip().splitlines())
    return {f"{file}: {name}" for file, _, names in lines for name in names.split()}


def test_every_number_of_seconds_is_known_as_a_deadline_or_as_none() -> None:
    found = set(numbers_of_seconds())
    assert not others() & set(DEADLINES)
    known = others() | set(DEADLINES)
    assert sorted(found - known) == [], "new: name it above, with what it usually takes or as what costs nothing"
    assert sorted(known - found) == [], "gone: take it out above"


def test_no_deadline_is_shorter_than_three_times_what_is_usual() -> None:
    found = numbers_of_seconds()
    assert {place: found[place] for place, usual in DEADLINES.items() if found[place] < TIMES * usual} == {}


@pytest.fixture
def busy() -> Iterator[None]:
    with busy_programs(2):
        yield


def seconds(act: Callable[[], object]) -> float:
    started = time.monotonic()
    act()
    return time.monotonic() - started


def measured(folder: Path, model: Path) -> Iterator[tuple[str, float, float]]:
    """(what, its limit, what it takes) for what a processor decides, each started anew and then asked."""
    template = (model / "chat_template.jinja").read_text(encoding="utf-8")
    history = [{"role": ("user", "assistant")[number % 2], "content": "A sentence. " * 40} for number in range(400)]
    worker = TemplateWorker()
    variables = {"messages": history, "add_generation_prompt": True}
    yield "a template's process", templates._START_S, seconds(lambda: worker.render("{{ 1 }}", {}))
    yield "a long history rendered", templates.RENDER_S, seconds(lambda: worker.render(template, variables))
    worker.close()
    reader = FormReader()
    yield "a form's process", form_reading._START_S, seconds(lambda: reader.read(Form("guidance", json_schema="{}")))
    part = {"type": "object", "properties": {"n": {"type": "integer"}, "t": {"enum": ["a", "b"]}}}
    schema = json.dumps({"type": "object", "properties": {f"p{number}": part for number in range(40)}})
    for form in (Form("guidance", json_schema=schema), Form("llamacpp", json_schema=schema)):
        yield f"a form of 40 objects, {form.engine}", form_reading.READ_S, seconds(partial(reader.read, form))
    reader.close()
    pages = pdf(*["Words of a page, again and again. " * 30] * 40)
    yield "a file of 40 pages", extracting.EXTRACT_S, seconds(lambda: Extractor().extract("a.pdf", pages))
    yield "a model's description", describing.TIMEOUT_S, seconds(lambda: describe_in_process(model / "config.json"))
    store = Store(folder / "snug.db")
    yield "a conversation saved", 1.0, seconds(lambda: store.create("a"))
    store.close()
    host = EngineHost.start(fake_plan(), LoadByName("tests.fakes:load_scripted"))
    host.submit(fake_request("Hello")).result(60)
    yield "a call to an engine", PATIENCE.call_s, seconds(host.stats)
    yield "an engine's end", PATIENCE.close_s, seconds(host.close)


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.usefixtures("busy")
def test_beside_two_busy_programs_nothing_comes_near_its_deadline(tmp_path: Path, starter_model: Path) -> None:
    taken = list(measured(tmp_path, starter_model))
    for what, limit, took in taken:
        print(f"{what}: {took:.2f} s of {limit:g}")
    assert [one for one in taken if one[1] < TIMES * one[2]] == []
