"""Where copies of a network share weights: the network rewritten so that their differences are entries of their own.

A row asks for differences of outputs, y_i - y_j. Both are followed back side by side: functions of the catalogue to their arguments,
products to their factors (p q - r s = p (q - s) + (p - r) s), affine maps to what their rows read,

    U v - W w = U (v - w) + (U - W) w,

where the entries that only one of both reads correspond in their order and those that both read to themselves. What shares an input, or
the weights of a layer, cancels as a whole. So copies are found whether they are branches, rows of a batch, or blocks of one matrix; they
may differ by what quantisation or pruning changes, and share some of their inputs. Where the structures part, a difference is that of two
entries, as it would be without all this.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from milpverify.graph import Graph, Node, evaluate
from milpverify.operators import Affine, Concat, Elementwise, Input, Product, Sum
from milpverify.propagation.differences.coefficients import (
    DifferenceTuning,
    Matched,
    Places,
    alike,
    apart,
    bias_between,
    bias_of,
    less,
    row_by_row,
    size_of,
    without_bias,
)
from milpverify.propagation.differences.growing import Growing, whole
from milpverify.propagation.differences.operator import Difference


@dataclass(frozen=True, eq=False)
class Twins:
    """A network with differences of its entries.

    Attributes:
        graph: in float64. Its inputs are those of the network and then differences of them, x_i - x_j for the (i, j) in `pairs` (k, 2);
            its output the rows at the places `rows` (r,) of those asked for.
        origin: per node that holds the values of a node of the network, that node.
        kept: the nodes behind the differences, which bounds may be kept exact in: see `bounding`.
        shared: whether some inputs are read by both copies.
    """

    graph: Graph
    pairs: Tensor
    rows: Tensor
    origin: dict[int, int]
    kept: frozenset[int]
    shared: bool

    @cached_property
    def disjoint(self) -> Tensor:
        """The places of pairs none of whose inputs belongs to an earlier one, (m,)."""
        seen: set[int] = set()
        places = []
        for k, pair in enumerate(self.pairs.tolist()):
            if seen.isdisjoint(pair):
                seen.update(pair)
                places.append(k)
        return torch.tensor(places, dtype=torch.long, device=self.pairs.device)

    @staticmethod
    def of(graph: Graph, y_rows: Tensor, x_rows: Tensor | None = None, tuning: DifferenceTuning = DifferenceTuning()) -> Twins | None:
        """The network rewritten for rows on its outputs (r, ny) and its inputs (r, nx); None where it holds no twins."""
        if len(graph.nodes) > tuning.most_nodes or graph.ball is not None:
            return None
        return _Rewriting(graph, tuning=tuning).run(y_rows, x_rows)


@dataclass(frozen=True)
class _Found:
    """A node that holds a difference; None where this is exactly 0."""

    node: int | None


@dataclass(eq=False)
class _Rewriting(Growing):
    """What is known of pairs of entries, and of which inputs there are differences."""

    known: dict[tuple[object, ...], _Found | None] = field(default_factory=dict)
    slots: dict[tuple[int, int], int] = field(default_factory=dict)
    shared: bool = False
    tuning: DifferenceTuning = field(default=DifferenceTuning())

    def run(self, y_rows: Tensor, x_rows: Tensor | None) -> Twins | None:
        nx, output = self.graph.nx, self.graph.output
        self.add(Input(), (), (nx,))
        found: dict[tuple[int, int], int | None] = {}
        failed: set[tuple[int, int]] = set()
        paired: list[tuple[int, list[tuple[int, int]]]] = []
        for r, row in enumerate(y_rows.cpu()):
            pairs = self._opposites(row)
            for i, j in pairs:
                if (i, j) in found or (i, j) in failed:
                    continue
                if not found and len(failed) >= self.tuning.tries:
                    return None
                one = self._follow(output, torch.tensor([i], device="cpu"), output, torch.tensor([j], device="cpu"))
                if one is None:
                    failed.add((i, j))
                else:
                    found[i, j] = one.node
            if pairs := [pair for pair in pairs if pair in found]:
                paired.append((r, pairs))
        if not paired:
            return None
        self._rows(paired, found, y_rows, x_rows)
        # The differences of inputs are known now.
        size = nx + len(self.slots)
        nodes = [replace(node, shape=(size,)) if node.id == 0 else self.reading_all(node, size) for node in self.nodes]
        origin = {new: old for old, new in self.copies.items()}
        graph = Graph(tuple(nodes), len(nodes) - 1, dtype=self.graph.dtype, device=self.graph.device)
        inputs = torch.tensor(list(self.slots), dtype=torch.long, device=self.graph.device).reshape(-1, 2)
        rows = torch.tensor([r for r, _ in paired], device=self.graph.device)
        return Twins(graph, inputs, rows, origin, frozenset(self.kept), self.shared)

    # -- rows -----------------------------------------------------------------------------------------------------------------

    def _opposites(self, row: Tensor) -> list[tuple[int, int]]:
        """Outputs with opposite coefficients in a row: the closest in value where all inputs are the same, where there is a choice."""
        positive, negative = ((side.nonzero().flatten().tolist()) for side in (row > 0, row < 0))
        pairs = []
        for i in positive:
            may = [j for j in negative if row[j] == -row[i]]
            if may:
                certain = len(may) == len(positive) == 1 or len(row) > self.tuning.most_outputs
                nearest = may[0] if certain else min(may, key=lambda j: float(self._between[i, j]))
                negative.remove(nearest)
                pairs.append((i, nearest))
        return pairs

    @property
    def _between(self) -> Tensor:
        """How far outputs are from each other where all inputs are the same, (ny, ny)."""
        if "apart" not in self.__dict__:
            same = torch.tensor([[0.37], [-0.61], [1.13]], dtype=self.graph.dtype, device=self.graph.device).expand(-1, self.graph.nx)
            y = evaluate(self.graph, same).nan_to_num(0.0, 0.0, 0.0).T
            self.__dict__["apart"] = (y.unsqueeze(1) - y).abs().sum(2)
        apart: Tensor = self.__dict__["apart"]
        return apart

    def _rows(
        self,
        paired: list[tuple[int, list[tuple[int, int]]]],
        found: dict[tuple[int, int], int | None],
        y_rows: Tensor,
        x_rows: Tensor | None,
    ) -> None:
        """The last node: rows on differences, and on what is left of the outputs and the inputs."""
        count, rest = len(paired), y_rows[[r for r, _ in paired]].clone()
        columns = {pair: k for k, pair in enumerate(p for p, node in found.items() if node is not None)}
        weight = rest.new_zeros(count, len(columns))
        for r, (_, pairs) in enumerate(paired):
            for i, j in pairs:
                if (i, j) in columns:
                    weight[r, columns[i, j]] = rest[r, i]
                rest[r, i] = rest[r, j] = 0.0
        parts = []
        if columns:
            nodes = [found[pair] for pair in columns]
            each = [self.shaped(node, (1,)) for node in nodes if node is not None]
            parts.append(self.linear(weight, self.add(Concat(0, (1,) * len(each)), each, (len(each),)) if len(each) > 1 else each[0]))
        if bool(rest.any()):
            parts.append(self.linear(rest, self.copy(self.graph.output)))
        if x_rows is not None and bool((on_inputs := x_rows[[r for r, _ in paired]].clone()).any()):
            on_slots = on_inputs.new_zeros(count, len(self.slots))
            for (i, j), k in self.slots.items():
                same = on_inputs[:, i] == -on_inputs[:, j]
                on_slots[:, k] = torch.where(same, on_inputs[:, i], 0.0)
                on_inputs[:, i] = torch.where(same, 0.0, on_inputs[:, i])
                on_inputs[:, j] = torch.where(same, 0.0, on_inputs[:, j])
            if bool(on_slots.any()):
                parts.append(self.linear(on_slots, self.select(0, torch.arange(len(self.slots), device="cpu") + self.graph.nx)))
            if bool(on_inputs.any()):
                parts.append(self.linear(on_inputs, self.copy(0)))
        if not parts:  # all rows are 0
            parts = [self.linear(rest, self.copy(self.graph.output))]
        self.kept.add(self.sum(parts, (count,)))

    # -- differences ----------------------------------------------------------------------------------------------------------

    def _difference(self, a: int, i: Places, b: int, j: Places) -> _Found:
        """Entries of one node less entries of another: by structure where they have one in common, as it is where they have none."""
        found = self._follow(a, i, b, j)
        if found is not None:
            return found
        shape = self.common_shape(a, i, b, j)
        return _Found(self.add(Sum((1, -1)), (self.pick(a, i, shape), self.pick(b, j, shape)), shape))

    def _follow(self, a: int, i: Places, b: int, j: Places) -> _Found | None:
        """Entries of one node less entries of another by their common structure; None where they have none."""
        same = (i == j) if a == b else torch.zeros(len(i), dtype=torch.bool, device="cpu")
        if bool(same.all()):
            self.shared |= isinstance(self.graph.nodes[a].op, Input)
            return _Found(None)
        if bool(same.any()):
            found = self._follow(a, i[~same], b, j[~same])
            if found is None or found.node is None:
                return found
            self.shared |= isinstance(self.graph.nodes[a].op, Input)
            places = torch.where(same, -1, (~same).cumsum(0) - 1)
            return _Found(self.keep(self.select(found.node, places)))
        key = (a, b, tuple(i.tolist()), tuple(j.tolist()))
        if key not in self.known:
            self.known[key] = self._structure(a, i, b, j)
        return self.known[key]

    def _structure(self, a: int, i: Places, b: int, j: Places) -> _Found | None:
        first, second = self.graph.nodes[a], self.graph.nodes[b]
        shape = self.common_shape(a, i, b, j)
        match first.op, second.op:
            case Input(), Input():
                places = [self.slots.setdefault(pair, len(self.slots)) for pair in zip(i.tolist(), j.tolist(), strict=True)]
                return _Found(self.keep(self.select(0, (torch.tensor(places, device="cpu") + self.graph.nx).reshape(shape))))
            case Elementwise(function), Elementwise(other) if function == other:
                found = self._follow(first.inputs[0], i, second.inputs[0], j)
                if found is None or found.node is None:
                    return found
                sources = self.pick(first.inputs[0], i, shape), self.pick(second.inputs[0], j, shape), self.shaped(found.node, shape)
                return _Found(self.keep(self.add(Difference(function), sources, shape)))
            case Product(), Product():
                return self._product(first, i, second, j, shape)
            case Affine(), Affine():
                every = a != b and whole(i, first) and whole(j, second)
                return self._layers(first, second) if every and alike(first, second, self.graph) else self._by_entries(first, i, second, j)
            case _:  # of other kinds the values are subtracted as they are
                return None

    def _product(self, first: Node, i: Places, second: Node, j: Places, shape: tuple[int, ...]) -> _Found | None:
        (p, q), (r, s) = first.inputs, second.inputs
        found = [self._follow(p, i, r, j), self._follow(q, i, s, j)]
        if all(one is None for one in found):
            return None
        left, right = (one or self._difference(x, i, y, j) for one, (x, y) in zip(found, ((p, r), (q, s)), strict=True))
        parts = []
        if right.node is not None:
            parts.append(self.keep(self.add(Product(), (self.pick(p, i, shape), self.shaped(right.node, shape)), shape)))
        if left.node is not None:
            parts.append(self.keep(self.add(Product(), (self.shaped(left.node, shape), self.pick(s, j, shape)), shape)))
        return _Found(self.keep(self.sum(parts, shape)) if parts else None)

    def _layers(self, first: Node, second: Node) -> _Found | None:
        """Two whole affine nodes of one kind."""
        assert isinstance(first.op, Affine) and isinstance(second.op, Affine)
        places = [torch.arange(self.graph.nodes[s].size, device="cpu") for s in first.inputs]
        sources = list(zip(first.inputs, second.inputs, places, strict=True))
        change, exact = apart(first.op, second.op)
        if change is not None and size_of(change) > self.tuning.close * size_of(first.op):
            return None
        found = [self._follow(s, p, t, p) for s, t, p in sources]
        if all(one is None for one in found):
            return None
        done = [one or self._difference(s, p, t, p) for one, (s, t, p) in zip(found, sources, strict=True)]
        bias, exact_bias = bias_between(first, second)
        parts = []
        if any(one.node is not None for one in done):
            shapes = [self.graph.nodes[s].shape for s in first.inputs]
            pairs = zip(done, shapes, strict=True)
            nodes = [self.zero(shape) if one.node is None else self.shaped(one.node, shape) for one, shape in pairs]
            parts.append(self.keep(self.add(without_bias(first.op), nodes, first.shape)))
        if change is not None:
            op = change if exact else replace(change, rounded=1)  # type: ignore[type-var]
            parts.append(self.keep(self.add(op, [self.copy(t) for t in second.inputs], first.shape)))
        if bias is not None:
            parts.append(self.keep(self.constant(bias, first.shape, exact_bias)))
        return _Found(self.keep(self.sum(parts, first.shape)) if parts else None)

    def _by_entries(self, first: Node, i: Places, second: Node, j: Places) -> _Found | None:
        """Two rows of affine functions, coefficient by coefficient."""
        a, b = first.op, second.op
        assert isinstance(a, Affine) and isinstance(b, Affine)
        if (
            a.rounded
            or b.rounded
            or len(i) * max(sum(self.graph.nodes[s].size for s in n.inputs) for n in (first, second)) > self.tuning.most_coefficients
        ):
            return None
        u, w = self._matrix(first, i), self._matrix(second, j)
        single = all(bool(((rows != 0).sum(1) <= 1).all()) for rows in (u, w))
        matched = row_by_row(u, w) if single else self._columns(first, u, second, w)
        if matched is None:
            return None
        u, w, k, m = matched
        change, exact = less(u, w)
        if float(change.norm()) > self.tuning.close * float(u.norm()):
            return None
        owners_a, owners_b = self._owners(first)[k], self._owners(second)[m]
        groups = torch.unique(torch.stack([owners_a[:, 0], owners_b[:, 0]], 1), dim=0).tolist()
        chosen = [(owners_a[:, 0] == s) & (owners_b[:, 0] == t) for s, t in groups]
        found = [self._follow(s, owners_a[c, 1], t, owners_b[c, 1]) for (s, t), c in zip(groups, chosen, strict=True)]
        if found and all(one is None for one in found):
            return None
        parts = []
        for (s, t), c, one in zip(groups, chosen, found, strict=True):
            done = one or self._difference(s, owners_a[c, 1], t, owners_b[c, 1])
            if done.node is not None:
                parts.append(self.keep(self.linear(u[:, c], self.shaped(done.node, (int(c.sum()),)))))
            if bool(change[:, c].any()):
                used = change[:, c].any(0)
                values = self.pick(t, owners_b[c, 1][used], (int(used.sum()),))
                parts.append(self.keep(self.linear(change[:, c][:, used], values, 0 if exact else 1)))
        shape = self.common_shape(first.id, i, second.id, j)
        bias, exact_bias = less(*(bias_of(n)[p] for n, p in ((first, i), (second, j))))
        if bool(bias.any()):
            parts.append(self.keep(self.constant(bias, (len(i),), exact_bias)))
        return _Found(self.keep(self.shaped(self.sum(parts, (len(i),)), shape)) if parts else None)

    def _matrix(self, node: Node, places: Places) -> Tensor:
        """Rows of an affine node on the entries of all its inputs, (n, entries)."""
        assert isinstance(node.op, Affine)
        return torch.cat([part.flatten(1) for part in node.op.rows(places.to(self.graph.device), node.shape)], 1).double().cpu()

    def _owners(self, node: Node) -> Tensor:
        """Per entry of all inputs of a node, the node that it belongs to and its place there, (entries, 2)."""
        each = [(s, torch.arange(self.graph.nodes[s].size, device="cpu")) for s in node.inputs]
        return torch.cat([torch.stack([torch.full_like(p, s), p], 1) for s, p in each])

    def _columns(self, first: Node, u: Tensor, second: Node, w: Tensor) -> Matched | None:
        """Columns of the coefficients that correspond."""
        one, other = ((m != 0).any(0) for m in (u, w))
        if first.id != second.id and [self.graph.nodes[s].shape for s in first.inputs] == [
            self.graph.nodes[s].shape for s in second.inputs
        ]:
            both = (one | other).nonzero().flatten()
            return u[:, both], w[:, both], both, both
        if first.id != second.id:
            both = torch.zeros(0, dtype=torch.long, device="cpu")
        else:
            both, one, other = (one & other).nonzero().flatten(), one & ~other, other & ~one
        rest_a, rest_b = one.nonzero().flatten(), other.nonzero().flatten()
        if len(rest_a) != len(rest_b):
            return None
        k, m = torch.cat([both, rest_a]), torch.cat([both, rest_b])
        return u[:, k], w[:, m], k, m
