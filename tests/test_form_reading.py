"""Forms of replies read in a process of their own: hostile ones are refused in time, honest ones never notice."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from typing import Literal

import pytest

from modules.chat.call_formats import GENERIC
from modules.engine.form_reading import READ_S, Form, FormReader
from modules.errors import BadGrammar, GenerationFailed
from modules.forms.tools import CALLS_AT_ONCE, Offer, Tool
from modules.killable import KillableWorker
from tests.hostile_forms import GRAMMARS, SCHEMAS, forms

Kind = Literal["llamacpp", "guidance"]
KINDS: tuple[Kind, ...] = ("llamacpp", "guidance")
SOUND = json.dumps({"type": "object", "properties": {"a": {"type": "integer"}}})
ENDLESS = GRAMMARS["20,000 texts of nothing"]


@pytest.fixture(scope="module")
def reader() -> Iterator[FormReader]:
    """One that is as patient as the real one."""
    reader = FormReader()
    yield reader
    reader.close()


@pytest.mark.parametrize("kind", KINDS)
def test_forms_made_to_take_for_ever_are_read_or_refused_in_time_by_name(kind: Kind) -> None:
    quick = FormReader(read_s=0.4)
    refused: dict[str, str] = {}
    try:
        for name, form in forms():
            started, spent = time.monotonic(), time.thread_time()
            try:
                quick.read(Form(kind, **form))
            except BadGrammar as error:
                assert error.code == "bad_grammar" and error.remedy, name
                assert error.param == ("grammar" if "grammar" in form else "response_format"), name
                refused[name] = error.message
            assert time.monotonic() - started < 10, f"{name}: 0.4 s, and the start of a process on a busy machine"
            assert time.thread_time() - spent < 0.5, f"{name}: read by the engine itself"
    finally:
        quick.close()
    assert "takes longer than 0.4 s" in refused["20,000 texts of nothing"]
    assert {"begins with itself", "10,000 brackets", "depth 400"} <= refused.keys()
    assert not [message for message in refused.values() if "cannot be read (" in message], "an error of our own"


def test_the_set_is_as_large_as_what_the_doors_let_in() -> None:
    assert len(SCHEMAS) + len(GRAMMARS) >= 45
    assert max(len(str(form)) for _, form in forms()) < 65_536 + 200


def test_a_refusal_may_take_two_seconds_and_the_next_form_is_read(reader: FormReader) -> None:
    assert READ_S <= 1.6
    for kind in KINDS:
        reader.read(Form(kind, json_schema=SOUND))
        with pytest.raises(BadGrammar, match=r"longer than 1\.5 s") as caught:
            reader.read(Form(kind, grammar=ENDLESS))
        assert caught.value.param == "grammar"
        assert reader.read(Form(kind, grammar='root ::= "a"'))


@pytest.mark.parametrize("kind", KINDS)
def test_a_form_is_read_once(kind: Kind, reader: FormReader) -> None:
    shape = GENERIC.shape(Offer((Tool("now"), Tool("later", "", json.loads(SOUND))), choice="required"))
    form = Form(kind, shape=shape)
    grammar = reader.read(form)
    assert "later" in grammar and reader.read(form) is grammar
    either = reader.read(Form(kind, shape=shape, json_schema=SOUND))
    assert len(either) > len(grammar)


@pytest.mark.parametrize("kind", KINDS)
def test_a_reply_that_has_to_call_calls_so_often_and_no_more(kind: Kind, reader: FormReader) -> None:
    shape = GENERIC.shape(Offer((Tool("now"),), choice="required"))
    assert f"{{0,{CALLS_AT_ONCE - 1}}}" in reader.read(Form(kind, shape=shape))


def test_a_tools_schema_that_cannot_be_held_is_named_as_such(reader: FormReader) -> None:
    odd = GENERIC.shape(Offer((Tool("odd", "", {"not": {}}),), choice="required"))
    with pytest.raises(BadGrammar, match="tool's schema") as caught:
        reader.read(Form("guidance", shape=odd))
    assert caught.value.param == "tools"
    assert "odd" in reader.read(Form("llamacpp", shape=odd)), "there the arguments are any object"


def test_a_process_that_does_not_start_is_told() -> None:
    broken = FormReader()
    broken._worker = KillableWorker([sys.executable, "-c", ""], {}, start_s=30)
    with pytest.raises(GenerationFailed, match="does not start"):
        broken.read(Form("llamacpp", grammar='root ::= "a"'))
