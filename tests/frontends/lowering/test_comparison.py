"""The comparison at load: cheap bounds of rounding errors first, which excuse nothing that the full ones would not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from milpverify.errors import InvalidModel
from milpverify.frontends.lowering.builder import Builder
from milpverify.frontends.lowering.comparison import Comparison, Run, comparable_points
from milpverify.frontends.lowering.rule import LoweringTuning
from milpverify.graph import Graph, TensorSpec, evaluate_all
from milpverify.operators import Conv, Linear
from milpverify.spec import Box

NX = 6400


def network() -> Graph:
    """A convolution and a matrix with long sums, and a ReLU between that is dead at most entries."""
    random = np.random.default_rng(0)
    g = Builder(NX)
    x = g.reshape(g.nodes[0], (1, 64, 10, 10))
    for name, make in (
        ("conv", lambda y: g.scale(g.conv(y, random.standard_normal((4, 64, 3, 3)).astype(np.float32)), bias=np.full((4, 1, 1), -50.0))),
        ("relu", g.relu),
        ("flat", lambda y: g.reshape(y, (1, y.size))),
        ("matrix", lambda y: g.matmul(y, random.standard_normal((256, 3)).astype(np.float32))),
    ):
        since, g.name = len(g.nodes), name
        x = g.finish(make(x), since)
    return g.graph([x], (TensorSpec("x", (NX,)),), (TensorSpec("matrix", (1, 3)),))


def run_of(graph: Graph, off: dict[str, float]) -> Run:
    """What a runtime computes in float32, some tensors of it off by so much at one entry."""

    def run(x: np.ndarray) -> dict[str, np.ndarray]:
        values = evaluate_all(graph.to(torch.float32), torch.from_numpy(x).float()[None])
        found = {node.name: value[0].numpy().copy() for node, value in zip(graph.nodes, values, strict=True) if node.name in NAMES}
        for name, much in off.items():
            found[name].reshape(-1)[7 % found[name].size] += much
        return found

    return run


NAMES = ("conv", "relu", "matrix")


def compare(graph: Graph, off: dict[str, float], box: Box) -> None:
    points, largest = comparable_points(graph, box, 0)
    Comparison(graph, "the runtime", str).judge_runs(points, run_of(graph, off), largest)


@pytest.mark.parametrize("dead", [0, 32])
def test_rounding_is_excused_and_no_more(dead: int) -> None:
    """Also where the part of the sum that is formed first is 0: the first channels are dead."""
    graph = network()
    assert any(isinstance(node.op, Conv) and node.op.length >= LoweringTuning().long for node in graph.nodes)
    assert any(isinstance(node.op, Linear) and node.op.length >= LoweringTuning().long for node in graph.nodes)
    upper = np.ones((64, 100)) * (np.arange(64) >= dead)[:, None]
    box = Box(np.zeros(NX), upper.reshape(-1))
    compare(graph, {}, box)
    for name, much in (("conv", 0.05), ("relu", 1e-3), ("matrix", 0.01)):
        with pytest.raises(InvalidModel, match=f"differs from the runtime at {name}"):
            compare(graph, {name: much}, box)


def test_a_part_bounds_no_more_than_the_whole() -> None:
    graph = network()
    comparison = Comparison(graph, "the runtime", str)
    comparison.roundoff = 2.0**-24
    for node in graph.nodes:
        if isinstance(node.op, Conv | Linear):
            args = [(torch.randn(2, *graph.nodes[i].shape), None) for i in node.inputs]
            value = torch.zeros(2, *node.shape)
            part, whole = (comparison.error(node.op, args, value, in_part) for in_part in (True, False))
            assert bool((part < whole).all())


def test_dear_networks_are_compared_at_fewer_points() -> None:
    box = Box(np.zeros(NX), np.ones(NX))
    graph = network()
    assert len(comparable_points(graph, box, 0)[0]) == 6
    g = Builder(NX)
    wide = g.conv(g.reshape(g.nodes[0], (1, 1, 80, 80)), np.ones((32, 1, 31, 31)))
    dear = g.graph([wide], (TensorSpec("x", (NX,)),), (TensorSpec("y", wide.shape),))
    points, _ = comparable_points(dear, box, 0)
    assert len(points) == 2 and len(np.unique(points[1])) == 2
