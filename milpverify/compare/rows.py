"""What a method answers about a problem, and the row of the table that it becomes. Nothing here loads torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from milpverify.errors import InvalidInput
from milpverify.result import Trust, json_number

Steps: TypeAlias = tuple[tuple[float, float], ...]
"""Seconds and the lower bound that was proved by then, both ascending."""
COLUMNS = ("problem", "method", "lower_bound", "gap", "verdict", "trust", "seconds", "cpu_seconds", "memory_mb")
"""The columns of a CSV file."""


class Word(Enum):
    """A verdict, in the words of VNN-COMP."""

    UNSAT = "unsat"  # the property holds
    SAT = "sat"  # it does not; there is a counterexample
    UNKNOWN = "unknown"
    TIMEOUT = "timeout"
    ERROR = "error"

    @property
    def finished(self) -> bool:
        """Whether the method came to its end."""
        return self not in (Word.TIMEOUT, Word.ERROR)


@dataclass(frozen=True)
class Witness:
    """A point of the input set and an upper bound of its margin in real arithmetic, rounded outwards."""

    margin: float
    x: tuple[float, ...]

    def __str__(self) -> str:
        entries = ", ".join(f"{v:.9g}" for v in self.x[:8]) + (", ..." if len(self.x) > 8 else "")
        return f"a margin of at most {self.margin:.9g} at X = ({entries})"


@dataclass(frozen=True)
class Answer:
    """What a method says of a problem.

    `lower_bound` is a proved lower bound of the margin that rests on `trust` (None: on a tool's word, or nothing is known). `signed`: the
    run stopped at the sign, so that the bound says nothing of how far one could have come. `closed`: the margin is known, and the witness
    attains it to within the gap that was asked for. `invalid`: the problem cannot be used at all. `steps` are the bounds proved on the way.
    """

    verdict: Word
    lower_bound: float = -math.inf
    trust: Trust | None = None
    message: str = ""
    witness: Witness | None = None
    signed: bool = False
    closed: bool = False
    invalid: bool = False
    steps: Steps = ()


Tell = Callable[[Answer], None]
"""Takes what is proved on the way."""


@dataclass(frozen=True)
class Usage:
    """What a run took: wall clock and processor time of it and its children, and the largest resident set of any of these processes."""

    seconds: float
    cpu_seconds: float
    memory_mb: float


@dataclass(frozen=True)
class Row:
    """One method on one problem.

    `lower_bound`: a proved lower bound of the margin (-inf: none). `gap`: how far the margin's best known upper bound lies above it where
    the method `exact` has found the margin; None where that is not known, and where the run stopped at the sign. `trust` is what the bound
    and the verdict rest on, None where that is a tool's word. `message` says what else there is to know; `witness` is the best point that
    the run has judged, `steps` the bounds proved on the way and their seconds; neither is in a CSV file (None).
    """

    problem: str
    method: str
    lower_bound: float
    gap: float | None
    verdict: Word
    trust: Trust | None
    seconds: float
    cpu_seconds: float
    memory_mb: float
    message: str = ""
    witness: Witness | None = None
    steps: Steps | None = None

    @property
    def cells(self) -> tuple[str, ...]:
        """The row of a CSV file; numbers with the digits that give the same float64 back."""
        gap, trust = "" if self.gap is None else repr(self.gap), "" if self.trust is None else self.trust.value
        costs = f"{self.seconds:.4f}", f"{self.cpu_seconds:.4f}", f"{self.memory_mb:.1f}"
        return self.problem, self.method, repr(self.lower_bound), gap, self.verdict.value, trust, *costs

    @staticmethod
    def read(cells: list[str]) -> Row:
        """The row of a CSV file.

        Raises:
            InvalidInput: it is none.
        """
        try:
            problem, method, bound, gap, verdict, trust, *costs = cells
            seconds, cpu, memory = map(float, costs)
            known = None if gap == "" else float(gap)
            rests = Trust(trust) if trust else None
            return Row(problem, method, float(bound), known, Word(verdict), rests, seconds, cpu, memory, steps=None)
        except ValueError as error:
            raise InvalidInput(f"{','.join(cells)!r} is no row of a comparison: {error}") from error

    def to_dict(self) -> dict[str, object]:
        """A JSON form: the columns, the message, the witness and the steps."""
        witness = None if self.witness is None else {"margin": json_number(self.witness.margin), "x": list(self.witness.x)}
        return {
            "problem": self.problem,
            "method": self.method,
            "lower_bound": json_number(self.lower_bound),
            "gap": self.gap,
            "verdict": self.verdict.value,
            "trust": None if self.trust is None else self.trust.value,
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "memory_mb": self.memory_mb,
            "message": self.message,
            "witness": witness,
            "steps": None if self.steps is None else [[seconds, json_number(bound)] for seconds, bound in self.steps],
        }


def short(problem: str) -> str:
    """A problem's name without the network's where the property's begins with it."""
    first, _, rest = problem.partition(" ")
    return rest if rest.startswith(first) else problem
