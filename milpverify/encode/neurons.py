"""A network's neurons as rows and columns of a model: what all models of it have in common.

Every pre-activation is written over the nearest cut nodes (nonlinear outputs and the input), which needs no knowledge of affine
operators; rounding in that composition is bounded and moved outwards into the rows. Neurons that are stable within their bounds are
linear or constant; the rest take binaries (`kinks`), or where the operator is curved, proved lines, and binaries where its box is
parted (`curves`). So the model of a curved network is a relaxation, and one that is not parted has no binaries for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from milpverify.encode.balls import add_ball
from milpverify.encode.curves import add_incremental, add_lines, add_parted, lines_of
from milpverify.encode.cut_forms import Composer, CutForms, Line
from milpverify.encode.encoding import ModelForm, Neurons, NodeRanges
from milpverify.encode.kinks import Argument, add_pieces
from milpverify.encode.model import ModelBuilder, NumericallyUnfit
from milpverify.encode.segments import touched_pieces
from milpverify.graph import evaluate_all
from milpverify.relaxations.registry import rule_of
from milpverify.solvers.base import Capability
from milpverify.solvers.model import Array, Index

if TYPE_CHECKING:
    from collections.abc import Iterator

    from milpverify.config import Deadline
    from milpverify.graph import Graph, Node
    from milpverify.operators import Nonlinear
    from milpverify.spec import Box

_CONDITION: Final = 2.0**-13
"""A pre-activation's unit is never smaller than this multiple of its largest term: solvers' tolerances are in units."""


@dataclass(frozen=True, eq=False)
class _Block:
    """The neurons of one nonlinear node that matter and are not constant, with what they read.

    `lower`, `upper` and `forms` are by input; forms come in chunks with their offset into index. `first` and `last` are the pieces that the
    bounds touch, None where the operator is curved; then outputs `fixed` by their inputs are only bounded.
    """

    node: Node
    index: Index  # (R,) flat
    fixed: Index
    lower: tuple[Array, ...]  # (R,)
    upper: tuple[Array, ...]
    forms: tuple[list[tuple[int, CutForms]], ...]
    first: Index | None = None  # (R,)
    last: Index | None = None


class NetworkEncoder:
    """Builds a model of a network over a box, backwards for what is needed, forwards for variables and rows; see `encode`.

    Args:
        graph: in float64 on the CPU.
        bounds: of every node, proved over the box.
        start: (nx,) an input to start from.
        deadline: when to give up.
        form: how neurons are held.

    Raises:
        NumericallyUnfit: bounds are not finite.
    """

    def __init__(
        self,
        graph: Graph,
        bounds: NodeRanges,
        box: Box,
        start: Array | None,
        deadline: Deadline | None,
        form: ModelForm,
    ) -> None:
        self.graph, self.box, self.form = graph, box, form
        self.lower: dict[int, Array] = {0: self.box.lower}
        self.upper: dict[int, Array] = {0: self.box.upper}
        for node in graph.nonlinear:
            read = [reading.node for reading in graph.readings[node]]
            for i in {node, *graph.nodes[node].inputs, *read} - {0}:
                a, b = (t.detach().reshape(-1).numpy().astype(np.float64) for t in bounds[i])
                if not (np.isfinite(a).all() and np.isfinite(b).all()):
                    what = f"{graph.nonlinearities[node]} ({graph.nodes[node].name or f'node {node}'})"
                    raise NumericallyUnfit(f"{what} has no finite bounds, or its input leaves its domain")
                self.lower[i], self.upper[i] = np.minimum(a, b), np.maximum(a, b)
        self.compose = Composer(graph, self.lower, self.upper, deadline, form.tuning)
        nodes = (0, *graph.nonlinear)
        self.column = {i: np.full(graph.nodes[i].size, -1, dtype=np.int64) for i in nodes}
        self.fixed = {i: np.zeros(graph.nodes[i].size) for i in nodes}  # the values of constant neurons
        self.arguments: dict[tuple[int, int], int] = {}  # (node, flat index) of what neurons read -> its column
        self.builder = ModelBuilder()
        self.unstable = 0
        self.neurons: list[Neurons] = []
        first = None if start is None else torch.from_numpy(np.clip(start, self.box.lower, self.box.upper))
        self.values = None if first is None else [v.reshape(-1).numpy() for v in evaluate_all(graph, first[None])]

    def add_network(self) -> None:
        """Variables and rows of all that is needed so far."""
        blocks = [block for node in reversed(self.graph.nonlinear) if (block := self._block(self.graph.nodes[node])) is not None]
        ball = self.graph.ball
        if ball is not None:
            self.compose.needed[0] |= ball.weight > 0
        self._add_values(0, np.flatnonzero(self.compose.needed[0]))
        if ball is not None:
            quadratic = Capability.QUADRATIC in self.form.native
            add_ball(self.builder, ball, self.column[0], (self.lower[0], self.upper[0]), quadratic, self.form.tuning)
        for block in reversed(blocks):
            self._add_block(block)

    # --- what some models have otherwise ---

    def is_native(self, node: Node, lower: tuple[Array, ...], upper: tuple[Array, ...]) -> bool:
        """Whether a curved node is left to the solver as it is, whose neurons read what lies within some bounds, (R,) each."""
        return is_taken(self.graph.nonlinearities[node.id], self.form.native)

    def units(self, cut: int) -> tuple[float, bool]:
        """The least unit of a node's quantities, and whether they may have another centre than 0."""
        return 0.0, True

    # --- backwards: the neurons that are needed ---

    def _block(self, node: Node) -> _Block | None:
        """Sort the neurons of a node by what their bounds say; constants are fixed and need nothing behind them."""
        need = np.flatnonzero(self.compose.needed[node.id])
        if not need.size:
            return None
        none = need[:0]
        if (pieces := self.graph.nonlinearities[node.id].pieces) is None:
            read = [self._read(node, place, need) for place in range(len(node.inputs))]
            free = np.any([low < high for _, _, low, high in read], axis=0)
            forms = tuple(self._forms(source, entry[free]) for source, entry, _, _ in read)
            lower, upper = tuple(low[free] for _, _, low, _ in read), tuple(high[free] for _, _, _, high in read)
            return _Block(node, need[free], need[~free], lower, upper, forms)
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
        return _Block(node, index, none, (low[keep],), (high[keep],), (self._forms(source, index),), first[keep], last[keep])

    def _forms(self, source: int, index: Index) -> list[tuple[int, CutForms]]:
        forms = self.compose.units(source, index)
        offsets = np.cumsum([0, *(len(form.constant) for form in forms)]).tolist()
        return list(zip(offsets[:-1], forms, strict=True))

    def _read(self, node: Node, place: int, index: Index) -> tuple[int, Index, Array, Array]:
        """What some neurons of a node read at a place: the variable's node, the entries there, and their bounds, (R,) each."""
        reading, source = self.graph.readings[node.id][place], node.inputs[place]
        entry = index if reading.index is None else reading.index.numpy()[index]
        low = np.maximum(self.lower[source][index], self.lower[reading.node][entry])
        high = np.minimum(self.upper[source][index], self.upper[reading.node][entry])
        return reading.node, entry, np.minimum(low, high), np.maximum(low, high)

    # --- forwards: variables and rows ---

    def _add_values(self, cut: int, index: Index) -> None:
        """Variables for entries of a cut node."""
        first = math.nan if self.values is None else self.values[cut][index]
        least, centred = self.units(cut)
        low, high = self.lower[cut][index], self.upper[cut][index]
        self.column[cut][index] = self.builder.variables(low, high, start=first, least=least, centred=centred)

    def lines(self, forms: CutForms) -> list[Line]:
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
        node = block.node
        self._add_values(node.id, np.concatenate([block.index, block.fixed]))
        if block.first is None or block.last is None:
            self._add_curved(block)
            return
        pieces, (source,) = self.graph.nonlinearities[node.id].pieces, node.inputs
        assert pieces is not None
        relaxed, none = self.form.relaxed, [None] * len(block.index)
        more = None if relaxed is None else relaxed.at(node.id, block.index)
        whole = lines_of(rule_of(node.op), block.lower, block.upper, list(none), more).whole if relaxed else None
        between, inputs = [], []
        for i, line in self._lines_of(block.forms[0]):
            first, last, y = int(block.first[i]), int(block.last[i]), int(self.column[node.id][block.index[i]])
            if first == last:
                self.equal(y, line.through(pieces.slopes[first], pieces.intercepts[first], self.builder))
                continue
            low, high = float(block.lower[0][i]), float(block.upper[0][i])
            x, at = self._argument(source, int(block.index[i]), line, low, high)
            if whole is None:
                self.unstable += 1
                add_pieces(self.builder, pieces, first, last, Argument(x, low, high, at), y)
            else:
                add_lines(self.builder, (node.id, int(block.index[i])), whole[i], [x], y)
            between.append(i)
            inputs.append(x)
        if inputs:
            index = block.index[between]
            self.neurons.append(Neurons(node.id, index, (np.array(inputs),), self.column[node.id][index], curved=False))

    def _lines_of(self, chunks: list[tuple[int, CutForms]]) -> Iterator[tuple[int, Line]]:
        for offset, forms in chunks:
            self.compose.check_time()
            yield from enumerate(self.lines(forms), start=offset)

    def _argument(self, source: int, entry: int, line: Line, low: float, high: float) -> tuple[int, float]:
        """The column of what a neuron reads, within its bounds, and a value to start from (NaN: none)."""
        at = math.nan if self.values is None else min(max(float(self.values[source][entry]), low), high)
        if (source, entry) not in self.arguments:
            terms = np.abs(line.values) * self.builder.unit[line.columns]
            least = max(_CONDITION * float(terms.max(initial=0.0)), self.units(source)[0])
            x = int(self.builder.variables(low, high, least=least, start=at)[0])
            self.equal(x, line)
            self.arguments[source, entry] = x
        return self.arguments[source, entry], at

    def _add_curved(self, block: _Block) -> None:
        """Lines, and either binaries where the neurons are parted or what the solver takes as it is."""
        node, builder, count = block.node, self.builder, len(block.index)
        native = self.is_native(node, block.lower, block.upper)
        cuts = [None if native else self.form.cuts.get((node.id, i)) for i in block.index.tolist()]
        more = None if self.form.relaxed is None else self.form.relaxed.at(node.id, block.index)
        found = lines_of(rule_of(node.op), block.lower, block.upper, cuts, more)
        inputs, starts = np.zeros((len(node.inputs), count), dtype=np.int64), np.zeros((len(node.inputs), count))
        for place, chunks in enumerate(block.forms):
            source, entry, _, _ = self._read(node, place, block.index)
            for i, line in self._lines_of(chunks):
                low, high = float(block.lower[place][i]), float(block.upper[place][i])
                copied = len(line.columns) == 1 and line.values[0] == 1.0 and line.constant == 0.0 == line.error
                if copied and source in self.column:
                    self.arguments.setdefault((source, int(entry[i])), int(line.columns[0]))
                inputs[place, i], starts[place, i] = self._argument(source, int(entry[i]), line, low, high)
        outputs = self.column[node.id][block.index]
        for r, (y, ends) in enumerate(zip(outputs.tolist(), found.ends, strict=True)):
            xs, cut = inputs[:, r].tolist(), cuts[r]
            add_lines(builder, (node.id, int(block.index[r])), found.whole[r], xs, y)
            if self.form.relaxed:
                continue
            if native:
                self._add_native(self.graph.nonlinearities[node.id], xs, y)
            elif self.graph.nonlinearities[node.id].staircase:
                whole = builder.integers(self.lower[node.id][block.index[r]], self.upper[node.id][block.index[r]])
                builder.row([int(whole[0]), y], [1.0, -1.0], 0.0, 0.0)
            elif ends is not None and cut is not None:
                self.unstable += 1
                if len(xs) == 1:
                    add_incremental(builder, ends, found.pieces[r], xs[0], y, float(starts[0, r]))
                else:
                    box = [(float(low[r]), float(high[r])) for low, high in zip(block.lower, block.upper, strict=True)]
                    add_parted(builder, ends, found.pieces[r], box, xs, cut.place, y, starts[:, r].tolist())
        self.neurons.append(Neurons(node.id, block.index, tuple(inputs), outputs, curved=True))

    def _add_native(self, op: Nonlinear, xs: list[int], y: int) -> None:
        """The operator as it is."""
        if op.bilinear:
            self.builder.row([y], [1.0], 0.0, 0.0, products=[(xs[0], xs[-1], -1.0)])
        else:
            assert op.term is not None
            self.builder.function(y, xs[0], op.name, op.term)

    def equal(self, column: int, line: Line) -> None:
        """The quantity of a column is the line."""
        row = np.append(line.columns, column), np.append(line.values, -1.0)
        self.builder.row(*row, lower=-line.constant, upper=-line.constant, error=line.error)


def is_taken(op: Nonlinear, native: frozenset[Capability]) -> bool:
    """Whether a solver that is left QUADRATIC products and squares, or FUNCTIONS, takes a curved operator as it is."""
    return Capability.QUADRATIC in native if op.bilinear else Capability.FUNCTIONS in native and op.term is not None
