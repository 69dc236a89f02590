"""Bounds of inputs that no assertion states alone, but rows imply, as X_0 <= X_1 does: in rationals.

Row by row first: one that bounds a single variable, given the bounds that others have, does so for long chains as well. What is left is
asked of a linear program, and so is everything where there is little of it, since its bounds are the tightest. With weights y >= 0 of
the rows a_i v <= b_i (and of the bounds that are stated) under which they add up to the variable,

    v  =  sum_i y_i a_i v  <=  sum_i y_i b_i,

which is summed again in rationals, whatever found the weights.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from functools import partial
from typing import NamedTuple

from milpverify.frontends.vnnlib.alternatives import Ceilings, PropertyTuning, Row
from milpverify.frontends.vnnlib.rational_program import ZERO, Unbounded, Vector, least


class Empty(Exception):
    """No point satisfies all rows and bounds."""


class _Constraint(NamedTuple):
    """terms . v <= rhs."""

    terms: Vector
    rhs: Fraction


def implied(
    ceilings: Ceilings,
    rows: Iterable[Row],
    missing: Sequence[int],
    pace: Callable[[], None],
    tuning: PropertyTuning = PropertyTuning(),
) -> dict[int, Fraction]:
    """The bounds that rows imply, by key as in `Ceilings`, of those that are missing: X_i <= value, or -X_i <= value.

    Args:
        ceilings: the bounds that are stated.
        rows: inequalities over inputs and outputs.
        missing: the keys wanted, none of which is in `ceilings`.

    Raises:
        Empty: no point satisfies all rows and bounds.
    """
    stated = [_Constraint({v: Fraction(c) for v, c in zip(r.variables, r.coefficients, strict=True)}, Fraction(r.rhs)) for r in rows]
    system = _connected(stated, {key // 2 for key in missing})
    known = {key: Fraction(value) for key, (value, _) in ceilings.items()}
    found = {key: value for key, value in _propagated(system, known, pace, tuning.rounds).items() if key in set(missing)}
    variables = sorted({v for constraint in system for v in constraint.terms})
    for v in variables:
        for key in (2 * v, 2 * v + 1):
            if key in known:
                system.append(_Constraint({v: Fraction(1 - 2 * (key % 2))}, known[key]))
    size = sum(len(constraint.terms) for constraint in system)
    place = {v: k for k, v in enumerate(variables)}
    program = [{i: c.terms[v] for i, c in enumerate(system) if v in c.terms} for v in variables] if size <= tuning.most else []
    bound = partial(_bound, program, system, pace, tuning.pivots)
    for key in missing if program else ():
        if key // 2 in place and (size <= tuning.small or key not in found):
            value = bound(place[key // 2], Fraction(1 - 2 * (key % 2)))
            if value is not None:
                found[key] = min(value, found.get(key, value))
    if program and any(key not in found for key in missing):
        bound(0, ZERO)  # rows that exclude each other imply everything
    return found


def _connected(constraints: list[_Constraint], variables: set[int]) -> list[_Constraint]:
    """The constraints on some variables, on those in the same constraints, and so on."""
    by_variable: dict[int, list[int]] = {}
    for i, constraint in enumerate(constraints):
        for v in constraint.terms:
            by_variable.setdefault(v, []).append(i)
    seen, chosen, pending = set(variables), set[int](), list(variables)
    while pending:
        for i in by_variable.get(pending.pop(), ()):
            if i not in chosen:
                chosen.add(i)
                pending += [v for v in constraints[i].terms if v not in seen]
                seen.update(constraints[i].terms)
    return [constraints[i] for i in sorted(chosen)]


def _propagated(system: list[_Constraint], known: dict[int, Fraction], pace: Callable[[], None], most: int) -> dict[int, Fraction]:
    """Bounds by key that constraints imply one at a time, beside those known, which stay; `most` as `PropertyTuning.rounds`."""
    tops, rounds = dict(known), [0] * len(system)
    users: dict[int, list[int]] = {}
    for i, constraint in enumerate(system):
        for v, a in constraint.terms.items():
            users.setdefault(2 * v + (a > 0), []).append(i)  # a v is least where v is, or -v is
    waiting, queued = deque(range(len(system))), set(range(len(system)))
    while waiting:
        pace()
        i = waiting.popleft()
        queued.discard(i)
        if rounds[i] > most + len(system[i].terms):
            continue
        rounds[i] += 1
        for key, value in _bounds(system[i], tops):
            if key not in known and (key not in tops or value < tops[key]):
                tops[key] = value
                for j in users.get(key, ()):
                    if j not in queued:
                        waiting.append(j)
                        queued.add(j)
    return {key: value for key, value in tops.items() if key not in known}


def _bounds(constraint: _Constraint, tops: dict[int, Fraction]) -> list[tuple[int, Fraction]]:
    """What a constraint makes of bounds: a_j v_j <= b - sum of the least of the others."""
    least_of = {v: abs(a) * -tops[key] if (key := 2 * v + (a > 0)) in tops else None for v, a in constraint.terms.items()}
    absent = [v for v, value in least_of.items() if value is None]
    if len(absent) > 1:
        return []
    total = constraint.rhs - sum((value for value in least_of.values() if value is not None), start=ZERO)
    targets = absent or list(constraint.terms)
    return [(2 * v + (constraint.terms[v] < 0), (total + (least_of[v] or ZERO)) / abs(constraint.terms[v])) for v in targets]


def _bound(
    program: list[Vector], system: list[_Constraint], pace: Callable[[], None], pivots: int, place: int, sign: Fraction
) -> Fraction | None:
    """The least that weights prove sign * v to be at most, for the variable at a place of the program; None where there is no bound.

    Raises:
        Empty: some weights prove 0 <= a negative number.
    """
    target = [sign if k == place else ZERO for k in range(len(program))]
    try:
        weights = least(program, target, [constraint.rhs for constraint in system], pace, pivots)
    except Unbounded as unbounded:
        value = _summed(program, system, unbounded.ray, [ZERO] * len(program))
        if value is not None and value < 0:
            raise Empty from None
        return None
    return None if weights is None else _summed(program, system, weights, target)


def _summed(program: list[Vector], system: list[_Constraint], weights: Vector, target: list[Fraction]) -> Fraction | None:
    """The right-hand side of constraints under weights >= 0 that add them up to a target; None where they do not."""
    if any(w < 0 for w in weights.values()):
        return None
    for row, value in zip(program, target, strict=True):
        if sum((w * row[i] for i, w in weights.items() if i in row), start=ZERO) != value:
            return None
    return sum((w * system[i].rhs for i, w in weights.items()), start=ZERO)
