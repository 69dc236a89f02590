"""Differences between copies of a network: bounds hold for sampled and for exact points, and are exactly 0 where they should be."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from product_networks import Grower
from twin_networks import Layers, batch, beside, blocks, branches, layers, perturbed, sharing

import milpverify as mv
from milpverify.functions.catalogue import catalogue
from milpverify.functions.steepness import secants
from milpverify.graph import Graph, Node, evaluate
from milpverify.propagation.differences.bounding import Relations, _related
from milpverify.propagation.differences.coefficients import DifferenceTuning
from milpverify.propagation.differences.twins import Twins
from milpverify.propagation.interval import input_state
from milpverify.propagation.state import LinearBound
from milpverify.search.bounding import Prepared, bound_batch
from milpverify.search.groups import Group, groups
from milpverify.spec import Box, Disjunct, Problem, Rows

Pairs = list[tuple[int, int]]
FUNCTIONS = (["relu"], ["tanh"], ["sigmoid"], ["relu", "tanh"], ["gelu"], ["sign"], ["elu"], ["sin"], ["leaky_relu", "abs"])
FORMS = ("branches", "batch", "blocks", "sharing", "three")


def related(nx: int, ny: int, pairs: Pairs, low: np.ndarray, high: np.ndarray) -> Rows:
    """low <= x_i - x_j <= high for all pairs (i, j)."""
    rows, rhs = [], []
    for (i, j), least, most in zip(pairs, low, high, strict=True):
        for sign, limit in ((1.0, most), (-1.0, -least)):
            row = np.zeros(nx)
            row[i], row[j] = sign, -sign
            rows.append(row)
            rhs.append(limit)
    count = len(rhs)
    return Rows(np.array(rows).reshape(count, nx), np.zeros((count, ny)), np.array(rhs), np.zeros(count, dtype=bool))


def asked(graph: Graph, row: np.ndarray, domain: Rows, strict: bool = False, rhs: float = 0.0) -> Problem:
    """row . y <= rhs, or < rhs, over [-1, 1]."""
    box = Box(-np.ones(graph.nx), np.ones(graph.nx))
    return Problem(graph, (Disjunct(box, Rows.on_outputs(row, [rhs], graph.nx, strict), domain),))


def margins(problem: Problem) -> tuple[float, float, Group]:
    """Bounds with separate relaxations alone, and with those of differences."""
    (group,) = groups(problem)
    lower, upper = (torch.tensor(side)[None] for side in (group.box.lower, group.box.upper))
    prepared = Prepared.of(problem.graph, group)
    assert prepared.differences is not None
    separate, both = (
        float(bound_batch(problem.graph, group, lower, upper, torch.float64, prepared=p).margins)
        for p in (replace(prepared, differences=None), prepared)
    )
    return separate, both, group


def points(problem: Problem, pairs: Pairs, low: np.ndarray, high: np.ndarray, count: int, seed: int) -> torch.Tensor:
    """Inputs whose differences lie within their limits, many at the ends of these."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1.0, 1.0, (count, problem.graph.nx))
    x[::3] = np.sign(x[::3])
    for (i, j), least, most in reversed(list(zip(pairs, low, high, strict=True))):
        share = np.clip(rng.uniform(-0.5, 1.5, count), 0.0, 1.0)
        x[:, i] = x[:, j] + least + share * (most - least)
    return torch.tensor(x[(np.abs(x) <= 1.0).all(1)])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("functions", FUNCTIONS, ids="-".join)
def test_bounds_hold_for_every_way_to_write_copies(form: str, functions: list[str]) -> None:
    seed = FORMS.index(form) * len(FUNCTIONS) + FUNCTIONS.index(functions)
    rng = np.random.default_rng(seed)
    n, h, depth = int(rng.integers(2, 5)), int(rng.integers(3, 12)), int(rng.integers(1, 4))
    f = layers([n, *[h] * depth, 2], functions, seed, monotone=seed % 3 == 0)
    pairs = [(i, n + i) for i in range(n)]
    if form == "sharing":
        graph, pairs = sharing(f, 1), [(i, n - 1 + i) for i in range(n - 1)]
    elif form == "three":
        graph, pairs = branches(f, 3), pairs + [(n + i, 2 * n + i) for i in range(n)]
    else:
        graph = {"branches": branches, "batch": batch, "blocks": blocks}[form](f)
    row = np.zeros(graph.ny)
    row[0], row[-2] = 1.0, -1.0  # the first and the last copy, in a chain where there are three
    if seed % 2:
        row[1], row[-1] = -1.0, 1.0
    low = rng.choice([0.0, -0.1, -0.01], size=len(pairs))
    high = low + rng.choice([0.0, 0.1, 0.5], size=len(pairs))
    problem = asked(graph, row, related(graph.nx, graph.ny, pairs, low, high))
    separate, both, _ = margins(problem)
    found = evaluate(graph, points(problem, pairs, low, high, 4000, seed)) @ torch.tensor(row)
    assert both >= separate and both <= float(found.min()) + 1e-9


@pytest.mark.parametrize("seed", range(6))
def test_equivalence_of_networks_whose_weights_differ_a_little(seed: int) -> None:
    f = layers([3, 8, 8, 1], [("relu", "tanh", "sigmoid")[seed % 3]], seed)
    graph = beside(f, perturbed(f, seed, bits=4, pruned=0.1 * (seed // 3)))
    problem = asked(graph, np.array([1.0, -1.0]), Rows.none(3, 2))
    separate, both, _ = margins(problem)
    x = 2 * torch.rand(4000, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) - 1
    assert separate <= both <= float((evaluate(graph, x) @ torch.tensor([1.0, -1.0], dtype=torch.float64)).min())


@pytest.mark.parametrize("functions", [["relu"], ["tanh"], ["sigmoid"], ["relu", "sigmoid"], ["sign"]], ids="-".join)
@pytest.mark.parametrize("form", FORMS[:3])
def test_a_monotone_twin_touches_0_and_closes_strict_rows_only(functions: list[str], form: str) -> None:
    f = layers([3, 9, 9, 1], functions, 7, monotone=True)
    graph = {"branches": branches, "batch": batch, "blocks": blocks}[form](f)
    domain = related(6, 2, [(0, 3), (1, 4), (2, 5)], np.zeros(3), np.array([2.0, 0.0, 0.0]))
    for strict in (True, False):
        _, both, group = margins(asked(graph, np.array([1.0, -1.0]), domain, strict))
        assert both == 0.0 and bool(group.closed(torch.tensor([[both]], dtype=torch.float64)).all()) is strict
    assert mv.verify(asked(graph, np.array([1.0, -1.0]), domain, strict=True), timeout=20).verdict is mv.Verdict.VERIFIED
    if functions == ["relu"]:
        assert mv.verify(asked(graph, np.array([1.0, -1.0]), domain), timeout=20).verdict is mv.Verdict.FALSIFIED


def test_one_negative_weight_is_not_verified() -> None:
    f = layers([2, 5, 1], ["relu"], 3, monotone=True)
    first = f.weights[0].copy()
    first[0] = -first[0].max() - 1.0  # more of x_0 is less of everything
    falling = Layers((first, f.weights[1]), f.biases, f.functions)
    domain = related(4, 2, [(0, 2), (1, 3)], np.zeros(2), np.array([2.0, 0.0]))
    result = mv.verify(asked(branches(falling), np.array([1.0, -1.0]), domain, strict=True), timeout=20)
    assert result.verdict is mv.Verdict.FALSIFIED
    other = Layers(f.weights, (f.biases[0], f.biases[1] + 2.0**-20), f.functions)  # the second copy lies higher
    result = mv.verify(asked(branches(f, other=other), np.array([1.0, -1.0]), domain, strict=True), timeout=20)
    assert result.verdict is not mv.Verdict.VERIFIED


@pytest.mark.parametrize("seed", range(4))
def test_rationals_agree(seed: int) -> None:
    """ReLU twins at points of few digits, evaluated exactly: no bound lies above any of them."""
    f = layers([2, 4, 4, 1], ["relu"], seed, monotone=seed % 2 == 0)
    rng = np.random.default_rng(seed)
    low, high = np.array([0.0, -0.125]), np.array([0.25, 0.125])
    graph = branches(f)
    _, both, _ = margins(asked(graph, np.array([1.0, -1.0]), related(4, 2, [(0, 2), (1, 3)], low, high)))

    def value(x: list[Fraction]) -> Fraction:
        for k, (w, b) in enumerate(zip(f.weights, f.biases, strict=True)):
            v = [max(a, Fraction(0)) for a in x] if k else x
            x = [sum((Fraction(w[i, j]) * a for i, a in enumerate(v)), Fraction(b[j])) for j in range(w.shape[1])]
        return x[0]

    least = Fraction(10**6)
    for _ in range(150):
        z = [Fraction(int(t), 64) for t in rng.integers(-48, 49, 2)]
        d = [Fraction(int(rng.integers(int(64 * a), int(64 * b) + 1)), 64) for a, b in zip(low, high, strict=True)]
        least = min(least, value([a + b for a, b in zip(z, d, strict=True)]) - value(z))
    assert Fraction(both) <= least


@pytest.mark.parametrize("kind", ["convolution", "attention"])
@pytest.mark.parametrize("seed", range(3))
def test_convolutions_and_products(kind: str, seed: int) -> None:
    rng, n = np.random.default_rng(seed), 12
    g = Grower(2 * n, 0)
    kernel, (q, k, v), last = rng.normal(size=(3, 1, 3)), rng.normal(size=(3, 3, 3)) / 2, rng.normal(size=n)

    def network(x: Node) -> Node:
        if kind == "convolution":
            y = g.relu(g.conv(g.reshape(x, (1, 1, n)), kernel, [1], [(0, 0)], [1], 1))
            return g.matmul(g.reshape(y, (y.size,)), np.resize(last, (y.size, 1)))
        x = g.reshape(x, (4, 3))
        y = g.matmul_nodes(g.softmax(g.matmul_nodes(g.matmul(x, q), g.transpose(g.matmul(x, k)))), g.matmul(x, v))
        return g.matmul(g.reshape(y, (n,)), last[:, None])

    graph = g.finished(g.concat([network(g.select(g.nodes[0], np.arange(c * n, (c + 1) * n))) for c in range(2)], 0))
    pairs = [(i, n + i) for i in range(n)]
    low, high = np.full(n, -0.02), np.where(np.arange(n) % 2, 0.02, 0.0)
    row = np.array([1.0, -1.0])
    problem = asked(graph, row, related(2 * n, 2, pairs, low, high))
    separate, both, _ = margins(problem)
    found = evaluate(graph, points(problem, pairs, low, high, 2000, seed)) @ torch.tensor(row)
    assert separate <= both <= float(found.min()) + 1e-9 and (separate < both or kind == "attention")


@pytest.mark.parametrize("seed", range(20))
def test_inputs_and_their_difference_are_bounded_together(seed: int) -> None:
    """a x + b z + c d over boxes with d = x - z in an interval of its own, whose middle is not that of the box."""
    rng = np.random.default_rng(seed)
    twins = Twins.of(branches(layers([1, 3, 1], ["relu"], seed)), torch.tensor([[1.0, -1.0]], dtype=torch.float64))
    assert twins is not None and twins.pairs.tolist() == [[0, 1]]
    lower = rng.normal(size=2)
    upper = lower + 2 * rng.random(2)
    x = rng.uniform(lower, upper, (3000, 2))
    apart = x[:, 0] - x[:, 1]
    low, high = np.sort(rng.uniform(apart.min(), apart.max(), 2))
    held = (apart >= low) & (apart <= high)
    sides = [torch.tensor(side)[None] for side in (lower, upper)]
    relations = Relations(*(torch.tensor([end], dtype=torch.float64) for end in (low, high)))
    d = relations.within(twins.pairs, *sides)
    inputs = input_state(torch.cat([sides[0], d.lower], 1), torch.cat([sides[1], d.upper], 1))
    rows = torch.tensor(rng.normal(size=(1, 50, 3)))
    rows[0, 0] = torch.tensor([1.0, -1.0, -1.0])  # always 0
    reach = torch.stack([(rows * (side - inputs.center)) for side in (inputs.bounds.lower, inputs.bounds.upper)]).amin(0).sum(2)
    found = _related(twins, inputs, LinearBound(rows, reach, reach, reach))
    deviations = torch.tensor(np.column_stack([x, apart])[held]) - inputs.center
    values = (rows[0] @ deviations.T).amin(1) if held.any() else torch.full((50,), torch.inf, dtype=torch.float64)
    assert bool((found[0] >= reach[0]).all()) and bool((found[0] <= values + 1e-12).all())


def test_where_nothing_relates_copies_nothing_is_tried() -> None:
    f = layers([2, 5, 2], ["relu"], 1)
    free = asked(branches(f), np.array([1.0, 0.0, -1.0, 0.0]), Rows.none(4, 4))
    own = asked(branches(f), np.array([1.0, -1.0, 0.0, 0.0]), related(4, 4, [(0, 2)], np.zeros(1), np.ones(1)))
    for problem in (free, own):
        assert Prepared.of(problem.graph, groups(problem)[0]).differences is None


def test_how_far_copies_are_looked_for_is_handed_in() -> None:
    f = layers([2, 5, 2], ["relu"], 1)
    problem = asked(branches(f), np.array([1.0, 0.0, -1.0, 0.0]), related(4, 4, [(0, 2), (1, 3)], np.zeros(2), np.ones(2)))
    (group,) = groups(problem)
    assert Prepared.of(problem.graph, group).differences is not None
    for tuning in (DifferenceTuning(most_nodes=1), DifferenceTuning(domains=0), DifferenceTuning(most_coefficients=0)):
        assert Prepared.of(problem.graph, group, tuning).differences is None


@pytest.mark.parametrize("name", sorted(catalogue()))
def test_secants_enclose_slopes_between_points(name: str) -> None:
    try:
        f = catalogue()[name].trial()
    except mv.errors.InvalidModel:
        pytest.skip("its default parameters are no exact numbers")
    random = torch.Generator().manual_seed(0)
    low = 3 * torch.randn(300, dtype=torch.float64, generator=random)
    low[:20] = 0.0
    high = low + 6 * torch.rand(300, dtype=torch.float64, generator=random) ** 4
    least, most = secants(f, low, high)
    a, b = (low + torch.rand(60, 300, dtype=torch.float64, generator=random) * (high - low) for _ in range(2))
    slope = torch.where((a - b).abs() > 1e-3, (f(a) - f(b)) / (a - b), torch.nan)
    slope = torch.where(slope.isfinite(), slope, torch.nan)
    assert not bool(((slope < least - 1e-9) | (slope > most + 1e-9)).any())
