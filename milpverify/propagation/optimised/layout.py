"""Which entries a root's boxes leave relaxed, and where their lines' parameters stand: what the optimiser and the rigorous pass share."""

from __future__ import annotations

from functools import cached_property
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from milpverify.propagation.backward import LineTable, ends_of
from milpverify.propagation.optimised.dual import Domain, Kind, Open, one_after_another
from milpverify.relaxations.registry import rule_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from milpverify.graph import Graph
    from milpverify.propagation.optimised.dual import Columns
    from milpverify.propagation.relevance import Needed
    from milpverify.propagation.state import State
    from milpverify.relaxations.rule import Rule


class Layout:
    """The open entries of a root's boxes: those of variables whose relaxation is not exact in some box.

    T is their number. `slots` are the variables that may have some, ascending, the same for every state; `entries` which they are, and
    `columns` where they are among all T, per variable; `opened` and `kinds` the open entries of nonlinear nodes, one by one and by rule;
    `stable` the slopes of their other entries; `low`, `high` and `center` (boxes, T); `split_for` (T,) the column to split for each;
    `width` the number of parameters.

    Args:
        graph: in the precision of the matrices.
        state: of a batch of boxes, with charges of that precision.
        target: the node whose rows are bounded.
        lines: of the nonlinear nodes before it, that hold on the boxes.
        needed: the entries that the rows to be bounded depend on; the others are not open.
    """

    def __init__(self, graph: Graph, state: State, target: int, lines: LineTable, needed: Needed) -> None:
        self.graph, self.state, self.target = graph, state, target
        loose = {i: _loose(graph, i, state, needed.get(i)) for i in lines}
        still_open = _opened_variables(graph, loose)
        self.slots = sorted(still_open)
        self.entries = {z: still_open[z].nonzero(as_tuple=True)[0] for z in self.slots}
        ends = list(accumulate((len(self.entries[z]) for z in self.slots), initial=0))
        self.columns = {z: slice(*stretch) for z, stretch in zip(self.slots, pairwise(ends), strict=True)}
        place = {z: torch.cumsum(mask, 0) - 1 + self.columns[z].start for z, mask in still_open.items()}
        found: dict[Rule, list[tuple[int, Tensor, tuple[Columns, ...]]]] = {}
        for i in lines:
            rule, readings = rule_of(graph.nodes[i].op), graph.readings[i]
            whole = len(readings) == 1 and readings[0].index is None
            index = self.entries[readings[0].node] if whole else loose[i].nonzero(as_tuple=True)[0]
            columns = [self.columns[r.node] if whole else place[r.node][index if r.index is None else r.index[index]] for r in readings]
            found.setdefault(rule, []).append((i, index, tuple(columns)))
        self.width = 0
        self.kinds: list[Kind] = []
        opened = {open_part.node: open_part for rule, parts in found.items() for open_part in self._lay_out(rule, parts)}
        self.opened: dict[int, Open] = {i: opened[i] for i in lines}
        # The slopes of what is stable at the root, zero at open entries.
        self.stable = {i: tuple(k.flatten(1).index_fill(1, o.index, 0.0) for k in lines[i].k_lower) for i, o in opened.items()}
        every = [(state[z].bounds.lower, state[z].bounds.upper, state[z].center) for z in self.slots]
        none = state[0].center[:, :0]
        self.low, self.high, self.center = (
            torch.cat([none, *(t[k].flatten(1)[:, self.entries[z]] for z, t in zip(self.slots, every, strict=True))], 1) for k in range(3)
        )
        # Variables that are functions of others: their columns, and those of what they are functions of.
        self.derived: list[tuple[Rule, slice, Tensor]] = []
        self.split_for = torch.arange(ends[-1], device=graph.device)
        for y in self.slots:
            if y in self.opened and len(self.opened[y].columns) == 1:
                source = place[graph.readings[y][0].node][self.entries[y]]
                self.derived.append((self.opened[y].rule, self.columns[y], source))
                self.split_for[self.columns[y]] = self.split_for[source]

    @property
    def count(self) -> int:
        """T."""
        return len(self.split_for)

    @cached_property
    def first(self) -> dict[int, int]:
        """Per variable the first node that is a function of it, with open entries in the same order; some have none."""
        found: dict[int, int] = {}
        for i, o in self.opened.items():
            if isinstance(o.columns[0], slice):
                found.setdefault(self.graph.nodes[i].inputs[0], i)
        return found

    def _lay_out(self, rule: Rule, parts: Sequence[tuple[int, Tensor, tuple[Columns, ...]]]) -> list[Open]:
        """Give the entries of all nodes of a kind their places among the parameters: lower lines first, then upper ones."""
        sizes, device = [len(index) for _, index, _ in parts], self.graph.device
        starts = [sum(sizes[:k]) for k in range(len(sizes))]
        sides: list[slice | None] = []
        for matters in rule.matters:
            sides.append(slice(self.width, self.width + sum(sizes)) if matters else None)
            self.width += sum(sizes) if matters else 0
        if sum(sizes):
            some = [(i, index, columns) for i, index, columns in parts if len(index)]
            value = torch.cat([self.state[i].center.flatten(1)[:, index] for i, index, _ in some], 1)
            columns = tuple(one_after_another(c, device) for c in zip(*(c for _, _, c in some), strict=True))
            nodes, counts = tuple(i for i, _, _ in some), tuple(len(index) for _, index, _ in some)
            self.kinds.append(Kind(rule, nodes, counts, columns, sides[0], sides[1], value))
        made = []
        for (i, index, columns), start, size in zip(parts, starts, sizes, strict=True):
            lower, upper = (None if part is None else slice(part.start + start, part.start + start + size) for part in sides)
            made.append(Open(i, rule, index, columns, lower, upper))
        return made

    def derive(self, low: Tensor, high: Tensor) -> None:
        """Clamp the variables that are functions of others to what bounds (n, T) of these imply, in place."""
        for rule, here, source in self.derived:
            least, most = rule.range((low[:, source],), (high[:, source],))
            low[:, here] = torch.maximum(low[:, here], least)
            high[:, here] = torch.minimum(high[:, here], most)

    def own(self, values: Tensor, box: Tensor) -> Tensor:
        """What belongs to each subproblem's box, of values (batch, ...)."""
        return values.expand(len(box), *values.shape[1:]) if len(values) == 1 else values[box]

    def domain(self, box: Tensor) -> Domain:
        """The boxes themselves, `box` (n,), as subproblems without splits."""
        none = torch.zeros(len(box), 0, device=box.device)
        return Domain(box, self.own(self.low, box), self.own(self.high, box), none.long(), none, none.double())

    def slopes(self, table: LineTable, box: Tensor) -> Tensor:
        """The parameters of some lines without rows of their own, in the layout of `Dual.slopes` but for the rows: (n, P)."""
        made = self.low.new_empty(len(self.low), self.width, dtype=self.graph.dtype)
        for kind in self.kinds:
            ends = tuple(self.low[:, c] for c in kind.columns), tuple(self.high[:, c] for c in kind.columns)
            for which, part in enumerate((kind.lower, kind.upper)):
                if part is not None:
                    sides = ((table[i].k_lower, table[i].k_upper)[which] for i in kind.nodes)
                    by_node = [
                        tuple(k.flatten(1)[:, self.opened[i].index] for k in side) for i, side in zip(kind.nodes, sides, strict=True)
                    ]
                    slopes = tuple(torch.cat(k, 1) for k in zip(*by_node, strict=True))
                    made[:, part] = kind.rule.parameters(*ends, which, slopes).to(made.dtype)
        return self.own(made, box)


def _opened_variables(graph: Graph, loose: dict[int, Tensor]) -> dict[int, Tensor]:
    """Per variable that something open reads, which of its entries are open, (size,) bool.

    Args:
        loose: per nonlinear node, in topological order, the entries that are relaxed.
    """
    found: dict[int, Tensor] = {}
    for i in reversed(loose):
        # What a function makes of a variable that something else reads is open with it.
        opening = loose[i] | found[i] if i in found and len(graph.nodes[i].inputs) == 1 else loose[i]
        for reading in graph.readings[i]:
            mask = found.setdefault(reading.node, torch.zeros(graph.nodes[reading.node].size, dtype=torch.bool, device=graph.device))
            mask[opening if reading.index is None else reading.index[opening]] = True
    return found


def _loose(graph: Graph, node: int, state: State, needed: Tensor | None) -> Tensor:
    """Which entries of a nonlinear node are relaxed in some box and matter, (size,) bool."""
    loose = ~rule_of(graph.nodes[node].op).is_exact(*ends_of(graph, node, state)).flatten(1)
    if needed is not None:  # zero times an infinite slope or intercept is no number
        known = [state[i].bounds for i in (node, *graph.nodes[node].inputs)]
        infinite = torch.stack([torch.isinf(side).flatten(1) for b in known for side in (b.lower, b.upper)]).any(0)
        loose = loose & (needed | infinite)
    return loose.any(0)
