"""What the soundness tests share: solver processes that outlive a run, and the comparison of a result with the truth."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import exact
from random_networks import Case

import milpverify as mv
from milpverify.solvers.process import SolverProcess


class Lasting(SolverProcess):
    """A solver process that outlives a run, for starting one costs more than a hundred of these models."""

    kept: dict[str, Lasting]

    def __new__(cls, solver: str, *_: Any, **__: Any) -> Lasting:
        return cls.kept.setdefault(solver, super().__new__(cls))

    def __init__(self, solver: str, *arguments: Any, **named: Any) -> None:
        if "solver" not in self.__dict__:
            super().__init__(solver, *arguments, **named)

    def close(self) -> None:
        pass


def contradictions(case: Case, truths: list[exact.Truth], result: mv.Result, method: str) -> list[str]:
    """What a result says that is not true."""
    wrong = []
    unsafe = any(t.unsafe for t in truths)
    infimum = min((t.infimum for t in truths if t.infimum is not None), default=None)
    if result.verdict is (mv.Verdict.VERIFIED if unsafe else mv.Verdict.FALSIFIED):
        wrong.append(f"{method}: {result.verdict.name}, but the property is {'violated' if unsafe else 'true'}")
    bound = result.lower_bound
    if math.isnan(bound) or (infimum is not None and (bound == math.inf or (bound > -math.inf and Fraction(bound) > infimum))):
        wrong.append(f"{method}: lower bound {bound!r} above the infimum {exact.as_float(infimum or exact.ZERO)!r}")
    if result.verdict is mv.Verdict.FALSIFIED:
        assert result.counterexample is not None
        x = [Fraction(float(v)) for v in result.counterexample.x]
        if not any(is_counterexample(case.network, d, x) for d in case.disjuncts):
            wrong.append(f"{method}: {result.counterexample.x.tolist()} is no counterexample")
    return wrong


def is_counterexample(network: exact.Network, disjunct: exact.Disjunct, x: list[Fraction]) -> bool:
    inside = all(Fraction(a) <= v <= Fraction(b) for a, v, b in zip(disjunct.lower, x, disjunct.upper, strict=True))
    y = network(x)
    return inside and all(row.holds(x, y) for row in (*disjunct.domain, *disjunct.unsafe))
