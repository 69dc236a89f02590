"""Disjuncts whose rows may exclude each other: a look at signs, which spares almost all problems the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from milpverify.tuning import Tuning

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from milpverify.spec import Array, Disjunct

    Suspect = tuple[int, NDArray[np.int64]]
    """A disjunct, by its place, and those of its `unsafe` rows that may have a part in it."""


class ReductionTuning(Tuning):
    """What is worth trying to make a problem smaller by its rows alone."""

    at_once: int = 1 << 22
    """Coefficients that are looked at, compared, or sent to HiGHS at once."""
    hard: float = 1024.0
    """What a violation of a row that is not strict costs, in units of one of a strict row: weights may differ by so much."""
    near: float = 1e-7
    """What counts as 0 for numbers of HiGHS, before rationals decide."""
    sweeps: int = 24
    inside: float = 1e-9
    """Projections on every row in search of a point that satisfies all, and by how much it shall satisfy the strict ones."""
    most: int = 20_000
    """Coefficients of inequalities between inputs that rationals are worth."""
    rounds: int = 8
    least: float = 1e-3
    """How often every row may narrow a box, and the share of an input's width that one has to cut off to be worth another round."""


def suspected(disjuncts: Sequence[Disjunct], tuning: ReductionTuning = ReductionTuning()) -> Iterator[Suspect]:
    """The disjuncts that may be contradictory, by place, with the `unsafe` rows that may have a part in it."""
    by_count: dict[int, list[int]] = {}
    for k, d in enumerate(disjuncts):
        by_count.setdefault(len(d.unsafe), []).append(k)
    for count, members in by_count.items():
        size = max(1, count * disjuncts[members[0]].unsafe.y_rows.shape[1])
        for first in range(0, len(members), per := max(1, tuning.at_once // size)):
            part = members[first : first + per]
            if count <= 1:  # a single row contradicts nothing but itself or the box
                kept = np.array([[not row.any() for row in disjuncts[k].unsafe.y_rows] for k in part], dtype=bool).reshape(len(part), count)
            else:
                kept = _opposed(np.sign(np.stack([disjuncts[k].unsafe.y_rows for k in part])))
            for k, rows in zip(part, kept, strict=True):
                if rows.any() or len(disjuncts[k].domain):
                    yield k, np.flatnonzero(rows)


def _opposed(signs: Array) -> NDArray[np.bool_]:
    """The rows all of whose outputs are pulled the other way by other such rows: signs (n, r, ny) -> (n, r)."""
    kept: NDArray[np.bool_] = np.ones(signs.shape[:2], dtype=bool)
    while True:
        here = np.where(kept[:, :, None], signs, 0.0)
        both = np.asarray((here > 0).any(1) & (here < 0).any(1))
        now = kept & ((signs == 0) | both[:, None, :]).all(2)
        if (now == kept).all():
            return kept
        kept = now
