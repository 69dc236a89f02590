"""Disjuncts whose rows may exclude each other: a look at signs, which spares almost all problems the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from milpverify.config import Deadline
    from milpverify.reduction.contradictions import Suspect
    from milpverify.spec import Array, Disjunct

MOST = 1 << 22
"""Coefficients that are looked at at once."""


def contradictory(disjuncts: Sequence[Disjunct], deadline: Deadline) -> dict[int, float]:
    """The disjuncts that no network has a point of, by place, each with a proved lower bound of its margin >= 0: inf without any input."""
    suspects = list(_suspects(disjuncts))
    if not suspects:
        return {}
    from milpverify.reduction.contradictions import excluded

    return excluded(disjuncts, suspects, deadline)


def _suspects(disjuncts: Sequence[Disjunct]) -> Iterable[Suspect]:
    """The disjuncts that may be contradictory, by place, with the `unsafe` rows that may have a part in it."""
    by_count: dict[int, list[int]] = {}
    for k, d in enumerate(disjuncts):
        by_count.setdefault(len(d.unsafe), []).append(k)
    for count, members in by_count.items():
        size = max(1, count * disjuncts[members[0]].unsafe.y_rows.shape[1])
        for first in range(0, len(members), per := max(1, MOST // size)):
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
