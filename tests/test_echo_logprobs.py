"""`echo` with `logprobs` on /v1/completions: what evaluation programs read off it, against a plain forward in fp32."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from modules.api.shapes import _offsets_in
from modules.engine.base import TokenLogprob
from tests.api_desk import real_api
from tests.tiny_models import EOS_ID, tiny_model

TEXT = "The harbour wakes. "


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model("llama", tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def client(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    options: dict[str, Any] = {"dtype": "fp32", "cpu": True, "ctx_size": 256}
    with (
        real_api(folder, tmp_path_factory.mktemp("data"), **options) as base,
        openai.OpenAI(base_url=base, api_key="x", max_retries=0, timeout=60) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def plain(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def logprobs_of(plain: Any, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = plain(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    return found


def test_an_evaluation_gets_the_log_likelihood_of_each_continuation(
    client: openai.OpenAI, plain: Any, tokenizer: Any
) -> None:
    """As lm-evaluation-harness asks and reads: ids in, one token more than it needs, sums from the context's end on."""
    context = len(tokenizer.encode(TEXT, add_special_tokens=False))
    prompts = [
        tokenizer.encode(TEXT + ending, add_special_tokens=False) for ending in ("The town", "It sleeps on", "The town")
    ]
    answer = client.completions.create(model="x", prompt=prompts, max_tokens=1, temperature=0, logprobs=1, echo=True)
    for ids, choice in zip(prompts, answer.choices, strict=True):
        found: Any = choice.logprobs
        want = logprobs_of(plain, ids)
        assert len(found.tokens) == len(found.token_logprobs) == len(found.top_logprobs) == len(found.text_offset)
        assert len(found.tokens) == len(ids) + 1
        assert found.token_logprobs[0] is None and found.top_logprobs[0] is None
        own = [float(want[place, token]) for place, token in enumerate(ids[1:])]
        assert found.token_logprobs[1:-1] == pytest.approx(own, abs=2e-4)
        likelihood = sum(found.token_logprobs[context:-1])
        assert likelihood == pytest.approx(sum(own[context - 1 :]), abs=2e-3)
        for place in range(context, len(ids)):
            greedy = found.token_logprobs[place] == max(found.top_logprobs[place].values())
            assert greedy == (int(want[place - 1].argmax()) == ids[place])
        assert choice.text.startswith(tokenizer.decode(ids))
    assert answer.usage is not None and answer.usage.prompt_tokens == sum(map(len, prompts))


def test_a_prompt_alone_is_told_with_its_offsets_and_nothing_is_written(
    client: openai.OpenAI, plain: Any, tokenizer: Any
) -> None:
    text = "Søvn – ja"
    answer = client.completions.create(model="x", prompt=text, max_tokens=0, logprobs=2, echo=True)
    (choice,) = answer.choices
    found: Any = choice.logprobs
    assert (choice.text, choice.finish_reason) == (text, "length")
    assert answer.usage is not None and answer.usage.completion_tokens == 0
    ids = tokenizer.encode(text)
    assert len(found.tokens) == len(ids)
    want = logprobs_of(plain, ids)
    own = [float(want[place, token]) for place, token in enumerate(ids[1:])]
    assert found.token_logprobs[0] is None and found.token_logprobs[1:] == pytest.approx(own, abs=2e-4)
    assert all(1 <= len(top) <= 2 for top in found.top_logprobs[1:])
    assert found.text_offset == sorted(found.text_offset) and found.text_offset[-1] == len(text) - 1
    plainly = client.completions.create(model="x", prompt=text, max_tokens=0, echo=True)
    assert plainly.choices[0].text == text and plainly.choices[0].logprobs is None


def test_a_reply_after_a_scored_prompt_follows_it_in_the_lists(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "x", "prompt": TEXT, "max_tokens": 5, "temperature": 0, "logprobs": 0}
    both = client.completions.create(**asked, echo=True).choices[0]
    alone = client.completions.create(**asked).choices[0]
    assert both.text == TEXT + alone.text
    told: Any = both.logprobs
    reply: Any = alone.logprobs
    assert told.tokens[-len(reply.tokens) :] == reply.tokens
    assert told.token_logprobs[-len(reply.tokens) :] == pytest.approx(reply.token_logprobs, abs=1e-4)
    assert told.text_offset[-len(reply.tokens)] == len(TEXT) and told.top_logprobs is None
    assert json.loads(both.model_dump_json())["logprobs"]["token_logprobs"][0] is None


def test_an_end_token_is_told_so_that_the_lists_are_one_longer_than_the_prompt(
    client: openai.OpenAI, tokenizer: Any
) -> None:
    """Who leaves out the last entry, as evaluations do, must leave out no token of the prompt."""
    ids = tokenizer.encode(TEXT, add_special_tokens=False)
    (choice,) = client.completions.create(
        model="x", prompt=ids, max_tokens=1, temperature=0, logprobs=1, echo=True, logit_bias={str(EOS_ID): 100}
    ).choices
    found: Any = choice.logprobs
    assert (choice.text, choice.finish_reason, len(found.tokens)) == (TEXT, "stop", len(ids) + 1)


def test_offsets_pass_over_what_the_tokenizer_put_before_the_text() -> None:
    def token(adds: str) -> TokenLogprob:
        return TokenLogprob(1, adds, math.nan, adds=adds)

    assert _offsets_in("One two", [token("<s>"), token("One"), token(" two")]) == [0, 0, 3]
    assert _offsets_in("One", [token("One")]) == [0]
    assert _offsets_in("ONE", [token("One"), token("x")]) == [0, 3]
