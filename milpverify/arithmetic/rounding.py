"""A-priori bounds of floating-point rounding errors (Higham, Accuracy and Stability of Numerical Algorithms, section 3).

An inner product of n terms, however its sum is ordered and with or without fused multiply-adds, differs from the exact one
by at most gamma(n) sum |a_i||b_i|, apart from underflow.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch
from torch import Tensor

UNIT_ROUNDOFF: Final = {torch.float32: 2.0**-24, torch.float64: 2.0**-53}
LARGEST_DEVIATION: Final = 2.0**64
"""A node whose values deviate more than this gets no bound from backward passes: beyond it underflow is not charged for."""
UNDERFLOW: Final = 2.0**-1020
"""What underflow costs a product in float64, flushing to zero included, and more."""
U64 = UNIT_ROUNDOFF[torch.float64]
TINY: Final = 2.0**-900
"""Far more than all underflow of a pass costs, and far less than what matters."""


def gamma(terms: int, dtype: torch.dtype = torch.float64) -> float:
    """gamma(n) = n u / (1 - n u) with some terms to spare for the operations around the inner product."""
    nu = (terms + 4) * UNIT_ROUNDOFF[dtype]
    if nu >= 0.5:
        raise OverflowError(f"inner products of {terms} terms are too long for rigorous bounds in {dtype}")
    return nu / (1.0 - nu)


@contextmanager
def ieee() -> Iterator[None]:
    """Let products be formed as the error bounds assume: no TF32 or bfloat16 passes, no Winograd or FFT convolutions.

    cuDNN picks such algorithms as it likes, so that convolutions on CUDA go without it. Everything is restored at the end.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=False, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def down(x: Tensor) -> Tensor:
    """The next float below, elementwise (one unit in the last place covers one correctly rounded operation)."""
    return torch.nextafter(x, x.new_full((), -torch.inf))


def up(x: Tensor) -> Tensor:
    """The next float above, elementwise."""
    return torch.nextafter(x, x.new_full((), torch.inf))


def cast_down(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert float64 to `dtype`, elementwise, never upwards."""
    if dtype == torch.float64:
        return x
    y = x.to(dtype)
    return torch.where(y.double() > x, torch.nextafter(y, y.new_full((), -torch.inf)), y)


def cast_up(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert float64 to `dtype`, elementwise, never downwards."""
    return -cast_down(-x, dtype)
