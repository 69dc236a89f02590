"""Results of many problems as lines, and as rows of a CSV file that is gone on from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from milpverify.errors import InvalidInput
from milpverify.outside.appended import AppendedTable

if TYPE_CHECKING:
    from pathlib import Path

    from milpverify.result import Result

COLUMNS = ("network", "property", "verdict", "reason", "lower_bound", "trust", "seconds", "note", "counterexample")


@dataclass(frozen=True)
class Row:
    """What has come of a problem, as in the JSON result; `verdict` may also be `timeout` and `error`, as VNN-COMP has it."""

    network: str
    spec: str
    verdict: str
    reason: str
    lower_bound: float
    trust: str
    seconds: float
    note: str
    counterexample: tuple[float, ...] | None

    @staticmethod
    def of(network: str, spec: str, result: Result) -> Row:
        """Of a result."""
        point = None if result.counterexample is None else tuple(result.counterexample.x.tolist())
        return Row(
            network,
            spec,
            result.word,
            result.reason.name,
            result.lower_bound,
            result.trust.value,
            result.seconds,
            " ".join(result.note.split()),
            point,
        )

    @property
    def problem(self) -> tuple[str, str]:
        """What the row is about."""
        return self.network, self.spec

    @property
    def line(self) -> str:
        """A line for people and programs: the verdict, the property, seconds, and what was wrong."""
        wrong = f"  {self.note}" if self.verdict == "error" else ""
        return f"{self.verdict:<7s}  {self.spec}  {self.seconds:.3f}{wrong}"

    @property
    def cells(self) -> tuple[str, ...]:
        """The row of a CSV file; numbers with the digits that give the same float64 back."""
        point = "" if self.counterexample is None else " ".join(map(repr, self.counterexample))
        known = self.network, self.spec, self.verdict, self.reason, repr(self.lower_bound), self.trust, f"{self.seconds:.4f}"
        return *known, self.note, point

    @staticmethod
    def read(cells: list[str]) -> Row:
        """The row of a CSV file.

        Raises:
            InvalidInput: it is none.
        """
        try:
            network, spec, verdict, reason, bound, trust, seconds, note, point = cells
            numbers = tuple(map(float, point.split())) if point else None
            return Row(network, spec, verdict, reason, float(bound), trust, float(seconds), note, numbers)
        except ValueError as error:
            raise InvalidInput(f"no row of results: {','.join(cells)}") from error


def table(path: Path, resume: bool) -> AppendedTable[Row]:
    """The file of many results: one row per network and property.

    Raises:
        InvalidInput: the file cannot be written, or it holds something else.
    """
    return AppendedTable(path, COLUMNS, "many results", Row.read, lambda row: row.problem, resume)
