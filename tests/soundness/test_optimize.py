"""minimize() and maximize() against exact enumeration of the activation patterns."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import exact
import numpy as np
import pytest
from random_networks import Case, random_case

import milpverify as mv
from milpverify.optimize import Optimum, maximize, minimize


def _problem(case: Case, folder: Path) -> mv.Problem:
    return mv.load(*case.write(folder))


def _domain(disjunct: exact.Disjunct, nx: int, ny: int) -> mv.Rows:
    rows = disjunct.domain
    return mv.Rows(
        np.array([r.x_row for r in rows], dtype=float).reshape(len(rows), nx),
        np.zeros((len(rows), ny)),
        np.array([r.rhs for r in rows], dtype=float),
        np.zeros(len(rows), dtype=bool),
    )


@pytest.mark.parametrize("seed", range(24))
def test_bounds_enclose_the_exact_optimum(seed: int, tmp_path: Path) -> None:
    case = random_case(seed)
    row = replace(case.disjuncts[0].unsafe[0], rhs=0.0, strict=False)
    closed = [replace(r, strict=False) for r in case.disjuncts[0].domain]
    disjunct = replace(case.disjuncts[0], unsafe=[row], domain=closed)
    least = exact.truth(case.network, disjunct).optimum
    problem = _problem(case, tmp_path)
    box = mv.Box(disjunct.lower, disjunct.upper)
    scale = max(1e-9, exact.magnitude(case.network, disjunct))
    found = minimize(
        problem.graph,
        box,
        (row.x_row, row.y_row),
        gap=1e-4 * scale,
        timeout=3,
        constraints=_domain(disjunct, problem.graph.nx, problem.graph.ny),
    )
    if least is None:  # no input satisfies the constraints
        assert found.x is None
        return
    assert Fraction(found.lower_bound) <= least
    if found.x is not None:
        x = [Fraction(v) for v in found.x.tolist()]
        assert row.residual(x, case.network(x)) <= Fraction(found.upper_bound)
        if found.reason is mv.Reason.PROVED:
            assert found.gap <= 1e-4 * scale
            assert least - Fraction(1, 10**9) * Fraction(scale) <= Fraction(found.upper_bound)


def _linear(tmp_path: Path) -> mv.Problem:
    case = random_case(1)
    return _problem(case, tmp_path)


def test_maximize_mirrors_minimize(tmp_path: Path) -> None:
    problem = _linear(tmp_path)
    box = problem.disjuncts[0].box
    row = np.ones(problem.graph.ny)
    low, high = minimize(problem.graph, box, row, timeout=10), maximize(problem.graph, box, row, timeout=10)
    mirrored: Optimum = minimize(problem.graph, box, -row, timeout=10)
    assert (high.lower_bound, high.upper_bound) == (-mirrored.upper_bound, -mirrored.lower_bound)
    assert low.lower_bound <= high.upper_bound


def test_stopped_runs_keep_valid_bounds(tmp_path: Path) -> None:
    problem = _linear(tmp_path)
    found = minimize(problem.graph, problem.disjuncts[0].box, np.ones(problem.graph.ny), gap=1e-12, timeout=0.0)
    assert found.reason is mv.Reason.TIMEOUT
    assert found.lower_bound <= found.upper_bound


def test_bad_objectives_are_refused(tmp_path: Path) -> None:
    problem = _linear(tmp_path)
    box = problem.disjuncts[0].box
    ny = problem.graph.ny
    with pytest.raises(mv.InvalidProperty, match="coefficients"):
        minimize(problem.graph, box, np.ones(ny + 1))
    with pytest.raises(mv.InvalidProperty, match="finite"):
        minimize(problem.graph, box, np.full(ny, np.nan))
    with pytest.raises(mv.InvalidProperty, match="gap"):
        minimize(problem.graph, box, np.ones(ny), gap=0.0)
