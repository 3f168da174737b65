"""The one row of an engine whose step is compiled: a KV cache of fixed size, one token by torch.compile, and on a GPU
recorded as a CUDA graph, so that a step is one call to the driver instead of hundreds.

Stretches of several tokens (prompts) are read as ever, over the same memory. The compiled step always attends to the
whole room, what is not filled yet masked; that, and the time that compiling takes, is its price. On CPUs it was slower
than the plain step (docs/log.md), so plans have it on a GPU only. On a GPU it has not run yet: its tests wait behind
`pytest -m gpu`, and no plan takes it unasked.

The graph is recorded here and not by `mode="reduce-overhead"`: torch keeps that one's graphs by thread, and who loads a
model is another thread than who runs it.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import Cache
from transformers.cache_utils import StaticLayer

from modules.engine.loops.reply import is_out_of_memory
from modules.engine.loops.rows import CausalRow, GrowingLayer, common_prefix, growing_cache

log = logging.getLogger(__name__)

LARGEST_DEVIATION = 0.25
"""Of the compiled step's logits from the plain ones, in standard deviations; as of the paged loop (choice.py)."""
_PROBE_TOKENS = 8
_PROBE_STEPS = 2
_WARM_UP_STEPS = 3


class FixedLayer(GrowingLayer):
    """A layer with room for `capacity` tokens from the start, which stays where it is for good."""

    def __init__(self, capacity: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._capacity = capacity

    @property
    def rooms(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values `(1, heads, capacity, head_dim)`, filled or not; there once something was read."""
        if self._key_room is None or self._value_room is None:
            raise ValueError("nothing was read yet")
        return self._key_room, self._value_room

    def hold(self, length: int) -> None:
        """Let the first `length` tokens of the rooms be what it holds."""
        if self._key_room is not None and self._value_room is not None:
            self.keys, self.values = self._key_room[:, :, :length], self._value_room[:, :, :length]

    def _with_room(self, room: torch.Tensor | None, filled: Any, new: torch.Tensor, end: int) -> torch.Tensor:  # type: ignore[override]  # noqa: ARG002
        # Zeros: what is masked is multiplied by nothing, which a NaN would survive.
        return new.new_zeros((*new.shape[:2], self._capacity, new.shape[3])) if room is None else room


class _StepLayer(StaticLayer):
    """A FixedLayer's rooms as the compiled step sees them: all of them, one token written where `place` says."""

    def __init__(self, layer: FixedLayer, place: torch.Tensor) -> None:
        self._rooms = layer.rooms
        super().__init__(max_cache_len=self._rooms[0].shape[2])
        self.keys, self.values = self._rooms
        self.cumulative_length = place
        self.is_initialized = True

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        *args: Any,  # noqa: ARG002 - the library's signature
        **kwargs: Any,  # noqa: ARG002
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the token's states; all of the rooms are returned."""
        index = self.cumulative_length.view(1)
        keys, values = self._rooms
        keys.index_copy_(2, index, key_states)
        values.index_copy_(2, index, value_states)
        return keys, values


class CompiledStep:
    """One token into one row's rooms, its logits out; compiled or as it is, and recorded once `record` was called."""

    def __init__(self, model: Any, layers: Sequence[Any], device: torch.device, *, compiled: bool) -> None:
        self._ids = torch.zeros((1, 1), dtype=torch.long, device=device)
        self._place = torch.zeros((), dtype=torch.long, device=device)
        step = _step_of(model, [_StepLayer(layer, self._place) for layer in layers])
        self._step = torch.compile(step, dynamic=False) if compiled else step
        self._graph: Any = None
        self._recorded: torch.Tensor | None = None

    def __call__(self, token: int, place: int) -> torch.Tensor:
        """Read `token` as the `place`-th of the row (from 0): the logits (vocab,) of what follows it."""
        self._ids.fill_(token)
        self._place.fill_(place)
        if self._recorded is None:
            return self._step(self._ids, self._place)
        self._graph.replay()
        return self._recorded.clone()  # the next replay writes over it

    @property
    def is_recorded(self) -> bool:
        """Whether it is a CUDA graph."""
        return self._recorded is not None

    def record(self) -> None:
        """Make a CUDA graph of the step. What stands at its place of the row is written once more."""
        side: Any = torch.cuda.Stream(self._ids.device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(self._ids.device))
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP_STEPS):
                self._step(self._ids, self._place)
        torch.cuda.current_stream(self._ids.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            recorded = self._step(self._ids, self._place)
        self._graph, self._recorded = graph, recorded


def _step_of(model: Any, layers: list[Any]) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    cache = Cache(layers=layers)
    parameters = inspect.signature(model.forward).parameters
    inputs: dict[str, Any] = {"past_key_values": cache, "use_cache": True, "return_dict": True}
    if "logits_to_keep" in parameters:
        inputs["logits_to_keep"] = 1
    takes_places = "position_ids" in parameters

    def step(ids: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        where = {"position_ids": place.view(1, 1)} if takes_places else {}
        logits: torch.Tensor = model(input_ids=ids, **where, **inputs).logits[0, -1]
        return logits

    return step


class FixedRow(CausalRow):
    """The row of an engine that has one: each request begins with what it shares with the one before, if that was of
    the same person."""

    def __init__(self, model: Any, device: torch.device, capacity: int) -> None:
        """`capacity`: the tokens that it can hold, for which it takes the memory with the first that is read."""
        cache = growing_cache(model.config)
        if any(type(layer) is not GrowingLayer for layer in cache.layers):
            raise ValueError("only layers that keep all keys and values have a cache of fixed size")
        cache.layers = [FixedLayer(capacity) for _ in cache.layers]
        super().__init__(model, device, cache)
        self._capacity = capacity
        self._step: CompiledStep | None = None
        self._behind = False  # the compiled step has written what the layers do not know of

    @property
    def has_step(self) -> bool:
        """Whether single tokens go through a step of its own."""
        return self._step is not None

    @property
    def is_recorded(self) -> bool:
        """Whether that step is a CUDA graph."""
        return self._step is not None and self._step.is_recorded

    @torch.no_grad()
    def compile(self) -> str:
        """Compile the step, record it on a GPU, and hold it against the plain one. Why it is not compiled, "" where it
        is: on a GPU it may be recorded all the same. Raises only where memory runs out. It takes a minute.
        """
        quantizer = getattr(self._model, "hf_quantizer", None)
        if quantizer is not None and not quantizer.is_compileable:
            reason = "weights of this kind cannot be compiled"
        else:
            reason = self._try(compiled=True)
        if reason and self._device.type == "cuda":
            failure = self._try(compiled=False)
            log.info("the step as it is: %s", failure or "recorded")
        return reason

    def _try(self, *, compiled: bool) -> str:
        from torch._inductor import config  # a compiler that other ways of running do without

        settings: Any = config
        try:
            # In this process: helpers would stay, each with a torch of its own.
            with settings.patch(compile_threads=1):
                return self._make_step(compiled=compiled)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            log.warning("the step could not be compiled or recorded", exc_info=error)
            return f"torch could not compile it ({type(error).__name__})"
        finally:
            self.keep_prefix(0)

    def _make_step(self, *, compiled: bool) -> str:
        spacing = max(1, int(self._model.config.get_text_config().vocab_size) // (_PROBE_TOKENS + 1))
        ids = [spacing * (1 + place) for place in range(min(_PROBE_TOKENS, self._capacity))]
        known = max(1, len(ids) - _PROBE_STEPS)
        self.read(ids[:known])
        plain = torch.stack([self.read([token]) for token in ids[known:]]).float()
        self.keep_prefix(known)
        step = CompiledStep(self._model, self.cache.layers, self._device, compiled=compiled)
        step(ids[known], known)
        if self._device.type == "cuda":
            step.record()
        found = torch.stack([step(token, known + n) for n, token in enumerate(ids[known:])]).float()
        deviation = float((found - plain).pow(2).mean().sqrt() / plain.std())
        if not deviation <= LARGEST_DEVIATION:
            return f"compiled it computes something else (logits off by {deviation:.2f})"
        self._step = step
        return ""

    @torch.no_grad()
    def read(self, ids: Sequence[int]) -> torch.Tensor:
        """Read `ids`; the logits (vocab,) of what follows them."""
        if self._step is not None and len(ids) == 1:
            logits = self._step(ids[0], len(self.tokens))
            self.tokens.extend(ids)
            self._behind = True
            return logits
        self._catch_up()
        return super().read(ids)

    def begin(self, ids: Sequence[int], whose: str = "") -> FixedRow:
        """Itself, holding what it shares with the beginning of `ids`, less than all of them; nothing of another's."""
        self.keep_prefix(common_prefix(self.tokens, ids[:-1]) if self.whose == whose else 0)
        return self

    def keep_prefix(self, length: int) -> bool:
        """Forget all but the first `length` tokens, also after a read that failed half way."""
        del self.tokens[length:]
        self._behind = True
        self._catch_up()
        return True

    def _catch_up(self) -> None:
        if self._behind:
            for layer in self.cache.layers:
                layer.hold(len(self.tokens))
        self._behind = False
