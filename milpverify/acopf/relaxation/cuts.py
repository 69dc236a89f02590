"""Tangent planes of the cones in the relaxation: products of voltages, ratings and quadratic costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from milpverify.acopf.case import Array, Index


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

    def joined(self, mine: NDArray[np.bool_], others: Cuts, theirs: bool) -> NDArray[np.bool_]:
        """What flags (planes,) of these planes are among those of `self + others`, the flags of the others being all the same."""
        ends = np.cumsum([len(self.pair), len(self.flow)])
        parts = zip(np.split(mine, ends), (others.pair, others.flow, others.price), strict=True)
        return np.concatenate([part for flags, more in parts for part in (flags, np.full(len(more), theirs))])

    def keep(self, which: NDArray[np.bool_]) -> Cuts:
        """Those flagged (planes,), in the order of rows."""
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

        def index(name: str) -> Index:
            return np.array(data[name], dtype=np.int64).reshape(-1)

        def real(name: str, width: int) -> Array:
            return np.array(data[name], dtype=np.float64).reshape(-1, width)

        pair, flow = real("pair_direction", 3), real("flow_direction", 2)
        cuts = cls(index("pair"), pair, index("flow"), index("end"), flow, index("price"), real("at", 1)[:, 0])
        if (len(cuts.pair), len(cuts.flow), len(cuts.price)) != (len(cuts.pair_direction), len(cuts.flow_direction), len(cuts.at)):
            raise ValueError("cuts of different lengths")
        if len(cuts.end) != len(cuts.flow) or any(part.ndim != 1 for part in (cuts.pair, cuts.flow, cuts.end, cuts.price)):
            raise ValueError("cuts of different lengths")
        return cuts


def no_cuts() -> Cuts:
    """None."""
    index = np.zeros(0, dtype=np.int64)
    return Cuts(index, np.zeros((0, 3)), index, index, np.zeros((0, 2)), index, np.zeros(0))
