from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from milpverify.config import Deadline
from milpverify.counterexamples import polish as module
from milpverify.counterexamples.attack import AttackOutcome, attack
from milpverify.counterexamples.polish import polish, restore
from milpverify.counterexamples.validate import Validity, validate
from milpverify.functions.catalogue import catalogue
from milpverify.graph import Graph, Node, TensorSpec, evaluate
from milpverify.operators import Elementwise, Input, Linear
from milpverify.spec import Box, Disjunct, Problem, Rows


def dense(*layers: tuple[np.ndarray, np.ndarray]) -> Graph:
    nodes = [Node(0, Input(), (), (layers[0][0].shape[1],))]
    for i, (w, b) in enumerate(layers):
        if i:
            nodes.append(Node(len(nodes), Elementwise(catalogue()["relu"].bind()), (len(nodes) - 1,), nodes[-1].shape))
        nodes.append(Node(len(nodes), Linear(torch.from_numpy(w), torch.from_numpy(b)), (len(nodes) - 1,), (len(b),)))
    return Graph(tuple(nodes), len(nodes) - 1, (TensorSpec("x", nodes[0].shape),))


def random_network(rng: np.random.Generator, *sizes: int) -> Graph:
    def layer(n: int, m: int) -> tuple[np.ndarray, np.ndarray]:
        w, b = rng.normal(0, (2 / n) ** 0.5, (m, n)), rng.normal(0, 0.1, m)
        return w.astype(np.float32).astype(np.float64), b.astype(np.float32).astype(np.float64)

    return dense(*(layer(n, m) for n, m in itertools.pairwise(sizes)))


def margins(graph: Graph, disjunct: Disjunct, x: np.ndarray) -> np.ndarray:
    rows = disjunct.unsafe
    y = evaluate(graph, torch.from_numpy(x)).numpy()
    return np.asarray((x @ rows.x_rows.T + y @ rows.y_rows.T - rows.rhs).max(axis=1))


def run(problem: Problem, seed: int = 0, seconds: float = 30.0) -> AttackOutcome:
    return attack(problem, problem.graph.to(torch.float32), problem.disjuncts, Deadline(seconds), seed)


def test_it_beats_sampling_and_reports_honest_margins() -> None:
    rng = np.random.default_rng(0)
    for _ in range(6):
        graph = random_network(rng, 6, 24, 24, 4)
        boxes = [Box(c - 0.5, c + rng.uniform(0, 0.5, 6)) for c in rng.normal(size=(3, 6))]
        rows = [Rows.on_outputs(rng.normal(size=(k, 4)), np.full(k, -40.0), 6) for k in (1, 2, 3)]
        mixed = Rows(rng.normal(size=(2, 6)), rng.normal(size=(2, 4)), np.full(2, -40.0), np.zeros(2, dtype=bool))
        cases = [*zip(boxes, rows, strict=True), (boxes[0], mixed)]
        problem = Problem(graph, tuple(Disjunct(b, r, Rows.none(6, 4)) for b, r in cases))
        outcome = run(problem)
        assert outcome.counterexample is None
        for disjunct, point, margin in zip(problem.disjuncts, outcome.points, outcome.margins, strict=True):
            assert np.all((disjunct.box.lower <= point) & (point <= disjunct.box.upper))
            assert margins(graph, disjunct, point[None])[0] == pytest.approx(margin, abs=1e-3)
            sampled = margins(graph, disjunct, rng.uniform(disjunct.box.lower, disjunct.box.upper, (5000, 6))).min()
            assert margin <= sampled + 1e-3


def test_counterexamples_hold_and_are_inside() -> None:
    rng = np.random.default_rng(1)
    found = 0
    for seed in range(8):
        graph = random_network(rng, 5, 20, 20, 3)
        box = Box(np.full(5, -0.1), np.full(5, 0.7))
        none = Rows.none(5, 3)
        sampled = evaluate(graph, torch.from_numpy(rng.uniform(box.lower, box.upper, (2000, 5)))).numpy()
        # The second disjunct is just within reach: the best of 2000 samples of y0 - y1.
        goal = float((sampled[:, 0] - sampled[:, 1]).min())
        unreachable, reachable = Rows.on_outputs([[1, 0, 0]], [-1e4], 5), Rows.on_outputs([[1, -1, 0], [0, 0, 1]], [goal, 1e4], 5)
        problem = Problem(graph, (Disjunct(box, unreachable, none), Disjunct(box, reachable, none)))
        example = run(problem, seed).counterexample
        if example is not None:
            found += 1
            assert np.all((box.lower <= example.x) & (example.x <= box.upper))
            assert np.array_equal(example.x.astype(np.float32), example.x)
            assert validate(problem, problem.disjuncts[1], example.x).status is Validity.HOLDS
            y = evaluate(graph.to(torch.float32), torch.from_numpy(example.x).float()[None])[0].numpy()
            assert np.array_equal(example.y, y)
            assert np.all(reachable.residual(example.x, y.astype(np.float64)) <= 0)
    assert found == 8


def test_a_seed_repeats_and_the_deadline_is_kept() -> None:
    graph = random_network(np.random.default_rng(2), 8, 30, 30, 3)
    box = Box(np.zeros(8), np.ones(8))
    problem = Problem(graph, tuple(Disjunct(box, Rows.on_outputs(row, [-1e3], 8), Rows.none(8, 3)) for row in np.eye(3)))
    first, second, other = run(problem, 5), run(problem, 5), run(problem, 6)
    assert np.array_equal(first.points, second.points)
    assert np.array_equal(first.margins, second.margins)
    assert not np.array_equal(first.points, other.points)
    expired = run(problem, 0, 0.0)
    assert np.array_equal(expired.points, np.full((3, 8), 0.5))
    assert np.all(np.isinf(expired.margins))
    assert attack(problem, graph, (), Deadline(1.0)).points.shape == (0, 8)


def test_many_disjuncts_are_all_attacked() -> None:
    # y = x, and the k-th disjunct asks for x0 <= -k: none is reachable but the last one, 0.5 away from the box's corner.
    graph = dense((np.eye(2), np.zeros(2)))
    disjuncts = [Disjunct(Box([-1, 0], [1, 1]), Rows.on_outputs([[1, 0]], [-2.0 - k], 2), Rows.none(2, 2)) for k in range(700)]
    outcome = run(Problem(graph, tuple(disjuncts)))
    assert outcome.counterexample is None
    assert outcome.margins == pytest.approx(1.0 + np.arange(700))
    disjuncts[650] = Disjunct(Box([-1, 0], [1, 1]), Rows.on_outputs([[1, 0]], [-0.99], 2), Rows.none(2, 2))
    outcome = run(Problem(graph, tuple(disjuncts)))
    assert outcome.counterexample is not None
    assert outcome.counterexample.x[0] <= -0.99


def test_disagreement_is_reported_and_is_no_counterexample() -> None:
    # x + 1e9 - 1e9: float32 gives 0, the reals x >= 0.5.
    graph = dense((np.array([[1.0]]), np.array([1e9])), (np.array([[1.0]]), np.array([-1e9])))
    problem = Problem(graph, (Disjunct(Box([0.5], [1.0]), Rows.on_outputs([[1]], [0.25], 1), Rows.none(1, 1)),))
    outcome = run(problem)
    assert outcome.counterexample is None
    assert outcome.disagreement is not None
    assert outcome.disagreement.status is Validity.FLOAT_SEMANTICS


def domain(rows: list[list[float]], rhs: list[float], ny: int, strict: bool = False) -> Rows:
    return Rows(np.array(rows), np.zeros((len(rhs), ny)), np.array(rhs), np.full(len(rhs), strict))


@pytest.mark.parametrize("strict", [False, True])
def test_constraints_between_inputs_are_kept(strict: bool) -> None:
    graph = random_network(np.random.default_rng(3), 4, 16, 2)
    box = Box(np.full(4, -1.0), np.ones(4))
    pairs = {
        "order": domain([[1, -1, 0, 0], [0, 0, 1, -2]], [0.0, 0.0], 2, strict),
        "sum": domain([[1, 1, 1, 1]], [-0.3], 2, strict),
    }
    if not strict:
        pairs["equation"] = domain([[1, 1, 0, 0], [-1, -1, 0, 0], [0, 0, 1, -3], [0, 0, -1, 3]], [0.25, -0.25, 0.125, -0.125], 2)
    for rows in pairs.values():
        inside = np.random.default_rng(0).uniform(-1, 1, (20_000, 4))
        inside = inside[(inside @ rows.x_rows.T - rows.rhs <= 0.02).all(axis=1)]
        goal = float(np.quantile(evaluate(graph, torch.from_numpy(inside)).numpy()[:, 0], 0.1))
        problem = Problem(graph, (Disjunct(box, Rows.on_outputs([[1, 0]], [goal], 4), rows),))
        example = run(problem).counterexample
        assert example is not None
        assert np.all(rows.x_rows @ example.x - rows.rhs <= 0)
        assert validate(problem, problem.disjuncts[0], example.x).status is Validity.HOLDS


def test_restoring_constraints_exactly() -> None:
    rng = np.random.default_rng(0)
    box = Box(np.full(3, -2.0), np.full(3, 2.0))
    rows = domain([[1, 1, 1], [-1, -1, -1], [1, -2, 0]], [0.5, -0.5, 0.0], 1)
    graph = dense((np.ones((1, 3)), np.zeros(1)))
    disjunct = Disjunct(box, Rows.none(3, 1), rows)
    problem = Problem(graph, (disjunct,))
    for x in rng.uniform(-1, 1, (30, 3)):
        x[2] = 0.5 - x[0] - x[1]
        x[1] = max(x[1], x[0] / 2)
        restored = restore(disjunct, x)
        assert validate(problem, disjunct, restored).status is Validity.HOLDS
        assert np.abs(restored - x).max() < 2.1
    # A domain that is empty is not restored, and nothing is claimed.
    empty = Disjunct(box, Rows.none(3, 1), domain([[1, 1, 0], [-1, -1, 0]], [0.0, -1.0], 1))
    assert validate(problem, empty, restore(empty, np.zeros(3))).status is Validity.NOT_A_COUNTEREXAMPLE


@pytest.mark.parametrize("miss", [1e-9, 1e-6, 1e-3])
def test_polishing_reaches_what_a_solver_missed(miss: float) -> None:
    rng = np.random.default_rng(4)
    missed = 0
    for _ in range(10):
        graph = random_network(rng, 6, 20, 20, 3)
        box = Box(np.full(6, -1.0), np.ones(6))
        x = rng.uniform(-0.9, 0.9, 6)
        y = evaluate(graph, torch.from_numpy(x)[None])[0].numpy()
        # Two rows that x misses by a little; a miss of 1e-9 is within what its rounding to float32 moves them.
        unsafe = Rows.on_outputs([[1, -1, 0], [0, 0.5, 1]], [y[0] - y[1] - miss, 0.5 * y[1] + y[2] - miss / 3], 6)
        problem = Problem(graph, (Disjunct(box, unsafe, Rows.none(6, 3)),))
        missed += validate(problem, problem.disjuncts[0], x).counterexample is None
        example = polish(problem, problem.disjuncts[0], x)
        assert example is not None
        assert np.all((box.lower <= example.x) & (example.x <= box.upper))
        assert validate(problem, problem.disjuncts[0], example.x).status is Validity.HOLDS
    assert missed >= 3


def test_polishing_gives_up_what_its_pace_does_not_lead_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """Far from a violation it takes one step and judges nothing; nearer it goes on."""
    graph = random_network(np.random.default_rng(3), 6, 30, 30, 1)
    box, x, taken, judged = Box(np.full(6, -1.0), np.ones(6)), np.zeros(6), [], []
    gradients, verdict = module._row_gradients, module.validate
    monkeypatch.setattr(module, "_row_gradients", lambda *a: taken.append(0) or gradients(*a))
    monkeypatch.setattr(module, "validate", lambda *a: judged.append(0) or verdict(*a))
    least = float(evaluate(graph, torch.rand(5000, 6, dtype=torch.float64) * 2 - 1).min())
    for rhs, reached in ((least - 1e4, False), (least - 0.1, True)):
        problem = Problem(graph, (Disjunct(box, Rows.on_outputs([[1]], [rhs], 6), Rows.none(6, 1)),))
        assert (polish(problem, problem.disjuncts[0], x) is not None) is reached
        assert (len(taken) > 1, bool(judged)) == (reached, reached)
        taken.clear()


def test_polishing_claims_nothing_where_there_is_nothing() -> None:
    graph = dense((np.array([[1.0, 1.0], [-1.0, -1.0]]), np.zeros(2)), (np.ones((1, 2)), np.zeros(1)))  # |x0 + x1|
    for rhs, expected in ((-(2.0**-30), None), (0.0, 0.0)):
        problem = Problem(graph, (Disjunct(Box([-1, -1], [1, 1]), Rows.on_outputs([[1]], [rhs], 2), Rows.none(2, 1)),))
        example = polish(problem, problem.disjuncts[0], np.array([0.25, -0.25]))
        assert (None if example is None else example.margin_real) == expected
    fixed = Problem(graph, (Disjunct(Box([1, 1], [1, 1]), Rows.on_outputs([[1]], [1.0], 2), Rows.none(2, 1)),))
    assert polish(fixed, fixed.disjuncts[0], np.ones(2)) is None
    everything = Problem(graph, (Disjunct(Box([1, 1], [1, 1]), Rows.none(2, 1), Rows.none(2, 1)),))
    example = polish(everything, everything.disjuncts[0], np.zeros(2))
    assert example is not None
    assert example.margin_real == -math.inf
