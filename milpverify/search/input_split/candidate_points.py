"""Points of open boxes tried as counterexamples: where the linear bounds of open rows are least, and the centres."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from milpverify.balls.dual import lowest
from milpverify.counterexamples.polish import polish
from milpverify.counterexamples.validate import Validation, Validity, validate
from milpverify.graph import evaluate

if TYPE_CHECKING:
    from torch import Tensor

    from milpverify.graph import Graph
    from milpverify.search.bounding import BatchBounds
    from milpverify.search.groups import Group
    from milpverify.spec import Problem


def try_points(
    problem: Problem, fast: Graph, group: Group, found: BatchBounds, lower: Tensor, upper: Tensor, delta: float = -math.inf
) -> Validation | None:
    """Try the point that minimises each open row's linear bound, a corner unless a ball cuts the box, and the centre.

    The best of them are judged, and the best is polished.

    Args:
        fast: in float32.
        lower, upper: the boxes that were bounded, (batch, nx).
        delta: points with a margin up to this are worth telling.

    Returns:
        a validation that a counterexample holds, or else one that the semantics disagree or that the margin is within delta, or None.
    """
    open_rows = group.open_rows(found.margins)
    box, row = open_rows.nonzero(as_tuple=True)
    if not len(box):
        return None
    least = lowest(fast.ball, found.rows.coefficients[box, row].unsqueeze(1), lower[box], upper[box]).squeeze(1)
    points = torch.cat([least, 0.5 * (lower + upper)])
    y = evaluate(fast, points.float()).double()
    residual = y @ group.y_rows.T - group.rhs
    if group.x_rows is not None:
        residual = residual + points @ group.x_rows.T
    margin = group.largest(residual)
    best: Validation | None = None
    for flat in torch.argsort(margin.flatten())[:4].tolist():
        point, disjunct = divmod(flat, group.count)
        if float(margin[point, disjunct]) > max(1e-6, delta):
            break
        validation = validate(problem, group.disjuncts[disjunct], points[point].cpu().numpy().astype(np.float64))
        if validation.status is Validity.HOLDS:
            return validation
        if validation.status is Validity.FLOAT_SEMANTICS or (best is None and validation.within(delta)):
            best = validation
    # The best point of a batch starts a descent: in boxes this small it is often next to a counterexample.
    point, disjunct = divmod(int(margin.argmin()), group.count)
    example = polish(problem, group.disjuncts[disjunct], points[point].cpu().numpy().astype(np.float64))
    return best if example is None else validate(problem, group.disjuncts[disjunct], example.x)
