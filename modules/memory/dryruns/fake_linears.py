"""Stand-ins for bitsandbytes' quantized linear layers in a dry run: the bytes that they hold and pass through.

bitsandbytes' own parameters cannot be fake tensors. Each stand-in makes the allocations of bitsandbytes 0.50 in their
order, on the CPU (backends/cpu, backends/default) or on CUDA; it computes nothing.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from modules.memory.forecasting.forecast import Quantization

BLOCK = 64
Kind = Literal["cpu", "cuda"]


def replace_linears(
    model: Any, weights: set[str], quantization: Quantization, *, double_quant: bool, compute: torch.dtype, kind: Kind
) -> None:
    """Put a stand-in in the place of each linear layer of `model` whose weight's name is in `weights`."""
    for name in weights:
        owner, _, attribute = name.removesuffix(".weight").rpartition(".")
        parent = model.get_submodule(owner)
        old = getattr(parent, attribute)
        inner, outer = sizes(old)
        if quantization == "int8":
            new: nn.Module = Int8Linear(inner, outer, old.bias, kind)
        else:
            new = FourBitLinear(inner, outer, old.bias, double_quant=double_quant, compute=compute, kind=kind)
        setattr(parent, attribute, new.train(old.training))


def sizes(linear_layer: Any) -> tuple[int, int]:
    """(inputs, outputs) of a linear layer; Conv1D holds its matrix the other way round."""
    rows, columns = linear_layer.weight.shape
    return (rows, columns) if isinstance(linear_layer, Conv1D) else (columns, rows)


def packs_for_cpu() -> bool:
    """Whether bitsandbytes repacks 4-bit weights on this CPU at their first use (Linear4bit.forward)."""
    from bitsandbytes.functional import has_avx512bf16

    return bool(has_avx512bf16())


class FourBitLinear(nn.Module):
    """Linear4bit: packed weights, a maximum for each block of 64, a code book, and the offsets of double quantization.

    On a CPU with bf16 instructions the layer is shown as it is after its first use: maxima in bf16, nothing nested.
    """

    def __init__(
        self, inner: int, outer: int, bias: Any, *, double_quant: bool, compute: torch.dtype, kind: Kind
    ) -> None:
        super().__init__()
        count = inner * outer
        blocks = -(-count // BLOCK)
        self.inner, self.outer, self.compute, self.kind = inner, outer, compute, kind
        self.bias = bias
        self.packed_for_cpu = kind == "cpu" and packs_for_cpu()
        self.nested = double_quant and not self.packed_for_cpu
        self.packed = _buffer(-(-count // 2), torch.uint8)
        maxima = torch.uint8 if self.nested else torch.bfloat16 if self.packed_for_cpu else torch.float32
        self.absmax = _buffer(blocks, maxima)
        self.code = _buffer(16, torch.float32)
        if self.nested:
            self.outer_absmax = _buffer(-(-blocks // 256), torch.float32)
            self.outer_code = _buffer(256, torch.float32)
            self.offset = _buffer(1, torch.float32)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """As Linear4bit.forward and matmul_4bit."""
        dtype = inputs.dtype
        inputs = inputs.to(self.compute)
        bias = None if self.bias is None else self.bias.to(self.compute)
        if torch.is_grad_enabled() and inputs.requires_grad:
            out = _FrozenMatmul.apply(inputs, self, bias)  # type: ignore[no-untyped-call]
        elif self.packed_for_cpu:
            out = self._packed_matmul(inputs)
            if bias is not None:
                out += bias
        elif self.kind == "cuda" and inputs.numel() == inputs.shape[-1]:
            out = inputs.new_empty((*inputs.shape[:-1], self.outer))  # one row: a kernel of its own
        else:
            out = linear(inputs, self.dequantized(inputs.dtype), bias)
        result: torch.Tensor = out.to(dtype)
        return result

    def dequantized(self, dtype: torch.dtype) -> torch.Tensor:
        """The whole matrix `(outer, inner)`."""
        maxima = torch.empty(self.absmax.shape) + self.offset if self.nested else self.absmax
        return torch.empty((self.outer, self.inner), dtype=dtype) if maxima.numel() else maxima

    def _packed_matmul(self, inputs: torch.Tensor) -> torch.Tensor:
        rows = inputs.to(torch.bfloat16)
        out = rows.new_empty((*rows.shape[:-1], self.outer))
        return out.to(inputs.dtype)


class _FrozenMatmul(torch.autograd.Function):
    """MatMul4Bit: the matrix is dequantized on the way there and again on the way back."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, layer: FourBitLinear, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.layer = layer
        return linear(inputs, layer.dequantized(inputs.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (grad,) = grads
        return torch.matmul(grad, ctx.layer.dequantized(grad.dtype)), None, None


class Int8Linear(nn.Module):
    """Linear8bitLt with threshold 6 and no outliers: a byte a weight and a scale a row."""

    def __init__(self, inner: int, outer: int, bias: Any, kind: Kind) -> None:
        super().__init__()
        self.outer, self.kind, self.bias = outer, kind, bias
        self.matrix = _buffer((outer, inner), torch.int8)
        self.scales = _buffer(outer, torch.float32)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """As MatMul8bitLt.forward."""
        bias = None if self.bias is None else self.bias.to(inputs.dtype)
        rows = inputs.reshape(-1, inputs.shape[-1])
        quantized, maxima = self._quantize(rows)
        outliers = torch.empty(0, dtype=inputs.dtype)
        products = torch.empty((rows.shape[0], self.outer), dtype=torch.int32)
        out = self._rescale(products, maxima, bias, inputs.dtype)
        del quantized, outliers
        return out.reshape(*inputs.shape[:-1], self.outer)

    def _quantize(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """int8_vectorwise_quant."""
        halves = rows.to(torch.float16)
        if self.kind == "cuda":
            mask = torch.empty(halves.shape, dtype=torch.bool)
            result = torch.empty(halves.shape, dtype=torch.int8), torch.empty(halves.shape[0])
            del mask
            return result
        outliers = halves.abs() >= 6.0
        maxima = torch.max(halves.abs(), dim=1).values.float()
        quantized = torch.round(halves * (127.0 / maxima.unsqueeze(-1))).to(torch.int8)
        del outliers
        return quantized, maxima

    def _rescale(
        self, products: torch.Tensor, maxima: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype
    ) -> torch.Tensor:
        """int8_mm_dequant."""
        if self.kind == "cuda":
            return torch.empty(products.shape, dtype=torch.float16).to(dtype)
        out = products * (maxima.unsqueeze(-1) * self.scales.unsqueeze(0)) * 6.200124e-05
        if bias is not None:
            out += bias
        return out.to(dtype)


def _buffer(shape: int | tuple[int, ...], dtype: torch.dtype) -> nn.Buffer:
    return nn.Buffer(torch.empty(shape, dtype=dtype), persistent=False)
