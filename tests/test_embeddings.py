"""/v1/embeddings: the vectors of llama.cpp's own server, replies beside them, limits, other servers."""

from __future__ import annotations

import base64
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy
import openai
import pytest

from modules.engine import shares
from modules.engine.base import Delta, Embedding, Engine, Event, Finished, GenerationRequest, TextPiece
from modules.engine.embedding import EmbeddingTelling
from modules.engine.llamacpp import embedding as llamacpp_embedding
from modules.engine.llamacpp import engine as llamacpp
from modules.engine.llamacpp.embedding import longest_input, pooling_of
from modules.errors import BadFlag, ContextLengthExceeded, GenerationFailed, NotAvailableHere
from modules.memory.model.spec import inspect
from modules.memory.planning.candidates import list_ways
from modules.memory.planning.native import embedding_figure
from modules.memory.planning.planner import Plan, Question, make_plan
from modules.sampling import GenerationParams
from modules.settings import LoadOptions, Settings, check_together
from tests import peers
from tests.api_desk import Desk, real_api
from tests.llamacpp_rig import TEXT, engine_of, long, plan_of
from tests.loop_rig import SHORT_TURNS, TIMEOUT_S, Ask, at_text, greedy, pauses
from tests.shapes import llama, machine
from tests.test_remote_servers import engine_of as remote_engine_of
from tests.tiny_models import tiny_gguf

CHUNK = 64
STARTER_GGUF = Path("models/.gguf/SmolLM2-135M-Instruct.Q4_1.gguf")
_PARAMS = """
import xllamacpp
from pathlib import Path
from modules.memory.forecasting.forecast import RunSpec
from modules.memory.dryruns.llamacpp_params import embed, load_params
params = load_params(Path(sys.argv[1]), RunSpec("float16", context_tokens=512, prefill_chunk=int(sys.argv[2])))
embed(params, by_mean=sys.argv[3] == "mean")
params.verbosity = 1
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf(tmp_path_factory.mktemp("models"), kind="F32", readable=True)


@pytest.fixture(scope="module")
def server(file: Path) -> Iterator[str]:
    with peers.llama_server(_PARAMS, str(file), "512", "mean") as base:
        yield base


@pytest.fixture(scope="module")
def engine(file: Path) -> Iterator[Engine]:
    with engine_of(embedding_plan(file)) as engine:
        yield engine


@pytest.fixture(scope="module")
def base(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Snug's API with the file loaded as asked."""
    with real_api(file, tmp_path_factory.mktemp("data"), embeddings=True, ctx_size=512) as base:
        yield base


def embedding_plan(file: Path) -> Plan:
    return replace(plan_of(file), embeds=True)


class Asked:
    """A request for an embedding, and what came of it."""

    def __init__(
        self, engine: Engine, ids: list[int], id: str = "e", at_event: Callable[[Event], None] = lambda _: None
    ) -> None:
        self._at_event = at_event
        self.events: list[Event] = []
        self.ended = threading.Event()
        params = GenerationParams(max_new_tokens=1)
        engine.submit(GenerationRequest(id, "ann", tuple(ids), params, embed=True), self._take)

    def _take(self, event: Event) -> None:
        self.events.append(event)
        self._at_event(event)
        if isinstance(event, Finished):
            self.ended.set()

    @property
    def vector(self) -> list[float]:
        assert self.ended.wait(TIMEOUT_S)
        (told,) = [event for event in self.events if isinstance(event, Embedding)]
        return list(told.values)

    @property
    def end(self) -> Finished:
        assert self.ended.wait(TIMEOUT_S)
        last = self.events[-1]
        assert isinstance(last, Finished)
        return last


def theirs(server: str, text: Any) -> list[float]:
    answer = httpx.post(f"{server}/v1/embeddings", json={"input": text}, timeout=60).json()
    return [float(value) for value in answer["data"][0]["embedding"]]


def test_llamacpp_says_that_it_tells_nothing_of_a_prompts_own_tokens(base: str) -> None:
    for extra in ({"logprobs": 1}, {"max_tokens": 0}):
        answer = httpx.post(f"{base}/completions", json={"prompt": TEXT, "echo": True} | extra, timeout=60)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"]) == (400, "not_available_here", "echo")


def test_vectors_are_those_of_llama_cpps_own_server_and_of_length_1(engine: Engine, server: str) -> None:
    ids = engine.encode([TextPiece(TEXT)])[:CHUNK]
    asked = Asked(engine, ids)
    assert asked.vector == pytest.approx(theirs(server, ids), abs=1e-6)
    assert numpy.linalg.norm(asked.vector) == pytest.approx(1, abs=1e-5)
    assert (asked.end.reason, asked.end.usage.prompt_tokens, asked.end.usage.completion_tokens) == ("stop", len(ids), 0)
    assert asked.vector != pytest.approx(Asked(engine, ids[::-1]).vector, abs=1e-3)


def test_replies_stay_what_they_are_beside_embeddings(engine: Engine, file: Path) -> None:
    def replies(one: Engine, *, embedding: bool) -> list[list[int]]:
        prompt = one.encode([TextPiece(TEXT)])
        found = []
        for number in range(2):
            ask = Ask(f"r{number}", prompt, long(24)).submit(one)
            if embedding:
                assert len(Asked(one, prompt[:CHUNK], f"e{number}").vector) == 64
            found.append(ask.wait().tokens)
        return found

    with engine_of(plan_of(file)) as plain:
        wanted = replies(plain, embedding=False)
    assert replies(engine, embedding=True) == wanted


def test_a_file_that_keeps_the_last_tokens_vector_embeds_texts_of_many_chunks(tmp_path: Path) -> None:
    last = tiny_gguf(tmp_path, kind="F32", pooling=3)
    ids = list(range(20, 220))
    with engine_of(embedding_plan(last)) as engine, peers.llama_server(_PARAMS, str(last), str(CHUNK), "") as server:
        assert (engine.info.embeds, engine.info.embed_tokens) == ("last", 511)
        assert Asked(engine, ids).vector == pytest.approx(theirs(server, ids), abs=1e-6)


def test_it_says_how_long_a_text_may_be_and_refuses_more_before_any_work(engine: Engine) -> None:
    assert (engine.info.embeds, engine.info.embed_tokens) == ("mean", CHUNK)
    with pytest.raises(ContextLengthExceeded, match=r"65 tokens; \S+ embeds at most 64") as caught:
        Asked(engine, [40] * (CHUNK + 1))
    assert caught.value.remedy == "Send it in parts."


def test_who_did_not_ask_for_them_is_told_how(file: Path) -> None:
    with engine_of(plan_of(file)) as plain, pytest.raises(NotAvailableHere, match="no embeddings") as caught:
        Asked(plain, [40])
    assert caught.value.remedy == "Load it with --embeddings."


def test_a_cancelled_one_ends_at_once_and_frees_its_row(engine: Engine) -> None:
    writing = Ask("writing", [40] * 8, long(300)).submit(engine)
    waiting = Asked(engine, [41] * CHUNK, "waiting")
    engine.cancel("waiting")
    assert waiting.end.reason == "cancelled" and not writing.done.is_set()
    engine.cancel("writing")
    assert writing.wait().end.reason == "cancelled"
    assert len(Asked(engine, [41] * CHUNK, "next").vector) == 64
    assert engine.stats().active == 0


def test_one_that_waited_long_enough_comes_before_new_replies(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llamacpp_embedding, "PASSED_BY_S", 0.0)
    order: list[str] = []
    writing = threading.Event()

    def note(name: str) -> Any:
        def see(event: Event) -> None:
            if isinstance(event, Delta):
                writing.set()
            if isinstance(event, (Embedding, Finished)) and name not in order:
                order.append(name)

        return see

    first = Ask("first", [40] * 8, long(300), at_event=note("first")).submit(engine)
    assert writing.wait(TIMEOUT_S)
    embedding = Asked(engine, [41] * 8, "between", note("between"))
    late = Ask("late", [42] * 8, long(1), at_event=note("late")).submit(engine)
    assert embedding.vector
    late.wait()
    first.wait()
    assert order.index("between") < order.index("late"), "of one token, it would else have ended first"


def test_replies_whose_turn_is_over_give_way_to_one_that_waited_long_enough(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SHORT_TURNS.items():
        monkeypatch.setattr(shares, name, value)
    monkeypatch.setattr(llamacpp, "LOOK_S", 0.01)
    monkeypatch.setattr(llamacpp_embedding, "PASSED_BY_S", 0.0)
    with engine_of(embedding_plan(file)) as engine:
        begun = threading.Event()
        long_one = Ask("long", [40] * 8, long(400), user="ben", at_event=at_text(begun)).submit(engine)
        assert begun.wait(TIMEOUT_S)
        assert Asked(engine, [41] * 8, "between").vector
        assert not long_one.done.is_set(), "it waited for the other's end"
        assert len(long_one.wait().tokens) == 400 and pauses(long_one)


def test_where_a_reply_follows_a_form_others_come_in_before_the_embedding_that_waits_for_it(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llamacpp_embedding, "PASSED_BY_S", 0.0)
    order: list[str] = []
    begun = threading.Event()

    def note(name: str) -> Callable[[Event], None]:
        def see(event: Event) -> None:
            if isinstance(event, Delta):
                begun.set()
            if isinstance(event, Finished):
                order.append(name)

        return see

    def form(engine: Engine, name: str, letters: int) -> Ask:
        params = greedy(letters + 1, grammar=f'root ::= "a"{{{letters}}}')
        return Ask(name, [40] * 8, params, user=name, at_event=note(name)).submit(engine)

    with engine_of(embedding_plan(file)) as engine:
        first = form(engine, "first", 300)
        assert begun.wait(TIMEOUT_S)
        between = Asked(engine, [41] * 8, "between", note("between"))
        late = form(engine, "late", 1)
        ana = Ask("ana", [42] * 8, long(1), user="ana", at_event=note("ana")).submit(engine)
        for ask in (ana, late, first):
            ask.wait()
        assert between.vector
    assert order == ["ana", "first", "between", "late"]


def test_files_that_rank_texts_embed_none(file: Path) -> None:
    plan = embedding_plan(file)
    pooled: dict[str, Any] = {"general.architecture": "llama", "llama.pooling_type": 4}
    with pytest.raises(NotAvailableHere, match="made to rank") as caught:
        pooling_of(plan, pooled)
    assert caught.value.param == "embeddings"
    assert pooling_of(plan, {**pooled, "llama.pooling_type": 2}) == "cls" and pooling_of(plan, {}) == "mean"
    assert longest_input(plan, "cls") == CHUNK


def test_an_answer_without_finite_numbers_is_an_error() -> None:
    told = EmbeddingTelling(GenerationRequest("e", "", (1,), GenerationParams(), embed=True), lambda _: None)
    answers: list[Any] = [None, [], {"data": {}}, {"data": [{"embedding": []}]}, {"data": [{"embedding": ["a"]}]},
                          {"data": [{"embedding": [float("nan")]}]}, {"data": [{"embedding": [None]}]}]  # fmt: skip
    for answer in answers:
        with pytest.raises(GenerationFailed, match="finite numbers"):
            told.take(answer)


def planned(file: Path, **flags: Any) -> Plan:
    return make_plan(Question(inspect(file), LoadOptions.model_validate(flags), machine(0), Path("cache")))


def test_a_plan_counts_them_says_so_and_leaves_the_file_to_llama_cpp(file: Path) -> None:
    plan, without = planned(file, embeddings=True), planned(file, loader="llamacpp")
    assert plan.embeds and not without.embeds and plan.loader == "llamacpp"
    figure = embedding_figure(plan.spec, plan.run)
    assert plan.budgets["cpu"].total == without.budgets["cpu"].total + figure.bytes
    assert "--embeddings" in plan.flags and any("/v1/embeddings" in reason for reason in plan.reasons)
    asked = LoadOptions.model_validate({"embeddings": True})
    assert {way.run.runtime for way in list_ways(plan.spec, asked, 0)[0]} == {"llamacpp"}
    with pytest.raises(NotAvailableHere, match=r"--embeddings: .*no GGUF file") as caught:
        make_plan(Question(llama("7B"), asked, machine(0), Path("cache")))
    assert caught.value.param == "embeddings"
    for other in ({"draft_model": "x"}, {"speculate": "ngram"}, {"deepspeed": True}):
        with pytest.raises(BadFlag, match="--embeddings"):
            check_together(LoadOptions.model_validate({"embeddings": True, **other}))


@pytest.mark.model
def test_the_bytes_that_they_take_are_what_the_plan_says() -> None:
    if not STARTER_GGUF.is_file():
        pytest.skip("the starter's GGUF file is not in models/.gguf")
    plan = replace(plan_of(STARTER_GGUF.resolve(), 1024), embeds=True)
    plan = replace(plan, run=replace(plan.run, prefill_chunk=512))
    with engine_of(plan) as engine:
        Ask("before", [100] * 600, long(4)).run(engine)
        before = engine.stats().rss_bytes
        assert len(Asked(engine, [100] * 512).vector) == plan.spec.hidden_size
        grown = engine.stats().rss_bytes - before
    forecast = embedding_figure(plan.spec, plan.run).bytes
    print(f"embeddings: {forecast:,} forecast, {grown:,} grown")
    assert 0.85 * forecast < grown < 1.03 * forecast


# Through the API


def test_openais_own_client_reads_texts_ids_and_lists(base: str, server: str) -> None:
    with openai.OpenAI(base_url=base, api_key="none", max_retries=0) as client:
        one = client.embeddings.create(model="any", input="a harbour")  # asks for base64 by itself
        ids = list(b"a harbour")
        several = client.embeddings.create(model="any", input=["b", "a harbour"], encoding_format="float")
        tokens = client.embeddings.create(model="any", input=[[70, 71], [72]], encoding_format="float")
    wanted = theirs(server, "a harbour")
    assert one.data[0].embedding == pytest.approx(wanted, abs=1e-6)
    assert several.data[1].embedding == pytest.approx(wanted, abs=1e-6)
    assert [item.index for item in several.data] == [0, 1] and several.model == "readable-64-2-F32"
    assert several.usage.prompt_tokens == several.usage.total_tokens == len(ids) + 1
    assert tokens.data[0].embedding == pytest.approx(theirs(server, [70, 71]), abs=1e-6)


def test_base64_holds_the_same_32_bit_floats(base: str) -> None:
    def embed(form: str) -> Any:
        answer = httpx.post(f"{base}/embeddings", json={"input": "a", "encoding_format": form}, timeout=60).json()
        assert answer["object"] == "list" and answer["data"][0]["object"] == "embedding"
        return answer["data"][0]["embedding"]

    raw = base64.b64decode(embed("base64"))
    assert struct.unpack(f"<{len(raw) // 4}f", raw) == pytest.approx(embed("float"), abs=1e-7)


def test_shorter_vectors_are_the_beginning_of_whole_ones_at_length_one(base: str) -> None:
    with openai.OpenAI(base_url=base, api_key="none", max_retries=0) as client:
        whole = client.embeddings.create(model="any", input="a harbour").data[0].embedding
        same = client.embeddings.create(model="any", input="a harbour", dimensions=len(whole)).data[0].embedding
        cut = client.embeddings.create(model="any", input="a harbour", dimensions=5).data[0].embedding
    kept = numpy.array(whole[:5])
    assert cut == pytest.approx((kept / numpy.linalg.norm(kept)).tolist(), abs=1e-6)
    assert same == pytest.approx(whole, abs=1e-7)


def test_more_texts_than_fit_at_once_keep_their_order(base: str) -> None:
    texts = [chr(97 + number % 26) * (1 + number) for number in range(20)]
    answer = httpx.post(f"{base}/embeddings", json={"input": texts}, timeout=120).json()
    alone = httpx.post(f"{base}/embeddings", json={"input": texts[17]}, timeout=60).json()
    assert len(answer["data"]) == 20 and answer["usage"]["prompt_tokens"] == sum(map(len, texts))
    assert answer["data"][17]["embedding"] == pytest.approx(alone["data"][0]["embedding"], abs=1e-5)


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({}, "input", "bad_value"), ({"input": ""}, "input", "bad_value"), ({"input": []}, "input", "bad_value"),
        ({"input": ["a", ""]}, "input", "bad_value"), ({"input": 5}, "input", "bad_value"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format", "bad_value"),
        ({"input": "a", "dimensions": 0}, "dimensions", "bad_value"),
        ({"input": "a", "dimensions": 10**5}, "dimensions", "bad_value"),
        ({"input": ["a"] * 2049}, "input", "bad_value"), ({"input": [70, 10**6]}, "input[0]", "bad_value"),
        ({"input": ["a", "b" * 512]}, "input[1]", "context_length_exceeded"),
        ({"input": "b" * 200_000}, "input[0]", "context_length_exceeded"),
        ({"input": [70] * 512}, "input[0]", "context_length_exceeded"),
    ],
)  # fmt: skip
def test_bad_requests_are_refused_by_field(base: str, body: dict[str, Any], param: str, code: str) -> None:
    answer = httpx.post(f"{base}/embeddings", json=body, timeout=60)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, param, code)


async def test_an_engine_without_embeddings_is_told_with_what_to_load(tmp_path: Path) -> None:
    desk = Desk(Settings.model_validate({"model_dir": tmp_path / "models", "user_data_dir": tmp_path / "data"}))
    try:
        desk.load()
        async with desk.client() as client:
            error = (await client.post("/v1/embeddings", json={"input": "a"})).json()["error"]
            assert error["code"] == "not_available_here" and "--loader llamacpp --embeddings" in error["message"]
            assert (await client.get("/v1/embeddings")).status_code == 405
    finally:
        desk.close()


def test_a_model_on_another_server_is_asked_there(server: str) -> None:
    with remote_engine_of(f"{server}/v1") as engine:
        assert engine.info.embeds == "server"
        asked = Asked(engine, [70, 71, 72])
        assert asked.vector == pytest.approx(theirs(server, [70, 71, 72]), abs=1e-6)
        assert asked.end.usage.prompt_tokens == 3
