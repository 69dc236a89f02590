"""Networks with products of two variables: random ones, attention, recurrent cells, rational functions."""

from __future__ import annotations

import numpy as np

from milpverify.frontends.lowering.builder import Builder
from milpverify.functions.catalogue import catalogue
from milpverify.graph import Graph, Node

Array = np.ndarray


class Grower(Builder):
    """A builder with a random generator and functions by name."""

    def __init__(self, nx: int, seed: int) -> None:
        super().__init__(nx)
        self.rng = np.random.default_rng(seed)

    def layer(self, x: Node, size: int, scale: float = 1.0) -> Node:
        """A random affine map of the last axis, with a bias."""
        n = x.shape[-1]
        return self.scale(self.matmul(x, scale * self.rng.normal(size=(n, size)) / n**0.5), bias=0.3 * scale * self.rng.normal(size=size))

    def call(self, name: str, x: Node) -> Node:
        return self.apply(catalogue()[name].bind(), x)

    def softmax(self, x: Node) -> Node:
        """Over the last axis, as exponentials, their sum's reciprocal and a product."""
        e = self.call("exp", x)
        return self.product(e, self.call("reciprocal", self.reduce_sum(e, [len(x.shape) - 1])))

    def finished(self, *outputs: Node) -> Graph:
        return self.graph(outputs, (), ())


def product_network(seed: int, nx: int = 4) -> Graph:
    """Products of affine forms, of products, of functions' outputs, of the inputs themselves; broadcast, residual and shared factors."""
    g = Grower(nx, seed)
    x = g.nodes[0]
    a, b = g.layer(x, 3), g.layer(x, 3)
    p = g.product(a, b)
    q = g.product(g.layer(p, 3), g.call(("relu", "abs", "sigmoid", "tanh")[seed % 4], a))
    r = g.product(p, g.product(q, b)) if seed % 2 else g.sum([p, q], [1, -1])
    wide = g.product(g.reshape(r, (3, 1)), g.reshape(g.call("relu", b), (1, 3)))
    ends = g.product(g.select(x, np.arange(nx - 1)), g.select(x, np.arange(1, nx)))
    return g.finished(g.layer(g.concat([g.reshape(wide, (9,)), ends, r], 0), 3))


def attention_network(seed: int, tokens: int = 3, dim: int = 4, heads: int = 2, nx: int = 4, sharp: float = 1.0) -> Graph:
    """A transformer block: heads of attention with a softmax, a residual, a ReLU layer, and a linear head."""
    g = Grower(nx, seed)
    x = g.reshape(g.layer(g.nodes[0], tokens * dim), (tokens, dim))
    q, k, v = (g.permute(g.reshape(g.layer(x, dim, sharp), (tokens, heads, dim // heads)), (1, 0, 2)) for _ in range(3))
    weights = g.softmax(g.scale(g.matmul_nodes(q, g.transpose(k)), (dim // heads) ** -0.5))
    mixed = g.reshape(g.permute(g.matmul_nodes(weights, v), (1, 0, 2)), (tokens, dim))
    y = g.sum([x, g.layer(mixed, dim)])
    y = g.sum([y, g.layer(g.relu(g.layer(y, 2 * dim)), dim)])
    return g.finished(g.layer(g.reshape(y, (tokens * dim,)), 2))


def recurrent_network(seed: int, steps: int = 2, size: int = 2, nx: int = 2) -> Graph:
    """LSTM cells, unrolled: gates by sigmoid, products with tanh, a cell state that is carried along."""
    g = Grower(steps * nx, seed)
    h, c = g.constant(np.zeros(size)), g.constant(np.zeros(size))
    maps = [(g.rng.normal(size=(nx, size)), g.rng.normal(size=(size, size)), g.rng.normal(size=size)) for _ in range(4)]
    for t in range(steps):
        x = g.select(g.nodes[0], np.arange(t * nx, (t + 1) * nx))
        gates = [g.scale(g.sum([g.matmul(x, w), g.matmul(h, u)]), bias=bias) for w, u, bias in maps]
        i, f, o = (g.call("sigmoid", z) for z in gates[:3])
        c = g.sum([g.product(f, c), g.product(i, g.call("tanh", gates[3]))])
        h = g.product(o, g.call("tanh", c))
    return g.finished(g.layer(h, 2))
