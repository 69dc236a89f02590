"""What passes will allocate, estimated before they do: rows that do not fit go back in parts, and so do boxes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from milpverify.graph import Graph

BUDGET = {"cpu": 1 << 30, "cuda": 1 << 34}
"""Bytes that the multipliers of a pass may take at once."""
COPIES = 6
"""So many matrices of multipliers are alive at once: those that wait, relaxed ones, and what operators make on the way."""

STATE_BYTES = 64
"""Of the bounds, centres, charges and lines of an entry of a box, in float64."""


def boxes_that_fit(graph: Graph, varying: int = 0) -> int:
    """How many boxes the budget holds, with what is known of their entries, and forward forms over the inputs that vary; at least 1."""
    forms = max(node.size for node in graph.nodes) * varying * 8 * COPIES
    return max(1, int(BUDGET[graph.device.type] // (graph.entries * STATE_BYTES + forms)))


def rows_that_fit(graph: Graph, entries: float | None = None) -> int:
    """How many rows of multipliers the budget holds, of so many entries at the largest node or of all of its own; at least 1.

    Args:
        graph: in the precision of the matrices.
    """
    most = max(node.size for node in graph.nodes) if entries is None else entries
    bytes_each = torch.finfo(graph.inner or graph.dtype).bits // 8
    return max(1, int(BUDGET[graph.device.type] // (COPIES * most * bytes_each)))
