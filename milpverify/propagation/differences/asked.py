"""Whether rows may ask for differences of copies at all: a look at the last layer, which spares almost all problems the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from milpverify.operators import Linear, Reshape
from milpverify.propagation.differences.coefficients import DifferenceTuning

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from milpverify.graph import Graph
    from milpverify.propagation.differences.bounding import Differences
    from milpverify.spec import Rows


def differences(
    graph: Graph, y_rows: Tensor, x_rows: Tensor | None, domains: Sequence[Rows], tuning: DifferenceTuning = DifferenceTuning()
) -> Differences | None:
    """What rows on outputs (r, ny) and inputs (r, nx) compare, if copies of one network, with the constraints of every disjunct."""
    if not bool(((y_rows > 0).any(1) & (y_rows < 0).any(1)).any()) or _single(graph, y_rows, tuning):
        return None
    from milpverify.propagation.differences.bounding import Differences

    return Differences.of(graph, y_rows, x_rows, domains, tuning)


def _single(graph: Graph, y_rows: Tensor, tuning: DifferenceTuning) -> bool:
    """Whether the last layer combines the same entries for all outputs, and those that rows compare with weights that are not close."""
    node = graph.nodes[graph.output]
    while isinstance(node.op, Reshape):
        node = graph.nodes[node.inputs[0]]
    op = node.op
    if not isinstance(op, Linear) or len(op.weight) != graph.ny or not bool((op.weight != 0).all()):
        return False
    positive, negative = (y_rows > 0).double(), (y_rows < 0).double()
    compared = positive.T @ negative > 0  # (ny, ny)
    weight = op.weight.double()
    return bool((torch.cdist(weight, weight) > tuning.close * weight.norm(dim=1, keepdim=True))[compared].all())
