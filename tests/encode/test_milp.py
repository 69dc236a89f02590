"""The encoding is the network: every input extends to a feasible point, and solvers agree with enumeration of activation patterns."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from random_nets import CONTINUOUS, Stack, dense, enumerated_minimum, function, proved_bounds, random_problem, relu_network

from milpverify.config import Deadline
from milpverify.encode.milp import encode
from milpverify.encode.model import NumericallyUnfit, OutOfTime
from milpverify.encode.segments import segments, touched_pieces
from milpverify.encode.smt import smt_script
from milpverify.errors import UnsupportedOperator
from milpverify.functions.catalogue import catalogue
from milpverify.graph import Graph, evaluate
from milpverify.operators import Elementwise, Linear
from milpverify.solvers.base import Answer, Limits
from milpverify.solvers.names import MILP_SOLVERS
from milpverify.solvers.registry import load
from milpverify.solvers.trusted_bound import safe_dual_bound
from milpverify.spec import Box, Disjunct, Rows

JUMPING = ("sign", "relu", "clip")


@pytest.mark.parametrize("seed", range(40))
def test_solvers_agree_with_enumeration(seed: int) -> None:
    graph, disjunct = random_problem(seed, CONTINUOUS if seed % 4 else JUMPING)
    truth = enumerated_minimum(graph, disjunct)
    encoding = encode(graph, proved_bounds(graph, disjunct.box, "crown" if seed % 3 else "ibp"), disjunct)
    tolerance = 1e-6 * max(1.0, abs(truth))
    for name in MILP_SOLVERS:
        outcome = load(name).solve(encoding.model, Limits(60), lambda _: False)
        assert abs(outcome.dual_bound - truth) <= tolerance, name
        assert abs(outcome.primal - truth) <= tolerance, name
        assert safe_dual_bound(outcome, encoding.model) <= truth
        if seed % 4:  # a minimiser of a discontinuous network may lie on the closure only
            x = encoding.x_of(outcome.point)
            y = evaluate(graph, torch.from_numpy(x)[None])[0].numpy()
            assert disjunct.unsafe.residual(x, y).max() == pytest.approx(truth, abs=100 * tolerance)
    if abs(truth) > tolerance and (truth > 0 or seed % 4):
        answer = load("z3").solve(smt_script(graph, disjunct), Limits(60), lambda _: False).answer
        assert answer is (Answer.UNSAT if truth > 0 else Answer.SAT)


@pytest.mark.parametrize("seed", range(30))
def test_every_input_extends_to_a_feasible_point(seed: int) -> None:
    graph, disjunct = random_problem(seed, CONTINUOUS)
    disjunct = replace(disjunct, domain=Rows.none(graph.nx, graph.ny))
    bounds = proved_bounds(graph, disjunct.box, "ibp")
    rng = np.random.default_rng(seed)
    for x in (disjunct.box.lower, disjunct.box.upper, *rng.uniform(disjunct.box.lower, disjunct.box.upper, (5, graph.nx))):
        encoding = encode(graph, bounds, disjunct, start=x)
        assert encoding.model.start is not None
        assert encoding.model.violation(encoding.model.start) < 1e-11
        y = evaluate(graph, torch.from_numpy(x.copy())[None])[0].numpy()
        value = float(encoding.model.objective @ encoding.model.start)
        assert value == pytest.approx(disjunct.unsafe.residual(x, y).max(), rel=1e-9, abs=1e-12)


def test_rows_are_well_scaled_whatever_the_weights() -> None:
    stack = Stack(2)
    big = stack.add(Linear(torch.tensor([[1e6, -2e6], [3e6, 1e6]], dtype=torch.float64)), 0, size=2)
    hidden = stack.add(Elementwise(function("relu")), big, size=2)
    stack.add(Linear(torch.tensor([[1e-6, -1e-6]], dtype=torch.float64)), hidden, size=1)
    graph, box = stack.graph(), Box([-1, -1], [1, 1])
    disjunct = Disjunct(box, Rows.on_outputs([[1.0]], [-10.0], 2), Rows.none(2, 1))
    model = encode(graph, proved_bounds(graph, box), disjunct).model
    sizes = [np.abs(model.row(i)[1]) for i in range(model.num_rows)]
    assert all(0.5 < s.max() <= 1.0 and s.min() > 1e-4 for s in sizes)
    assert np.abs([model.lower, model.upper]).max() <= 1.0
    truth = enumerated_minimum(graph, disjunct)
    for name in MILP_SOLVERS:
        assert load(name).solve(model, Limits(60), lambda _: False).dual_bound == pytest.approx(truth, rel=1e-6)


def test_a_linear_objective_is_bounded_in_both_directions() -> None:
    graph, box = relu_network([3, 6, 6, 2], 5), Box([-1, -1, -1], [1, 0.5, 1])
    x = torch.from_numpy(np.random.default_rng(0).uniform(box.lower, box.upper, (20_000, 3)))
    seen = (x[:, 0] + evaluate(graph, x) @ torch.tensor([1.0, -2.0], dtype=torch.float64)).numpy()
    ends = []
    for sign in (1.0, -1.0):
        row = Rows(np.array([[sign, 0, 0]]), sign * np.array([[1.0, -2.0]]), np.zeros(1), np.array([False]))
        model = encode(graph, proved_bounds(graph, box), Disjunct(box, row, Rows.none(3, 2))).model
        outcome = load("scip").solve(model, Limits(60), lambda _: False)
        ends.append(sign * outcome.dual_bound)
    assert ends[0] <= seen.min() + 1e-8
    assert ends[1] >= seen.max() - 1e-8
    assert ends[0] == pytest.approx(seen.min(), abs=0.2)
    assert ends[1] == pytest.approx(seen.max(), abs=0.2)


def test_neurons_without_influence_are_left_out() -> None:
    stack = Stack(3)
    rng = np.random.default_rng(0)
    weight = torch.tensor(rng.normal(0, 1, (8, 3)))
    weight[:, 2] = 0.0
    hidden = stack.add(Elementwise(function("relu")), stack.add(Linear(weight), 0, size=8), size=8)
    out = torch.zeros(1, 8, dtype=torch.float64)
    out[0, :3] = 1.0
    stack.add(Linear(out), hidden, size=1)
    graph, box = stack.graph(), Box([-1, -1, -1], [1, 1, 1])
    encoding = encode(graph, proved_bounds(graph, box), Disjunct(box, Rows.on_outputs([[1.0]], [0.0], 3), Rows.none(3, 1)))
    assert encoding.columns.tolist() == [0, 1, -1]
    assert encoding.unstable == 3
    assert encoding.x_of(np.zeros(encoding.model.num_variables))[2] == 0.0


@pytest.mark.parametrize("name", ["relu", "abs", "leaky_relu", "relu6", "hard_tanh", "clip", "sign", "hard_sigmoid", "prelu"])
def test_segments_are_the_closure_of_the_graph(name: str) -> None:
    if name == "prelu":
        f = catalogue()["prelu"].bind(**dict.fromkeys(catalogue()["prelu"].parameters, 0.25))
    elif name == "hard_sigmoid":
        f = catalogue()["hard_sigmoid"].bind(alpha=0.25, beta=0.5)
    else:
        f = function(name)
    pieces = f.pieces
    assert pieces is not None
    rng = np.random.default_rng(1)
    points = [*pieces.breakpoints, *rng.uniform(-8, 8, 12)]
    for low in points:
        for high in (p for p in points if p >= low):
            first, last = touched_pieces(pieces, np.array([low]), np.array([high]))
            parts = segments(pieces, int(first[0]), int(last[0]), low, high)
            inside = np.array([low, high, *(p for p in pieces.breakpoints if low <= p <= high), *rng.uniform(low, high, 8)])
            for x, y in zip(inside, f(torch.from_numpy(inside)).numpy(), strict=True):
                assert any(s.lower <= x <= s.upper and math.isclose(s.slope * x + s.intercept, y, abs_tol=1e-14) for s in parts)
            assert all(low <= s.lower <= s.upper <= high for s in parts)


def test_what_cannot_be_encoded_is_refused_by_name() -> None:
    stack = Stack(2)
    rng = np.random.default_rng(0)
    hidden = stack.add(dense(rng, 3, 2), 0, size=3)
    hidden = stack.add(Elementwise(catalogue()["tanh"].bind()), hidden, size=3)
    stack.add(dense(rng, 1, 3), hidden, size=1)
    graph, box = stack.graph(), Box([-1, -1], [1, 1])
    disjunct = Disjunct(box, Rows.on_outputs([[1.0]], [0.0], 2), Rows.none(2, 1))
    with pytest.raises(NumericallyUnfit, match="tanh"):
        encode(graph, [(torch.full(n.shape, -math.inf), torch.full(n.shape, 9.0)) for n in graph.nodes], disjunct)
    with pytest.raises(UnsupportedOperator, match="tanh"):
        smt_script(graph, disjunct)
    relu = relu_network([2, 3, 1], 0)
    unbounded = [(torch.full(n.shape, -math.inf), torch.full(n.shape, math.inf)) for n in relu.nodes]
    with pytest.raises(NumericallyUnfit):
        encode(relu, unbounded, disjunct)


def test_building_a_model_ends_with_the_deadline() -> None:
    graph, disjunct = random_problem(0)
    with pytest.raises(OutOfTime):
        encode(graph, proved_bounds(graph, disjunct.box), disjunct, deadline=Deadline(0))


@pytest.mark.parametrize(("strict", "answer"), [(False, Answer.SAT), (True, Answer.UNSAT)])
def test_smt_respects_strictness_exactly(strict: bool, answer: Answer) -> None:
    graph = _absolute_value()
    disjunct = Disjunct(Box([-1], [1]), Rows.on_outputs([[1.0]], [0.0], 1, strict), Rows.none(1, 1))
    for bounds in (None, proved_bounds(graph, disjunct.box)):
        assert load("z3").solve(smt_script(graph, disjunct, bounds), Limits(30), lambda _: False).answer is answer


def _absolute_value() -> Graph:
    stack = Stack(1)
    stack.add(Elementwise(function("abs")), 0, size=1)
    stack.add(Linear(torch.ones(1, 1, dtype=torch.float64)), 1, size=1)
    return stack.graph()
