"""Several networks side by side as one: its inputs are those of all, one network after the other, and so are its outputs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from milpverify.graph import Graph, Node
from milpverify.operators import Concat, Input, Select

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Array = NDArray[np.float64]


def side_by_side(graphs: Sequence[Graph]) -> Graph:
    """The graphs, which may be one and the same several times, as one; a single one stays as it is."""
    if len(graphs) == 1:
        return graphs[0]
    nx = sum(graph.nx for graph in graphs)
    nodes = [Node(0, Input(), (), (nx,), "x")]
    ends, offset = [], 0
    for graph in graphs:
        places = torch.arange(offset, offset + graph.nx)
        offset += graph.nx
        start = len(nodes)
        nodes.append(Node(start, Select(places, (nx,)), (0,), (graph.nx,), nodes[0].name))
        nodes += [replace(n, id=start + n.id, inputs=tuple(start + i for i in n.inputs)) for n in graph.nodes[1:]]
        ends.append(start + graph.output)
    sizes = tuple(graph.ny for graph in graphs)
    nodes.append(Node(len(nodes), Concat(0, sizes), tuple(ends), (sum(sizes),), "y"))
    inputs, outputs = (tuple(chain.from_iterable(specs)) for specs in zip(*((g.inputs, g.outputs) for g in graphs), strict=True))
    return Graph(tuple(nodes), len(nodes) - 1, inputs, outputs)


@dataclass(frozen=True, eq=False)
class JointRuntime:
    """Each network's own runtime, run on its part of x; `sizes` are the numbers of their inputs."""

    runtimes: tuple[Any, ...]
    sizes: tuple[int, ...]

    def run(self, x: Array) -> Array:
        """y (ny,) at the point x (nx,), both float64.

        Raises:
            InvalidModel: a network cannot be run there.
        """
        parts = np.split(x, np.cumsum(self.sizes)[:-1])
        return np.concatenate([runtime.run(part) for runtime, part in zip(self.runtimes, parts, strict=True)])
