"""Copies of one network in one graph, written in many ways, for tests of differences between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from product_networks import Grower

from milpverify.graph import Graph, Node, evaluate

Array = np.ndarray


@dataclass(frozen=True)
class Layers:
    """Weights (n, m) and biases (m,) of the layers of one network, and the function between each two."""

    weights: tuple[Array, ...]
    biases: tuple[Array, ...]
    functions: tuple[str, ...]

    @property
    def nx(self) -> int:
        return int(self.weights[0].shape[0])

    def on(self, g: Grower, x: Node) -> Node:
        """The network of the last axis of a node."""
        for k, (w, b) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = g.scale(g.matmul(g.call(self.functions[k - 1], x) if k else x, w), bias=b)
        return x

    def values(self, x: torch.Tensor) -> torch.Tensor:
        """Its outputs at points (N, nx), by the graph of one copy alone."""
        g = Grower(self.nx, 0)
        return evaluate(g.finished(self.on(g, g.nodes[0])), x)


def layers(sizes: Sequence[int], functions: Sequence[str], seed: int, monotone: bool = False) -> Layers:
    """Random layers, without negative weights where monotone; of few binary digits, so that rationals stay short."""
    rng = np.random.default_rng(seed)
    weights = [np.round(96 * rng.normal(size=(n, m)) / n**0.5) / 64 for n, m in pairwise(sizes)]
    biases = [np.round(20 * rng.normal(size=m)) / 64 for m in sizes[1:]]
    between = tuple(functions[k % len(functions)] for k in range(len(sizes) - 2))
    return Layers(tuple(np.abs(w) if monotone else w for w in weights), tuple(biases), between)


def branches(f: Layers, count: int = 2, other: Layers | None = None) -> Graph:
    """Slices of the input, each with a branch of its own; the last of another network where that is given."""
    g, n = Grower(count * f.nx, 0), f.nx
    parts = [g.select(g.nodes[0], np.arange(k * n, (k + 1) * n)) for k in range(count)]
    nets = [f] * (count - 1) + [other or f]
    return g.finished(g.concat([net.on(g, x) for net, x in zip(nets, parts, strict=True)], 0))


def batch(f: Layers, count: int = 2) -> Graph:
    """One network on the rows of a matrix."""
    g = Grower(count * f.nx, 0)
    return g.finished(f.on(g, g.reshape(g.nodes[0], (count, f.nx))))


def blocks(f: Layers, count: int = 2) -> Graph:
    """Block-diagonal weights."""
    g = Grower(count * f.nx, 0)
    weights = tuple(np.kron(np.eye(count), w) for w in f.weights)
    wide = Layers(weights, tuple(np.tile(b, count) for b in f.biases), f.functions)
    return g.finished(wide.on(g, g.nodes[0]))


def sharing(f: Layers, common: int) -> Graph:
    """Two branches that share their last `common` inputs."""
    own = f.nx - common
    g = Grower(2 * own + common, 0)
    shared = np.arange(2 * own, 2 * own + common)
    parts = [g.select(g.nodes[0], np.concatenate([np.arange(k * own, (k + 1) * own), shared])) for k in range(2)]
    return g.finished(g.concat([f.on(g, x) for x in parts], 0))


def beside(f: Layers, other: Layers) -> Graph:
    """Two networks on the same input."""
    g = Grower(f.nx, 0)
    return g.finished(g.concat([f.on(g, g.nodes[0]), other.on(g, g.nodes[0])], 0))


def perturbed(f: Layers, seed: int, bits: int = 4, pruned: float = 0.0) -> Layers:
    """Weights rounded to so many binary digits behind the point, and some of the small ones left out."""
    rng = np.random.default_rng(seed)
    weights = tuple(np.where(rng.random(w.shape) < pruned, 0.0, np.round(w * 2**bits) / 2**bits) for w in f.weights)
    return Layers(weights, tuple(np.round(b * 2**bits) / 2**bits for b in f.biases), f.functions)
