"""What the questions about a network return."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from milpverify.result import Trust, json_number, json_text

if TYPE_CHECKING:
    from pathlib import Path

    from milpverify.acopf.case import Case
    from milpverify.acopf.loads import Loads
    from milpverify.acopf.points.existence import Existence
    from milpverify.acopf.points.judgement import Constraint
    from milpverify.acopf.points.point import Point
    from milpverify.acopf.proving.proof import Proof

TOLERANCE: Final = 1e-6
"""The violation (p.u., rad) that a point may have where a question names no other."""


class Verdict(Enum):
    """The answer. CERTIFIED is that of bounds which are within the gap asked for; the last ones but UNKNOWN are those about dispatches."""

    FEASIBLE = "feasible"
    INFEASIBLE = "infeasible"
    CERTIFIED = "certified"
    HOLDS = "holds"
    BROKEN = "broken"
    ISLANDED = "islanded"
    UNKNOWN = "unknown"


class Reason(Enum):
    """Why a run ended as it did. The values are the messages shown to people."""

    POINT = "an operating point was found, checked against the case's data, and reproduced by an independent power flow"
    PROVED = "it was proved"
    GAP = "the bounds are within the gap"
    TIMEOUT = "the time limit was reached"
    INTERRUPTED = "the run was interrupted"
    UNDECIDED = "the search came to its end without deciding it"
    VIOLATED = "loads were found whose power flow violates a limit"
    NO_FLOW = "no power flow was found"
    SPLIT = "the outage splits the network"


@dataclass(frozen=True, eq=False)
class Outcome:
    """What all answers have: the case, the loads, the point, the proof and what it cost.

    `constraints` has a line for every limit and balance: its value at the point, the limits, and the `proved` range, which holds at
    every operating point (of `certify_cost`: at every one no dearer than `upper`; of loadability: at every one with at least the load
    `lower`). `trust` is what the proved bound rests on. `method` says what decided it, `seconds` the time of each phase.
    """

    case: Case
    loads: Loads
    reason: Reason
    trust: Trust
    point: Point | None
    existence: Existence | None
    constraints: tuple[Constraint, ...]
    proof: Proof | None
    method: str
    seconds: dict[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def total_seconds(self) -> float:
        """Wall clock."""
        return sum(self.seconds.values())

    @property
    def headline(self) -> str:
        """The answer in one line."""
        raise NotImplementedError

    def _question(self) -> str:
        """Case and loads: "case14 at loads x 1.1 within 5 %"."""
        scale = f" at loads x {self.loads.scale:.6g}" if self.loads.scale != 1.0 or self.loads.is_box else ""
        return self.case.name + scale + (f" within {100 * self.loads.relative:.6g} %" if self.loads.is_box else "")

    @property
    def details(self) -> tuple[str, ...]:
        """What the answer rests on, in sentences."""
        how = f"{self.reason.value}; {self.method}; trust {self.trust.value}, {self.total_seconds:.2f} s"
        return (how, *(() if self.existence is None else (str(self.existence),)), *(f"warning: {warning}" for warning in self.warnings))

    def __str__(self) -> str:
        lines = [self.headline, *(f"  {detail}" for detail in self.details)]
        lines += [
            f"  {each.kind:<22s} {each.element:<28s} {each.value:12.6g} {each.unit:<4s} margin {each.margin:.3g}" for each in self.worst()
        ]
        return "\n".join(lines)

    def worst(self) -> tuple[Constraint, ...]:
        """Of every kind of constraint the one with the least margin; none where there is no point."""
        least: dict[str, Constraint] = {}
        for each in self.constraints:
            if not math.isnan(each.margin) and (each.kind not in least or each.margin < least[each.kind].margin):
                least[each.kind] = each
        return tuple(least.values())

    def to_dict(self) -> dict[str, Any]:
        """A JSON form: the fields of this class, without the proof, which has a file of its own (`proof.save`)."""
        return {
            "case": self.case.describe(),
            "loads": {"scale": self.loads.scale, "relative": self.loads.relative},
            "reason": self.reason.name,
            "message": self.reason.value,
            "trust": self.trust.value,
            "point": None if self.point is None else self.point.to_dict(),
            "existence": None if self.existence is None else self.existence.to_dict(),
            "constraints": [each.to_dict() for each in self.constraints],
            "method": self.method,
            "seconds": dict(self.seconds),
            "warnings": list(self.warnings),
            "has_proof": self.proof is not None,
        }

    def to_json(self, path: str | Path | None = None) -> str:
        """The JSON text; written to `path` too where one is given."""
        return json_text(self.to_dict(), path)


@dataclass(frozen=True, eq=False)
class Feasibility(Outcome):
    """Whether an operating point exists whose largest violation t of any limit or balance (p.u., angles in rad) is 0.

    FEASIBLE: `point`'s violation, recomputed from the case's data, is at most `tolerance`. INFEASIBLE: every point violates something
    by more than `violation_bound`, a proved bound above the tolerance.
    """

    verdict: Verdict = Verdict.UNKNOWN
    tolerance: float = 0.0
    violation_bound: float = -math.inf  # p.u.

    @property
    def headline(self) -> str:
        head = f"{self.verdict.name}: {self._question()}"
        if self.verdict is Verdict.FEASIBLE and self.point is not None:
            return f"{head}, violation {self.point.violation:.2g} p.u."
        if math.isfinite(self.violation_bound):
            return f"{head}, every point violates something by at least {self.violation_bound:.3g} p.u."
        return head

    def to_dict(self) -> dict[str, Any]:
        own = {"verdict": self.verdict.value, "tolerance": self.tolerance, "violation_bound": json_number(self.violation_bound)}
        return {**own, **super().to_dict()}


@dataclass(frozen=True, eq=False)
class Bounds(Outcome):
    """An optimum between `lower` and `upper`; which of the two the point attains and whether that is proved is said by the subclasses."""

    lower: float = -math.inf
    upper: float = math.inf

    @property
    def verdict(self) -> Verdict:
        """CERTIFIED where the bounds are within the gap asked for, INFEASIBLE where it was proved that there is no point, else UNKNOWN."""
        return {Reason.GAP: Verdict.CERTIFIED, Reason.PROVED: Verdict.INFEASIBLE}.get(self.reason, Verdict.UNKNOWN)

    @property
    def gap(self) -> float:
        """(upper - lower) / upper, infinite while one of them is missing."""
        if not (math.isfinite(self.lower) and math.isfinite(self.upper)):
            return math.inf
        return (self.upper - self.lower) / abs(self.upper) if self.upper else (0.0 if self.lower == self.upper else math.inf)

    def to_dict(self) -> dict[str, Any]:
        own = {
            "verdict": self.verdict.value,
            "lower": json_number(self.lower),
            "upper": json_number(self.upper),
            "gap": json_number(self.gap),
        }
        return {**own, **super().to_dict()}


@dataclass(frozen=True, eq=False)
class Cost(Bounds):
    """The least cost in $/h: no operating point is cheaper than `lower`; `point` costs `upper`.

    `upper_is_proved`: an exact operating point strictly inside all limits was proved to exist beside `point` (Krawczyk), and no such one
    near it costs more than `upper`; otherwise the point satisfies limits and balances up to its `violation`.
    """

    upper_is_proved: bool = False

    @property
    def headline(self) -> str:
        if self.verdict is Verdict.INFEASIBLE:
            return f"INFEASIBLE: {self._question()}, no operating point whatever the cost"
        return f"{self._question()}: the least cost is between {self.lower:.8g} and {self.upper:.8g} $/h, gap {self.gap:.2g}"

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "upper_is_proved": self.upper_is_proved}


@dataclass(frozen=True, eq=False)
class Loadability(Bounds):
    """By how much all loads can grow: no operating point exists for any factor above `upper`; `point` carries the factor `lower`."""

    lower_is_proved: bool = False

    @property
    def headline(self) -> str:
        return f"{self.case.name}: loads can grow by a factor between {self.lower:.8g} and {self.upper:.8g}, gap {self.gap:.2g}"

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "lower_is_proved": self.lower_is_proved}
