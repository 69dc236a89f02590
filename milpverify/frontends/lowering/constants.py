"""Constants that a frontend computes, with what their rounding amounts to: the graph means real arithmetic on what the network stores.

Arithmetic is done in float64 and checked by error-free transformations (Dekker's product and Knuth's sum; Ogita, Rump and Oishi, Accurate
Sum and Dot Product, SIAM J. Sci. Comput. 2005): most results are exact, such as a product of two float32 numbers, and need no mark.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

Array = NDArray[np.float64]

_SPLIT: Final = 2.0**27 + 1.0
"""What splits a float64 number into halves of 26 bits."""
_SAFE: Final = 2.0**-900
"""Products below are not told exact: what is lost might underflow."""
_MOST: Final = 2**20
"""Units of the last place that a sum of computed constants may be off by; one that cancels more is refused."""


@dataclass(frozen=True, eq=False)
class Constant:
    """Real numbers as float64: `value` is theirs times as many factors (1 + d)^(-+1), |d| <= 2^-53, as `rounded` says (0: exactly).

    The operators raise ValueError where a result has no such form: it underflows, overflows, or is the difference of numbers too close.
    """

    value: Array
    rounded: int = 0

    @staticmethod
    def of(value: ArrayLike | Constant) -> Constant:
        """Numbers that are what they stand for; a constant as it is."""
        return value if isinstance(value, Constant) else Constant(np.asarray(value, dtype=np.float64))

    @staticmethod
    def nearest(values: list[Fraction], shape: tuple[int, ...]) -> Constant:
        """Rationals, each rounded once."""
        rounded = [float(v) for v in values]
        exact = all(Fraction(r) == v for r, v in zip(rounded, values, strict=True))
        _check(array := np.array(rounded, dtype=np.float64), np.array([v == 0 for v in values], dtype=bool))
        return Constant(array.reshape(shape), 0 if exact else 1)

    def __mul__(self, other: ArrayLike | Constant) -> Constant:
        a, b = self, Constant.of(other)
        if _is_one(b):
            return a
        with np.errstate(all="ignore"):
            value = a.value * b.value
            exact = _is_product(value, a.value, b.value)
        _check(value, (a.value == 0) | (b.value == 0))
        return Constant(value, a.rounded + b.rounded + (not exact))

    def __truediv__(self, other: ArrayLike | Constant) -> Constant:
        a, b = self, Constant.of(other)
        if _is_one(b):
            return a
        with np.errstate(all="ignore"):
            value = a.value / b.value
            exact = _is_product(a.value, value, b.value)
        _check(value, np.broadcast_to(a.value == 0, value.shape))
        return Constant(value, a.rounded + b.rounded + (not exact))

    def __rtruediv__(self, other: ArrayLike) -> Constant:
        return Constant.of(other) / self

    def __rmul__(self, other: ArrayLike) -> Constant:
        return self * other

    def __neg__(self) -> Constant:
        return Constant(-self.value, self.rounded)

    def __add__(self, other: ArrayLike | Constant) -> Constant:
        a, b = self, Constant.of(other)
        with np.errstate(all="ignore"):
            value = np.asarray(a.value + b.value)
            back = value - a.value
            lost = (a.value - (value - back)) + (b.value - back)
        _check(value, True)  # a sum that underflows is exact
        grown = 0
        if a.rounded or b.rounded:
            # |a| and |b| are off by so many units; the sum may be far smaller than they are.
            off = np.abs(a.value) * a.rounded + np.abs(b.value) * b.rounded
            with np.errstate(divide="ignore", invalid="ignore"):
                share = float(np.where(off > 0, off / np.abs(value), 0.0).max(initial=0.0))
            if not share < _MOST:
                raise ValueError("two computed constants cancel; store their sum in the network")
            grown = math.ceil(share * (1 + 2.0**-20)) + 1
        return Constant(value, grown + bool((lost != 0).any()))

    __array_ufunc__ = None  # numpy's arrays leave arithmetic with constants to these methods

    def __radd__(self, other: ArrayLike) -> Constant:
        return self + other

    def __sub__(self, other: ArrayLike | Constant) -> Constant:
        return self + -Constant.of(other)

    def __rsub__(self, other: ArrayLike) -> Constant:
        return Constant.of(other) - self

    def sqrt(self) -> Constant:
        """The square roots."""
        with np.errstate(all="ignore"):
            value = np.sqrt(self.value)
            exact = _is_product(self.value, value, value)
        _check(value, self.value == 0)
        return Constant(value, (self.rounded + 1) // 2 + (not exact))

    def log(self) -> Constant:
        """The natural logarithms of exact positive numbers."""
        import flint

        assert not self.rounded
        with flint.ctx.workprec(192):
            # Of a ball this small the middle, rounded once, is within two units.
            found = [float(flint.arb(v).log().mid()) for v in self.value.reshape(-1).tolist()]
        return Constant(np.array(found).reshape(self.value.shape), 0 if bool((self.value == 1).all()) else 2)

    def reshape(self, *shape: int) -> Constant:
        """The same numbers in another shape."""
        return Constant(self.value.reshape(*shape), self.rounded)

    def moved(self, value: Array) -> Constant:
        """Some of these numbers, and zeros."""
        return Constant(value, self.rounded)


ARITHMETIC: dict[str, Callable[..., Constant]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "neg": lambda a: -a,
    "sqrt": lambda a: a.sqrt(),
    "reciprocal": lambda a: 1.0 / a,
}
"""The operations on constants whose rounding is known, by names that frontends share."""


def all_finite(array: NDArray[Any]) -> bool:
    """Whether real numbers are: mostly their sum tells, which takes no memory."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(array.sum())) or bool(np.isfinite(array).all())


def in_float64(array: NDArray[Any]) -> Array:
    """Real numbers in float64, in memory of torch's: numpy asks for huge pages, which may take longer to find than to fill."""
    wide = torch.empty(array.shape, dtype=torch.float64).numpy()
    wide[...] = array
    return wide


def uniform(values: Tensor | None, default: int) -> Fraction | None:
    """The only value of a tensor of any shape; None where there are several, or it is infinite."""
    if values is None:
        return Fraction(default)
    first = values.reshape(-1)[0]
    return Fraction(first.item()) if bool(((values == first) & first.isfinite()).all()) else None


def weights(array: ArrayLike) -> Tensor:
    """A float64 tensor of an array's shape, which may share its memory: large weights are there once. A matrix may lie by columns."""
    own = np.asarray(array, dtype=np.float64)
    if not own.flags.writeable or min(own.strides, default=0) < 0:
        own = own.copy()
    return torch.from_numpy(own if own.ndim == 2 and own.flags.f_contiguous else np.ascontiguousarray(own))


def _is_one(constant: Constant) -> bool:
    return not constant.value.ndim and constant.value == 1 and not constant.rounded


def _is_product(p: Array, a: Array, b: Array) -> bool:
    """Whether p = a b in the reals, everywhere; False where that cannot be told."""
    high_a, low_a = _halves(a)
    high_b, low_b = _halves(b)
    lost = ((high_a * high_b - p) + high_a * low_b + low_a * high_b) + low_a * low_b
    safe = (np.abs(p) > _SAFE) | ((p == 0) & ((a == 0) | (b == 0)))
    return bool(((lost == 0) & (a * b == p) & safe).all())


def _halves(x: Array) -> tuple[Array, Array]:
    """x as the sum of two numbers of 26 bits (NaN where it is too large)."""
    big = _SPLIT * x
    high = big - (big - x)
    return high, x - high


def _check(value: Array, zero: Array | bool) -> None:
    """Refuse results for which a relative error says nothing."""
    if not np.isfinite(value).all():
        raise ValueError("a constant computed from the network's is no finite number")
    if bool(((np.abs(value) < 2.0**-1021) & ~np.asarray(zero)).any()):
        raise ValueError("a constant computed from the network's is too small for float64")
