"""What candidate splits gain, by the children's relaxations at one point: the parent's point, or the reference values.

The bound under a neuron's relaxation is attained at some point of the relaxation; a child's own relaxation at the same point and under
the same multiplier says what the child gains, to first order (an upper bound, for the minimum over a relaxation is concave in
multipliers). At the reference values, as BaBSR takes biases (arXiv 1909.06588), no such point is needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from milpverify.search.neuron_split.branching.heuristic import Heuristic

if TYPE_CHECKING:
    from torch import Tensor

    from milpverify.propagation.optimised.dual import Primal
    from milpverify.search.neuron_split.branching.candidates import Candidates, Consumers
    from milpverify.search.neuron_split.branching.heuristic import Splits


class FirstOrder(Heuristic):
    """What the children gain at the point where the parent's bound is attained."""

    name = "first-order"
    needs_bounds = needs_point = True

    def score(self, splits: Splits) -> Tensor:
        of = splits.parents
        return of.score(pointwise(of.consumers, of.candidates, of.primal, attained=True))


class BaBSR(Heuristic):
    """What they gain at the reference values: more, and cheaper to find, so that all are scored."""

    name = "babsr"
    needs_bounds = scores_all = True

    def score(self, splits: Splits) -> Tensor:
        of = splits.parents
        return of.score(pointwise(of.consumers, of.candidates, of.primal, attained=False))


def pointwise(consumers: Consumers, candidates: Candidates, primal: Primal, attained: bool) -> Tensor:
    """What both children of candidates gain, (2, n, C, r) float64.

    Args:
        attained: at the point where the parent's bound is attained, otherwise at the reference values.
    """
    n, count = candidates.column.shape
    rows = primal.value.shape[1]
    gains: Tensor = candidates.domain.low.new_zeros(2, n * count, rows)
    for part in candidates.relaxed(consumers, primal):
        (steep, total), _ = part.changed()
        if attained:
            for k, low, high, center, at in zip(steep, part.low, part.high, part.center, part.attained, strict=True):
                total = total + k * ((center + at).clamp(low, high) - center)
        gains.index_add_(1, part.pair, total)
    return gains.reshape(2, n, count, rows)
