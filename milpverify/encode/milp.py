"""The margin of one disjunct as a mixed-integer linear model.

Minimise t subject to t >= every unsafe row, over the box, the domain rows and the network: feasible by construction, so that the
dual bound alone decides. Every pre-activation is written over the nearest cut nodes (nonlinear outputs and the input), which
needs no knowledge of affine operators; rounding in that composition is bounded and moved outwards into the rows. Neurons
that are stable within their bounds are linear or constant; the rest take binaries:

- one kink: the big-M form, which is the convex hull of one neuron over [l, u] (Tjeng et al., arXiv 1711.07356, eq. 11 to 15 for ReLU);
- otherwise: one binary per piece, the multiple-choice form (Vielma, Mixed Integer Linear Programming Formulation Techniques,
  SIAM Review 2015), also for jumps: each piece on its closed interval, and the value at a jump as a piece of length zero. It
  holds the closure of the graph.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from milpverify.encode.cut_forms import Composer, CutForms, Line, Split
from milpverify.encode.model import ModelBuilder, NumericallyUnfit
from milpverify.encode.segments import Segment, is_continuous, pieces_of, segments, touched_pieces
from milpverify.graph import evaluate_all
from milpverify.solvers.model import Array, Index, Model

if TYPE_CHECKING:
    from milpverify.config import Deadline
    from milpverify.functions.pieces import Pieces
    from milpverify.graph import Graph, Node
    from milpverify.spec import Box, Disjunct, Rows

NodeRanges = Sequence[tuple[Tensor, Tensor]]
"""Per node id, (lower, upper) of its value, float64 of the node's shape: proved for every point of the disjunct's box."""

_CONDITION = 2.0**-13  # a pre-activation's unit is never smaller than this multiple of its largest term


@dataclass(frozen=True, eq=False)
class Encoding:
    """A model and the way back: x_i = centre[i] + unit[i] v[columns[i]], where columns[i] is -1 if nothing depends on x_i.

    The model's objective is in units of the margin (of the objective row). `unstable` counts the neurons with binaries.
    """

    model: Model
    columns: Index  # (nx,)
    centre: Array  # (nx,)
    unit: Array  # (nx,)
    lower: Array  # (nx,), the box
    upper: Array
    unstable: int

    def x_of(self, point: Array) -> Array:
        """The input (nx,) of a solver's point (n,), clipped into the box; the middle of the box where it does not matter."""
        middle = self.lower + 0.5 * (self.upper - self.lower)
        values = self.centre + self.unit * point[self.columns]
        x: Array = np.clip(np.where(self.columns >= 0, values, middle), self.lower, self.upper)
        return x


def encode(
    graph: Graph,
    bounds: NodeRanges,
    disjunct: Disjunct,
    objective: Rows | None = None,
    start: Array | None = None,
    constraints: Rows | None = None,
    decisions: Sequence[Split] = (),
    deadline: Deadline | None = None,
) -> Encoding:
    """The model whose minimum is the smallest margin of a disjunct, or with `objective` the smallest max of other rows.

    Args:
        graph: in float64 on the CPU.
        bounds: of every node, proved over the disjunct's box.
        objective: the rows whose largest residual x_rows x + y_rows y - rhs is minimised; the disjunct's unsafe rows unless given. One row
            with rhs 0 minimises a linear function of (x, y); negate the row to maximise. No row at all: a feasibility model.
        start: (nx,) an input to start from.
        constraints: rows over x and y to hold besides the domain rows; none unless given.
        decisions: split decisions to hold; the bounds may then be those of the subproblem that they make.
        deadline: when to give up; large networks take seconds.

    Raises:
        UnsupportedOperator: a function that is not piecewise linear.
        NumericallyUnfit: bounds that are not finite.
        OutOfTime: the deadline came first.
    """
    rows = disjunct.unsafe if objective is None else objective
    return _Encoder(graph, bounds, disjunct.box, start, deadline).encode(rows, disjunct.domain, constraints, decisions)


@dataclass(frozen=True, eq=False)
class Layer:
    """One model for many pre-activations of a node: entry index[r] is objective[r] . v + constant[r], up to error[r], at v in the model.

    The model has no objective of its own; `binaries` of its variables tell the pieces of neurons.
    """

    model: Model
    index: Index  # (R,) flat
    objective: Array  # (R, n)
    constant: Array  # (R,)
    error: Array  # (R,)
    binaries: int

    def task(self, r: int, side: int) -> Model:
        """The model that minimises entry r, or with side -1 its negative (without the constant)."""
        return replace(self.model, objective=side * self.objective[r])


def encode_layer(graph: Graph, bounds: NodeRanges, box: Box, node: int, index: Index, deadline: Deadline | None = None) -> Layer:
    """The model of what lies before some pre-activations, for bounds of each (optimisation-based bound tightening).

    Args:
        graph, bounds, deadline: as for `encode`.
        node: a pre-activation.
        index: (R,) flat entries of it.

    Raises:
        see `encode`.
    """
    return _Encoder(graph, bounds, box, None, deadline).encode_layer(node, index)


@dataclass(frozen=True, eq=False)
class _Block:
    """The neurons of one nonlinear node that matter and are not constant, with their pre-activations."""

    node: Node
    index: Index  # (R,) flat
    first: Index  # (R,) the first and the last piece that their bounds touch
    last: Index
    lower: Array  # (R,) of the pre-activation
    upper: Array
    forms: list[tuple[int, CutForms]]  # the pre-activations, in chunks with their offset into index


class _Encoder:
    def __init__(self, graph: Graph, bounds: NodeRanges, box: Box, start: Array | None, deadline: Deadline | None) -> None:
        self.graph = graph
        self.box = box
        cuts = (0, *graph.nonlinear)
        self.lower: dict[int, Array] = {0: self.box.lower}
        self.upper: dict[int, Array] = {0: self.box.upper}
        for node in graph.nonlinear:
            for i in {node, graph.nodes[node].inputs[0]} - {0}:
                a, b = (t.detach().reshape(-1).numpy().astype(np.float64) for t in bounds[i])
                if not (np.isfinite(a).all() and np.isfinite(b).all()):
                    raise NumericallyUnfit(f"node {i} ({graph.nodes[i].name}) has no finite bounds")
                self.lower[i], self.upper[i] = np.minimum(a, b), np.maximum(a, b)
        self.compose = Composer(graph, self.lower, self.upper, deadline)
        self.column = {i: np.full(graph.nodes[i].size, -1, dtype=np.int64) for i in cuts}
        self.fixed = {i: np.zeros(graph.nodes[i].size) for i in cuts}  # the values of constant neurons
        self.builder = ModelBuilder()
        self.unstable = 0
        self.start = None if start is None else np.clip(start, self.box.lower, self.box.upper)
        self.values = (
            None if self.start is None else [v.reshape(-1).numpy() for v in evaluate_all(graph, torch.from_numpy(self.start)[None])]
        )

    @np.errstate(over="ignore", invalid="ignore")  # what overflows is refused as NumericallyUnfit
    def encode(self, objective: Rows, domain: Rows, constraints: Rows | None, decisions: Sequence[Split]) -> Encoding:
        top = self.compose.rows(objective)
        split = self.compose.splits(decisions)
        extra = [] if constraints is None else [self.compose.rows(constraints)]
        self.compose.needed[0] |= domain.x_rows.any(axis=0)
        self._add_network()
        used = np.flatnonzero(self.compose.needed[0])
        for row, rhs in zip(domain.x_rows, domain.rhs, strict=True):
            self.builder.row(self.column[0][used], row[used], upper=float(rhs))
        for rows, forms in zip([constraints] if constraints is not None else [], extra, strict=True):
            for line, rhs in zip(self._lines(forms), rows.rhs.tolist(), strict=True):
                self.builder.row(line.columns, line.values, upper=rhs - line.constant, error=line.error)
        for forms, sides, points in split:
            for line, side, point in zip(self._lines(forms), sides, points, strict=True):
                low, high = (point, math.inf) if side > 0 else (-math.inf, point)
                self.builder.row(line.columns, line.values, low - line.constant, high - line.constant, error=line.error)
        costs = self._add_margin(top, objective) if len(objective) else {}
        model = self.builder.build(costs)
        centre, unit = self.builder.centre[self.column[0]], self.builder.unit[self.column[0]]
        return Encoding(model, self.column[0], centre, unit, self.box.lower, self.box.upper, self.unstable)

    @np.errstate(over="ignore", invalid="ignore")
    def encode_layer(self, node: int, index: Index) -> Layer:
        """See `encode_layer`."""
        forms = self.compose.units(node, index)
        self._add_network()
        lines = [line for form in forms for line in self._lines(form)]
        centre, unit = self.builder.centre, self.builder.unit
        objective = np.zeros((len(lines), len(unit)))
        constant, error = np.zeros(len(lines)), np.zeros(len(lines))
        for r, line in enumerate(lines):
            objective[r, line.columns] = line.values * unit[line.columns]
            shifts = line.values * centre[line.columns]
            constant[r] = line.constant + float(shifts.sum())
            error[r] = line.error + (len(shifts) + 4) * 2.0**-52 * (float(np.abs(shifts).sum()) + abs(line.constant))
        if not (np.isfinite(objective).all() and np.isfinite(constant).all() and np.isfinite(error).all()):
            raise NumericallyUnfit(f"node {node} ({self.graph.nodes[node].name}) has coefficients that are not finite")
        model = self.builder.build({})
        return Layer(model, index, objective, constant, error, int(model.integer.sum()))

    def _add_network(self) -> None:
        """Variables and rows of all that is needed so far."""
        blocks = [block for node in reversed(self.graph.nonlinear) if (block := self._block(self.graph.nodes[node])) is not None]
        self._add_values(0, np.flatnonzero(self.compose.needed[0]))
        for block in reversed(blocks):
            self._add_block(block)

    # --- backwards: the neurons that are needed ---

    def _block(self, node: Node) -> _Block | None:
        """Sort the neurons of a node by what their bounds say; constants are fixed and need nothing behind them."""
        need = np.flatnonzero(self.compose.needed[node.id])
        if not need.size:
            return None
        pieces = pieces_of(node)
        source = node.inputs[0]
        low, high = self.lower[source][need], self.upper[source][need]
        first, last = touched_pieces(pieces, low, high)
        slopes, intercepts = np.array(pieces.slopes), np.array(pieces.intercepts)
        constant = (first == last) & (slopes[first] == 0.0)
        self.fixed[node.id][need[constant]] = intercepts[first[constant]]
        keep = np.flatnonzero(~constant)
        index = need[keep]
        if not index.size:
            return None
        forms = self.compose.units(source, index)
        offsets = np.cumsum([0, *(len(form.constant) for form in forms)]).tolist()
        chunks = list(zip(offsets[:-1], forms, strict=True))
        return _Block(node, index, first[keep], last[keep], low[keep], high[keep], chunks)

    # --- forwards: variables and rows ---

    def _add_values(self, cut: int, index: Index) -> None:
        """Variables for entries of a cut node."""
        first = math.nan if self.values is None else self.values[cut][index]
        self.column[cut][index] = self.builder.variables(self.lower[cut][index], self.upper[cut][index], start=first)

    def _lines(self, forms: CutForms) -> list[Line]:
        """The forms over the columns of the model, with the constant neurons in the constants."""
        constant, error = forms.constant.copy(), forms.error.copy()
        count = len(constant)
        owners, columns, values = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)], [np.zeros(0)]
        for cut, (row, index, value) in forms.entries.items():
            column = self.column[cut][index]
            free = column >= 0
            gone = value[~free] * self.fixed[cut][index[~free]]
            constant += np.bincount(row[~free], gone, count)
            error += np.bincount(row[~free], np.abs(gone), count) * (2.0**-52 * (2 + len(gone)))
            owners.append(row[free])
            columns.append(column[free])
            values.append(value[free])
        error += np.where(error > 0, 2.0**-52 * np.abs(constant), 0.0)
        owner, column, value = np.concatenate(owners), np.concatenate(columns), np.concatenate(values)
        order = np.argsort(owner, kind="stable")
        cuts = np.searchsorted(owner[order], np.arange(1, max(count, 1)))
        parts = zip(np.split(column[order], cuts), np.split(value[order], cuts), constant.tolist(), error.tolist(), strict=True)
        return [Line(*part) for part in parts] if count else []

    def _add_block(self, block: _Block) -> None:
        node, pieces = block.node, pieces_of(block.node)
        self._add_values(node.id, block.index)
        for offset, forms in block.forms:
            self.compose.check_time()
            for i, line in enumerate(self._lines(forms), start=offset):
                k, y = int(block.first[i]), int(self.column[node.id][block.index[i]])
                if block.first[i] == block.last[i]:
                    self._equal(y, line.through(pieces.slopes[k], pieces.intercepts[k], self.builder))
                else:
                    self._add_unstable(block, i, y, line)

    def _equal(self, column: int, line: Line) -> None:
        """The quantity of a column is the line."""
        row = np.append(line.columns, column), np.append(line.values, -1.0)
        self.builder.row(*row, lower=-line.constant, upper=-line.constant, error=line.error)

    def _add_unstable(self, block: _Block, i: int, y: int, line: Line) -> None:
        node, pieces = block.node, pieces_of(block.node)
        low, high = float(block.lower[i]), float(block.upper[i])
        terms = np.abs(line.values) * self.builder.unit[line.columns]
        at = math.nan if self.values is None else min(max(float(self.values[node.inputs[0]][block.index[i]]), low), high)
        x = int(self.builder.variables(low, high, least=_CONDITION * float(terms.max(initial=0.0)), start=at)[0])
        self._equal(x, line)
        first, last = int(block.first[i]), int(block.last[i])
        self.unstable += 1
        if last == first + 1 and is_continuous(pieces, first):
            self._add_kink(pieces, first, low, high, x, y, at)
        else:
            self._add_choice(segments(pieces, first, last, low, high), x, y, at)

    def _add_kink(self, pieces: Pieces, k: int, low: float, high: float, x: int, y: int, at: float) -> None:
        """Two pieces that meet at p, with slopes a, b, s = 1 if convex and -1 if concave, and z = 1 right of p.

        s y >= s (a x + c_a), s y <= s (a x + c_a) + |b - a| (u - p) z,
        s y >= s (b x + c_b), s y <= s (b x + c_b) + |b - a| (p - l) (1 - z).
        """
        p, (a, b), (ca, cb) = pieces.breakpoints[k], pieces.slopes[k : k + 2], pieces.intercepts[k : k + 2]
        sign = 1.0 if b > a else -1.0
        grow = (1.0 + 2.0**-50) * abs(b - a)
        right, left = grow * (high - p), grow * (p - low)
        z = int(self.builder.binaries(1, start=math.nan if math.isnan(at) else float(at > p))[0])
        row = self.builder.row
        row([y, x], [sign, -sign * a], lower=sign * ca)
        row([y, x], [sign, -sign * b], lower=sign * cb)
        row([y, x, z], [sign, -sign * a, -right], upper=sign * ca)
        row([y, x, z], [sign, -sign * b, left], upper=left + sign * cb, error=2.0**-52 * abs(cb) if cb else 0.0)

    def _add_choice(self, parts: list[Segment], x: int, y: int, at: float) -> None:
        """x = r + sum d_k, y = sum a_k d_k + (a_k r + c_k) z_k, (l_k - r) z_k <= d_k <= (u_k - r) z_k, sum z_k = 1; r is x's centre."""
        r = float(self.builder.centre[x])
        low, high = (np.array(ends) - r for ends in zip(*((p.lower, p.upper) for p in parts), strict=True))
        if r:
            low, high = np.nextafter(low, -np.inf), np.nextafter(high, np.inf)
        slopes, intercepts = (np.array(part) for part in zip(*((p.slope, p.intercept) for p in parts), strict=True))
        chosen = next((k for k, p in enumerate(parts) if p.lower <= at <= p.upper), 0)
        hot = np.where(np.arange(len(parts)) == chosen, 1.0, 0.0)
        z = self.builder.binaries(len(parts), start=math.nan if math.isnan(at) else hot)
        d = self.builder.variables(np.minimum(low, 0.0), np.maximum(high, 0.0), start=hot * (at - r), least=float(self.builder.unit[x]))
        ones = np.ones(len(parts))
        self.builder.row(z, ones, 1.0, 1.0)
        self.builder.row([*d, x], [*ones, -1.0], -r, -r)
        rounding = 2.0**-50 * float(np.abs(slopes * r).max() + np.abs(intercepts).max()) if r else 0.0
        self.builder.row([*d, *z, y], [*slopes, *(slopes * r + intercepts), -1.0], 0.0, 0.0, error=rounding)
        for k in range(len(parts)):
            self.builder.row([d[k], z[k]], [1.0, -low[k]], lower=0.0)
            self.builder.row([d[k], z[k]], [1.0, -high[k]], upper=0.0)

    def _add_margin(self, forms: CutForms, rows: Rows) -> dict[int, float]:
        """t >= every row, in units of the largest term; returns the costs."""
        lines = self._lines(forms)
        lows, highs, largest = [], [], 0.0
        for line, rhs in zip(lines, rows.rhs.tolist(), strict=True):
            ends = np.stack([line.values * end for end in self.builder.range(line.columns)])
            slack = line.error + 1e-12 * (float(np.abs(ends).max(axis=0).sum()) + abs(line.constant) + abs(rhs))
            lows.append(line.constant - rhs + float(ends.min(axis=0).sum()) - slack)
            highs.append(line.constant - rhs + float(ends.max(axis=0).sum()) + slack)
            largest = max(largest, float((np.abs(line.values) * self.builder.unit[line.columns]).max(initial=0.0)))
        first = math.nan
        if self.start is not None and self.values is not None:
            first = float(rows.residual(self.start, self.values[self.graph.output]).max())
        t = int(self.builder.variables(max(lows), max(highs), least=largest, start=first, centred=False)[0])
        for line, rhs in zip(lines, rows.rhs.tolist(), strict=True):
            row = np.append(line.columns, t), np.append(-line.values, 1.0)
            self.builder.row(*row, lower=line.constant - rhs, error=line.error + 2.0**-52 * (abs(rhs) + abs(line.constant)))
        return {t: 1.0}
