"""verify(margin=True): the margin itself, between a proved bound and a point."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import exact
import numpy as np
import pytest
from networks import absolute_value, write_property
from random_networks import random_case
from support import Run, refused

import milpverify as mv
from milpverify.margin import Gap, bracket, margin_at, shifted
from milpverify.result import SIGN_ONLY


def problem(folder: Path, unsafe: str) -> mv.Problem:
    """About |x0| + |x1| on [-1, 1]^2."""
    return mv.load(absolute_value(folder / "net.onnx"), write_property(folder / "p.vnnlib", [-1, -1], [1, 1], unsafe))


CASES = [
    ("(>= Y_0 2.5)", 0.5, mv.Verdict.VERIFIED),
    ("(>= Y_0 1.5)", -0.5, mv.Verdict.FALSIFIED),
    ("(or (>= Y_0 2.25) (<= Y_0 -1.0))", 0.25, mv.Verdict.VERIFIED),
    ("(and (>= Y_0 0.5) (<= Y_0 0.75))", -0.125, mv.Verdict.FALSIFIED),
    ("(and (>= Y_0 3.0) (<= Y_0 0.0))", 1.5, mv.Verdict.VERIFIED),
]


@pytest.mark.parametrize(("unsafe", "margin", "verdict"), CASES)
def test_the_margin_is_found(tmp_path: Path, unsafe: str, margin: float, verdict: mv.Verdict) -> None:
    asked = problem(tmp_path, unsafe)
    found = mv.verify(asked, 60, margin=True, gap=1e-5)
    assert found.verdict is verdict and SIGN_ONLY not in found.note
    assert found.lower_bound <= margin <= found.upper_bound <= found.lower_bound + 1.5e-5  # relative to 1.5 at most
    assert found.nearest is not None and margin_at(asked, found.nearest) == found.upper_bound
    again = json.loads(found.to_json())
    assert again["upper_bound"] == found.upper_bound and again["nearest"] == found.nearest.tolist()


@pytest.mark.parametrize(("unsafe", "margin", "verdict"), CASES[:4])
def test_events_tell_bounds_of_the_margin(tmp_path: Path, unsafe: str, margin: float, verdict: mv.Verdict) -> None:
    """Not those of the questions that it is found by, whose thresholds lie close to it."""
    told = list[float]()
    mv.verify(problem(tmp_path, unsafe), 60, margin=True, gap=1e-5, on_event=lambda e: told.append(e.data.get("lower_bound", -math.inf)))
    assert told and -math.inf < max(told) <= margin


@pytest.mark.parametrize("seed", range(8))
def test_the_margin_is_that_of_exact_arithmetic(seed: int, tmp_path: Path) -> None:
    case = random_case(seed)
    asked = mv.load(*case.write(tmp_path))
    truths = [exact.truth(case.network, d).optimum for d in case.disjuncts]
    least = min((t for t in truths if t is not None), default=None)
    found = mv.verify(asked, 4, margin=True, gap=1e-4)
    if least is not None:
        assert Fraction(found.lower_bound) <= least
        if found.nearest is not None:
            assert least - Fraction(1, 10**9) <= Fraction(found.upper_bound)


def test_no_row_and_no_point(tmp_path: Path) -> None:
    net = absolute_value(tmp_path / "net.onnx")
    text = "(declare-const X_0 Real)(declare-const X_1 Real)(declare-const Y_0 Real)(assert (>= X_0 0))(assert (<= X_0 1))"
    text += "(assert (>= X_1 0))(assert (<= X_1 1))(assert (>= (+ X_0 X_1) 3))(assert (<= Y_0 1))"
    spec = tmp_path / "empty.vnnlib"
    spec.write_text(text)
    found = mv.verify(mv.load(net, spec), 20, margin=True)
    assert found.verdict is mv.Verdict.VERIFIED and found.upper_bound == math.inf and found.nearest is None


def test_a_shift_is_never_too_small() -> None:
    rows = mv.Rows.on_outputs([[1.0], [1.0]], [0.1, -1e9], 1)
    graph = mv.Problem(_identity(), mv.Box([0.0], [1.0]), unsafe="(<= Y_0 0)").graph
    asked = mv.Problem(graph, (mv.Disjunct(mv.Box([0.0], [1.0]), rows, mv.Rows.none(1, 1)),))
    for threshold in (0.1, 1 / 3, -1e-20, 1e17):
        for old, new in zip(rows.rhs, shifted(asked, threshold).disjuncts[0].unsafe.rhs, strict=True):
            assert Fraction(float(new)) - Fraction(float(old)) >= Fraction(threshold)


def _identity() -> object:
    import torch

    net = torch.nn.Linear(1, 1, bias=False).double().eval()
    net.weight.data[:] = 1.0
    return net


def test_a_wrong_bound_is_a_contradiction() -> None:
    asked = mv.Problem(_identity(), mv.Box([0.0], [1.0]), unsafe="(<= Y_0 0)")  # type: ignore[arg-type]
    wrong = mv.Result(mv.Verdict.VERIFIED, mv.Reason.PROVED, mv.Trust.SOLVER, 1.0, bound_trust=mv.Trust.SOLVER)
    with pytest.raises(mv.Contradiction, match=r"at least 0\..* but it is at most .* at X = \(0\)"):
        bracket(asked, lambda *_: wrong, Gap(0.1), -1.0, [np.zeros(1)], mv.Trust.SOLVER)
    with pytest.raises(mv.InvalidProperty, match="gap"):
        mv.verify(asked, margin=True, gap=0.0)


def test_a_bound_of_zero_says_that_only_the_sign_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = problem(tmp_path, "(>= Y_0 2.5)")
    found = mv.verify(asked, 60)
    assert found.lower_bound > 0 and SIGN_ONLY not in found.note
    from milpverify.run import Run as OneRun
    from milpverify.search.outcome import SearchOutcome

    run = OneRun(asked, mv.Options(), mv.Deadline(), None)
    run.closed_bound = 0.0
    assert run.conclude([], SearchOutcome(True, 0.0, mv.Trust.ROUNDED)).note == SIGN_ONLY
    assert replace(found, upper_bound=2.0).__str__().count("and <= 2")


def test_the_command_line(run_main: Run, tmp_path: Path) -> None:
    net = absolute_value(tmp_path / "net.onnx")
    spec = write_property(tmp_path / "p.vnnlib", [-1, -1], [1, 1], "(>= Y_0 2.5)")
    done = run_main("verify", net, spec, "--margin", "--gap", "1e-5", "--json", tmp_path / "r.json")
    assert done.stdout == "unsat\n" and "and <= 0.5" in done.stderr
    assert json.loads((tmp_path / "r.json").read_text())["upper_bound"] == pytest.approx(0.5)
    refused(run_main("verify", net, spec, "--margin", "--gap", "0"), "gap")
