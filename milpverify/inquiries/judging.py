"""Validates a solver's points as they come."""

from __future__ import annotations

from typing import TYPE_CHECKING

from milpverify.counterexamples.polish import polish
from milpverify.counterexamples.validate import Validity, validate

if TYPE_CHECKING:
    from milpverify.result import Counterexample
    from milpverify.spec import Array, Disjunct, Problem


class Judging:
    """Validates a solver's points; keeps the first counterexample, and the last point on which runtime and reals differ.

    `near` is what a solver's word for the margin may be too high by.
    """

    def __init__(self, problem: Problem, disjunct: Disjunct, near: float) -> None:
        self.problem = problem
        self.disjunct = disjunct
        self.near = near
        self.counterexample: Counterexample | None = None
        self.disagreement = ""

    def consider(self, x: Array, value: float) -> None:
        """Judge an input (nx,) whose margin, by the solver's word, is at most about 0."""
        if value > self.near or self.counterexample is not None:
            return
        validation = validate(self.problem, self.disjunct, x)
        self.counterexample = validation.counterexample
        if validation.status is Validity.FLOAT_SEMANTICS:
            self.disagreement = str(validation)

    def polish(self, x: Array, value: float) -> None:
        """Move a last point that narrowly misses."""
        if value <= self.near and self.counterexample is None:
            self.counterexample = polish(self.problem, self.disjunct, x)
