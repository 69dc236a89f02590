"""Whole models by SMT: what counts as proved, by whom, and what is left open."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
from product_networks import Grower
from random_nets import proved_bounds, relu_network

import milpverify as mv
from milpverify.config import Deadline, Options
from milpverify.errors import SolverUnavailable, UnsupportedOperator
from milpverify.graph import Graph
from milpverify.result import Reason, Trust, Verdict
from milpverify.search.solver.whole_milp import Leaf, OpenDisjunct
from milpverify.search.solver.whole_smt import decide_by_smt
from milpverify.spec import Box, Disjunct, Problem, Rows

with_cvc5 = pytest.mark.skipif(find_spec("cvc5") is None, reason="cvc5 is not installed (pip install cvc5)")


def leaf_of(graph: Graph, below: float, solver: str = "scip", trust: str = "exact", seconds: float = 20.0) -> Leaf:
    box = Box(-np.ones(graph.nx), np.ones(graph.nx))
    disjunct = Disjunct(box, Rows.on_outputs([[1.0]], [below], graph.nx), Rows.none(graph.nx, 1))
    item = OpenDisjunct(0, disjunct, lambda: proved_bounds(graph, box))
    (leaf,), _ = decide_by_smt(Problem(graph, (disjunct,)), [item], Options(solver=solver, trust=trust), Deadline(seconds))
    return leaf


def saddle() -> Graph:
    """x y + x^2, at least -1/4."""
    g = Grower(2, 0)
    x, y = (g.select(g.nodes[0], np.array([i])) for i in range(2))
    return g.finished(g.sum([g.product(x, y), g.call("square", x)]))


def curve(name: str) -> Graph:
    g = Grower(1, 0)
    return g.finished(g.call(name, g.nodes[0]))


@pytest.mark.parametrize(("trust", "rests_on"), [("exact", Trust.EXACT), ("rounded", Trust.ROUNDED)])
@pytest.mark.parametrize("solver", ["scip", "highs", "z3"])
def test_z3_proves_of_products_unless_another_smt_solver_is_asked_for(solver: str, trust: str, rests_on: Trust) -> None:
    leaf = leaf_of(saddle(), -0.2501, solver, trust)
    assert (leaf.verdict, leaf.reason, leaf.trust, leaf.solver) == (Verdict.VERIFIED, Reason.PROVED, rests_on, "z3")
    leaf = leaf_of(saddle(), -0.2499, solver, trust)
    assert leaf.verdict is Verdict.FALSIFIED and leaf.counterexample is not None
    assert leaf.counterexample.margin_real <= 0 and abs(abs(leaf.counterexample.x[0]) - 0.5) < 0.02


def test_verify_by_smt_has_exact_trust() -> None:
    graph = saddle()
    disjunct = Disjunct(Box([-1, -1], [1, 1]), Rows.on_outputs([[1.0]], [-0.2501], 2), Rows.none(2, 1))
    result = mv.verify(Problem(graph, (disjunct,)), 60.0, "smt", options=Options(trust="exact", attack=False))
    assert (result.verdict, result.trust) == (Verdict.VERIFIED, Trust.EXACT)


def test_z3_refuses_a_transcendental_function_by_name() -> None:
    with pytest.raises(UnsupportedOperator, match=r"tanh.*method bab or milp, or solver cvc5"):
        leaf_of(curve("tanh"), -1.0)


@with_cvc5
@pytest.mark.parametrize("name", ["tanh", "sin", "exp"])
@pytest.mark.parametrize("trust", ["exact", "solver"])
def test_unsat_of_cvc5_decides_nothing_of_transcendental_functions(name: str, trust: str) -> None:
    leaf = leaf_of(curve(name), -0.9, "cvc5", trust)
    assert (leaf.verdict, leaf.reason, leaf.solver) == (Verdict.UNKNOWN, Reason.SOLVER_INCONCLUSIVE, "cvc5")
    assert leaf.lower_bound == -np.inf and "alone decides nothing" in leaf.note


@with_cvc5
def test_a_point_of_cvc5_counts_once_it_holds_in_the_network() -> None:
    leaf = leaf_of(curve("exp"), 0.5, "cvc5")
    assert leaf.verdict is Verdict.FALSIFIED and leaf.counterexample is not None
    assert leaf.counterexample.margin_real <= 0 and leaf.trust is Trust.ROUNDED


@with_cvc5
def test_unsat_of_cvc5_has_trust_solver_elsewhere() -> None:
    for graph in (saddle(), relu_network([2, 3, 1], 0)):
        leaf = leaf_of(graph, -100.0, "cvc5", "solver")
        assert (leaf.verdict, leaf.trust) == (Verdict.VERIFIED, Trust.SOLVER)
        leaf = leaf_of(graph, -100.0, "cvc5", "exact")
        assert (leaf.verdict, leaf.reason) == (Verdict.UNKNOWN, Reason.TRUST)


@pytest.mark.skipif(find_spec("cvc5") is not None, reason="cvc5 is installed")
def test_without_cvc5_it_is_said_what_to_install() -> None:
    with pytest.raises(SolverUnavailable, match="pip install cvc5"):
        leaf_of(curve("tanh"), -2.0, "cvc5")
