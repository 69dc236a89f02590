"""Entries of a network that say the same, found and merged: equal ones, and relus of opposite arguments.

Lattices of minima and maxima, networks whose neurons were split, and those that pass a value on as relu(z) - relu(-z), compute many
entries several times, or with either sign. Bounded one by one they are as many relaxations, which know nothing of each other. With

    relu(-z) = relu(z) - z

one of them is left, and what reads both reads z itself: min(a, b), written with four relus, becomes a - relu(a - b). What cancels then
does so exactly, and makes further entries equal, layer by layer. Coefficients are only added up, or multiplied along one path, and only
where float64 holds the results: the network is the same in the reals, constant for constant, or is left as it was. Its own runtime rounds
what cancels here, so that the two are compared before entries are merged.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from milpverify.frontends.lowering.rule import LoweringTuning
from milpverify.graph import Graph, Node
from milpverify.operators import Elementwise, Linear, Operator, Reshape, Select, SparseLinear, Sum

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Entry = tuple[int, int]
"""A node of the graph that grows, and a place in it."""


@dataclass(frozen=True)
class _Row:
    """An affine function of entries: `terms` (entry, coefficient other than 0) in order, and a constant."""

    terms: tuple[tuple[Entry, float], ...]
    constant: float = 0.0

    @property
    def opposite(self) -> _Row:
        return _Row(tuple((entry, -c) for entry, c in self.terms), 0.0 - self.constant)


class _Inexact(Exception):
    """A coefficient that float64 does not hold."""


def without_repeats(graph: Graph, tuning: LoweringTuning = LoweringTuning()) -> Graph:
    """The same function in fewer entries, exactly in the reals; the graph itself where there is nothing to merge.

    Args:
        graph: in float64.
        tuning: `coefficients` beyond which nothing is tried.
    """
    maps = {node.id: op for node in graph.nodes if (op := _map_of(node)) is not None}
    if any(op.rounded for op in maps.values()) or sum(_coefficients(op).numel() for op in maps.values()) > tuning.coefficients:
        return graph
    readers = (node for node in graph.nodes if isinstance(node.op, Elementwise) and node.inputs[0] in maps)
    if not any(_repeats(maps[node.inputs[0]], node.size, node.applies("relu")) for node in readers):
        return graph
    try:
        return _Merging(graph).run()
    except _Inexact:
        return graph


@dataclass(eq=False)
class _Merging:
    """The graph that grows: `place` says where the entries of an old node are, and `waiting` holds arguments of relus that wait.

    A map whose one reader is a relu with a map for its one reader waits for that map: which of the relus it needs is known then.
    """

    graph: Graph
    nodes: list[Node] = field(default_factory=list)
    place: dict[int, tuple[int, list[int]]] = field(default_factory=dict)
    waiting: dict[int, list[_Row]] = field(default_factory=dict)

    def run(self) -> Graph:
        for node in self.graph.nodes:
            if node.id in self.waiting:
                continue  # the relu of what waits
            if (op := _map_of(node)) is not None:
                self._map(node, op)
            elif isinstance(node.op, Elementwise):
                source, index = self.place[node.inputs[0]]
                self.place[node.id] = self._apply(node, source), index
            else:
                made = self._add(node.op, [self._whole(i) for i in node.inputs], node.shape, node.name)
                self.place[node.id] = made, list(range(node.size))
        output = self._whole(self.graph.output)
        return replace(self.graph, nodes=tuple(self.nodes), output=output)

    def _map(self, node: Node, op: Linear | SparseLinear) -> None:
        rows = self._rows(node, op)
        readers = self.graph.consumers[node.id]
        if len(readers) == 1 and self.graph.nodes[readers[0]].applies("relu"):
            after = self.graph.consumers[readers[0]]
            if len(after) == 1 and _map_of(self.graph.nodes[after[0]]):
                self.waiting[readers[0]] = rows
                return
        self._form(node, rows)

    def _rows(self, node: Node, op: Linear | SparseLinear) -> list[_Row]:
        """The rows of a map, over entries of the new graph."""
        source, (row, column, values) = node.inputs[0], _triples(op)
        bias = torch.zeros(node.size) if op.bias is None else op.bias.flatten().expand(node.size)
        sums: list[dict[Entry, list[float]]] = [defaultdict(list) for _ in range(node.size)]
        constants = [[b] for b in bias.tolist()]
        triples = list(zip(row.tolist(), column.tolist(), values.tolist(), strict=True))
        if source not in self.waiting:
            new, index = self.place[source]
            for i, j, w in triples:
                sums[i][new, index[j]].append(w)
            return [_row(s, c) for s, c in zip(sums, constants, strict=True)]
        stands_for, arguments = self._relus(source, triples)
        for i, j, w in triples:
            relu, mirrored = stands_for[j]
            if relu is not None:
                sums[i][relu].append(w)
            if mirrored is not None:  # relu(-z) = relu(z) - z
                for entry, c in arguments[mirrored].terms:
                    sums[i][entry].append(_product(-w, c))
                constants[i].append(_product(-w, arguments[mirrored].constant))
        return [_row(s, c) for s, c in zip(sums, constants, strict=True)]

    def _relus(self, relu: int, triples: Sequence[tuple[int, int, float]]) -> tuple[list[tuple[Entry | None, int | None]], list[_Row]]:
        """Per entry of a relu, the new entry that it is (None: 0), and the place of the argument whose opposite it is of, if it is."""
        arguments = self.waiting[relu]
        first: dict[_Row, int] = {}
        mirrors: list[tuple[int, bool]] = []
        for j, argument in enumerate(arguments):
            if argument not in first and (opposite := argument.opposite) in first and argument.terms:
                mirrors.append((first[opposite], True))
            else:
                mirrors.append((first.setdefault(argument, j), False))
        needed: dict[tuple[int, int], list[float]] = defaultdict(list)
        for i, j, w in triples:
            needed[i, mirrors[j][0]].append(w)
        zero = {j for j, argument in enumerate(arguments) if not argument.terms and argument.constant <= 0}
        used = sorted({j for (_, j), ws in needed.items() if _total(ws) != 0} - zero)
        entries: dict[int, Entry] = {}
        if used:
            node = self.graph.nodes[relu]
            before = self.graph.nodes[node.inputs[0]]
            values = self._apply(node, self._form(before, [arguments[j] for j in used], whole=len(used) == before.size))
            entries = {j: (values, k) for k, j in enumerate(used)}
        return [(entries.get(j), j if mirrored else None) for j, mirrored in mirrors], arguments

    def _form(self, node: Node, rows: list[_Row], whole: bool = True) -> int:
        """The node that holds some rows, each once; `whole`: they are those of an old node, which is then to be found there."""
        number = {row: k for k, row in enumerate(dict.fromkeys(rows))}
        sources = sorted({entry[0] for row in number for entry, _ in row.terms}) or [0]
        shape = (*node.shape[:-1], len(number))
        bias = torch.tensor([row.constant for row in number], dtype=torch.float64)
        parts = []
        for source in sources:
            places, columns, values = [], [], []
            for row, k in number.items():
                for (owner, column), c in row.terms:
                    if owner == source:
                        places.append(k)
                        columns.append(column)
                        values.append(c)
            weight = torch.zeros(len(number), self.nodes[source].size, dtype=torch.float64)
            weight[places, columns] = torch.tensor(values, dtype=torch.float64)
            dense = Linear(weight, bias if source == sources[0] and bool((bias != 0).any()) else None)
            own = (*self.nodes[source].shape[:-1], len(number))
            parts.append(self._add(SparseLinear.of(dense) or dense, (source,), own, f"{node.name} (part)"))
        made = parts[0] if len(parts) == 1 else self._add(Sum((1,) * len(parts)), parts, shape, f"{node.name} (part)")
        if (own := self.nodes[made].shape) != shape:  # constants, which stand on the input: it has one axis
            made = self._add(Reshape(own, shape), (made,), shape, f"{node.name} (part)")
        if whole:
            if len(number) == node.size:
                self.nodes[made] = replace(self.nodes[made], name=node.name)
            self.place[node.id] = made, [number[row] for row in rows]
        return made

    def _apply(self, node: Node, source: int) -> int:
        """A function of all entries of a new node."""
        made = self.nodes[source]
        return self._add(node.op, (source,), made.shape, node.name if made.size == node.size else f"{node.name} (part)")

    def _add(self, op: Operator, inputs: Iterable[int], shape: tuple[int, ...], name: str) -> int:
        self.nodes.append(Node(len(self.nodes), op, tuple(inputs), shape, name))
        return len(self.nodes) - 1

    def _whole(self, old: int) -> int:
        """The new node that holds an old one's entries in their order."""
        (new, index), node = self.place[old], self.graph.nodes[old]
        if index == list(range(self.nodes[new].size)):
            return new
        return self._add(Select(torch.tensor(index).reshape(node.shape), self.nodes[new].shape), (new,), node.shape, node.name)


def _map_of(node: Node) -> Linear | SparseLinear | None:
    """The matrix that a node is, of one row of entries."""
    return node.op if isinstance(node.op, Linear | SparseLinear) and node.size == node.shape[-1] else None


def _coefficients(op: Linear | SparseLinear) -> Tensor:
    return op.values if isinstance(op, SparseLinear) else op.weight


def _triples(op: Linear | SparseLinear) -> tuple[Tensor, Tensor, Tensor]:
    """The rows, columns and values of a map's coefficients other than 0."""
    if isinstance(op, SparseLinear):
        return op.row, op.column, op.values
    row, column = op.weight.nonzero(as_tuple=True)
    return row, column, op.weight[row, column]


def _repeats(op: Linear | SparseLinear, size: int, opposite: bool) -> bool:
    """Whether two rows of a map may be the same, or opposite where that counts: told by their products with one vector at random."""
    row, column, values = _triples(op)
    width = int(column.max()) + 1 if len(column) else 0
    factors = torch.rand(width + 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = torch.zeros(size, dtype=torch.float64).index_add(0, row, values * factors[column])
    if op.bias is not None:
        found = found + op.bias.flatten() * factors[width]
    ordered = (found.abs() if opposite else found).sort().values
    return bool((ordered.diff() <= 1e-12 * ordered[1:].abs()).any())


def _row(sums: dict[Entry, list[float]], constants: list[float]) -> _Row:
    terms = ((entry, _total(parts)) for entry, parts in sorted(sums.items()))
    return _Row(tuple((entry, c) for entry, c in terms if c != 0), _total(constants) + 0.0)


def _total(parts: Sequence[float]) -> float:
    """An exact sum.

    Raises:
        _Inexact: float64 does not hold it.
    """
    if len(parts) == 1:
        return parts[0]
    try:
        total = math.fsum(parts)
    except OverflowError as error:
        raise _Inexact from error
    if math.fsum([*parts, -total]) != 0:
        raise _Inexact
    return total


def _product(a: float, b: float) -> float:
    """An exact product.

    Raises:
        _Inexact: float64 does not hold it.
    """
    if abs(a) == 1:
        return a * b
    product = a * b
    if not math.isfinite(product) or Fraction(a) * Fraction(b) != Fraction(product):
        raise _Inexact
    return product
