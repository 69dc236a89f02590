"""A local search around a point for a counterexample, and points moved to where linear constraints between inputs hold exactly."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
import torch

from milpverify.balls.points import project
from milpverify.counterexamples.validate import exact_residuals, holds, representable, rounded, validate
from milpverify.graph import evaluate
from milpverify.spec import Rows
from milpverify.tuning import Tuning

if TYPE_CHECKING:
    from milpverify.graph import Graph
    from milpverify.result import Counterexample
    from milpverify.spec import Array, Disjunct, Problem


class PolishTuning(Tuning):
    """How a local search goes."""

    of_runs = False

    iterations: int = 12
    """Of steps, at most."""
    ridge: int = 4
    """Rows that may meet at a minimum of the margin."""
    tie: float = 1e-6
    """A margin above this in float64 is taken to be positive in the reals where the search begins, and is not judged."""


def restore(disjunct: Disjunct, x: Array) -> Array:
    """A point near x that satisfies the disjunct's linear constraints between inputs exactly, or x where none is found.

    One coordinate after the other is moved to where a violated row holds. Equations can only be met where the other terms
    add up to a float64, so a coarse grid is tried where x itself does not lead there.
    """
    if not len(disjunct.domain):
        return x
    box = disjunct.box
    unit = 2.0 ** (math.frexp(float(np.abs(np.stack([box.lower, box.upper])).max()))[1] - 20)
    for start in (x, np.round(x / unit) * unit):
        point = np.clip(start, box.lower, box.upper)
        if _repair(disjunct, point):
            return point
    return x


def _repair(disjunct: Disjunct, point: Array) -> bool:
    """Move coordinates of `point` until every row of the domain holds exactly; whether that succeeded."""
    box, domain = disjunct.box, disjunct.domain
    nothing = [0.0] * domain.y_rows.shape[1]
    for _ in range(4):
        for r in range(len(domain)):
            row = Rows(domain.x_rows[r : r + 1], domain.y_rows[r : r + 1], domain.rhs[r : r + 1], domain.strict[r : r + 1])
            (residual,) = exact_residuals(row, point, nothing)
            if holds(row, [residual]):
                continue
            for j in sorted(np.flatnonzero(row.x_rows[0]).tolist(), key=lambda j: -abs(domain.x_rows[r, j])):
                coefficient = float(domain.x_rows[r, j])
                exact = Fraction(float(point[j])) - Fraction(residual) / Fraction(coefficient)
                towards = -math.copysign(math.inf, coefficient)
                moved = rounded(exact, towards)
                if domain.strict[r] and moved == exact:
                    moved = math.nextafter(moved, towards)
                if box.lower[j] <= moved <= box.upper[j]:
                    point[j] = moved
                    break
        if holds(domain, exact_residuals(domain, point, nothing)):
            return True
    return False


@np.errstate(over="ignore", invalid="ignore")  # values beyond the largest float lead nowhere, and nothing follows from them
def polish(problem: Problem, disjunct: Disjunct, x: Array, tuning: PolishTuning = PolishTuning()) -> Counterexample | None:
    """A counterexample near x (nx,), such as the point of a solver whose tolerances let it miss by a little, or None.

    Each iteration evaluates, in float64, geometric sequences of steps and moves to the best point; what may have a margin <= 0 is
    judged. The steps go along the sum of the unit gradients of the largest one, two, ... rows, for a conjunction mostly has its
    minimum where some rows meet, and along the signs of that; coordinates that their bounds block are held back.
    """
    graph, box, rows = problem.graph, disjunct.box, disjunct.unsafe
    x = restore(disjunct, representable(graph, box, x))
    if not len(rows):
        return validate(problem, disjunct, x).counterexample
    width = box.upper - box.lower
    scales = 0.5 ** np.arange(0.0, 40.0, min(8.0, 2.0 + graph.entries / 20_000))[:, None]
    for left in range(tuning.iterations, -1, -1):
        gradients, margin = _row_gradients(graph, rows, x, tuning.ridge)
        if (
            margin <= (tuning.tie if left == tuning.iterations else 0.0)
            and (example := validate(problem, disjunct, x).counterexample) is not None
        ):
            return example
        if not left:
            break
        steps = []
        for gradient in np.cumsum(gradients / np.maximum(np.linalg.norm(gradients, axis=1, keepdims=True), 1e-300), axis=0):
            free = np.where(np.where(gradient > 0, x <= box.lower, x >= box.upper), 0.0, gradient)
            slope = float(free @ gradients[0])
            if slope > 0.0:
                # Where the network is linear, an eighth of the longest of the first steps turns the sign of the margin.
                steps.append(-16.0 * max(abs(margin), 1e-9) / slope * free * scales)
                steps.append(-width * np.sign(free) * scales)
        if not steps:
            return None
        moved = x + np.concatenate(steps)
        if graph.ball is not None:
            moved = project(graph.ball, torch.from_numpy(moved)).numpy()
        candidates = representable(graph, box, moved)
        if len(disjunct.domain):
            candidates = np.array([restore(disjunct, c) for c in candidates])
        with torch.no_grad():
            y = evaluate(graph, torch.from_numpy(candidates)).numpy()
        margins = np.max(candidates @ rows.x_rows.T + y @ rows.y_rows.T - rows.rhs, axis=1)
        best = int(np.argmin(np.nan_to_num(margins, nan=np.inf)))
        # Descents slow down: one that will not arrive at its present pace is given up.
        if not margin - margins[best] > max(0.0, margins[best] / left):
            return None
        x = candidates[best]
    return None


@torch.enable_grad()
def _row_gradients(graph: Graph, rows: Rows, x: Array, most: int) -> tuple[Array, float]:
    """The gradients (k, nx) in float64 of the largest residuals, at most so many, the largest first, and the margin at x (nx,)."""
    with torch.no_grad():
        residual = rows.residual(x, evaluate(graph, torch.from_numpy(x)[None])[0].numpy())
    largest = np.argsort(-residual, kind="stable")[:most]
    points = torch.from_numpy(np.repeat(x[None], len(largest), axis=0)).requires_grad_()
    weights = torch.from_numpy(rows.y_rows[largest])
    (gradients,) = torch.autograd.grad((weights * evaluate(graph, points)).sum(), points)
    return gradients.nan_to_num().numpy() + rows.x_rows[largest], float(residual.max())
