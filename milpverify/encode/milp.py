"""The margin of one disjunct as a mixed-integer model.

Minimise t subject to t >= every unsafe row, over the box, the domain rows and the network: feasible by construction, so that the
dual bound alone decides. How the network itself is written stands in `neurons`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from milpverify.encode.encoding import Encoding, Layer, ModelForm, NodeRanges, Origins
from milpverify.encode.model import NumericallyUnfit
from milpverify.encode.neurons import NetworkEncoder
from milpverify.solvers.model import Array, Index

if TYPE_CHECKING:
    from collections.abc import Sequence

    from milpverify.config import Deadline
    from milpverify.encode.cut_forms import CutForms, Split
    from milpverify.graph import Graph
    from milpverify.spec import Box, Disjunct, Rows


def encode(
    graph: Graph,
    bounds: NodeRanges,
    disjunct: Disjunct,
    start: Array | None = None,
    decisions: Sequence[Split] = (),
    deadline: Deadline | None = None,
    form: ModelForm = ModelForm(),
) -> Encoding:
    """The model whose minimum is the smallest margin of a disjunct: of the largest residual x_rows x + y_rows y - rhs of its unsafe rows.

    One unsafe row with rhs 0 minimises a linear function of (x, y); negate it to maximise. No unsafe row at all: a feasibility model.
    Rows and bounds are rounded outwards, so that the minimum is at most the smallest margin in the reals; it is that margin, up to
    rounding, where the network is piecewise linear, nothing is `form.relaxed`, and no L2 ball is left to tangents.

    Args:
        graph: in float64 on the CPU.
        bounds: of every node, proved over the disjunct's box.
        start: (nx,) an input to start from.
        decisions: split decisions to hold; the bounds may then be those of the subproblem that they make.
        deadline: when to give up; large networks take seconds.
        form: how the network's neurons are held.

    Raises:
        NumericallyUnfit: bounds that are not finite, or numbers that no solver's tolerance carries.
        OutOfTime: the deadline came first.
    """
    return _MarginEncoder(graph, bounds, disjunct.box, start, deadline, form).encode(disjunct, decisions)


def encode_layer(
    graph: Graph, bounds: NodeRanges, box: Box, node: int, index: Index, deadline: Deadline | None = None, form: ModelForm = ModelForm()
) -> Layer:
    """The model of what lies before some pre-activations, for bounds of each (optimisation-based bound tightening).

    Args:
        graph, bounds, deadline, form: as for `encode`.
        node: a pre-activation.
        index: (R,) flat entries of it.

    Returns:
        A model whose points contain all that the network does over the box, and the R forms over its columns with their rounding errors.

    Raises:
        NumericallyUnfit, OutOfTime: as `encode`.
    """
    return _MarginEncoder(graph, bounds, box, None, deadline, form).encode_layer(node, index)


class _MarginEncoder(NetworkEncoder):
    """The network with the rows of a disjunct, or what lies before a layer."""

    @np.errstate(over="ignore", invalid="ignore")  # what overflows is refused as NumericallyUnfit
    def encode(self, disjunct: Disjunct, decisions: Sequence[Split]) -> Encoding:
        domain, unsafe = disjunct.domain, disjunct.unsafe
        top = self.compose.rows(unsafe)
        split = self.compose.splits(decisions)
        self.compose.needed[0] |= domain.x_rows.any(axis=0)
        self.add_network()
        used = np.flatnonzero(self.compose.needed[0])
        starts = [self.builder.num_rows]
        for row, rhs in zip(domain.x_rows, domain.rhs, strict=True):
            self.builder.row(self.column[0][used], row[used], upper=float(rhs))
        starts.append(self.builder.num_rows)
        for forms, sides, points in split:
            for line, side, point in zip(self.lines(forms), sides, points, strict=True):
                low, high = (point, math.inf) if side > 0 else (-math.inf, point)
                self.builder.row(line.columns, line.values, low - line.constant, high - line.constant, error=line.error)
        starts.append(self.builder.num_rows)
        costs = self._add_margin(top, unsafe) if len(unsafe) else {}
        model = self.builder.build(costs)
        domain_rows, decision_rows, margin_rows = map(range, starts, [*starts[1:], self.builder.num_rows])
        origins = self._origins(domain_rows, decision_rows, margin_rows)
        centre, unit = self.builder.centre.copy(), self.builder.unit.copy()
        margin = next(iter(costs), -1)
        box, neurons = self.box, tuple(self.neurons)
        return Encoding(model, self.column[0], centre, unit, box.lower, box.upper, self.unstable, neurons, self.arguments, margin, origins)

    @np.errstate(over="ignore", invalid="ignore")
    def encode_layer(self, node: int, index: Index) -> Layer:
        """See `encode_layer`."""
        forms = self.compose.units(node, index)
        self.add_network()
        lines = [line for form in forms for line in self.lines(form)]
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
        return Layer(model, index, objective, constant, error, int(model.integer.sum()), unit.copy(), self._origins())

    def _origins(self, *parts: range) -> Origins:
        values = {(i, e): c for i, column in self.column.items() for e, c in enumerate(column.tolist()) if c >= 0}
        return Origins(self.builder.scale, {i: np.array(some) for i, some in self.builder.lines.items()}, values | self.arguments, *parts)

    def _add_margin(self, forms: CutForms, rows: Rows) -> dict[int, float]:
        """t >= every row, in units of the largest term; returns the costs."""
        lines = self.lines(forms)
        lows, highs, largest = [], [], 0.0
        for line, rhs in zip(lines, rows.rhs.tolist(), strict=True):
            ends = np.stack([line.values * end for end in self.builder.range(line.columns)])
            slack = line.error + 1e-12 * (float(np.abs(ends).max(axis=0).sum()) + abs(line.constant) + abs(rhs))
            lows.append(line.constant - rhs + float(ends.min(axis=0).sum()) - slack)
            highs.append(line.constant - rhs + float(ends.max(axis=0).sum()) + slack)
            largest = max(largest, float((np.abs(line.values) * self.builder.unit[line.columns]).max(initial=0.0)))
        first = math.nan
        if self.values is not None:
            first = float(rows.residual(self.values[0], self.values[self.graph.output]).max())
        t = int(self.builder.variables(max(lows), max(highs), least=largest, start=first, centred=False)[0])
        for line, rhs in zip(lines, rows.rhs.tolist(), strict=True):
            row = np.append(line.columns, t), np.append(-line.values, 1.0)
            self.builder.row(*row, lower=line.constant - rhs, error=line.error + 2.0**-52 * (abs(rhs) + abs(line.constant)))
        return {t: 1.0}
