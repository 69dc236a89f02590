"""Bound tightening: branch-and-bound for the ends of pre-activations, whose relaxations then are tighter everywhere.

The lower end of a pre-activation is a small verification problem of its own, about the layers before it alone (optimisation-based
bound tightening; by models in Tjeng et al., arXiv 1711.07356). Both ends of the neurons that matter most are subproblems of one
frontier, bounded in batches by beta-CROWN; a target ends when most of what sampled points leave to gain is gained, or when the neuron
is stable. Early layers come first: what they gain tightens all that follows. All of it is ROUNDED. What a solver beside the tree finds
of the same bounds (trust SOLVER) is kept apart (`solver_targets`), and met only where the options allow that.

What an end is worth is read off the root: for a ReLU over [l, u] the gap of the relaxation is u |l| / (u - l), its derivatives are
(u / (u - l))^2 by l and (l / (u - l))^2 by u; times the multiplier that arrives at the neuron that is the gain to first order.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from milpverify.arithmetic.rounding import down
from milpverify.balls.dual import lowest
from milpverify.config import Branching, Deadline, SearchOptions
from milpverify.graph import Graph, Node, evaluate
from milpverify.operators import Reshape
from milpverify.propagation.interval import step
from milpverify.propagation.optimised.beta import Dual
from milpverify.propagation.relevance import needed
from milpverify.propagation.request import BoundRequest, BoundTuning, CostTuning
from milpverify.propagation.screening import functions_of, undecided
from milpverify.propagation.state import Bounds
from milpverify.search.bounding import BatchBounds, bound_batch, is_out_of_memory, refine
from milpverify.search.frontier import Frontier
from milpverify.search.groups import Group, GroupTuning
from milpverify.search.neuron_split.bounder import Bounder, NeuronTuning
from milpverify.search.neuron_split.branching import Brancher, children
from milpverify.spec import Disjunct, Rows
from milpverify.tuning import Tuning

if TYPE_CHECKING:
    from collections.abc import Callable

    from milpverify.propagation.relevance import Needed
    from milpverify.propagation.state import State
    from milpverify.search.neuron_split.subproblems import Subproblems

    Clock = Callable[[], float]


class RootTuning(Tuning):
    """How the bounds of a root's pre-activations are tightened, by branching and by a solver."""

    most: int = 128
    """The most neurons of a layer that are tightened at a time."""
    enough: float = 0.8
    """A target ends when so much of what points leave to gain is gained."""
    batch: int = 256
    candidates: int = 4
    root_iterations: int = 20
    iterations: int = 6
    """Subproblems bounded at a time, splits compared for one, and steps of the optimiser that bound targets and their subproblems."""
    binaries: int = 150
    """The most unstable neurons before a layer whose models are worth making."""
    each: int = 32
    """Neurons of a layer, the best first, of which bounds are asked for before the next layer's."""
    last: int = 8
    least: float = 0.02
    """Of so many answers in a row the mean share taken off the bound must be so much for more to be asked for."""


@dataclass(frozen=True)
class _Turn:
    """What a layer may take: until the deadline, `end` by the clock, or `most` subproblems; `between` is called between batches."""

    deadline: Deadline
    end: float
    most: float
    between: Callable[[], None] | None


class Tightening:
    """A root whose pre-activation bounds are tightened.

    `root` is the best so far. `bounded` counts subproblems, `first_unstable` the undecided pre-activations at first; `layers` are the
    pre-activations that are tightened, in their order.

    Args:
        graph: in float64.
        group: over the root's box; its domain rows are not used.
        root: of one box.
        clock: of the time that tightening may take.
        search: the numbers.
    """

    def __init__(
        self, graph: Graph, group: Group, root: BatchBounds, clock: Clock = time.perf_counter, search: SearchOptions = SearchOptions()
    ) -> None:
        self.graph, self.group, self.root, self.clock, self.search = graph, group, root, clock, search
        self.tuning = search.tuned(RootTuning)
        self.bounding = replace(search.tuned(NeuronTuning), candidates=self.tuning.candidates)
        self.bounded, self.per, self.out_of_memory = 0, self.tuning.batch, False
        self._bounder: tuple[BatchBounds, Bounder] | None = None
        self._needed: tuple[Group, Needed] | None = None
        self._each = math.inf  # seconds of a layer
        kinked = [z for z in graph.readers if all(f.pieces is not None for f in functions_of(graph, z) or ()) and functions_of(graph, z)]
        # The bounds of a first layer are exact.
        self.layers = tuple(z for z in kinked if any(i in graph.ancestors[z] for i in graph.nonlinear))
        self.first_unstable = self.unstable

    @property
    def unstable(self) -> int:
        """How many pre-activations that the rows depend on the root leaves undecided."""
        return sum(int(self._undecided(z).sum()) for z in self.graph.readers)

    def unstable_before(self, z: int) -> int:
        """How many of them lie before a node."""
        graph = self.graph
        before = {reading.node for y, readings in graph.readings.items() if y in graph.ancestors[z] for reading in readings}
        return sum(int(self._undecided(i).sum()) for i in before)

    def _undecided(self, z: int) -> Tensor:
        if self._needed is None or self._needed[0] is not self.group:
            self._needed = self.group, needed(self.graph, self.group.y_rows)
        bounds, parts = self.root.state[z].bounds, self._needed[1]
        loose = undecided(self.graph, z, self.root.state, bounds.lower.flatten(1), bounds.upper.flatten(1))[0]
        return loose & parts[z] if z in parts else loose

    def run(
        self, deadline: Deadline, seconds: float = math.inf, limit: float = math.inf, between: Callable[[], None] | None = None
    ) -> None:
        """Tighten every layer in its turn, the first before the others.

        Args:
            seconds: what it may take by `clock`, and
            limit: in subproblems; what is left of either is shared equally by the layers to come.
            between: called between batches.
        """
        end, most = self.clock() + seconds, self.bounded + limit
        self._each = seconds / max(1, len(self.layers))
        for k, z in enumerate(self.layers):
            turns = len(self.layers) - k
            if deadline.expired() or self.out_of_memory:
                return
            now = self.clock()
            turn = _Turn(deadline, now + max(0.0, end - now) / turns, self.bounded + max(0.0, most - self.bounded) / turns, between)
            try:
                tighter = self._layer(z, turn)
                if tighter is not None:
                    self.rebuild({z: tighter}, deadline)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                self.out_of_memory = True

    def refine(self, deadline: Deadline) -> None:
        """Go on with optimising the root's slopes."""
        try:
            self.root = self._refined(self.root, deadline.within(self.root.unrefined), paced=True)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            self.root = replace(self.root, unrefined=0.0)

    def rebuild(self, tighter: dict[int, Bounds], deadline: Deadline) -> None:
        """The root anew, with tighter bounds of some nodes."""
        found = self.root
        known = {i: tighter[i].meet(s.bounds) if i in tighter else s.bounds for i, s in found.state.items()}
        ends = found.state[0].bounds
        now = bound_batch(self.graph, self.group, ends.lower, ends.upper, torch.float64, self._request(deadline, known))
        paced = self._each < math.inf
        now = self._refined(now, deadline.within(self._each) if paced else deadline, paced)
        self.root = replace(now, margins=torch.maximum(now.margins, found.margins))

    def _refined(self, found: BatchBounds, deadline: Deadline, paced: bool) -> BatchBounds:
        return refine(self.graph, self.group, found, self._request(deadline), self.search.tuned(GroupTuning), paced)

    def _request(self, deadline: Deadline, known: dict[int, Bounds] | None = None) -> BoundRequest:
        return BoundRequest(known, deadline=deadline, tuning=self.search.tuned(BoundTuning), cost=self.search.tuned(CostTuning))

    # -- targets ------------------------------------------------------------------------------------------------------------

    def targets(self, z: int) -> tuple[Tensor, Tensor]:
        """The undecided entries of a layer that matter most, the best first, (n,), and what their lower and upper ends are worth (n, 2)."""
        index = self._undecided(z).nonzero(as_tuple=True)[0]
        bounds = self.root.state[z].bounds
        low, high = (t.flatten()[index] for t in (bounds.lower, bounds.upper))
        width = (high - low).clamp(min=1e-300)
        worth = torch.stack([(high / width).square(), (low / width).square()], 1) * self._multipliers(z)[index].unsqueeze(1)
        gain = (worth * torch.stack([-low, high], 1).clamp(min=0.0)).sum(1)
        order = gain.argsort(descending=True, stable=True)[: self.tuning.most]
        order = order[gain[order] > 0]  # of the others no open row is felt to depend
        return index[order], worth[order]

    def _multipliers(self, z: int) -> Tensor:
        """The largest of what arrives at the entries of a pre-activation from the rows of the open disjuncts, (size,) float64."""
        if self._bounder is None or self._bounder[0] is not self.root:
            self._bounder = self.root, Bounder(self.graph, self.group, self.root.state, Deadline(), self.bounding)
        bounder = self._bounder[1]
        of = bounder.relaxations
        arrived = torch.zeros(self.graph.nodes[z].size, dtype=torch.float64, device=self.graph.device)
        if z not in of.entries or not len(of.entries[z]):
            return arrived
        subs = bounder.first()
        rows, _, x_rows = bounder.rows_of(subs.disjunct)
        primal = of.primal(bounder.domain_of(subs), rows, Dual(subs.slopes, subs.beta), x_rows)
        entries = of.entries[z]
        for reading in self.graph.readers[z]:
            if reading.reader in primal.multipliers:
                here = primal.multipliers[reading.reader].abs().double().amax((0, 1))
                arrived[entries] = torch.maximum(arrived[entries], here)
        return arrived

    # -- one layer ----------------------------------------------------------------------------------------------------------

    def _layer(self, z: int, turn: _Turn) -> Bounds | None:
        """Tighter bounds of one layer; None where there is nothing to do."""
        index, worth = self.targets(z)
        if not len(index):
            return None
        bounds = self.root.state[z].bounds
        low, high = (t.flatten()[index] for t in (bounds.lower, bounds.upper))
        graph, state = up_to(self.graph, z, self.root.state)
        # Rows are scaled by what they are worth, in powers of two, so that the lowest bound is where most is to be gained.
        scale = torch.exp2(torch.log2(worth.clamp(min=1e-6 * float(worth.max().clamp(min=1e-300)))).round())
        side = torch.tensor([1.0, -1.0], dtype=torch.float64, device=index.device)
        known = torch.stack([low, -high], 1) * scale  # (n, 2) lower bounds of the rows
        rows = torch.zeros(2 * len(index), graph.ny, dtype=torch.float64, device=index.device)
        rows[torch.arange(len(rows), device=index.device), index.repeat_interleave(2)] = (scale * side).flatten()
        bounder = Bounder(graph, _group(self.group, rows, torch.zeros_like(known).flatten()), state, turn.deadline, self.bounding)
        subs, _, found = bounder.bound(bounder.first(), self.tuning.root_iterations)
        known = torch.maximum(known.flatten(), subs.bound)
        threshold = self._threshold(graph, rows, found.coefficients.flatten(0, 1), known)
        bounder = Bounder(graph, _group(self.group, rows, threshold), state, turn.deadline, self.bounding)
        proved = self._branch(bounder, replace(subs, bound=down(known - threshold)), turn)
        known = torch.maximum(known, down(proved + threshold)).reshape(-1, 2) / scale
        lower, upper = bounds.lower.clone(), bounds.upper.clone()
        lower.view(-1)[index] = torch.maximum(low, known[:, 0])
        upper.view(-1)[index] = torch.minimum(high, -known[:, 1])
        return Bounds(lower, upper)

    def _threshold(self, graph: Graph, rows: Tensor, coefficients: Tensor, known: Tensor) -> Tensor:
        """Where targets may end: short of the least value seen at a point, and at 0, (2 n,)."""
        ends = self.root.state[0].bounds
        points = lowest(graph.ball, coefficients[None], ends.lower, ends.upper)[0]
        values = evaluate(graph.to(torch.float32, graph.device), points.float()).double()
        seen = (values @ rows.T).amin(0).clamp(max=0.0)
        return torch.where(seen < 0, known + self.tuning.enough * (seen - known).clamp(min=0.0), 0.0)

    def _branch(self, bounder: Bounder, subs: Subproblems, turn: _Turn) -> Tensor:
        """Split the targets until they end; proved lower bounds of their margins, (2 n,)."""
        proved = torch.full_like(subs.bound, torch.inf)
        brancher = Brancher(bounder, Branching.FIRST_ORDER)
        subs = replace(subs, best=brancher.rank(subs, bounder.domain_of(subs)))
        frontier = Frontier(subs)

        def sift(some: Subproblems) -> None:
            over = (some.bound > 0) | (some.best[:, 0] < 0)
            proved.scatter_reduce_(0, some.disjunct[over], some.bound[over], "amin")
            frontier.push(some.take(~over))

        sift(subs)
        self.bounded += len(subs)
        while len(frontier) and not turn.deadline.expired() and self.bounded < turn.most and self.clock() < turn.end:
            parents = frontier.pop(max(1, self.per // 2))
            try:
                fresh, domain, _ = bounder.bound(children(bounder, parents, parents.best[:, 0]), self.tuning.iterations)
                fresh = replace(fresh, best=brancher.rank(fresh, domain))
            except (MemoryError, RuntimeError) as error:
                frontier.push(parents)
                if not is_out_of_memory(error):
                    raise
                self.per //= 2
                if not self.per:
                    self.out_of_memory = True
                    break
                continue
            self.bounded += len(fresh)
            sift(fresh)
            if turn.between is not None:
                turn.between()
        left = frontier.all()
        return proved.scatter_reduce(0, left.disjunct, left.bound, "amin")


def up_to(graph: Graph, z: int, known: State) -> tuple[Graph, State]:
    """The network that ends at a node, flattened, and its state."""
    node = graph.nodes[z]
    part = Graph((*graph.nodes[: z + 1], Node(z + 1, Reshape(node.shape, (node.size,)), (z,), (node.size,))), z + 1, device=graph.device)
    state = {i: known[i] for i in range(z + 1)}
    ends = state[0].bounds
    return part, {**state, z + 1: step(part, part.nodes[z + 1], state, ends.lower, ends.upper, part)}


def _group(group: Group, rows: Tensor, rhs: Tensor) -> Group:
    """A disjunct for every row, on the outputs of a part of the network."""
    nx, (count, ny) = group.box.size, rows.shape
    one = Disjunct(group.box, Rows.on_outputs(np.zeros((1, ny)), [0.0], nx), Rows.none(nx, ny))  # stands for all: only the rows count
    place = torch.arange(count, device=rows.device)
    return Group(group.box, tuple(range(count)), (one,) * count, rows, None, rhs, place, place, torch.zeros_like(place, dtype=torch.bool))
