"""What a run knows of every disjunct: what is proved of its margin, and the best point that was found."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import torch

from milpverify.counterexamples.validate import inside, upper_margin
from milpverify.enclosure import enclose
from milpverify.operators import Conv, Linear
from milpverify.result import Margin, Trust
from milpverify.tuning import Tuning

if TYPE_CHECKING:
    from milpverify.graph import Graph
    from milpverify.result import Counterexample
    from milpverify.spec import Array, Disjunct, Problem


class MarginTuning(Tuning):
    """What margins at points may cost beside a run."""

    least: float = 0.005
    share: float = 0.02
    rate: float = 2e8
    """Seconds that they may cost in any case, of the run's seconds, and multiplications of an enclosure in one second."""
    most: int = 1000
    """Disjuncts that one and the same point is looked at for."""


def at_least(margins: Sequence[Margin], bound: float, trust: Trust) -> list[Margin]:
    """With a proved lower bound of all of them."""
    return [replace(m, lower_bound=bound, trust=trust) if bound > m.lower_bound else m for m in margins]


def with_points(
    margins: Sequence[Margin], problem: Problem, points: Mapping[int, Array], seconds: float, tuning: MarginTuning = MarginTuning()
) -> list[Margin]:
    """With what points (nx,), by disjunct, attain in real arithmetic; those of a problem that was reduced are lifted.

    Args:
        seconds: of the run, in which it must not be felt: with many disjuncts, or a large network, some are left out.
    """
    found, graph = list(margins), problem.graph
    there = [k for k, x in islice(points.items(), _affordable(graph, seconds, tuning)) if inside(graph, problem.disjuncts[k], x)]
    for k, low, high in _enclosed(graph, there, points):
        x: Array | None = points[k]
        value = upper_margin(problem.disjuncts[k].unsafe, points[k], low, high)
        if problem.substitution is not None:
            x = problem.substitution.lift(points[k])
        if x is not None and value < found[k].upper_bound:
            found[k] = replace(found[k], upper_bound=value, point=x)
    return found


def at_point(margins: Sequence[Margin], problem: Problem, x: Array, tuning: MarginTuning = MarginTuning()) -> list[Margin]:
    """With what one point (nx,) attains, of every disjunct that it lies in."""
    found = list(margins)
    ((_, low, high),) = _enclosed(problem.graph, [0], {0: x})
    for k, d in enumerate(problem.disjuncts[: tuning.most]):
        if inside(problem.graph, d, x) and (value := upper_margin(d.unsafe, x, low, high)) < found[k].upper_bound:
            found[k] = replace(found[k], upper_bound=value, point=x)
    return found


def with_example(
    margins: Sequence[Margin], problem: Problem, example: Counterexample, tuning: MarginTuning = MarginTuning()
) -> list[Margin]:
    """With what a counterexample attains, of the disjunct that it was judged for: nothing new is computed."""
    found, x = list(margins), example.x
    same = [k for k, d in enumerate(problem.disjuncts[: tuning.most]) if _margin(d, x, example.y) == example.margin_runtime]
    same = [k for k in same if inside(problem.graph, problem.disjuncts[k], x)]
    if len(same) == 1 and example.margin_real < found[same[0]].upper_bound:
        found[same[0]] = replace(found[same[0]], upper_bound=example.margin_real, point=x)
    return found


def _margin(disjunct: Disjunct, x: Array, y: Array) -> float:
    return float(disjunct.unsafe.residual(x, y).max(initial=-math.inf))


def _affordable(graph: Graph, seconds: float, tuning: MarginTuning) -> int:
    """At how many points the network can be enclosed."""
    work = sum(n.op.products(n.shape) if isinstance(n.op, Conv | Linear) else n.size for n in graph.nodes)
    return int(tuning.rate * max(tuning.least, tuning.share * seconds) / max(work, 1))


def _enclosed(graph: Graph, places: Sequence[int], points: Mapping[int, Array]) -> list[tuple[int, list[float], list[float]]]:
    if not places:
        return []
    exact = graph.to(torch.float64, "cpu")
    lower, upper = enclose(exact, torch.from_numpy(np.stack([points[k] for k in places])))
    return list(zip(places, lower.tolist(), upper.tolist(), strict=True))
