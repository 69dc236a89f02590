"""Candidate splits of subproblems, their children's intervals, and the entries of nonlinear nodes that these relax anew."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from milpverify.propagation.optimised.dual import accumulate

if TYPE_CHECKING:
    from milpverify.propagation.optimised.beta import Domain, Relaxations
    from milpverify.propagation.optimised.dual import Columns, Open, Passed, Primal
    from milpverify.relaxations.rule import PerInput, Rule
    from milpverify.search.neuron_split.split_points import Points


class Consumers:
    """Per nonlinear node of a root, its open entries by the variable whose split moves an input of theirs."""

    def __init__(self, of: Relaxations) -> None:
        self.of = of
        self.table: dict[int, tuple[Tensor, Tensor, Tensor]] = {}  # per node: entries by variable, where each's begin, how many
        for i, o in of.opened.items():
            if not len(o.index):
                continue
            every = torch.arange(len(o.index), device=o.index.device)
            pairs = torch.cat([torch.stack([of.split_for[columns], every], 1) for columns in o.columns]).unique(dim=0)
            count = torch.bincount(pairs[:, 0], minlength=of.count)
            self.table[i] = pairs[:, 1], torch.cumsum(count, 0) - count, count

    @property
    def fan(self) -> float:
        """How many entries a split relaxes anew, on average."""
        return sum(len(entries) for entries, _, _ in self.table.values()) / max(1, self.of.count)


@dataclass(frozen=True, eq=False)
class Relaxed:
    """Entries of nodes of one kind that candidates relax anew, E of them.

    `sub`, `pair` (E,): the subproblem, and the candidate among n * C; per input: `columns` (E,) the variables read, `low`, `high` and
    `center` (E, 1) what is known of them, `children` (2, E, 1) the lower and upper bounds in both children, `attained` (E, r) where they
    are in the parent's bound. `value` (E, 1) is the reference value of the output, `arrived` (E, r) the multipliers there; `steep`
    (E, r) per input and `constant` (E, r) what the parent's lines, whose slopes are `below` and `above`, make of these.
    """

    rule: Rule
    sub: Tensor
    pair: Tensor
    columns: PerInput
    low: PerInput
    high: PerInput
    center: PerInput
    children: tuple[PerInput, PerInput]
    attained: PerInput
    value: Tensor
    arrived: Tensor
    below: PerInput
    above: PerInput
    steep: PerInput
    constant: Tensor

    def changed(self) -> list[tuple[PerInput, Tensor]]:
        """What the children's lines make of the multipliers more than the parent's: slopes and constants at the reference, (2, E, r).

        The first are their default lines, the second those with the parent's slopes.
        """
        default = self.rule.default_slopes(*self.children)
        wide = [torch.stack([t.expand(2, *self.arrived.shape) for t in pair]) for pair in zip(default[0], self.below, strict=True)]
        high = [torch.stack([t.expand(2, *self.arrived.shape) for t in pair]) for pair in zip(default[1], self.above, strict=True)]
        lower, upper = (tuple(t.unsqueeze(0) for t in side) for side in self.children)
        below, above = self.rule.intercepts(lower, upper, tuple(wide), tuple(high))
        for k_low, k_high, at in zip(wide, high, self.center, strict=True):
            below, above = below + k_low * at, above + k_high * at
        up, down = self.arrived.clamp(min=0.0), self.arrived.clamp(max=0.0)
        constant = up * (below - self.value) + down * (above - self.value) - self.constant
        steep = [up * low + down * upper - was for low, upper, was in zip(wide, high, self.steep, strict=True)]
        known = torch.isfinite(constant)
        for part in steep:
            known &= torch.isfinite(part)
        constant = torch.where(known, constant, 0.0)  # where a child's relaxation is unknown, it gains nothing
        steep = [torch.where(known, part, 0.0) for part in steep]
        return [(tuple(part[k] for part in steep), constant[k]) for k in (0, 1)]


@dataclass(frozen=True, eq=False)
class Candidates:
    """Candidate splits of n subproblems, C each.

    `column` (n, C) the open entries, `valid` (n, C); `low`, `high` (2, n, T) the bounds of both children, lower sides first, each at its
    own candidate (no candidate moves what another one's split moves).
    """

    domain: Domain
    column: Tensor
    valid: Tensor
    low: Tensor
    high: Tensor

    @staticmethod
    def of(of: Relaxations, points: Points, domain: Domain, column: Tensor, valid: Tensor) -> Candidates:
        """Split n subproblems at the points for the open entries given, `column` (n, C), of which `valid` (n, C) count."""
        low, high = (t.gather(1, column) for t in (domain.low, domain.high))
        middle = domain.low.scatter(1, column, points(column, low, high))
        lower, upper = torch.stack([domain.low, middle]), torch.stack([middle, domain.high])
        for y in of.derived:  # a function of what is split is where that puts it
            lower[:, :, y[1]], upper[:, :, y[1]] = domain.low[:, y[1]], domain.high[:, y[1]]
        for left, right in zip(lower, upper, strict=True):
            of.derive(left, right)
        return Candidates(domain, column, valid, lower, upper)

    def relaxed(self, consumers: Consumers, primal: Primal) -> list[Relaxed]:
        """What the candidates relax anew, by kinds of nodes."""
        found: dict[Rule, list[list[Tensor]]] = {}
        flat = self.column.flatten()
        for i, (entries, start, count) in consumers.table.items():
            if i not in primal.passed:
                continue
            many = torch.where(self.valid.flatten(), count[flat], 0)
            pair = torch.repeat_interleave(many)
            offset = torch.arange(len(pair), device=pair.device) - (torch.cumsum(many, 0) - many)[pair]
            o = consumers.of.opened[i]
            part = self._of_node(consumers.of, o, primal.passed[i], pair, entries[start[flat[pair]] + offset])
            found.setdefault(o.rule, []).append(part)
        return [_joined(rule, parts) for rule, parts in found.items()]

    def _of_node(self, of: Relaxations, o: Open, passed: Passed, pair: Tensor, entry: Tensor) -> list[Tensor]:
        """The fields of `Relaxed` in a list, those that have one per input together."""
        domain, sub = self.domain, pair // self.column.shape[1]
        box = torch.zeros_like(sub) if len(of.center) == 1 else domain.box[sub]
        columns = [entry + c.start if isinstance(c, slice) else c[entry] for c in o.columns]
        low, high = ([side[sub, c].unsqueeze(1) for c in columns] for side in (domain.low, domain.high))
        center = [of.center[box, c].unsqueeze(1) for c in columns]
        moved = [(of.split_for[c] == self.column.flatten()[pair]).unsqueeze(1) for c in columns]
        left, right = (
            [torch.where(m, half[:, sub, c].unsqueeze(2), known) for m, c, known in zip(moved, columns, side, strict=True)]
            for half, side in ((self.low, low), (self.high, high))
        )

        def rows(values: Tensor) -> Tensor:
            return values.expand(*passed.arrived.shape)[sub, :, entry].double()

        attained = [rows(at) for at in passed.attained]
        value = of.state[o.node].center.flatten(1)[box, o.index[entry]].unsqueeze(1)
        arrived = rows(passed.arrived)
        below, above = ([rows(k) for k in line[0]] for line in (passed.below, passed.above))
        up, down = arrived.clamp(min=0.0), arrived.clamp(max=0.0)
        steep = [up * k_low + down * k_high for k_low, k_high in zip(below, above, strict=True)]
        constant = up * rows(passed.below[1]) + down * rows(passed.above[1])
        return [sub, pair, *columns, *low, *high, *center, *left, *right, *attained, value, arrived, *below, *above, *steep, constant]


def _joined(rule: Rule, parts: list[list[Tensor]]) -> Relaxed:
    fields = [torch.cat(t, 1 if t[0].dim() == 3 else 0) for t in zip(*parts, strict=True)]
    inputs = (len(fields) - 5) // 10

    def take(count: int | None = None) -> PerInput:
        return tuple(fields.pop(0) for _ in range(inputs if count is None else count))

    sub, pair = take(2)
    columns, low, high, center, left, right, attained = (take() for _ in range(7))
    value, arrived = take(2)
    return Relaxed(rule, sub, pair, columns, low, high, center, (left, right), attained, value, arrived, take(), take(), take(), fields[0])


def looseness(of: Relaxations, homes: dict[int, list[Columns]], domain: Domain, primal: Primal) -> Tensor:
    """What the relaxations of open entries cost the bounds of subproblems in the middle of their intervals: (n, T) float64."""
    loose = torch.zeros_like(domain.low)
    for i, passed in primal.passed.items():
        o = of.opened[i]
        gap = passed.above[1] - passed.below[1]
        for columns, low, high in zip(o.columns, passed.below[0], passed.above[0], strict=True):
            middle = 0.5 * (domain.low[:, columns] + domain.high[:, columns]) - of.own(of.center[:, columns], domain.box)
            gap = gap + (high - low) * middle.unsqueeze(1)
        lost = (passed.arrived.abs() * gap).sum(1).double()
        for home in homes[i]:
            accumulate(loose, home, torch.nan_to_num(lost.clamp(min=0.0)))
    return loose


def splittable(of: Relaxations, homes: dict[int, list[Columns]], domain: Domain) -> Tensor:
    """Which open entries are worth a split: something that reads them is relaxed, (n, T) bool."""
    inexact = torch.zeros_like(domain.low)
    for i, o in of.opened.items():
        if len(o.index):
            low, high = (tuple(t[:, c] for c in o.columns) for t in (domain.low, domain.high))
            for home in homes[i]:
                accumulate(inexact, home, (~o.rule.is_exact(low, high)).to(inexact.dtype))
    return (inexact > 0) & (of.split_for == torch.arange(of.count, device=inexact.device))
