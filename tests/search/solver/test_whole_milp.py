"""Deciding disjuncts by whole models: verdicts against enumeration, planted traps with known truth, and every way to stay undecided."""

from __future__ import annotations

import math
import threading
import time
from typing import Any

import numpy as np
import pytest
import torch
from random_nets import CONTINUOUS, Stack, enumerated_minimum, function, proved_bounds, random_problem, relu_network

from milpverify.config import Deadline, Options, SearchMethod
from milpverify.errors import SolverUnavailable
from milpverify.graph import Graph
from milpverify.operators import Elementwise, Linear
from milpverify.result import Event, Reason, Trust, Verdict
from milpverify.search.outcome import SearchOutcome
from milpverify.search.solver.whole_milp import Leaf, OpenDisjunct, conclude, decide_by_milp
from milpverify.search.solver.whole_smt import decide_by_smt
from milpverify.solvers.names import MILP_SOLVERS
from milpverify.solvers.registry import load
from milpverify.spec import Box, Disjunct, Problem, Rows


def decided(
    graph: Graph, *disjuncts: Disjunct, solver: str = "scip", seconds: float = 60, trust: str = "solver", method: str = "milp"
) -> tuple[SearchOutcome, list[Leaf], list[str]]:
    """The outcome, what became of every disjunct, and the lines to show once."""
    by = decide_by_smt if method == "smt" else decide_by_milp
    leaves, notes = by(Problem(graph, disjuncts), opened(graph, disjuncts), Options(solver=solver, trust=trust), Deadline(seconds))
    return conclude(leaves, len(disjuncts), SearchMethod(method), notes), leaves, notes


def run(graph: Graph, *disjuncts: Disjunct, **how: Any) -> SearchOutcome:
    return decided(graph, *disjuncts, **how)[0]


def verdict(outcome: SearchOutcome) -> Verdict:
    """What an outcome alone decides."""
    assert not (outcome.closed and outcome.counterexample)
    return Verdict.VERIFIED if outcome.closed else Verdict.UNKNOWN if outcome.counterexample is None else Verdict.FALSIFIED


def opened(graph: Graph, disjuncts: tuple[Disjunct, ...]) -> list[OpenDisjunct]:
    return [OpenDisjunct(i, d, lambda d=d: proved_bounds(graph, d.box)) for i, d in enumerate(disjuncts)]  # type: ignore[misc]


def network(*layers: tuple[list[list[float]], list[float]]) -> Graph:
    """A ReLU network from its weights and biases."""
    stack = Stack(len(layers[0][0][0]))
    for i, (weight, bias) in enumerate(layers):
        w, b = torch.tensor(weight, dtype=torch.float64), torch.tensor(bias, dtype=torch.float64)
        last = stack.add(Linear(w, b), len(stack.nodes) - 1, size=len(bias))
        if i + 1 < len(layers):
            stack.add(Elementwise(function("relu")), last, size=len(bias))
    return stack.graph()


def unsafe_below(rhs: float, box: Box, strict: bool = False) -> Disjunct:
    return Disjunct(box, Rows.on_outputs([[1.0]], [rhs], box.size, strict), Rows.none(box.size, 1))


@pytest.mark.parametrize("seed", range(24))
def test_verdicts_agree_with_enumeration(seed: int) -> None:
    graph, disjunct = random_problem(500 + seed, CONTINUOUS)
    truth = enumerated_minimum(graph, disjunct)
    outcome = run(graph, disjunct, solver=MILP_SOLVERS[seed % len(MILP_SOLVERS)])
    assert outcome.lower_bound <= truth
    if verdict(outcome) is Verdict.VERIFIED:
        assert truth > 0
        assert (outcome.reason, outcome.trust) == (Reason.PROVED, Trust.SOLVER)
    elif verdict(outcome) is Verdict.FALSIFIED:
        assert truth <= 1e-9
        assert outcome.counterexample is not None
        assert outcome.counterexample.margin_real <= 0
    if abs(truth) > 1e-3 and (truth > 0 or not len(disjunct.domain)):
        assert verdict(outcome) is (Verdict.VERIFIED if truth > 0 else Verdict.FALSIFIED)


TINY = 2.0**-23
ABS = ([[1.0], [-1.0]], [0.0, 0.0])
WIDE = Box([-1], [1])


def bump(height: float) -> Graph:
    """1 - height * (a hat of half-width 2^-20 around 0.25), in binary fractions."""
    k = 2.0**20
    return network(([[k], [k], [k]], [1 - k / 4, -k / 4, -1 - k / 4]), ([[-height, 2 * height, -height]], [1.0]))


TRAPS: dict[str, tuple[Graph, Disjunct, set[Verdict]]] = {
    "margin of +1e-7": (network(ABS, ([[1.0, 1.0]], [TINY])), unsafe_below(0.0, WIDE), {Verdict.VERIFIED}),
    "margin of -1e-7": (network(ABS, ([[1.0, 1.0]], [-TINY])), unsafe_below(0.0, WIDE), {Verdict.FALSIFIED}),
    "margin of 0": (network(ABS, ([[1.0, 1.0]], [0.0])), unsafe_below(0.0, WIDE), {Verdict.FALSIFIED}),
    "margin of 0, strict": (network(ABS, ([[1.0, 1.0]], [0.0])), unsafe_below(0.0, WIDE, strict=True), {Verdict.UNKNOWN}),
    "narrow bump": (bump(1.0), unsafe_below(0.5, WIDE), {Verdict.FALSIFIED}),
    "narrow bump, harmless": (bump(0.25), unsafe_below(0.5, WIDE), {Verdict.VERIFIED}),
    "scaled by 1e6 and back, safe": (
        network(([[1e6], [-1e6]], [0.0, 0.0]), ([[1e-6, 1e-6]], [0.0])),
        unsafe_below(-1e-3, WIDE),
        {Verdict.VERIFIED},
    ),
    "scaled by 1e6 and back, unsafe": (
        network(([[1e6], [-1e6]], [0.0, 0.0]), ([[1e-6, 1e-6]], [0.0])),
        unsafe_below(1e-3, WIDE),
        {Verdict.FALSIFIED},
    ),
    # In the reals y = x + 1 >= 0.5; in float32 the bias swallows x and y = 0 or 64.
    "a bias that cancels, safe in the reals": (
        network(([[1.0]], [1e9]), ([[1.0]], [1.0 - 1e9])),
        unsafe_below(0.25, Box([-0.5], [0.5])),
        {Verdict.VERIFIED, Verdict.UNKNOWN},
    ),
    "a bias that cancels, unsafe in the reals": (
        network(([[1.0]], [1e9]), ([[1.0]], [1.0 - 1e9])),
        unsafe_below(0.75, Box([-0.5], [0.5])),
        {Verdict.FALSIFIED, Verdict.UNKNOWN},
    ),
}


@pytest.mark.parametrize("solver", [*MILP_SOLVERS, "smt"])
@pytest.mark.parametrize("name", TRAPS)
def test_planted_traps(name: str, solver: str) -> None:
    graph, disjunct, allowed = TRAPS[name]
    if solver != "smt":
        assert verdict(run(graph, disjunct, solver=solver)) in allowed
        return
    outcome = run(graph, disjunct, method="smt", trust="exact")
    if name == "margin of 0, strict":
        assert verdict(outcome) is Verdict.VERIFIED  # exact arithmetic decides what tolerances cannot
    else:
        assert verdict(outcome) in allowed
    if verdict(outcome) is Verdict.VERIFIED:
        assert outcome.trust is Trust.EXACT


def test_a_bound_of_zero_is_enough_where_every_row_is_strict_only() -> None:
    constant = network(([[0.0]], [1.0]), ([[1.0]], [0.0]))
    outcome = run(constant, unsafe_below(1.0, WIDE, strict=False))
    assert verdict(outcome) is Verdict.FALSIFIED
    assert verdict(run(constant, unsafe_below(1.0, WIDE, strict=True))) is not Verdict.FALSIFIED


def test_the_first_unsafe_disjunct_decides_and_all_must_be_closed() -> None:
    graph = network(ABS, ([[1.0, 1.0]], [0.5]))
    safe, unsafe = unsafe_below(0.25, WIDE), unsafe_below(0.75, WIDE)
    both, leaves, _ = decided(graph, safe, unsafe)
    assert verdict(both) is Verdict.FALSIFIED
    assert [leaf.verdict for leaf in leaves] == [Verdict.VERIFIED, Verdict.FALSIFIED]
    closed, leaves, _ = decided(graph, safe, unsafe_below(0.0, WIDE), safe)
    assert verdict(closed) is Verdict.VERIFIED
    assert 0 < closed.lower_bound <= 0.25
    assert len(leaves) == 3


def test_input_sets_that_are_empty_or_only_seem_so() -> None:
    graph = network(ABS, ([[1.0, 1.0]], [0.0]))
    row = np.array([[1.0]])

    def domain(rhs: float, strict: bool, unsafe: Rows) -> Disjunct:
        return Disjunct(WIDE, unsafe, Rows(row, np.zeros((1, 1)), np.array([rhs]), np.array([strict])))

    some, none = Rows.on_outputs([[1.0]], [5.0], 1), Rows.none(1, 1)
    for unsafe in (some, none):
        outcome, (leaf,), _ = decided(graph, domain(-2.0, False, unsafe))
        assert (verdict(outcome), leaf.reason, outcome.trust) == (Verdict.VERIFIED, Reason.EMPTY_INPUT_SET, Trust.EXACT)
    # x < -1 has no point in the box, x <= -1 has one: only exact arithmetic tells.
    assert verdict(run(graph, domain(-1.0, True, none))) is Verdict.VERIFIED
    assert verdict(run(graph, domain(-1.0, False, none))) is Verdict.FALSIFIED
    assert run(graph, domain(0.5, False, none)).counterexample is not None


def test_the_required_trust_forbids_a_solvers_word() -> None:
    graph = network(ABS, ([[1.0, 1.0]], [0.5]))
    outcome = run(graph, unsafe_below(0.25, WIDE), trust="rounded")
    assert (verdict(outcome), outcome.reason, outcome.lower_bound) == (Verdict.UNKNOWN, Reason.TRUST, -math.inf)
    assert verdict(run(graph, unsafe_below(0.75, WIDE), trust="rounded")) is Verdict.FALSIFIED


def test_over_the_licence_scip_takes_over_and_says_so_once() -> None:
    if not load("gurobi").licence().startswith("size-limited"):
        pytest.skip("this Gurobi has a full licence")
    graph, box = relu_network([4, 700, 1], 0), Box(-0.01 * np.ones(4), 0.01 * np.ones(4))
    stack = Stack(4)
    wide = stack.add(graph.nodes[1].op, 0, size=700)
    wide = stack.add(Elementwise(function("abs")), wide, size=700)
    wide = stack.add(Linear(torch.eye(700, dtype=torch.float64)[:, torch.randperm(700)]), wide, size=700)
    wide = stack.add(Elementwise(function("abs")), wide, size=700)
    wide = stack.add(Linear(torch.eye(700, dtype=torch.float64)), wide, size=700)
    wide = stack.add(Elementwise(function("abs")), wide, size=700)
    stack.add(Linear(torch.ones(1, 700, dtype=torch.float64) / 700), wide, size=1)
    disjunct = unsafe_below(-1.0, box)
    outcome, leaves, notes = decided(stack.graph(), disjunct, disjunct, solver="gurobi")
    assert verdict(outcome) is Verdict.VERIFIED
    assert len(notes) == 1
    assert "too large for its licence" in notes[0]
    assert "scip is used instead" in notes[0]
    assert {leaf.solver for leaf in leaves} == {"scip"}


def hard() -> tuple[Graph, Disjunct]:
    graph, box = relu_network([8, 40, 40, 40, 3], 1), Box(-np.ones(8), np.ones(8))
    return graph, Disjunct(box, Rows.on_outputs([[1, -1, 0], [0, 1, -1]], [-4, -4], 8), Rows.none(8, 3))


def test_time_is_shared_and_a_later_disjunct_still_gets_its_turn() -> None:
    graph, disjunct = hard()
    easy = Disjunct(disjunct.box, Rows.on_outputs([[1.0, 0.0, 0.0]], [1e3], 8), Rows.none(8, 3))
    outcome, leaves, _ = decided(graph, disjunct, easy, seconds=4)
    assert verdict(outcome) is Verdict.FALSIFIED
    assert leaves[0].reason is Reason.TIMEOUT
    stuck = run(graph, disjunct, seconds=1)
    assert (verdict(stuck), stuck.reason) == (Verdict.UNKNOWN, Reason.TIMEOUT)
    assert stuck.note
    over = run(graph, disjunct, seconds=0)
    assert (verdict(over), over.reason, over.lower_bound) == (Verdict.UNKNOWN, Reason.TIMEOUT, -math.inf)


def test_cancelling_ends_at_once_with_the_bound_so_far() -> None:
    graph, disjunct = hard()
    deadline = Deadline(60)
    events: list[Event] = []
    threading.Timer(2.0, deadline.cancel).start()
    began = time.monotonic()
    (leaf,), _ = decide_by_milp(Problem(graph, (disjunct,)), opened(graph, (disjunct,)), Options(), deadline, events.append)
    assert time.monotonic() - began < 4.0
    assert (leaf.verdict, leaf.reason) == (Verdict.UNKNOWN, Reason.INTERRUPTED)
    assert -math.inf < leaf.lower_bound
    assert events
    assert set(events[-1].data) == {"bound", "nodes", "gap", "disjunct"}


def test_networks_too_large_for_smt_are_refused() -> None:
    graph, box = relu_network([4, 1200, 1200, 1200, 1], 0), Box(-np.ones(4), np.ones(4))
    with pytest.raises(SolverUnavailable, match="too many for an SMT solver"):
        run(graph, unsafe_below(-1e9, box), method="smt", trust="exact")
