"""Intercepts of smooth functions as the optimiser needs them: for many slopes on intervals that stay, nearly, and proving nothing.

On a part of an interval where f is convex, the least value of f(x) - k x is concave in the slope k, with derivative -x* at the critical
point x*. Between a few slopes whose critical points are found beforehand, x* is taken to be linear; no search and no function is left.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from milpverify.relaxations.convex_parts import parts_of, shape_of
from milpverify.relaxations.rule import RelaxationTuning

if TYPE_CHECKING:
    from milpverify.functions.catalogue import Function

_NARROW: Final = 1e-30
"""Slopes of a part that is no wider than so much are one."""


@dataclass(frozen=True, eq=False)
class SlopeTable:
    """Lines on one side of sign f on intervals (n, U), in deviations from reference values z of x and y of f.

    `ends` are pairs (x - z, sign (f - y)) at both ends and at kinks, (n, 1, U). Each of `parts` has the least slope of sign f, the
    slopes per cell and its inverse, (n, 1, U), and for the cells' left ends x* - z, the least value, and the change of x* with the
    slope, (n, `cells`, U).
    """

    sign: float
    ends: tuple[tuple[Tensor, Tensor], ...]
    parts: tuple[tuple[Tensor, ...], ...]
    cells: int

    def intercept(self, k: Tensor) -> Tensor:
        """The intercept, in deviations, of slopes k (n, r, U); differentiable."""
        steep = self.sign * k.detach()
        (at, least), *others = ((x.expand_as(steep), value - steep * x) for x, value in self.ends)
        for x, value in (*others, *(_nearly(part, steep, self.cells) for part in self.parts)):
            at = torch.lerp(at, x, (value < least).to(at.dtype))
            least = torch.minimum(least, value)
        fixed = torch.addcmul(self.sign * least, at, k.detach())
        return torch.addcmul(fixed, at, k, value=-1.0)


def _nearly(part: tuple[Tensor, ...], steep: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """The critical points of a part, and the values there."""
    start, cell, per_cell, points, values, rates = part
    place = ((steep - start) * per_cell).nan_to_num(0.0).clamp(0.0, cells)
    left = place.floor().clamp(max=cells - 1)
    index = left.long()
    rate, inside = rates.gather(1, index), (place - left) * cell
    x = points.gather(1, index) + rate * inside
    value = values.gather(1, index) + 0.5 * rate * inside * inside
    return x, torch.addcmul(value, x, steep - (start + left * cell), value=-1.0)


def slope_tables(
    function: Function,
    lower: Tensor,
    upper: Tensor,
    z: Tensor,
    y: Tensor,
    dtype: torch.dtype,
    tuning: RelaxationTuning = RelaxationTuning(),
) -> tuple[SlopeTable, SlopeTable]:
    """The tables of the lower and of the upper lines.

    Args:
        lower, upper, z, y: (n, U) float64.
        dtype: of slopes and intercepts.
    """
    cells = tuning.cells
    low, high, z, y = (t.unsqueeze(1) for t in (lower, upper, z, y))
    shape = shape_of(function, low.device)
    parts = parts_of(function, shape, low, high)
    sign = parts.sign.reshape(-1, 1, 1, 1)
    first, last = (sign * function.derivative(x).nan_to_num(0.0, 1e30, -1e30) for x in (parts.a, parts.b))
    cell = (last - first) / cells
    share = torch.arange(cells + 1, dtype=torch.float64, device=low.device).reshape(-1, 1)
    steep = first + cell * share
    x = parts.critical(sign * steep, 2)
    x = torch.where(share == 0, parts.a, torch.where(share == cells, parts.b, x))
    value = sign * (function(x) - y) - steep * (x - z)
    rate = torch.where(cell > _NARROW, (x[:, :, 1:] - x[:, :, :-1]) / cell, 0.0)
    per_cell = torch.where(cell > _NARROW, 1 / cell, 0.0)
    columns = [t.to(dtype).contiguous() for t in (first, cell, per_cell, (x - z)[:, :, :-1], value[:, :, :-1], rate)]
    made = tuple(tuple(t[i] for t in columns) for i in range(len(parts)))
    fixed = (low, high, *(point.clamp(low, high) for point in shape.alone))
    ends = [((x - z).to(dtype), function(x) - y) for x in fixed]
    return (
        SlopeTable(1.0, tuple((x, f.to(dtype)) for x, f in ends), made[: parts.below], cells),
        SlopeTable(-1.0, tuple((x, -f.to(dtype)) for x, f in ends), made[parts.below :], cells),
    )
