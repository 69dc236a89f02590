"""How a search ends, whatever decided it: a tree over inputs or neurons, whole models, or several of them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from milpverify.result import Reason, Trust

if TYPE_CHECKING:
    from collections.abc import Sequence

    from milpverify.result import Counterexample


@dataclass(frozen=True)
class SearchOutcome:
    """How a search ended: closed, a counterexample, or neither with the reason.

    `lower_bound` is proved for what was searched; it and a closure rest on `trust`. `disagreement` describes a point on which the network's
    runtime and real arithmetic differ; `detail` are counts for the ledger.
    """

    closed: bool
    lower_bound: float
    trust: Trust
    counterexample: Counterexample | None = None
    reason: Reason = Reason.UNDECIDED
    note: str = ""
    disagreement: str = ""
    detail: dict[str, Any] = field(default_factory=dict)


RUN_TOTALS = ("leaves", "oracle_tasks", "oracle_closed", "oracle_ends")
"""Counts of what the searches of a run share, which the last of them knows in full."""


def together(parts: Sequence[SearchOutcome]) -> SearchOutcome:
    """Outcomes about parts of the disjuncts as one about all of them."""
    if len(parts) == 1:
        return parts[0]
    bound = min(p.lower_bound for p in parts)
    trust = Trust.weakest(*(p.trust for p in parts))
    detail: dict[str, Any] = {}
    for part in parts:
        numbers = {k: detail.get(k, 0) + v for k, v in part.detail.items() if isinstance(v, int) and k not in RUN_TOTALS}
        detail = {**detail, **part.detail, **numbers}
    weakest = next((p for p in parts if p.counterexample is not None), next((p for p in parts if not p.closed), parts[0]))
    return replace(weakest, lower_bound=bound, trust=trust, detail=detail)
