"""A power network as numbers: buses, branches and generators in per unit of `base_mva` and in radians.

A `Case` is the exact problem: its float64 numbers are taken as they are, and everything proved is proved of them. `load_case` reads
cases; what is said of rows ("branch row 3") counts the rows of the tables it read, from 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Index = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Buses:
    """n buses. A bus's place in these arrays is its index; `number` is its name in the case."""

    number: Index  # (n,)
    pd: Array  # (n,) active load, p.u.
    qd: Array  # (n,) reactive load, p.u.
    gs: Array  # (n,) shunt conductance, p.u.: it draws gs vm^2
    bs: Array  # (n,) shunt susceptance, p.u.: it injects bs vm^2
    vmin: Array  # (n,) p.u., > 0
    vmax: Array  # (n,) p.u.
    row: Index  # (n,) of the case's table

    def __len__(self) -> int:
        return len(self.number)


@dataclass(frozen=True, eq=False)
class Branches:
    """m branches in service: lines and transformers, by the pi model with the tap and the phase shift at the from end (MATPOWER)."""

    f: Index  # (m,) index of the from bus
    t: Index  # (m,) index of the to bus
    r: Array  # (m,) p.u.
    x: Array  # (m,) p.u.
    b: Array  # (m,) total line charging, p.u.
    tap: Array  # (m,) ratio, 1 for lines
    shift: Array  # (m,) rad
    rate: Array  # (m,) limit of |S| at both ends, p.u., inf for none
    angmin: Array  # (m,) limits of va[f] - va[t], rad, -inf for none
    angmax: Array  # (m,) rad, inf for none
    row: Index  # (m,) of the case's table

    def __len__(self) -> int:
        return len(self.f)


@dataclass(frozen=True, eq=False)
class Generators:
    """g generators in service; the cost of one is c2 pg^2 + c1 pg + c0 in $/h, pg in p.u."""

    bus: Index  # (g,) index of its bus
    pmin: Array  # (g,) p.u.
    pmax: Array
    qmin: Array
    qmax: Array
    c2: Array  # (g,) $/h per p.u.^2
    c1: Array  # (g,) $/h per p.u.
    c0: Array  # (g,) $/h
    vset: Array  # (g,) set point of the voltage, p.u.: where a power flow begins, no limit
    row: Index  # (g,) of the case's table

    def __len__(self) -> int:
        return len(self.bus)


@dataclass(frozen=True, eq=False)
class Case:
    """A connected power network with one reference bus, whose voltage angle is 0."""

    name: str
    base_mva: float
    buses: Buses
    branches: Branches
    generators: Generators
    reference: int  # index of a bus

    @property
    def num_buses(self) -> int:
        """n."""
        return len(self.buses)

    def branch_name(self, k: int) -> str:
        """The branch by the numbers of its buses: "branch 1-3 (row 2)"."""
        f, t = (int(self.buses.number[end[k]]) for end in (self.branches.f, self.branches.t))
        return f"branch {f}-{t} (row {int(self.branches.row[k])})"

    def bus_name(self, i: int) -> str:
        """The bus by its number: "bus 3"."""
        return f"bus {int(self.buses.number[i])}"

    def generator_name(self, g: int) -> str:
        """The generator by the number of its bus: "generator at bus 3 (row 2)"."""
        return f"generator at bus {int(self.buses.number[self.generators.bus[g]])} (row {int(self.generators.row[g])})"

    def cost(self, pg: Array) -> float:
        """The cost of a dispatch (g,) p.u. in $/h, summed without rounding errors that matter (`math.fsum`); inf where it overflows."""
        gen = self.generators
        with np.errstate(all="ignore"):
            terms = np.concatenate([gen.c2 * pg * pg, gen.c1 * pg, gen.c0])
        return math.fsum(terms.tolist()) if np.isfinite(terms).all() else math.inf

    def describe(self) -> dict[str, Any]:
        """Name, base and counts, for results."""
        return {
            "name": self.name,
            "base_mva": self.base_mva,
            "buses": len(self.buses),
            "branches": len(self.branches),
            "generators": len(self.generators),
        }
