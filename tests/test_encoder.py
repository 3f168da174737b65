"""Models of transformers that embed: vectors as plain transformers makes them, batches, limits, refusals, the API."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from modules.chat.forms import PLAIN
from modules.chat.gauge import Gauge, Gauges
from modules.chat.prompts import Prompts
from modules.chat.service import ChatService
from modules.chat.store import Store
from modules.engine.base import Embedding, Event, Finished, GenerationRequest, TextPiece
from modules.engine.loading.huggingface import load
from modules.engine.loops.encoder import MOST_PADDING, EncoderEngine, choose_batch
from modules.engine.loops.pooling import pool
from modules.errors import BadValue, ContextLengthExceeded, NotAvailableHere, SnugError
from modules.memory.model.embedder import Pooling
from modules.memory.model.spec import inspect
from modules.memory.planning.planner import Plan, Question, make_plan
from modules.messages import ChatMessage
from modules.models.manager import ModelManager
from modules.sampling import GenerationParams
from modules.settings import LoadOptions, Settings
from modules.ui.views import model_view
from tests.api_desk import real_api
from tests.fakes import fake_inventory
from tests.rendering import TEMPLATES
from tests.tiny_encoders import CONFIGS, DECODERS, WIDTH, encoder_folder

TIMEOUT_S = 60.0
TEXTS = ["a", "The harbour wakes.", "The harbour wakes before the town does, and the gulls know it.", "x" * 100, "Öl"]
_ONE_TOKEN = GenerationParams(max_new_tokens=1)


def plan_of(folder: Path, **options: Any) -> Plan:
    asked = LoadOptions.model_validate({"model": folder.name} | options)
    return make_plan(Question(inspect(folder), asked, fake_inventory(), folder.parent / "cache"))


@contextlib.contextmanager
def engine_of(folder: Path, **options: Any) -> Iterator[EncoderEngine]:
    engine = load(plan_of(folder, **options), lambda _: None)
    assert isinstance(engine, EncoderEngine)
    with contextlib.closing(engine):
        yield engine


class Asked:
    """A text that an engine is to embed, and what came of it."""

    def __init__(self, engine: EncoderEngine, ids: Sequence[int], id: str = "e") -> None:
        self.events: list[Event] = []
        self.ended = threading.Event()
        engine.submit(GenerationRequest(id, "ann", tuple(ids), _ONE_TOKEN, embed=True), self._take)

    def _take(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, Finished):
            self.ended.set()

    @property
    def end(self) -> Finished:
        assert self.ended.wait(TIMEOUT_S)
        last = self.events[-1]
        assert isinstance(last, Finished)
        return last

    @property
    def vector(self) -> torch.Tensor:
        assert self.end.reason == "stop", self.end.error
        (told,) = [event for event in self.events if isinstance(event, Embedding)]
        return torch.tensor(told.values)


def ids_of(engine: EncoderEngine, text: str) -> list[int]:
    """As the API makes them."""
    info = engine.info
    return [*info.text_prefix_ids, *engine.encode([TextPiece(text)]), *info.text_suffix_ids]


@torch.no_grad()
def plainly(folder: Path, texts: Sequence[str], pooling: str, *, normalizes: bool) -> torch.Tensor:
    """What transformers alone makes of `texts`, filled up to the longest: the lines that model cards show."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    batch = tokenizer(list(texts), padding=True, truncation=True, max_length=128, return_tensors="pt")
    batch.pop("token_type_ids", None)
    hidden, mask = model(**batch).last_hidden_state, batch["attention_mask"]
    if pooling == "cls":
        found = hidden[:, 0]
    elif pooling == "lasttoken":
        found = torch.stack([hidden[row, int(mask[row].sum()) - 1] for row in range(len(hidden))])
    else:
        wide = mask.unsqueeze(-1).expand(hidden.size()).float()
        found = torch.sum(hidden * wide, 1) / torch.clamp(wide.sum(1), min=1e-9)
    return torch.nn.functional.normalize(found, p=2, dim=1) if normalizes else found


@pytest.mark.parametrize("family", CONFIGS)
def test_vectors_are_those_of_plain_transformers_one_by_one_and_together(family: str, tmp_path: Path) -> None:
    pooling = "lasttoken" if family in DECODERS else "mean"
    folder = encoder_folder(tmp_path, family, pooling=pooling)
    with engine_of(folder) as engine:
        assert (engine.info.dtype, engine.info.loop) == ("float32", "encoder")
        alone = [Asked(engine, ids_of(engine, text)).vector for text in TEXTS]
        texts = TEXTS * 3
        asked = [Asked(engine, ids_of(engine, text), f"e{number}") for number, text in enumerate(texts)]
        together = torch.stack([one.vector for one in asked])
    expected = torch.cat([plainly(folder, [text], pooling, normalizes=False) for text in TEXTS])
    torch.testing.assert_close(torch.stack(alone), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(together, plainly(folder, texts, pooling, normalizes=False), rtol=0, atol=1e-5)
    assert not torch.allclose(expected[0], expected[1], atol=1e-2)  # the model tells texts apart


@pytest.mark.parametrize(("family", "pooling"), [("bert", "cls"), ("xlm-roberta", "cls"), ("qwen3", "mean")])
def test_other_poolings_and_length_1(family: str, pooling: str, tmp_path: Path) -> None:
    folder = encoder_folder(tmp_path, family, pooling=pooling, normalizes=True)
    with engine_of(folder) as engine:
        found = torch.stack([Asked(engine, ids_of(engine, text)).vector for text in TEXTS])
    torch.testing.assert_close(found, plainly(folder, TEXTS, pooling, normalizes=True), rtol=0, atol=1e-5)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(len(TEXTS)))


@pytest.mark.parametrize("family", ["bert", "modernbert", "qwen3"])
def test_a_checkpoint_with_a_head_embeds_as_the_base_model_inside_it(family: str, tmp_path: Path) -> None:
    folder = encoder_folder(tmp_path, family, headed=True)
    with engine_of(folder) as engine:
        found = Asked(engine, ids_of(engine, TEXTS[2])).vector
    torch.testing.assert_close(found, plainly(folder, TEXTS[2:3], "mean", normalizes=False)[0], rtol=0, atol=1e-5)


def test_padding_counts_in_no_pooling() -> None:
    states = torch.tensor([[[1.0], [3.0], [100.0]], [[5.0], [7.0], [9.0]]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    expected: dict[Pooling, list[float]] = {"mean": [2, 7], "cls": [1, 5], "last": [3, 9]}
    for pooling, values in expected.items():
        assert pool(states, mask, pooling).flatten().tolist() == values


def test_texts_in_small_letters_where_the_folder_says_so(tmp_path: Path) -> None:
    folder = encoder_folder(tmp_path, "bert", do_lower_case=True, max_seq_length=64)
    with engine_of(folder) as engine:
        assert ids_of(engine, "HARBOUR") == ids_of(engine, "harbour")
        assert engine.info.embed_tokens == 64


def test_control_tokens_in_a_text_are_text(tmp_path: Path) -> None:
    folder = encoder_folder(tmp_path, "bert")
    with engine_of(folder) as engine:
        assert ids_of(engine, "</s>")[1:-1] == [2 + 2 + ord(char) - 33 for char in "</s>"]


def test_batches_are_of_like_length_and_within_their_tokens() -> None:
    assert choose_batch([10], 5) == [0]  # a text longer than a batch is one by itself
    assert choose_batch([10, 10, 10, 10], 30) == [0, 1, 2]
    assert choose_batch([10, 500, 12, 9], 1000) == [0, 3, 2]
    lengths = [7, 300, 8, 6, 290, 7, 2, 120, 9, 5]
    left = list(range(len(lengths)))
    while left:
        chosen = [left[place] for place in choose_batch([lengths[number] for number in left], 600)]
        filled = max(lengths[number] for number in chosen) * len(chosen)
        assert filled <= 600
        assert filled - sum(lengths[number] for number in chosen) <= MOST_PADDING * filled
        assert left[0] in chosen  # the oldest never waits for others
        left = [number for number in left if number not in chosen]


def test_many_texts_take_few_steps(tmp_path: Path) -> None:
    with engine_of(encoder_folder(tmp_path, "bert")) as engine:
        seen: list[tuple[int, ...]] = []
        free = threading.Event()

        def look(_module: Any, inputs: Any, values: Any) -> None:
            seen.append(tuple(values["input_ids"].shape))
            assert free.wait(TIMEOUT_S)

        engine.loaded.model.register_forward_pre_hook(look, with_kwargs=True)
        texts = ["a" * (8 + number % 3) for number in range(21)]
        asked = [Asked(engine, ids_of(engine, text), f"e{number}") for number, text in enumerate(texts)]
        free.set()
        vectors = [one.vector for one in asked]
    assert sum(count for count, _ in seen) == len(texts)
    assert len(seen) <= 3  # what came first by itself, then the rest
    torch.testing.assert_close(vectors[0], vectors[18], rtol=0, atol=1e-5)


def test_a_text_that_breaks_the_model_spoils_no_other(tmp_path: Path) -> None:
    with engine_of(encoder_folder(tmp_path, "bert")) as engine:
        free = threading.Event()

        def strike(_module: Any, inputs: Any, values: Any) -> None:
            assert free.wait(TIMEOUT_S)
            if (values["input_ids"] == 99).any():
                raise RuntimeError("not enough memory: you tried to allocate 9 bytes")

        engine.loaded.model.register_forward_pre_hook(strike, with_kwargs=True)
        asked = [Asked(engine, [0, 5 + number, 2], f"e{number}") for number in range(3)]
        broken = Asked(engine, [0, 99, 2], "broken")
        free.set()
        assert all(len(one.vector) == WIDTH for one in asked)
        assert broken.end.reason == "error"
        assert broken.end.error is not None and broken.end.error.code == "out_of_memory"
        assert len(Asked(engine, [0, 7, 2], "after").vector) == WIDTH


def test_a_cancelled_text_ends_and_so_do_all_when_the_engine_closes(tmp_path: Path) -> None:
    with engine_of(encoder_folder(tmp_path, "bert")) as engine:
        held, free = threading.Event(), threading.Event()

        def hold(*_: Any) -> None:
            held.set()
            assert free.wait(TIMEOUT_S)

        engine.loaded.model.register_forward_pre_hook(hold)
        first = Asked(engine, [0, 5, 2], "first")
        assert held.wait(TIMEOUT_S)
        second, third = (Asked(engine, [0, 5, 2], name) for name in ("second", "third"))
        engine.cancel("second")
        closing = threading.Thread(target=engine.close)
        closing.start()
        free.set()
        closing.join(TIMEOUT_S)
    assert {first.end.reason, second.end.reason, third.end.reason} == {"cancelled"}
    assert engine.stats().active == 0


def test_what_cannot_be_embedded_is_refused_by_name(tmp_path: Path) -> None:
    with engine_of(encoder_folder(tmp_path, "bert")) as engine:
        assert engine.info.embed_tokens == 128
        refused: list[tuple[GenerationRequest, type[SnugError], str]] = [
            (GenerationRequest("r", "", (5,) * 129, _ONE_TOKEN, embed=True), ContextLengthExceeded, "129 tokens"),
            (GenerationRequest("r", "", (), _ONE_TOKEN, embed=True), BadValue, "empty"),
            (GenerationRequest("r", "", (260,), _ONE_TOKEN, embed=True), BadValue, "Token ids"),
            (GenerationRequest("r", "", (5,), _ONE_TOKEN), NotAvailableHere, "writes no replies"),
        ]
        for request, kind, told in refused:
            with pytest.raises(kind, match=told) as caught:
                engine.submit(request, lambda _: None)
            assert caught.value.remedy
        assert len(Asked(engine, (5,) * 128).vector) == WIDTH


def test_8_bit_weights_are_as_planned_and_the_vectors_near(tmp_path: Path) -> None:
    folder = encoder_folder(tmp_path, "bert")
    with engine_of(folder, load_in_8bit=True) as engine:
        plan = engine.loaded.plan
        planned = plan.budgets["cpu"].weights + plan.budgets["cpu"].quant_meta
        buffers = sum(buffer.numel() * buffer.element_size() for buffer in engine.loaded.model.buffers())
        assert engine.info.placement["cpu"] - buffers == planned
        found = Asked(engine, ids_of(engine, TEXTS[2])).vector
    expected = plainly(folder, TEXTS[2:3], "mean", normalizes=False)[0]
    assert torch.nn.functional.cosine_similarity(found, expected, dim=0) > 0.99


@pytest.mark.parametrize("family", CONFIGS)
def test_planned_bytes_of_weights_are_the_loaded_ones(family: str, tmp_path: Path) -> None:
    folder = encoder_folder(tmp_path, family, headed=family != "distilbert")
    for dtype in ("fp32", "bf16"):
        with engine_of(folder, dtype=dtype) as engine:
            buffers = sum(buffer.numel() * buffer.element_size() for buffer in engine.loaded.model.buffers())
            planned = engine.loaded.plan.budgets["cpu"]
            assert planned.weights == engine.info.placement["cpu"] - buffers
            assert planned.kv_cache == 0


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Snug's API over a tiny BERT."""
    folder = encoder_folder(tmp_path_factory.mktemp("models"), "bert", normalizes=True)
    with real_api(folder, tmp_path_factory.mktemp("data")) as base:
        yield base


def test_openais_own_client_gets_vectors_in_their_order(base: str) -> None:
    client = openai.OpenAI(base_url=base, api_key="none")
    texts = [text * count for count in (1, 3, 2) for text in ("ab", "harbour ", "c")] * 5
    answer = client.embeddings.create(model="any", input=texts)
    assert [entry.index for entry in answer.data] == list(range(len(texts)))
    assert answer.model == "tiny-bert"
    assert answer.usage.prompt_tokens == sum(len(text) + 2 for text in texts)
    for text in set(texts):
        alone = client.embeddings.create(model="any", input=text).data[0].embedding
        assert answer.data[texts.index(text)].embedding == pytest.approx(alone, abs=1e-5)


def test_fewer_dimensions_have_length_1_too(base: str) -> None:
    def vector(**fields: Any) -> torch.Tensor:
        answer = httpx.post(f"{base}/embeddings", json={"input": "harbour"} | fields, timeout=60)
        return torch.tensor(answer.json()["data"][0]["embedding"])

    cut, whole = vector(dimensions=8), vector()
    torch.testing.assert_close(cut, whole[:8] / whole[:8].norm())
    answer = httpx.post(f"{base}/embeddings", json={"input": "a", "dimensions": WIDTH + 1}, timeout=60)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "dimensions")


def test_a_text_that_is_too_long_is_refused_with_its_place(base: str) -> None:
    answer = httpx.post(f"{base}/embeddings", json={"input": ["a", "b" * 127]}, timeout=60)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "context_length_exceeded", "input[1]")
    assert "129 tokens" in error["message"] and "128" in error["message"]


_USER = [{"role": "user", "content": "Hello"}]
_TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("chat/completions", {"messages": _USER}),
        ("chat/completions", {"messages": _USER, "tools": [_TOOL]}),
        ("completions", {"prompt": "Once"}),
        ("completions", {"prompt": [5, 6]}),
        ("completions", {"prompt": "Once", "suffix": "end"}),
        ("completions", {"prompt": "Once", "echo": True, "logprobs": 1, "max_tokens": 0}),
        ("messages", {"messages": _USER, "max_tokens": 5, "model": "any"}),
        ("responses", {"input": "Hello"}),
        ("responses", {"input": "Hello", "tools": [{"type": "function", "name": "look", "parameters": {}}]}),
    ],
)
def test_requests_for_replies_get_a_named_error_with_a_remedy(base: str, route: str, body: dict[str, Any]) -> None:
    answer = httpx.post(f"{base}/{route}", json=body, timeout=60)
    told = json.dumps(answer.json())
    assert answer.status_code == 400
    assert "makes embeddings of texts and writes no replies" in told
    assert "Load a model that chats" in told
    if route != "messages":  # Anthropic's errors have types
        assert answer.json()["error"]["code"] == "not_available_here"


def test_a_streamed_chat_is_refused_too(base: str) -> None:
    answer = httpx.post(f"{base}/chat/completions", json={"messages": _USER, "stream": True}, timeout=60)
    assert "writes no replies" in answer.text


def test_the_list_of_models_says_what_it_does(base: str) -> None:
    (model,) = httpx.get(f"{base}/models", timeout=60).json()["data"]
    assert (model["generates"], model["embeds"], model["context_length"]) == (False, True, 128)


def test_the_chat_says_so_and_keeps_the_text_out_of_the_conversation(tmp_path: Path) -> None:
    folder = encoder_folder(tmp_path / "models", "bert")
    settings = Settings.model_validate({"model_dir": folder.parent, "user_data_dir": tmp_path / "data"})
    models = ModelManager(settings, read_inventory=lambda _: fake_inventory(), drain_s=0.0, in_process=True)
    prompts, store = Prompts(TEMPLATES), Store(tmp_path / "snug.db")
    chat = ChatService(models, store, prompts)
    with contextlib.closing(prompts), contextlib.closing(store), contextlib.closing(models):
        models.load(LoadOptions.model_validate({"model": folder.name}))
        view = model_view(models.state)
        assert (view["answering"], view["writes"]) == ("tiny-bert", False)
        conversation = store.create("")
        with pytest.raises(NotAvailableHere, match="writes no replies") as caught:
            chat.reply("", conversation.id, None, "Hello?", _ONE_TOKEN, op_id="12345678")
        assert "Load a model that chats" in caught.value.remedy
        assert store.path("", conversation.id) == []
        question = store.append("", conversation.id, None, "user", "Hello?", op_id="23456789")  # of another model
        reply = chat.regenerate("", conversation.id, question.id, _ONE_TOKEN)
        told = reply.view()
        while not told.finished:
            told = reply.wait(told.version, TIMEOUT_S)
        assert told.error is not None and told.error.code == "not_available_here"
        gauge = Gauges(prompts).measure(models.engine(), [ChatMessage("user", "Hello")], PLAIN, max_new_tokens=9)
        assert gauge == Gauge()
        chat.shutdown(2)


def test_a_request_that_reaches_a_closed_engine_is_told(tmp_path: Path) -> None:
    with engine_of(encoder_folder(tmp_path, "bert")) as engine:
        engine.close()
        with pytest.raises(SnugError, match="unloaded"):
            Asked(engine, [0, 5, 2])


def test_the_plan_of_a_shorter_text_is_kept_to(tmp_path: Path) -> None:
    folder = encoder_folder(tmp_path, "bert")
    assert plan_of(folder, ctx_size=32).run.context_tokens == 32
    with pytest.raises(BadValue, match="at most 128"):
        plan_of(folder, ctx_size=129)
    plan = replace(plan_of(folder), flags=())
    assert plan.loader == "transformers"
