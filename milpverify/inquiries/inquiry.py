"""What a solver is asked about a task, question after question, and what its replies prove.

`questions` is a generator: it yields what to ask, and is sent the reply. So the same code serves who waits for a solver and who polls it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from milpverify.encode.model import elastic
from milpverify.solvers.base import SolveOutcome, SolverStatus, SweepOutcome
from milpverify.solvers.model import Model, Sweep
from milpverify.solvers.trusted_bound import safe_dual_bound, safety_margin

if TYPE_CHECKING:
    from milpverify.encode.encoding import Encoding, NodeRanges
    from milpverify.inquiries.judging import Judging
    from milpverify.solvers.base import Progress

Question = Model | Sweep
Questions = Generator[Question, SolveOutcome | SweepOutcome, None]


class Inquiry(ABC):
    """A lower bound of something, `bound`, that replies raise (trust SOLVER); where it is a margin, `judging` judges points."""

    bound: float
    judging: Judging | None

    @abstractmethod
    def questions(self) -> Questions:
        """What to ask; ends once there is no more to ask. May raise NumericallyUnfit and OutOfTime where no model can be made."""

    @abstractmethod
    def heard(self, progress: Progress) -> None:
        """Learn from a report on the question under way."""

    @property
    def swept(self) -> NodeRanges | None:
        """Ranges of every node that hold at unsafe points, None where replies have proved none."""
        return None

    def target(self, question: Question) -> float:
        """The dual bound at which raising it further is idle: what clears the safety margin twice over is closed."""
        return 2.0 * safety_margin(question.model if isinstance(question, Sweep) else question)

    def share(self, question: Question) -> float:
        """The share of the time left that a question may take."""
        return 1.0


def proof_of_emptiness(model: Model) -> Generator[Question, SolveOutcome | SweepOutcome, float]:
    """What a model that a solver calls infeasible proves, not taken at its word: inf if its emptiness model shows it, else -inf."""
    if model.functions:
        return -math.inf
    empty = elastic(model)
    proof = yield empty
    return math.inf if isinstance(proof, SolveOutcome) and safe_dual_bound(proof, empty) > 0 else -math.inf


@dataclass(eq=False)
class ModelInquiry(Inquiry):
    """One margin model, and the emptiness model of what the solver calls infeasible.

    `judging` is None where points mean nothing, which then go without `encoding`; `offset` is what the model's objective lacks.
    """

    model: Model
    judging: Judging | None = None
    encoding: Encoding | None = None
    offset: float = 0.0
    bound: float = -math.inf
    emptiness: bool = False

    def questions(self) -> Questions:
        reply = yield self.model
        assert isinstance(reply, SolveOutcome)
        self._raise(reply)
        if reply.point is not None and self.judging is not None and self.encoding is not None and self.judging.counterexample is None:
            x = self.encoding.x_of(reply.point)
            self.judging.consider(x, reply.primal)
            self.judging.polish(x, reply.primal)
        if reply.status is SolverStatus.INFEASIBLE and self.judging is not None:
            self.emptiness = True
            self.bound = max(self.bound, (yield from proof_of_emptiness(self.model)))

    def heard(self, progress: Progress) -> None:
        if self.emptiness:
            return
        self._raise(SolveOutcome(SolverStatus.UNKNOWN, progress.dual_bound))
        if progress.point is not None and self.judging is not None and self.encoding is not None:
            self.judging.consider(self.encoding.x_of(progress.point), progress.primal)

    def target(self, question: Question) -> float:
        return super().target(question) - self.offset

    def _raise(self, outcome: SolveOutcome) -> None:
        bound = safe_dual_bound(outcome, self.model)
        if self.offset:
            bound = math.nextafter(bound + self.offset, -math.inf)
        self.bound = max(self.bound, bound)
