"""Random graphs for the tests of bounds, and an independent CROWN to compare with."""

from __future__ import annotations

import torch
from torch import Tensor

from milpverify.functions.catalogue import catalogue
from milpverify.graph import Graph, Node
from milpverify.operators import Conv, Elementwise, Input, Linear, Operator, Reshape, Scale, Sum

FUNCTIONS = ("relu", "leaky_relu", "abs", "hard_tanh", "sign")


class Builder:
    """A graph under construction; `add` returns the new node's id."""

    def __init__(self, nx: int, seed: int) -> None:
        self.nodes = [Node(0, Input(), (), (nx,))]
        self.random = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.random, dtype=torch.float64)

    def add(self, op: Operator, shape: tuple[int, ...], *inputs: int) -> int:
        self.nodes.append(Node(len(self.nodes), op, inputs or (len(self.nodes) - 1,), shape))
        return len(self.nodes) - 1

    def linear(self, size: int) -> int:
        n = self.nodes[-1].size
        return self.add(Linear(self.normal(size, n) * (2 / n) ** 0.5, 0.3 * self.normal(size)), (size,))

    def apply(self, function: str) -> int:
        return self.add(Elementwise(catalogue()[function].trial()), self.nodes[-1].shape)

    def graph(self) -> Graph:
        return Graph(tuple(self.nodes), len(self.nodes) - 1)


def dense_network(sizes: tuple[int, ...], function: str, seed: int) -> Graph:
    """Linear layers with one function between them."""
    build = Builder(sizes[0], seed)
    for k, size in enumerate(sizes[1:]):
        if k:
            build.apply(function)
        build.linear(size)
    return build.graph()


def mixed_network(seed: int) -> Graph:
    """A convolution, a residual sum, a scaling and functions in turns."""
    build = Builder(18, seed)
    build.add(Reshape((18,), (1, 2, 3, 3)), (1, 2, 3, 3))
    conv = build.add(Conv(build.normal(3, 2, 2, 2), (1, 1), ((1, 0), (0, 1)), (1, 1), 1, (1, 2, 3, 3), build.normal(3, 1, 1)), (1, 3, 3, 3))
    build.apply(FUNCTIONS[seed % 4])
    build.add(Scale(build.normal(3, 1, 1), build.normal(3, 1, 1)), (1, 3, 3, 3))
    build.add(Sum((1, -1)), (1, 3, 3, 3), len(build.nodes) - 1, conv)
    build.apply(FUNCTIONS[(seed + 1) % 4])
    build.add(Reshape((1, 3, 3, 3), (27,)), (27,))
    build.linear(9)
    build.apply("relu")
    build.linear(3)
    return build.graph()


def crown_in_float64(graph: Graph, lower: Tensor, upper: Tensor) -> list[tuple[Tensor, Tensor]]:
    """CROWN of a dense ReLU network written down once more: both sides of every neuron, met with intervals; per linear layer."""
    weights = [(op.weight, op.bias) for node in graph.nodes if isinstance(op := node.op, Linear)]
    centre, radius, bounds, lines = (lower + upper) / 2, (upper - lower) / 2, [], []
    for k, (weight, bias) in enumerate(weights):
        assert bias is not None
        if k:
            low, high = bounds[-1]
            unstable = (low < 0) & (high > 0)
            on = (low >= 0).double()
            chord = torch.where(unstable, high / (high - low), on)
            lines.append((torch.where(unstable, (high >= -low).double(), on), chord, torch.where(unstable, -chord * low, 0.0)))
        sides = []
        for sign in (1.0, -1.0):
            rows, offset = sign * weight.expand(len(lower), -1, -1), sign * bias.expand(len(lower), -1)
            for (below, above, intercept), (w, b) in zip(reversed(lines), reversed(weights[:k]), strict=True):
                plus, minus = rows.clamp(min=0), rows.clamp(max=0)
                offset = offset + (minus @ intercept.unsqueeze(2)).squeeze(2)
                rows = plus * below.unsqueeze(1) + minus * above.unsqueeze(1)
                offset, rows = offset + rows @ b, rows @ w
            sides.append((rows @ centre.unsqueeze(2) - rows.abs() @ radius.unsqueeze(2)).squeeze(2) + offset)
        found = sides[0], -sides[1]
        if k:
            low, high = (side.clamp(min=0) for side in bounds[-1])
            middle, reach = (low + high) / 2 @ weight.T + bias, (high - low) / 2 @ weight.abs().T
            found = torch.maximum(found[0], middle - reach), torch.minimum(found[1], middle + reach)
        bounds.append(found)
    return bounds


def boxes(graph: Graph, count: int, radius: float, seed: int) -> tuple[Tensor, Tensor]:
    """Boxes of different widths; some inputs of some boxes are fixed."""
    random = torch.Generator().manual_seed(seed)
    centre = torch.randn(count, graph.nx, generator=random, dtype=torch.float64)
    width = radius * torch.rand(count, graph.nx, generator=random, dtype=torch.float64)
    width[::2, ::3] = 0.0
    return centre - width, centre + width


def sample(lower: Tensor, upper: Tensor, count: int) -> Tensor:
    """Points of every box, (boxes, count, nx): corners and random points."""
    random = torch.Generator().manual_seed(1)
    unit = torch.rand(len(lower), count, lower.shape[1], generator=random, dtype=torch.float64)
    unit[:, ::2] = unit[:, ::2].round()
    points = lower.unsqueeze(1) + unit * (upper - lower).unsqueeze(1)
    return torch.minimum(torch.maximum(points, lower.unsqueeze(1)), upper.unsqueeze(1))
