"""A solver that a user hands in, by the name of its class: it decides, and how far it is believed."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import own_solver
import pytest
import torch
from random_nets import hard_model
from torch import nn

import milpverify as mv
from milpverify.errors import InvalidInput
from milpverify.solvers import registry
from milpverify.solvers.base import Limits, OnProgress, SolveOutcome, SolverStatus
from milpverify.solvers.model import Model

OWN = "own_solver:BestFirst"
SMALL = [4, 6, 3]


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker's process finds the module, too."""
    paths = [str(Path(own_solver.__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))


def network() -> nn.Module:
    torch.manual_seed(4)
    return nn.Sequential(nn.Linear(3, 10), nn.ReLU(), nn.Linear(10, 6), nn.ReLU(), nn.Linear(6, 1)).eval()


@pytest.mark.parametrize(("level", "verdict"), [(-0.505, "VERIFIED"), (-0.5, "FALSIFIED")])
def test_it_decides_a_problem(level: float, verdict: str, importable: None) -> None:
    """The network's least output is -0.50294; its bounds leave it between -0.71 and -0.50."""
    problem = mv.Problem(network(), mv.Box(-np.ones(3), np.ones(3)), unsafe=f"(<= Y_0 {level})")
    result = mv.verify(problem, method=mv.Milp(OWN), timeout=60, options=mv.Options(attack=False))
    assert result.verdict.name == verdict and result.options["solver"] == OWN
    (search,) = (phase.detail for phase in result.phases if phase.name == "search")
    assert search["solver"] == OWN and search["nodes"] > 1
    assert result.trust is (mv.Trust.SOLVER if verdict == "VERIFIED" else mv.Trust.ROUNDED)


@pytest.mark.parametrize(("believed", "bound"), [(True, 1e6), (False, None)])
def test_what_it_proves_counts_as_far_as_scip_proves_it_until_it_says_otherwise(
    believed: bool, bound: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = replace(hard_model(SMALL), start=None)
    least = registry.solve("scip", model, Limits(30.0), lambda _: False).dual_bound

    def lying(self: own_solver.BestFirst, model: Model, limits: Limits, on_progress: OnProgress) -> SolveOutcome:
        return SolveOutcome(SolverStatus.OPTIMAL, 1e6, 1e6, None, 3, 0.0, "mine: optimal")

    monkeypatch.setattr(own_solver.BestFirst, "solve", lying)
    if believed:
        monkeypatch.setattr(own_solver.BestFirst, "needs_second", lambda self, model: False)
    found = registry.solve(OWN, model, Limits(30.0), lambda _: False)
    assert found.dual_bound == pytest.approx(least if bound is None else bound)


@pytest.mark.parametrize("where", ["solve", "needs_second"])
def test_scip_proves_what_was_asked_whatever_an_adapter_makes_of_it(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that narrows the box where it stands, as a branch and bound may, and forgets to put it back."""
    model = replace(hard_model(SMALL), start=None)
    least = registry.solve("scip", model, Limits(30.0), lambda _: False).dual_bound
    outcome = SolveOutcome(SolverStatus.OPTIMAL, 1e6, 1e6, None, 3, 0.0, "mine: optimal")

    def narrowing(_: own_solver.BestFirst, model: Model, *rest: object) -> SolveOutcome | bool:
        model.lower[model.objective != 0] = 0.9 * model.upper[model.objective != 0]
        return outcome if rest else True

    monkeypatch.setattr(own_solver.BestFirst, "solve", lambda *_: outcome)
    monkeypatch.setattr(own_solver.BestFirst, where, narrowing)
    assert registry.solve(OWN, model, Limits(30.0), lambda _: False).dual_bound == pytest.approx(least)


BROKEN = """
from milpverify.solvers.base import Solver

class Unfinished(Solver):
    def licence(self): return "free"

class Silent(Unfinished):
    def solve(self, model, limits, on_progress): ...

class Asking(Silent):
    capabilities = frozenset()
    def __init__(self, port): ...
"""


def test_a_solver_that_there_is_not_is_refused_before_anything_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = mv.Problem(network(), mv.Box(-np.ones(3), np.ones(3)), unsafe="(>= Y_0 100)")
    (tmp_path / "broken_solvers.py").write_text(BROKEN)
    (tmp_path / "raising_solvers.py").write_text("raise RuntimeError('no licence')")
    (tmp_path / "garbled_solvers.py").write_text("def f(:")
    monkeypatch.syspath_prepend(tmp_path)
    broken = [f"broken_solvers:{name}" for name in ("Unfinished", "Silent", "Asking", "Nobody")]
    for name in ("cplex", "nowhere:Adapter", "own_solver:np", "raising_solvers:A", "garbled_solvers:A", ":A", "os:", *broken):
        with pytest.raises(InvalidInput, match=name):
            mv.verify(problem, method=mv.Milp(name))
        with pytest.raises(InvalidInput, match=name):
            mv.verify(problem, options=mv.Options(solver=name))
