"""Bisections as the tests want them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from milpverify.config import Deadline, SearchOptions
from milpverify.search.groups import groups
from milpverify.search.input_split.bisection import Bisection

if TYPE_CHECKING:
    from milpverify.search.bounding import BatchBounds
    from milpverify.search.ledger import Reporter
    from milpverify.search.solver.leaves import Leaves
    from milpverify.search.solver.oracle import Oracle
    from milpverify.spec import Problem

EVERYTHING = SearchOptions()


def bisection(
    problem: Problem,
    deadline: Deadline | float = 60.0,
    options: SearchOptions = EVERYTHING,
    root: BatchBounds | None = None,
    leaves: Leaves | None = None,
    oracle: Oracle | None = None,
    reporter: Reporter | None = None,
) -> Bisection:
    """The bisection of a problem whose disjuncts share a box, in float32; a deadline may be seconds."""
    (group,) = groups(problem)
    until = deadline if isinstance(deadline, Deadline) else Deadline(deadline)
    with torch.no_grad():
        return Bisection(problem, problem.graph, group, until, torch.float32, reporter, root, options, leaves, oracle)
