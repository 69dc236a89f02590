"""An operating point, judged against the case's own data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from milpverify.acopf.case import Array, Case


@dataclass(frozen=True)
class Constraint:
    """One limit or balance, at a point and over all points. Units: p.u., but rad for angles.

    `kind` is one of "active balance", "reactive balance", "voltage", "active generation", "reactive generation", "angle difference",
    "flow from", "flow to" (|S| at either end of a branch). `value` is what the limits `lower` <= value <= `upper` are about (of a balance:
    the residual, limits 0), `margin` the distance to the nearer limit, negative where it is violated: enclosed, so that it is at least
    that. `proved` is the range of value over all operating points, (-inf, inf) where nothing is known of it.
    """

    kind: str
    element: str  # "bus 3", "branch 1-3 (row 2)", "generator at bus 3 (row 2)"
    index: int  # of the bus, branch or generator in the case's arrays
    unit: str
    lower: float
    upper: float
    value: float
    margin: float
    proved: tuple[float, float]

    def to_dict(self) -> dict[str, Any]:
        """The fields."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Point:
    """Voltages, generation and loads of a case: a candidate for an operating point, whatever it came from."""

    case: Case
    vm: Array  # (n,) p.u.
    va: Array  # (n,) rad
    pg: Array  # (g,) p.u.
    qg: Array  # (g,) p.u.
    pd: Array  # (n,) p.u.
    qd: Array  # (n,) p.u.
