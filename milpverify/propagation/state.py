"""The state that bound propagation takes and returns: bounds, reference values and rounding charges of every node.

All vectors are float64, whatever precision the matrices are multiplied in. Linear bounds are kept in deviations from the
reference values (the network's own values at the centre of the box), so that biases never enter a backward pass and the
rounding charges scale with the size of the box, not with the size of the values.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from milpverify.arithmetic.rounding import LARGEST_DEVIATION
from milpverify.operators.window import filled

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, eq=False)
class Bounds:
    """lower <= value <= upper, elementwise; both (batch, *node.shape) float64."""

    lower: Tensor
    upper: Tensor

    def meet(self, other: Bounds) -> Bounds:
        """The intersection of two valid bounds. Where rounding or an empty subproblem crosses them, the result is crossed too."""
        return Bounds(torch.maximum(self.lower, other.lower), torch.minimum(self.upper, other.upper))

    @property
    def width(self) -> Tensor:
        """upper - lower, (batch, *node.shape), rounded to nearest."""
        return self.upper - self.lower


@dataclass(frozen=True, eq=False)
class NodeState:
    """What is known of one node over a batch of boxes: (batch, *node.shape) float64.

    `bounds`: proved. `center`: its reference value c, any number near its values. `charge`: the rounding charge E of backward
    propagation through the affine nodes behind it: multipliers lambda at this node lose at most |lambda| . E on the way back
    to the nearest cut nodes (None where that is zero: at nonlinear nodes and the input).
    """

    bounds: Bounds
    center: Tensor
    charge: Tensor | None

    @property
    def deviation(self) -> Tensor:
        """An upper bound of |value - center|, (batch, *node.shape) float64."""
        return (torch.maximum(self.bounds.upper - self.center, self.center - self.bounds.lower) * (1 + 2.0**-50)).clamp(min=0.0)

    @property
    def reach(self) -> Tensor:
        """`deviation` where multipliers are rounded, in its shape: infinite where what underflows could cost more than is charged for."""
        deviation = self.deviation
        return torch.where(deviation > LARGEST_DEVIATION, torch.inf, deviation)


State = dict[int, NodeState]
"""Node id -> what is known of it. Filled in topological order."""


def select(state: State, owner: Tensor) -> State:
    """The state with the boxes `owner` (n,) as its batch."""
    return {
        i: NodeState(Bounds(s.bounds.lower[owner], s.bounds.upper[owner]), s.center[owner], None if s.charge is None else s.charge[owner])
        for i, s in state.items()
    }


@dataclass(frozen=True, eq=False)
class Lines:
    """Two lines (planes) around an entrywise nonlinearity y = f(z, ...), in deviations from the reference values.

    sum of k_lower (z - c_z) + b_lower <= y - c_y <= sum of k_upper (z - c_z) + b_upper for all inputs z within their bounds, with the
    rounding charges of a backward step through this node already taken out of the intercepts. One slope per input; tensors
    (batch, *shape), or with rows of their own (batch, rows, *shape), in the precision of the matrices.
    """

    k_lower: tuple[Tensor, ...]
    k_upper: tuple[Tensor, ...]
    b_lower: Tensor
    b_upper: Tensor

    @cached_property
    def missing(self) -> Tensor | None:
        """Where there is no lower and where no upper line, as intercepts are infinite or nearly: (2, batch, ...) bool. None: nowhere."""
        both = torch.stack((self.b_lower, self.b_upper)).abs() <= torch.finfo(self.b_lower.dtype).max / 4
        return None if bool(both.all()) else ~both

    @cached_property
    def centred(self) -> Tensor:
        """Per input the mean slope and half of lower less upper slope; mean intercept, half of upper less lower: (2 m + 2, batch, ...).

        The lines enter a backward pass as lambda . mean and |lambda| . half difference, so that no pass tells signs apart. In the place
        of a missing line the intercept of the other stands, or 0: zero times infinity is no number.
        """
        slopes = (t for low, high in zip(self.k_lower, self.k_upper, strict=True) for t in (0.5 * (low + high), 0.5 * (low - high)))
        below, above = self.b_lower, self.b_upper
        if self.missing is not None:
            below = torch.where(self.missing[0], torch.where(self.missing[1], 0.0, above), below)
            above = torch.where(self.missing[1], below, above)
        width = above - below
        # Half of an intercept that is no normal number is rounded, unless both are the same.
        half = torch.where(width == 0, width, 0.5 * width + 2.0**26 * torch.finfo(width.dtype).tiny)
        return torch.stack((*slopes, 0.5 * (below + above), half))

    @cached_property
    def filled(self) -> Tensor:
        """`centred` as windows cut it: (2 m + 2, batch, entries + 1)."""
        return filled(self.centred)


def select_lines(around: Lines, owner: Tensor) -> Lines:
    """The lines with the boxes `owner` (n,) as their batch."""
    return map_lines(around, lambda t: t[owner])


def map_lines(around: Lines, change: Callable[[Tensor], Tensor]) -> Lines:
    """The lines with every tensor changed alike: slopes and intercepts, (batch, *shape) or (batch, rows, *shape)."""
    below, above = (tuple(map(change, slopes)) for slopes in (around.k_lower, around.k_upper))
    return Lines(below, above, change(around.b_lower), change(around.b_upper))


def rows_of_lines(around: Lines, dims: int, rows: slice) -> Lines:
    """The lines of some rows, around a node of so many axes, where rows have lines of their own."""
    return map_lines(around, lambda t: t[:, rows]) if around.b_lower.dim() == dims + 2 else around


def node_ranges(state: State) -> list[tuple[Tensor, Tensor]]:
    """Per node, the proved bounds over the one box of a state, without the batch axis, on the CPU: of the node's shape, float64."""
    return [(s.bounds.lower[0].cpu(), s.bounds.upper[0].cpu()) for _, s in sorted(state.items())]


@dataclass(frozen=True, eq=False)
class SplitConstraints:
    """Split constraints side * (z - point) >= 0 on entries of one node, with their multipliers (beta-CROWN, arXiv 2103.06624).

    `index` (batch, K) flat entries of the node, `side` (batch, K) +1, -1, or 0 where a subproblem has fewer than K,
    `point` (batch, K) float64, `beta` (batch, rows, K) >= 0 in the precision of the matrices.
    """

    index: Tensor
    side: Tensor
    point: Tensor
    beta: Tensor


@dataclass(frozen=True, eq=False)
class Passage:
    """What backward passes over a batch of boxes go through: by node, its state, lines around it, and split constraints on its entries.

    `intervals`: of the deviation of nodes where passes ended, as middle (None if zero) and radius, (batch, *shape) in the precision of
    the matrices; filled by the passes, so that others that share it need not form them again.
    """

    state: State
    table: dict[int, Lines]
    splits: dict[int, SplitConstraints] = field(default_factory=dict)
    intervals: dict[int, tuple[Tensor | None, Tensor]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class LinearBound:
    """Lower bounds of some rows as linear functions of the input: rows . value >= coefficients . (x - centre) + constant.

    `coefficients` (batch, rows, nx) in the precision of the matrices, `constant` (batch, rows) float64 (rounding charges of the
    concretisation not included), `lower` (batch, rows) float64: the rigorous minimum over the inputs. `over_box`: that of the linear
    function over the whole box, from which the coefficients lead on to bounds in parts of it; where a ball cuts the box it is lower.
    """

    coefficients: Tensor
    constant: Tensor
    lower: Tensor
    over_box: Tensor

    def map(self, change: Callable[[Tensor], Tensor]) -> LinearBound:
        """With every part changed alike, which is for choosing boxes or rows: the first two axes of (batch, rows, ...)."""
        return LinearBound(*map(change, (self.coefficients, self.constant, self.lower, self.over_box)))
