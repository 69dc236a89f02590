"""What is asked about one input: the problems that proofs at a radius are about, and the points that count as counterexamples."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

from milpverify.counterexamples.validate import Validation, Validity, validate
from milpverify.frontends.problem import box_of, confined_to
from milpverify.graph import evaluate
from milpverify.spec import Array, Disjunct, Problem, Rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from milpverify.frontends.network import Loaded
    from milpverify.graph import Graph
    from milpverify.radius.neighbourhood import Neighbourhood
    from milpverify.result import Counterexample
    from milpverify.spec import Box


@dataclass(frozen=True, eq=False)
class Witness:
    """A counterexample, and its distance in rationals, rounded up."""

    distance: float
    example: Counterexample


@dataclass(frozen=True, eq=False)
class Question:
    """How far an input may change before one of the `targets` can be larger than the `label`.

    What is proved is that no target is as large as the label; what counts as a counterexample is a point where one is strictly larger.
    """

    network: Loaded
    around: Neighbourhood
    label: int
    targets: tuple[int, ...]

    @property
    def graph(self) -> Graph:
        """The network."""
        return self.network.graph

    @cached_property
    def rows(self) -> Array:
        """The margin to targets[k] is rows[k] . y, (T, ny)."""
        unit = np.eye(self.graph.ny)
        return np.array([unit[self.label] - unit[t] for t in self.targets])

    def problem(self, radius: float, strict: bool = False) -> Problem:
        """Whether a target can be as large as the label, or strictly larger, in the ball of a radius."""
        ball = self.around.ball(radius)
        return self._stated(confined_to(self.graph, ball), box_of(ball), strict)

    def _stated(self, graph: Graph, box: Box, strict: bool) -> Problem:
        domain = Rows.none(graph.nx, graph.ny)
        disjuncts = tuple(Disjunct(box, Rows.on_outputs(row, 0.0, graph.nx, strict), domain) for row in self.rows)
        return Problem(graph, disjuncts, self.network.runtime)

    def judge(self, x: Array) -> Validation:
        """Whether x (nx,) is strictly misclassified, for the target that is largest there; moved onto the runtime's numbers."""
        return self._judged(x, self._widest)

    def judge_centre(self) -> Validation:
        """The same of the input itself, which stays where it is."""
        return self._judged(self.around.centre, self.problem(0.0, strict=True))

    def _judged(self, x: Array, problem: Problem) -> Validation:
        with torch.no_grad():
            margins = self.rows @ evaluate(self.graph, torch.from_numpy(x)[None])[0].numpy()
        return validate(problem, problem.disjuncts[int(np.argmin(np.nan_to_num(margins, nan=math.inf)))], x)

    def witness(self, x: Array, below: float = math.inf, further: Sequence[float] = (0.0, 1e-6, 1e-5, 1e-4, 1e-3)) -> Witness | None:
        """x (nx,) as a counterexample nearer than `below`, or a point a little further out in the same direction that is one.

        Args:
            further: where the runtime does not show what float64 does, points by such shares further from the centre are tried.
        """
        for share in further:
            found = self.judge(self.around.centre + (1.0 + share) * (x - self.around.centre))
            if found.status is Validity.HOLDS and found.counterexample is not None:
                distance = self.around.distance(found.counterexample.x)
                return Witness(distance, found.counterexample) if distance < below else None
        return None

    @cached_property
    def _widest(self) -> Problem:
        """Points are judged within all of the clip; how far they are away is told by themselves."""
        return self._stated(self.graph, self.around.box(self.around.reach), strict=True)
