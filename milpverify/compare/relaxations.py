"""Bounds of the margin by relaxations, each the meet of its predecessor's bounds and its own.

    ibp           intervals; rows as functions of the last nonlinear nodes
    forward       linear forms carried forward (beside the chain), and a backward pass for the rows
    crown         a backward pass for every undecided pre-activation, and for the rows
    alpha-crown   slopes optimised for every undecided pre-activation and every row, in float64, not stopped at the sign
    lp            the linear relaxation over the intermediate bounds of alpha-crown, with its final lines besides the encoding's own
    lp+obbt       the same after both ends of every undecided pre-activation were tightened by linear programs, layer by layer

So the bounds of ibp, crown, alpha-crown, lp and lp+obbt ascend by construction. Every one is proved with bounds that hold under rounding;
those of linear programs rest on multipliers that are checked (`linear_relaxation`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

import torch

from milpverify.arithmetic.rounding import ieee
from milpverify.compare.rows import Answer, Word
from milpverify.encode.curves import Relaxed
from milpverify.linear_relaxation import margin_bound, output_bounds
from milpverify.propagation.interval import propagate
from milpverify.propagation.optimised.alpha import AlphaOptions, Slopes, alpha_crown, optimise
from milpverify.propagation.relevance import refinable
from milpverify.propagation.request import BoundRequest, Method
from milpverify.propagation.screening import undecided
from milpverify.propagation.state import Bounds, State
from milpverify.result import Trust
from milpverify.run_info import threads
from milpverify.search.bounding import BatchBounds, Prepared, bound_batch
from milpverify.search.groups import Group, groups
from milpverify.search.tightening.tighten import up_to
from milpverify.solvers.process import SolverProcess

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from milpverify.compare.rows import Tell
    from milpverify.config import Deadline
    from milpverify.graph import Graph
    from milpverify.spec import Problem

OPTIONS = AlphaOptions(iterations=20)
"""How slopes are optimised."""


class Level(Enum):
    """How much a relaxation takes into account."""

    IBP = "ibp"
    FORWARD = "forward"
    CROWN = "crown"
    ALPHA_CROWN = "alpha-crown"
    LP = "lp"
    LP_OBBT = "lp+obbt"


@dataclass(eq=False)
class Root:
    """The bounds of a group of disjuncts that share a box, which only become tighter.

    `margins` (1, D) are proved, `state` is that of all nodes; `slopes` are the rows' own after they were optimised.
    """

    graph: Graph
    group: Group
    process: SolverProcess
    deadline: Deadline
    margins: Tensor = field(init=False)
    state: State = field(init=False)
    slopes: Slopes = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.lower, self.upper = (torch.tensor(side)[None] for side in (self.group.box.lower, self.group.box.upper))
        self.prepared = Prepared.of(self.graph, self.group)
        self.margins = torch.full((1, self.group.count), -torch.inf, dtype=torch.float64)

    def ibp(self) -> None:
        """Interval bound propagation."""
        self.state = propagate(self.graph, self.lower, self.upper, torch.float64)
        self._raise(self.group.margins(self.prepared.ranges.lower(self.state)))

    def forward(self) -> None:
        """Forward linear forms."""
        self._bounded(Method.FORWARD)

    def crown(self) -> None:
        """CROWN with all intermediate bounds."""
        self._bounded(Method.BACKWARD)

    def alpha_crown(self) -> None:
        """Slopes optimised, of intermediate bounds first, then of the rows."""
        graph, group, request = self.graph, self.group, BoundRequest(needed=self.prepared.needed, deadline=self.deadline)
        self.state, table = alpha_crown(graph, self.state, torch.float64, OPTIONS, request)
        x_rows = None if group.x_rows is None else group.x_rows[None]
        rows, self.slopes = optimise(graph, self.state, table, group.y_rows[None], OPTIONS, request, x_rows=x_rows)
        self._raise(group.margins(torch.maximum(rows.lower, self.prepared.ranges.lower(self.state))))

    def linear_program(self) -> None:
        """One linear program for the margin of every disjunct."""
        found = [
            margin_bound(self.graph, self.state, disjunct, (), self.process, self.deadline, self.lines(k))
            for k, disjunct in enumerate(self.group.disjuncts)
        ]
        self._raise(torch.tensor([found], dtype=torch.float64))

    def tighten(self) -> None:
        """Both ends of every undecided pre-activation behind the first layer by linear programs, then all bounds anew from these."""
        for node in refinable(self.graph):
            z = node.id
            if not any(i in self.graph.ancestors[z] for i in self.graph.nonlinear):
                continue  # intervals are exact there
            bounds = self.state[z].bounds
            low, high = (side.flatten(1).clone() for side in (bounds.lower, bounds.upper))
            index = undecided(self.graph, z, self.state, low, high)[0].nonzero(as_tuple=True)[0]
            if not len(index) or self.deadline.expired():
                continue
            part, state = up_to(self.graph, z, self.state)
            below, above = map(torch.from_numpy, output_bounds(part, state, self.process, self.deadline, index.numpy()))
            low[0, index], high[0, index] = torch.maximum(low[0, index], below), torch.minimum(high[0, index], above)
            self._bounded(Method.BACKWARD, {z: Bounds(low.reshape(bounds.lower.shape), high.reshape(bounds.lower.shape))})
        self.alpha_crown()

    def _bounded(self, method: Method, tighter: dict[int, Bounds] | None = None) -> None:
        known = {i: s.bounds for i, s in self.state.items()}
        known |= {i: bounds.meet(known[i]) for i, bounds in (tighter or {}).items()}
        request = BoundRequest(known, deadline=self.deadline, method=method)
        found: BatchBounds = bound_batch(self.graph, self.group, self.lower, self.upper, torch.float64, request, self.prepared)
        self.state = found.state
        self._raise(found.margins)

    def _raise(self, margins: Tensor) -> None:
        self.margins = torch.maximum(self.margins, margins)

    def lines(self, place: int) -> Relaxed:
        """The final slopes of a disjunct's rows beside the envelopes."""
        own = self.group.row[self.group.disjunct == place]

        def of(node: int, k: Tensor) -> Tensor:
            """(rows, *shape); lines of a node that has nothing to optimise are those of all rows."""
            return k[0, own] if k.dim() == 2 + len(self.graph.nodes[node].shape) else k

        slopes = {i: (tuple(of(i, k) for k in low), tuple(of(i, k) for k in high)) for i, (low, high) in self.slopes.items()}
        return Relaxed(slopes)


_CHAIN = (Root.ibp, Root.crown, Root.alpha_crown, Root.linear_program)
STEPS: dict[Level, tuple[Callable[[Root], None], ...]] = {
    Level.IBP: _CHAIN[:1],
    Level.FORWARD: (Root.ibp, Root.forward),
    Level.CROWN: _CHAIN[:2],
    Level.ALPHA_CROWN: _CHAIN[:3],
    Level.LP: _CHAIN,
    Level.LP_OBBT: (*_CHAIN, Root.tighten, Root.linear_program),
}


def relax(problem: Problem, level: Level, deadline: Deadline, tell: Tell) -> Answer:
    """The bound of a relaxation; what was proved until then where time is over first."""
    with SolverProcess("highs") as process:
        return concluded(raised(problem, level, deadline, tell, process))


def raised(problem: Problem, level: Level, deadline: Deadline, tell: Tell, process: SolverProcess) -> list[Root]:
    """All groups of disjuncts, bounded step by step as far as the deadline allows."""
    graph = problem.graph.to(torch.float64, "cpu")
    with torch.no_grad(), ieee(), threads(1):
        roots = [Root(graph, group, process, deadline) for group in groups(problem)]
        for number, step in enumerate(STEPS[level]):
            for root in roots:
                if number and deadline.expired():
                    return roots
                step(root)
            tell(concluded(roots))
    return roots


def concluded(roots: list[Root]) -> Answer:
    """What bounds prove."""
    if not roots:
        return Answer(Word.UNSAT, math.inf, Trust.EXACT, "the unsafe set is empty")
    bound = min(float(root.margins.amin()) for root in roots)
    if all(bool(root.group.closed(root.margins).all()) for root in roots):
        return Answer(Word.UNSAT, bound, Trust.ROUNDED)
    late = roots[0].deadline.expired()
    return Answer(Word.TIMEOUT if late else Word.UNKNOWN, bound, Trust.ROUNDED if bound > -math.inf else None)
