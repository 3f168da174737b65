"""Dry runs of a training step: forward, backward and optimizer on fake tensors, for full fine-tuning, LoRA and QLoRA.

Long stacks of like layers are run with few and with some more of them; bytes grow by the same for each further layer.
Snug trains nothing itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import masking_utils

from modules.memory.dryruns.dryrun import fake_model
from modules.memory.dryruns.fake_linears import FourBitLinear, Kind, sizes
from modules.memory.dryruns.live_bytes import LiveBytes, tensor_bytes
from modules.memory.dryruns.shortening import like_layers
from modules.memory.forecasting.forecast import Quantization, RunSpec
from modules.memory.forecasting.training import TrainingRun
from modules.memory.model import meta

# Layers of a long stack that are run: bytes of both runs are on one line.
_FEW, _MORE = 2, 4


@dataclass(frozen=True, slots=True)
class CountedTraining:
    """Bytes, as in dryruns.TrainingPeaks."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    peak: int


@dataclass(frozen=True, slots=True)
class _Step:
    """Bytes of a second step: what stays, and the most beyond it on the way there and back, and in the optimizer."""

    weights: int
    gradients: int
    optimizer: int
    computing: int
    updating: int

    def further(self, other: _Step, layers: int) -> _Step:
        """This step with `layers` times the difference to `other` added."""
        return _Step(
            *(mine + layers * (theirs - mine) for mine, theirs in zip(astuple(self), astuple(other), strict=True))
        )


def count_training(file: Path, run: TrainingRun, kind: Kind = "cpu") -> CountedTraining:
    """What a training step of the model of config `file` allocates; kernels' own buffers are known for the CPU only.

    Raises BadConfig and the like.
    """
    layers = like_layers(meta.build(file))
    if layers <= _MORE:
        return _told(_dry_step(file, run, kind, 0))
    few, more = (_dry_step(file, run, kind, layers) for layers in (_FEW, _MORE))
    per_layer = [(b - a) // (_MORE - _FEW) for a, b in zip(astuple(few), astuple(more), strict=True)]
    return _told(few.further(_Step(*(a + d for a, d in zip(astuple(few), per_layer, strict=True))), layers - _FEW))


@contextmanager
def _one_sequence() -> Iterator[None]:
    """Let no mask be made for several sequences in one row: whether there are some cannot be asked of fake tensors."""
    found = masking_utils.find_packed_sequence_indices
    masking_utils.find_packed_sequence_indices = _none_packed
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = found


def _none_packed(position_ids: torch.Tensor) -> torch.Tensor | None:  # noqa: ARG001 - the library's signature
    return None


@contextmanager
def _random_states_counted(counter: LiveBytes) -> Iterator[None]:
    """Let `counter` see the generator's state that checkpointing keeps for each layer: 5,056 bytes on the CPU."""
    take = torch.get_rng_state

    def take_and_count() -> torch.Tensor:
        state = take()
        counter.add(state)
        return state

    torch.get_rng_state = take_and_count
    try:
        yield
    finally:
        torch.get_rng_state = take


def _told(step: _Step) -> CountedTraining:
    resident = step.weights + step.gradients + step.optimizer
    # Gradients are not all there yet while activations are at their most, so `computing` counts from weights alone.
    computing = step.weights + step.optimizer + step.computing
    peak = max(computing, resident + step.updating)
    return CountedTraining(step.weights, step.gradients, step.optimizer, peak - resident, peak)


def _dry_step(file: Path, run: TrainingRun, kind: Kind, layers: int) -> _Step:
    """A step of the model with all its layers, or with the first `layers`."""
    quantization: Quantization = "nf4" if run.mode == "qlora" else "none"
    base = RunSpec(run.dtype, quantization, double_quant=True, compute_dtype=run.dtype, attention=run.attention)
    with FakeTensorMode(allow_non_fake_inputs=True), _one_sequence():
        # Only where it does not train does bitsandbytes repack 4-bit weights for a CPU: they are as on CUDA.
        model = fake_model(file, base, "cuda", layers=layers)
        fours = [f"{name}.weight" for name, module in model.named_modules() if isinstance(module, FourBitLinear)]
        trained = make_trainable(model, run, fours or sorted(meta.replaceable(model)))
        return count_step(model, trained, run, kind)


def make_trainable(model: Any, run: TrainingRun, targets: Sequence[str]) -> list[nn.Parameter]:
    """Prepare `model` for a step; the parameters that are trained. Adapters are put beside the weights `targets`."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    if run.checkpointing:
        model.activation_checkpointing_enable()
    if run.mode == "full":
        return [parameter.requires_grad_() for parameter in model.parameters() if parameter.is_floating_point()]
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    if run.checkpointing:
        model.enable_input_require_grads()
    return add_adapters(model, targets, run.rank)


def add_adapters(model: Any, targets: Sequence[str], rank: int) -> list[nn.Parameter]:
    """LoRA beside the linear layers of the weights `targets`, in fp32 as PEFT keeps them; the adapters' parameters."""
    trained: list[nn.Parameter] = []
    for weight in targets:
        name = weight.removesuffix(".weight")
        owner, _, attribute = name.rpartition(".")
        parent = model.get_submodule(owner)
        adapter = Adapter(getattr(parent, attribute), rank)
        setattr(parent, attribute, adapter)
        trained += [adapter.down, adapter.up]
    return trained


class Adapter(nn.Module):
    """A frozen linear layer and two small matrices beside it (PEFT's lora.Linear without dropout)."""

    def __init__(self, base: Any, rank: int) -> None:
        super().__init__()
        inner, outer = features(base)
        self.base = base
        self.down = nn.Parameter(torch.empty(rank, inner))
        self.up = nn.Parameter(torch.empty(outer, rank))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """The base's output and the adapter's."""
        out: torch.Tensor = self.base(inputs)
        low = nn.functional.linear(inputs.to(self.down.dtype), self.down)
        return out + nn.functional.linear(low, self.up).to(out.dtype)


def features(linear_layer: Any) -> tuple[int, int]:
    """(inputs, outputs) of a linear layer of any kind."""
    if isinstance(linear_layer, FourBitLinear):
        return linear_layer.inner, linear_layer.outer
    if hasattr(linear_layer, "in_features"):
        return linear_layer.in_features, linear_layer.out_features
    return sizes(linear_layer)


def make_optimizer(trained: list[nn.Parameter], run: TrainingRun, kind: Kind = "cpu") -> torch.optim.Optimizer:
    """The optimizer of `run`; 8-bit Adam keeps its states in fp32 here, and the caller counts them.

    On CUDA it works on all tensors at once, which is torch's choice there.
    """
    if run.optimizer == "sgd":
        return torch.optim.SGD(trained, lr=1e-4, foreach=kind == "cuda")
    return torch.optim.AdamW(trained, lr=1e-4, foreach=kind == "cuda")


def count_step(model: Any, trained: list[nn.Parameter], run: TrainingRun, kind: Kind = "cpu") -> _Step:
    """Bytes of the second of two steps of `model`, whose parameters `trained` have gradients."""
    counter = LiveBytes(inner=kind == "cpu")
    for tensor in (*model.parameters(), *model.buffers()):
        counter.add(tensor)
    weights = counter.live
    optimizer = make_optimizer(trained, run, kind)
    ids = torch.ones((run.batch, run.tokens), dtype=torch.long)
    with counter, _random_states_counted(counter) if kind == "cpu" else nullcontext():
        for _ in range(2):
            optimizer.zero_grad(set_to_none=True)
            states = counter.begin() - weights
            model(input_ids=ids, labels=ids).loss.backward()
            computing = counter.peak - weights - states
            before = counter.begin()
            gradients = tensor_bytes([p.grad for p in trained if p.grad is not None])
            optimizer.step()
            updating = counter.peak - before
    return _Step(weights, gradients, states, computing, updating)
