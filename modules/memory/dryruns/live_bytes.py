"""Counts the bytes that live at once while operations run on tensors that may be fake: the allocator's peak.

What an operation returns is seen as it is returned; what a kernel allocates for itself and frees again is known here by
operation, from torch's source (2.13). Knows nothing of models.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from modules.engine.loops.attention import multiplies_bf16

aten = torch.ops.aten
# Products of fewer multiplications than these, or as many, torch computes without oneDNN (mkldnn_gemm_min_size).
_SMALLEST_PRODUCT = 16**3


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call] # its __init_subclass__
    """While active, follows every storage that operations create until nothing refers to it any more.

    `live` and `peak` are bytes as they were asked for; an allocator may round them up.
    """

    def __init__(self, *, inner: bool = True) -> None:
        """`inner`: count what the CPU's kernels allocate for themselves too."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._inner = inner
        self.live = 0
        self.peak = 0
        self._sizes: dict[int, int] = {}

    def add(self, tensor: torch.Tensor) -> None:
        """Count the storage of `tensor` from now on; once, however many tensors share it."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.live += self._sizes[key]
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._gone, key)

    def begin(self) -> int:
        """Let the peak begin anew; what lives now."""
        self.peak = self.live
        return self.live

    def _gone(self, key: int) -> None:
        self.live -= self._sizes.pop(key, 0)

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run `func` and count what it makes."""
        run = _STAND_INS.get(func, func)
        result = run(*args, **(kwargs or {}))
        for leaf in tree_iter(result):
            if isinstance(leaf, torch.Tensor):
                self.add(leaf)
        if self._inner and (count := _INNER_BYTES.get(func)) is not None:
            self.peak = max(self.peak, self.live + count(*args))
        return result


def _grouped_mm(inputs: torch.Tensor, weights: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    """Its meta kernel refuses fp32 and shapes that the CPU's own takes; the shape of the result is plain."""
    return inputs.new_empty((inputs.shape[0], weights.shape[-1]))


def _safe_softmax_bytes(scores: torch.Tensor, *_: Any) -> int:
    """`isneginf`, `all` over the last dimension, and a zero (ATen/native/SoftMax.cpp)."""
    return scores.numel() + scores.numel() // max(1, scores.shape[-1]) + 4


def _flash_cpu_bytes(query: torch.Tensor, key: torch.Tensor, *_: Any) -> int:
    """One buffer a thread: a block of scores, its maxima and sums, a block of output (FlashAttentionKernel.cpp).

    fp32 whatever the inputs' dtype; 16-bit inputs have a block of scores in their own dtype beside it.
    """
    queries, head_dim, keys = query.shape[2], query.shape[3], key.shape[2]
    rows = 256 if queries >= 768 else 64 if queries >= 192 else 32
    rows, columns = min(rows, queries), min(512, keys)
    threads = torch.get_num_threads()
    inner = threads * (rows * columns + 2 * rows + rows * head_dim) * 4
    if query.dtype in (torch.bfloat16, torch.float16):
        inner += threads * rows * (columns + columns % 2) * 2
    return inner


def _flash_cpu_backward_bytes(grad: torch.Tensor, query: torch.Tensor, key: torch.Tensor, *_: Any) -> int:
    """Two blocks of scores a thread, in fp32 and, for 16-bit inputs, in their own dtype (FlashAttentionKernel.cpp)."""
    rows = min(query.shape[2], 256 if query.shape[2] >= 768 else 64 if query.shape[2] >= 192 else 32)
    scores = torch.get_num_threads() * 2 * rows * min(512, key.shape[2])
    return scores * (4 + (grad.itemsize if grad.itemsize < 4 else 0))


def _mixed_bytes(*args: Any) -> int:
    """Pointwise kernels convert operands of another dtype than the result's beforehand (TensorIterator.cpp)."""
    tensors = [argument for argument in args if isinstance(argument, torch.Tensor)]
    if len(tensors) < 2 or tensors[0].dtype == tensors[1].dtype:
        return 0
    common = torch.result_type(tensors[0], tensors[1])
    return sum(tensor.numel() * common.itemsize for tensor in tensors if tensor.dtype != common)


def _matmul_bytes(left: torch.Tensor, right: torch.Tensor, *_: Any) -> int:
    """oneDNN's bf16 product: a thread's block of the right matrix, packed, and of the result in fp32; whole copies of
    matrices that lie neither in rows nor in columns; nothing for small ones (ATen/native/mkldnn/Matmul.cpp).

    Measured with torch 2.13 on a CPU with bf16 instructions, 1 and 2 threads: blocks of up to 512 × 64 and 256 × 64.
    """
    products = left.numel() * right.shape[-1]
    if left.dtype != torch.bfloat16 or products <= _SMALLEST_PRODUCT or not multiplies_bf16():
        return 0
    copied = sum(matrix.nbytes for matrix in (left, right) if not _is_plain(matrix))
    turned = not left.is_contiguous() and left.transpose(-1, -2).is_contiguous()
    return _packed_bytes(left.shape[-2], left.shape[-1], right.shape[-1], turned=turned) + copied


def _packed_bytes(rows: int, inner: int, columns: int, *, turned: bool = False) -> int:
    """What oneDNN's product of bf16 matrices `(rows, inner)` and `(inner, columns)` packs.

    `turned`: the left one lies in columns. Its block of rows is packed too, and results stay until all of `inner` is
    summed up, 1,024 columns at most.
    """
    threads = torch.get_num_threads()
    parts = -(-rows // 256)
    if parts * (1 if turned else -(-columns // 64)) < threads:
        parts = threads
    block = -(-rows // parts)
    packed = min(512, -(-inner // 32) * 32) * 64 * 2
    width = min(1024, -(-columns // 64) * 64) if turned and inner > 512 else min(64, -(-columns // 16) * 16)
    result = block * width * 4
    left = block * min(544, -(-inner // 32) * 32 + 32 * (inner >= 512)) * 2 if turned else 0
    return threads * (packed + result + left + 640) + (512 if turned else 384)


def _grouped_mm_bytes(inputs: torch.Tensor, weights: torch.Tensor, *_: Any, **__: Any) -> int:
    """One product an expert (ATen/native/GroupedMMUtils.h), here with the rows that each has if all have as many."""
    experts, inner, columns = weights.shape
    rows = -(-inputs.shape[0] // experts)
    if inputs.dtype != torch.bfloat16 or rows * inner * columns <= _SMALLEST_PRODUCT or not multiplies_bf16():
        return 0
    return _packed_bytes(rows, inner, columns)


def _added_matmul_bytes(_: torch.Tensor, left: torch.Tensor, right: torch.Tensor, *more: Any) -> int:
    return _matmul_bytes(left, right, *more)


def _is_plain(matrix: torch.Tensor) -> bool:
    return matrix.is_contiguous() or matrix.transpose(-1, -2).is_contiguous()


_STAND_INS: dict[Any, Callable[..., Any]] = {aten._grouped_mm.default: _grouped_mm}
_INNER_BYTES: dict[Any, Callable[..., int]] = {
    aten._safe_softmax.default: _safe_softmax_bytes,
    aten._scaled_dot_product_flash_attention_for_cpu.default: _flash_cpu_bytes,
    aten._scaled_dot_product_flash_attention_for_cpu_backward.default: _flash_cpu_backward_bytes,
    aten.mm.default: _matmul_bytes,
    aten.bmm.default: _matmul_bytes,
    aten.addmm.default: _added_matmul_bytes,
    aten.baddbmm.default: _added_matmul_bytes,
    aten._grouped_mm.default: _grouped_mm_bytes,
    **dict.fromkeys(
        (aten.add.Tensor, aten.add_.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor, aten.maximum.default),
        _mixed_bytes,
    ),
}


def tensor_bytes(tensors: Sequence[torch.Tensor]) -> int:
    """What `tensors` take, shared storages counted once."""
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())
