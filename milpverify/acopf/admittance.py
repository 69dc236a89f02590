"""The coefficients of the flows in the products of voltages, enclosed.

With w_i = |V_i|^2, c = vm_f vm_t cos(va_f - va_t) and s = vm_f vm_t sin(va_f - va_t) of a branch, the flows into it are linear
(MATPOWER's manual, section 3.2, with ys = 1 / (r + jx), tau the tap and phi the phase shift at the from end):

    pf = gff w_f + gft c + bft s        qf = -bff w_f - bft c + gft s
    pt = gtt w_t + gtf c - btf s        qt = -btt w_t - btf c - gtf s
    yff = (ys + j b/2) / tau^2, yft = -ys / (tau e^(-j phi)), ytf = -ys / (tau e^(j phi)), ytt = ys + j b/2,    y = g + j b
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from milpverify.acopf.case import Array, Case

PRECISION: Final = 128  # bits: whoever checks a proof has the very coefficients of who made it
NAMES = ("gff", "bff", "gft", "bft", "gtf", "btf", "gtt", "btt")


@dataclass(frozen=True, eq=False)
class Admittances:
    """Of every branch the eight numbers of NAMES as balls: float64 midpoints (m, 8) and radii (m, 8), which contain the real numbers."""

    middle: Array
    radius: Array

    def of(self, name: str) -> Array:
        """The midpoints (m,) of one of NAMES."""
        column: Array = self.middle[:, NAMES.index(name)]
        return column

    def flows(self) -> tuple[Array, Array]:
        """(m, 4, 4) midpoints and radii: pf, qf, pt, qt as rows in w_f, w_t, c, s."""
        rows = [
            [("gff", 1), None, ("gft", 1), ("bft", 1)],
            [("bff", -1), None, ("bft", -1), ("gft", 1)],
            [None, ("gtt", 1), ("gtf", 1), ("btf", -1)],
            [None, ("btt", -1), ("btf", -1), ("gtf", -1)],
        ]
        middle, radius = np.zeros((len(self.middle), 4, 4)), np.zeros((len(self.middle), 4, 4))
        for i, row in enumerate(rows):
            for j, entry in enumerate(row):
                if entry is not None:
                    name, sign = entry
                    middle[:, i, j] = sign * self.middle[:, NAMES.index(name)]
                    radius[:, i, j] = self.radius[:, NAMES.index(name)]
        return middle, radius


@lru_cache(maxsize=16)
def admittances(case: Case) -> Admittances:
    """The flows' coefficients of a case's branches; a case is its own key, since it is a value."""
    balls = admittance_balls(case)
    middle = np.array([[float(ball.mid()) for ball in row] for row in balls]).reshape(-1, len(NAMES))
    radius = np.array([[_radius(ball) for ball in row] for row in balls]).reshape(-1, len(NAMES))
    return Admittances(middle, radius)


@lru_cache(maxsize=16)
def admittance_balls(case: Case) -> tuple[list[Any], ...]:
    """`branch_balls` of every branch."""
    return tuple(branch_balls(case, k) for k in range(len(case.branches)))


def branch_balls(case: Case, k: int) -> list[Any]:
    """The eight numbers of branch k as `flint.arb` balls at PRECISION bits, in the order of NAMES."""
    import flint

    before, flint.ctx.prec = flint.ctx.prec, PRECISION
    try:
        br = case.branches
        ys = 1 / flint.acb(float(br.r[k]), float(br.x[k]))
        tap = flint.arb(float(br.tap[k]))
        turn = flint.acb(0, float(br.shift[k])).exp()
        ytt = ys + flint.acb(0, flint.arb(float(br.b[k])) / 2)
        yft, ytf = -ys * turn / tap, -ys / turn / tap  # conj(e^(j phi)) = e^(-j phi), which divides
        yff = ytt / tap**2
        return [part for y in (yff, yft, ytf, ytt) for part in (y.real, y.imag)]
    finally:
        flint.ctx.prec = before


def _radius(ball: Any) -> float:
    """A float64 at least the distance of the midpoint's float64 from anything in the ball."""
    import flint

    middle = float(ball.mid())
    return float(np.nextafter(float((ball - flint.arb(middle)).abs_upper()) * (1 + 2.0**-50), np.inf))
