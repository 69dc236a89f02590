"""What every part of a search shares, in one frozen value."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from milpverify.balls.norm import Norm
from milpverify.config import Options
from milpverify.propagation.request import BoundRequest, BoundTuning, CostTuning, Method
from milpverify.search.ledger import Reporter
from milpverify.tuning import Tuning

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from milpverify.config import Deadline, SearchOptions
    from milpverify.graph import Graph
    from milpverify.propagation.state import Bounds
    from milpverify.search.attack_turns import AttackTurns
    from milpverify.search.ledger import Ledger
    from milpverify.search.solver.leaves import Leaves
    from milpverify.search.solver.oracle import Oracle
    from milpverify.spec import Array, Problem
    from milpverify.tuning import AnyTuning


class SearchTuning(Tuning):
    """How every search goes."""

    reports: float = 0.2
    """Seconds between two reports of a search."""
    frontier_bytes: int = 1 << 30
    """Beyond this much a search dives: it takes the subproblems nearest to being closed, so that the frontier stops growing."""


@dataclass(frozen=True, eq=False)
class SearchContext:
    """The problem, the limits and the helpers of a search.

    `graph` is in float64, on the device that bounds are computed on; `points` are the best inputs known, (nx,) per disjunct of the problem.
    `leaves` decides subproblems without a split left, or None; `oracle` is a solver to work beside the tree, or None; `attacks` come
    between batches of the tree, or are None.
    """

    problem: Problem
    graph: Graph
    deadline: Deadline
    options: Options = field(default_factory=Options)
    reporter: Reporter = field(default_factory=lambda: Reporter(None))
    points: Mapping[int, Array] = field(default_factory=dict)
    leaves: Leaves | None = None
    oracle: Oracle | None = None
    attacks: AttackTurns | None = None

    @property
    def switches(self) -> SearchOptions:
        """Which parts of the search are on."""
        return self.options.search

    def tuned(self, kind: type[AnyTuning]) -> AnyTuning:
        """The tuning numbers of a kind."""
        return self.options.search.tuned(kind)

    def request(self, known: dict[int, Bounds] | None = None, method: Method = Method.BACKWARD, second_order: bool = False) -> BoundRequest:
        """What bounds of boxes are asked for until the deadline, by the numbers of the search."""
        made = BoundRequest(known, deadline=self.deadline, method=method, second_order=second_order)
        return replace(made, tuning=self.tuned(BoundTuning), cost=self.tuned(CostTuning))

    @property
    def ledger(self) -> Ledger:
        """Who closed what."""
        return self.reporter.ledger

    @property
    def delta(self) -> float:
        """A margin known to be this close to zero is not divided further; -inf for piecewise-linear networks, which are decided.

        Those whose inputs are confined to an L2 ball are curved, too.
        """
        curved = self.graph.ball is not None and self.graph.ball.norm is Norm.L2
        return self.options.delta if curved or not self.graph.piecewise_linear else -math.inf

    @cached_property
    def clock(self) -> Callable[[], float]:
        """What measures the search's own work, in seconds.

        What else a machine does says nothing of a batch; but the time of several threads, or of a GPU, is that of the wall clock.
        """
        alone = self.graph.device.type == "cpu" and torch.get_num_threads() == 1
        return time.process_time if alone else time.perf_counter

    def until(self, deadline: Deadline) -> SearchContext:
        """The same with another deadline."""
        return replace(self, deadline=deadline)
