"""One disjunct of a curved network, decided by linear and mixed-integer models that are refined where it matters.

In turns, until a dual bound decides:

1. The linear relaxation (`encode` without cuts) bounds the margin, and its point is tried as a counterexample.
2. Every pre-activation is bounded from both sides over the relaxation with the row "the margin is at most a little above 0" (a sweep:
   optimality-based bound tightening, Gleixner et al., J. Global Optim. 2017). What it proves holds at every unsafe point, and the next
   relaxation is tighter for it. This goes on as long as ranges shrink.
3. A mixed-integer model with the few neurons parted whose relaxation costs the bound most, at the last point: error times what the margin
   changes with it. Its start is the last point, run through the network.

So what is proved says: no point of the disjunct has a margin of at most `cutoff`, a positive number near a solver's tolerance; the
margin is then more than that. Everything rests on solvers' dual bounds less a safety margin (trust SOLVER).
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from milpverify.balls.norm import Norm
from milpverify.config import CurveEncoding
from milpverify.encode.curves import Cut
from milpverify.encode.encoding import ModelForm
from milpverify.encode.milp import encode
from milpverify.encode.model import NumericallyUnfit
from milpverify.encode.neurons import is_taken
from milpverify.graph import evaluate_all
from milpverify.inquiries.inquiry import Inquiry, Question, Questions, proof_of_emptiness
from milpverify.propagation.interval import follow, step
from milpverify.propagation.state import Bounds, NodeState
from milpverify.relaxations.registry import rule_of
from milpverify.solvers.base import Capability, SolveOutcome, SolverStatus, SweepOutcome
from milpverify.solvers.model import Model, Sweep
from milpverify.solvers.registry import load
from milpverify.solvers.trusted_bound import safe_dual_bound, safe_sweep_bounds, safety_margin
from milpverify.spec import Box
from milpverify.tuning import Tuning

if TYPE_CHECKING:
    from milpverify.config import Deadline, Options
    from milpverify.encode.cut_forms import Split
    from milpverify.encode.encoding import Encoding, NodeRanges
    from milpverify.graph import Graph
    from milpverify.inquiries.judging import Judging
    from milpverify.operators import Nonlinear
    from milpverify.propagation.state import State
    from milpverify.solvers.base import Progress
    from milpverify.solvers.model import Index
    from milpverify.spec import Array, Disjunct


class RefinementTuning(Tuning):
    """What is refined in a round, and how long ranges are tightened before."""

    parted: int = 6
    share: float = 0.1
    """At most so many neurons are parted in a round: those whose worth is at least such a share of the greatest."""
    edge: float = 0.1
    """A breakpoint stays so far from the ends of the piece that it parts, in units of it."""
    exact: float = 1e-9
    """An error of a neuron, relative to its values, that no breakpoint mends."""
    shrunk: float = 0.95
    sweeps: int = 5
    """Sweeps go on as long as they leave less than so much of the widths; at most so many in a row."""
    sweep_share: float = 0.3
    """The share of the time left that one sweep may take."""
    inputs: int = 64
    """Of so many inputs the box is tightened, too."""


def native_to(solver: str, graph: Graph, options: Options) -> frozenset[Capability]:
    """What of a network a solver gets as it is: products and balls always, functions where the options say so; if it takes them."""
    products = (graph.ball is not None and graph.ball.norm is Norm.L2) or any(op.bilinear for op in graph.nonlinearities.values())
    wanted = {Capability.QUADRATIC: products, Capability.FUNCTIONS: options.encoding is CurveEncoding.NATIVE}
    return load(solver).capabilities & {what for what, asked in wanted.items() if asked}


@dataclass(eq=False)
class Refinement(Inquiry):
    """A disjunct under refinement.

    `ranges` hold at every point that the split decisions allow whose margin is at most `cutoff`. `bound` is a proved lower bound of the
    margin (trust SOLVER), `least` the least margin of a point seen, at `x`; `asked` is the mixed-integer model under way. `form` says
    what a solver gets as it is, `cuts` where the rest is parted.
    """

    graph: Graph
    disjunct: Disjunct
    ranges: NodeRanges
    judging: Judging
    deadline: Deadline
    decisions: tuple[Split, ...] = ()
    form: ModelForm = field(default_factory=ModelForm)
    x: Array | None = None
    cuts: dict[tuple[int, int], Cut] = field(default_factory=dict)
    bound: float = -math.inf
    least: float = math.inf
    cutoff: float = math.inf
    rounds: int = 0
    asked: Model | None = None
    conditional: bool = False
    tuning: RefinementTuning = RefinementTuning()

    def under_the_rows(self) -> Refinement:
        """The same where the ranges that it begins with hold at unsafe points only: all that can be shown is that there are none."""
        self.conditional, self.cutoff = True, math.ulp(0.0)
        return self

    @property
    def swept(self) -> NodeRanges | None:
        return self.ranges if self.conditional else None

    @property
    def closed(self) -> bool:
        """Whether no unsafe point is left."""
        return self.disjunct.closes(self.bound)

    def questions(self) -> Questions:
        """What to ask, and what is made of the replies; ends once the disjunct is closed, falsified or can be refined no more.

        Where it was left, it can be taken up again.

        Raises:
            NumericallyUnfit, OutOfTime: no model can be made.
        """
        while not self.decided:
            self.rounds += 1
            linear = yield from self._tightened()
            if linear is None or self.decided:
                return
            encoding, point = linear
            if self.cuts or self.form.native or encoding.model.integer.any():
                encoding = self._whole()
                self.asked = encoding.model
                reply = yield encoding.model
                self.asked = None
                assert isinstance(reply, SolveOutcome)
                yield from self._learn(encoding, encoding.model, reply)
                if self.decided:
                    return
                if reply.point is None or reply.status not in (SolverStatus.OPTIMAL, SolverStatus.TARGET):
                    return
                point = reply.point
            if not self._refine(encoding, point):
                return

    def share(self, question: Question) -> float:
        return self.tuning.sweep_share if isinstance(question, Sweep) else super().share(question)

    @property
    def decided(self) -> bool:
        """Whether the answer is known."""
        return self.closed or self.judging.counterexample is not None

    def _encode(self, whole: bool = False) -> Encoding:
        """The model with binaries and all else that a solver takes, or the linear relaxation of what has no binaries."""
        within = replace(self.disjunct, box=self._box())
        form = replace(self.form, cuts=self.cuts) if whole else ModelForm(tuning=self.form.tuning)
        start = self.x if whole else None
        return encode(self.graph, self.ranges, within, start, self.decisions, self.deadline, form)

    def _whole(self) -> Encoding:
        """The model with binaries; products whose ranges a solver's tolerance does not carry have pieces."""
        try:
            return self._encode(whole=True)
        except NumericallyUnfit:
            if self.form.native != {Capability.QUADRATIC}:
                raise
            self.form = replace(self.form, native=frozenset())
            return self._encode(whole=True)

    def _box(self) -> Box:
        low, high = (t.reshape(-1).numpy() for t in self.ranges[0])
        return Box(np.minimum(low, high), np.maximum(low, high))

    # -- bounds -------------------------------------------------------------------------------------------------------------

    def _learn(self, encoding: Encoding, model: Model, reply: SolveOutcome) -> Questions:
        """Raise the bound by an outcome of a margin model; that one is infeasible is proved by its emptiness model."""
        self._raise(safe_dual_bound(reply, model))
        if reply.status is SolverStatus.INFEASIBLE:
            self._raise((yield from proof_of_emptiness(model)))
        if reply.point is not None:
            self._try(encoding.x_of(reply.point), reply.primal)

    def _raise(self, bound: float) -> None:
        self.bound = max(self.bound, min(bound, self.cutoff) if self.conditional else bound)

    def heard(self, progress: Progress) -> None:
        if self.asked is not None:
            self._raise(safe_dual_bound(SolveOutcome(SolverStatus.UNKNOWN, progress.dual_bound), self.asked))

    def _try(self, x: Array, value: float) -> None:
        """Judge a point whose margin a model takes for `value`, and what is near it; keep the best."""
        y = evaluate_all(self.graph, torch.from_numpy(x)[None])[self.graph.output].reshape(-1).numpy()
        margin = float(self.disjunct.unsafe.residual(x, y).max())
        if margin < self.least:
            self.least, self.x = margin, x
        self.judging.consider(x, margin)
        self.judging.polish(x, value)

    # -- ranges -------------------------------------------------------------------------------------------------------------

    def _tightened(self) -> Generator[Question, SolveOutcome | SweepOutcome, tuple[Encoding, Array] | None]:
        """Tighten ranges as long as that is worth it; the last linear relaxation with its solution, None where there is none."""
        solution = None
        for _ in range(self.tuning.sweeps):
            encoding = self._encode()
            model = replace(encoding.model, integer=np.zeros_like(encoding.model.integer))
            if self.cutoff == math.inf:
                self.cutoff = 4.0 * safety_margin(model)
            targets = self._targets(encoding)
            columns = np.array([column for _, column in targets], dtype=np.int64)
            ways = np.tile([1.0, -1.0], len(columns))
            sweep = Sweep(model, np.repeat(columns, 2), ways, self.cutoff + safety_margin(model))
            reply = yield sweep
            assert isinstance(reply, SweepOutcome)
            own = SolveOutcome(reply.status, reply.dual_bound, reply.dual_bound, reply.point)
            yield from self._learn(encoding, model, own)
            if self.decided or reply.point is None:
                return None
            solution = encoding, reply.point
            if not self._meet(encoding, [key for key, _ in targets], columns, safe_sweep_bounds(reply, sweep)) or self.decided:
                break
        return solution

    def _targets(self, encoding: Encoding) -> list[tuple[tuple[int, int], int]]:
        """What is swept, with its column, most valuable first: what many or heavy relaxations read, weighed by their heights."""
        weights, worth = self._weights(self.x if self.x is not None else self._middle()), dict.fromkeys(encoding.arguments, 0.0)
        keys = {column: key for key, column in encoding.arguments.items()}
        for neurons in encoding.neurons:
            node = self.graph.nodes[neurons.node]
            ends = [[self.ranges[i][k].reshape(-1)[neurons.index] for i in node.inputs] for k in (0, 1)]
            rule, (lower, upper) = rule_of(node.op), (tuple(side) for side in ends)
            upper = tuple(torch.maximum(a, b) for a, b in zip(lower, upper, strict=True))
            height = rule.gap(lower, upper, rule.parallel_slopes(lower, upper)).numpy() * weights[neurons.node][neurons.index]
            for columns in neurons.inputs:
                for column, h in zip(columns.tolist(), height.tolist(), strict=True):
                    worth[keys[column]] += h
        targets = sorted(encoding.arguments.items(), key=lambda item: -worth[item[0]])
        if len(encoding.columns) <= self.tuning.inputs:
            known = set(encoding.arguments.values())
            targets = [
                ((0, i), column) for i, column in enumerate(encoding.columns.tolist()) if column >= 0 and column not in known
            ] + targets
        return targets

    def _middle(self) -> Array:
        box = self._box()
        return box.lower + 0.5 * (box.upper - box.lower)

    def _meet(self, encoding: Encoding, keys: list[tuple[int, int]], columns: Index, bounds: Array) -> bool:
        """Meet the ranges with bounds of +-v in turn, and with what follows from them; whether they shrank by much."""
        self.conditional = True
        ends = np.stack([bounds[0::2], -bounds[1::2]])
        centre, unit = encoding.centre[columns], encoding.unit[columns]
        low, high = centre + unit * ends
        low, high = low - 2.0**-51 * (np.abs(low) + np.abs(centre)), high + 2.0**-51 * (np.abs(high) + np.abs(centre))
        known = [[t.clone() for t in pair] for pair in self.ranges]
        before = after = 0.0
        for (node, entry), down, up in zip(keys, low.tolist(), high.tolist(), strict=True):
            lower, upper = (t.reshape(-1) for t in known[node])
            width = float(upper[entry] - lower[entry])
            lower[entry], upper[entry] = max(float(lower[entry]), down), min(float(upper[entry]), up)
            if width > 0:
                before, after = before + 1.0, after + float(upper[entry] - lower[entry]) / width
        self.ranges = propagated(self.graph, [(a, b) for a, b in known])
        if any(bool((a > b).any()) for a, b in self.ranges):
            self.bound = max(self.bound, self.cutoff)  # nothing is left
        return after < self.tuning.shrunk * before

    # -- cuts ---------------------------------------------------------------------------------------------------------------

    def _refine(self, encoding: Encoding, point: Array) -> bool:
        """Part the neurons whose errors weigh most at a solution; whether any was."""
        quantities, weights = encoding.quantities(point), self._weights(encoding.x_of(point))
        found = []
        for neurons in encoding.neurons:
            op = self.graph.nonlinearities[neurons.node]
            if not neurons.curved or self._is_whole(op):
                continue
            inputs = [quantities[columns] for columns in neurons.inputs]
            outputs = quantities[neurons.outputs]
            true = op.value([torch.from_numpy(np.ascontiguousarray(z)) for z in inputs]).numpy()
            error = np.abs(outputs - true)
            weight = weights[neurons.node][neurons.index]
            for r in np.flatnonzero(error > self.tuning.exact * (1.0 + np.abs(true))).tolist():
                found.append((error[r] * weight[r], neurons.node, int(neurons.index[r]), [float(z[r]) for z in inputs]))
        found.sort(key=lambda entry: -entry[0])
        worth = [entry for entry in found[: self.tuning.parted] if entry[0] >= self.tuning.share * found[0][0]]
        parted = [self._part(node, index, at) for _, node, index, at in worth]
        return any(parted)

    def _is_whole(self, op: Nonlinear) -> bool:
        """Whether the model has an operator as it is, so that no breakpoint would change it."""
        return op.staircase or is_taken(op, self.form.native)

    def _weights(self, x: Array) -> dict[int, Array]:
        """Per nonlinear node, how the margin changes with its values, in size; nothing is taken for irrelevant."""
        with torch.enable_grad():
            point = torch.from_numpy(x)[None].requires_grad_()
            values = evaluate_all(self.graph, point)
            rows = self.disjunct.unsafe
            residual = values[self.graph.output].reshape(-1) @ torch.from_numpy(rows.y_rows.T.copy()) + torch.from_numpy(
                rows.x_rows @ x - rows.rhs
            )
            nodes = [i for i in self.graph.nonlinear if values[i].requires_grad]
            slopes = torch.autograd.grad(residual.max(), [values[i] for i in nodes], allow_unused=True) if residual.requires_grad else []
        found = {i: np.zeros(self.graph.nodes[i].size) for i in self.graph.nonlinear}
        for i, slope in zip(nodes, slopes, strict=False):
            if slope is not None:
                found[i] = np.nan_to_num(np.abs(slope.reshape(-1).numpy()), nan=0.0, posinf=1e6)
        most = max((float(f.max(initial=0.0)) for f in found.values()), default=0.0)
        return {i: f + 1e-3 * (most or 1.0) for i, f in found.items()}

    def _part(self, node: int, index: int, at: list[float]) -> bool:
        """One more breakpoint of a neuron, at what it reads or near it; whether there is room for it."""
        sources = self.graph.nodes[node].inputs
        box = [tuple(float(t.reshape(-1)[index]) for t in self.ranges[i]) for i in sources]
        cut = self.cuts.get((node, index))
        place = cut.place if cut is not None else int(np.argmax([high - low for low, high in box]))
        low, high = box[place]
        inner = () if cut is None else cut.within(low, high)
        ends = np.array([low, *inner, high])
        k = min(max(int(np.searchsorted(ends, at[place])), 1), len(ends) - 1)
        a, b = float(ends[k - 1]), float(ends[k])
        edge = self.tuning.edge * (b - a)
        p = min(max(at[place], a + edge), b - edge)
        if not a < p < b:
            return False
        self.cuts[node, index] = Cut(place, tuple(sorted({*inner, p})))
        return True


def propagated(graph: Graph, ranges: NodeRanges) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Ranges met with what interval propagation makes of them, outward rounded: per node two tensors of its shape, float64."""
    lower, upper = (t.reshape(1, -1) for t in ranges[0])
    state: State = {}
    for node in graph.nodes:
        now = step(graph, node, state, lower, upper, graph)
        known = Bounds(*(t.reshape(1, *node.shape) for t in ranges[node.id]))
        state[node.id] = NodeState(now.bounds.meet(known), now.center, now.charge)
    follow(graph, state)
    return [(state[i].bounds.lower[0], state[i].bounds.upper[0]) for i in range(len(graph.nodes))]
