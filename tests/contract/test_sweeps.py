"""Sweeps: many objectives over one linear program, bounded by what their multipliers prove."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from milpverify.config import Deadline
from milpverify.errors import SolverUnavailable
from milpverify.solvers.base import Limits, Manner, SolverStatus, SweepOutcome
from milpverify.solvers.model import Model, Sweep
from milpverify.solvers.process import SolverProcess
from milpverify.solvers.registry import load, solve
from milpverify.solvers.trusted_bound import safe_sweep_bounds


def random_model(seed: int, n: int = 12, m: int = 10) -> Model:
    """A feasible linear program with equations, rows with one end and with two, dense and sparse."""
    rng = np.random.default_rng(seed)
    dense = rng.normal(size=(m, n)) * (rng.uniform(size=(m, n)) < 0.5)
    inside = rng.uniform(-0.5, 0.5, n)
    activity, slack = dense @ inside, rng.uniform(0.0, 0.3, m)
    low = np.where(rng.uniform(size=m) < 0.6, activity - slack, -math.inf)
    high = np.where(rng.uniform(size=m) < 0.6, activity + slack, math.inf)
    low[0] = high[0] = activity[0]
    row, column = np.nonzero(dense)
    start = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=m))]).astype(np.int64)
    none = np.zeros(n, dtype=bool)
    return Model(-np.ones(n), np.ones(n), none, start, column.astype(np.int64), dense[row, column], low, high, rng.normal(size=n))


def optimum(model: Model) -> float:
    return float(load("highs").solve(model, Limits(), lambda _: False).primal)


def swept(sweep: Sweep, limits: Limits | None = None) -> SweepOutcome:
    found = solve("highs", sweep, limits or Limits(), lambda _: False)
    assert isinstance(found, SweepOutcome)
    return found


@pytest.mark.parametrize("seed", range(8))
def test_every_bound_holds_and_is_close(seed: int) -> None:
    model = random_model(seed)
    least = optimum(model)
    cutoff = least + 0.2
    columns, sides = np.repeat(np.arange(12), 2), np.tile([1.0, -1.0], 12)
    sweep = Sweep(model, columns, sides, cutoff)
    found = swept(sweep)
    assert found.status is SolverStatus.OPTIMAL and found.point is not None and abs(found.dual_bound - least) <= 1e-7
    count = len(model.objective)
    within = replace(
        model,
        row_start=np.append(model.row_start, model.row_start[-1] + count),
        column=np.append(model.column, np.arange(count)),
        value=np.append(model.value, model.objective),
        row_lower=np.append(model.row_lower, -math.inf),
        row_upper=np.append(model.row_upper, cutoff),
    )
    for j, side, bound, safe in zip(columns.tolist(), sides.tolist(), found.bounds.tolist(), safe_sweep_bounds(found, sweep), strict=True):
        true = optimum(replace(within, objective=side * np.eye(count)[j]))
        assert safe < bound <= true + 1e-9
        assert bound >= true - 1e-7 or bound >= true - 2 * Manner().attained * 2.0  # what little there is to take off is left


@pytest.mark.parametrize("seed", range(8))
def test_no_multipliers_prove_more_than_the_truth(seed: int) -> None:
    model, rng = random_model(seed), np.random.default_rng(seed)
    true = optimum(model)
    for size in (0.0, 0.1, 1.0, 1e6):
        for _ in range(20):
            multipliers = size * rng.normal(size=model.num_rows)
            multipliers[rng.integers(model.num_rows)] = rng.choice([math.nan, math.inf, -math.inf, 0.0])
            assert model.dual_value(model.objective, multipliers) <= true + 1e-9
    unbounded = replace(model, lower=np.full(12, -math.inf))
    assert unbounded.dual_value(model.objective, np.zeros(model.num_rows)) == -math.inf


def test_what_cannot_be_is_no_bound() -> None:
    model = random_model(0)
    sweep = Sweep(model, np.array([0, 1]), np.array([1.0, -1.0]), optimum(model) - 1.0)
    found = swept(sweep)
    assert found.status is SolverStatus.INFEASIBLE and (found.bounds <= np.array([-1.0, -1.0])).all()
    late = swept(replace(sweep, cutoff=10.0), Limits(seconds=0.0))
    assert late.status is not SolverStatus.OPTIMAL and (late.bounds == -math.inf).all()
    enough = swept(replace(sweep, cutoff=10.0), Limits(dual_target=-100.0))
    assert (enough.bounds == -math.inf).all() and enough.dual_bound > -100.0
    with pytest.raises(SolverUnavailable, match="scip cannot take"):
        solve("scip", sweep, Limits(), lambda _: False)


def test_a_process_passes_a_sweep_on_to_who_has_them() -> None:
    model = random_model(1)
    sweep = Sweep(model, np.arange(12), np.ones(12), optimum(model) + 0.1)
    with SolverProcess("scip") as process:
        found, late = process.solve(sweep, Limits(), Deadline(60)), process.solve(sweep, Limits(), Deadline(0.0))
    assert np.allclose(found.bounds, swept(sweep).bounds) and found.status is SolverStatus.OPTIMAL
    assert late.status is SolverStatus.TIME_LIMIT and (late.bounds == -math.inf).all() and late.point is None


@pytest.mark.parametrize("seed", range(4))
def test_where_a_program_begins_changes_nothing(seed: int) -> None:
    """At its own basis, at one that is none, and at any: the optimum is the same, and so are the bounds of a sweep."""
    model, solver = random_model(seed), load("highs")
    plain = solver.solve(model, Limits(), lambda _: False)
    assert plain.point is not None and plain.basic is not None
    other, rng = replace(model, objective=-model.objective), np.random.default_rng(seed)
    some = rng.permutation(np.arange(len(plain.basic)) < model.num_rows)
    least, columns, sides = optimum(other), np.repeat(np.arange(12), 2), np.tile([1.0, -1.0], 12)
    bounds = swept(Sweep(replace(other, objective=np.zeros(12)), columns, sides, math.inf)).bounds
    for basic in (plain.basic, some, np.zeros_like(plain.basic), np.ones_like(plain.basic)):
        begun = replace(other, start=plain.point, basic=basic)
        found = solver.solve(begun, Limits(), lambda _: False)
        assert found.status is SolverStatus.OPTIMAL and abs(found.primal - least) <= 1e-7
        again = swept(Sweep(replace(begun, objective=np.zeros(12)), columns, sides, math.inf))
        assert np.abs(again.bounds - bounds).max() <= 2 * Manner().attained
