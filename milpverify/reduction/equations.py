"""Equations between inputs eliminate inputs: the network behind is a function of the others, and of no point that breaks them.

    sum_i a_i x_i = b   ->   x_p = (b - sum of the others) / a_p,   so that x = E z + c with fewer inputs z

by Gaussian elimination in rationals. An equation is used only where float64 holds every number of E, of c and of the rows that follow; any
other stays two rows. The node x = E z + c stands in front of the network, so that bounds of what depends on both sides of an equation see
that it is one. What the box said of an eliminated input becomes a row, or a bound where one input is left of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
import torch

from milpverify.graph import Graph, Node, TensorSpec
from milpverify.operators import Input, Linear, Select, SparseLinear
from milpverify.reduction.inequalities import Inequality, NotHeld, held, inequalities, narrowed, shared
from milpverify.reduction.suspects import ReductionTuning
from milpverify.spec import Disjunct, Problem, Rows, Substitution

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from milpverify.spec import Array, Box

Terms = dict[int, Fraction]
"""Coefficients by input; none is 0."""


@dataclass(frozen=True)
class Expression:
    """An affine function of inputs: terms . x + constant."""

    terms: Terms
    constant: Fraction

    def of(self, known: dict[int, Expression]) -> Expression:
        """With inputs replaced by what they are known to be."""
        if not self.terms.keys() & known.keys():
            return self
        total, constant = dict[int, Fraction](), self.constant
        for i, a in self.terms.items():
            part = known.get(i) or Expression({i: Fraction(1)}, Fraction(0))
            constant += a * part.constant
            for j, b in part.terms.items():
                total[j] = total.get(j, Fraction(0)) + a * b
        return Expression({j: b for j, b in total.items() if b}, constant)

    @property
    def held(self) -> bool:
        """Whether float64 holds all numbers."""
        return all(map(held, (*self.terms.values(), self.constant)))


def without_equations(problem: Problem, tuning: ReductionTuning = ReductionTuning()) -> Problem:
    """The problem with as many inputs fewer as equations between inputs, which all disjuncts have in common, can be solved for exactly.

    The same one where there are none, or where inputs are confined to a ball.
    """
    if problem.graph.ball is not None or problem.substitution is not None:
        return problem
    rows = shared([d.domain for d in problem.disjuncts])
    known = _solved(_equations(inequalities(rows)), problem.graph.nx) if _any_opposite(rows) else {}
    if not known:
        return problem
    try:
        return _substituted(problem, known, tuning)
    except NotHeld:
        return problem


def _any_opposite(rows: Rows) -> bool:
    """Whether two rows are opposite, but for rounding."""
    largest = np.abs(rows.x_rows).max(1, initial=0.0)
    unit = rows.x_rows / np.where(largest > 0, largest, 1.0)[:, None]
    names = {row.tobytes() for row in np.round(unit, 9) + 0.0}
    return any(row.tobytes() in names for row in np.round(-unit, 9) + 0.0)


def _equations(rows: Iterable[Inequality]) -> list[Expression]:
    """Pairs of opposite rows, as expressions that are 0."""
    found: list[Expression] = []
    below: dict[tuple[tuple[int, Fraction], ...], Fraction] = {}
    for row in rows:
        if row.strict or len(row.terms) < 2:
            continue
        unit = abs(next(iter(row.terms.values())))
        scaled = tuple((i, a / unit) for i, a in row.terms.items())
        below[scaled] = min(row.rhs / unit, below.get(scaled, row.rhs / unit))
        opposite = tuple((i, -a) for i, a in scaled)
        if below.get(opposite) == -below[scaled]:
            found.append(Expression(dict(row.terms), -row.rhs))
    return found


def _solved(equations: Sequence[Expression], nx: int) -> dict[int, Expression]:
    """Inputs as functions of those that are left, at least one."""
    known: dict[int, Expression] = {}
    for equation in equations:
        left = equation.of(known)
        for pivot in sorted(left.terms, key=lambda i: (-abs(left.terms[i]), -i)):
            if len(known) + 1 == nx:
                break
            unit = -left.terms[pivot]
            own = Expression({i: a / unit for i, a in left.terms.items() if i != pivot}, left.constant / unit)
            now = {**{i: e.of({pivot: own}) for i, e in known.items()}, pivot: own}
            if all(e.held for e in now.values()):
                known = now
                break
    return known


def _substituted(problem: Problem, known: dict[int, Expression], tuning: ReductionTuning) -> Problem:
    nx = problem.graph.nx
    kept = [i for i in range(nx) if i not in known]
    place = {i: k for k, i in enumerate(kept)}
    matrix, offset = np.zeros((nx, len(kept))), np.zeros(nx)
    matrix[kept, range(len(kept))] = 1.0
    for i, e in known.items():
        matrix[i, [place[j] for j in e.terms]] = [float(a) for a in e.terms.values()]
        offset[i] = float(e.constant)
    graph = _behind(problem.graph, matrix, offset, kept)

    def moved(row: Inequality) -> Inequality:
        now = Expression(row.terms, -row.rhs).of(known)
        return Inequality({place[i]: a for i, a in now.terms.items()}, -now.constant, row.strict)

    inputs: dict[tuple[int, int], tuple[Box, Rows] | None] = {}
    tables: dict[int, Rows] = {}
    disjuncts: list[Disjunct] = []
    for d in problem.disjuncts:
        key = id(d.box), id(d.domain)
        if key not in inputs:
            limits = [Inequality(terms, rhs, False) for i in known for terms, rhs in _limits(d.box, i)]
            rows = map(moved, [*inequalities(d.domain), *limits])
            inputs[key] = narrowed(d.box.lower[kept], d.box.upper[kept], rows, graph.ny, tuning)
        if (found := inputs[key]) is not None:  # None: no input satisfies its bounds
            disjuncts.append(Disjunct(found[0], _unsafe(d.unsafe, matrix, offset, tables), found[1]))
    return Problem(graph, tuple(disjuncts), problem.runtime, problem.files, Substitution(problem, matrix, offset), problem.notes)


def _limits(box: Box, i: int) -> list[tuple[Terms, Fraction]]:
    """The bounds of an input as rows."""
    return [({i: Fraction(1)}, Fraction(float(box.upper[i]))), ({i: Fraction(-1)}, -Fraction(float(box.lower[i])))]


def _unsafe(rows: Rows, matrix: Array, offset: Array, tables: dict[int, Rows]) -> Rows:
    """Rows on the inputs that are left; those of one table stay so.

    Raises:
        NotHeld: float64 does not hold a number of theirs.
    """
    if rows.origin is not None:
        table, places = rows.origin
        if id(table) not in tables:
            tables[id(table)] = _unsafe(table, matrix, offset, tables)
        (found,) = Rows.parts(tables[id(table)], places, [len(places)])
        return found
    mentions = rows.mentions_x
    if not mentions.any():
        return replace(rows, x_rows=np.broadcast_to(0.0, (len(rows), matrix.shape[1])))
    x_rows, rhs = np.zeros((len(rows), matrix.shape[1])), rows.rhs.copy()
    for r in np.flatnonzero(mentions).tolist():
        total, right = dict[int, Fraction](), Fraction(float(rows.rhs[r]))
        for i in np.flatnonzero(rows.x_rows[r]).tolist():
            a = Fraction(float(rows.x_rows[r, i]))
            right -= a * Fraction(float(offset[i]))
            for j in np.flatnonzero(matrix[i]).tolist():
                total[j] = total.get(j, Fraction(0)) + a * Fraction(float(matrix[i, j]))
        if not (held(right) and all(map(held, total.values()))):
            raise NotHeld
        rhs[r] = float(right)
        x_rows[r, list(total)] = [float(a) for a in total.values()]
    return replace(rows, x_rows=x_rows, rhs=rhs)


def _behind(graph: Graph, matrix: Array, offset: Array, kept: Sequence[int]) -> Graph:
    """The network behind x = matrix z + offset."""
    nx, nz = matrix.shape
    copied = np.abs(matrix).argmax(1)
    if not offset.any() and (matrix.sum(1) == 1).all() and ((matrix != 0).sum(1) == 1).all():
        front: Select | Linear | SparseLinear = Select(torch.from_numpy(copied), (nz,))
    else:
        dense = Linear(torch.from_numpy(matrix), torch.from_numpy(offset) if offset.any() else None)
        front = SparseLinear.of(dense) or dense
    later = (replace(node, id=node.id + 1, inputs=tuple(i + 1 for i in node.inputs)) for node in graph.nodes[1:])
    nodes = (Node(0, Input(), (), (nz,)), Node(1, front, (0,), (nx,), "equations"), *later)
    specs, start = list[TensorSpec](), 0
    for spec in graph.inputs:
        count = sum(start <= i < start + spec.size for i in kept)
        specs += [replace(spec, shape=(count,))] if count else []
        start += spec.size
    return replace(graph, nodes=nodes, output=graph.output + 1, inputs=tuple(specs))
