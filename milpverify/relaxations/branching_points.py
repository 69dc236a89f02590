"""Branching points: where to split an interval so that the children's relaxations are tightest (GenBaB, arXiv 2405.21063, section 3.3).

The loss of a split of [l, u] at p is the summed area between the default lines on [l, p] and on [p, u]. Its minimiser comes from a table
over middles and widths (`encodings/branching_points.npz`, which `python -m milpverify.relaxations.branching_points` makes), and from a
search on the spot where an interval leaves the table or there is none: functions with parameters, a domain of their own, or of the user.

These points presume what their loss does: children with default lines. To children that begin from their parent's lines they are worth
less than midpoints, and less than splits far off the middle (`milpverify.search.neuron_split.branching.reset_slopes`).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from torch import Tensor

from milpverify.relaxations.registry import univariate
from milpverify.relaxations.rule import RelaxationTuning

if TYPE_CHECKING:
    from pathlib import Path

    from milpverify.functions.catalogue import Function

FILE = "branching_points.npz"
_STEPS: Final = 256
_OCTAVE: Final = 4
"""Of the file's tables: steps between middles, and widths per factor of 2."""
_REACH: Final = 8.0
_NARROWEST: Final = -2.0
_WIDEST: Final = 4.5
"""Middles up to 8, widths from 2^-2 to 2^4.5."""

Loss = Callable[[Tensor, Tensor], Tensor]
"""How loose a relaxation on [lower, upper] is, elementwise."""


def area(function: Function, lower: Tensor, upper: Tensor) -> Tensor:
    """The area between the default lines on [lower, upper], elementwise, float64: the width times their distance at the middle."""
    lower, upper = torch.broadcast_tensors(lower, upper)
    rule = univariate(function)
    k_lower, k_upper = rule.supporting_slopes(lower, upper)
    below, above = rule.both_intercepts(lower, upper, k_lower, k_upper)
    middle = lower + 0.5 * (upper - lower)
    return (upper - lower) * (above - below + (k_upper - k_lower) * middle).clamp(min=0.0)


def branching_points(
    functions: Sequence[Function],
    lower: Tensor,
    upper: Tensor,
    bilinear: Tensor | None = None,
    tuning: RelaxationTuning = RelaxationTuning(),
) -> Tensor:
    """The points that split the intervals of a node best for all that reads it.

    Args:
        lower, upper: float64, any one shape.
        bilinear: of that shape: what products with the node lose, per squared width of the interval.

    Returns:
        points strictly inside where the intervals have an inside, float64; breakpoints where a function is piecewise linear.
    """
    for function in functions:
        if function.pieces is not None:
            return univariate(function).split_point(lower, upper)
    share, known = torch.full_like(lower, 0.5), ~torch.isfinite(upper - lower)
    if not functions:
        known = torch.ones_like(known)  # a square is least in the middle
    elif len(set(functions)) == 1 and (table := _table(functions[0])) is not None:
        found, inside = table.look_up(lower, upper)
        inside = inside & ~known
        if bilinear is not None:
            inside = inside & (bilinear == 0)
        share, known = torch.where(inside, found, share), known | inside
    if not bool(known.all()):
        rest = ~known
        weight = None if bilinear is None else bilinear[rest]

        def loss(a: Tensor, b: Tensor) -> Tensor:
            total = torch.stack([area(f, a, b) for f in functions]).sum(0)
            return total if weight is None else total + weight * (b - a).square()

        share[rest] = best_share(loss, lower[rest], upper[rest], tuning)
    point = lower + share * (upper - lower)
    middle = lower + 0.5 * (upper - lower)
    return torch.where((point > lower) & (point < upper), point, torch.where(torch.isfinite(middle), middle, 0.0).clamp(lower, upper))


def best_share(loss: Loss, lower: Tensor, upper: Tensor, tuning: RelaxationTuning = RelaxationTuning()) -> Tensor:
    """The share of the width at which splitting [lower, upper] leaves the least summed loss, by a grid and its refinements.

    Args:
        lower, upper: float64, any one shape, which the shares have too.
    """
    width, edge = upper - lower, tuning.edge

    def summed(share: Tensor) -> Tensor:
        point = lower + share * width
        total = loss(torch.cat([lower.expand_as(point), point]), torch.cat([point, upper.expand_as(point)])).unflatten(0, (2, -1)).sum(0)
        return torch.where(total.isnan(), math.inf, total)

    share = torch.full_like(lower, 0.5)
    least = summed(share.unsqueeze(0)).squeeze(0) * (1 - 1e-6)  # what changes nothing is left in the middle
    reach = 0.5
    for _ in range(tuning.zooms):
        offsets = torch.linspace(-reach, reach, tuning.grid + 1, dtype=lower.dtype, device=lower.device)
        trial = (share + offsets.reshape(-1, *[1] * lower.dim())).clamp(edge, 1 - edge)
        values, place = summed(trial).min(0)
        found = trial.gather(0, place.unsqueeze(0)).squeeze(0)
        share, least = torch.where(values < least, found, share), torch.minimum(values, least)
        reach *= 3.0 / tuning.grid
    return share


@dataclass(frozen=True, eq=False)
class _Table:
    """Shares of the width, (middles, widths) float64: middles from `start` in steps of `step`, widths by quarter octaves."""

    shares: Tensor
    start: float
    step: float
    period: float | None

    def look_up(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """The shares for some intervals, interpolated, and for which of them the table knows one."""
        shares, width = self.shares.to(lower.device), upper - lower
        middle = lower + 0.5 * width
        if self.period is not None:
            middle = middle - (middle / self.period).floor() * self.period
        row = (middle - self.start) / self.step
        column = (width.log2() - _NARROWEST) * _OCTAVE
        known = (row >= 0) & (row <= shares.shape[0] - 1) & (column <= shares.shape[1] - 1) & torch.isfinite(width)
        row, column = (torch.where(known, t, 0.0).clamp(min=0.0) for t in (row, column))
        i, j = (t.floor().long().clamp(max=n - 2) for t, n in zip((row, column), shares.shape, strict=True))
        a, b = row - i, column - j
        corners = torch.stack([shares[i, j], shares[i + 1, j], shares[i, j + 1], shares[i + 1, j + 1]])
        mixed = (corners * torch.stack([(1 - a) * (1 - b), a * (1 - b), (1 - a) * b, a * b])).sum(0)
        # Where the minimiser jumps between neighbours, the nearest one is a minimiser, and what lies between is none.
        nearest = shares[i + (a > 0.5).long(), j + (b > 0.5).long()]
        share = torch.where(corners.amax(0) - corners.amin(0) > 0.15, nearest, mixed)
        # Narrower intervals than the table's see a parabola.
        return torch.where(width < 2.0**_NARROWEST, 0.5, share), known


def _axes(function: Function, steps: int = _STEPS) -> tuple[Tensor, Tensor]:
    """The middles and the widths of a function's table."""
    start, end = (-_REACH, _REACH) if function.period is None else (0.0, 0.5 * sum(function.period))
    widths = 2.0 ** (_NARROWEST + torch.arange(int((_WIDEST - _NARROWEST) * _OCTAVE) + 1, dtype=torch.float64) / _OCTAVE)
    return torch.linspace(start, end, steps + 1, dtype=torch.float64), widths


def tabulated(function: Function) -> bool:
    """Whether a function has a table: smooth, without jumps, on all reals, without parameters."""
    everywhere = function.domain == ((-math.inf, -math.inf), (math.inf, math.inf)) and not function.poles
    return function.pieces is None and not function.staircase and not function.parameters and everywhere


@lru_cache(maxsize=256)
def _table(function: Function) -> _Table | None:
    from milpverify.functions.catalogue import data_folder

    if not tabulated(function):
        return None
    with np.load(data_folder() / FILE) as tables:
        if function.name not in tables:
            return None
        shares = torch.from_numpy(tables[function.name].astype(np.float64) / 254.0)
    middles, _ = _axes(function)
    period = None if function.period is None else 0.5 * sum(function.period)
    return _Table(shares, float(middles[0]), float(middles[1] - middles[0]), period)


def make_table(function: Function, steps: int = _STEPS) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """The table of a function, (middles, widths), in units of 1/254, which holds a half; the file's has 256 steps between middles."""
    middles, widths = _axes(function, steps)
    half = 0.5 * widths
    shares = best_share(lambda a, b: area(function, a, b), middles.unsqueeze(1) - half, middles.unsqueeze(1) + half)
    return (shares * 254.0).round().to(torch.uint8).numpy()


def main(anew: Collection[str] = (), path: Path | None = None) -> None:
    """Make the tables that are missing, and those of some functions anew; tables of functions that are no more are left out."""
    from milpverify.functions.catalogue import catalogue, data_folder

    path = path or data_folder() / FILE
    with np.load(path) as tables:
        known = dict(tables)
    entries = {name: entry.bind() for name, entry in sorted(catalogue().items()) if not entry.limits}
    made = {
        name: make_table(function) if name in anew or name not in known else known[name]
        for name, function in entries.items()
        if tabulated(function)
    }
    np.savez_compressed(path, **made)  # type: ignore[arg-type]


if __name__ == "__main__":
    main(sys.argv[1:])
