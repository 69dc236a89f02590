"""What the user hands in as a network's inputs: variables, linear expressions and numbers of any shape, as variables with a box."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

from milpverify.errors import InvalidInput
from milpverify.solvers.hosts.base import UNBOUNDED, Added, Expression
from milpverify.solvers.model import Model
from milpverify.spec import Box

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import ArrayLike

    from milpverify.solvers.hosts.base import Host
    from milpverify.solvers.model import Array


@dataclass(frozen=True, eq=False)
class Inputs:
    """The inputs in order: expressions, how they are called, and the shape in which they were given."""

    expressions: tuple[Expression, ...]
    labels: tuple[str, ...]
    shape: tuple[int, ...]


def read(host: Host, given: Any) -> Inputs:
    """The inputs that a user hands in.

    Raises:
        InvalidInput: something is neither a variable of the model, nor a linear expression, nor a number.
    """
    things, shape = _flat(host, given)
    if not things:
        raise InvalidInput("no inputs were given: hand in the model's variables that the network reads")
    expressions, labels = [], []
    for i, thing in enumerate(things):
        found = _expression(host, thing, i)
        expressions.append(found)
        labels.append(f"input {i}" if found.variable is None else f"input {i} ({host.label(found.variable)})")
    return Inputs(tuple(expressions), tuple(labels), shape)


def _expression(host: Host, thing: Any, i: int) -> Expression:
    if isinstance(thing, (Real, np.bool_)):
        if not abs(float(thing)) < UNBOUNDED:
            raise InvalidInput(f"input {i} is {thing}, which is no number that solvers take")
        return Expression((), (), float(thing))
    found = host.expression(thing)
    if found is None:
        raise InvalidInput(
            f"input {i} is a {type(thing).__name__}, neither a variable of this {host.name} model nor a linear expression nor a number"
        )
    if not all(map(math.isfinite, (*found.coefficients, found.constant))):
        raise InvalidInput(f"input {i} has a coefficient that is no finite number")
    return found


def _flat(host: Host, given: Any) -> tuple[list[Any], tuple[int, ...]]:
    """The entries of nested collections and arrays in order, and their shape: (n,) where they have none."""
    if isinstance(given, (Real, str)) or (not isinstance(given, np.ndarray) and not hasattr(given, "shape") and host.expression(given)):
        return [given], ()
    if isinstance(given, Mapping):
        given = list(given.values())
    if isinstance(given, np.ndarray):
        return list(np.asarray(given, dtype=object).reshape(-1)), given.shape
    if hasattr(given, "shape") and hasattr(given, "reshape"):  # gurobipy's arrays
        shape = tuple(given.shape)
        flat = given.reshape(-1)
        return [flat[k].item() for k in range(math.prod(shape))], shape
    if not isinstance(given, Iterable):
        return [given], ()
    parts = [_flat(host, part) for part in given]
    things = [thing for part, _ in parts for thing in part]
    shapes = {shape for _, shape in parts}
    return things, (len(parts), *shapes.pop()) if len(shapes) == 1 else (len(things),)


def box_of(host: Host, inputs: Inputs, lower: ArrayLike | None, upper: ArrayLike | None) -> Box:
    """The box that the variables' own bounds make, met with the bounds that were handed in.

    Raises:
        InvalidInput: an input is unbounded, bounds cross, or those handed in are NaN or too few.
    """
    count = len(inputs.expressions)
    ends = np.array([_range(host, e) for e in inputs.expressions], dtype=np.float64).reshape(count, 2)
    low, high = ends.T.copy()
    for which, side, given in ((np.fmax, low, lower), (np.fmin, high, upper)):
        name = "lower" if side is low else "upper"
        if given is None:
            continue
        try:
            own = np.asarray(given, dtype=np.float64).reshape(-1)
        except (TypeError, ValueError) as error:
            raise InvalidInput(f"{name} is neither a number nor an array of numbers: {error}") from error
        if own.size not in (1, count):
            raise InvalidInput(f"{name} has {own.size} entries, but there are {count} inputs")
        if np.isnan(own).any():
            raise InvalidInput(f"{name} has an entry that is no number")
        which(side, own, out=side)
    for i, (a, b) in enumerate(zip(low.tolist(), high.tolist(), strict=True)):
        for end, name in ((a, "lower"), (b, "upper")):
            if not math.isfinite(end):
                raise InvalidInput(f"{inputs.labels[i]} has no finite {name} bound: set one on the variable, or hand in {name}=")
        if a > b:
            raise InvalidInput(f"{inputs.labels[i]} has the lower bound {a:.17g} above its upper bound {b:.17g}")
    return Box(low, high)


def _range(host: Host, expression: Expression) -> tuple[float, float]:
    """The range of an expression over its variables' bounds, outward rounded."""
    low, high = host.ranges(expression.variables)
    if expression.variable is not None:
        return float(low[0]), float(high[0])
    c = np.array(expression.coefficients)
    ends = np.array([c * low, c * high]).reshape(2, len(c))
    slack = 2.0**-50 * (float(np.abs(ends).sum()) + abs(expression.constant)) if len(c) else 0.0
    return math.fsum([*ends.min(axis=0), expression.constant, -slack]), math.fsum([*ends.max(axis=0), expression.constant, slack])


def variables_of(host: Host, inputs: Inputs, box: Box, name: Callable[[str, int], str]) -> tuple[list[Any], Added]:
    """A variable for every input: its own, or a new one that equals the expression; none twice."""
    found: list[Any] = []
    for variable in (e.variable for e in inputs.expressions):
        known = variable is not None and host.key(variable) in {host.key(v) for v in found if v is not None}
        found.append(None if known else variable)  # a row has every variable once
    made = [i for i, variable in enumerate(found) if variable is None]
    if not made:
        return found, Added()
    given: dict[int, Any] = {}
    rows: list[tuple[Sequence[int], Array, float]] = []
    for k, i in enumerate(made):
        e = inputs.expressions[i]
        columns = range(len(made) + len(given), len(made) + len(given) + len(e.variables))
        given |= dict(zip(columns, e.variables, strict=True))
        if e.variables:
            rows.append(([k, *columns], np.array([-1.0, *e.coefficients]), -e.constant))
    n = len(made) + len(given)
    low, high = np.full(n, -math.inf), np.full(n, math.inf)
    low[: len(made)], high[: len(made)] = box.lower[made], box.upper[made]
    starts = np.cumsum([0, *(len(columns) for columns, _, _ in rows)]).astype(np.int64)
    column = np.array([j for columns, _, _ in rows for j in columns], dtype=np.int64)
    value = np.concatenate([np.zeros(0), *(values for _, values, _ in rows)])
    equal = np.array([constant for _, _, constant in rows], dtype=np.float64)
    model = Model(low, high, np.zeros(n, dtype=bool), starts, column, value, equal, equal, np.zeros(n))
    added = host.add(model, given, name)
    for k, i in enumerate(made):
        found[i] = added.variables[k]
    return found, added
