"""Which ends of pre-activations a solver is asked for, and what came of it.

A model of the layers before a neuron is small where few of their neurons are unstable. The ends that are worth most come first, of
early layers before later ones, as long as the answers take something off the intervals.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from milpverify.encode.milp import encode_layer
from milpverify.encode.model import NumericallyUnfit, OutOfTime
from milpverify.errors import Contradiction, UnsupportedOperator

if TYPE_CHECKING:
    from milpverify.config import Deadline
    from milpverify.encode.milp import Layer
    from milpverify.search.bounding import BatchBounds
    from milpverify.search.tightening.tighten import Tightening

SolverTarget = tuple[int, int, int]
"""An end of a pre-activation: node, flat index, side (+1 the lower end, -1 the upper)."""

BINARIES = 150
"""The most unstable neurons before a layer whose models are worth making."""
EACH = 32
"""Neurons of a layer, the best first, of which ends are asked for before the next layer's."""
LAST, LEAST = 8, 0.02
"""Of so many answers in a row the mean share taken off the end must be so much for more to be asked for."""


@dataclass(eq=False)
class SolverTargets:
    """The ends of one tightening's pre-activations, as tasks for a solver. `gains` are shares of ends that answers took off."""

    tightening: Tightening
    asked: set[SolverTarget] = field(default_factory=set)
    gains: list[float] = field(default_factory=list)
    over: bool = False
    _root: BatchBounds | None = None
    _queue: list[tuple[Layer, SolverTarget, int]] = field(default_factory=list)
    _layers: list[int] = field(default_factory=list)

    def next(self, deadline: Deadline) -> tuple[Layer, SolverTarget, int] | None:
        """The next end, its layer's model and its place there; None where no more are to be asked for."""
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
        index, worth = self.tightening.targets(z)
        index, worth = index[:EACH].cpu(), worth[:EACH].cpu()
        bounds = self.tightening.root.state
        if not len(index) or self.tightening.unstable_before(z) > BINARIES:
            return
        low, high = (t.cpu().flatten()[index] for t in (bounds[z].bounds.lower, bounds[z].bounds.upper))
        graph, disjunct = self.tightening.graph.to(torch.float64), self.tightening.group.disjuncts[0]
        every = [(s.bounds.lower[0].cpu(), s.bounds.upper[0].cpu()) for _, s in sorted(bounds.items())]
        layer = encode_layer(graph, every, disjunct.box, z, index.numpy(), deadline)
        to_gain = (worth * torch.stack([-low, high], 1)).flatten()
        for k in to_gain.argsort(descending=True, stable=True).tolist():
            end = (z, int(index[k // 2]), 1 if k % 2 == 0 else -1)
            if end not in self.asked and float(to_gain[k]) > 0:
                self._queue.append((layer, end, k // 2))

    def answer(self, end: SolverTarget, bound: float, ended: bool) -> None:
        """Note a lower bound of side times the pre-activation, proved by a solver.

        Raises:
            Contradiction: a point shows that it is wrong. All that the solver said before is forgotten.
        """
        z, index, side = end
        if self.tightening.refutes(end, bound):
            self.tightening.by_solver.clear()
            self.over = True
            raise Contradiction(f"the solver says that a pre-activation is at least {bound:.9g}, a point has less")
        known = self.tightening.root.state[z].bounds
        now = side * float((known.lower if side > 0 else known.upper).flatten()[index])
        if math.isfinite(bound) and bound > now:
            before = self.tightening.by_solver.get(end)
            self.tightening.by_solver[end] = side * (bound if before is None else max(bound, side * before))
        if ended:
            self.gains.append(max(0.0, bound - now) / max(-now, 1e-300) if now < 0 and math.isfinite(bound) else 0.0)
            recent = self.gains[-LAST:]
            self.over = len(recent) == LAST and sum(recent) < LEAST * LAST
