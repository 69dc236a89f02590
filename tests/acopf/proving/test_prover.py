"""Networks with an operating point that is known: nothing that is proved contradicts it, and every proof passes its check."""

from __future__ import annotations

import math

import numpy as np
import pytest
from power_cases import small
from power_networks import Known, random_known

from milpverify.acopf.case import Case
from milpverify.acopf.loads import Loads
from milpverify.acopf.matpower import load_case
from milpverify.acopf.proving.proof import Statement
from milpverify.acopf.proving.prover import Proved, Prover, claim
from milpverify.acopf.proving.recheck import recheck
from milpverify.config import Deadline
from milpverify.result import Trust

SECONDS = 0.3  # for each network: that is enough for trees


def proved(case: Case, statement: Statement, known: Known | None, cutoff: float, seconds: float = SECONDS) -> Proved:
    own = known is None or statement is Statement.GROWTH
    loads, tolerance = Loads().ranges(case) if own else known.question.loads, 0.0 if known is None else known.question.tolerance
    with Prover(case, claim(statement, loads, tolerance, math.inf if statement is Statement.COST else 0.0), Deadline(60.0)) as prover:
        searching = Deadline(seconds)
        prover._programs._deadline = prover.tree.tightening.deadline = searching
        prover.root()
        if not prover.refuted and math.isfinite(cutoff):
            prover.cut(cutoff)
        prover.search(lambda: math.inf, lambda *_: None)
        return prover.proved()


@pytest.mark.parametrize("wild", [False, True], ids=["as built", "wild"])
@pytest.mark.parametrize("seed", range(3))
def test_an_operating_point_is_never_ruled_out(seed: int, wild: bool) -> None:
    rng = np.random.default_rng(seed)
    known = random_known(rng, "feasible", float(rng.choice([0.0, 1e-9, 1e-3])), most=3, wild=wild)
    answer = proved(known.question.case, Statement.INFEASIBLE, known, math.inf)
    assert not answer.refuted and answer.proof is None and not answer.warnings


@pytest.mark.parametrize("wild", [False, True], ids=["as built", "wild"])
@pytest.mark.parametrize("seed", range(3))
def test_no_bound_is_above_an_attained_cost(seed: int, wild: bool) -> None:
    rng = np.random.default_rng(10 + seed)
    known = random_known(rng, "priced", 0.0, most=3, wild=wild)
    case = known.question.case
    cost = case.cost(known.pg)
    answer = proved(case, Statement.COST, known, cost + 1e-9 * abs(cost) if seed % 2 else math.inf)
    assert not answer.refuted and not answer.warnings
    assert answer.value <= cost + 1e-9 * abs(cost)
    if answer.proof is not None:
        assert recheck(case, answer.proof) and answer.trust is Trust.EXACT


@pytest.mark.parametrize("wild", [False, True], ids=["as built", "wild"])
@pytest.mark.parametrize("seed", range(3))
def test_no_bound_is_below_an_attained_growth(seed: int, wild: bool) -> None:
    rng = np.random.default_rng(20 + seed)
    known = random_known(rng, "growth", float(rng.choice([1e-9, 1e-6])), most=3, wild=wild)
    answer = proved(known.question.case, Statement.GROWTH, known, known.factor - 1e-9 if seed % 2 else math.inf)
    assert not answer.refuted and not answer.warnings
    assert answer.value >= known.factor


@pytest.mark.parametrize("seconds", [0.02, 0.1, 0.2, 0.3])
def test_whenever_the_time_is_over_the_proof_holds(seconds: float) -> None:
    tables = small()
    tables["bus"][:, 2] = [0, 20, 40]  # type: ignore[index]
    tables["branch"][:, 5] = [25, 22, 30]  # type: ignore[index]
    answer = proved(load_case(tables), Statement.COST, None, 1709.6954, seconds)
    assert not answer.warnings
    assert answer.proof is None or answer.trust is Trust.EXACT


def test_one_bus_and_nothing_to_split() -> None:
    tables = {
        "version": "2", "baseMVA": 100.0, "bus": [[1, 3, 50, 10, 0, 0, 1, 1, 0, 110, 1, 1.1, 0.9]],
        "gen": [[1, 0, 0, 30, -30, 1.0, 100, 1, 80, 5]], "branch": [], "gencost": [[2, 0, 0, 3, 0.1, 20, 5]],
    }  # fmt: skip
    case = load_case(tables)
    assert not proved(case, Statement.INFEASIBLE, None, math.inf, 20.0).refuted
    assert proved(case, Statement.COST, None, math.inf, 20.0).value == pytest.approx(1255.0, rel=1e-6)
    assert proved(case, Statement.GROWTH, None, math.inf, 20.0).value == pytest.approx(1.6, rel=1e-6)
