"""What inputs may do to rows along the paths between them, whatever cancels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from milpverify.graph import Pullback

if TYPE_CHECKING:
    from torch import Tensor

    from milpverify.graph import Graph
    from milpverify.propagation.backward import LineTable


def path_weights(graph: Graph, table: LineTable, rows: Tensor) -> Tensor:
    """Sums over all paths from an input to a row of the products of absolute coefficients: an influence that nothing cancels.

    Args:
        graph: in the precision of the matrices.
        table: lines; the larger of their two slopes counts.
        rows: on the output, (batch, r, ny).

    Returns:
        (batch, r, nx).
    """
    batch, count = rows.shape[:2]
    walk = Pullback(graph, {graph.output: rows.abs().to(graph.dtype).reshape(batch, count, *graph.nodes[graph.output].shape)})
    for node, weight in walk:
        if node.id == 0:
            return weight
        if node.id in table:
            both = zip(table[node.id].k_lower, table[node.id].k_upper, strict=True)
            parts: tuple[Tensor, ...] = tuple(weight * torch.maximum(low.abs(), high.abs()).unsqueeze(1) for low, high in both)
        else:
            parts = graph.absolutes[node.id].adjoint(weight.reshape(-1, *node.shape))
        shapes = (graph.nodes[source].shape for source in node.inputs)
        walk.send(node, (part.reshape(batch, count, *shape) for part, shape in zip(parts, shapes, strict=True)))
    raise ValueError("no path joins the output to the input")
