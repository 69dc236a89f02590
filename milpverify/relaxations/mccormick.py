"""The relaxation of a product of two variables: McCormick's planes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from milpverify.arithmetic.interval import Interval, mul
from milpverify.arithmetic.rounding import U64
from milpverify.relaxations.rule import PerInput, Rule, Side, finite

_NOTHING: Final = 2.0**-44
"""A product whose planes are no further apart than so much of its largest value is affine but for rounding."""
_TINY: Final = 2.0**-1000
"""More than what underflow costs."""


@dataclass(frozen=True)
class McCormick(Rule):
    """a * b. With the parameter t in [0, 1] the slopes (k_a, k_b) move from one McCormick plane of their side to the other.

    Lower planes go from (l_b, l_a) to (u_b, u_a), upper ones from (u_b, l_a) to (l_b, u_a). All planes of a side enclose the same
    volume and have the same value at the centre of the box. The default is between the places where k_a and where k_b is zero: there
    the extreme value of the plane over the box is that of the product, so that a relaxed product is never worse than an interval.
    """

    @property
    def matters(self) -> tuple[bool, bool]:
        return True, True

    @property
    def span(self) -> tuple[float, float]:
        return 0.0, 1.0

    def spans(self, lower: PerInput, upper: PerInput) -> tuple[Tensor, Tensor, Tensor]:
        one = torch.ones_like(lower[0])
        return torch.zeros_like(one), one, one

    def is_exact(self, lower: PerInput, upper: PerInput) -> Tensor:
        (l_a, l_b), (u_a, u_b) = lower, upper
        size = torch.maximum(l_a.abs(), u_a.abs()) * torch.maximum(l_b.abs(), u_b.abs())
        flat = (u_a <= l_a) | (u_b <= l_b)
        return flat | ((u_a - l_a) * (u_b - l_b) < _NOTHING * size)

    def _default(self, lower: PerInput, upper: PerInput) -> tuple[Tensor, Tensor]:
        zero_a, zero_b = ((-low / (high - low)).nan_to_num(nan=0.5).clamp(0.0, 1.0) for low, high in zip(lower, upper, strict=True))
        return 0.5 * (zero_a + zero_b), 0.5 * (zero_a + 1.0 - zero_b)

    def default_slopes(self, lower: PerInput, upper: PerInput) -> tuple[PerInput, PerInput]:
        return self.slopes(lower, upper, (None, None))

    def parallel_slopes(self, lower: PerInput, upper: PerInput) -> PerInput:
        a, b = (finite(0.5 * low + 0.5 * high) for low, high in zip(lower, upper, strict=True))
        return b, a

    def parameters(self, lower: PerInput, upper: PerInput, which: int, slopes: PerInput) -> Tensor:
        (l_a, l_b), (u_a, u_b) = lower, upper
        w_a, w_b = u_a - l_a, u_b - l_b
        by_b = (slopes[1] - l_a) / w_a
        by_a = (slopes[0] - l_b) / w_b if which == 0 else (u_b - slopes[0]) / w_b
        t = torch.where(w_b >= w_a, by_a, by_b)
        return t.nan_to_num(nan=0.5).clamp(0.0, 1.0).to(slopes[0].dtype)

    def slopes(self, lower: PerInput, upper: PerInput, parameters: tuple[Tensor | None, Tensor | None]) -> tuple[PerInput, PerInput]:
        (l_a, l_b), (u_a, u_b) = lower, upper
        w_a, w_b = u_a - l_a, u_b - l_b
        below, above = (own if t is None else t.double() for own, t in zip(self._default(lower, upper), parameters, strict=True))
        first, second = (l_b + below * w_b, l_a + below * w_a), (u_b - above * w_b, l_a + above * w_a)
        return tuple(map(finite, first)), tuple(map(finite, second))

    def hull_slopes(self, lower: PerInput, upper: PerInput) -> tuple[PerInput, PerInput]:
        """Both McCormick planes of either side, whose hull is that of the product over a box."""
        ends = lower[0].new_tensor([0.0, 1.0]).unsqueeze(1)
        return self.slopes(tuple(t.unsqueeze(0) for t in lower), tuple(t.unsqueeze(0) for t in upper), (ends, ends))

    def intercepts(self, lower: PerInput, upper: PerInput, k_lower: PerInput, k_upper: PerInput) -> tuple[Tensor, Tensor]:
        reach_a, reach_b = (torch.maximum(low.abs(), high.abs()) for low, high in zip(lower, upper, strict=True))
        found = []
        for (k_a, k_b), extreme, sign in ((k_lower, torch.minimum, -1.0), (k_upper, torch.maximum, 1.0)):
            # A product less a plane is bilinear: extreme at corners.
            corners = [a * b - k_a * a - k_b * b for a in (lower[0], upper[0]) for b in (lower[1], upper[1])]
            best = extreme(extreme(corners[0], corners[1]), extreme(corners[2], corners[3]))
            pad = 8 * U64 * (reach_a * reach_b + k_a.detach().abs() * reach_a + k_b.detach().abs() * reach_b) + _TINY
            # NaN: an end is infinite.
            found.append(torch.where(best.isnan() | pad.isnan(), sign * torch.inf, best + sign * pad))
        return found[0], found[1]

    def sides(
        self, lower: PerInput, upper: PerInput, center: PerInput, value: Tensor, dtype: torch.dtype, once: bool = False
    ) -> tuple[Side, Side]:
        (l_a, l_b), (u_a, u_b), (a, b) = lower, upper, center
        rest = (a * b - value).to(dtype).unsqueeze(1)
        low_a, wide_a, from_a, wide_b = (t.to(dtype).unsqueeze(1) for t in (l_a, u_a - l_a, a - l_a, u_b - l_b))
        area = wide_a * wide_b

        def side(sign: float, start: Tensor) -> Side:
            begin, from_b, slant = start.to(dtype).unsqueeze(1), (b - start).to(dtype).unsqueeze(1), sign * wide_b

            def plane(t: Tensor) -> tuple[PerInput, Tensor]:
                # a b - k_a a - k_b b = (a - k_b) (b - k_a) - k_a k_b, and the first term is extreme at two opposite corners.
                intercept = rest - (from_a - t * wide_a) * (from_b - t * slant) - sign * t * (1.0 - t) * area
                return (begin + t * slant, low_a + t * wide_a), intercept

            return plane

        return side(1.0, l_b), side(-1.0, u_b)

    def range(self, lower: PerInput, upper: PerInput) -> tuple[Tensor, Tensor]:
        low, high = mul(*(Interval(*ends) for ends in zip(lower, upper, strict=True)))
        return low, high

    def split_point(self, lower: Tensor, upper: Tensor) -> Tensor:
        return 0.5 * (lower + upper)
