"""What the tests of both generation loops share: a tiny model as the loops get it, requests, and collected events."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from modules.engine.base import Delta, Engine, Event, Finished, GenerationRequest, ModelInfo, Queued
from modules.engine.loops.loaded import LoadedModel
from modules.forms.tools import CallShape
from modules.memory.forecasting.budget import Budget, Figure
from modules.memory.forecasting.forecast import RunSpec
from modules.memory.model.spec import ModelSpec
from modules.memory.planning.planner import Plan
from modules.sampling import GenerationParams

TIMEOUT_S = 120.0
SHORT_TURNS = {"LEAST_TURN_S": 0.05, "READINGS_A_TURN": 0, "PATIENCE_S": 0.05}


def load(
    folder: Path,
    *,
    loop: Literal["batched", "serial"] = "serial",
    dtype: torch.dtype = torch.float32,
    prefill_chunk: int = 16,
    context_tokens: int = 512,
    kv_bytes: int = 64 * 2**20,
    model: Any = None,
) -> LoadedModel:
    """The model in `folder` on the CPU; `model` instead of loading it again."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if model is None:
        shape = AutoConfig.from_pretrained(folder)
        kind: Any = AutoModelForSeq2SeqLM if shape.is_encoder_decoder else AutoModelForCausalLM
        model = kind.from_pretrained(folder, dtype=dtype).eval()
    config = model.config
    spec = ModelSpec(
        name=folder.name, path=folder, source="safetensors", architecture="", model_type=config.model_type,
        is_encoder_decoder=config.is_encoder_decoder, tensors=(), layers=0, hidden_size=0, intermediate_size=0,
        attention_heads=0, kv_heads=0, head_dim=0, vocab_size=config.vocab_size, max_context=context_tokens,
        tied_embeddings=False, stored_dtype="float32",
    )  # fmt: skip
    run = RunSpec(dtype="float32", context_tokens=context_tokens, prefill_chunk=prefill_chunk)
    plan = Plan(
        spec, run, "transformers", {"": "cpu"}, budgets={"cpu": Budget.of({"kv_cache": Figure(kv_bytes, "exact")})}
    )
    info = ModelInfo(
        name=folder.name, architecture="", loop=loop, loop_reason="", context_tokens=context_tokens,
        vocab_size=config.vocab_size, is_encoder_decoder=config.is_encoder_decoder, dtype="float32",
        quantization="none", chat_template="", special_tokens={}, end_texts=(), placement={}, modules={}, load_s=0,
        peak_bytes=0,
    )  # fmt: skip
    eos = model.generation_config.eos_token_id
    eos_ids = frozenset([eos] if isinstance(eos, int) else eos or ())
    return LoadedModel(model, tokenizer, plan, torch.device("cpu"), eos_ids, config.is_encoder_decoder, info)


@dataclass
class Ask:
    """One request and what came of it. `at_event` is called in the engine's thread after each event."""

    id: str
    prompt_ids: Sequence[int]
    params: GenerationParams
    reply_ids: Sequence[int] = ()
    user: str = "ann"
    at_event: Callable[[Event], None] | None = None
    shape: CallShape | None = None
    shows: tuple[str, ...] = ()
    queue_s: float = 0.0
    scored: bool = False
    writes: bool = True
    whose: str = ""
    events: list[Event] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)

    def submit(self, engine: Engine) -> Ask:
        """Hand it to `engine`."""
        request = GenerationRequest(
            self.id, self.user, tuple(self.prompt_ids), self.params, tuple(self.reply_ids), shape=self.shape,
            shows=self.shows, queue_s=self.queue_s, scored=self.scored, writes=self.writes,
            whose=self.whose,
        )  # fmt: skip
        engine.submit(request, self._on_event)
        return self

    def run(self, engine: Engine) -> Ask:
        """Hand it to `engine` and wait for its end."""
        return self.submit(engine).wait()

    def wait(self) -> Ask:
        """Until Finished has come."""
        assert self.done.wait(TIMEOUT_S), f"{self.id} did not finish: {self.events[-3:]}"
        return self

    @property
    def tokens(self) -> list[int]:
        """All tokens of its deltas."""
        return [token for event in self.events if isinstance(event, Delta) for token in event.token_ids]

    @property
    def text(self) -> str:
        """All text of its deltas."""
        return "".join(event.text for event in self.events if isinstance(event, Delta))

    @property
    def end(self) -> Finished:
        """Its last event."""
        last = self.events[-1]
        assert isinstance(last, Finished)
        return last

    def _on_event(self, event: Event) -> None:
        assert not self.done.is_set(), f"{event} after Finished"
        self.events.append(event)
        if self.at_event is not None:
            self.at_event(event)
        if isinstance(event, Finished):
            self.done.set()


def pauses(ask: Ask) -> int:
    """How often it was told to wait after its text had begun."""
    begun = next((place for place, event in enumerate(ask.events) if isinstance(event, Delta)), len(ask.events))
    return sum(isinstance(event, Queued) for event in ask.events[begun:])


def at_text(begun: threading.Event, *, pause_s: float = 0.0) -> Callable[[Event], None]:
    """An `at_event` that sets `begun` once there is text, and lets it come slowly."""

    def at_event(event: Event) -> None:
        if isinstance(event, Delta):
            begun.set()
            time.sleep(pause_s)

    return at_event


def greedy(max_new_tokens: int, **more: Any) -> GenerationParams:
    """Greedy parameters."""
    return GenerationParams(temperature=0, top_p=1, max_new_tokens=max_new_tokens, **more)


def plain_copy(loaded: LoadedModel) -> Any:
    """A copy of the model with transformers' own attention: an engine may have changed that of its own."""
    model = copy.deepcopy(loaded.model)
    model.set_attn_implementation("sdpa" if model._supports_sdpa else "eager")
    return model


def generated(loaded: LoadedModel, prompt_ids: Sequence[int], count: int) -> list[int]:
    """The `count` tokens, or fewer up to an end token, that a plain copy's model.generate gives greedily."""
    model = plain_copy(loaded)
    out = model.generate(
        torch.tensor([list(prompt_ids)]),
        attention_mask=torch.ones(1, len(prompt_ids), dtype=torch.long),
        max_new_tokens=count,
        do_sample=False,
    )[0].tolist()
    new: list[int] = out[1:] if loaded.is_encoder_decoder else out[len(prompt_ids) :]
    return [token for token in new if token not in loaded.eos_ids]
