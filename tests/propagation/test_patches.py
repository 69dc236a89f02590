"""Rows in windows come to the bounds of whole rows, whatever the tile, through all that windows go through."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from random_graphs import Builder, boxes, sample

from milpverify.graph import Graph, Node, evaluate_all
from milpverify.operators import Conv, Permute, Reshape, Scale, Sum, Window
from milpverify.operators.window import filled
from milpverify.propagation import passes as passes_module
from milpverify.propagation.crown import bound_rows, crown
from milpverify.propagation.memory import boxes_that_fit
from milpverify.propagation.patches import Tiling, cost, tiling
from milpverify.propagation.request import BoundRequest, BoundTuning, CostTuning
from milpverify.propagation.screening import Gram

pytestmark = pytest.mark.usefixtures("no_grad")


def convolved(build: Builder, channels: int, kernel: tuple[int, ...], stride: int = 1, pad: int = 0, dilation: int = 1) -> int:
    """A convolution of the last node, with a bias."""
    shape = build.nodes[-1].shape
    dims = len(kernel)
    weight = build.normal(channels, shape[1], *kernel) / (shape[1] * torch.tensor(kernel).prod()) ** 0.5
    op = Conv(weight, (stride,) * dims, ((pad, pad),) * dims, (dilation,) * dims, 1, shape, 0.3 * build.normal(channels, *[1] * dims))
    return build.add(op, tuple(op.linear([torch.zeros(1, *shape, dtype=torch.float64)]).shape[1:]))


def network() -> Graph:
    """Strides, pads, dilation, a skip connection with a kernel of its own, channels last, and maps in a row."""
    build = Builder(2 * 13 * 12, 3)
    build.add(Reshape((2 * 13 * 12,), (1, 2, 13, 12)), (1, 2, 13, 12))
    convolved(build, 4, (3, 3), 2, 1)
    skipped = build.apply("relu")
    convolved(build, 4, (3, 3), 1, 1)
    build.add(Scale(build.normal(4, 1, 1), build.normal(4, 1, 1)), build.nodes[-1].shape)
    build.add(Sum((1, -1)), build.nodes[-1].shape, len(build.nodes) - 1, skipped)
    build.apply("relu")
    convolved(build, 3, (2, 3), 1, 1)
    convolved(build, 3, (2, 2), 1, 0, 2)
    last = build.nodes[-1].shape
    build.add(Permute((0, 2, 3, 1)), (last[0], last[2], last[3], last[1]))
    build.add(Scale(build.normal(3)), build.nodes[-1].shape)
    build.apply("leaky_relu")
    build.add(Permute((0, 3, 1, 2)), last)
    convolved(build, 2, (3, 3), 1, 2)
    build.apply("relu")
    size = build.nodes[-1].size
    build.add(Reshape(build.nodes[-1].shape, (size,)), (size,))
    build.linear(5)
    build.apply("relu")
    build.linear(2)
    return build.graph()


@pytest.mark.parametrize("inner", [None, torch.float64])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_windows_come_to_the_bounds_of_whole_rows(size: int, inner: torch.dtype | None, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = network()
    lower, upper = boxes(graph, 3, 0.2, 5)
    dtype = torch.float64 if inner is None else torch.float32
    used = set()

    def tiled(graph: Graph, node: Node, rows: float, tuning: CostTuning) -> Tiling | None:
        if len(node.shape) < 4:
            return None
        axes = (2, 3) if node.shape[-1] > 3 else (1, 2)
        tile = tuple(min(size, node.shape[a]) for a in axes)
        used.add(node.id)
        return Tiling(node.shape, axes, tile, cost(graph, node, node.shape, axes, tile, tuning))

    monkeypatch.setattr(passes_module, "tiling", lambda *_: None)
    plain, _ = crown(graph, lower, upper, dtype, BoundRequest(inner=inner))
    monkeypatch.setattr(passes_module, "tiling", tiled)
    found, _ = crown(graph, lower, upper, dtype, BoundRequest(inner=inner))
    assert len(used) >= 3
    close = {"rtol": 0.0, "atol": 1e-10 if inner is None else 1e-4}
    for i, known in plain.items():
        torch.testing.assert_close(found[i].bounds.lower, known.bounds.lower, **close)
        torch.testing.assert_close(found[i].bounds.upper, known.bounds.upper, **close)
    points = sample(lower, upper, 50)
    for i, value in enumerate(evaluate_all(graph, points.flatten(0, 1))):
        value = value.reshape(*points.shape[:2], *value.shape[1:])
        assert (found[i].bounds.lower.unsqueeze(1) <= value + 1e-12).all() and (found[i].bounds.upper.unsqueeze(1) >= value - 1e-12).all()


def test_windows_see_entries_and_zeros_beyond() -> None:
    window = Window((1, 2, 3, 4), (2, 3), torch.tensor([[-1, 0], [1, 3]]), (3, 2), clean=False)
    values = torch.arange(1.0, 25.0).reshape(1, 1, 1, 2, 3, 4)
    found = window.cut(filled(values), torch.tensor([0, 0]))
    assert found[0, 0, 0].tolist() == [[[0, 0], [1, 2], [5, 6]], [[0, 0], [13, 14], [17, 18]]]
    assert found[0, 1, 0].tolist() == [[[8, 0], [12, 0], [0, 0]], [[20, 0], [24, 0], [0, 0]]]
    rows = torch.ones(2, 5, *window.within)
    whole = window.whole(rows)
    assert torch.equal(whole[:, 0] * values[0], window.whole(found[0].unsqueeze(1))[:, 0])
    assert torch.equal(window.cleaned(rows)[:, :1], (found[0] > 0).float().unsqueeze(1))


def test_windows_join_where_they_lie_alike() -> None:
    one = Window((1, 2, 9), (2,), torch.tensor([[0], [3]]), (2,))
    other = Window((1, 2, 9), (2,), torch.tensor([[-1], [2]]), (4,), clean=False)
    both = one.joined(other)
    assert both is not None and both.size == (4,) and both.start.tolist() == [[-1], [2]] and not both.clean
    assert one.grown(torch.ones(2, 1, 1, 2, 2), both)[0, 0, 0, 0].tolist() == [0, 1, 1, 0]
    assert one.joined(Window((1, 2, 9), (2,), torch.tensor([[0], [4]]), (2,))) is None


def test_small_nodes_go_whole_and_large_ones_in_tiles() -> None:
    graph = network()
    assert tiling(graph, graph.nodes[-1], 5.0) is None
    build = Builder(3 * 32 * 32, 1)
    build.add(Reshape((3 * 32 * 32,), (1, 3, 32, 32)), (1, 3, 32, 32))
    for _ in range(3):
        convolved(build, 8, (3, 3), 1, 1)
        build.apply("relu")
    large = build.graph()
    node = large.nodes[-2]
    found = tiling(large, node, 1000.0)
    assert found is not None and found.axes == (2, 3) and max(found.tile) < 32
    assert found.cost.row * 2 < cost(large, node, node.shape, (), ()).row
    index = torch.tensor([[0, 33, 8191]])
    window = found.window(found.of(index.flatten()))
    assert (found.local(index.T, window) < torch.tensor(window.within).prod()).all()


def test_rows_that_do_not_fit_go_back_in_parts() -> None:
    graph = network()
    lower, upper = boxes(graph, 3, 0.2, 5)
    state, table = crown(graph, lower, upper, torch.float64)
    rows, x_rows = torch.randn(3, 7, graph.ny, dtype=torch.float64), torch.randn(3, 7, graph.nx, dtype=torch.float64)
    whole = bound_rows(graph, state, table, rows, x_rows=x_rows)
    largest = max(node.size for node in graph.nodes)
    tuning = BoundTuning()
    small = replace(tuning, memory_cpu=6 * largest * 8 * tuning.copies)  # two rows of three boxes
    parts = bound_rows(graph, state, table, rows, x_rows=x_rows, tuning=small)
    torch.testing.assert_close(parts.coefficients, whole.coefficients)
    torch.testing.assert_close(parts.lower, whole.lower)
    none = BoundTuning(memory_cpu=1)
    again, _ = crown(graph, lower, upper, torch.float64, BoundRequest(tuning=none))
    assert passes_module.rows_at_once(graph, tuning=none) == 2
    for i, known in state.items():
        torch.testing.assert_close(again[i].bounds.lower, known.bounds.lower, rtol=0.0, atol=1e-10)


def test_boxes_that_do_not_fit_are_not_bounded_together() -> None:
    graph = network()
    many = boxes_that_fit(graph)
    assert boxes_that_fit(graph, varying=40) < many
    half = BoundTuning(memory_cpu=BoundTuning().memory_cpu // 2)
    assert many // 2 - 1 <= boxes_that_fit(graph, tuning=half) <= many // 2 + 1
    assert boxes_that_fit(graph, tuning=BoundTuning(memory_cpu=1)) == 1


def test_a_convolution_has_no_dense_matrix_for_the_norm_inequality() -> None:
    build = Builder(3 * 32 * 32, 1)
    build.add(Reshape((3 * 32 * 32,), (1, 3, 32, 32)), (1, 3, 32, 32))
    convolved(build, 2, (4, 4), 2, 1)
    build.apply("relu")
    build.add(Reshape(build.nodes[-1].shape, (build.nodes[-1].size,)), (build.nodes[-1].size,))
    build.linear(3)
    graph = build.graph()
    assert 4 * graph.nodes[2].size <= graph.nx
    assert Gram.of(graph, graph, torch.ones(graph.nx, dtype=torch.float64)) is None


def test_what_lies_beyond_a_node_stays_outside_where_pads_are_negative() -> None:
    op = Conv(torch.ones(1, 1, 1, 1, dtype=torch.float64), (1, 1), ((0, -1), (0, -1)), (1, 1), 1, (1, 1, 8, 8))
    assert op.behind(Window((1, 1, 7, 7), (2, 3), torch.tensor([[5, 5]]), (3, 3), clean=False), (1, 1, 7, 7)) is None
