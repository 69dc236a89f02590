"""Radii proved by bound propagation, many in one batch. Optimised slopes prove little more: `verify` begins with them anyway."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from milpverify.balls.norm import Norm
from milpverify.ladder import precision
from milpverify.propagation.request import BoundRequest
from milpverify.search.bounding import Prepared, bound_batch
from milpverify.search.groups import groups
from milpverify.tuning import Tuning

if TYPE_CHECKING:
    from collections.abc import Sequence

    from milpverify.config import Deadline
    from milpverify.graph import Graph
    from milpverify.radius.question import Question


class GridTuning(Tuning):
    """The radii that are bounded."""

    radii: int = 16
    """In each of two grids: halvings of the largest, and then evenly between the two that the answer lies between."""
    together: int = 16
    together_if_large: int = 2
    """In a batch, and in one of a large network."""


def proved_radius(question: Question, graph: Graph, largest: float, deadline: Deadline, tuning: GridTuning = GridTuning()) -> float:
    """The largest radius of a grid that CROWN proves, 0 if there is none.

    Args:
        graph: the question's in float64, on the device to bound on.
        largest: of the radii.
    """
    coarse = _largest(question, graph, [largest * 0.5**k for k in range(tuning.radii)], deadline, tuning)
    if coarse in (0.0, largest):
        return coarse
    finer = [coarse * (1.0 + k / tuning.radii) for k in range(tuning.radii - 1, 0, -1)]
    return max(coarse, _largest(question, graph, finer, deadline, tuning))


def _largest(question: Question, graph: Graph, radii: Sequence[float], deadline: Deadline, tuning: GridTuning) -> float:
    """The first of falling radii that is proved, 0 if none is."""
    if question.around.norm is not Norm.LINF:
        return _bisected(question, graph, radii, deadline)
    (group,) = groups(question.problem(radii[0]), graph.device)
    prepared, small = Prepared.of(graph, group), precision(graph) is torch.float64
    together = tuning.together if small else tuning.together_if_large
    for first in range(0, len(radii), together):
        if deadline.expired():
            break
        some = radii[first : first + together]
        boxes = [question.around.box(radius) for radius in some]
        lower = torch.from_numpy(np.stack([b.lower for b in boxes])).to(graph.device)
        upper = torch.from_numpy(np.stack([b.upper for b in boxes])).to(graph.device)
        dtype = torch.float64 if small else torch.float32
        margins = bound_batch(graph, group, lower, upper, dtype, BoundRequest(deadline=deadline), prepared).margins
        proved = group.closed(margins).all(1).tolist()
        if any(proved):
            return some[proved.index(True)]
    return 0.0


def _bisected(question: Question, graph: Graph, radii: Sequence[float], deadline: Deadline) -> float:
    """The first of falling radii that is proved, as if all after it were; 0 if none is. Balls are bounded one at a time."""
    low, high = 0, len(radii)
    while low < high and not deadline.expired():
        middle = (low + high) // 2
        problem = question.problem(radii[middle])
        (group,) = groups(problem, graph.device)
        lower, upper = (torch.tensor(side, device=graph.device)[None] for side in (group.box.lower, group.box.upper))
        dtype = precision(graph)
        margins = bound_batch(graph.confined(problem.graph.ball), group, lower, upper, dtype, BoundRequest(deadline=deadline)).margins
        low, high = (low, middle) if bool(group.closed(margins).all()) else (middle + 1, high)
    return radii[high] if high < len(radii) else 0.0
