"""Sparse matrices are the dense ones in all that is asked of them, and networks of them are bounded and decided alike."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import milpverify as mv
from milpverify.operators import Linear, SparseLinear
from milpverify.operators.core import OperatorTuning


def matrix(m: int, n: int, each: int, seed: int) -> torch.Tensor:
    """A matrix with so many entries in every row, some columns of which are empty."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.zeros(m, n, dtype=torch.float64)
    column = torch.randint(0, n, (m, each), generator=generator)
    return weight.scatter_(1, column, torch.randn(m, each, dtype=torch.float64, generator=generator))


def pair(seed: int) -> tuple[Linear, SparseLinear]:
    dense = Linear(matrix(160, 140, 1 + seed, seed), torch.randn(160, dtype=torch.float64) if seed % 2 else None, rounded=seed)
    sparse = SparseLinear.of(dense)
    assert sparse is not None
    return dense, sparse


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_same_map(seed: int, dtype: torch.dtype) -> None:
    dense, sparse = (op.to(dtype, torch.device("cpu")) for op in pair(seed))
    assert isinstance(dense, Linear) and isinstance(sparse, SparseLinear)
    x, y = torch.randn(3, 2, 140, dtype=dtype), torch.randn(3, 2, 160, dtype=dtype)
    close = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(sparse.forward([x]), dense.forward([x]), **close)
    torch.testing.assert_close(sparse.adjoint(y)[0], dense.adjoint(y)[0], **close)
    torch.testing.assert_close(sparse.absolute().forward([x]), dense.absolute().forward([x]), **close)
    index = torch.tensor([0, 7, 159, 200])
    torch.testing.assert_close(sparse.rows(index, (2, 160))[0], dense.rows(index, (2, 160))[0], **close)
    assert sparse.directions == dense.directions and sparse.lost(torch.float32) == dense.lost(torch.float32)
    assert sparse.absolute().directions == (1,) and sparse.rounded == dense.rounded


def test_inner_products_are_as_long_as_rows_and_columns() -> None:
    weight = torch.zeros(200, 100, dtype=torch.float64)
    weight[3, :7] = 1.0
    weight[10:15, 50] = 2.0
    sparse = SparseLinear.of(Linear(weight))
    assert sparse is not None
    assert (sparse.length, sparse.adjoint_length, sparse.products((2, 200))) == (7, 5, 24)
    assert SparseLinear.of(Linear(torch.zeros(200, 100, dtype=torch.float64))).length == 1  # type: ignore[union-attr]


def test_what_is_small_or_full_stays_dense() -> None:
    assert SparseLinear.of(Linear(torch.eye(10, dtype=torch.float64))) is None
    assert SparseLinear.of(Linear(torch.ones(200, 200, dtype=torch.float64))) is None
    assert SparseLinear.of(Linear(torch.eye(10, dtype=torch.float64)), OperatorTuning(sparse=0.1, fewest=100)) is not None


def test_gradients() -> None:
    dense, sparse = pair(1)
    x = torch.randn(5, 140, dtype=torch.float64, requires_grad=True)
    found = [torch.autograd.grad(op.adjoint(op.linear([x]))[0].square().sum(), x)[0] for op in (dense, sparse)]
    torch.testing.assert_close(found[0], found[1])


def network(sparse: bool) -> mv.Graph:
    """A network with pairs of entries compared, as trees of maxima are built: as it is read, or with dense matrices."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 150), nn.ReLU(), nn.Linear(150, 150), nn.ReLU(), nn.Linear(150, 2)).eval()
    net[2].weight.data = matrix(150, 150, 2, 0).float()  # type: ignore[union-attr]
    problem = mv.Problem(net, mv.Box(np.zeros(3), np.ones(3)), unsafe="(>= Y_0 Y_1)")
    graph = problem.graph
    assert [type(n.op) for n in graph.nodes].count(SparseLinear) == 1
    if sparse:
        return graph

    def dense(op: object) -> object:
        if not isinstance(op, SparseLinear):
            return op
        weight = torch.zeros(op.size, dtype=torch.float64).index_put((op.row, op.column), op.values)
        return Linear(weight, op.bias, op.rounded)

    return replace(graph, nodes=tuple(replace(n, op=dense(n.op)) for n in graph.nodes))  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["ibp", "crown", "alpha-crown", "lp"])
def test_bounds_are_those_of_the_dense_network(method: str) -> None:
    box = mv.Box(np.zeros(3), np.full(3, 0.2))
    sparse, dense = (mv.bounds(network(kind), box, method).output for kind in (True, False))
    torch.testing.assert_close(sparse.lower, dense.lower, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(sparse.upper, dense.upper, rtol=1e-3, atol=1e-5)


def test_optima_by_search_and_by_models() -> None:
    box = mv.Box(np.zeros(3), np.full(3, 0.3))
    found = [mv.minimize(network(True), box, [1.0, -1.0], gap=1e-3, timeout=60.0, method=method) for method in ("bab", "milp")]
    assert all(f.gap <= 1e-3 for f in found)
    assert max(f.lower_bound for f in found) <= min(f.upper_bound for f in found) + 1e-9
