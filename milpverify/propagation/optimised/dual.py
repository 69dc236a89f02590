"""What bounds with slopes and multipliers are about: subproblems, parameters, constraints, and how to optimise."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from milpverify.relaxations.rule import Rule

Columns = slice | Tensor
"""Places among the open entries: a stretch, or a list (U,) that may repeat some."""


@dataclass(frozen=True)
class AlphaOptions:
    """How long and how eagerly to optimise: Adam with steps for slopes and for multipliers that decay by `decay` an iteration."""

    iterations: int = 20
    step: float = 0.25
    decay: float = 0.96
    beta_step: float = 0.05
    gamma_step: float = 0.05


@dataclass(frozen=True, eq=False)
class Domain:
    """Subproblems of a root's boxes. T is the number of open entries of all variables, K the largest number of splits.

    `box` (n,) the place in the root's batch; `low`, `high` (n, T) float64, the open entries' bounds; split constraints
    side * (z - point) >= 0: `column` (n, K) the open entry, `side` (n, K) +1, -1, or 0 where there is none, `point` (n, K) float64.
    `given`: constraints on the target that hold, too.
    """

    box: Tensor
    low: Tensor
    high: Tensor
    column: Tensor
    side: Tensor
    point: Tensor
    given: OutputConstraints | None = None

    def __len__(self) -> int:
        return len(self.box)

    def take(self, chosen: Tensor) -> Domain:
        """Some of them, by their places (m,) or by a mask (n,)."""
        box, low, high, column, side, point = (t[chosen] for t in (self.box, self.low, self.high, self.column, self.side, self.point))
        return Domain(box, low, high, column, side, point, None if self.given is None else self.given.take(chosen))


@dataclass(frozen=True, eq=False)
class Dual:
    """The parameters of bounds: those of the lines that are worth optimising (`slopes`, (n, r, P)), multipliers (n, r, K) of the splits.

    `gamma` (n, r, q): multipliers of output constraints, where there are any.
    """

    slopes: Tensor
    beta: Tensor
    gamma: Tensor | None = None

    def take(self, chosen: Tensor) -> Dual:
        """Those of some subproblems, by their places (m,) or by a mask (n,)."""
        return Dual(self.slopes[chosen], self.beta[chosen], None if self.gamma is None else self.gamma[chosen])

    def mix(self, place: tuple[Tensor, ...], other: Dual) -> Dual:
        """With the rows at `place` (subproblems, rows) taken from as many of another, one row each."""
        gamma = None if self.gamma is None or other.gamma is None else self.gamma.index_put(place, other.gamma)
        return Dual(self.slopes.index_put(place, other.slopes), self.beta.index_put(place, other.beta), gamma)


@dataclass(frozen=True, eq=False)
class OutputConstraints:
    """rows . y + x_rows . x <= rhs: `rows` (n, q, ny), `x_rows` (n, q, nx) or None, `rhs` (n, q), float64."""

    rows: Tensor
    x_rows: Tensor | None
    rhs: Tensor

    def take(self, chosen: Tensor) -> OutputConstraints:
        """Those of some subproblems, by their places (m,) or by a mask (n,)."""
        return OutputConstraints(self.rows[chosen], None if self.x_rows is None else self.x_rows[chosen], self.rhs[chosen])


@dataclass(frozen=True, eq=False)
class Passed:
    """What a bound makes of the open entries of a nonlinear node, (n, r, U) each, in deviations from the reference values.

    `arrived`: the multipliers at the node; `below`, `above` the slopes per input and the intercepts of the lines (which may have one
    row for all). `attained`, per input: where it would be at the point that attains the bound, which is the derivative of the bound
    with respect to what leaves the relaxation; empty where no derivative was asked for.
    """

    arrived: Tensor
    below: tuple[tuple[Tensor, ...], Tensor]
    above: tuple[tuple[Tensor, ...], Tensor]
    attained: tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Primal:
    """Bounds without rounding charges (n, r), and what they come from at the open entries of every nonlinear node."""

    value: Tensor
    passed: dict[int, Passed]

    @property
    def multipliers(self) -> dict[int, Tensor]:
        """What arrives at the nodes, (n, r, U) each."""
        return {i: passed.arrived for i, passed in self.passed.items()}


@dataclass(frozen=True, eq=False)
class Open:
    """A nonlinear node's open entries.

    `index` (U,) flat; `columns`, per input, where the variables that they read are among all T; `lower` and `upper` are slices of the
    parameters, or None.
    """

    node: int
    rule: Rule
    index: Tensor
    columns: tuple[Columns, ...]
    lower: slice | None
    upper: slice | None


@dataclass(frozen=True, eq=False)
class Kind:
    """The open entries of all nodes with one rule, relaxed together: many small nodes cost as much as one.

    `nodes` and `sizes`: whose entries follow one another; `columns`, `lower` and `upper` as in `Open`, of all; `value` (batch, U) the
    reference values of the outputs.
    """

    rule: Rule
    nodes: tuple[int, ...]
    sizes: tuple[int, ...]
    columns: tuple[Columns, ...]
    lower: slice | None
    upper: slice | None
    value: Tensor

    def chosen(self, parameters: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """The parameters (..., P) of the lower and of the upper lines, where these have some."""
        lower, upper = (None if part is None else parameters[..., part] for part in (self.lower, self.upper))
        return lower, upper

    def parted(self, values: Tensor) -> tuple[Tensor, ...]:
        """Values (..., U) by node."""
        return (values,) if len(self.sizes) == 1 else values.split(self.sizes, dim=-1)


def one_after_another(parts: Sequence[Columns], device: torch.device) -> Columns:
    """Places among the open entries, one list of them after the other."""
    stretches = [part for part in parts if isinstance(part, slice)]
    if len(stretches) == len(parts) and all(a.stop == b.start for a, b in pairwise(stretches)):
        return slice(stretches[0].start, stretches[-1].stop)
    return torch.cat([torch.arange(c.start, c.stop, device=device) if isinstance(c, slice) else c for c in parts])


def accumulate(total: Tensor, columns: Columns, values: Tensor) -> None:
    """Add values (..., U) to some columns of (..., T), in place; columns may repeat."""
    if isinstance(columns, slice):
        total[..., columns] += values
    else:
        total.index_add_(-1, columns, values.to(total.dtype))
