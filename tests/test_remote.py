"""A model on another server: who it is, what it is asked, what comes of its answers and of each fault on the way."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from modules.chat.call_formats import GENERIC
from modules.engine.base import Degraded, Delta, Event, Finished, GenerationRequest, Queued, Words
from modules.engine.form_reading import FormReader, form_of
from modules.engine.remote.client import PATIENCE, Patience
from modules.engine.remote.complaints import complaint
from modules.engine.remote.connecting import Found
from modules.engine.remote.dialect import TITLES, Kind, ask_for, lacks
from modules.engine.remote.engine import RemoteEngine, connect
from modules.engine.remote.reply import RemoteReply
from modules.errors import (
    BadFlag,
    BadValue,
    ContextLengthExceeded,
    GenerationFailed,
    ModelNotFound,
    NotAvailableHere,
    QueueFull,
    ServerLost,
    ServerRefused,
    SnugError,
)
from modules.forms.tools import Offer, Tool
from modules.memory.planning.elsewhere import plan_elsewhere
from modules.messages import ChatMessage
from modules.remote_server import RemoteServer, check_url
from modules.sampling import GenerationParams, controls
from tests.fake_server import CARD, FakeServer, Json, Line, chat_chunk, fake_server, say
from tests.server_rig import free_port

QUICK = replace(PATIENCE, silence_s=0.5, return_s=0.4)
HELLO = Words((ChatMessage("user", "Hello"),))
KEY = "sk-very-secret-0123456789"


class Reader:
    """Collects the events of one request."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.ended = threading.Event()
        self.changed = threading.Condition()

    def __call__(self, event: Event) -> None:
        with self.changed:
            self.events.append(event)
            self.changed.notify_all()
        if isinstance(event, Finished):
            self.ended.set()

    @property
    def end(self) -> Finished:
        assert self.ended.wait(30), self.events
        last = self.events[-1]
        assert isinstance(last, Finished)
        return last

    @property
    def text(self) -> str:
        """The whole reply, once it is over."""
        assert self.end
        return "".join(event.text for event in self.events if isinstance(event, Delta))

    @property
    def told(self) -> list[str]:
        return [f"{event.why} {event.what}" for event in self.events if isinstance(event, Degraded)]

    def wait_for(self, kind: type[Event]) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: any(isinstance(event, kind) for event in self.events), 20)


@contextmanager
def engine_at(fake: FakeServer, patience: Patience = QUICK, **options: Any) -> Iterator[RemoteEngine]:
    """An engine that asks `fake`."""
    key = options.pop("key", "")
    server = RemoteServer(fake.url, **options)
    engine = connect(plan_elsewhere(server), server, key, lambda _: None, patience=patience)
    try:
        yield engine
    finally:
        engine.close()


def ask(
    engine: RemoteEngine,
    words: Words | None = HELLO,
    *,
    id: str = "r",
    user: str = "",
    ids: tuple[int, ...] = (),
    whose: str = "",
    **params: Any,
) -> Reader:
    """One request, on its way."""
    reader = Reader()
    wanted = GenerationParams.model_validate({"max_new_tokens": 100} | params)
    engine.submit(GenerationRequest(id, user, ids, wanted, (), words, whose=whose), reader)
    return reader


def endless(line: Line) -> None:
    """Speaks until nobody listens."""
    line.begin()
    for _ in range(10_000):
        line.event(chat_chunk("on and "))
        time.sleep(0.005)


def fault(play: Callable[[Line], None], **params: Any) -> Reader:
    """What comes of one reply that `play` gives."""
    with fake_server(play=play) as fake, engine_at(fake) as engine:
        reader = ask(engine, **params)
        assert reader.end
        return reader


def error_of(reader: Reader) -> SnugError:
    assert reader.end.reason == "error"
    assert reader.end.error is not None
    return reader.end.error


# Addresses, keys


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("http://host:8000", "http://host:8000/v1"),
        ("http://host:8000/", "http://host:8000/v1"),
        ("https://host/v1/", "https://host/v1"),
        (" http://host/llm/api ", "http://host/llm/api"),
        ("http://[::1]:80/v1", "http://[::1]:80/v1"),
    ],
)
def test_an_address_ends_with_its_v1(given: str, meant: str) -> None:
    assert check_url(given) == meant


@pytest.mark.parametrize(
    "given", ["host:8000", "ftp://host/v1", "http://", "http://host:99999/v1", "http://host/v1?key=1", "", "http://[x/"]
)
def test_what_is_no_address_is_refused(given: str) -> None:
    with pytest.raises(ValueError):
        check_url(given)


def test_a_key_in_an_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(ValueError, match="--engine-key-file") as refused:
        check_url(f"http://me:{KEY}@host/v1")
    assert KEY not in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"two words", b"a\nb", b"\xff\xfe", b"x" * 9000])
def test_a_key_file_holds_one_key_and_a_bad_one_is_named_without_it(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    with pytest.raises(BadFlag, match="--engine-key-file") as refused:
        RemoteServer("http://h/v1", path).read_key()
    assert not content or content.decode("latin-1") not in str(refused.value)
    path.write_text(f"{KEY}\n")
    assert RemoteServer("http://h/v1", path).read_key() == KEY
    with pytest.raises(BadFlag, match="No such file"):
        RemoteServer("http://h/v1", tmp_path / "none").read_key()


def test_the_key_is_sent_and_a_server_that_repeats_it_does_not_spread_it() -> None:
    with fake_server(key=KEY) as fake:
        with engine_at(fake, key=KEY) as engine:
            assert ask(engine).end.reason == "stop"
            assert fake.asked[0].headers["Authorization"] == f"Bearer {KEY}"
            assert KEY not in repr(engine.info)
        with pytest.raises(ServerRefused, match="does not accept the key") as refused, engine_at(fake, key="sk-other"):
            pass
        assert "sk-other" not in str(refused.value) and refused.value.remedy.count("--engine-key-file")
        with pytest.raises(ServerRefused, match="asks for a key"), engine_at(fake):
            pass


# Who is there


def test_a_plain_server_gets_messages_and_its_context_is_known() -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}}
    with fake_server(play=say("Hel", "lo", usage=usage)) as fake, engine_at(fake) as engine:
        reader = ask(engine, temperature=0.5, seed=7, stop=("END",))
        assert (reader.text, reader.end.reason) == ("Hello", "stop")
        used = reader.end.usage
        assert (used.prompt_tokens, used.cached_tokens, used.completion_tokens) == (9, 4, 2)
        assert (engine.info.name, engine.info.context_tokens, engine.info.takes) == ("parrot", 2048, "words")
        body = fake.asked[0].body
    assert fake.asked[0].path == "/v1/chat/completions"
    assert body["messages"] == [{"role": "user", "content": "Hello"}]
    assert (body["model"], body["stream"], body["max_tokens"]) == ("parrot", True, 100)
    assert (body["temperature"], body["seed"], body["stop"]) == (0.5, 7, ["END"])
    assert "top_k" not in body and "min_p" not in body


def test_a_notebook_text_goes_to_completions() -> None:
    with fake_server() as fake, engine_at(fake) as engine:
        assert ask(engine, Words(text="Once")).text == "Hello"
        assert (fake.asked[0].path, fake.asked[0].body["prompt"]) == ("/v1/completions", "Once")


def test_nothing_at_the_address_is_told_with_a_remedy() -> None:
    server = RemoteServer(f"http://127.0.0.1:{free_port()}/v1")
    with pytest.raises(ServerLost, match="does not answer") as lost:
        connect(plan_elsewhere(server), server, "", lambda _: None, patience=QUICK)
    assert "--engine-url" in lost.value.remedy


def test_several_models_are_named_and_one_can_be_chosen() -> None:
    two = ({**CARD, "id": "a"}, {**CARD, "id": "b", "max_model_len": 64})
    with fake_server(*two) as fake:
        with pytest.raises(ModelNotFound, match="2 models") as which, engine_at(fake):
            pass
        assert "a, b" in which.value.remedy
        with pytest.raises(ModelNotFound, match="no model 'c'"), engine_at(fake, model="c"):
            pass
        with engine_at(fake, model="b") as engine:
            assert engine.info.context_tokens == 64


def test_what_is_no_such_server_is_told() -> None:
    with fake_server() as fake:
        fake.routes["/v1/models"] = {"hello": "world"}
        with pytest.raises(GenerationFailed, match="lists no models"), engine_at(fake):
            pass
        fake.routes["/v1/models"] = "<html>no</html>"
        with pytest.raises(GenerationFailed, match="no JSON"), engine_at(fake):
            pass
        del fake.routes["/v1/models"]
        with pytest.raises(ServerRefused, match="no such route"), engine_at(fake):
            pass


def test_a_server_that_does_not_tell_its_context_takes_the_users_word() -> None:
    with fake_server({"id": "x"}) as fake:
        with engine_at(fake) as engine:
            assert engine.info.context_tokens == 0
            assert any("--ctx-size" in warning for warning in engine.info.warnings)
        with engine_at(fake, context_tokens=500) as engine:
            assert engine.info.context_tokens == 500


# Faults: an error event each, what was written kept


def test_a_cut_stream_is_an_error_with_the_text_so_far() -> None:
    def cut(line: Line) -> None:
        line.begin()
        line.event(chat_chunk("Half a "))
        line.event(chat_chunk("sen"))
        line.cut()

    reader = fault(cut)
    assert reader.text == "Half a sen"
    assert isinstance(error_of(reader), ServerLost)
    assert "Continue" in error_of(reader).remedy
    assert reader.end.usage.completion_tokens == 2


def test_a_stream_that_ends_without_a_word_is_an_error() -> None:
    def stop(line: Line) -> None:
        line.begin()
        line.event(chat_chunk("Half"))
        line.end(done=False)

    reader = fault(stop)
    assert (reader.text, type(error_of(reader))) == ("Half", ServerLost)


@pytest.mark.parametrize(
    ("status", "answer", "kind"),
    [
        (401, {"error": {"message": "no"}}, ServerRefused),
        (403, {"detail": "no"}, ServerRefused),
        (404, {"error": {"message": "The model `x` does not exist."}}, ModelNotFound),
        (404, {"detail": "Not Found"}, ServerRefused),
        (400, {"message": "This model's maximum context length is 4096 tokens."}, ContextLengthExceeded),
        (
            400,
            {"error": {"message": "request (9 tokens) exceeds the available context size (2)"}},
            ContextLengthExceeded,
        ),
        (413, "too large", ContextLengthExceeded),
        (422, {"detail": [{"loc": ["body", "top_k"], "msg": "Input should be smaller"}]}, BadValue),
        (429, {"error": "slow down"}, QueueFull),
        (503, "<html>busy</html>", QueueFull),
        (500, {"error": {"message": "boom"}}, GenerationFailed),
        (502, "<html><body>Bad Gateway</body></html>", GenerationFailed),
    ],
)
def test_what_a_server_refuses_becomes_the_error_that_names_it(status: int, answer: Any, kind: type[SnugError]) -> None:
    reader = fault(lambda line: line.refuse(status, answer))
    error = error_of(reader)
    assert type(error) is kind
    assert error.remedy and "<html>" not in str(error)


def test_a_busy_server_tells_when_to_come_back() -> None:
    assert "in 7 s" in error_of(fault(lambda line: line.refuse(429, {}, Retry_After="7"))).remedy


def test_a_redirect_is_not_followed() -> None:
    with fake_server() as other:
        reader = fault(lambda line: line.refuse(307, "", Location=f"{other.url}/chat/completions?token=secret"))
        error = error_of(reader)
        assert isinstance(error, ServerRefused)
        assert f"127.0.0.1:{other.port}" in error.message and "secret" not in error.message
        assert other.asked == []


def test_silence_ends_before_anybody_has_to_wait_for_ever() -> None:
    def silent(line: Line) -> None:
        line.begin()
        line.event(chat_chunk("Hm"))
        line.wait_until_gone()

    reader = fault(silent)
    assert reader.text == "Hm"
    assert "said nothing" in error_of(reader).message

    def mute(line: Line) -> None:
        line.wait_until_gone()

    assert isinstance(error_of(fault(mute)), ServerLost)


def garbage(raw: bytes, kind: str = "text/event-stream") -> Callable[[Line], None]:
    def play(line: Line) -> None:
        line.begin(kind)
        line.event(chat_chunk("ok"))
        line.send(raw)
        line.end()

    return play


@pytest.mark.parametrize(
    "raw",
    [b"data: {broken\n\n", b"data: [1, 2]\n\n", b"data: " + b"[" * 100_000 + b"\n\n", b"data: " + b"x" * 5_000_000],
)
def test_garbage_is_an_error_and_no_crash(raw: bytes) -> None:
    reader = fault(garbage(raw))
    assert reader.text == "ok"
    assert isinstance(error_of(reader), GenerationFailed)


@pytest.mark.parametrize(
    "event", [{}, {"choices": None}, {"choices": [7]}, {"choices": [{"delta": None, "text": None}]}, {"usage": "many"}]
)
def test_odd_events_are_passed_over(event: Json) -> None:
    def odd(line: Line) -> None:
        line.begin()
        line.event(event)
        line.event(chat_chunk("fine", "stop"))
        line.end()

    reader = fault(odd)
    assert (reader.text, reader.end.reason) == ("fine", "stop")


def test_halves_of_characters_that_stand_alone_are_told_as_such() -> None:
    def halves(line: Line) -> None:
        line.begin()
        line.send(
            rb'data: {"choices": [{"delta": {"content": "\ud83d\ude00, \uD83D!"}, "finish_reason": "stop"}]}' + b"\n\n"
        )
        line.end()

    assert fault(halves).text == "\N{GRINNING FACE}, \N{REPLACEMENT CHARACTER}!"


def test_an_answer_that_is_no_stream_is_told() -> None:
    assert "no stream" in error_of(fault(garbage(b"", "application/json"))).message


def test_an_error_in_the_midst_of_a_stream_ends_the_reply_with_it() -> None:
    def play(line: Line) -> None:
        line.begin()
        line.event(chat_chunk("ok"))
        line.event({"error": {"message": f"engine dead, key {KEY}", "code": 503}})

    with fake_server(play=play, key=KEY) as fake, engine_at(fake, key=KEY) as engine:
        error = error_of(ask(engine))
    assert isinstance(error, QueueFull)
    assert "engine dead" in error.message and KEY not in error.message


def test_a_server_that_comes_back_is_found_again_and_one_that_does_not_is_an_error() -> None:
    port = free_port()
    with fake_server(port=port) as fake:
        server = RemoteServer(fake.url)
        engine = connect(plan_elsewhere(server), server, "", lambda _: None, patience=replace(QUICK, return_s=10))
        assert ask(engine).text == "Hello"
    reader = ask(engine, id="while it is gone")
    reader.wait_for(Degraded)
    with fake_server(port=port):
        assert (reader.end.reason, reader.text) == ("stop", "Hello")
    assert "does not answer" in reader.told[0]
    engine.close()
    with fake_server() as fake:
        server = RemoteServer(fake.url)
        hasty = connect(plan_elsewhere(server), server, "", lambda _: None, patience=QUICK)
    assert isinstance(error_of(ask(hasty)), ServerLost)
    hasty.close()


# Cancels, rows, the queue


def test_a_cancel_closes_the_stream_at_once() -> None:
    with fake_server(play=endless) as fake, engine_at(fake) as engine:
        reader = ask(engine)
        reader.wait_for(Delta)
        cancelled = time.monotonic()
        engine.cancel("r")
        assert reader.end.reason == "cancelled"
        assert time.monotonic() - cancelled < 0.5
        assert fake.asked[0].gone.wait(5)
        assert ask(engine, id="next").events is not None


def test_a_cancel_before_the_first_word_closes_the_connection() -> None:
    closed = threading.Event()

    def silent(line: Line) -> None:
        if line.wait_until_gone():
            closed.set()

    with fake_server(play=silent) as fake, engine_at(fake, PATIENCE) as engine:
        reader = ask(engine)
        fake.wait_for(1)
        engine.cancel("r")
        assert reader.end.reason == "cancelled"
        assert closed.wait(5)


def test_so_many_rows_run_and_the_others_wait_their_turn() -> None:
    go = threading.Event()

    def play(line: Line) -> None:
        assert go.wait(20)
        say("x")(line)

    with fake_server(play=play) as fake, engine_at(fake, PATIENCE) as engine:
        readers = [ask(engine, id=str(number), user="many") for number in range(10)]
        other = ask(engine, id="one", user="other")
        fake.wait_for(8)
        other.wait_for(Queued)
        assert engine.stats().active == 8
        assert len(fake.asked) == 8
        go.set()
        assert [reader.end.reason for reader in (*readers, other)] == ["stop"] * 11
    assert next(event.position for event in other.events if isinstance(event, Queued)) <= 1


def test_closing_ends_what_runs() -> None:
    with fake_server(play=endless) as fake, engine_at(fake) as engine:
        reader = ask(engine)
        reader.wait_for(Delta)
        engine.close()
        assert reader.end.reason == "cancelled"


# What is said


def test_stop_strings_are_looked_for_here_too() -> None:
    def play(line: Line) -> None:
        say("one ", "tw", "o END", " three")(line)

    reader = fault(play, stop=("o END",))
    assert (reader.text, reader.end.reason) == ("one tw", "stop")


def test_reasoning_stands_between_its_marks_and_is_not_sent_again() -> None:
    def play(line: Line) -> None:
        line.begin()
        line.event(chat_chunk(reasoning_content="Let me "))
        line.event(chat_chunk(reasoning_content="see."))
        line.event(chat_chunk("Four.", "stop"))
        line.end()

    with fake_server(play=play) as fake, engine_at(fake) as engine:
        reader = ask(engine)
        assert reader.end.reason == "stop"
        assert reader.text == "<think>\nLet me see.\n</think>\n\nFour."
        turns = (*HELLO.messages, ChatMessage("assistant", reader.text), ChatMessage("user", "And?"))
        assert ask(engine, Words(turns), id="next").end
        assert fake.asked[1].body["messages"][1] == {"role": "assistant", "content": "Four."}


def test_a_reply_that_ends_in_thought_closes_it() -> None:
    def play(line: Line) -> None:
        line.begin()
        line.event(chat_chunk(reasoning="Hm", finish="length"))
        line.end()

    reader = fault(play)
    assert (reader.text, reader.end.reason) == ("<think>\nHm\n</think>", "length")


def test_a_conversation_too_long_for_the_server_loses_its_oldest_turns() -> None:
    def play(line: Line) -> None:
        if len(line.body["messages"]) > 4:
            line.refuse(400, {"error": {"code": "context_length_exceeded", "message": "maximum context length is 9"}})
        else:
            say("fine")(line)

    turns = [ChatMessage("system", "Be kind.")]
    for number in range(8):
        turns += ChatMessage("user", f"question {number}"), ChatMessage("assistant", "answer")
    turns += [ChatMessage("user", "last")]
    with fake_server(play=play) as fake, engine_at(fake) as engine:
        reader = ask(engine, Words(tuple(turns), may_drop=True))
        assert (reader.end.reason, reader.text) == ("stop", "fine")
        kept = fake.asked[-1].body["messages"]
        assert kept[0]["role"] == "system" and kept[1]["role"] == "user" and kept[-1]["content"] == "last"
        assert any("left out" in told for told in reader.told)
        refused = ask(engine, Words(tuple(turns)), id="strict")
        assert isinstance(error_of(refused), ContextLengthExceeded)


def test_only_a_server_that_can_goes_on_with_a_reply() -> None:
    going_on = replace(HELLO, reply_start="Well,")
    with fake_server() as fake, engine_at(fake) as engine, pytest.raises(BadValue, match="cannot be continued"):
        ask(engine, going_on)
    with fake_server({**CARD, "owned_by": "vllm"}) as fake, engine_at(fake) as engine:
        assert ask(engine, going_on).end.reason == "stop"
        body = fake.asked[0].body
    assert body["messages"][-1] == {"role": "assistant", "content": "Well,"}
    assert (body["continue_final_message"], body["add_generation_prompt"]) == (True, False)


def test_people_who_share_a_server_learn_nothing_of_what_it_knew_of_their_prompts() -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}}
    for owner, separates in (("vllm", True), ("snug", True), ("llamacpp", False), ("somebody", False)):
        with (
            fake_server({**CARD, "owned_by": owner}, play=say("Hi", usage=usage)) as fake,
            engine_at(fake) as engine,
        ):
            told = [
                ask(engine, id=f"r{number}", whose=whose).end.usage.cached_tokens
                for number, whose in enumerate(["", "ana", "ben", "ana"])
            ]
            salts = [line.body.get("cache_salt") for line in fake.asked]
        assert told == ([4, 4, 4, 4] if separates else [4, 0, 0, 0]), owner
        assert salts[0] is None and (salts[1] == salts[3] != salts[2]) is separates
        assert not any("ana" in str(salt) for salt in salts)


def test_a_server_that_does_not_stop_is_stopped() -> None:
    def flood(line: Line) -> None:
        line.begin()
        for _ in range(100_000):
            line.event(chat_chunk("on and on " * 20))

    with fake_server(play=flood) as fake, engine_at(fake) as engine:
        reader = ask(engine, max_new_tokens=10)
        assert reader.end.reason == "length"
        assert 1000 < len(reader.text) <= 10 * 256

    def ids_alone(line: Line) -> None:
        line.begin()
        line.event(chat_chunk("Hi") | {"choices": [{"delta": {}, "token_ids": [5] * 1000}]})

    def notices(line: Line) -> None:
        line.begin()
        told = [{"what": "x" * 1000, "why": "y"}, "no object"] * 500
        for _ in range(3):
            line.event({"choices": [{"delta": {"content": "Hi"}, "degraded": told}]})
        line.end()

    with fake_server(play=ids_alone) as fake, engine_at(fake) as engine:
        assert (ask(engine, max_new_tokens=10).end.reason) == "length"
    with fake_server(play=notices) as fake, engine_at(fake) as engine:
        reader = ask(engine, max_new_tokens=10)
        assert (reader.text, reader.end.reason) == ("HiHiHi", "stop")
        degraded = [event for event in reader.events if isinstance(event, Degraded)]
        assert len(degraded) == 16 and max(len(one.what) for one in degraded) == 300


def test_log_probabilities_come_in_either_shape() -> None:
    def chat(line: Line) -> None:
        line.begin()
        top = [{"token": "a", "logprob": -0.1}, {"token": "b", "logprob": -2.5}]
        content = [{"token": "a", "logprob": -0.1, "top_logprobs": top}]
        line.event(
            {"choices": [{"delta": {"content": "a"}, "logprobs": {"content": content}, "finish_reason": "stop"}]}
        )
        line.end()

    def completion(line: Line) -> None:
        line.begin()
        told = {"tokens": ["a"], "token_logprobs": [-0.1], "top_logprobs": [{"a": -0.1, "b": -2.5}]}
        line.event({"choices": [{"text": "a", "logprobs": told, "finish_reason": "stop"}]})
        line.end()

    for play, words in ((chat, HELLO), (completion, Words(text="x"))):
        with fake_server(play=play) as fake, engine_at(fake) as engine:
            reader = ask(engine, words, logprobs=2)
            assert reader.end.reason == "stop"
            (entry,) = [one for event in reader.events if isinstance(event, Delta) for one in event.logprobs]
            assert (entry.text, entry.logprob, entry.top) == ("a", -0.1, ((-1, "a", -0.1), (-1, "b", -2.5)))
            assert entry.adds == "a"


def test_ids_are_not_for_a_server_that_takes_words() -> None:
    with fake_server() as fake, engine_at(fake) as engine:
        with pytest.raises(BadValue, match="not token ids"):
            ask(engine, None, ids=(1, 2))
        with pytest.raises(NotAvailableHere, match="tokenizer"):
            engine.encode([])


# Dialects


def test_what_a_server_cannot_do_is_told_by_name() -> None:
    params = GenerationParams(top_k=40, min_p=0.1, dry_multiplier=0.5, presence_penalty=0.3)
    plain = ask_for("openai", params, chat=True, context_tokens=0)
    assert "top_k, min_p, dry_multiplier were left out" in plain.told[0]
    assert plain.fields["presence_penalty"] == 0.3
    vllm = ask_for("vllm", params, chat=True, context_tokens=0)
    assert "dry_multiplier was left out" in vllm.told[0]
    assert (vllm.fields["top_k"], vllm.fields["min_p"]) == (40, 0.1)
    assert ask_for("snug", params, chat=False, context_tokens=0).told == ()
    assert ask_for("openai", params.model_copy(update={"temperature": 0.0}), chat=True, context_tokens=0).told == (
        "dry_multiplier was left out: an OpenAI-compatible server has no such setting.",
    )


def test_ends_of_a_reply_reach_the_servers_that_know_them() -> None:
    params = GenerationParams(temperature=0, stop_token_ids=(2, 3), min_tokens=4)
    able: tuple[Kind, ...] = ("vllm", "sglang", "snug")
    for kind in able:
        asked = ask_for(kind, params, chat=True, context_tokens=64)
        assert (list(asked.fields["stop_token_ids"]), asked.fields["min_tokens"], asked.told) == ([2, 3], 4, ())
    asked = ask_for("openai", params, chat=True, context_tokens=64)
    assert "stop_token_ids, min_tokens were left out" in asked.told[0] and "min_tokens" not in asked.fields
    assert "min_tokens" not in ask_for("vllm", GenerationParams(), chat=True, context_tokens=64).fields


@pytest.mark.parametrize("kind", TITLES)
def test_what_a_server_is_said_to_lack_is_what_it_leaves_out(kind: Kind) -> None:
    on = {"top_k": 40, "min_p": 0.1, "tfs": 0.9, "top_n_sigma": 1.0, "dynatemp_range": 0.5, "smoothing_factor": 0.3}
    told = " ".join(ask_for(kind, GenerationParams.model_validate(on), chat=True, context_tokens=64).told)
    assert {name for name in on if name in told} == on.keys() & lacks(kind).keys()
    assert lacks(kind).keys() <= {name for found in controls().values() for name in found}
    quiet = ask_for(kind, GenerationParams(repetition_penalty_range=64), chat=True, context_tokens=64)
    assert quiet.told == (), "a range of penalties that are off is nothing"


def test_what_was_left_out_is_told_in_the_midst_of_the_reply() -> None:
    reader = fault(say("x"), min_p=0.2)
    assert any("min_p was left out" in told for told in reader.told)


def test_a_model_with_defaults_of_its_own_gets_ours_said_out_loud() -> None:
    fields = ask_for("vllm", GenerationParams(), chat=True, context_tokens=0).fields
    assert {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "ignore_eos": False}.items() <= fields.items()
    told = ask_for("transformers", GenerationParams(top_k=0), chat=True, context_tokens=0).fields["generation_config"]
    assert '"do_sample": true' in told and '"top_k": 0' in told


def test_log_probabilities_that_a_server_does_not_give_are_refused() -> None:
    with pytest.raises(BadValue, match="log-probabilities"):
        ask_for("transformers", GenerationParams(logprobs=2), chat=True, context_tokens=0)


def test_a_long_complaint_is_cut() -> None:
    error = complaint("h:1", 400, "x" * 50_000, {}, key="")
    assert len(error.message) < 400


def test_a_form_for_the_reply_goes_to_servers_that_hold_it_and_is_refused_for_others() -> None:
    schema = GenerationParams(json_schema='{"type": "object"}')
    grammar = GenerationParams(grammar='root ::= "yes" | "no"')
    holding: tuple[Kind, ...] = ("openai", "vllm", "sglang", "snug")
    for kind in holding:
        form = ask_for(kind, schema, chat=True, context_tokens=0).fields["response_format"]
        assert form["json_schema"]["schema"] == {"type": "object"}
    assert "json_schema" not in ask_for("snug", schema, chat=True, context_tokens=0).fields
    assert ask_for("snug", grammar, chat=True, context_tokens=0).fields["grammar"] == grammar.grammar
    read = ask_for("llamacpp", schema, chat=True, context_tokens=0, grammar=grammar.grammar).fields
    assert read["grammar"] == grammar.grammar and "response_format" not in read
    lacking: tuple[Kind, ...] = ("transformers", "openai", "vllm")
    for kind in lacking:
        with pytest.raises(NotAvailableHere):
            ask_for(kind, schema if kind == "transformers" else grammar, chat=True, context_tokens=0)


def test_calls_that_must_be_made_are_held_by_llama_servers_grammar() -> None:
    shape = GENERIC.shape(Offer((Tool("now"),), only="now"))
    asked = GenerationRequest("r", "u", (1,), GenerationParams(), shape=shape, shows=("<tool_call>",))
    form = form_of(asked, "llamacpp")
    assert form is not None and form.shape == shape
    reader = FormReader()
    grammar = reader.read(form)
    reader.close()
    body = RemoteReply(asked, lambda _: None, Found("llamacpp", "m", "llama-server"), grammar).body
    assert "now" in body["grammar"] and body["preserved_tokens"] == ["<tool_call>"]
    either = GenerationRequest("r", "u", (1,), GenerationParams(json_schema='{"type": "object"}'), shape=shape)
    snug = RemoteReply(either, lambda _: None, Found("snug", "m", "Snug"), grammar).body
    assert snug["grammar"] == grammar and "response_format" not in snug, "the grammar lets it be either"
    other = RemoteReply(asked, lambda _: None, Found("vllm", "m", "vLLM")).body
    assert not {"grammar", "preserved_tokens"} & other.keys()
