"""Affine forms of pre-activations over the cut nodes, composed backwards through affine operators, with their rounding bounded.

The cut nodes are the input and the outputs of nonlinear nodes; a row of a node is written over the nearest of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from milpverify.encode.encoding import EncodingTuning
from milpverify.encode.model import OutOfTime
from milpverify.graph import affine_form
from milpverify.operators import Affine

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from milpverify.config import Deadline
    from milpverify.encode.model import ModelBuilder
    from milpverify.graph import Graph
    from milpverify.solvers.model import Array, Index
    from milpverify.spec import Rows

Split = tuple[int, int, float, float]
"""A split decision side * (z - point) >= 0 as (node of z, flat index of z, side, point)."""


@dataclass(frozen=True, eq=False)
class CutForms:
    """R affine forms over cut nodes, sparse: per cut node (row, flat index there, coefficient); `error` bounds their rounding."""

    entries: dict[int, tuple[Index, Index, Array]]
    constant: Array  # (R,)
    error: Array  # (R,)


@dataclass(frozen=True, eq=False)
class Line:
    """values . quantities[columns] + constant, up to `error`."""

    columns: Index
    values: Array
    constant: float
    error: float

    def through(self, slope: float, intercept: float, builder: ModelBuilder) -> Line:
        """slope times this line plus intercept."""
        if slope == 1.0 and intercept == 0.0:
            return self
        values = slope * self.values
        low, high = builder.range(self.columns)
        size = float(np.abs(values) @ np.maximum(np.abs(low), np.abs(high))) + abs(slope * self.constant) + abs(intercept)
        return Line(self.columns, values, slope * self.constant + intercept, abs(slope) * self.error + 2.0**-51 * size)


class Composer:
    """Composes rows of nodes from the cut nodes, whose bounds are given; `needed` collects the entries of cut nodes that rows use."""

    def __init__(
        self,
        graph: Graph,
        lower: Mapping[int, Array],
        upper: Mapping[int, Array],
        deadline: Deadline | None,
        tuning: EncodingTuning = EncodingTuning(),
    ) -> None:
        self.graph, self.lower, self.upper, self.deadline, self.tuning = graph, lower, upper, deadline, tuning
        self.needed = {i: np.zeros(graph.nodes[i].size, dtype=bool) for i in (0, *graph.nonlinear)}
        self.reach = self._reaches()

    def forms(self, node: int, rows: Tensor, x_rows: Array | None = None, units: bool = False) -> CutForms:
        """Rows of a node over the cut nodes, with a bound of the rounding in composing them (Higham, section 3.1).

        Args:
            rows: (n, *node.shape) float64.
            x_rows: (n, nx), to be added to what the rows are over the inputs.
            units: whether the rows are unit vectors, so that one affine step from the cut nodes rounds nothing.
        """
        self.check_time()
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
        return CutForms(entries, form.constant.numpy(), error)

    def units(self, node: int, index: Index) -> list[CutForms]:
        """The forms of some entries of a node, in chunks of at most `tuning.entries` entries of dense rows, and one row at least."""
        size = self.graph.nodes[node].size
        width = max(size, *(self.graph.nodes[i].size for i in self.graph.ancestors[node]))
        step = max(1, self.tuning.entries // width)
        forms = []
        for offset in range(0, len(index), step):
            part = index[offset : offset + step]
            units = torch.zeros(len(part), size, dtype=torch.float64)
            units[torch.arange(len(part)), torch.from_numpy(part)] = 1.0
            forms.append(self.forms(node, units.reshape(len(part), *self.graph.nodes[node].shape), units=True))
        return forms

    def rows(self, rows: Rows) -> CutForms:
        """The forms of rows over inputs and outputs."""
        y = torch.from_numpy(np.array(rows.y_rows, dtype=np.float64))
        return self.forms(self.graph.output, y, rows.x_rows if rows.mentions_x.any() else None)

    def splits(self, decisions: Sequence[Split]) -> list[tuple[CutForms, list[float], list[float]]]:
        """Per node, the forms of the pre-activations with decisions, their sides and their points."""
        found = []
        for node in sorted({d[0] for d in decisions}):
            here = [d for d in decisions if d[0] == node]
            units = torch.zeros(len(here), self.graph.nodes[node].size, dtype=torch.float64)
            units[torch.arange(len(here)), torch.tensor([d[1] for d in here])] = 1.0
            forms = self.forms(node, units.reshape(len(here), *self.graph.nodes[node].shape), units=True)
            found.append((forms, [d[2] for d in here], [d[3] for d in here]))
        return found

    def check_time(self) -> None:
        """Raise OutOfTime where the deadline has come."""
        if self.deadline is not None and self.deadline.expired():
            raise OutOfTime("the time is over before the model is built")

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
