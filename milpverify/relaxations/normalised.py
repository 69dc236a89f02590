"""The relaxation of a normalisation: the product of an entry with the reciprocal of its vector's norm.

As a product of two variables it is unbounded where the norm may vanish. But the norm is large where the entry is: with m = `largest`,

    |a b|  <=  s(|a|) = |a| / sqrt((a / m)^2 + floor)  <=  m,

which is concave in |a|. Over [l, u] with l < 0 < u, and 0 <= l_b <= b, the region above a < 0 ends at l_b a and that above a >= 0 at s(a).
Lines in a alone, which are level or lead from the left end to the level of the right one, bound it whatever b is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor

from milpverify.operators import Norm
from milpverify.relaxations.mccormick import McCormick
from milpverify.relaxations.rule import PerInput, RelaxationTuning, Rule, Side

_MARGIN: Final = 2.0**-48
"""Relative, for the roundings of s and of a line: some sixteen units."""
_TINY: Final = 2.0**-1000


@dataclass(frozen=True)
class Normalised(Rule):
    """a * b with |a b| <= s(|a|). Where lines in a alone enclose less than McCormick's planes they take their place, side by side.

    With the parameter t in [0, 1] their slope moves from 0 to the steepest that is of use.
    """

    norm: Norm
    tuning: RelaxationTuning = field(default=RelaxationTuning())

    @property
    def matters(self) -> tuple[bool, bool]:
        return True, True

    @property
    def span(self) -> tuple[float, float]:
        return _PLANES.span

    def spans(self, lower: PerInput, upper: PerInput) -> tuple[Tensor, Tensor, Tensor]:
        return _PLANES.spans(lower, upper)

    def is_exact(self, lower: PerInput, upper: PerInput) -> Tensor:
        return _PLANES.is_exact(lower, upper)

    # Lines in a alone

    def _known(self, upper: PerInput) -> Tensor:
        """Where the norm is known not to vanish."""
        return torch.isfinite(upper[1]) if self.norm.floor == 0 else torch.ones_like(upper[1], dtype=torch.bool)

    def _most(self, a: Tensor) -> Tensor:
        """s(a) for a > 0 and 0 elsewhere, rounded upwards."""
        m = self.norm.largest
        value = a / ((a / m).square() + self.norm.floor).sqrt() * (1 + _MARGIN)
        return torch.where(a > 0, value.nan_to_num(m, m, m).clamp(max=m), 0.0)

    def _intercept(self, low: Tensor, high: Tensor, least: Tensor, slope: Tensor) -> Tensor:
        """The smallest c with a b <= slope * a + c for all a in [low, high] and b >= `least` >= 0, with an outward margin.

        Differentiable in the slope, with gradient -a* at the extreme point a*.
        """
        m, floor, k = self.norm.largest, self.norm.floor, slope.detach()
        bounded = low.isfinite() & high.isfinite()
        low, high = torch.where(bounded, low, 0.0), torch.where(bounded, high, 0.0)
        # s' = floor / ((a / m)^2 + floor)^(3/2) is k here; s lies below any of its tangents, at 0 below s = m as well.
        first, last = low.clamp(min=0.0), high.clamp(min=0.0)
        if floor > 0:
            at = m * ((floor / k.clamp(min=_TINY)).pow(2.0 / 3.0) - floor).clamp(min=0.0).sqrt()
            at = torch.minimum(torch.maximum(torch.where(k > 0, at, last), first), last)
            steep = floor / ((at / m).square() + floor).pow(1.5)
        else:
            at = torch.where(k > 0, first, last)
            steep = torch.zeros_like(at)
        value = self._most(at) if floor > 0 else torch.full_like(at, m)
        drift = torch.maximum((steep - k) * (last - at), (steep - k) * (first - at)).clamp(min=0.0)
        size = value + (steep + k.abs()) * torch.maximum(at, last)
        right = value + drift - slope * at + 4 * _MARGIN * size
        # l_b a is extreme at the ends of what is negative.
        left_end, right_end = low.clamp(max=0.0), high.clamp(max=0.0)
        left = torch.maximum((least - slope) * left_end, (least - slope) * right_end) + _MARGIN * (least + k.abs()) * left_end.abs()
        above = torch.where(high > 0, torch.maximum(right, torch.where(low < 0, left, -torch.inf)), left)
        above = torch.where(bounded, above + _TINY, torch.where(k == 0, m, torch.inf))
        return torch.where(above.isnan(), torch.inf, above)

    def _lines(self, low: Tensor, high: Tensor, least: Tensor) -> tuple[Tensor, Tensor]:
        """The steepest slope that is of use for an upper line, and the default parameter."""
        top = self._most(high)
        rise = (top - least * low.clamp(max=0.0)) / (-low)
        if self.norm.floor > 0:
            steepest = self.norm.floor / ((low.clamp(min=0.0) / self.norm.largest).square() + self.norm.floor).pow(1.5)
            rise = torch.where(low < 0, torch.minimum(rise, steepest), steepest)
        else:
            rise = torch.where(low < 0, rise, 0.0)
        rise = torch.where(rise.isfinite(), rise, 0.0)
        middle = 0.5 * low + 0.5 * high
        level, tilted = (self._intercept(low, high, least, k) + k * middle for k in (torch.zeros_like(rise), rise))
        return rise, (tilted < level).to(low.dtype)

    def _chosen(self, lower: PerInput, upper: PerInput) -> tuple[tuple[Tensor, Tensor, Tensor], ...]:
        """Per side where lines in a alone are the tighter ones, at the midpoint of the box, their steepest slope and default parameter."""
        (l_a, l_b), (u_a, u_b) = (tuple(t.detach() for t in side) for side in (lower, upper))
        least, known = l_b.clamp(min=0.0), self._known(upper)
        middle, center = 0.5 * l_a + 0.5 * u_a, 0.5 * l_b + 0.5 * u_b
        quarter = 0.25 * (u_a - l_a) * (u_b - l_b)
        found = []
        for sign, low, high in ((-1.0, -u_a, -l_a), (1.0, l_a, u_a)):
            rise, default = self._lines(low, high, least)
            slope = default * rise
            height = self._intercept(low, high, least, slope) + slope * sign * middle
            height = torch.where(slope == 0, self._intercept(low, high, least, slope), height)
            plane = (sign * middle * center + self.tuning.better * quarter).nan_to_num(nan=torch.inf)
            found.append((known & height.isfinite() & (height < plane), rise, default))
        return tuple(found)

    # The rule

    def default_slopes(self, lower: PerInput, upper: PerInput) -> tuple[PerInput, PerInput]:
        return self.slopes(lower, upper, (None, None))

    def parallel_slopes(self, lower: PerInput, upper: PerInput) -> PerInput:
        k_a, k_b = _PLANES.parallel_slopes(lower, upper)
        low, high = self.range(lower, upper)
        gap = 0.5 * (upper[0] - lower[0]) * (upper[1] - lower[1])
        level = self._known(upper) & ~(gap <= high - low)
        return torch.where(level, 0.0, k_a), torch.where(level, 0.0, k_b)

    def parameters(self, lower: PerInput, upper: PerInput, which: int, slopes: PerInput) -> Tensor:
        chosen, rise, default = self._chosen(lower, upper)[which]
        own = torch.where(rise > 0, slopes[0] / rise, default).nan_to_num(nan=0.0).clamp(0.0, 1.0).to(slopes[0].dtype)
        return torch.where(chosen, own, _PLANES.parameters(lower, upper, which, slopes))

    def slopes(self, lower: PerInput, upper: PerInput, parameters: tuple[Tensor | None, Tensor | None]) -> tuple[PerInput, PerInput]:
        planes, sides = _PLANES.slopes(lower, upper, parameters), self._chosen(lower, upper)
        made = []
        for (k_a, k_b), (chosen, rise, default), t in zip(planes, sides, parameters, strict=True):
            slope = (default if t is None else t.double()) * rise
            made.append((torch.where(chosen, slope, k_a), torch.where(chosen, 0.0, k_b)))
        return made[0], made[1]

    def hull_slopes(self, lower: PerInput, upper: PerInput) -> tuple[PerInput, PerInput]:
        return _PLANES.hull_slopes(lower, upper)

    def intercepts(self, lower: PerInput, upper: PerInput, k_lower: PerInput, k_upper: PerInput) -> tuple[Tensor, Tensor]:
        below, above = _PLANES.intercepts(lower, upper, k_lower, k_upper)
        (l_a, l_b), (u_a, u_b) = lower, upper
        least, known = l_b.clamp(min=0.0), self._known(upper)
        found = []
        for sign, low, high, (k_a, k_b) in ((-1.0, -u_a, -l_a, k_lower), (1.0, l_a, u_a, k_upper)):
            # Of a lower line the negative is an upper line of -a b: a changes its sign, and so does the slope of b.
            ends = [torch.where(k_b == 0, 0.0, -sign * k_b * b) for b in (l_b, u_b)]
            beside = torch.maximum(*ends)
            beside = beside + _MARGIN * beside.detach().abs()
            own = self._intercept(low, high, least, k_a) + beside
            found.append(torch.where(known & ~own.isnan(), own, torch.inf))
        return torch.maximum(below, -found[0]), torch.minimum(above, found[1])

    def sides(
        self, lower: PerInput, upper: PerInput, center: PerInput, value: Tensor, dtype: torch.dtype, once: bool = False
    ) -> tuple[Side, Side]:
        chosen = self._chosen(lower, upper)
        both = chosen[0][0] & chosen[1][0]
        # What is infinite must not reach the gradients of planes that are not taken.
        (l_a, l_b), (u_a, _) = lower, upper
        below, above = (tuple(torch.where(both, 0.0, t) for t in side) for side in (lower, upper))
        planes = _PLANES.sides(below, above, center, value, dtype, once)
        least = l_b.clamp(min=0.0).unsqueeze(1)
        a, y = center[0].unsqueeze(1), value.unsqueeze(1)

        def side(which: int, sign: float, low: Tensor, high: Tensor) -> Side:
            taken, rise, _ = (t.unsqueeze(1) for t in chosen[which])
            low, high, plane = low.unsqueeze(1), high.unsqueeze(1), planes[which]

            def line(t: Tensor) -> tuple[PerInput, Tensor]:
                (k_a, k_b), intercept = plane(t)
                slope = t.double() * rise
                height = sign * self._intercept(low, high, least, slope) + slope * a - y
                own = torch.where(taken, slope.to(dtype), k_a), torch.where(taken, 0.0, k_b)
                return own, torch.where(taken, height.to(dtype), intercept)

            return line

        return side(0, -1.0, -u_a, -l_a), side(1, 1.0, l_a, u_a)

    def range(self, lower: PerInput, upper: PerInput) -> tuple[Tensor, Tensor]:
        low, high = _PLANES.range(lower, upper)
        known = self._known(upper)
        below, above = (torch.where(known, self._most(a), torch.inf) for a in (-lower[0], upper[0]))
        return torch.maximum(low, -below), torch.minimum(high, above)

    def split_point(self, lower: Tensor, upper: Tensor) -> Tensor:
        return _PLANES.split_point(lower, upper)


_PLANES = McCormick()
