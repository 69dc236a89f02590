"""The truth about a small piecewise-linear network by enumerating its activation patterns in rational arithmetic.

Nothing of the package is used. A cell is a polytope given by its vertices, each with the constraints that are tight there; the
network is one affine map on it. Cutting a cell is exact (double description: an edge joins two vertices if and only if no third
one lies on every constraint that both lie on), and so are optima, which vertices attain, and strict inequalities, which are decided
at the mean of the vertices: a linear function that is <= 0 on a polytope is 0 there only if it is 0 everywhere.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import NamedTuple

import numpy as np

Form = tuple[Fraction, ...]  # coefficients of x, then the constant
Vertex = tuple[tuple[Fraction, ...], frozenset[int]]
ZERO, ONE = Fraction(0), Fraction(1)


def as_float(value: Fraction) -> float:
    """The nearest float, infinite beyond the largest one."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


class Pieces(NamedTuple):
    """Lines (slope, intercept) between breakpoints; `values` are those at the breakpoints where the function jumps."""

    breakpoints: tuple[Fraction, ...]
    lines: tuple[tuple[Fraction, Fraction], ...]
    values: tuple[Fraction, ...] | None = None

    def __call__(self, x: Fraction) -> Fraction:
        if self.values is not None and x in self.breakpoints:
            return self.values[self.breakpoints.index(x)]
        slope, intercept = self.lines[sum(p < x for p in self.breakpoints)]
        return slope * x + intercept


@dataclass
class Affine:
    """sum of W_i (tensor i) + b; W_i (n, size of tensor i) and b (n,) float64, exact."""

    parts: list[tuple[int, np.ndarray]]
    bias: np.ndarray


@dataclass
class Elementwise:
    source: int
    pieces: Pieces


@dataclass
class Largest:
    """Per entry the largest (sign 1) or smallest (-1) of some entries (tensor, index)."""

    candidates: list[list[tuple[int, int]]]
    sign: int = 1


@dataclass
class Network:
    """Tensor 0 is the input x, tensor i the result of ops[i - 1], `output` the tensor that holds y."""

    nx: int
    ops: list[Affine | Elementwise | Largest] = field(default_factory=list)
    output: int = 0

    def size(self, tensor: int) -> int:
        if tensor == 0:
            return self.nx
        match self.ops[tensor - 1]:
            case Affine(_, bias):
                return len(bias)
            case Elementwise(source, _):
                return self.size(source)
            case Largest(candidates, _):
                return len(candidates)

    def __call__(self, x: Sequence[Fraction]) -> list[Fraction]:
        values = [list(x)]
        for op in self.ops:
            match op:
                case Affine(parts, bias):
                    values.append(_affine(parts, bias, values))
                case Elementwise(source, pieces):
                    values.append([pieces(v) for v in values[source]])
                case Largest(candidates, sign):
                    values.append([sign * max(sign * values[t][i] for t, i in some) for some in candidates])
        return values[self.output]


def _affine(parts: list[tuple[int, np.ndarray]], bias: np.ndarray, values: list[list[Fraction]]) -> list[Fraction]:
    out = [Fraction(b) for b in bias.tolist()]
    for tensor, weight in parts:
        for i, j in zip(*np.nonzero(weight), strict=True):
            out[i] += Fraction(float(weight[i, j])) * values[tensor][j]
    return out


def magnitude(network: Network, disjunct: Disjunct) -> float:
    """The largest sum of absolute values that evaluating the rows can meet: rounding errors and solver tolerances are relative to it."""
    sizes = [np.maximum(np.abs(disjunct.lower), np.abs(disjunct.upper))]
    for op in network.ops:
        match op:
            case Affine(parts, bias):
                sizes.append(np.abs(bias) + sum(np.abs(w) @ sizes[t] for t, w in parts))
            case Elementwise(source, pieces):
                values = [[abs(float(pieces(Fraction(sign * v)))) for sign in (1.0, -1.0)] for v in sizes[source].tolist()]
                sizes.append(np.max(values, axis=1))
            case Largest(candidates, _):
                sizes.append(np.array([max(sizes[t][i] for t, i in some) for some in candidates]))
    rows = (*disjunct.unsafe, *disjunct.domain)
    terms = (float(np.abs(r.x_row) @ sizes[0] + np.abs(r.y_row) @ sizes[network.output] + abs(r.rhs)) for r in rows)
    return max([*(float(size.max(initial=0.0)) for size in sizes), *terms])


class Cell:
    """A polytope; no vertex at all is the empty set."""

    def __init__(self, vertices: list[Vertex], constraints: int) -> None:
        self.vertices, self.constraints = vertices, constraints

    @staticmethod
    def box(lower: Sequence[Fraction], upper: Sequence[Fraction]) -> Cell:
        corners: list[Vertex] = []
        for corner in set(itertools.product(*zip(lower, upper, strict=True))):
            tight = {2 * i + k for i, v in enumerate(corner) for k, side in enumerate((lower, upper)) if side[i] == v}
            corners.append((corner, frozenset(tight)))
        return Cell(sorted(corners, key=lambda c: c[0]), 2 * len(lower))

    def cut(self, form: Form) -> Cell:
        """The part where form <= 0."""
        values = [at(form, v) for v, _ in self.vertices]
        if all(v < 0 for v in values):
            return self
        new = self.constraints
        kept: list[Vertex] = [(v, t | {new} if a == 0 else t) for a, (v, t) in zip(values, self.vertices, strict=True) if a <= 0]
        inside = [i for i, a in enumerate(values) if a < 0]
        outside = [i for i, a in enumerate(values) if a > 0]
        for i, j in itertools.product(inside, outside):
            shared = self.vertices[i][1] & self.vertices[j][1]
            if any(shared <= t for k, (_, t) in enumerate(self.vertices) if k not in (i, j)):
                continue
            w = values[i] / (values[i] - values[j])
            point = tuple(p + w * (q - p) for p, q in zip(self.vertices[i][0], self.vertices[j][0], strict=True))
            kept.append((point, shared | {new}))
        return Cell(kept, new + 1)

    def smallest(self, form: Form) -> Fraction:
        return min(at(form, v) for v, _ in self.vertices)

    def largest(self, form: Form) -> Fraction:
        return max(at(form, v) for v, _ in self.vertices)

    def allows(self, strict: Sequence[Form]) -> bool:
        """Whether some point has every form < 0, given that all are <= 0 on the cell."""
        if not self.vertices:
            return False
        count = len(self.vertices)
        middle = tuple(sum(c, ZERO) / count for c in zip(*(v for v, _ in self.vertices), strict=True))
        return all(at(form, middle) < 0 for form in strict)


def at(form: Form, x: Sequence[Fraction]) -> Fraction:
    return sum((a * b for a, b in zip(form, x, strict=False)), form[-1])


def combine(terms: Sequence[tuple[Fraction, Form]], constant: Fraction, nx: int) -> Form:
    total = [ZERO] * nx + [constant]
    for factor, form in terms:
        if factor:
            for i, c in enumerate(form):
                total[i] += factor * c
    return tuple(total)


def minus(a: Form, b: Form) -> Form:
    return tuple(p - q for p, q in zip(a, b, strict=True))


def cells(network: Network, box: Cell) -> Iterator[tuple[Cell, list[Form], list[Form]]]:
    """Cells with the forms that are < 0 in them and the outputs as forms; their closures cover the box."""
    nx = network.nx
    identity = [tuple(ONE if k == i else ZERO for k in range(nx + 1)) for i in range(nx)]
    waiting: list[tuple[Cell, list[Form], list[list[Form]], list[Form]]] = [(box, [], [identity], [])]
    while waiting:
        cell, strict, values, done = waiting.pop()
        if len(values) == len(network.ops) + 1:
            yield cell, strict, values[network.output]
            continue
        op = network.ops[len(values) - 1]
        if isinstance(op, Affine):
            forms = []
            for i, b in enumerate(op.bias.tolist()):
                terms = [(Fraction(float(w[i, j])), values[t][j]) for t, w in op.parts for j in np.flatnonzero(w[i]).tolist()]
                forms.append(combine(terms, Fraction(b), nx))
            waiting.append((cell, strict, [*values, forms], []))
            continue
        if len(done) == network.size(len(values)):
            waiting.append((cell, strict, [*values, done], []))
            continue
        branches = _split(op, cell, values[op.source][len(done)]) if isinstance(op, Elementwise) else _choose(op, cell, values, len(done))
        waiting.extend((part, strict + more, values, [*done, form]) for part, more, form in branches)


def _split(op: Elementwise, cell: Cell, z: Form) -> Iterator[tuple[Cell, list[Form], Form]]:
    low, high = cell.smallest(z), cell.largest(z)
    points, lines, values = op.pieces
    nx = len(z) - 1
    for k, (slope, intercept) in enumerate(lines):
        part, strict = cell, []
        sides = ([(points[k - 1], -1)] if k else []) + ([(points[k], 1)] if k < len(points) else [])
        if values is None and ((k and high <= points[k - 1] and low < high) or (k < len(points) and low >= points[k] and low < high)):
            continue  # it touches this piece on a face only, which the neighbour covers
        for p, sign in sides:
            form = combine([(Fraction(sign), z)], -sign * p, nx)
            part = part.cut(form)
            strict += [form] if values is not None else []
        if part.vertices:
            yield part, strict, combine([(slope, z)], intercept, nx)
    for p, value in zip(points, values or (), strict=False):
        form = combine([(ONE, z)], -p, nx)
        part = cell.cut(form).cut(tuple(-c for c in form))
        if part.vertices:
            yield part, [], combine([], value, nx)


def _choose(op: Largest, cell: Cell, values: list[list[Form]], entry: int) -> Iterator[tuple[Cell, list[Form], Form]]:
    forms = list(dict.fromkeys(values[t][i] for t, i in op.candidates[entry]))
    for form in forms:
        part = cell
        for other in forms:
            if other is not form and part.vertices:
                difference = minus(other, form) if op.sign > 0 else minus(form, other)
                part = part.cut(difference)
        if part.vertices:
            yield part, [], form


@dataclass
class Row:
    """x . x_row + y . y_row <= rhs, `<` where strict."""

    x_row: np.ndarray
    y_row: np.ndarray
    rhs: float
    strict: bool = False

    def form(self, outputs: list[Form], nx: int) -> Form:
        unit = [tuple(ONE if k == i else ZERO for k in range(nx + 1)) for i in range(nx)]
        terms = [(Fraction(float(c)), f) for c, f in zip((*self.x_row, *self.y_row), (*unit, *outputs), strict=True)]
        return combine(terms, -Fraction(self.rhs), nx)

    def residual(self, x: Sequence[Fraction], y: Sequence[Fraction]) -> Fraction:
        return sum((Fraction(float(c)) * v for c, v in zip((*self.x_row, *self.y_row), (*x, *y), strict=True)), -Fraction(self.rhs))

    def holds(self, x: Sequence[Fraction], y: Sequence[Fraction]) -> bool:
        residual = self.residual(x, y)
        return residual < 0 or (residual == 0 and not self.strict)


@dataclass
class Disjunct:
    """Inputs in [lower, upper] with `domain`, unsafe where every one of `unsafe` holds."""

    lower: list[float]
    upper: list[float]
    unsafe: list[Row]
    domain: list[Row] = field(default_factory=list)


class Truth(NamedTuple):
    """Whether an unsafe point exists, and the infimum of the margin, None if there is no input.

    `optimum` is the smallest margin where strict constraints on inputs and the sides of jumps are taken as closed, as solvers
    take them; `scale` is the largest |row term| seen; `outside` is how far the box is from the domain rows at least.
    """

    unsafe: bool
    infimum: Fraction | None
    optimum: Fraction | None
    scale: float
    outside: Fraction


def truth(network: Network, disjunct: Disjunct) -> Truth:
    """The exact truth about one disjunct."""
    nx = network.nx
    box = Cell.box([Fraction(v) for v in disjunct.lower], [Fraction(v) for v in disjunct.upper])
    nothing = [combine([], ZERO, nx)] * network.size(network.output)
    domain = [(row.form(nothing, nx), row.strict) for row in disjunct.domain]
    distance = max([ZERO, *(box.smallest(form) for form, _ in domain)])
    for form, _ in domain:
        box = box.cut(form)
    outside = [form for form, strict in domain if strict]
    unsafe, infimum, optimum, scale = False, None, None, max([1e-300, *(abs(row.rhs) for row in disjunct.unsafe)])
    for cell, strict, outputs in cells(network, box) if box.vertices else ():
        forms = [row.form(outputs, nx) for row in disjunct.unsafe]
        for vertex, _ in cell.vertices:
            y = [at(f, vertex) for f in outputs]
            for row in disjunct.unsafe:
                scale = max(scale, *(abs(float(c) * as_float(v)) for c, v in zip((*row.x_row, *row.y_row), (*vertex, *y), strict=True)))
        real = cell.allows(strict + outside)
        for form in forms:
            part = cell
            for other in forms:
                if other is not form and part.vertices:
                    part = part.cut(minus(other, form))
            if part.vertices:
                value = part.smallest(form)
                optimum = value if optimum is None else min(optimum, value)
                infimum = infimum if not real else value if infimum is None else min(infimum, value)
        if not unsafe:
            part = cell
            for form in forms:
                part = part.cut(form)
            unsafe = part.allows(strict + outside + [f for f, row in zip(forms, disjunct.unsafe, strict=True) if row.strict])
    return Truth(unsafe, infimum, optimum, scale, distance)
