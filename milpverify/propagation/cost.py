"""What passes cost, estimated in multiplications before they are made: for choices that no clock can be asked about yet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from milpverify.operators import Affine
from milpverify.propagation.patches import pass_for
from milpverify.propagation.relevance import EVERYTHING, refinable, wanted
from milpverify.propagation.request import CostTuning
from milpverify.propagation.screening import undecided

if TYPE_CHECKING:
    from milpverify.graph import Graph
    from milpverify.propagation.relevance import Needed
    from milpverify.propagation.state import State


def multiplications(graph: Graph, tuning: CostTuning = CostTuning()) -> list[float]:
    """Per node, those of its operator on one point, or of its adjoint on one row, and the equivalent for its entries."""
    return [tuning.entry * node.size + (node.op.products(node.shape) if isinstance(node.op, Affine) else 0) for node in graph.nodes]


def undecided_backward(graph: Graph, tuning: CostTuning = CostTuning()) -> float:
    """As `backward_passes`, where nothing is known and every pre-activation may be undecided, and rows are whole."""
    own = multiplications(graph, tuning)
    return sum(2.0 * node.size * sum(own[i] for i in graph.ancestors[node.id] if i != node.id) for node in refinable(graph))


def forward_pass(graph: Graph, varying: int, tuning: CostTuning = CostTuning()) -> float:
    """Multiplications of forward linear forms over so many inputs that vary, for one box."""
    return sum(multiplications(graph, tuning)) * (varying + 2)


def backward_passes(graph: Graph, state: State, needed: Needed = EVERYTHING, tuning: CostTuning = CostTuning()) -> float:
    """Multiplications of backward passes for all pre-activations that a state leaves undecided, both sides, for one box on average."""
    total, batch = 0.0, len(state[0].center)
    for node in refinable(graph):
        low, high = (t.flatten(1) for t in (state[node.id].bounds.lower, state[node.id].bounds.upper))
        left = wanted(graph, node.id, undecided(graph, node.id, state, low, high), low, high, needed.get(node.id))
        if rows := int(left.sum()):
            total += pass_for(graph, node, 2.0 * rows / batch, tuning)
    return total


def is_dear(graph: Graph, tuning: CostTuning = CostTuning()) -> bool:
    """Whether backward passes for all pre-activations may take so long that cheaper things come first."""
    return undecided_backward(graph, tuning) > tuning.cheap


def forward_suffices(forward: float, backward: float, varying: int, missing: float, left: float, tuning: CostTuning = CostTuning()) -> bool:
    """Whether boxes are bisected with forward forms sooner until these are as good as backward passes, than those are made.

    Args:
        forward, backward: seconds that either takes for a box.
        varying: inputs that vary.
        missing, left: how far below 0 the margin of that box is by either, > 0.
    """
    boxes = float((missing / left) ** (varying / tuning.order))
    return boxes * forward <= backward
