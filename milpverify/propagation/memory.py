"""What passes will allocate, estimated before they do: rows that do not fit go back in parts, and so do boxes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

from milpverify.propagation.request import BoundTuning

if TYPE_CHECKING:
    from milpverify.graph import Graph

STATE_BYTES: Final = 64
"""Of the bounds, centres, charges and lines of an entry of a box, in float64."""


def boxes_that_fit(graph: Graph, varying: int = 0, tuning: BoundTuning = BoundTuning()) -> int:
    """How many boxes the budget holds, with what is known of their entries, and forward forms over the inputs that vary; at least 1."""
    forms = max(node.size for node in graph.nodes) * varying * 8 * tuning.copies
    return max(1, int(tuning.memory(graph.device) // (graph.entries * STATE_BYTES + forms)))


def rows_that_fit(graph: Graph, entries: float | None = None, tuning: BoundTuning = BoundTuning()) -> int:
    """How many rows of multipliers the budget holds, of so many entries at the largest node or of all of its own; at least 1.

    Args:
        graph: in the precision of the matrices.
    """
    most = max(node.size for node in graph.nodes) if entries is None else entries
    bytes_each = torch.finfo(graph.inner or graph.dtype).bits // 8
    return max(1, int(tuning.memory(graph.device) // (tuning.copies * most * bytes_each)))
