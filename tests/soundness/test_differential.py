"""300 random small networks: SCIP, HiGHS, Gurobi and branch-and-bound against exact enumeration of the activation patterns.

Networks and properties are read from ONNX and VNN-LIB. No disagreement is filtered out: a proved bound above the exact infimum,
a verdict against the truth, or a counterexample that is none fails, whatever its size. What is checked with a tolerance is
completeness alone.
"""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import exact
import numpy as np
import pytest
import torch
from judging import Lasting, contradictions
from random_networks import Case, random_case

import milpverify as mv
from milpverify.encode.milp import encode
from milpverify.frontends.onnx.runtime import OnnxRuntime
from milpverify.search.bounding import bound_batch
from milpverify.search.groups import groups
from milpverify.solvers.base import Limits
from milpverify.solvers.base import SolverStatus as Status
from milpverify.solvers.names import MILP_SOLVERS
from milpverify.solvers.trusted_bound import safe_dual_bound

RELATIVE = 1e-6


def optima(problem: mv.Problem, truths: list[exact.Truth]) -> list[str]:
    """Every disjunct's optimum by every solver against the enumeration's; the proved bound must never be above it."""
    wrong = []
    roots = {m: bound_batch(problem.graph, g, *_ends(g.box), dtype=torch.float64).state for g in groups(problem) for m in g.members}
    for k, (disjunct, true) in enumerate(zip(problem.disjuncts, truths, strict=True)):
        bounds = [(s.bounds.lower[0], s.bounds.upper[0]) for _, s in sorted(roots[k].items())]
        encoding = encode(problem.graph, bounds, disjunct)
        for solver in MILP_SOLVERS:
            outcome = Lasting(solver).solve(encoding.model, Limits(20.0), mv.Deadline())
            if true.optimum is None:
                if outcome.status is not Status.INFEASIBLE and not outcome.primal - outcome.dual_bound < math.inf:
                    wrong.append(f"{solver}: {outcome.status} on an empty input set")
                continue
            if Fraction(max(-1e300, safe_dual_bound(outcome, encoding.model))) > true.optimum:
                wrong.append(f"{solver}: proves {safe_dual_bound(outcome, encoding.model)!r} above the optimum {float(true.optimum)!r}")
            for side in (outcome.dual_bound, outcome.primal):
                if not abs(side - float(true.optimum)) <= RELATIVE * true.scale:
                    text = f"{side!r} is not the optimum {float(true.optimum)!r}, scale {true.scale:.3g}"
                    wrong.append(f"{solver}: {outcome.status.name} {text}")
    return wrong


def _ends(box: mv.Box) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(box.lower)[None], torch.tensor(box.upper)[None]


def hairline(case: Case, truths: list[exact.Truth]) -> bool:
    """Whether the truth hangs on less than float arithmetic and solver tolerances resolve, so that UNKNOWN is an honest answer."""
    for disjunct, true in zip(case.disjuncts, truths, strict=True):
        near = max(1e-5 * true.scale, 3e-6 * exact.magnitude(case.network, disjunct))
        if (abs(true.optimum) if true.optimum is not None else true.outside) <= near:
            return True
    return False


@pytest.mark.parametrize("first", range(0, 210, 30))
def test_all_methods_agree_with_enumeration(first: int, tmp_path: Path, processes: None) -> None:
    wrong: list[str] = []
    for seed in range(first, first + 30):
        case = random_case(seed)
        truths = [exact.truth(case.network, d) for d in case.disjuncts]
        problem = mv.load(*case.write(tmp_path, f"case{seed}"))
        found = optima(problem, truths) if len(problem.disjuncts) == len(truths) else []
        runs = [
            ("auto", False),
            (mv.Milp(MILP_SOLVERS[seed % len(MILP_SOLVERS)]), False),
            ("bab", True) if seed % 2 else (mv.Milp("scip"), True),
        ]
        for method, attack in runs:
            name = f"{method if isinstance(method, str) else method.solver}{'' if attack else ' without attack'}"
            split = isinstance(method, str)
            result = mv.verify(problem, 0.15 if split else 20, method, options=mv.Options(attack=attack))
            found += contradictions(case, truths, result, name)
            if result.verdict is mv.Verdict.UNKNOWN and not split and not hairline(case, truths):
                found.append(f"{name}: {result}, optima {[float(t.optimum or 0) for t in truths]}")
        wrong += [f"seed {seed}, {w}" for w in found]
    assert not wrong, "\n".join(wrong)


def test_a_wrong_answer_would_be_seen() -> None:
    cases = (random_case(seed) for seed in range(100))
    case = next(c for c in cases if any(exact.truth(c.network, d).unsafe for d in c.disjuncts))
    truths = [exact.truth(case.network, d) for d in case.disjuncts]
    optimum = min(t.infimum for t in truths if t.infimum is not None)
    right = mv.Result(mv.Verdict.UNKNOWN, mv.Reason.TIMEOUT, mv.Trust.ROUNDED, math.nextafter(float(optimum), -math.inf))
    assert not contradictions(case, truths, right, "it")
    above = math.nextafter(float(optimum), math.inf)
    middle = [0.5 * (a + b) + 1e6 for a, b in zip(case.disjuncts[0].lower, case.disjuncts[0].upper, strict=True)]
    outside = mv.Counterexample(np.array(middle), np.zeros(1), 0.0, 0.0)
    for change in ({"verdict": mv.Verdict.VERIFIED}, {"lower_bound": above}, {"verdict": mv.Verdict.FALSIFIED, "counterexample": outside}):
        assert contradictions(case, truths, replace(right, **change), "it"), change


def test_enumeration_agrees_with_sampling() -> None:
    """No sampled point is below the infimum, and the network evaluated exactly is the one that ONNX Runtime runs."""
    inside = compared = 0
    for seed in range(0, 60, 3):
        case = random_case(seed)
        runtime = OnnxRuntime(case.model)
        rng = np.random.default_rng(seed)
        for disjunct in case.disjuncts:
            true = exact.truth(case.network, disjunct)
            for _ in range(20):
                low, high = np.array(disjunct.lower), np.array(disjunct.upper)
                corner = rng.random(len(low)) < 0.3
                x = np.where(corner, np.where(rng.random(len(low)) < 0.5, low, high), low + rng.random(len(low)) * (high - low))
                point = [Fraction(v) for v in x.tolist()]
                y = case.network(point)
                if all(row.holds(point, y) for row in disjunct.domain):
                    inside += 1
                    assert true.infimum is not None
                    assert max(row.residual(point, y) for row in disjunct.unsafe) >= true.infimum
                    assert true.unsafe or not all(row.holds(point, y) for row in disjunct.unsafe)
                single = x.astype(np.float32).astype(np.float64)
                there = np.array([float(v) for v in case.network([Fraction(v) for v in single.tolist()])])
                size = exact.magnitude(case.network, exact.Disjunct(single.tolist(), single.tolist(), []))
                if seed % 5:  # a sign turns a rounding error into a jump
                    compared += 1
                    np.testing.assert_allclose(runtime.run(single), there, rtol=0, atol=1e-5 * size)
    assert inside > 200 and compared > 200
