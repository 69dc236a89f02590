"""How far a search has come: shares of the gap to 0 that are closed, and how often its tree has to double to close the rest."""

from __future__ import annotations

import math


def gap_closed(before: float, now: float) -> float:
    """The share of a margin's gap to 0 that is closed."""
    return 1.0 - now / before if math.isfinite(before) and before < 0 else float(now > before)


def doublings(before: float, now: float, count: int) -> float:
    """How often a tree of so many subproblems has to double until the gap is closed: each time the bound rises by about as much."""
    done = gap_closed(before, now)
    return math.log2(1 + count) * max(0.0, 1.0 - done) / done if done > 0 else math.inf
