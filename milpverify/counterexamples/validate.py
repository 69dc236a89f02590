"""Validating candidates for counterexamples: the network's own runtime and real arithmetic must both show the violation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import torch

from milpverify.enclosure import enclose, exact_outputs
from milpverify.graph import evaluate
from milpverify.result import Counterexample

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from milpverify.graph import Graph
    from milpverify.spec import Array, Box, Disjunct, Problem, Rows

_Number = Fraction | float
_NARROW = {"float16": np.float16, "float32": np.float32}


class Runtime(Protocol):
    """The original network: `run` takes x (nx,) float64, rounds it to the network's own type, and returns y (ny,) float64."""

    def run(self, x: Array) -> Array: ...


class Validity(Enum):
    """What became of a candidate."""

    HOLDS = "the violation holds in the network's runtime and in real arithmetic"
    FLOAT_SEMANTICS = "the network's runtime and real arithmetic disagree, or the latter could not be decided"
    NOT_A_COUNTEREXAMPLE = "no violation, or the point is outside the input set"


@dataclass(frozen=True)
class Validation:
    """The validation of one point.

    `x` is the point that was judged (the candidate, moved onto the network's own numbers); `margin_runtime` is the margin in
    the runtime, and `margin_real` encloses it in real arithmetic. `counterexample` is there if and only if the status is HOLDS.
    """

    status: Validity
    x: Array
    margin_runtime: float = math.inf
    margin_real: tuple[float, float] = (-math.inf, math.inf)
    counterexample: Counterexample | None = None

    @property
    def where(self) -> str:
        """The point and its margin in words."""
        low, high = self.margin_real
        entries = ", ".join(f"{v:.9g}" for v in self.x[:8].tolist()) + (", ..." if len(self.x) > 8 else "")
        return f"the margin is within [{low:.3g}, {high:.3g}] at X = ({entries})"

    def within(self, delta: float) -> bool:
        """Whether the margin comes as close to zero as delta without that a violation is shown."""
        return self.margin_real[1] <= delta and self.status is not Validity.HOLDS

    def __str__(self) -> str:
        low, high = self.margin_real
        return f"{self.status.value}: margin {self.margin_runtime:.9g} in the runtime, within [{low:.9g}, {high:.9g}] in the reals"


def validate(problem: Problem, disjunct: Disjunct, x: Array) -> Validation:
    """Judge a candidate x (nx,) for one disjunct: the network's own runtime and real arithmetic must both show the violation.

    The candidate is moved inward to the numbers of the network's input type (`representable`), or only clipped to the box
    where the constraints between inputs forbid that, or pulled into the ball that inputs are confined to. It must then lie in box and ball
    and satisfy the constraints exactly. A
    coordinate whose bounds contain no float32 stays a float64: real arithmetic takes it as it is printed, the runtime its
    float32 rounding, as VNN-COMP does. In the runtime every row must hold both in float64, as anyone recomputes it, and in
    rationals; in the reals every row must hold for the whole enclosure, or exactly where the enclosure cannot tell.

    A problem without a runtime is its graph, which then runs in the input's type. One that stands for a problem with more inputs is run as
    that, at the input that float64 must hold.
    """
    graph = problem.graph
    point = next((c for c in _candidates(graph, disjunct.box, x) if inside(graph, disjunct, c) and _exists(problem, c)), None)
    if point is None:
        return Validation(Validity.NOT_A_COUNTEREXAMPLE, representable(graph, disjunct.box, x))
    rows = disjunct.unsafe
    y = _run(problem, point)
    if np.isfinite(y).all():
        residual = rows.residual(point, y)
        margin = float(residual.max(initial=-math.inf))
        in_runtime = holds(rows, residual.tolist()) and holds(rows, exact_residuals(rows, point, y.tolist()))
    else:
        margin, in_runtime = math.inf, False
    low, high, in_reals = real_margin(problem.graph, rows, point)
    if in_runtime and in_reals:
        return Validation(Validity.HOLDS, point, margin, (low, high), Counterexample(point, y, margin, high))
    disagree = in_runtime or in_reals
    return Validation(Validity.FLOAT_SEMANTICS if disagree else Validity.NOT_A_COUNTEREXAMPLE, point, margin, (low, high))


def representable(graph: Graph, box: Box, x: Array) -> Array:
    """x moved into the box and, wherever a coordinate's bounds contain one, onto a number of the network's input type.

    The nearest such number is taken, or the next one inward where that lies outside; other coordinates are only clipped.
    """
    clipped = np.clip(np.asarray(x, dtype=np.float64), box.lower, box.upper)
    moved = clipped.copy()
    start = 0
    for size, dtype in [(s.size, s.dtype) for s in graph.inputs] or [(graph.nx, "float32")]:
        part = (..., slice(start, start + size))
        start += size
        if (kind := _narrow(dtype)) is None:
            continue
        lower, upper = box.lower[part], box.upper[part]
        with np.errstate(over="ignore"):
            narrow = clipped[part].astype(kind)
            inward = np.where(narrow > upper, np.nextafter(narrow, narrow.dtype.type(-np.inf)), narrow)
            inward = np.where(narrow < lower, np.nextafter(narrow, narrow.dtype.type(np.inf)), inward).astype(np.float64)
        moved[part] = np.where((lower <= inward) & (inward <= upper), inward, clipped[part])
    return moved


def _narrow(dtype: str) -> type[Any] | None:
    """numpy's type of that name, where it holds fewer numbers than float64."""
    if dtype == "bfloat16":
        from ml_dtypes import bfloat16  # as onnx has it

        kind: type[Any] = bfloat16
        return kind
    return _NARROW.get(dtype)


def _candidates(
    graph: Graph, box: Box, x: Array, pulls: Sequence[float] = (0.0, 2.0**-40, 2.0**-23, 2.0**-20, 2.0**-16)
) -> Iterator[Array]:
    """x on the network's numbers; only clipped; and where inputs are confined to a ball, further and further inside that.

    Args:
        pulls: by which shares points at the rim of a ball are moved inwards, until their rounding to the network's numbers lies inside.
    """
    yield representable(graph, box, x)
    yield np.clip(x, box.lower, box.upper)
    if (ball := graph.ball) is not None:
        inner = ball.pulled(np.clip(x, box.lower, box.upper))
        for share in pulls:
            yield representable(graph, box, ball.centre + (1.0 - share) * (inner - ball.centre))


def exact_residuals(rows: Rows, x: Array, y: Sequence[_Number]) -> list[_Number]:
    """The residuals of the rows in rational arithmetic, for finite numbers."""
    return [high for _, high in _residual_intervals(rows, x, y, y)]


def holds(rows: Rows, residuals: Sequence[_Number]) -> bool:
    """Whether every row holds: its residual is <= 0, < 0 where it is strict."""
    return all(r < 0 or (r == 0 and not strict) for r, strict in zip(residuals, rows.strict.tolist(), strict=True))


def format_counterexample(example: Counterexample) -> str:
    """The counterexample as a VNN-COMP results file holds it, with the digits that give the same float64 back."""
    entries = [f"({name}_{i} {v:.17g})" for name, values in (("X", example.x), ("Y", example.y)) for i, v in enumerate(values.tolist())]
    return "(" + "\n ".join(entries) + ")"


def inside(graph: Graph, disjunct: Disjunct, x: Array) -> bool:
    """Whether x (nx,) is an input of the network, lies in the disjunct's box and satisfies its constraints between inputs, exactly."""
    box, domain = disjunct.box, disjunct.domain
    in_box = bool(np.all((box.lower <= x) & (x <= box.upper)))
    return (
        in_box
        and (graph.ball is None or graph.ball.contains(x))
        and holds(domain, exact_residuals(domain, x, [Fraction(0)] * domain.y_rows.shape[1]))
    )


def _exists(problem: Problem, x: Array) -> bool:
    """Whether the point is one of the problem that this one stands for."""
    return problem.substitution is None or problem.substitution.lift(x) is not None


def _run(problem: Problem, x: Array) -> Array:
    if problem.substitution is not None:
        lifted = problem.substitution.lift(x)
        return np.full(problem.graph.ny, math.nan) if lifted is None else _run(problem.substitution.whole, lifted)
    if problem.runtime is not None:
        return np.asarray(cast(Runtime, problem.runtime).run(x), dtype=np.float64).reshape(-1)
    wide = any(s.dtype not in _NARROW for s in problem.graph.inputs)
    dtype = torch.float64 if wide else torch.float32
    with torch.no_grad():
        return evaluate(problem.graph.to(dtype), torch.from_numpy(x).to(dtype)[None])[0].double().numpy()


def real_margin(graph: Graph, rows: Rows, x: Array) -> tuple[float, float, bool]:
    """Bounds of the largest residual of some rows at x (nx,) in real arithmetic, and whether every row holds there for certain."""
    lower, upper = (t[0].tolist() for t in enclose(graph, torch.from_numpy(x)[None]))
    intervals = _residual_intervals(rows, x, lower, upper)
    certain = holds(rows, [high for _, high in intervals])
    possible = holds(rows, [low for low, _ in intervals])
    if possible and not certain and (exact := exact_outputs(graph, x)) is not None:
        intervals = _residual_intervals(rows, x, exact, exact)
        certain = holds(rows, [high for _, high in intervals])
    low = max((rounded(low, -math.inf) for low, _ in intervals), default=-math.inf)
    high = max((rounded(high, math.inf) for _, high in intervals), default=-math.inf)
    return low, high, certain


def upper_margin(rows: Rows, x: Array, lower: Sequence[float], upper: Sequence[float]) -> float:
    """The margin of some rows at x (nx,) where the outputs are within lower and upper (ny,) each: an upper bound; -inf without rows."""
    return max((rounded(high, math.inf) for _, high in _residual_intervals(rows, x, lower, upper)), default=-math.inf)


def _residual_intervals(rows: Rows, x: Array, lower: Sequence[_Number], upper: Sequence[_Number]) -> list[tuple[_Number, _Number]]:
    """The range of each row's residual for lower <= y <= upper, in rational arithmetic; only infinite ends are floats."""
    # Python's numbers throughout: a Fraction made of numpy's integers would overflow.
    out: list[tuple[_Number, _Number]] = []
    point = x.tolist()
    for x_row, y_row, rhs in zip(rows.x_rows, rows.y_rows, rows.rhs.tolist(), strict=True):
        columns = np.flatnonzero(x_row)
        products = (Fraction(a) * Fraction(point[i]) for i, a in zip(columns.tolist(), x_row[columns].tolist(), strict=True))
        low: _Number = sum(products, start=-Fraction(rhs))
        high = low
        columns = np.flatnonzero(y_row)
        for j, a in zip(columns.tolist(), y_row[columns].tolist(), strict=True):
            ends = (lower[j], upper[j]) if a > 0 else (upper[j], lower[j])
            low, high = (_add_product(total, Fraction(a), end) for total, end in zip((low, high), ends, strict=True))
        out.append((low, high))
    return out


def _add_product(total: _Number, coefficient: Fraction, value: _Number) -> _Number:
    if isinstance(total, float):
        return total
    if isinstance(value, float) and math.isinf(value):  # a rational may be too large for a float
        return value * math.copysign(1.0, coefficient)
    return total + coefficient * Fraction(value)


def rounded(value: _Number, towards: float) -> float:
    """The value as a float, rounded towards an infinity where no float equals it."""
    try:
        nearest = float(value)
    except OverflowError:
        nearest = math.inf if value > 0 else -math.inf
    return nearest if nearest == value or (nearest > value) == (towards > 0) else math.nextafter(nearest, towards)
