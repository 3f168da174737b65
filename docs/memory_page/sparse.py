"""What sparse layouts would take: bits a weight of COO, CSR, bitmaps and 2:4, at several precisions."""

from __future__ import annotations

from docs.memory_page.text import table

_INDEX_BITS = 32
SPARSITIES = (0.0, 0.5, 0.9)


def coo_bits(value_bits: int, sparsity: float) -> float:
    """Bits a weight of the dense matrix: each kept value with its row and its column."""
    return (value_bits + 2 * _INDEX_BITS) * (1 - sparsity)


def csr_bits(value_bits: int, sparsity: float, index_bits: int = _INDEX_BITS) -> float:
    """Bits a weight without the row pointers: each kept value with its column."""
    return (value_bits + index_bits) * (1 - sparsity)


def bitmap_bits(value_bits: int, sparsity: float) -> float:
    """Bits a weight: the kept values, and one bit a place that tells whether one is kept."""
    return value_bits * (1 - sparsity) + 1


def two_of_four_bits(value_bits: int) -> float:
    """Bits a weight where two of every four are kept, each with two bits that tell which (NVIDIA's 2:4)."""
    return (value_bits + 2) / 2


def break_even(dense_bits: float, value_bits: int, index_bits: int = _INDEX_BITS) -> float:
    """The sparsity from which CSR takes less than `dense_bits` a weight."""
    return 1 - dense_bits / (value_bits + index_bits)


def csr_bytes(rows: int, kept: int, value_bits: int, index_bits: int = _INDEX_BITS) -> int:
    """A CSR matrix to the byte: values, their columns, and a pointer a row and one more."""
    return (kept * (value_bits + index_bits) + (rows + 1) * index_bits) // 8


def render() -> dict[str, str]:
    """The tables, by the name of their place on the page."""
    rows = columns = 4096
    return {
        "sparse_bits": _bits(), "sparse_break_even": _break_even(),
        "sparse_pointers": f"{_INDEX_BITS * (rows + 1) / (rows * columns):.3f}",
        "sparse_int64": f"{csr_bits(16, 0.9, 64):g}", "sparse_int32": f"{csr_bits(16, 0.9):g}",
    }  # fmt: skip


def _bits() -> str:
    layouts = (
        ("dense", lambda value, _: float(value)), ("COO: row, column, value", coo_bits),
        ("CSR: column, value", csr_bits), ("bitmap and values", bitmap_bits),
    )  # fmt: skip
    rows = []
    for title, bits in layouts:
        cells = [bits(value, sparsity) for value in (32, 16) for sparsity in SPARSITIES]
        rows.append((title, *(f"{cell:g}" for cell in (round(cell, 1) for cell in cells))))
    fixed = ("–", f"{two_of_four_bits(32):g}", "–", "–", f"{two_of_four_bits(16):g}", "–")
    rows.append(("2:4, half of it kept", *fixed))
    head = [f"{value}-bit, {100 * sparsity:.0f} % zeros:" for value in (32, 16) for sparsity in SPARSITIES]
    return table(("bits a weight", *head), rows)


def _break_even() -> str:
    rows = [
        ("32-bit dense", f"{100 * break_even(32, 32):.0f} %", "(32 + 32) · (1 − s) = 32"),
        ("16-bit dense", f"{100 * break_even(16, 16):.0f} %", "(16 + 32) · (1 − s) = 16"),
        ("8-bit dense (int8)", f"{100 * break_even(8, 16):.0f} %", "(16 + 32) · (1 − s) = 8"),
        ("4-bit dense (nf4, 4.5 bits with scales)", f"{100 * break_even(4.5, 16):.0f} %", "(16 + 32) · (1 − s) = 4.5"),
    ]
    return table(("CSR of 16-bit weights (32-bit in the first row) is smaller than", "from zeros of:", "the sum"), rows)
