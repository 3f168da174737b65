"""GGUF files through llama.cpp: the model's own tokens, samplers by name, rows, cancels, an honest context."""

from __future__ import annotations

import contextlib
import math
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest
import torch
import xllamacpp
from transformers import AutoModelForCausalLM

from modules.engine import shares
from modules.engine.base import Degraded, Delta, Engine, Event, Finished, GenerationRequest, Queued, TextPiece
from modules.engine.control_tokens import PieceEncoder
from modules.engine.host.host import EngineHost
from modules.engine.host.worker import LoadByName
from modules.engine.llamacpp import engine as llamacpp
from modules.engine.llamacpp import stream
from modules.engine.llamacpp.engine import LlamaCppEngine, load
from modules.engine.llamacpp.reply import LlamaReply
from modules.engine.llamacpp.sampling import check_params, sampling_fields
from modules.engine.llamacpp.server import LlamaServer
from modules.engine.llamacpp.stream import Stream
from modules.engine.llamacpp.tokens import LlamaTokens, TokenTable
from modules.errors import (
    BadValue,
    ContextLengthExceeded,
    EngineDied,
    LoadFailed,
    ModelNotFound,
    OutOfMemory,
    QueueFull,
)
from modules.memory.forecasting.kv_cache import KVCache
from modules.memory.forecasting.llamacpp_sizes import SLOTS
from modules.memory.model.spec import inspect
from modules.sampling import GenerationParams
from modules.units import MiB
from tests.llamacpp_rig import CONTEXT, TEXT, engine_of, ignore, long, plan_of
from tests.loop_rig import SHORT_TURNS, TIMEOUT_S, Ask, at_text, greedy, pauses
from tests.tiny_models import COUNTED, SPECIALS, tiny_gguf


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf(tmp_path_factory.mktemp("models"), readable=True)


@pytest.fixture(scope="module")
def roomy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with room for replies that last."""
    return tiny_gguf(tmp_path_factory.mktemp("models"), readable=True, context=4096)


@pytest.fixture(scope="module")
def engine(file: Path) -> Iterator[Engine]:
    engine = load(plan_of(file), ignore)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def prompt(engine: Engine) -> list[int]:
    return engine.encode([TextPiece(TEXT)])


def test_the_probabilities_are_those_of_the_same_file_in_transformers(
    engine: Engine, file: Path, prompt: list[int]
) -> None:
    auto: Any = AutoModelForCausalLM
    model = auto.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()
    ask = Ask("probabilities", prompt, GenerationParams(temperature=0, max_new_tokens=1, logprobs=5)).run(engine)
    (told,) = [one for event in ask.events if isinstance(event, Delta) for one in event.logprobs]
    with torch.no_grad():
        own = torch.log_softmax(model(torch.tensor([prompt])).logits[0, -1], dim=-1)
    assert [own[token].item() for token, _, _ in told.top] == pytest.approx([p for _, _, p in told.top], abs=0.02)
    assert own[told.token_id].item() == pytest.approx(own.max().item(), abs=0.02)


def test_the_probabilities_are_those_that_samplers_leave_where_that_is_asked(engine: Engine, prompt: list[int]) -> None:
    def told(**more: Any) -> dict[int, float]:
        params = GenerationParams(max_new_tokens=1, logprobs=8, top_p=1, temperature=1, seed=4, **more)
        ask = Ask(f"left {more}", prompt, params).run(engine)
        (one,) = [one for event in ask.events if isinstance(event, Delta) for one in event.logprobs]
        return {token: math.exp(value) for token, _, value in one.top if value > -math.inf}

    raw, left = told(), told(top_k=3, sampled_logprobs=True)
    assert set(left) == set(list(raw)[:3])
    whole = sum(raw[token] for token in left)
    assert [left[token] for token in left] == pytest.approx([raw[token] / whole for token in left], abs=0.02)


def test_what_its_tokens_add_is_the_text(engine: Engine, prompt: list[int]) -> None:
    ask = Ask("adds", prompt, greedy(40, logprobs=1)).run(engine)
    told = [one for event in ask.events if isinstance(event, Delta) for one in event.logprobs]
    assert "".join(one.adds for one in told) == ask.text
    assert ask.text


def test_content_never_becomes_control_tokens_and_templates_do(engine: Engine) -> None:
    start = SPECIALS.index("<|im_start|>") + 256
    ids = engine.encode([TextPiece("<|im_start|>user\n", template=True), TextPiece("a<|im_start|>b <|im_end|>")])
    assert ids[0] == start and ids.count(start) == 1
    assert engine.decode(ids) == "<|im_start|>user\na<|im_start|>b <|im_end|>"


def test_text_without_control_tokens_is_encoded_as_a_whole() -> None:
    asked: list[str] = []

    def encode(text: str) -> list[int]:
        asked.append(text)
        return list(text.encode())

    encoder = PieceEncoder(encode, encode, {"<x>": 999}, None)
    assert encoder.encode([TextPiece("ab", template=True), TextPiece("cd")]) == list(b"abcd")
    assert asked == ["abcd"]


class UserDefined:
    """In place of llama.cpp's server and a file's table: a token "<x>" that is read in plain text too."""

    control: ClassVar[dict[str, int]] = {"<x>": 999}
    unknown_id = None

    def __init__(self) -> None:
        self.asked: list[str | list[str]] = []

    def ask(self, _: str, body: dict[str, Any]) -> dict[str, Any]:
        """The bytes of each text, 999 for the token."""
        content = body["content"]
        self.asked.append(content)
        pieces = content if isinstance(content, list) else [content]
        parts = [part for piece in pieces for part in re.split("(<x>)", piece)]
        return {"tokens": [token for part in parts for token in ([999] if part == "<x>" else part.encode())]}


@pytest.mark.parametrize(("tokens", "others", "asked"), [(1, 3, 2), (300, 100_000, 2), (40_000, 100_000, 1)])
def test_user_defined_tokens_in_a_text_cost_few_questions(tokens: int, others: int, asked: int) -> None:
    server = UserDefined()
    made = LlamaTokens(cast("LlamaServer", server), cast("TokenTable", server))
    text = "<x>" * tokens + "a" * others
    assert made.encode_text(text) == list((text if asked == 2 else "a" * others).encode())
    assert len(server.asked) == asked


def test_a_reply_is_the_text_of_its_tokens_and_its_figures_add_up(engine: Engine, prompt: list[int]) -> None:
    ask = Ask("figures", prompt, long(40)).run(engine)
    assert ask.text == engine.decode(ask.tokens) and len(ask.text) == 40
    assert (ask.end.reason, ask.end.error) == ("length", None)
    assert (ask.end.usage.prompt_tokens, ask.end.usage.completion_tokens) == (len(prompt), 40)
    assert ask.end.timings.decoded_tokens == 40
    assert 0 <= ask.end.timings.queue_s <= ask.end.timings.first_token_s
    assert ask.end.timings.tokens_per_s > 0


@pytest.mark.parametrize("last", ["", "b"])
def test_the_end_token_is_not_told_with_the_replys(last: str) -> None:
    """llama.cpp tells it as a token without text, of which the reply has nothing."""
    told: list[Event] = []
    request = GenerationRequest("r", "u", (1,), GenerationParams(logprobs=1))
    reply = LlamaReply(request, told.append, lambda _: [], longest=9)
    events = [
        {"content": text, "tokens": [id], "tokens_predicted": id, "completion_probabilities": [
            {"id": id, "token": text, "logprob": -1.0}
        ]} for id, text in ((1, "a"), (2, last))
    ]  # fmt: skip
    assert reply.take([*events, {"stop": True, "stop_type": "eos", "tokens_predicted": 2, "content": ""}]) == "stop"
    reply.finish("stop")
    tokens = [one.text for event in told if isinstance(event, Delta) for one in event.logprobs]
    assert tokens == (["a", last] if last else ["a"])


def test_a_reply_goes_on_where_it_ended(engine: Engine, prompt: list[int]) -> None:
    whole = Ask("whole", prompt, long(30)).run(engine).tokens
    rest = Ask("rest", prompt, long(20), reply_ids=tuple(whole[:10])).run(engine)
    assert rest.tokens == whole[10:]
    assert rest.end.usage.completion_tokens == 20


def test_packed_caches_change_probabilities_the_more_the_fewer_bits(tmp_path: Path) -> None:
    path = tiny_gguf(tmp_path, width=128)  # heads of 32
    kinds: tuple[KVCache, ...] = ("plain", "int8", "int4")
    told: dict[str, dict[int, float]] = {}
    for kind in kinds:
        with engine_of(plan_of(path, kv_cache=kind)) as engine:
            params = GenerationParams(temperature=0, max_new_tokens=1, logprobs=20)
            ask = Ask("p", engine.encode([TextPiece(TEXT * 3)]), params).run(engine)
        (one,) = [one for event in ask.events if isinstance(event, Delta) for one in event.logprobs]
        told[kind] = {token: value for token, _, value in one.top}

    def gap(kind: str) -> float:
        shared = told["plain"].keys() & told[kind].keys()
        assert len(shared) >= 10
        return max(abs(told["plain"][token] - told[kind][token]) for token in shared)

    assert 0 < gap("int8") < 0.3 and gap("int8") < gap("int4")


def test_the_next_turn_reads_only_what_is_new(engine: Engine, prompt: list[int]) -> None:
    first = Ask("turn 1", prompt * 3, long(20)).run(engine)
    longer = [*prompt * 3, *first.tokens, *prompt]
    second = Ask("turn 2", longer, long(5)).run(engine)
    assert second.end.usage.cached_tokens >= len(prompt) * 3


def test_no_part_of_a_stop_string_is_shown(engine: Engine, prompt: list[int]) -> None:
    text = Ask("free", prompt, long(60)).run(engine).text
    stop = text[20:24]
    stopped = Ask("stopped", prompt, long(60, stop=(stop,))).run(engine)
    assert (stopped.text, stopped.end.reason) == (text[: text.index(stop)], "stop")


def test_the_same_seed_gives_the_same_reply_and_another_seed_another(engine: Engine, prompt: list[int]) -> None:
    def reply(name: str, seed: int) -> list[int]:
        params = GenerationParams(temperature=1.5, top_p=1, seed=seed, max_new_tokens=20)
        return Ask(name, prompt, params).run(engine).tokens

    assert reply("a", 7) == reply("b", 7) != reply("c", 8)


@pytest.mark.parametrize(
    "params",
    [
        {"top_k": 5}, {"top_p": 0.5}, {"min_p": 0.1}, {"typical_p": 0.5}, {"xtc_probability": 1.0},
        {"top_n_sigma": 1.0}, {"dynatemp_range": 0.5}, {"repetition_penalty": 1.3, "repetition_penalty_range": 8},
        {"repetition_penalty": 1.3}, {"frequency_penalty": 0.5}, {"dry_multiplier": 0.8}, {"mirostat_mode": 2},
        {"temperature_last": True, "top_k": 5}, {"seed": 2**63 - 1}, {"logprobs": 3},
    ],
)  # fmt: skip
def test_every_sampler_that_llama_cpp_has_is_taken(engine: Engine, prompt: list[int], params: dict[str, Any]) -> None:
    ask = Ask(str(params), prompt, GenerationParams(max_new_tokens=4, ban_eos_token=True, **params)).run(engine)
    assert (ask.end.reason, ask.end.usage.completion_tokens) == ("length", 4)


@pytest.mark.parametrize(
    "params",
    [
        {"epsilon_cutoff": 0.001}, {"eta_cutoff": 0.001}, {"no_repeat_ngram_size": 3},
        {"tfs": 0.9}, {"top_a": 0.1}, {"smoothing_factor": 0.3}, {"encoder_repetition_penalty": 1.1},
        {"mirostat_mode": 2, "repetition_penalty": 1.1}, {"mirostat_mode": 2, "dry_multiplier": 1.0},
    ],
)  # fmt: skip
def test_what_it_has_no_sampler_for_is_refused_by_name(
    engine: Engine, prompt: list[int], params: dict[str, Any]
) -> None:
    with pytest.raises(BadValue) as caught:
        engine.submit(GenerationRequest("no", "u", tuple(prompt), GenerationParams(**params)), ignore)
    assert caught.value.param in params and str(caught.value.param) in caught.value.message


def test_repetition_penalties_change_what_is_written_and_top_k_1_is_greedy(engine: Engine, prompt: list[int]) -> None:
    plain = Ask("plain", prompt, long(30)).run(engine).tokens
    likeliest = GenerationParams(top_k=1, max_new_tokens=30, ban_eos_token=True)
    assert Ask("k1", prompt, likeliest).run(engine).tokens == plain
    assert Ask("penalised", prompt, long(30, repetition_penalty=2.0)).run(engine).tokens != plain


def test_greedy_asks_for_no_truncation_and_the_order_is_the_documented_one() -> None:
    every = GenerationParams(
        top_k=3, min_p=0.1, typical_p=0.9, xtc_probability=0.5, repetition_penalty=1.1, dry_multiplier=1.0
    )
    truncations = ["top_k", "top_p", "min_p", "typ_p", "xtc"]
    assert sampling_fields(every, 64)["samplers"] == ["penalties", "dry", "temperature", *truncations]
    last = every.model_copy(update={"temperature_last": True})
    assert sampling_fields(last, 64)["samplers"] == ["penalties", "dry", *truncations, "temperature"]
    near = sampling_fields(last.model_copy(update={"top_n_sigma": 1.5, "repetition_penalty_range": 16}), 64)
    assert near["samplers"] == ["penalties", "dry", "top_n_sigma", *truncations, "temperature"]
    assert (near["top_n_sigma"], near["repeat_last_n"]) == (1.5, 16)
    assert sampling_fields(every.model_copy(update={"temperature": 0.0}), 64)["samplers"][-1] == "temperature"
    check_params(every)


def test_a_cancelled_reply_ends_at_once_and_the_next_one_runs(engine: Engine, prompt: list[int]) -> None:
    started = threading.Event()
    events: list[Event] = []
    ended = threading.Event()

    def emit(event: Event) -> None:
        events.append(event)
        if isinstance(event, Delta):
            started.set()
        if isinstance(event, Finished):
            ended.set()

    engine.submit(GenerationRequest("cancelled", "u", tuple(prompt), long(400)), emit)
    assert started.wait(TIMEOUT_S)
    engine.cancel("cancelled")
    assert ended.wait(TIMEOUT_S)
    end = events[-1]
    assert isinstance(end, Finished) and end.reason == "cancelled" and 0 < end.usage.completion_tokens < 400
    assert len(Ask("after", prompt, long(5)).run(engine).tokens) == 5


def test_a_stream_that_is_closed_waits_until_llama_cpp_has_dropped_its_row() -> None:
    ours, its = socket.socketpair()
    with its:
        stream = Stream(ours, "/completion", {}, {})
        its.recv(1 << 16)
        closing = threading.Timer(0.05, stream.close)
        closing.start()
        assert list(stream) == [], "who reads a stream that is closed waits for nothing"
        letting_go = threading.Thread(target=stream.let_go)
        letting_go.start()
        assert its.recv(1) == b"", "llama.cpp is not told"
        its.sendall(b"HTTP/1.1 200 OK\r\n\r\ndata: {}\n\n")
        letting_go.join(0.1)
        assert letting_go.is_alive(), "the next prompt may begin beside the row"
    letting_go.join(TIMEOUT_S)
    closing.join()
    assert ours.fileno() == -1


def test_a_stream_is_let_go_in_the_end_where_llama_cpp_writes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "LET_GO_S", 0.3)
    ours, its = socket.socketpair()
    with its:
        closed = Stream(ours, "/completion", {}, {})
        writing = threading.Thread(target=_write_on, args=(its,))
        writing.start()
        closed.let_go()
        writing.join(TIMEOUT_S)
    assert not writing.is_alive()


def _write_on(connected: socket.socket) -> None:
    """Until nobody reads any more."""
    with contextlib.suppress(OSError):
        while True:
            connected.sendall(b"data: {}\n\n")


def test_more_requests_than_rows_wait_their_turn_and_users_take_turns(engine: Engine, prompt: list[int]) -> None:
    asks = [Ask(f"busy {n}", prompt, long(20), user="many").submit(engine) for n in range(SLOTS + 3)]
    single = Ask("one", prompt, long(5), user="single").submit(engine)
    assert len(single.wait().tokens) == 5
    assert all(len(ask.wait().tokens) == 20 for ask in asks)
    assert any(isinstance(event, Queued) for ask in asks for event in ask.events)


def test_requests_that_may_fill_the_cache_are_not_let_in_together(engine: Engine, prompt: list[int]) -> None:
    large = [Ask(f"large {n}", prompt, long(CONTEXT - len(prompt)), user=f"u{n}").submit(engine) for n in range(2)]
    assert [ask.wait().end.reason for ask in large] == ["length", "length"]
    assert [len(ask.tokens) for ask in large] == [CONTEXT - len(prompt)] * 2


def test_rows_give_way_where_the_cache_runs_short_and_go_on_from_their_tokens(tmp_path: Path) -> None:
    with engine_of(plan_of(tiny_gguf(tmp_path, counting=True), 1024)) as engine:
        at_once: list[int] = []
        params = long(700, presence_penalty=0.01)  # of which it has something to say

        def count(_: Event) -> None:
            at_once.append(len(engine._shares))

        asks = [Ask(f"{n}", [65 + n] * 20, params, user=f"u{n}", at_event=count) for n in range(3)]
        for ask in asks:
            ask.submit(engine)
        for first, ask in enumerate(asks, start=66):
            assert ask.wait().end.reason == "length"
            assert ask.text == (COUNTED * 9)[first : first + 700], "no token is lost or told twice"
            assert len(ask.tokens) == ask.end.usage.completion_tokens == 700
            assert ask.end.usage.prompt_tokens == 20 and ask.end.usage.cached_tokens < 20
            assert sum(isinstance(event, Degraded) for event in ask.events) == 1, "a notice is told once"
        assert max(at_once) == 3
        assert any(map(pauses, asks)), "three rows of 720 tokens were never in each other's way in 1,024"


def test_who_is_asked_to_give_way_before_there_is_a_stream_gives_way_at_once() -> None:
    closed: list[bool] = []

    class Stream:
        def close(self) -> None:
            closed.append(True)

    reply = LlamaReply(GenerationRequest("1", "u", (65,), long(5)), ignore, lambda _: [], longest=CONTEXT)
    reply.give_way()
    reply.begin_stream(cast(Any, Stream()))
    assert closed == [True]
    reply.step_aside()
    assert not reply.gives_way


def test_a_cache_that_is_full_of_others_ends_no_reply(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shares.Shares, "grow", lambda *_: False)  # rows that write faster than anybody hears
    with engine_of(plan_of(file, 1024)) as engine:
        asks = [Ask(f"{n}", [65 + n] * 20, long(600), user=f"u{n}").submit(engine) for n in range(3)]
        assert [ask.wait().end.reason for ask in asks] == ["length"] * 3
        assert [len(ask.tokens) for ask in asks] == [600] * 3


def test_a_reply_whose_turn_is_over_lets_others_come(roomy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SHORT_TURNS.items():
        monkeypatch.setattr(shares, name, value)
    monkeypatch.setattr(llamacpp, "LOOK_S", 0.01)
    with engine_of(plan_of(roomy, 4096)) as engine:
        begun = threading.Event()
        ben = Ask("ben", [66] * 3000, long(1000), user="ben", at_event=at_text(begun)).submit(engine)
        assert begun.wait(TIMEOUT_S)
        ana = Ask("ana", [65] * 2000, long(2000), user="ana").submit(engine)
        held = Ask("held", [65] * 1000, greedy(100, grammar='root ::= "a"{90,99}'), user="cleo").submit(engine)
        assert held.wait().end.reason == "stop" and not pauses(held)
        assert not ben.done.is_set(), "the others waited for its end"
        assert pauses(ben)
        assert {len(ask.wait().tokens) for ask in (ben, ana)} == {1000, 2000}
        assert (engine.stats().active, engine.stats().queued, len(engine._shares)) == (0, 0, 0)


@pytest.mark.parametrize("by", ["cancel", "close"])
def test_who_has_given_way_ends_when_cancelled_and_with_the_engine(
    by: str, roomy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (SHORT_TURNS | {"PATIENCE_S": TIMEOUT_S}).items():
        monkeypatch.setattr(shares, name, value)
    monkeypatch.setattr(llamacpp, "LOOK_S", 0.01)
    gave_way = threading.Event()
    ben = Ask("ben", [66] * 3000, long(1000), user="ben", at_event=lambda _: gave_way.set() if pauses(ben) else None)
    with engine_of(plan_of(roomy, 4096)) as engine:
        ben.submit(engine)
        ana = Ask("ana", [65] * 2000, long(2000), user="ana").submit(engine)
        assert gave_way.wait(TIMEOUT_S)
        if by == "cancel":
            engine.cancel("ben")
            ben.wait()
            assert not ana.done.is_set(), "it waited for the other's end"
    assert [ask.wait().end.reason for ask in (ben, ana)] == ["cancelled"] * 2


def test_the_context_is_honest(engine: Engine, prompt: list[int]) -> None:
    with pytest.raises(ContextLengthExceeded):
        engine.submit(GenerationRequest("long", "u", tuple(prompt * 20), long(5)), ignore)
    ask = Ask("full", prompt, long(10_000)).run(engine)
    assert (len(prompt) + len(ask.tokens), ask.end.reason) == (CONTEXT, "length")


def test_characters_of_several_tokens_come_whole_and_their_tokens_are_counted(tmp_path: Path) -> None:
    engine = load(plan_of(tiny_gguf(tmp_path)), ignore)
    try:
        ask = Ask("bytes", engine.encode([TextPiece(TEXT)]), long(40)).run(engine)
        assert ask.end.usage.completion_tokens == ask.end.timings.decoded_tokens == 40
        assert engine.decode(ask.tokens).encode("ascii", "ignore") == ask.text.encode("ascii", "ignore")
        assert any(ord(character) > 127 for character in ask.text)
    finally:
        engine.close()


def test_odd_requests_are_refused(engine: Engine, prompt: list[int]) -> None:
    for ids in ((), (10**6,)):
        with pytest.raises(BadValue):
            engine.submit(GenerationRequest("odd", "u", ids, greedy(2)), ignore)


def test_a_full_queue_says_so_and_a_closed_engine_ends_what_waits(file: Path, prompt: list[int]) -> None:
    loaded = load(plan_of(file), ignore)
    assert isinstance(loaded, LlamaCppEngine)
    asks = [Ask(f"w{n}", prompt, long(CONTEXT - len(prompt))).submit(loaded) for n in range(3)]
    with pytest.raises(QueueFull):
        for number in range(100):
            loaded.submit(GenerationRequest(f"more {number}", "u", tuple(prompt), long(400)), ignore)
    loaded.close()
    assert {ask.wait().end.reason for ask in asks} <= {"cancelled", "length"}


def test_what_was_loaded_is_told(engine: Engine, file: Path) -> None:
    info = engine.info
    assert (info.loop, info.dtype, info.context_tokens) == ("llamacpp", "F16", CONTEXT)
    stored = sum(tensor.size_bytes for tensor in inspect(file).tensors)
    assert info.placement == {"cpu": pytest.approx(stored, abs=MiB // 50)}
    assert info.special_tokens["eos_token"] == "<|im_end|>" and info.end_texts == ("<|im_end|>",)
    stats = engine.stats()
    assert stats.rss_bytes > 0 and stats.peak_bytes["cpu"] >= stats.rss_bytes * 0.9


def test_files_that_are_gone_or_lack_tensors_are_named(file: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone.gguf"
    gone.write_bytes(file.read_bytes())
    plan = plan_of(gone)
    gone.write_bytes(file.read_bytes().replace(b"blk.1.attn_q.weight", b"blk.1.attn_x.weight"))
    with pytest.raises(LoadFailed):
        load(plan, ignore)
    gone.unlink()
    with pytest.raises(ModelNotFound):
        load(plan, ignore)


def test_the_chat_template_of_a_file_does_not_run_while_it_is_loaded(tmp_path: Path) -> None:
    path = tiny_gguf(tmp_path, template="{{ raise_exception('it ran') }}")
    with engine_of(plan_of(path)) as engine:
        assert engine.info.chat_template == "{{ raise_exception('it ran') }}"


@pytest.mark.parametrize(("error", "kind"), [(MemoryError(), OutOfMemory), (RuntimeError("no"), LoadFailed)])
def test_a_load_that_fails_leaves_no_folder_behind(
    error: Exception, kind: type[Exception], file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(params: object) -> None:
        raise error

    monkeypatch.setattr(xllamacpp, "Server", fail)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(kind):
        load(plan_of(file), ignore)
    assert list(tmp_path.iterdir()) == []


ALONE = """
import sys
from pathlib import Path
import psutil
from modules.engine.llamacpp.engine import load
from modules.memory.forecasting.forecast import RunSpec
from modules.memory.forecasting.kv_cache import KVCache
from modules.memory.forecasting.llamacpp_sizes import SLOTS
from modules.memory.planning.planner import Plan
from modules.memory.model.spec import inspect
run = RunSpec("float16", context_tokens=256, prefill_chunk=64)
engine = load(Plan(inspect(Path(sys.argv[1])), run, "llamacpp", {"": "cpu"}), lambda progress: None)
listening = [one for one in psutil.Process().net_connections("inet") if one.status == "LISTEN"]
print("torch" in sys.modules, len(listening))
engine.close()
"""


def test_the_engines_process_opens_no_port_and_imports_no_torch(file: Path) -> None:
    done = subprocess.run([sys.executable, "-c", ALONE, str(file)], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["False", "0"], done.stderr


def test_it_runs_as_an_engine_process_behind_a_host(file: Path, prompt: list[int]) -> None:
    host = EngineHost.start(plan_of(file), LoadByName("modules.engine.llamacpp.engine:load"))
    try:
        with host.submit(GenerationRequest("1", "u", tuple(prompt), long(10))) as generation:
            text, end = generation.result(TIMEOUT_S)
        assert (end.reason, end.usage.completion_tokens) == ("length", 10) and isinstance(text, str)
        assert host.decode(host.encode([TextPiece("Grüße")])) == "Grüße"
    finally:
        host.close()


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT])
def test_a_crash_in_native_code_costs_the_reply_and_the_engine_process_only(
    number: signal.Signals, file: Path, prompt: list[int]
) -> None:
    host = EngineHost.start(plan_of(file, 4096), LoadByName("modules.engine.llamacpp.engine:load"))
    text = ""
    with host.submit(GenerationRequest("1", "u", tuple(prompt), long(3800))) as generation:
        for event in generation:
            if isinstance(event, Delta) and not text:
                assert host.pid is not None
                os.kill(host.pid, number)
            text += event.text if isinstance(event, Delta) else ""
    assert isinstance(event, Finished) and isinstance(event.error, EngineDied) and text
    assert not host.alive
    host.close()
    with engine_of(plan_of(file)) as engine:
        assert len(Ask("after", prompt, long(5)).run(engine).tokens) == 5
