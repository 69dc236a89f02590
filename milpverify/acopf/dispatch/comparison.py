"""What sampling, one relaxation and branch and bound say of every margin of a dispatch, side by side: `compare_dispatch`."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from milpverify.acopf.asking import deadline_of
from milpverify.acopf.dispatch.attack import Attack, LoadTuning
from milpverify.acopf.dispatch.checking import NOISE, dispatch_of
from milpverify.acopf.dispatch.grid import FlowTuning
from milpverify.acopf.dispatch.limits import Limit, limits_of
from milpverify.acopf.dispatch.linking import over, parameters
from milpverify.acopf.dispatch.newton import base
from milpverify.acopf.dispatch.policy import box_of
from milpverify.acopf.dispatch.search import Search
from milpverify.acopf.loads import Loads
from milpverify.acopf.result import TOLERANCE
from milpverify.config import SearchOptions
from milpverify.errors import Contradiction, InvalidInput
from milpverify.result import csv_text

if TYPE_CHECKING:
    from pathlib import Path

    from milpverify.acopf.case import Case
    from milpverify.tuning import Tuning

COLUMNS = ("limit", "unit", "sampled", "relaxation", "lower", "upper")


@dataclass(frozen=True)
class MarginRow:
    """The least margin of one limit over all loads of a box, by three methods.

    `sampled` is the least at random loads, an upper bound; `relaxation` a lower bound, proved by one enclosure of all power flows; the
    least margin itself is between `lower`, proved by branch and bound, and `upper`, attained by loads that were found with gradients.
    """

    limit: Limit
    sampled: float
    relaxation: float
    lower: float
    upper: float

    @property
    def cells(self) -> tuple[str, ...]:
        """As in the table."""
        numbers = (f"{value:.6g}" for value in (self.sampled, self.relaxation, self.lower, self.upper))
        return (str(self.limit), self.limit.unit, *numbers)


@dataclass(frozen=True, eq=False)
class MarginComparison:
    """The rows of all limits that are not given; `seconds` of each method, and whether all are within the gap (`closed`)."""

    rows: tuple[MarginRow, ...]
    seconds: dict[str, float]
    boxes: int
    closed: bool

    def table(self, *, worst: int | None = None) -> str:
        """Columns, the smallest margin first."""
        from milpverify.console import columns

        return columns([COLUMNS, *(row.cells for row in self.rows[:worst])])

    def __str__(self) -> str:
        how = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in self.seconds.items())
        state = "all within the gap" if self.closed else "not all within the gap"
        return f"{len(self.rows)} limits, {self.boxes} boxes, {state}; {how}\n{self.table(worst=12)}"

    def to_csv(self, path: str | Path | None = None) -> str:
        """The table as CSV; written to `path` too where one is given."""
        return csv_text([COLUMNS, *(row.cells for row in self.rows)], path)


def compare_dispatch(
    case: Case,
    pg: Any,
    vm: Any,
    loads: Loads,
    timeout: float | None = None,
    *,
    gap: float = 1e-4,
    samples: int = 1000,
    seed: int = 0,
    tuning: tuple[Tuning, ...] = (),
) -> MarginComparison:
    """The least margin of every limit over a box of loads, by sampling, by one relaxation, and by branch and bound to within a gap.

    Args:
        case: the network.
        pg: (g,) p.u., as of `check_dispatch`.
        vm: (n,) p.u., likewise.
        loads: a box of them.
        timeout: seconds of wall clock for the branch and bound; what is open then is wider than the gap.
        gap: p.u. and rad.
        samples: random loads.
        seed: of these.
        tuning: as of `check_dispatch`.

    Raises:
        InvalidInput: as `check_dispatch`, or no power flow is found at the loads in the middle.
        Contradiction: loads were found where a margin is below what was proved of all.
    """
    if not 0.0 < gap < math.inf:
        raise InvalidInput(f"gap: must be above 0, not {gap}")
    options = SearchOptions(tuning=tuning)
    grid, policy, start = dispatch_of(case, pg, vm, None, options.tuned(FlowTuning))
    limits, box, seconds = limits_of(grid), box_of(grid, loads), {}
    x = base(grid, parameters(grid, policy, box.middle), start)
    if x is None:
        raise InvalidInput(f"{case.name}: Newton's method finds no power flow at the loads in the middle")
    began = time.monotonic()
    attack = Attack(grid, limits, policy, box, x, tuning=options.tuned(LoadTuning))
    attack.sample(samples, seed)
    seconds["sampling"] = time.monotonic() - began
    began = time.monotonic()
    enclosure = over(grid, policy, box, x)
    relaxed = np.full(len(limits.entries), -np.inf) if enclosure is None else limits.enclosed(enclosure).margin
    seconds["relaxation"] = time.monotonic() - began
    began = time.monotonic()
    deadline = deadline_of(timeout, None)
    search = Search(grid, limits, policy, box, TOLERANCE, deadline, tuning=options.tuned(LoadTuning))
    search.run(start, samples, seed, decide=False)
    search.close(gap)
    seconds["branch and bound"] = time.monotonic() - began
    assert search.found.attack is not None
    if (k := search.contradicted(NOISE)) is not None:
        raise Contradiction(f"{case.name}: loads were found where {limits.entries[k]} has a margin below what was proved of all")
    lower, upper = search.found.margin, search.found.attack.margin
    rows = [
        MarginRow(limit, *numbers)
        for limit, *numbers in zip(limits.entries, attack.margin.tolist(), relaxed.tolist(), lower.tolist(), upper.tolist(), strict=True)
        if not limit.given
    ]
    closed = search.found.holds and all(row.upper - row.lower <= gap * (1 + 1e-9) for row in rows)
    return MarginComparison(tuple(sorted(rows, key=lambda row: row.lower)), seconds, search.found.boxes, closed)
