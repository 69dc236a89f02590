"""What rows on the same problem may not say: bounds out of order are reported, a bound above a point's margin is a contradiction."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

from milpverify.compare.methods import ASCENDING
from milpverify.compare.rows import Witness, Word
from milpverify.errors import Contradiction

if TYPE_CHECKING:
    from collections.abc import Sequence

    from milpverify.compare.rows import Row


def refute(rows: Sequence[Row]) -> None:
    """Confront every bound with every point, for rows on one problem.

    Raises:
        Contradiction: a proved lower bound lies above the margin of a validated point, or the property is called proved against a
            counterexample; a tool's word alone raises nothing (`breaks`).
    """
    points = [(row, point) for row in rows if (point := witness_of(row)) is not None]
    for row in rows:
        for other, point in points:
            above = row.lower_bound > point.margin
            if above or (row.verdict is Word.UNSAT and row.trust is not None and other.verdict is Word.SAT):
                claim = f"a margin of at least {row.lower_bound:.17g}" if above else "that the property holds"
                trust = "" if row.trust is None else f" (trust {row.trust.value})"
                raise Contradiction(f"{row.problem}: {row.method} proves {claim}{trust}, but {other.method} has judged {point}")


def witness_of(row: Row) -> Witness | None:
    """The best point of a row; of one that was read from a file, what its verdict and gap say of it."""
    if row.witness is not None:
        return row.witness
    if row.verdict is Word.SAT and row.trust is not None:
        return Witness(0.0, ())
    if (least := optimum_of(row)) is not None:
        return Witness(least, ())
    return None


def optimum_of(row: Row) -> float | None:
    """An upper bound of the margin that the row of an exact run holds, None where it found none."""
    if row.method.partition(":")[0] != "exact" or row.gap is None:
        return None
    return math.nextafter(row.lower_bound + row.gap, math.inf)


def breaks(rows: Sequence[Row]) -> list[str]:
    """Where finished rows on one problem contradict what is a theorem, in words, and tools what is proved."""
    found = []
    chain = sorted((r for r in rows if r.method in ASCENDING and r.verdict.finished), key=lambda r: ASCENDING.index(r.method))
    for low, high in pairwise(chain):
        if low.lower_bound > high.lower_bound:
            found.append(
                f"{low.problem}: the bound {high.lower_bound:.9g} of {high.method} is below the bound {low.lower_bound:.9g} of {low.method}"
            )
    falsified = [r for r in rows if r.verdict is Word.SAT]
    proved = [r for r in rows if r.verdict is Word.UNSAT and r.trust is not None]
    for row in rows:
        if row.verdict is Word.UNSAT and row.trust is None and falsified:
            found.append(f"{row.problem}: {row.method} says unsat, but the counterexample of {falsified[0].method} holds")
        if row.verdict is Word.UNKNOWN and row.message.startswith("sat was claimed") and proved:
            found.append(f"{row.problem}: {row.method} says sat, but {proved[0].method} proves the property")
    return found
