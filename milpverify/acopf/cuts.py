"""Tangent planes of the cones in the relaxation: products of voltages, ratings and quadratic costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from milpverify.acopf.case import Array, Index
    from milpverify.acopf.relaxation import Columns, Relaxation

INWARDS = 1 - 2.0**-50
"""A direction of length 1 in float64 times this is no longer than 1 in real arithmetic."""
VIOLATED = 1e-7  # p.u., or units of cost


@dataclass(frozen=True, eq=False)
class Cuts:
    """Planes in three families, in this order of rows.

    u . (2c, 2s, w_i - w_j) <= w_i + w_j of a pair; u . (p, q) <= rate of a branch's end (0 from, 1 to); a tangent of a cost at a dispatch.
    Any direction u of length <= 1 and any dispatch will do.
    """

    pair: Index  # (a,)
    pair_direction: Array  # (a, 3)
    flow: Index  # (b,) place among the rated branches
    end: Index  # (b,)
    flow_direction: Array  # (b, 2)
    price: Index  # (k,) generator
    at: Array  # (k,) p.u.

    def __len__(self) -> int:
        return len(self.pair) + len(self.flow) + len(self.price)

    def __add__(self, other: Cuts) -> Cuts:
        return Cuts(**{name: np.concatenate([mine, getattr(other, name)]) for name, mine in vars(self).items()})

    def keep(self, which: NDArray[np.bool_]) -> Cuts:
        """Those flagged, in the order of rows."""
        a, b = len(self.pair), len(self.pair) + len(self.flow)
        pairs, flows, prices = which[:a], which[a:b], which[b:]
        return Cuts(
            self.pair[pairs],
            self.pair_direction[pairs],
            self.flow[flows],
            self.end[flows],
            self.flow_direction[flows],
            self.price[prices],
            self.at[prices],
        )

    def to_dict(self) -> dict[str, Any]:
        """The arrays as lists."""
        return {name: part.tolist() for name, part in vars(self).items()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Cuts:
        """What `to_dict` wrote; raises ValueError or KeyError where shapes do not fit."""
        index, real = (lambda name: np.array(data[name], dtype=np.int64)), (lambda name: np.array(data[name], dtype=np.float64))
        cuts = cls(
            index("pair"),
            real("pair_direction").reshape(-1, 3),
            index("flow"),
            index("end"),
            real("flow_direction").reshape(-1, 2),
            index("price"),
            real("at"),
        )
        if (len(cuts.pair), len(cuts.flow), len(cuts.price)) != (len(cuts.pair_direction), len(cuts.flow_direction), len(cuts.at)):
            raise ValueError("cuts of different lengths")
        if len(cuts.end) != len(cuts.flow):
            raise ValueError("cuts of different lengths")
        return cuts


def no_cuts() -> Cuts:
    """None."""
    index = np.zeros(0, dtype=np.int64)
    return Cuts(index, np.zeros((0, 3)), index, index, np.zeros((0, 2)), index, np.zeros(0))


def separate(relaxation: Relaxation, points: Array, violated: float = VIOLATED) -> Cuts:
    """The tangent planes that solutions (K, columns) of the relaxation violate, without near repetitions."""
    columns, gen = relaxation.columns, relaxation.question.case.generators
    cone = _cone(columns, points)
    length = np.linalg.norm(cone, axis=2)
    total = points[:, columns.w[columns.pairs.i]] + points[:, columns.w[columns.pairs.j]]
    k, p = np.nonzero(length - total > violated)
    directions = cone[k, p] / length[k, p, None]
    pair, u = _distinct(p, directions)
    rate = relaxation.question.case.branches.rate[columns.rated] + relaxation.question.tolerance
    power = points[:, columns.flow].reshape(len(points), 2, 2, -1)  # solution, end, p or q, branch
    size = np.linalg.norm(power, axis=2)
    k, end, r = np.nonzero(size - rate > violated)
    code, v = _distinct(2 * r + end, power[k, end, :, r] / size[k, end, r, None])
    dispatch = points[:, columns.pg[: len(columns.price)]]
    missing = ((gen.c2 * dispatch + gen.c1) * dispatch + gen.c0) / relaxation.unit if len(columns.price) else dispatch
    k, g = np.nonzero(missing - points[:, columns.price] > violated)
    width = np.maximum(1.0, np.abs(gen.pmax))
    price, at = _distinct(g, dispatch[k, g, None] / np.where(np.isfinite(width), width, 1.0)[g, None])
    at = at[:, 0] * np.where(np.isfinite(width), width, 1.0)[price]
    return Cuts(pair, u * INWARDS, code // 2, code % 2, v * INWARDS, price, at)


def _cone(columns: Columns, points: Array) -> Array:
    """(2c, 2s, w_i - w_j) of every pair at every solution, (K, P, 3)."""
    pairs = columns.pairs
    difference = points[:, columns.w[pairs.i]] - points[:, columns.w[pairs.j]]
    return np.stack([2 * points[:, columns.c], 2 * points[:, columns.s], difference], axis=2)


def _distinct(index: Index, values: Array, digits: int = 4) -> tuple[Index, Array]:
    """The rows (index, values), but of those that agree to so many digits the first only."""
    if not len(index):
        return index.astype(np.int64), values
    keys = np.column_stack([index, np.round(values, digits)])
    _, first = np.unique(keys, axis=0, return_index=True)
    return index[first].astype(np.int64), values[first]
