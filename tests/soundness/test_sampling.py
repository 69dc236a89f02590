"""Every bound of every method against sampled points: random ones, corners, and points that gradients pushed to the extremes.

What a node's true value at a point is, is known to within a rigorous enclosure. A bound may cut into that, but never past it: there
is no tolerance. The last tests break bounds, lines and rounding charges on purpose, and see the checks fail.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from importlib import import_module

import numpy as np
import pytest
import relaxation
import torch
from onnx import load_model_from_string
from product_networks import attention_network, product_network, recurrent_network
from random_networks import Builder, Generator
from torch import Tensor

import milpverify as mv
from milpverify.arithmetic.rounding import down, up
from milpverify.bounding import METHODS, NetworkBounds
from milpverify.enclosure import enclose_all
from milpverify.frontends.onnx.lowering import lower as lower_onnx
from milpverify.functions.catalogue import Function, catalogue
from milpverify.graph import Graph, evaluate_all
from milpverify.operators import Affine, Elementwise, Linear, Operator, SparseLinear
from milpverify.propagation import interval as interval_propagation
from milpverify.propagation.backward import LineTable, SplitTable, lines, parallel_lines
from milpverify.propagation.crown import bound_rows, crown
from milpverify.propagation.optimised import alpha, beta
from milpverify.propagation.state import Bounds, SplitConstraints, State
from milpverify.search.input_split.clip import clip

DTYPES = {"float32": torch.float32, "float64": torch.float64}
POINTS = 2500  # per box, four boxes per network
PARAMETERS = {"clip": {"min": -1.0, "max": 0.5}, "hard_sigmoid": {"alpha": 0.25, "beta": 0.5}}  # breakpoints exact in binary64
LINEAR = {f.name: f for n, e in catalogue().items() if (f := e.bind(**PARAMETERS[n]) if n in PARAMETERS else e.trial()).pieces is not None}


def random_graph(seed: int, scales: list[float], jumps: bool = False) -> Graph:
    """A random network of mixed operators."""
    rng = np.random.default_rng(seed)
    return lower_onnx(load_model_from_string(Generator(rng, 4, 14, jumps).build(scales)[0]))


def layered(function: Function, scales: list[float], seed: int) -> Graph:
    """A dense network with one function of the catalogue after every layer, the layers scaled."""
    rng = np.random.default_rng(seed)
    b, x = Builder(3), "x"
    for scale in scales:
        x = b.relu(b.gemm(x, rng.normal(size=(5, b.shape(x)[1])) * scale, rng.normal(size=5) * scale))
    graph = lower_onnx(load_model_from_string(b.model(b.gemm(x, rng.normal(size=(3, 5)), rng.normal(size=3)))))
    nodes = tuple(replace(n, op=Elementwise(function)) if isinstance(n.op, Elementwise) else n for n in graph.nodes)
    return replace(graph, nodes=nodes)


def cancelling() -> Graph:
    """Biases of 1e9 and 2^20 that cancel, layers scaled by 1e6, 1e-6 and 1e-9: what float32 loses must be charged for."""
    rng = np.random.default_rng(5)
    b = Builder(3)
    x = b.relu(b.gemm("x", rng.normal(size=(5, 3)) * 1e6, np.full(5, 1e9)))
    x = b.relu(b.gemm(x, rng.normal(size=(5, 5)) * 1e-6, rng.normal(size=5) * 1e3))
    x = b.relu(b.gemm(x, rng.normal(size=(5, 5)), np.full(5, 2.0**20)))
    x = b.gemm(x, np.eye(5) - np.eye(5)[[1, 2, 3, 4, 0]], np.zeros(5))
    x = b.relu(b.gemm(x, rng.normal(size=(5, 5)) * 1e-9, rng.normal(size=5) * 1e-6))
    return lower_onnx(load_model_from_string(b.model(b.gemm(x, rng.normal(size=(2, 5)) * 1e9, np.zeros(2)))))


def pairing() -> Graph:
    """Pairs of entries are compared, by matrices that are kept as sparse ones."""
    rng = np.random.default_rng(8)
    b, x = Builder(3), "x"
    for size in (6, 8, 5):
        n = b.shape(x)[1]
        weight = rng.normal(size=(size, n)) * (rng.random((size, n)) < 0.5)
        x = b.relu(b.gemm(x, weight, rng.normal(size=size)))
    graph = lower_onnx(load_model_from_string(b.model(b.gemm(x, rng.normal(size=(3, 5)), rng.normal(size=3)))))

    def sparse(op: Operator) -> Operator:
        if not isinstance(op, Linear):
            return op
        row, column = op.weight.nonzero(as_tuple=True)
        return SparseLinear(op.weight[row, column], row, column, (len(op.weight), op.weight.shape[1]), op.bias, op.rounded)

    return replace(graph, nodes=tuple(replace(n, op=sparse(n.op)) for n in graph.nodes))


def reshaping() -> Graph:
    """Transposition, sums and means over axes, padding, and an input that is read three times."""
    rng = np.random.default_rng(6)
    b = Builder(6)
    x = b.relu(b.add("Reshape", [b.gemm("x", rng.normal(size=(6, 6)), rng.normal(size=6)), b.ints(1, 2, 3)], (1, 2, 3), None))
    turned = b.add("Transpose", [x], (1, 3, 2), None, perm=[0, 2, 1])
    summed = b.add("ReduceSum", [turned, b.ints(2)], (1, 3), None, keepdims=0)
    mean = b.add("ReduceMean", [b.relu(b.gemm(summed, rng.normal(size=(3, 3)), rng.normal(size=3)))], (1, 1), None, axes=[1])
    padded = b.add("Pad", [summed, b.ints(0, 1, 0, 2), b.floats(0.5)], (1, 6), None)
    total = b.add("Sum", [padded, "x", b.add("Mul", [mean, b.floats(np.ones((1, 6)))], (1, 6), None)], (1, 6), None)
    return lower_onnx(load_model_from_string(b.model(b.gemm(b.relu(total), rng.normal(size=(3, 6)), rng.normal(size=3)))))


def upsampling() -> Graph:
    """A strided transposed convolution, as generators have."""
    rng = np.random.default_rng(9)
    b = Builder(4)
    x = b.relu(b.gemm("x", rng.normal(size=(8, 4)), rng.normal(size=8)))
    x = b.add("Reshape", [x, b.ints(1, 2, 2, 2)], (1, 2, 2, 2), None)
    kernel, bias = b.floats(rng.normal(size=(2, 3, 3, 3))), b.floats(rng.normal(size=3))
    x = b.relu(b.add("ConvTranspose", [x, kernel, bias], (1, 3, 5, 5), None, strides=[2, 2]))
    x = b.add("Reshape", [x, b.ints(1, 75)], (1, 75), None)
    return lower_onnx(load_model_from_string(b.model(b.gemm(x, rng.normal(size=(3, 75)) * 0.1, rng.normal(size=3)))))


def boxes(nx: int, seed: int, scale: float = 1.0) -> list[mv.Box]:
    """A wide box, a middling one, a tiny one far from 0, and one with a fixed coordinate."""
    rng = np.random.default_rng(seed)
    centre, width = rng.normal(size=(4, nx)) * scale, rng.uniform(0.2, 1.0, (4, nx)) * scale
    centre[2] += 100.0 * scale
    width *= np.array([10.0, 0.5, 1e-6, 1.0])[:, None]
    width[3, 0] = 0.0
    return [mv.Box(c - w, c + w) for c, w in zip(centre, width, strict=True)]


def points(graph: Graph, box: mv.Box, seed: int, count: int = POINTS) -> Tensor:
    """Points (count, nx) of a box: a third random, a third corners, a third pushed to the extremes of random combinations of nodes."""
    generator = torch.Generator().manual_seed(seed)
    lower, upper = torch.tensor(box.lower), torch.tensor(box.upper)
    unit = torch.rand(count, graph.nx, generator=generator, dtype=torch.float64)
    unit[count // 3 : 2 * count // 3] = unit[count // 3 : 2 * count // 3].round()
    x = (lower + unit * (upper - lower)).clamp(lower, upper)
    pushed = x[2 * count // 3 :]
    for step in (0.5, 0.5, 0.3, 0.2, 0.1, 0.05):
        at = pushed.detach().requires_grad_()
        with torch.enable_grad():
            values = torch.cat([v.flatten(1) for v in evaluate_all(graph, at)[1:]], 1)
            values = values / values.detach().abs().mean(0).clamp(min=1e-300)
            if step == 0.5 and pushed is not x:  # each point keeps its one node entry and direction
                own = torch.Generator().manual_seed(seed)
                entry = torch.randint(values.shape[1], (len(pushed), 1), generator=own)
                sign = torch.randint(2, (len(pushed),), generator=own) * 2.0 - 1.0
            (gradient,) = torch.autograd.grad((values.gather(1, entry)[:, 0] * sign).sum(), at)
        pushed = (pushed + step * (upper - lower) * gradient.nan_to_num().sign()).clamp(lower, upper)
    return torch.cat([x[: 2 * count // 3], pushed])


def enclosures(graph: Graph, x: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Per node, intervals (N, size) that contain its true values."""
    return [(lower.flatten(1), upper.flatten(1)) for lower, upper in enclose_all(graph, x)]


def outside(bounds: Bounds, box: int, truth: tuple[Tensor, Tensor]) -> int:
    """How many sampled values are certainly outside the bounds of a node, or bounds that are NaN."""
    low, high = bounds.lower[box].reshape(-1), bounds.upper[box].reshape(-1)
    return int((~(low <= truth[1])).sum() + (~(high >= truth[0])).sum())


def violations(found: dict[int, Bounds] | NetworkBounds, box: int, truths: list[tuple[Tensor, Tensor]]) -> list[str]:
    return [f"node {i}: {n} outside" for i in found if (n := outside(found[i], box, truths[i]))]


NETWORKS: dict[str, tuple[Callable[[], Graph], float]] = {
    **{f"mixed {seed}": (lambda seed=seed: random_graph(seed, [1.0, 1.0, 1.0], seed % 3 == 0), 1.0) for seed in range(10)},  # type: ignore[misc]
    **{name: (lambda name=name: layered(LINEAR[name], [1.0, 1.0, 1.0], 1), 1.0) for name in LINEAR},  # type: ignore[misc]
    "1e6, 1e-6": (lambda: random_graph(101, [1e6, 1e-6, 1.0]), 1.0),
    "1e-9, 1e9": (lambda: layered(LINEAR["relu"], [1e-9, 1e9, 1.0], 2), 1.0),
    "1e6 with abs": (lambda: layered(LINEAR["abs"], [1e6, 1e6, 1e-9], 3), 1.0),
    "tiny inputs": (lambda: random_graph(102, [1.0, 1.0, 1.0]), 1e-9),
    "huge inputs": (lambda: random_graph(103, [1.0, 1.0, 1.0]), 1e6),
    "cancelling": (cancelling, 1.0),
    "reshaping": (reshaping, 1.0),
    "upsampling": (upsampling, 1.0),
    "pairing": (pairing, 1.0),
    **{f"products {seed}": (lambda seed=seed: product_network(seed), 1.0) for seed in range(4)},  # type: ignore[misc]
    "tiny products": (lambda: product_network(4), 1e-9),
    "huge products": (lambda: product_network(5), 1e4),
    "attention": (lambda: attention_network(0, sharp=0.3), 0.05),
    "recurrent": (lambda: recurrent_network(0), 1.0),
}


@pytest.fixture(scope="module", params=sorted(NETWORKS))
def sampled(request: pytest.FixtureRequest) -> tuple[Graph, list[mv.Box], list[Tensor], list[list[tuple[Tensor, Tensor]]]]:
    make, scale = NETWORKS[request.param]
    graph = make()
    some = boxes(graph.nx, 7, scale)
    xs = [points(graph, box, k) for k, box in enumerate(some)]
    return graph, some, xs, [enclosures(graph, x) for x in xs]


Sampled = tuple[Graph, list[mv.Box], list[Tensor], list[list[tuple[Tensor, Tensor]]]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", METHODS)
def test_no_sample_is_outside_any_bound(sampled: Sampled, method: str, dtype: str) -> None:
    graph, some, _, truths = sampled
    found = mv.bounds(graph, some, method, DTYPES[dtype])
    assert set(found) == {n.id for n in graph.nodes}
    for k in range(len(some)):
        assert not violations(found, k, truths[k])
        assert bool((found.output.width[k] >= 0).all())


class Rows:
    """Random rows over outputs and inputs, and what they are at the points, rigorously."""

    def __init__(self, graph: Graph, batch: int, seed: int) -> None:
        g = torch.Generator().manual_seed(seed)
        self.y = torch.randn(batch, 6, graph.ny, generator=g, dtype=torch.float64)
        self.y[:, :2] = self.y[:, :2].round()
        self.x = torch.randn(batch, 6, graph.nx, generator=g, dtype=torch.float64)
        self.x[:, 1::2] = 0.0

    def least(self, box: int, x: Tensor, truth: tuple[Tensor, Tensor]) -> Tensor:
        """An upper end of the enclosure of each row's true value at each point, (N, rows)."""
        low, high = truth
        y, xr = self.y[box], self.x[box]
        value = high @ y.clamp(min=0).T + low @ y.clamp(max=0).T + x @ xr.T
        size = torch.maximum(low.abs(), high.abs()) @ y.abs().T + x.abs() @ xr.abs().T
        return value + 64 * 2.0**-53 * size


def start_state(graph: Graph, some: list[mv.Box], dtype: torch.dtype) -> tuple[State, LineTable, Graph]:
    lower, upper = (torch.stack([torch.tensor(side) for side in sides]) for sides in zip(*((b.lower, b.upper) for b in some), strict=True))
    state, table = crown(graph, lower, upper, dtype)
    return state, table, graph.to(dtype)


def tables(graph: Graph, state: State, table: LineTable, dtype: torch.dtype, batch: int) -> dict[str, LineTable]:
    """The lines of CROWN, parallel ones, and lines with slopes that nobody would choose, for all rows or row by row."""
    g = torch.Generator().manual_seed(3)
    found = {"default": table, "parallel": {i: parallel_lines(graph, i, state, dtype) for i in graph.nonlinear}}
    for name, size in (("random", 1.0), ("steep", 1e3), ("flat", 1e-20)):
        for rows in ((), (6,)):
            shape = [batch, *rows]
            made = {}
            for i in graph.nonlinear:
                inputs = len(graph.nodes[i].inputs)
                slopes = (torch.randn(2, inputs, *shape, *graph.nodes[i].shape, generator=g) * size).to(dtype)
                made[i] = lines(graph, i, state, dtype, *(tuple(side) for side in slopes))
            found[f"{name}{' by row' if rows else ''}"] = made
    return found


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_hold_for_any_lines(sampled: Sampled, dtype: str) -> None:
    graph, some, xs, truths = sampled
    state, table, fast = start_state(graph, some, DTYPES[dtype])
    rows = Rows(graph, len(some), 1)
    for name, lines_ in tables(graph, state, table, DTYPES[dtype], len(some)).items():
        found = bound_rows(fast, state, lines_, rows.y, x_rows=rows.x)
        for k, box in enumerate(some):
            high = rows.least(k, xs[k], truths[k][graph.output])
            assert bool((found.lower[k] <= high).all()), name
            # The linear bound too, from the corner where it is least: box clipping relies on it.
            a = found.coefficients[k].double()
            corner = torch.where(a > 0, torch.tensor(box.lower), torch.tensor(box.upper))
            gained = ((xs[k].unsqueeze(1) - corner) * a).clamp(min=0.0).sum(2) * (1 - 1e-12)
            assert bool((found.lower[k] + gained <= high + 4 * 2.0**-53 * (found.lower[k].abs() + gained)).all()), name


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_hold_with_optimised_slopes(sampled: Sampled, dtype: str) -> None:
    graph, some, xs, truths = sampled
    state, table, fast = start_state(graph, some, DTYPES[dtype])
    rows = Rows(graph, len(some), 2)
    found, slopes = alpha.optimise(fast, state, table, rows.y, x_rows=rows.x, options=alpha.AlphaOptions(iterations=8, step=1.0))
    best = {**table, **{i: lines(graph, i, state, DTYPES[dtype], *k) for i, k in slopes.items()}}
    again = bound_rows(fast, state, best, rows.y, x_rows=rows.x)
    for k in range(len(some)):
        high = rows.least(k, xs[k], truths[k][graph.output])
        assert bool((found.lower[k] <= high).all())
        assert bool((again.lower[k] <= high).all())


def random_splits(graph: Graph, state: State, seed: int, dtype: torch.dtype) -> SplitTable:
    """Two splits on every variable of every box, one of them absent in some boxes, with random multipliers."""
    g = torch.Generator().manual_seed(seed)
    splits = {}
    for i in graph.readers:
        low, high = state[i].bounds.lower.flatten(1), state[i].bounds.upper.flatten(1)
        index = torch.randint(low.shape[1], (len(low), 2), generator=g)
        share = 0.3 + 0.4 * torch.rand(index.shape, generator=g, dtype=torch.float64)
        point = low.gather(1, index) + share * (high - low).gather(1, index)
        side = torch.randint(2, index.shape, generator=g) * 2.0 - 1.0
        side[::2, 1] = 0.0
        scale = 10.0 ** torch.randint(-3, 2, (len(low), 6, 2), generator=g)
        splits[i] = SplitConstraints(index, side.to(dtype), point, (torch.rand(len(low), 6, 2, generator=g) * scale).to(dtype))
    return splits


def satisfying(split: SplitConstraints, box: int, truth: tuple[Tensor, Tensor]) -> Tensor:
    """Which points certainly satisfy the split constraints of a node, (N,) bool."""
    low, high = (t[:, split.index[box]] for t in truth)
    side, point = split.side[box], split.point[box]
    return torch.where(side > 0, low >= point, torch.where(side < 0, high <= point, True)).all(1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_hold_where_splits_do(sampled: Sampled, dtype: str) -> None:
    graph, some, xs, truths = sampled
    state, table, fast = start_state(graph, some, DTYPES[dtype])
    rows, checked = Rows(graph, len(some), 3), 0
    for seed in range(6):
        every = random_splits(graph, state, seed, DTYPES[dtype])
        for splits in (every, *({i: s} for i, s in every.items())):
            found = bound_rows(fast, state, table, rows.y, x_rows=rows.x, splits=splits)
            for k in range(len(some)):
                inside = torch.stack([satisfying(s, k, truths[k][i]) for i, s in splits.items()]).all(0)
                high = rows.least(k, xs[k], truths[k][graph.output])[inside]
                checked += len(high)
                assert bool((found.lower[k] <= high).all())
    assert checked > 1000 or not graph.nonlinear


def split_domain(relaxations: beta.Relaxations, boxes: int, splits: int, seed: int) -> beta.Domain:
    """Subproblems with splits of random open entries at random points of their intervals, whose intervals they clamp."""
    g = torch.Generator().manual_seed(seed)
    whole = relaxations.domain(torch.arange(boxes))
    column = torch.randint(relaxations.count, (boxes, splits), generator=g)
    low, high = whole.low.clone(), whole.high.clone()
    side = torch.randint(3, column.shape, generator=g) - 1.0
    point = torch.zeros(column.shape, dtype=torch.float64)
    for n, k in np.ndindex(*column.shape):
        c = int(column[n, k])
        point[n, k] = low[n, c] + (0.2 + 0.6 * float(torch.rand((), generator=g))) * (high[n, c] - low[n, c])
        (low if side[n, k] > 0 else high)[n, c] = point[n, k] if side[n, k] else (low if side[n, k] > 0 else high)[n, c]
    return replace(whole, low=low, high=high, column=column, side=side, point=point)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_hold_where_splits_do_with_optimised_multipliers(sampled: Sampled, dtype: str) -> None:
    graph, some, xs, truths = sampled
    state, table, fast = start_state(graph, some, DTYPES[dtype])
    rows, checked = Rows(graph, len(some), 3), 0
    relaxations = beta.Relaxations(fast, state)
    if not relaxations.count:
        pytest.skip("everything is stable")
    for seed, splits in enumerate((1, 2, 4, 8)):
        domain = split_domain(relaxations, len(some), splits, seed)
        slopes = relaxations.slopes(table, domain.box).unsqueeze(1).repeat(1, 6, 1)
        start = beta.Dual(slopes, slopes.new_zeros(len(some), 6, splits))
        best = relaxations.ascend(domain, rows.y, start, alpha.AlphaOptions(iterations=6, step=1.0, beta_step=0.5), rows.x)
        plain, found = (relaxations.certify(domain, rows.y, dual, rows.x).lower for dual in (start, best))
        for k in range(len(some)):
            inside = torch.ones(len(xs[k]), dtype=torch.bool)
            for c, side, point in zip(domain.column[k].tolist(), domain.side[k].tolist(), domain.point[k].tolist(), strict=True):
                z = next(z for z, s in relaxations.columns.items() if s.start <= c < s.stop)
                low, high = (t.flatten(1)[:, relaxations.entries[z][c - relaxations.columns[z].start]] for t in truths[k][z])
                inside &= torch.tensor(side == 0) | (low >= point if side > 0 else high <= point)
            high = rows.least(k, xs[k], truths[k][graph.output])[inside]
            checked += len(high)
            assert bool((plain[k] <= high).all()) and bool((found[k] <= high).all())
    assert checked > 1000


def test_clipping_keeps_every_unsafe_point(sampled: Sampled) -> None:
    graph, some, xs, truths = sampled
    state, table, fast = start_state(graph, some, torch.float32)
    rows = Rows(graph, len(some), 4)
    found = bound_rows(fast, state, table, rows.y, x_rows=rows.x)
    lower, upper = state[0].bounds.lower, state[0].bounds.upper
    for share in (0.1, 0.5):
        # Thresholds between the least value of two rows and what the samples reach.
        highs = torch.stack([rows.least(k, xs[k], truths[k][graph.output])[:, :2].quantile(share, dim=0) for k in range(len(some))])
        low, high, refuted = clip(lower, upper, down(found.lower[:, :2] - highs), found.coefficients[:, :2])
        for k in range(len(some)):
            unsafe = xs[k][(rows.least(k, xs[k], truths[k][graph.output])[:, :2] <= highs[k]).all(1)]
            assert not (bool(refuted[k]) and len(unsafe))
            assert bool(((low[k] <= unsafe) & (unsafe <= high[k])).all())


# --- one function at a time ---


@pytest.mark.parametrize("name", LINEAR)
def test_lines_hold_in_rationals(name: str) -> None:
    """Intercepts of random slopes around random intervals, with ends on and next to breakpoints, at all vertices of the graph."""
    function = LINEAR[name]
    pieces = function.pieces
    assert pieces is not None
    rng = np.random.default_rng(0)
    special = [p + d for p in pieces.breakpoints for d in (0.0, 1e-300, -1e-9, 1e-9, 2.0**-52)]
    ends = np.sort(np.concatenate([rng.normal(size=(200, 2)) * 10.0 ** rng.integers(-9, 7, (200, 1)), rng.choice(special, (100, 2))]), 1)
    low, high = torch.tensor(ends[:, 0]), torch.tensor(ends[:, 1])
    slopes = [torch.tensor(rng.normal(size=len(ends)) * 10.0 ** rng.integers(-3, 4, len(ends))) for _ in range(3)]
    for k in (*relaxation.default_slopes(function, low, high), relaxation.parallel_slope(function, low, high), *slopes):
        below, above = relaxation.intercepts(function, low, high, k, k)
        for a, b, slope, under, over in zip(*(t.tolist() for t in (low, high, k, below, above)), strict=True):
            inside = [p for p in pieces.breakpoints if a <= p <= b]
            for x in {a, b, *inside, *(np.nextafter(p, s) for p in inside for s in (a, b)), 0.5 * a + 0.5 * b}:
                y = exact_value(function, x)
                line = Fraction(slope) * Fraction(x)
                assert line + Fraction(under) <= y <= line + Fraction(over), (name, a, b, slope, x)


def exact_value(function: Function, x: float) -> Fraction:
    pieces = function.pieces
    assert pieces is not None
    if x in pieces.breakpoints:
        return Fraction(pieces.values[pieces.breakpoints.index(x)])
    i = sum(p < x for p in pieces.breakpoints)
    return Fraction(pieces.slopes[i]) * Fraction(x) + Fraction(pieces.intercepts[i])


# --- the checks can fail ---


def test_a_bound_moved_inward_is_seen() -> None:
    graph = random_graph(1, [1.0, 1.0, 1.0])
    some = boxes(graph.nx, 7)
    truth = enclosures(graph, points(graph, some[1], 1))
    found = mv.bounds(graph, some, "ibp").by_node
    assert not violations(found, 1, truth)
    for i, bounds in found.items():
        cut_low, cut_high = bounds.lower.clone(), bounds.upper.clone()
        cut_low[1] = up(truth[i][1].amin(0)).reshape(bounds.lower.shape[1:])
        cut_high[1] = down(truth[i][0].amax(0)).reshape(bounds.lower.shape[1:])
        for broken in (Bounds(cut_low, bounds.upper), Bounds(bounds.lower, cut_high), Bounds(bounds.lower * torch.nan, bounds.upper)):
            assert violations({**found, i: broken}, 1, truth)


def test_a_line_moved_inward_is_seen() -> None:
    graph, dtype = layered(LINEAR["abs"], [1.0, 1.0, 1.0], 1), torch.float64
    some = boxes(graph.nx, 7)
    xs = points(graph, some[1], 1)
    high = enclosures(graph, xs)[graph.output]
    state, table, fast = start_state(graph, some, dtype)
    rows = Rows(graph, len(some), 1)
    for i in graph.nonlinear:
        width = state[i].bounds.width.to(dtype)
        broken = {**table, i: replace(table[i], b_lower=table[i].b_lower + width, b_upper=table[i].b_upper - width)}
        assert not bool((bound_rows(fast, state, broken, rows.y, x_rows=rows.x).lower[1] <= rows.least(1, xs, high)).all())


def test_missing_rounding_charges_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A map and one that nearly cancels it, in float32: what is left is rounding error for the most part.

    How sums are formed depends on the processor, so that many are tried, of few inputs: errors of several coefficients hide each other.
    """
    box = mv.Box(np.ones(2), np.full(2, 2.0))
    trials = []
    for seed in range(24):
        rng = np.random.default_rng(seed)
        there = (rng.normal(size=(40, 2)) * 100.0).astype(np.float32).astype(np.float64)
        back = rng.normal(size=(2, 40)) @ (np.eye(40) - there @ np.linalg.pinv(there))
        b = Builder(2)
        graph = lower_onnx(load_model_from_string(b.model(b.gemm(b.gemm("x", there, np.zeros(40)), back, np.zeros(2)))))
        trials.append((graph, enclosures(graph, points(graph, box, seed))))

    def wrong() -> int:
        return sum(bool(violations(mv.bounds(graph, box, "crown", torch.float32), 0, truth)) for graph, truth in trials)

    assert not wrong()
    step, module = interval_propagation.step, import_module("milpverify.propagation.crown")

    def careless(*args: object) -> object:
        state = step(*args)  # type: ignore[arg-type]
        return replace(state, charge=None if state.charge is None else torch.zeros_like(state.charge))

    monkeypatch.setattr(module, "step", careless)
    monkeypatch.setattr(module, "UNIT_ROUNDOFF", dict.fromkeys(DTYPES.values(), 0.0))
    assert wrong()


def test_every_affine_operator_is_sampled() -> None:
    seen = {type(n.op) for make, _ in NETWORKS.values() for n in make().nodes}
    missing = {op.__name__ for op in Affine.__subclasses__()} - {op.__name__ for op in seen}
    assert not missing
