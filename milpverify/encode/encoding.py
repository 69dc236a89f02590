"""What encoding a network comes to: a model for solvers, and the way back from its points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from milpverify.solvers.model import Array, Index, Model
from milpverify.tuning import Tuning

if TYPE_CHECKING:
    from milpverify.encode.curves import Cuts, Relaxed
    from milpverify.solvers.base import Capability

NodeRanges = Sequence[tuple[Tensor, Tensor]]
"""Per node id, (lower, upper) of its value, float64 of the node's shape: proved for every point of the disjunct's box."""


class EncodingTuning(Tuning):
    """How closely models enclose what they do not hold as it is, and how much of one is formed at a time."""

    ratio: float = 1.75
    """Of one tangent's place on a square to that of the next: they miss at most ((ratio - 1) / (ratio + 1))^2 = 7.4 % of a square, so
    3.6 % of the radius of an L2 ball."""
    nearest: float = 0.2
    """Of r w / sqrt(n), the smallest place of a tangent of a ball with the radius r and weights w that n inputs move in."""
    entries: int = 2**22
    """Entries of the dense rows that are formed at a time."""
    range_bits: int = 53
    row_bits: int = 20
    """Bits of the ends of ranges in scripts for SMT solvers, and of the numbers in rows that only prune, both rounded outwards."""


@dataclass(frozen=True, eq=False)
class ModelForm:
    """How a model holds the neurons of a network.

    Attributes:
        cuts: where curved neurons are parted; their relaxation is linear elsewhere.
        native: what is left to the solver: QUADRATIC products and squares, FUNCTIONS smooth functions.
        relaxed: enclose every unstable neuron by lines, whatever its function, with which more: a linear program.
    """

    cuts: Cuts = field(default_factory=dict)
    native: frozenset[Capability] = frozenset()
    relaxed: Relaxed | None = None
    tuning: EncodingTuning = EncodingTuning()


@dataclass(frozen=True, eq=False)
class Neurons:
    """Neurons of one nonlinear node that are not fixed by their bounds, and the columns of their inputs and outputs."""

    node: int
    index: Index  # (R,) flat
    inputs: tuple[Index, ...]  # (R,) each
    outputs: Index  # (R,)
    curved: bool


@dataclass(frozen=True, eq=False)
class Origins:
    """What the rows and columns of a model stand for, so that multipliers can be carried back to the network.

    Row i was divided by scale[i]. `lines` are, per nonlinear node, (row, flat index, side, slope of every input) with side 0 for lower
    lines, all of them rows that hold at their lower ends; `columns` are those of (node, flat index). Decisions come in the order of
    their nodes.
    """

    scale: Array  # (m,)
    lines: dict[int, Array]  # (L, 3 + inputs)
    columns: dict[tuple[int, int], int]
    domain: range = range(0)
    decisions: range = range(0)
    margin: range = range(0)


@dataclass(frozen=True, eq=False)
class Encoding:
    """A model and the way back: quantity j is centre[j] + unit[j] v[j]; columns[i] is that of x_i, -1 if nothing depends on it.

    The model's objective is in units of the margin (of the objective row), whose column is `margin` (-1: there is none). `unstable` counts
    the neurons with binaries; `neurons` are all that lines or binaries enclose, `arguments` the columns of what they read, by node and
    flat index. `outputs` are the columns of the outputs where the model has them.
    """

    model: Model
    columns: Index  # (nx,)
    centre: Array  # (n,)
    unit: Array  # (n,)
    lower: Array  # (nx,), the box
    upper: Array
    unstable: int
    neurons: tuple[Neurons, ...] = ()
    arguments: Mapping[tuple[int, int], int] = field(default_factory=dict)
    margin: int = -1
    origins: Origins | None = None
    outputs: Index = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def quantities(self, point: Array) -> Array:
        """What a solver's point (n,) stands for, (n,)."""
        return self.centre + self.unit * point

    def x_of(self, point: Array) -> Array:
        """The input (nx,) of a solver's point (n,), clipped into the box; the middle of the box where it does not matter."""
        middle = self.lower + 0.5 * (self.upper - self.lower)
        values = self.quantities(point)[self.columns]
        x: Array = np.clip(np.where(self.columns >= 0, values, middle), self.lower, self.upper)
        return x


@dataclass(frozen=True, eq=False)
class Layer:
    """One model for many pre-activations of a node: entry index[r] is objective[r] . v + constant[r], up to error[r], at v in the model.

    The model has no objective of its own; `binaries` of its variables tell the pieces of neurons.
    """

    model: Model
    index: Index  # (R,) flat
    objective: Array  # (R, n)
    constant: Array  # (R,)
    error: Array  # (R,)
    binaries: int
    unit: Array  # (n,)
    origins: Origins

    def task(self, r: int, side: int) -> Model:
        """The model that minimises entry r, or with side -1 its negative (without the constant)."""
        return replace(self.model, objective=side * self.objective[r])
