"""N-1: the same question without every branch, one after the other; rows are written as they come, and gone on from."""

from __future__ import annotations

import csv
import hashlib
import time
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from milpverify.acopf.dispatch.result import COLUMNS, OutageRow
from milpverify.acopf.result import Reason, Verdict
from milpverify.errors import InvalidInput
from milpverify.result import Event

if TYPE_CHECKING:
    from collections.abc import Callable

    from milpverify.acopf.asking import OnEvent
    from milpverify.acopf.case import Case, Index
    from milpverify.acopf.dispatch.result import Dispatched

ALL = "all"
BAR: Final = 24  # characters


def chosen(case: Case, outages: Sequence[Any]) -> list[int]:
    """Indices of branches: "all", rows of the case's table counted from 1, or pairs of bus numbers, which name all branches between them.

    Raises:
        InvalidInput: no branch in service is named so.
    """
    if isinstance(outages, str):
        outages = [outages]
    br, number = case.branches, case.buses.number
    found: list[int] = []
    for outage in outages:
        if isinstance(outage, str) and outage == ALL:
            found += range(len(br))
        elif isinstance(outage, Sequence) and not isinstance(outage, str) and len(outage) == 2:
            ends = {int(end) for end in outage}
            pairs = zip(number[br.f].tolist(), number[br.t].tolist(), strict=True)
            found += _some([k for k, pair in enumerate(pairs) if set(pair) == ends], case, outage)
        elif isinstance(outage, int | np.integer):
            found += _some(np.flatnonzero(br.row == outage).tolist(), case, outage)
        else:
            raise InvalidInput(f"outages: 'all', a row of the branch table, or a pair of bus numbers, not {outage!r}")
    return list(dict.fromkeys(found))


def _some(found: list[int], case: Case, outage: object) -> list[int]:
    if not found:
        raise InvalidInput(f"outages: {case.name} has no branch {outage} in service")
    return found


def without(case: Case, k: int) -> Case:
    """The case without branch k."""
    kept = np.delete(np.arange(len(case.branches)), k)
    branches = replace(case.branches, **{each.name: getattr(case.branches, each.name)[kept] for each in fields(case.branches)})
    return replace(case, branches=branches)


def cut_off(case: Case) -> Index:
    """Buses that no path of branches joins with the reference bus."""
    reached = np.zeros(len(case.buses), dtype=bool)
    reached[case.reference] = True
    f, t = case.branches.f, case.branches.t
    while True:
        more = reached.copy()
        more[t[reached[f]]] = True
        more[f[reached[t]]] = True
        if (more == reached).all():
            return np.flatnonzero(~reached)
        reached = more


def one_by_one(
    case: Case, branches: list[int], ask: Callable[[Case, str], Dispatched], record: Record | None, on_event: OnEvent | None
) -> tuple[tuple[OutageRow, ...], dict[int, Dispatched]]:
    """Ask about the case without every one of these branches; what the record holds is not asked again."""
    held = {} if record is None else {row.row: row for row in record.rows}
    rows, results = [], {}
    for done, k in enumerate(branches):
        name, row_number = case.branch_name(k), int(case.branches.row[k])
        if on_event is not None:
            full = BAR * done // len(branches)
            on_event(Event("outages", f"{'█' * full}{'░' * (BAR - full)} without {name}", {"done": done, "of": len(branches)}))
        row = held.get(row_number)
        if row is None:
            began, reduced = time.monotonic(), without(case, k)
            lost = cut_off(reduced)
            if len(lost):
                rest = np.setdiff1d(np.arange(case.num_buses), lost)
                lost = min(lost, rest, key=len)  # the smaller side is named
                buses = ", ".join(str(int(number)) for number in case.buses.number[lost])
                row = OutageRow(row_number, name, Verdict.ISLANDED, message=f"cut off: {'bus' if len(lost) == 1 else 'buses'} {buses}")
            else:
                found = ask(reduced, name)
                results[row_number] = found
                row = _row(found, row_number, name, time.monotonic() - began)
                if found.reason in (Reason.TIMEOUT, Reason.INTERRUPTED):  # asked again when the record is gone on with
                    rows.append(row)
                    continue
            if record is not None:
                record.add(row)
        rows.append(row)
    return tuple(rows), results


def _row(found: Dispatched, number: int, name: str, seconds: float) -> OutageRow:
    worst, attacked, violation = found.worst_margin, found.attacked_margin, found.violation
    assert worst is not None and attacked is not None
    known = worst.certified > -np.inf
    nearest = (attacked.attacked, str(attacked.limit)) if violation is None else (violation.margin, str(violation.limit))
    return OutageRow(
        number, name, found.verdict, worst.certified, str(worst.limit) if known else "", *nearest,
        violation is not None and violation.proved, violation is not None and violation.reproduced, seconds,
        found.unknown or (found.reason.value if found.verdict is Verdict.UNKNOWN else ""),
    )  # fmt: skip


def fingerprint(case: Case, *parts: object) -> str:
    """A short name of a question: of the case's numbers and of what else is asked."""
    digest = hashlib.sha256()
    for table in (case.buses, case.branches, case.generators):
        for each in fields(table):
            digest.update(np.ascontiguousarray(getattr(table, each.name)).tobytes())
    for part in (case.base_mva, case.reference, *parts):
        digest.update(part.tobytes() if isinstance(part, np.ndarray) else repr(part).encode())
    return digest.hexdigest()[:16]


class Record:
    """A CSV file that rows are appended to; `rows` are those that it held. Its first column names the question.

    Raises:
        InvalidInput: it cannot be read or written, or is about something else.
    """

    def __init__(self, path: str | Path, question: str) -> None:
        self.path, self.question = Path(path), question
        columns = ("question", *COLUMNS)
        try:
            text = self.path.read_text() if self.path.exists() else ""
            whole = text[: text.rfind("\n") + 1]  # a line that was cut off is asked again
            lines = list(csv.reader(whole.splitlines()))
            if lines and tuple(lines[0]) != columns:
                raise InvalidInput(f"{path}: this is no table of outages")
            if any(line[0] != question for line in lines[1:]):
                raise InvalidInput(f"{path}: its outages are of another case, dispatch or box of loads")
            self.rows = [OutageRow.read(line[1:]) for line in lines[1:]]
            self.path.write_text(whole)
        except (OSError, ValueError) as error:
            if isinstance(error, InvalidInput):
                raise
            raise InvalidInput(f"{path}: it cannot be used as a table of outages: {error}") from error
        if not lines:
            self._write(columns)

    def add(self, row: OutageRow) -> None:
        """Append a row."""
        self._write((self.question, *row.cells))

    def _write(self, cells: Sequence[str]) -> None:
        try:
            with self.path.open("a", newline="") as file:
                csv.writer(file, lineterminator="\n").writerow(cells)
        except OSError as error:
            raise InvalidInput(f"cannot write {self.path}: {error.strerror}") from error
