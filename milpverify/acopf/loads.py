"""Which loads are meant: those of the case times a factor, or every one in a box of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from milpverify.errors import InvalidInput

if TYPE_CHECKING:
    from milpverify.acopf.case import Array, Case


@dataclass(frozen=True)
class Loads:
    """All loads times `scale`, active and reactive; each of them up to `relative` of itself away from that, independently."""

    scale: float = 1.0
    relative: float = 0.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale):
            raise InvalidInput(f"loads: the scale must be finite, not {self.scale}")
        if not 0.0 <= self.relative < math.inf:
            raise InvalidInput(f"loads: the relative width must be finite and >= 0, not {self.relative}")

    @property
    def is_box(self) -> bool:
        """Whether more than one load is meant."""
        return self.relative > 0.0

    def middle(self, case: Case) -> tuple[Array, Array]:
        """pd, qd (n,) p.u. in the middle."""
        return case.buses.pd * self.scale, case.buses.qd * self.scale

    def on(self, case: Case) -> Case:
        """The case with these loads; those of a box are its middle."""
        pd, qd = self.middle(case)
        return replace(case, buses=replace(case.buses, pd=pd, qd=qd))

    def ranges(self, case: Case) -> tuple[Array, Array, Array, Array]:
        """pd from, pd to, qd from, qd to: (n,) p.u. each, in float64, whose numbers are what is meant."""
        pd, qd = self.middle(case)
        p, q = np.abs(pd) * self.relative, np.abs(qd) * self.relative
        return pd - p, pd + p, qd - q, qd + q


def scaled(factor: float) -> Loads:
    """Every active and reactive load times a factor."""
    return Loads(scale=factor)


def box(relative: float, scale: float = 1.0) -> Loads:
    """Every active and reactive load anywhere within -+ `relative` of itself, independently of the others, after all were scaled."""
    return Loads(scale=scale, relative=relative)
