"""What `check_dispatch` and `check_outages` return."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from milpverify.acopf.dispatch.limits import Limit
from milpverify.acopf.result import Outcome, Verdict
from milpverify.result import csv_text, json_number, json_text

if TYPE_CHECKING:
    from pathlib import Path

    from milpverify.acopf.case import Array
    from milpverify.acopf.dispatch.witness import Violation


@dataclass(frozen=True)
class Margin:
    """How far a limited quantity stays from its limits over all loads: at least `certified` (proved), at most `attacked` (found).

    In p.u., of angles in rad; negative beyond a limit. -inf and inf where nothing is known. `range` is proved to contain the quantity.
    """

    limit: Limit
    certified: float
    attacked: float
    range: tuple[float, float] = (-math.inf, math.inf)

    def to_dict(self) -> dict[str, Any]:
        """A JSON form."""
        one = self.limit
        return {
            "kind": one.kind,
            "element": one.element,
            "index": one.index,
            "unit": one.unit,
            "lower": json_number(one.lower),
            "upper": json_number(one.upper),
            "given": one.given,
            "certified": json_number(self.certified),
            "attacked": json_number(self.attacked),
            "range": [json_number(end) for end in self.range],
        }


@dataclass(frozen=True, eq=False)
class Checked(Outcome):
    """Whether all limits hold for every load of a box: `margins` has a line for each of them.

    HOLDS: no margin is below the certified one, which is not negative (what is given may be beyond its limits by `tolerance`). BROKEN:
    loads are known that violate a limit by more than the tolerance. UNKNOWN: `reason`, and `unknown` in words.
    """

    verdict: Verdict = Verdict.UNKNOWN
    tolerance: float = 0.0
    margins: tuple[Margin, ...] = ()
    boxes: int = 0
    samples: int = 0
    unknown: str = ""

    @property
    def worst_margin(self) -> Margin | None:
        """That of the limit that is proved to hold by least; what is given, and within its limits, comes last."""
        return min(self.margins, key=lambda each: (each.limit.given and each.certified >= -self.tolerance, each.certified), default=None)

    @property
    def attacked_margin(self) -> Margin | None:
        """That of the limit that loads were found to come closest to."""
        return min(self.margins, key=lambda each: (each.limit.given and each.attacked >= -self.tolerance, each.attacked), default=None)

    @property
    def broken(self) -> tuple[Limit, float] | None:
        """The limit that is known to be violated, and its margin."""
        return None

    @property
    def headline(self) -> str:
        head, broken, worst = f"{self.verdict.name}: {self._question()}", self.broken, self.worst_margin
        if self.verdict is Verdict.BROKEN and broken is not None:
            return f"{head}, {broken[0]} is {-broken[1]:.3g} {broken[0].unit} beyond its limit"
        if self.verdict is Verdict.HOLDS and worst is not None:
            if worst.certified < 0:
                return f"{head}, nothing is beyond its limits by more than the tolerance of {self.tolerance:g} ({worst.limit})"
            return f"{head}, every margin is at least {worst.certified:.4g} {worst.limit.unit} ({worst.limit})"
        return head

    @property
    def details(self) -> tuple[str, ...]:
        found = super().details
        return (*found, self.unknown) if self.unknown else found

    def __str__(self) -> str:
        lines = [self.headline, *(f"  {detail}" for detail in self.details)]
        return "\n".join([*lines, self.table(worst=10)])

    def table(self, *, worst: int | None = None) -> str:
        """Limits, certified and attacked margins as columns, the smallest certified margin first and what is given last."""
        from milpverify.console import columns

        rows: list[tuple[object, ...]] = [("limit", "element", "unit", "certified", "attacked")]
        order = sorted(self.margins, key=lambda each: (each.limit.given, each.certified, each.attacked))
        for each in order[:worst]:
            rows.append((each.limit.kind, each.limit.element, each.limit.unit, f"{each.certified:.6g}", f"{each.attacked:.6g}"))
        return columns(rows)

    def to_dict(self) -> dict[str, Any]:
        own = {
            "verdict": self.verdict.value,
            "tolerance": self.tolerance,
            "unknown": self.unknown,
            "boxes": self.boxes,
            "samples": self.samples,
            "margins": [each.to_dict() for each in self.margins],
        }
        return {**own, **super().to_dict()}


@dataclass(frozen=True, eq=False)
class Dispatched(Checked):
    """Whether all limits hold in the power flow of every load of a box, the generators being set as they are.

    HOLDS: for every load there is exactly one power flow that is continuous with the base case's, and it satisfies every limit. BROKEN:
    `violation` has loads whose power flow violates one. The `point` is the base case's power flow, or the violating one; `flow` (2n,) are
    angles and magnitudes of the base case's.
    """

    violation: Violation | None = None
    outage: str = ""
    flow: Array | None = None

    @property
    def broken(self) -> tuple[Limit, float] | None:
        return None if self.violation is None else (self.violation.limit, self.violation.margin)

    def _question(self) -> str:
        return super()._question() + (f" without {self.outage}" if self.outage else "")

    @property
    def details(self) -> tuple[str, ...]:
        return super().details + (() if self.violation is None else (str(self.violation),))

    def to_dict(self) -> dict[str, Any]:
        return {
            **super().to_dict(),
            "outage": self.outage,
            "violation": None if self.violation is None else self.violation.to_dict(),
        }


COLUMNS = ("row", "branch", "verdict", "certified", "limit", "attacked", "attacked_limit", "proved", "reproduced", "seconds", "message")


@dataclass(frozen=True)
class OutageRow:
    """One outage: the branch (its row in the case's table), the verdict, and the least margins with the limits they are of.

    Of a BROKEN row `attacked` is the margin of the violation, which may be `proved`, and `reproduced` by pypower.
    """

    row: int
    branch: str
    verdict: Verdict
    certified: float = -math.inf
    limit: str = ""
    attacked: float = math.inf
    attacked_limit: str = ""
    proved: bool = False
    reproduced: bool = False
    seconds: float = 0.0
    message: str = ""

    @property
    def cells(self) -> tuple[str, ...]:
        """As in the CSV file."""
        numbers = {name: repr(getattr(self, name)) for name in ("certified", "attacked")}
        flags = {name: str(getattr(self, name)).lower() for name in ("proved", "reproduced")}
        own = {"verdict": self.verdict.value, "seconds": f"{self.seconds:.3f}", **numbers, **flags}
        return tuple(own.get(name, str(getattr(self, name))) for name in COLUMNS)

    @staticmethod
    def read(cells: list[str]) -> OutageRow:
        """From the CSV file.

        Raises:
            ValueError: something else stands there.
        """
        value = dict(zip(COLUMNS, cells, strict=True))
        return OutageRow(
            row=int(value["row"]),
            branch=value["branch"],
            verdict=Verdict(value["verdict"]),
            certified=float(value["certified"]),
            limit=value["limit"],
            attacked=float(value["attacked"]),
            attacked_limit=value["attacked_limit"],
            proved=value["proved"] == "true",
            reproduced=value["reproduced"] == "true",
            seconds=float(value["seconds"]),
            message=value["message"],
        )


@dataclass(frozen=True, eq=False)
class Outages:
    """The table of N-1: one row for every outage, and what was found for each (`results`; none for rows that were read from a file)."""

    intact: Dispatched
    rows: tuple[OutageRow, ...]
    results: dict[int, Dispatched] = field(default_factory=dict)

    @property
    def verdict(self) -> Verdict:
        """HOLDS if the intact network's does and all rows hold, BROKEN if any of them is; what splits the network holds nothing."""
        found = [self.intact.verdict, *(row.verdict for row in self.rows)]
        if Verdict.BROKEN in found:
            return Verdict.BROKEN
        return Verdict.HOLDS if all(each is Verdict.HOLDS for each in found) else Verdict.UNKNOWN

    def count(self, verdict: Verdict) -> int:
        """How many rows have this verdict."""
        return sum(row.verdict is verdict for row in self.rows)

    @property
    def headline(self) -> str:
        """The counts in one line."""
        kinds = (Verdict.HOLDS, Verdict.BROKEN, Verdict.UNKNOWN, Verdict.ISLANDED)
        return f"{len(self.rows)} outages: " + ", ".join(f"{self.count(kind)} {kind.name}" for kind in kinds)

    def __str__(self) -> str:
        from milpverify.console import columns

        lines: list[tuple[object, ...]] = [("outage", "verdict", "certified", "attacked", "limit", "s")]
        for row in self.rows:
            limit = row.attacked_limit if row.verdict is Verdict.BROKEN else row.limit
            numbers = [f"{value:.4g}" if math.isfinite(value) else "-" for value in (row.certified, row.attacked)]
            lines.append((row.branch, row.verdict.name, *numbers, limit or row.message, f"{row.seconds:.2f}"))
        return f"{self.headline}\n{columns(lines)}"

    def to_csv(self, path: str | Path | None = None) -> str:
        """The rows as CSV; written to `path` too where one is given."""
        return csv_text([COLUMNS, *(row.cells for row in self.rows)], path)

    def to_dict(self) -> dict[str, Any]:
        """A JSON form."""
        rows = [{**dict(zip(COLUMNS, row.cells, strict=True)), "row": row.row, "seconds": row.seconds} for row in self.rows]
        return {"verdict": self.verdict.value, "intact": self.intact.to_dict(), "outages": rows}

    def to_json(self, path: str | Path | None = None) -> str:
        """The JSON text; written to `path` too where one is given."""
        return json_text(self.to_dict(), path)
