"""Entries that say the same are merged, and the function stays; networks without such entries stay as they are."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from random_nets import Stack, relu_network

from milpverify.frontends.lowering.redundancy import without_repeats
from milpverify.frontends.network import load_network
from milpverify.functions.catalogue import catalogue
from milpverify.graph import Graph, Node, evaluate, evaluate_all
from milpverify.operators import Elementwise, Input, Linear, Reshape
from milpverify.spec import Box

RELU = Elementwise(catalogue()["relu"].bind())


def functions(graph: Graph) -> int:
    return sum(node.size for node in graph.nodes if isinstance(node.op, Elementwise))


def linear(weight: object, bias: object = None) -> Linear:
    return Linear(*(None if a is None else torch.tensor(np.asarray(a, dtype=np.float64)) for a in (weight, bias)))  # type: ignore[arg-type]


def extremum(pieces: int, sign: float, choice: list[int], seed: int) -> tuple[Graph, np.ndarray, np.ndarray]:
    """The least (sign 1) or largest (-1) of chosen affine functions of two inputs, by pairs of four relus; and all functions."""
    rng = np.random.default_rng(seed)
    weight, bias = (rng.normal(size=shape).astype(np.float32).astype(np.float64) for shape in ((pieces, 2), (pieces,)))
    net = Stack(2)
    last = net.add(linear(weight, bias), 0, size=pieces)
    last = net.add(linear(np.eye(pieces)[choice]), last, size=len(choice))
    count = len(choice)
    while count > 1:
        pairs = count // 2
        a, b = np.eye(count)[0::2], np.eye(count)[1::2]
        last = net.add(linear(np.concatenate([a + b, -a - b, a - b, b - a])), last, size=4 * pairs)
        last = net.add(RELU, last, size=4 * pairs)
        one = np.eye(pairs)
        last = net.add(linear(np.concatenate([0.5 * one, -0.5 * one, -0.5 * sign * one, -0.5 * sign * one], 1)), last, size=pairs)
        count = pairs
    return net.graph(), weight, bias


def test_a_minimum_of_relus_becomes_one_relu_a_pair() -> None:
    graph, weight, bias = extremum(8, 1.0, list(range(8)), seed=0)
    merged = without_repeats(graph)
    assert functions(graph) == 4 * 7
    assert functions(merged) == 7
    x = torch.randn(200, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = (x @ torch.tensor(weight).T + torch.tensor(bias)).amin(1, keepdim=True)
    assert torch.allclose(evaluate(merged, x), expected, rtol=0, atol=1e-12)


def test_pieces_that_are_named_twice_are_compared_once() -> None:
    graph, weight, bias = extremum(4, -1.0, [0, 0, 1, 2, 2, 2, 1, 2], seed=1)
    merged = without_repeats(graph)
    # Of the pairs 0-0, 1-2, 2-2, 1-2 one is left; then 0 against 1-2, 2 against 1-2, and both winners.
    assert functions(merged) == 4
    x = torch.randn(200, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = (x @ torch.tensor(weight[:3]).T + torch.tensor(bias[:3])).amax(1, keepdim=True)
    assert torch.allclose(evaluate(merged, x), expected, rtol=0, atol=1e-12)


def test_random_networks_with_repeats_stay_the_same_functions() -> None:
    rng = np.random.default_rng(2)
    for seed in range(20):
        net = Stack(3)
        sizes = [3, *rng.integers(3, 8, size=3).tolist()]
        last, function = 0, Elementwise(catalogue()["relu" if seed % 4 else "leaky_relu"].bind(**({} if seed % 4 else {"alpha": 0.25})))
        for columns, rows in itertools.pairwise(sizes):
            weight, bias = rng.integers(-4, 5, (rows, columns)) / 4.0, rng.integers(-4, 5, rows) / 4.0
            twice, sign = rng.integers(0, rows, size=2 * rows), rng.choice([-1.0, 0.0, 1.0, 1.0], size=2 * rows)
            last = net.add(linear(weight[twice] * sign[:, None], bias[twice] * sign), last, size=2 * rows)
            last = net.add(function, last, size=2 * rows)
            last = net.add(linear(rng.integers(-4, 5, (rows, 2 * rows)) / 8.0), last, size=rows)
        graph = net.graph()
        merged = without_repeats(graph)
        assert functions(merged) < functions(graph)
        x = torch.randn(100, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        assert torch.allclose(evaluate(merged, x), evaluate(graph, x), rtol=1e-12, atol=1e-12)


def test_networks_without_repeats_and_those_that_float64_cannot_merge_stay() -> None:
    graph = relu_network([3, 20, 20, 2], seed=0)
    assert without_repeats(graph) is graph
    for weight in ([1.0, 2.0**-60], [1.5e308, 1.5e308]):  # 1 + 2^-60 is no float64, nor is 3e308
        net = Stack(1)
        last = net.add(RELU, net.add(linear([[1.0], [1.0]]), 0, size=2), size=2)
        net.add(linear([weight]), last, size=1)
        graph = net.graph()
        assert without_repeats(graph) is graph


def test_outputs_that_are_the_same_stay_outputs() -> None:
    net = Stack(2)
    last = net.add(RELU, net.add(linear([[1.0, 2.0], [-1.0, -2.0]]), 0, size=2), size=2)
    net.add(linear([[1.0, 1.0], [1.0, 1.0], [0.0, 0.0]], [0.0, 0.0, 3.0]), last, size=3)
    merged = without_repeats(net.graph())
    assert functions(merged) == 1
    x = torch.tensor([[1.0, 2.0], [-3.0, 0.5]], dtype=torch.float64)
    assert evaluate_all(merged, x)[merged.output].tolist() == [[5.0, 5.0, 3.0], [2.0, 2.0, 3.0]]


def test_constants_that_are_left_keep_their_axes() -> None:
    ops = Input(), Reshape((2,), (1, 2)), linear([[1.0, 2.0], [1.0, 2.0]]), RELU, linear([[1.0, -1.0]], [0.5]), Reshape((1, 1), (1,))
    shapes = (2,), (1, 2), (1, 2), (1, 2), (1, 1), (1,)
    nodes = [Node(i, op, (i - 1,) if i else (), shape) for i, (op, shape) in enumerate(zip(ops, shapes, strict=True))]
    merged = without_repeats(Graph(tuple(nodes), 5))
    assert functions(merged) == 0
    assert evaluate(merged, torch.randn(3, 2, dtype=torch.float64)).tolist() == [[0.5]] * 3


def test_what_cancels_is_compared_with_the_runtime_before() -> None:
    """The module rounds each of two sums that differ by their signs alone; of the graph nothing is left but the bias."""
    net = torch.nn.Sequential(torch.nn.Linear(3, 120), torch.nn.ReLU(), torch.nn.Linear(120, 1)).eval()
    random = torch.Generator().manual_seed(0)
    order, half, out = torch.randperm(120, generator=random), *(torch.randn(*s, generator=random) for s in ((60, 3), (1, 60)))
    net[0].weight.data = torch.cat([half, half])[order]
    net[0].bias.data.zero_()
    net[2].weight.data = torch.cat([out, -out], 1)[:, order]
    net[2].bias.data.fill_(1e-3)
    graph = load_network(net, Box(-np.ones(3), np.ones(3))).graph
    assert functions(graph) == 0
