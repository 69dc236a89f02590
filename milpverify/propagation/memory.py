"""What a backward pass will allocate, estimated before it does: rows that do not fit go back in parts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from milpverify.graph import Graph

BUDGET = {"cpu": 1 << 30, "cuda": 1 << 34}
"""Bytes that the multipliers of a pass may take at once."""
COPIES = 6
"""So many matrices of multipliers are alive at once: those that wait, relaxed ones, and what operators make on the way."""


def rows_that_fit(graph: Graph, entries: float | None = None) -> int:
    """How many rows of multipliers the budget holds, of so many entries at the largest node or of all of its own; at least 1.

    Args:
        graph: in the precision of the matrices.
    """
    most = max(node.size for node in graph.nodes) if entries is None else entries
    bytes_each = torch.finfo(graph.inner or graph.dtype).bits // 8
    return max(1, int(BUDGET[graph.device.type] // (COPIES * most * bytes_each)))
