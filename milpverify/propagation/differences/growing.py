"""Grows the graph of a network and of differences of its entries, node by node."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from milpverify.graph import Graph, Node
from milpverify.operators import Input, Linear, Operator, Reshape, Select, Sum

if TYPE_CHECKING:
    from collections.abc import Sequence

    from milpverify.propagation.differences.coefficients import Places


@dataclass(eq=False)
class Growing:
    """The graph that grows: `copies` says where the values of the network's nodes are, `kept` which nodes hold differences."""

    graph: Graph
    nodes: list[Node] = field(default_factory=list)
    copies: dict[int, int] = field(default_factory=dict)
    kept: set[int] = field(default_factory=set)

    def copy(self, old: int) -> int:
        """The node with the values of one of the network."""
        stack = [old]
        while stack:
            last = stack[-1]
            node = self.graph.nodes[last]
            if last in self.copies:
                stack.pop()
            elif missing := [i for i in node.inputs if i not in self.copies]:
                stack += missing
            elif isinstance(node.op, Input):
                self.copies[last] = self.select(0, torch.arange(self.graph.nx, device="cpu"))
            else:
                self.copies[last] = self.add(node.op, [self.copies[i] for i in node.inputs], node.shape, node.name)
        return self.copies[old]

    def pick(self, old: int, places: Places, shape: tuple[int, ...]) -> int:
        """Entries of a node of the network, in a shape."""
        node = self.graph.nodes[old]
        copy = self.copy(old)
        return copy if node.shape == shape and whole(places, node) else self.select(copy, places.reshape(shape))

    def common_shape(self, a: int, i: Places, b: int, j: Places) -> tuple[int, ...]:
        """The shape of a difference of entries: that of both nodes where it is one of all their entries."""
        first, second = self.graph.nodes[a], self.graph.nodes[b]
        same = first.shape == second.shape and whole(i, first) and whole(j, second)
        return first.shape if same else (len(i),)

    def shaped(self, node: int, shape: tuple[int, ...]) -> int:
        """A node in another shape."""
        known = self.nodes[node].shape
        return node if known == shape else self.keep(self.add(Reshape(known, shape), (node,), shape))

    def select(self, node: int, index: Tensor) -> int:
        """Some entries of a node, in the shape of `index`; 0 where it is -1."""
        return self.add(Select(index.to(self.graph.device), self.nodes[node].shape), (node,), tuple(index.shape))

    def zero(self, shape: tuple[int, ...]) -> int:
        """Zeros."""
        return self.keep(self.select(0, torch.full(shape, -1, device="cpu")))

    def constant(self, values: Tensor, shape: tuple[int, ...], exact: bool) -> int:
        """A node of constants, as many as `shape` has entries, which may have been rounded once."""
        index, bias = torch.full(shape, -1, device=self.graph.device), values.reshape(shape).to(self.graph.device, self.graph.dtype)
        return self.add(Select(index, self.nodes[0].shape, bias, 0 if exact else 1), (0,), shape)

    def linear(self, weight: Tensor, node: int, rounded: int = 0) -> int:
        """A matrix (n, size) times the flat entries of a node."""
        flat = self.shaped(node, (self.nodes[node].size,))
        return self.keep(self.add(Linear(weight.to(self.graph.device, self.graph.dtype), None, rounded), (flat,), (len(weight),)))

    def sum(self, parts: list[int], shape: tuple[int, ...]) -> int:
        """The sum of nodes of one size."""
        parts = [self.shaped(part, shape) for part in parts]
        return parts[0] if len(parts) == 1 else self.keep(self.add(Sum((1,) * len(parts)), parts, shape))

    def keep(self, node: int) -> int:
        """Note that a node holds differences."""
        self.kept.add(node)
        return node

    def add(self, op: Operator, inputs: Sequence[int], shape: tuple[int, ...], name: str = "") -> int:
        """Append a node."""
        self.nodes.append(Node(len(self.nodes), op, tuple(inputs), shape, name))
        return len(self.nodes) - 1

    @staticmethod
    def reading_all(node: Node, size: int) -> Node:
        """A node that reads the inputs, of which there are more now."""
        if node.inputs != (0,):
            return node
        assert isinstance(node.op, Select)
        return replace(node, op=replace(node.op, in_shape=(size,)))


def whole(places: Places, node: Node) -> bool:
    """Whether places are all entries of a node in their order."""
    return len(places) == node.size and bool((places == torch.arange(node.size, device="cpu")).all())
