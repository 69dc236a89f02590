"""Which bounds of pre-activations a solver is asked for, and what came of it.

A model of the layers before a neuron is small where few of their neurons are unstable. The bounds that are worth most come first, of
early layers before later ones, as long as the answers take something off the intervals.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import torch

from milpverify.balls.points import project
from milpverify.encode.milp import encode_layer
from milpverify.encode.model import NumericallyUnfit, OutOfTime
from milpverify.errors import Contradiction, UnsupportedOperator
from milpverify.graph import evaluate_all
from milpverify.propagation.state import Bounds, node_ranges

if TYPE_CHECKING:
    from torch import Tensor

    from milpverify.config import Deadline
    from milpverify.encode.encoding import Layer
    from milpverify.search.bounding import BatchBounds
    from milpverify.search.solver.oracle import SolverTarget
    from milpverify.search.tightening.tighten import Tightening

POINTS: Final = 64
"""Corners of the box at which a solver's word is checked: how strictly that is done is no matter of speed."""


class SolverTargets:
    """The bounds of a root's pre-activations, as tasks for a solver.

    `proved` are values that a solver proved: z >= value on side +1, z <= value on side -1. `gains` are the shares of bounds that answers
    took off; `over`: no more are asked for.
    """

    def __init__(self, tightening: Tightening) -> None:
        self.tightening = tightening
        self.proved: dict[SolverTarget, float] = {}
        self.asked: set[SolverTarget] = set()
        self.gains: list[float] = []
        self.over = not tightening.graph.piecewise_linear  # of curved networks whole ranges are swept at once (`inquiries/refinement`)
        self._root: BatchBounds | None = None
        self._queue: list[tuple[Layer, SolverTarget, int]] = []
        self._layers: list[int] = []
        self._seen: list[Tensor] | None = None

    def next(self, deadline: Deadline) -> tuple[Layer, SolverTarget, int] | None:
        """The next bound, its layer's model and its place there; None where no more are to be asked for."""
        tightening = self.tightening
        if self.over:
            return None
        if self._root is not tightening.root:
            self._root, self._queue, self._layers = tightening.root, [], list(tightening.layers)
        while not self._queue and self._layers:
            try:
                self._fill(self._layers.pop(0), deadline)
            except (NumericallyUnfit, UnsupportedOperator, OutOfTime):
                self.over = True
                return None
        if not self._queue:
            return None
        found = self._queue.pop(0)
        self.asked.add(found[1])
        return found

    def _fill(self, z: int, deadline: Deadline) -> None:
        tuning, (index, worth) = self.tightening.tuning, self.tightening.targets(z)
        index, worth = index[: tuning.each].cpu(), worth[: tuning.each].cpu()
        bounds = self.tightening.root.state
        if not len(index) or self.tightening.unstable_before(z) > tuning.binaries:
            return
        low, high = (t.cpu().flatten()[index] for t in (bounds[z].bounds.lower, bounds[z].bounds.upper))
        graph, disjunct = self.tightening.graph.to(torch.float64), self.tightening.group.disjuncts[0]
        layer = encode_layer(graph, node_ranges(bounds), disjunct.box, z, index.numpy(), deadline)
        to_gain = (worth * torch.stack([-low, high], 1)).flatten()
        for k in to_gain.argsort(descending=True, stable=True).tolist():
            target = (z, int(index[k // 2]), 1 if k % 2 == 0 else -1)
            if target not in self.asked and float(to_gain[k]) > 0:
                self._queue.append((layer, target, k // 2))

    def answer(self, target: SolverTarget, bound: float, ended: bool) -> None:
        """Note a lower bound of side times the pre-activation, proved by a solver.

        Raises:
            Contradiction: a point shows that it is wrong. All that the solver said before is forgotten.
        """
        z, index, side = target
        if self._refutes(target, bound):
            self.proved.clear()
            self.over = True
            raise Contradiction(f"the solver says that a pre-activation is at least {bound:.9g}, a point has less")
        known = self.tightening.root.state[z].bounds
        now = side * float((known.lower if side > 0 else known.upper).flatten()[index])
        if math.isfinite(bound) and bound > now:
            before = self.proved.get(target)
            self.proved[target] = side * (bound if before is None else max(bound, side * before))
        if ended:
            self.gains.append(max(0.0, bound - now) / max(-now, 1e-300) if now < 0 and math.isfinite(bound) else 0.0)
            last, recent = self.tightening.tuning.last, self.gains[-self.tightening.tuning.last :]
            self.over = len(recent) == last and sum(recent) < self.tightening.tuning.least * last

    def _refutes(self, target: SolverTarget, bound: float) -> bool:
        """Whether a point shows that a lower bound of side times a pre-activation is wrong."""
        z, index, side = target
        if self._seen is None:
            ends = self.tightening.root.state[0].bounds
            generator = torch.Generator().manual_seed(0)
            share = torch.rand(POINTS, ends.lower.shape[1], generator=generator, dtype=torch.float64).round().to(ends.lower.device)
            points = torch.lerp(ends.lower, ends.upper, share)
            if (ball := self.tightening.graph.ball) is not None:  # what lies outside is no input, and no word against a bound
                inner = project(ball, points)
                points = inner[((inner >= ends.lower) & (inner <= ends.upper)).all(1)]
            if (halfspaces := self.tightening.graph.halfspaces) is not None:
                points = points[halfspaces.satisfied(points)]
            self._seen = evaluate_all(self.tightening.graph, points)
        values = side * self._seen[z].flatten(1)[:, index]
        return len(values) > 0 and bound > float(values.amin()) + 1e-6 * max(1.0, float(values.abs().amax()))

    def meet(self, deadline: Deadline) -> bool:
        """Meet the root with what a solver proved; whether that changed anything, so that the root now has trust SOLVER."""
        root, known, changed = self.tightening.root, dict[int, Bounds](), False
        for (z, index, side), value in self.proved.items():
            bounds = known.get(z) or root.state[z].bounds
            lower, upper = bounds.lower.clone(), bounds.upper.clone()
            moved = (lower if side > 0 else upper).view(-1)
            if (value - float(moved[index])) * side > 0:
                moved[index], changed = value, True
                known[z] = Bounds(lower, upper)
        if changed:
            self.tightening.rebuild(known, deadline)
        return changed
