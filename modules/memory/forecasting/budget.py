"""What a device will hold, byte by byte and purpose by purpose: each figure with how it was got and its formula.

Values only. The formulas are forecast.py's and training.py's; nothing here knows models or machines.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Method = Literal["exact", "dry-run", "formula"]
Purpose = Literal[
    "weights", "quant_meta", "adapters", "kv_cache", "idle_cache", "draft", "embeddings", "prefill_peak",
    "picture_peak", "decode_peak", "dequant_buffer", "offload_buffer", "gradients", "optimizer", "activations",
    "allocator", "context",
]  # fmt: skip

PURPOSE_TITLES: dict[Purpose, str] = {
    "weights": "weights",
    "quant_meta": "quantization data",
    "adapters": "LoRA adapters",
    "kv_cache": "KV cache",
    "idle_cache": "idle conversations",
    "draft": "draft model",
    "embeddings": "reading for embeddings",
    "gradients": "gradients",
    "optimizer": "optimizer states",
    "offload_buffer": "buffer for offloaded layers",
    "prefill_peak": "reading the prompt",
    "picture_peak": "looking at a picture",
    "decode_peak": "writing the reply",
    "activations": "activations",
    "dequant_buffer": "dequantized weights",
    "allocator": "allocator slack",
    "context": "runtime",
}


@dataclass(frozen=True, slots=True)
class Figure:
    """A number of bytes: how it was got, and the formula with the numbers put in, as text for people."""

    bytes: int
    method: Method
    formula: str = ""


_NOTHING = Figure(0, "exact")


@dataclass(frozen=True, slots=True)
class Budget:
    """Bytes on one device, by what they are for; only figures above 0 are in `figures`.

    `load_peak` is the most that loading takes at once, all that stays included (0: never more than running takes);
    `margin` how far the truth may be from `total`, either way. Reading a prompt and writing a reply take turns, so
    only the larger of the two counts.
    """

    figures: Mapping[Purpose, Figure] = field(default_factory=dict)
    load_peak: int = 0
    margin: int = 0

    @classmethod
    def of(cls, figures: Mapping[Purpose, Figure], *, load_peak: int = 0, margin: int = 0) -> Budget:
        """A budget of those of `figures` that are not 0, in the order in which they are drawn."""
        kept = {purpose: figures[purpose] for purpose in PURPOSE_TITLES if purpose in figures}
        return cls({purpose: figure for purpose, figure in kept.items() if figure.bytes}, load_peak, margin)

    def with_figure(self, purpose: Purpose, figure: Figure) -> Budget:
        """This budget with one more thing that stays, and is there while the rest is loaded."""
        load_peak = self.load_peak + figure.bytes if self.load_peak else 0
        return Budget.of({**self.figures, purpose: figure}, load_peak=load_peak, margin=self.margin)

    def __getitem__(self, purpose: Purpose) -> int:
        """Bytes for one purpose, 0 where there is none."""
        return self.figures.get(purpose, _NOTHING).bytes

    @property
    def weights(self) -> int:
        """Parameters and buffers, quantized ones packed."""
        return self["weights"]

    @property
    def quant_meta(self) -> int:
        """Scales, code books and offsets of quantized weights."""
        return self["quant_meta"]

    @property
    def kv_cache(self) -> int:
        """Keys, values and recurrent states of the whole context."""
        return self["kv_cache"]

    @property
    def idle_cache(self) -> int:
        """The most that conversations take which are kept beside the cache until they go on."""
        return self["idle_cache"]

    @property
    def draft(self) -> int:
        """A smaller model that guesses ahead, with its cache."""
        return self["draft"]

    @property
    def adapters(self) -> int:
        """Low-rank changes beside the weights."""
        return self["adapters"]

    @property
    def embeddings(self) -> int:
        """What reading a text for its embedding takes beyond reading a prompt."""
        return self["embeddings"]

    @property
    def prefill_peak(self) -> int:
        """What reading a chunk of the prompt takes beyond what stays."""
        return self["prefill_peak"]

    @property
    def picture_peak(self) -> int:
        """What looking at one picture takes beyond what stays."""
        return self["picture_peak"]

    @property
    def decode_peak(self) -> int:
        """What one more token takes beyond what stays."""
        return self["decode_peak"]

    @property
    def dequant_buffer(self) -> int:
        """The largest quantized matrix while it is computed with."""
        return self["dequant_buffer"]

    @property
    def offload_buffer(self) -> int:
        """Weights that are fetched from elsewhere for each use."""
        return self["offload_buffer"]

    @property
    def gradients(self) -> int:
        """Gradients of what is trained."""
        return self["gradients"]

    @property
    def optimizer(self) -> int:
        """The optimizer's states."""
        return self["optimizer"]

    @property
    def activations(self) -> int:
        """What a training step keeps for its backward pass, and that pass's own."""
        return self["activations"]

    @property
    def allocator(self) -> int:
        """What the allocator holds beyond what was asked of it."""
        return self["allocator"]

    @property
    def context(self) -> int:
        """The runtime itself: the CUDA context with its kernels, or the engine process without a model."""
        return self["context"]

    @property
    def resident(self) -> int:
        """What stays from the end of the load on."""
        kept: tuple[Purpose, ...] = (
            "weights", "quant_meta", "adapters", "kv_cache", "idle_cache", "draft", "embeddings", "offload_buffer",
            "gradients", "optimizer", "context",
        )  # fmt: skip
        return sum(self[purpose] for purpose in kept)

    @property
    def transient(self) -> int:
        """The most that comes and goes at once."""
        return (
            max(self.prefill_peak, self.picture_peak, self.decode_peak, self.activations)
            + self.dequant_buffer
            + self.allocator
        )

    @property
    def loading(self) -> int:
        """What the load takes beyond the most that running does."""
        return max(0, self.load_peak - self.resident - self.transient)

    @property
    def total(self) -> int:
        """The peak: what stays and the most that comes and goes, or the load where that takes more."""
        return self.resident + self.transient + self.loading

    @property
    def uncertain(self) -> int:
        """Of `total` what is not counted byte by byte."""
        return self.total - sum(self[purpose] for purpose, _ in self.parts() if self.figures[purpose].method == "exact")

    @property
    def low(self) -> int:
        """`total` if the forecast is as far off as `margin`, downwards."""
        return max(0, self.total - self.margin)

    @property
    def high(self) -> int:
        """`total` if the forecast is as far off as `margin`, upwards."""
        return self.total + self.margin

    def parts(self) -> list[tuple[Purpose, int]]:
        """The purposes with their bytes in drawing order; of reading, looking and writing only the largest one.

        With `loading` they sum to `total`.
        """
        turns: tuple[Purpose, ...] = ("prefill_peak", "decode_peak", "picture_peak", "activations")
        largest = max(turns, key=lambda purpose: self[purpose])  # the first of those that are equal
        return [
            (purpose, self[purpose])
            for purpose in PURPOSE_TITLES
            if self[purpose] and (purpose not in turns or purpose == largest)
        ]
