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

from milpverify.encode.model import ModelBuilder, NumericallyUnfit, OutOfTime
from milpverify.encode.segments import Segment, is_continuous, pieces_of, segments, touched_pieces
from milpverify.graph import affine_form, evaluate_all
from milpverify.operators import Affine
from milpverify.solvers.model import Array, Index, Model

if TYPE_CHECKING:
    from milpverify.config import Deadline
    from milpverify.functions.pieces import Pieces
    from milpverify.graph import Graph, Node
    from milpverify.spec import Box, Disjunct, Rows

NodeRanges = Sequence[tuple[Tensor, Tensor]]
"""Per node id, (lower, upper) of its value, float64 of the node's shape: proved for every point of the disjunct's box."""

Split = tuple[int, int, float, float]
"""A split decision side * (z - point) >= 0 as (node of z, flat index of z, side, point)."""

_CHUNK = 2**22  # entries of the dense rows that are formed at a time
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
class _Forms:
    """R affine forms over cut nodes, sparse: per cut node (row, flat index there, coefficient); `error` bounds their rounding."""

    entries: dict[int, tuple[Index, Index, Array]]
    constant: Array  # (R,)
    error: Array  # (R,)


@dataclass(frozen=True, eq=False)
class _Block:
    """The neurons of one nonlinear node that matter and are not constant, with their pre-activations."""

    node: Node
    index: Index  # (R,) flat
    first: Index  # (R,) the first and the last piece that their bounds touch
    last: Index
    lower: Array  # (R,) of the pre-activation
    upper: Array
    forms: list[tuple[int, _Forms]]  # the pre-activations, in chunks with their offset into index


class _Encoder:
    def __init__(self, graph: Graph, bounds: NodeRanges, box: Box, start: Array | None, deadline: Deadline | None) -> None:
        self.graph = graph
        self.deadline = deadline
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
        self.reach = self._reaches()
        self.needed = {i: np.zeros(graph.nodes[i].size, dtype=bool) for i in cuts}
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
        top = self._top_rows(objective)
        split = self._decided(decisions)
        extra = [] if constraints is None else [self._top_rows(constraints)]
        self.needed[0] |= domain.x_rows.any(axis=0)
        self._add_network()
        used = np.flatnonzero(self.needed[0])
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
        forms = self._units(node, index)
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
        self._add_values(0, np.flatnonzero(self.needed[0]))
        for block in reversed(blocks):
            self._add_block(block)

    # --- backwards: what is needed, and its affine forms ---

    def _forms(self, node: int, rows: Tensor, x_rows: Array | None = None, units: bool = False) -> _Forms:
        """Rows of a node over the cut nodes, with a bound of the rounding in composing them (Higham, section 3.1)."""
        self._check_time()
        form = affine_form(self.graph, node, rows)
        coefficients = {cut: c.reshape(len(rows), -1).numpy() for cut, c in form.coefficients.items()}
        reach = rows.reshape(len(rows), -1).abs().numpy() @ self.reach[node]
        if x_rows is not None:
            coefficients[0] = coefficients[0] + x_rows if 0 in coefficients else np.array(x_rows)
            reach += np.abs(x_rows) @ self.reach[0]
        entries = {}
        for cut, c in coefficients.items():
            row, column = np.nonzero(c)
            entries[cut] = (row.astype(np.int64), column.astype(np.int64), c[row, column])
            self.needed[cut][column] = True
        terms = 0 if units and self._one_step(node) else self._terms(node)
        error = np.zeros(len(rows)) if terms == 0 else reach * ((terms + 8) * 2.0**-52)
        return _Forms(entries, form.constant.numpy(), error)

    def _reaches(self) -> list[Array]:
        """Per node, sums of absolute values that no composition of its entries from the nearest cut nodes exceeds."""
        reaches: list[Array] = []
        for node in self.graph.nodes:
            if isinstance(node.op, Affine):
                inputs = [torch.from_numpy(reaches[i]).reshape(1, *self.graph.nodes[i].shape) for i in node.inputs]
                sums = node.op.absolute().forward(inputs)
                reaches.append(sums.expand(1, *node.shape).reshape(-1).numpy())
            else:
                reaches.append(np.maximum(np.abs(self.lower[node.id]), np.abs(self.upper[node.id])))
        return reaches

    def _check_time(self) -> None:
        if self.deadline is not None and self.deadline.expired():
            raise OutOfTime("the time is over before the model is built")

    def _one_step(self, node: int) -> bool:
        """Whether one affine operator on distinct cut nodes makes the node, so that unit rows of it are its own, exact coefficients."""
        inputs, op = self.graph.nodes[node].inputs, self.graph.nodes[node].op
        return (
            not (isinstance(op, Affine) and op.rounded)
            and len(set(inputs)) == len(inputs)
            and not any(isinstance(self.graph.nodes[i].op, Affine) for i in inputs)
        )

    def _terms(self, node: int) -> int:
        """How many roundings a composed coefficient can see between a node and the cut nodes behind it, those of weights included."""
        total, pending, seen = 0, [node], set()
        while pending:
            i = pending.pop()
            op = self.graph.nodes[i].op
            if i in seen or not isinstance(op, Affine):
                continue
            seen.add(i)
            total += op.terms + 2
            pending.extend(self.graph.nodes[i].inputs)
        return total

    def _top_rows(self, rows: Rows) -> _Forms:
        y = torch.from_numpy(np.array(rows.y_rows, dtype=np.float64))
        return self._forms(self.graph.output, y, rows.x_rows if rows.mentions_x.any() else None)

    def _decided(self, decisions: Sequence[Split]) -> list[tuple[_Forms, list[float], list[float]]]:
        """Per node, the forms of the pre-activations with decisions, their sides and their points."""
        found = []
        for node in sorted({d[0] for d in decisions}):
            here = [d for d in decisions if d[0] == node]
            units = torch.zeros(len(here), self.graph.nodes[node].size, dtype=torch.float64)
            units[torch.arange(len(here)), torch.tensor([d[1] for d in here])] = 1.0
            forms = self._forms(node, units.reshape(len(here), *self.graph.nodes[node].shape), units=True)
            found.append((forms, [d[2] for d in here], [d[3] for d in here]))
        return found

    def _block(self, node: Node) -> _Block | None:
        """Sort the neurons of a node by what their bounds say; constants are fixed and need nothing behind them."""
        need = np.flatnonzero(self.needed[node.id])
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
        forms = self._units(source, index)
        offsets = np.cumsum([0, *(len(form.constant) for form in forms)]).tolist()
        chunks = list(zip(offsets[:-1], forms, strict=True))
        return _Block(node, index, first[keep], last[keep], low[keep], high[keep], chunks)

    def _units(self, node: int, index: Index) -> list[_Forms]:
        """The forms of some entries of a node, in chunks."""
        size = self.graph.nodes[node].size
        width = max(size, *(self.graph.nodes[i].size for i in self.graph.ancestors[node]))
        step = max(1, _CHUNK // width)
        forms = []
        for offset in range(0, len(index), step):
            part = index[offset : offset + step]
            units = torch.zeros(len(part), size, dtype=torch.float64)
            units[torch.arange(len(part)), torch.from_numpy(part)] = 1.0
            forms.append(self._forms(node, units.reshape(len(part), *self.graph.nodes[node].shape), units=True))
        return forms

    # --- forwards: variables and rows ---

    def _add_values(self, cut: int, index: Index) -> None:
        """Variables for entries of a cut node."""
        first = math.nan if self.values is None else self.values[cut][index]
        self.column[cut][index] = self.builder.variables(self.lower[cut][index], self.upper[cut][index], start=first)

    def _lines(self, forms: _Forms) -> list[_Line]:
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
        return [_Line(*part) for part in parts] if count else []

    def _add_block(self, block: _Block) -> None:
        node, pieces = block.node, pieces_of(block.node)
        self._add_values(node.id, block.index)
        for offset, forms in block.forms:
            self._check_time()
            for i, line in enumerate(self._lines(forms), start=offset):
                k, y = int(block.first[i]), int(self.column[node.id][block.index[i]])
                if block.first[i] == block.last[i]:
                    self._equal(y, line.through(pieces.slopes[k], pieces.intercepts[k], self.builder))
                else:
                    self._add_unstable(block, i, y, line)

    def _equal(self, column: int, line: _Line) -> None:
        """The quantity of a column is the line."""
        row = np.append(line.columns, column), np.append(line.values, -1.0)
        self.builder.row(*row, lower=-line.constant, upper=-line.constant, error=line.error)

    def _add_unstable(self, block: _Block, i: int, y: int, line: _Line) -> None:
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

    def _add_margin(self, forms: _Forms, rows: Rows) -> dict[int, float]:
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


@dataclass(frozen=True, eq=False)
class _Line:
    """values . quantities[columns] + constant, up to `error`."""

    columns: Index
    values: Array
    constant: float
    error: float

    def through(self, slope: float, intercept: float, builder: ModelBuilder) -> _Line:
        """slope times this line plus intercept."""
        if slope == 1.0 and intercept == 0.0:
            return self
        values = slope * self.values
        low, high = builder.range(self.columns)
        size = float(np.abs(values) @ np.maximum(np.abs(low), np.abs(high))) + abs(slope * self.constant) + abs(intercept)
        return _Line(self.columns, values, slope * self.constant + intercept, abs(slope) * self.error + 2.0**-51 * size)
