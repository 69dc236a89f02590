"""What a run returns: the verdict, why, what it rests on, the proved bound, the counterexample and the ledger; and its events."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from milpverify.outside.files import write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy as np


@dataclass(frozen=True)
class Event:
    """One step of progress, handed to `on_event`: the phase, a line for people, and its numbers (bound, nodes, gap, ...)."""

    phase: str
    message: str
    data: Mapping[str, object] = field(default_factory=dict)


class Verdict(Enum):
    """The answer. The values are the words of a VNN-COMP results file."""

    VERIFIED = "unsat"
    FALSIFIED = "sat"
    UNKNOWN = "unknown"


class Reason(Enum):
    """Why a run ended as it did. The values are the messages shown to people."""

    PROVED = "the property was proved"
    EMPTY_INPUT_SET = "the input set is empty, so that nothing can violate the property"
    COUNTEREXAMPLE = "a counterexample was found and re-run through the network"
    TIMEOUT = "the time limit was reached"
    INTERRUPTED = "the run was interrupted"
    MEMORY = "the memory limit was reached"
    FLOAT_SEMANTICS = "float32 execution and real arithmetic disagree about the violation"
    DELTA = "the margin comes closer to zero than delta"
    TRUST = "only a solver's word closes it, which the required trust forbids"
    SOLVER_INCONCLUSIVE = "the solver gave no bound that proves the property and no point that violates it"
    UNDECIDED = "the chosen method could not decide it"
    FAILED = "the problem could not be worked on"


SIGN_ONLY = "only the sign of the margin was asked for; its bound of 0 says no more"
"""The note of a verified result whose bound is 0."""


class Trust(Enum):
    """What a verdict rests on: the weakest of the run's leaves. Ordered by `rank`."""

    EXACT = "exact"  # rational or ball arithmetic
    ROUNDED = "rounded"  # float64 with outward margins
    SOLVER = "solver"  # a solver's dual bound less a safety margin

    @property
    def rank(self) -> int:
        """2 for EXACT, 1 for ROUNDED, 0 for SOLVER."""
        return {"exact": 2, "rounded": 1, "solver": 0}[self.value]

    @staticmethod
    def weakest(*trusts: Trust) -> Trust:
        """The weakest of some trusts (EXACT of none)."""
        return min(trusts, key=lambda t: t.rank, default=Trust.EXACT)


@dataclass(frozen=True)
class Counterexample:
    """A point of the unsafe set that held in the network's own runtime and in outward-rounded real arithmetic.

    `x` (nx,) float64 and `y` (ny,) float64, flattened in VNN-LIB's order; `margin_runtime` and `margin_real` (an upper
    bound) are the margins in the two arithmetics, both <= 0 (< 0 where every deciding row is strict). `inputs` and `outputs` are the same
    numbers as the network's own tensors, which `tensors` say.
    """

    x: np.ndarray
    y: np.ndarray
    margin_runtime: float
    margin_real: float
    tensors: tuple[Stretch, ...] = ()

    @property
    def inputs(self) -> dict[str, np.ndarray]:
        """By its name, every input, in its shape and type (bfloat16 as float32), as the network takes it: x rounded to that type.

        A graph whose inputs have no names has one, "X", (nx,) in float64.
        """
        return self._cut("X", self.x)

    @property
    def outputs(self) -> dict[str, np.ndarray]:
        """By its name, every output that counts, in its shape and type, as the network's runtime computed it; without names "Y"."""
        return self._cut("Y", self.y)

    def _cut(self, letter: str, flat: np.ndarray) -> dict[str, np.ndarray]:
        own = [t for t in self.tensors if t.letter == letter]
        found = {t.name: flat[t.first : t.last + 1].reshape(t.shape).astype(_HELD.get(t.dtype, t.dtype)) for t in own}
        return found or {letter: flat}

    def to_dict(self) -> dict[str, Any]:
        """A JSON form with the fields of this class."""
        margins = {"margin_runtime": json_number(self.margin_runtime), "margin_real": json_number(self.margin_real)}
        tensors = {side: {name: t.tolist() for name, t in getattr(self, side).items()} for side in ("inputs", "outputs")}
        return {"x": self.x.tolist(), "y": self.y.tolist(), **margins, **tensors}


_HELD = {"bfloat16": "float32"}
"""Of types that numpy lacks, those that hold their numbers."""


@dataclass(frozen=True)
class Margin:
    """What is known of the margin of one disjunct, over its inputs.

    It is at least `lower_bound`, which rests on `trust`; -inf where nothing was proved. At `point` (nx,) it is at most `upper_bound`, in
    real arithmetic: the best input that was found; None and inf where none was looked for, or kept.
    """

    lower_bound: float = -math.inf
    trust: Trust = Trust.ROUNDED
    upper_bound: float = math.inf
    point: np.ndarray | None = None

    def to_dict(self, point: bool = True) -> dict[str, Any]:
        """A JSON form with the fields of this class, the point being null where it is not asked for."""
        bounds = {"lower_bound": json_number(self.lower_bound), "trust": self.trust.value, "upper_bound": json_number(self.upper_bound)}
        return {**bounds, "point": self.point.tolist() if point and self.point is not None else None}


MOST_WRITTEN: Final = 100_000
"""Entries of points of all margins together that JSON holds; where there are more, it holds no such point."""


@dataclass(frozen=True)
class Stretch:
    """Which of the variables X_0, X_1, ... or Y_0, Y_1, ... (`letter`) an input or output of the network is: `first` to `last`, inclusive.

    `name`, `shape` and `dtype` are the tensor's in the source network.
    """

    letter: str
    name: str
    shape: tuple[int, ...]
    dtype: str
    first: int
    last: int

    def to_dict(self) -> dict[str, Any]:
        """A JSON form: name, shape and type, and the range of the variables."""
        span = [f"{self.letter}_{self.first}", f"{self.letter}_{self.last}"]
        return {"name": self.name, "shape": list(self.shape), "dtype": self.dtype, "range": span}


@dataclass
class Phase:
    """One line of the ledger: what a phase did and what it cost."""

    name: str
    seconds: float
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Setting:
    """What a run was given: libraries of these versions, options, and files, each with the SHA-256 of what was decided."""

    versions: dict[str, str] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)  # path -> sha256


@dataclass(frozen=True)
class Result:
    """The result of `verify`.

    `lower_bound` is a proved lower bound of the margin over the input set, valid whenever the run stopped; it rests on `bound_trust`,
    the verdict on `trust`. With `verify(..., margin=True)` the margin lies between it and `upper_bound`, which `nearest` (nx,) attains in
    real arithmetic; otherwise these are inf and None.

    `ledger` says per part of the run how many subproblems it `closed` and `bounded`, and its `seconds`: "rows alone", "presolve bounds",
    "attack", "alpha-CROWN", "bisection bounds", "clipping", "finishing" (small boxes, by neuron splits), "neuron-split bounds",
    "bound tightening", "no-goods", "LP leaves", "oracle" (talking with the solver beside the tree), "whole models", and "the solver's
    process", which runs at the same time as the tree and whose `bounded` are its nodes. All other seconds are exclusive. `phases` are
    the steps of the run. `tensors` say which variables the network's inputs and outputs are.

    `margins` are those of the disjuncts, in the order of the problem's; of robustness that of every other label, in their order. A run
    stops when all are closed or one is violated, and not before: a bound is what closed the disjunct (0 where only its sign was proved),
    or what was known of it, or of all of them together, when the run ended. Empty where the run ended before the problem was read.
    """

    verdict: Verdict
    reason: Reason
    trust: Trust
    lower_bound: float
    counterexample: Counterexample | None = None
    seconds: float = 0.0
    note: str = ""
    phases: tuple[Phase, ...] = ()
    ledger: dict[str, dict[str, float]] = field(default_factory=dict)
    setting: Setting = field(default_factory=Setting)
    bound_trust: Trust = Trust.ROUNDED
    upper_bound: float = math.inf
    nearest: np.ndarray | None = None
    tensors: tuple[Stretch, ...] = ()
    margins: tuple[Margin, ...] = ()

    @property
    def versions(self) -> dict[str, str]:
        """The libraries that the run used, and their versions."""
        return self.setting.versions

    @property
    def options(self) -> dict[str, Any]:
        """The options of the run."""
        return self.setting.options

    @property
    def files(self) -> dict[str, str]:
        """The files that were decided, each with the SHA-256 of what was read of it."""
        return self.setting.files

    @property
    def word(self) -> str:
        """The first line of a VNN-COMP results file: `sat`, `unsat`, `unknown`, `timeout` or `error`."""
        endings = {Reason.TIMEOUT: "timeout", Reason.FAILED: "error"}
        return endings.get(self.reason, "unknown") if self.verdict is Verdict.UNKNOWN else str(self.verdict.value)

    def to_dict(self) -> dict[str, Any]:
        """The documented JSON form (README, "The JSON result")."""
        written = sum(m.point.size for m in self.margins if m.point is not None) <= MOST_WRITTEN
        return {
            "verdict": self.verdict.value,
            "reason": self.reason.name,
            "message": self.reason.value,
            "note": self.note,
            "trust": self.trust.value,
            "lower_bound": json_number(self.lower_bound),
            "bound_trust": self.bound_trust.value,
            "upper_bound": json_number(self.upper_bound),
            "nearest": None if self.nearest is None else self.nearest.tolist(),
            "counterexample": None if self.counterexample is None else self.counterexample.to_dict(),
            "margins": [m.to_dict(written) for m in self.margins],
            "inputs": [t.to_dict() for t in self.tensors if t.letter == "X"],
            "outputs": [t.to_dict() for t in self.tensors if t.letter == "Y"],
            "seconds": self.seconds,
            "phases": [{"name": p.name, "seconds": p.seconds, **p.detail} for p in self.phases],
            "ledger": self.ledger,
            "versions": self.versions,
            "options": self.options,
            "files": self.files,
        }

    def to_json(self, path: str | Path | None = None) -> str:
        """The JSON text; written to `path` too where one is given."""
        return json_text(self.to_dict(), path)

    def __str__(self) -> str:
        line = f"{self.verdict.name}: {self.reason.value}"
        if self.note:
            line += f" ({self.note})"
        most = "" if self.upper_bound == math.inf else f" and <= {self.upper_bound:.6g}"
        parts = [line, f"  margin >= {self.lower_bound:.6g}{most}, trust {self.trust.value}, {self.seconds:.2f} s"]
        parts += [f"  {p.name:<12s} {p.seconds:8.3f} s  " + " ".join(f"{k}={v}" for k, v in p.detail.items()) for p in self.phases]
        parts += [f"    {part:<20s} {n['seconds']:8.3f} s  closed={n['closed']} bounded={n['bounded']}" for part, n in self.ledger.items()]
        return "\n".join(parts)


def json_text(content: dict[str, Any], path: str | Path | None) -> str:
    """The content as JSON; written to `path` too where one is given."""
    text = json.dumps(content, indent=2)
    if path is not None:
        write_atomically(Path(path), text + "\n")
    return text


def csv_text(rows: Iterable[Sequence[object]], path: str | Path | None) -> str:
    """The rows, a header among them, as CSV; written to `path` too where one is given."""
    import csv
    import io

    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    if path is not None:
        write_atomically(Path(path), text.getvalue())
    return text.getvalue()


def json_number(value: float) -> float | str:
    """A number as JSON can hold it: infinities in words."""
    return value if abs(value) != float("inf") else str(value)
