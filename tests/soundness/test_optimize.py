"""minimize() and maximize() against exact enumeration of the activation patterns."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import exact
import numpy as np
import pytest
import torch
from random_graphs import Builder
from random_networks import Case, random_case

import milpverify as mv
import milpverify.margin as margin_module
import milpverify.optimize as optimize_module
from milpverify.config import SearchMethod
from milpverify.counterexamples.attack import AttackTuning
from milpverify.graph import evaluate
from milpverify.optimize import Optimum, maximize, minimize
from milpverify.result import Reason, Trust, Verdict


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


def _network(sizes: list[int], activation: type[torch.nn.Module], seed: int) -> tuple[mv.Graph, mv.Box]:
    """A random network with doubled weights in float64, over the box of radius 1."""
    torch.manual_seed(seed)
    layers = [part for m, n in pairwise(sizes) for part in (torch.nn.Linear(m, n), activation())][:-1]
    net = torch.nn.Sequential(*layers).double().eval()
    for parameter in net.parameters():
        parameter.data *= 2
    box = mv.Box(-np.ones(sizes[0]), np.ones(sizes[0]))
    return mv.Problem(net, box, unsafe="(<= Y_0 0)").graph, box


METHODS: tuple[str | SearchMethod | mv.Milp, ...] = ("auto", SearchMethod.BAB, "milp", mv.Milp("highs"), "smt")


@pytest.mark.parametrize("seed", range(3))
def test_every_method_finds_the_same_optimum(seed: int) -> None:
    graph, box = _network([2, 6, 4, 1], torch.nn.ReLU, seed)
    lows, highs = [], []
    for method in METHODS:
        found = minimize(graph, box, [1.0], 1e-3, 60, method)
        assert found.reason is Reason.PROVED and found.gap <= 1e-3
        assert found.searches >= 1 and found.trust in (Trust.ROUNDED, Trust.SOLVER)
        asked = method.value if isinstance(method, SearchMethod) else method
        assert found.options["method"] == ("milp" if isinstance(asked, mv.Milp) else asked)
        if found.options["method"] in ("milp", "smt"):
            assert found.ledger["whole models"]["bounded"] == found.searches
            assert found.trust is (Trust.SOLVER if found.options["method"] == "milp" else Trust.ROUNDED)
        lows, highs = [*lows, found.lower_bound], [*highs, found.upper_bound]
    assert max(lows) <= min(highs)
    best = maximize(graph, box, [-1.0], 1e-3, 60, method="milp", options=mv.Options(solver="highs"))
    assert max(lows) <= -best.lower_bound and -best.upper_bound <= min(highs)
    assert (best.options["method"], best.options["solver"], best.trust) == ("milp", "highs", Trust.SOLVER)
    with pytest.raises(mv.InvalidInput, match="unknown method 'tree'"):
        minimize(graph, box, [1.0], method="tree")


@pytest.mark.parametrize("seed", range(2))
def test_models_find_the_optimum_of_smooth_networks(seed: int) -> None:
    graph, box = _network([2, 5, 1], torch.nn.Tanh, seed)
    methods: tuple[str | mv.Milp, ...] = ("bab", "milp", mv.Milp("highs"), mv.Milp("scip", encoding="native"))
    found = [minimize(graph, box, [1.0], 1e-3, 60, method) for method in methods]
    assert all(f.reason is Reason.PROVED and f.gap <= 1e-3 for f in found)
    assert max(f.lower_bound for f in found) <= min(f.upper_bound for f in found)
    assert [f.trust for f in found] == [Trust.ROUNDED, *[Trust.SOLVER] * 3]
    assert [f.options["encoding"] for f in found] == ["pieces", "pieces", "pieces", "native"]
    top = maximize(graph, box, [1.0], 1e-3, 60, method="milp")
    points = [evaluate(graph, 2 * torch.rand(500, 2, dtype=torch.float64) - 1) for _ in range(2)]
    assert top.reason is Reason.PROVED and float(max(y.max() for y in points)) <= top.upper_bound


def _weak_attack(monkeypatch: pytest.MonkeyPatch) -> None:
    """A first incumbent that is far from the optimum."""
    attack = margin_module.attack
    weak = AttackTuning(starts=1, steps=1, rounds=1)
    monkeypatch.setattr(margin_module, "attack", lambda *a, **k: attack(*a, tuning=weak, **k))  # type: ignore[arg-type]


def test_the_ledger_counts_all_searches(monkeypatch: pytest.MonkeyPatch) -> None:
    _weak_attack(monkeypatch)
    judged, runs = optimize_module.verify, list[mv.Result]()
    monkeypatch.setattr(optimize_module, "verify", lambda *a, **k: runs.append(judged(*a, **k)) or runs[-1])
    graph, box = _network([3, 8, 8, 1], torch.nn.ReLU, 2)
    found = minimize(graph, box, [1.0], 1e-3, 60, "milp", options=mv.Options(attack=False))
    assert found.searches == len(runs) > 1
    assert found.ledger["attack"]["seconds"] > 0  # of the first incumbent: the searches have none
    parts = {part for run in runs for part in run.ledger}
    assert set(found.ledger) == parts | {"presolve bounds", "attack"}
    for part in parts:
        for name in ("closed", "bounded"):
            assert found.ledger[part][name] == sum(run.ledger.get(part, {}).get(name, 0) for run in runs)
        assert found.ledger[part]["seconds"] >= sum(run.ledger.get(part, {}).get("seconds", 0.0) for run in runs) - 1e-9
    assert all(run.options == found.options for run in runs)
    assert sum(counts["seconds"] for counts in found.ledger.values()) <= found.seconds + 1e-9


def test_the_json_form(tmp_path: Path) -> None:
    graph, box = _network([2, 4, 1], torch.nn.ReLU, 0)
    found = minimize(graph, box, [1.0], method="bab")
    again = json.loads(found.to_json(tmp_path / "optimum.json"))
    assert json.loads((tmp_path / "optimum.json").read_text()) == again == found.to_dict()
    assert {f.name for f in fields(Optimum)} | {"message"} == set(again)
    assert (again["reason"], again["trust"], again["x"]) == ("PROVED", "rounded", found.x.tolist() if found.x is not None else None)
    assert replace(found, upper_bound=np.inf, x=None, y=None).to_dict()["upper_bound"] == "inf"


@pytest.mark.parametrize("gap", [1e-4, 2e-6, 1e-7])
def test_smooth_networks_are_decided_up_to_the_gap(gap: float) -> None:
    """A gap below the options' delta, and one not much above it."""
    graph, box = _network([2, 5, 1], torch.nn.Tanh, 0)
    found = minimize(graph, box, [1.0], gap, 60)
    assert found.reason is Reason.PROVED and found.gap <= gap
    assert found.options["delta"] == min(1e-6, gap / 8)


# ------------------------------------------------------------------------------------------- what a search may answer


def _answered(monkeypatch: pytest.MonkeyPatch, *results: mv.Result, root: float = -1.0, trust: Trust = Trust.SOLVER) -> Optimum:
    """The minimum of x over [0, 1] with a gap of 0.1, where the searches answer this; the first asks for -0.075."""
    left = list(results)
    monkeypatch.setattr(optimize_module, "verify", lambda *_, **__: left.pop(0))
    monkeypatch.setattr(optimize_module, "_root_bound", lambda _: root)
    net = torch.nn.Linear(1, 1, bias=False).double().eval()
    net.weight.data[:] = 1.0
    box = mv.Box(np.zeros(1), np.ones(1))
    found = minimize(mv.Problem(net, box, unsafe="(<= Y_0 0)").graph, box, [1.0], 0.1, options=mv.Options(trust=trust))
    assert not left and found.searches == len(results)
    assert found.upper_bound == pytest.approx(0.0, abs=1e-9)
    return found


def _unknown(reason: Reason, margin: float, rests: Trust = Trust.ROUNDED) -> mv.Result:
    return mv.Result(Verdict.UNKNOWN, reason, rests, margin, bound_trust=rests)


@pytest.mark.parametrize("reason", [Reason.DELTA, Reason.TIMEOUT, Reason.SOLVER_INCONCLUSIVE])
def test_an_open_search_whose_bound_is_within_the_gap_has_decided(monkeypatch: pytest.MonkeyPatch, reason: Reason) -> None:
    found = _answered(monkeypatch, _unknown(reason, -0.01))
    assert (found.reason, found.lower_bound) == (Reason.PROVED, pytest.approx(-0.085))
    found = _answered(monkeypatch, _unknown(reason, -0.5))
    assert (found.reason, found.lower_bound) == (reason, pytest.approx(-0.575))


def test_bounds_that_rest_on_too_little_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    for trust, bound in ((Trust.SOLVER, -0.085), (Trust.ROUNDED, -1.0)):
        found = _answered(monkeypatch, _unknown(Reason.TIMEOUT, -0.01, Trust.SOLVER), trust=trust)
        assert (found.lower_bound, found.trust) == (pytest.approx(bound), trust)
        assert found.reason is (Reason.PROVED if trust is Trust.SOLVER else Reason.TIMEOUT)
    proved = mv.Result(Verdict.VERIFIED, Reason.PROVED, Trust.ROUNDED, 0.01, bound_trust=Trust.SOLVER)
    for trust, bound in ((Trust.SOLVER, -0.065), (Trust.ROUNDED, -0.075)):
        found = _answered(monkeypatch, proved, trust=trust)
        assert (found.lower_bound, found.trust, found.reason) == (pytest.approx(bound), trust, Reason.PROVED)
    assert _answered(monkeypatch, root=-0.05, trust=Trust.EXACT).reason is Reason.TRUST
    assert _answered(monkeypatch, root=-0.05, trust=Trust.ROUNDED).reason is Reason.PROVED


def test_a_bound_above_the_incumbent_is_a_contradiction(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(mv.Contradiction, match="at least 0"):
        _answered(monkeypatch, mv.Result(Verdict.VERIFIED, Reason.PROVED, Trust.SOLVER, 1.0, bound_trust=Trust.SOLVER))


def test_where_neither_a_bound_nor_a_point_is_known_the_search_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a logarithm whose domain the box leaves nothing is known at the root."""
    build = Builder(1, 0)
    build.apply("log")
    monkeypatch.setattr(optimize_module, "seek", lambda *_: [])
    found = mv.minimize(build.graph(), mv.Box(np.array([-1.0]), np.array([1.0])), [1.0], timeout=1.0)
    assert found.lower_bound == -np.inf and found.reason is not Reason.PROVED
