"""What a model is made of, counted for people: its layers by kind, and what bitsandbytes will quantize and skip."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from modules.memory.forecasting.forecast import elements, is_quantizable, is_token_table, tied_copies
from modules.memory.model.layers import LayerKind
from modules.memory.model.model_spec import ModelSpec, TensorInfo

_KINDS: dict[LayerKind, str] = {
    "full": "full attention",
    "sliding": "sliding window",
    "recurrent": "linear attention or state space",
    "hybrid": "attention beside a state",
    "shared": "no cache of its own",
}
_HEADS = ("lm_head.weight", "embed_out.weight")


@dataclass(frozen=True, slots=True)
class SkippedGroup:
    """Parameters that bitsandbytes leaves alone, and why, in words."""

    what: str
    parameters: int
    why: str


@dataclass(frozen=True, slots=True)
class Quantizable:
    """How much of a model bitsandbytes quantizes. `share` is of all parameters, 0 to 1; `skipped` the largest first."""

    share: float
    parameters: int
    skipped: tuple[SkippedGroup, ...]


def count_layers(spec: ModelSpec) -> dict[str, int]:
    """The kinds of decoder layers in words, each with how many there are; one layer can be of several kinds."""
    counts: dict[str, int] = {}
    for kind in spec.layer_kinds:
        name = "latent attention (MLA)" if kind == "full" and spec.latent_attention else _KINDS[kind]
        counts[name] = counts.get(name, 0) + 1
    routed = len({tensor.block for tensor in spec.tensors if tensor.block and ".experts." in tensor.name})
    if routed:
        counts["mixture of experts"] = routed
    if spec.is_encoder_decoder:
        counts["cross-attention"] = spec.layers
    return counts


def quantizable(spec: ModelSpec) -> Quantizable:
    """What `--load-in-8bit` and `--load-in-4bit` reach of `spec`, and what they skip with the reason."""
    copies = tied_copies(spec)
    tensors = [tensor for tensor in spec.tensors if tensor.name not in copies]
    reached = _count(tensor for tensor in tensors if is_quantizable(spec, tensor))
    groups: dict[tuple[str, str], int] = {}
    for tensor in tensors:
        if not is_quantizable(spec, tensor):
            group = _skipped(spec, tensor)
            groups[group] = groups.get(group, 0) + elements(tensor)
    skipped = tuple(
        SkippedGroup(what, parameters, why)
        for (what, why), parameters in sorted(groups.items(), key=lambda item: (-item[1], item[0]))
    )
    return Quantizable(reached / max(1, _count(tensors)), reached, skipped)


def _skipped(spec: ModelSpec, tensor: TensorInfo) -> tuple[str, str]:
    """(what a skipped tensor belongs to, why it is skipped)."""
    name = tensor.name
    if is_token_table(name):
        return "token tables", "they are looked up by row, not multiplied"
    if name.endswith(_HEADS):
        return "the output head", "transformers keeps it in 16 bits for its precision"
    if len(tensor.shape) < 2:
        return "norms and biases", "they are vectors, small and sensitive"
    if ".experts" in name:
        return "experts", "transformers fuses them into one 3-D tensor a layer, which is no linear layer"
    if spec.fused_experts and name.endswith((".gate.weight", ".router.weight")):
        return "routers", "they are no plain linear layers"
    if name.endswith(".wo.weight"):
        return "wo matrices", "the family keeps them in high precision"
    if spec.model_type == "falcon":
        return "linear layers", "they are of Falcon's own kind, which transformers does not replace"
    if len(tensor.shape) > 2:
        return "convolutions", "only linear layers are replaced"
    return "other tables and layers", "they are no plain linear layers"


def _count(tensors: Iterable[TensorInfo]) -> int:
    return sum(elements(tensor) for tensor in tensors)
