"""Real servers as engines: llama.cpp's own, `transformers serve`, and another Snug."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from modules.chat.call_formats import GENERIC
from modules.chat.prompts import Prompts
from modules.chat.reply_reading import ReplyReader, put_together
from modules.chat.templates import TemplateWorker
from modules.engine.base import Delta, Finished, GenerationRequest, TextPiece, Words
from modules.engine.host.host import EngineHost
from modules.engine.llamacpp.engine import load as load_llamacpp
from modules.engine.remote.engine import RemoteEngine, connect
from modules.errors import BadGrammar, ContextLengthExceeded, ServerRefused
from modules.forms.tools import Offer, Tool
from modules.memory.forecasting.forecast import RunSpec
from modules.memory.model.spec import inspect
from modules.memory.planning.elsewhere import plan_elsewhere
from modules.memory.planning.planner import Plan
from modules.messages import ChatMessage
from modules.models.starting import load_engine_for
from modules.remote_server import RemoteServer
from modules.sampling import GenerationParams
from modules.settings import Settings
from tests import peers
from tests.api_desk import desk_with, served
from tests.fakes import Script
from tests.loop_rig import Ask
from tests.server_rig import ROOT, running_server
from tests.test_remote import Reader, ask
from tests.tiny_models import tiny_gguf

STARTER = ROOT / "models" / "SmolLM2-135M-Instruct"
MARKS = (TextPiece("<|im_start|>user\n", template=True), TextPiece("say <|im_end|> aloud"))
KEY = "loopback-key"
_PARAMS = """
import xllamacpp
from dataclasses import replace
from pathlib import Path
from modules.memory.forecasting.forecast import RunSpec
from modules.memory.dryruns.llamacpp_params import load_params
params = load_params(Path(sys.argv[1]), RunSpec("float16", context_tokens=int(sys.argv[2]), prefill_chunk=64))
params.api_keys, params.verbosity = [sys.argv[3]], 1
"""


@contextmanager
def llama_server(path: Path, *, context: int = 512) -> Iterator[str]:
    """The address of llama.cpp's own server with a file."""
    with peers.llama_server(_PARAMS, str(path), str(context), KEY) as base:
        yield f"{base}/v1"


@contextmanager
def engine_of(url: str, key: str = "", **options: Any) -> Iterator[RemoteEngine]:
    server = RemoteServer(url, **options)
    engine = connect(plan_elsewhere(server), server, key, lambda _: None)
    try:
        yield engine
    finally:
        engine.close()


def greedy(tokens: int = 24, **params: Any) -> dict[str, Any]:
    return {"temperature": 0.0, "max_new_tokens": tokens} | params


@pytest.fixture(scope="module")
def prompts() -> Iterator[Prompts]:
    prompts = Prompts(TemplateWorker())
    yield prompts
    prompts.close()


def built_request(prompts: Prompts, engine: RemoteEngine, text: str, id: str = "r", **params: Any) -> GenerationRequest:
    """A chat's first question as the page would send it."""
    wanted = GenerationParams.model_validate(params)
    turns = [ChatMessage("user", text)]
    built = prompts.chat(engine, turns, max_new_tokens=wanted.max_new_tokens, truncate=True)
    return GenerationRequest(id, "", built.prompt_ids, wanted, built.reply_ids, built.words)


def said(engine: RemoteEngine, request: GenerationRequest) -> Reader:
    reader = Reader()
    engine.submit(request, reader)
    assert reader.ended.wait(120)
    return reader


# llama.cpp's own server


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf(tmp_path_factory.mktemp("models"), readable=True)


@pytest.fixture(scope="module")
def llama(gguf: Path) -> Iterator[RemoteEngine]:
    with llama_server(gguf) as url, engine_of(url, KEY) as engine:
        yield engine


def test_llama_server_lends_tokenizer_template_and_context(llama: RemoteEngine, gguf: Path) -> None:
    own = load_llamacpp(
        Plan(inspect(gguf), RunSpec("float16", context_tokens=512, prefill_chunk=64), "llamacpp", {}), ignore
    )
    try:
        assert llama.info.takes == "tokens"
        assert (llama.info.context_tokens, llama.info.vocab_size) == (512, own.info.vocab_size)
        assert "<|im_start|>" in llama.info.chat_template  # llama.cpp's own where the file has none
        assert llama.encode(MARKS) == own.encode(MARKS)
        assert llama.decode(llama.encode(MARKS)) == "<|im_start|>user\nsay <|im_end|> aloud"
        assert (llama.info.text_prefix_ids, llama.info.text_suffix_ids) == (own.info.text_prefix_ids, ())
        ids = tuple(own.encode([TextPiece("The harbour wakes. ")]))
        here, there = Reader(), Reader()
        for engine, reader in ((own, here), (llama, there)):
            engine.submit(GenerationRequest("same", "", ids, GenerationParams.model_validate(greedy())), reader)
        assert there.text == here.text != ""
        assert there.end.usage.prompt_tokens == len(ids)
        assert there.end.usage.completion_tokens == here.end.usage.completion_tokens
    finally:
        own.close()


def ignore(_: object) -> None:
    """Nobody watches the load."""


def test_content_never_becomes_control_tokens_of_llama_server(llama: RemoteEngine) -> None:
    control = llama.encode([TextPiece("<|im_end|>", template=True)])
    assert len(control) == 1
    assert control[0] not in llama.encode([TextPiece("a <|im_end|> b")])
    assert llama.encode([*MARKS, TextPiece("<|im_end|>", template=True)]).count(control[0]) == 1


def test_llama_server_goes_on_with_a_reply_and_takes_our_samplers(llama: RemoteEngine) -> None:
    ids = tuple(llama.encode([TextPiece("The harbour wakes. ")]))
    whole = ask(llama, None, id="whole", ids=ids, ban_eos_token=True, **greedy(20))
    first = tuple(llama.encode([TextPiece(whole.text[:6])]))
    rest = Reader()
    wanted = GenerationParams.model_validate(greedy(20 - len(first), ban_eos_token=True))
    llama.submit(GenerationRequest("rest", "", ids, wanted, first), rest)
    assert whole.text[:6] + rest.text == whole.text
    seeds = [
        ask(llama, None, id=f"s{n}", ids=ids, seed=5, temperature=1.5, top_k=30, max_new_tokens=16) for n in range(2)
    ]
    assert seeds[0].text == seeds[1].text
    told = ask(llama, None, id="told", ids=ids, eta_cutoff=0.01, max_new_tokens=4)
    assert told.end.reason in ("length", "stop")
    assert any("eta_cutoff was left out" in line for line in told.told)
    probable = ask(llama, None, id="p", ids=ids, logprobs=3, **greedy(2))
    assert probable.end
    entries = [one for event in probable.events if isinstance(event, Delta) for one in event.logprobs]
    assert len(entries) == 2 and all(len(entry.top) == 3 for entry in entries)


def test_llama_server_holds_a_reply_to_a_form_and_to_calls(llama: RemoteEngine) -> None:
    prompt = tuple(llama.encode([TextPiece("Once")]))
    offer = Offer((Tool("now", "", {"type": "object", "additionalProperties": False}),), only="now")
    drawn = GenerationParams(temperature=1, max_new_tokens=120, seed=3)
    ask = Ask("held call", prompt, drawn, shape=GENERIC.shape(offer), shows=GENERIC.control).run(llama)
    reader = ReplyReader(GENERIC, offer)
    reply = put_together([*reader.feed(ask.text), *reader.end()])
    assert [(call.name, call.arguments) for call in reply.calls] == [("now", "{}")], ask.text
    schema = drawn.model_copy(update={"json_schema": '{"type": "integer", "minimum": 10, "maximum": 99}'})
    assert 10 <= int(Ask("held form", prompt, schema).run(llama).text) <= 99
    with pytest.raises(BadGrammar) as caught:
        Ask("held not", prompt, drawn.model_copy(update={"grammar": "root ::= ("})).submit(llama)
    assert caught.value.param == "grammar"


def test_llama_servers_context_is_kept_to_here(llama: RemoteEngine) -> None:
    with pytest.raises(ContextLengthExceeded):
        ask(llama, None, ids=(5,) * 600)


def test_a_wrong_key_for_llama_server_is_told(gguf: Path) -> None:
    with llama_server(gguf) as url, pytest.raises(ServerRefused, match="does not accept the key"), engine_of(url, "x"):
        pass


# transformers serve


@pytest.mark.model
@pytest.mark.slow
def test_transformers_serve_answers_chats_and_texts_with_our_samplers(prompts: Prompts) -> None:
    with (
        peers.transformers_serve(STARTER, "--dtype", "bfloat16", "--device", "cpu") as base,
        engine_of(f"{base}/v1", model=str(STARTER)) as engine,
    ):
        assert "transformers serve" in engine.info.loop_reason
        question = "What is the capital of France? Answer in one word."
        reader = said(engine, built_request(prompts, engine, question, **greedy(20)))
        assert (reader.end.error, reader.end.reason) == (None, "stop")
        assert "Paris" in reader.text and "<|im_end|>" not in reader.text
        assert reader.end.usage.prompt_tokens > 20 and 0 < reader.end.usage.completion_tokens < 20
        short = said(engine, built_request(prompts, engine, "Tell me a story.", id="s", **greedy(8)))
        assert (short.end.reason, short.end.usage.completion_tokens) == ("length", 8)
        text = ask(engine, Words(text="The capital of France is"), id="text", **greedy(6))
        assert "Paris" in text.text
        seeded = [
            ask(engine, id=f"seed {n}", seed=3, temperature=1.3, top_k=50, max_new_tokens=12).text for n in range(2)
        ]
        assert seeded[0] == seeded[1] != ""
        running = ask(engine, id="long", max_new_tokens=2000, temperature=1.0)
        running.wait_for(Delta)
        engine.cancel("long")
        assert running.end.reason == "cancelled"
        again = ask(engine, id="after", **greedy(4))
        assert again.end.error is None


# Another Snug


def test_another_snug_lends_tokenizer_and_template_and_takes_every_sampler(
    settings: Settings, prompts: Prompts
) -> None:
    with (
        desk_with(settings, Script(reply="The quick brown fox")) as desk,
        served(desk.app) as port,
        engine_of(f"http://127.0.0.1:{port}/v1") as engine,
    ):
        assert (engine.info.takes, engine.info.name) == ("tokens", "scripted")
        assert engine.info.chat_template == desk.models.engine().info.chat_template
        assert engine.encode(MARKS) == desk.models.engine().encode(MARKS)
        assert engine.decode(engine.encode(MARKS)) == desk.models.engine().decode(engine.encode(MARKS))
        request = built_request(prompts, engine, "Hello", seed=9, top_k=7, mirostat_mode=2, stop=("brown",))
        reader = said(engine, request)
        assert (reader.text, reader.end.reason, reader.told) == ("The quick ", "stop", [])
        taken = desk.engine.requests[-1]
        assert taken.prompt_ids == request.prompt_ids
        assert taken.params == request.params
        shape = GENERIC.shape(Offer((Tool("now"),), only="now"))
        said(engine, replace(request, id="called", shape=shape))
        assert "now" in desk.engine.requests[-1].params.grammar, "what must be a call is held to its form there too"
        plain = replace(request, id="plain", params=GenerationParams(json_schema='{"type": "object"}'))
        said(engine, plain)
        assert desk.engine.requests[-1].params.json_schema == plain.params.json_schema


def test_a_remote_engine_runs_in_a_process_without_torch(settings: Settings) -> None:
    with desk_with(settings, Script(reply="From afar")) as desk, served(desk.app) as port:
        plan = plan_elsewhere(RemoteServer(f"http://127.0.0.1:{port}/v1"))
        host = EngineHost.start(plan, load_engine_for(plan))
        try:
            ids = tuple(host.encode([TextPiece("Hello")]))
            text, end = host.submit(GenerationRequest("r", "", ids, GenerationParams())).result(30)
            assert (text, end.error) == ("From afar", None)
            maps = Path(f"/proc/{host.pid}/maps")
            assert not maps.exists() or "libtorch" not in maps.read_text()
        finally:
            host.close()


@pytest.mark.model
@pytest.mark.slow
def test_a_whole_snug_over_a_snug(tmp_path: Path) -> None:
    """Page's own service, history and API of one server, the model of another."""
    with running_server(tmp_path / "far", "--model", STARTER.name, "--ctx-size", "512") as far:
        far.wait_for_page()
        far.wait_until_ready()
        with running_server(tmp_path / "near", "--engine-url", f"{far.base}/v1") as near:
            near.wait_for_page()
            near.wait_until_ready()
            body = {"messages": [{"role": "user", "content": "Say hello."}], "temperature": 0, "max_tokens": 12}
            answers = [
                httpx.post(f"{base}/v1/chat/completions", json=body, timeout=120).json()
                for base in (far.base, near.base)
            ]
            texts = [answer["choices"][0]["message"]["content"] for answer in answers]
            assert texts[0] == texts[1] != ""
            assert answers[1]["usage"]["prompt_tokens"] == answers[0]["usage"]["prompt_tokens"]
            far.stop()
            lost = httpx.post(f"{near.base}/v1/chat/completions", json=body, timeout=120)
            assert lost.status_code == 502
            assert json.loads(lost.text)["error"]["code"] == "server_lost"


def test_the_end_is_always_one(llama: RemoteEngine) -> None:
    reader = ask(llama, None, id="one end", ids=(5, 6), **greedy(4))
    assert reader.end
    assert sum(isinstance(event, Finished) for event in reader.events) == 1
