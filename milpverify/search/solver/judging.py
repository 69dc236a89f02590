"""Validates a solver's points as they come."""

from __future__ import annotations

from typing import TYPE_CHECKING

from milpverify.counterexamples.polish import polish
from milpverify.counterexamples.validate import Validity, validate
from milpverify.solvers.trusted_bound import safety_margin

if TYPE_CHECKING:
    from milpverify.encode.encoding import Encoding
    from milpverify.result import Counterexample
    from milpverify.spec import Array, Disjunct, Problem


class Judging:
    """Validates a solver's points; keeps the first counterexample, and the last point on which runtime and reals differ."""

    def __init__(self, problem: Problem, disjunct: Disjunct, encoding: Encoding) -> None:
        self.problem = problem
        self.disjunct = disjunct
        self.encoding = encoding
        self.near = safety_margin(encoding.model)
        self.counterexample: Counterexample | None = None
        self.disagreement = ""

    def consider(self, point: Array, value: float) -> None:
        """Judge a point whose value, by the solver's word, is at most about 0."""
        if value > self.near or self.counterexample is not None:
            return
        validation = validate(self.problem, self.disjunct, self.encoding.x_of(point))
        self.counterexample = validation.counterexample
        if validation.status is Validity.FLOAT_SEMANTICS:
            self.disagreement = str(validation)

    def polish(self, point: Array, value: float) -> None:
        """Move a last point that narrowly misses."""
        if value <= self.near and self.counterexample is None:
            self.counterexample = polish(self.problem, self.disjunct, self.encoding.x_of(point))
