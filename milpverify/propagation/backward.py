"""One backward pass: rows of multipliers travel from a node to the input, through adjoints and linear relaxations.

The pass computes lower bounds of `rows . value` (CROWN, arXiv 1811.00866, theorem 3.2) in deviations from the reference values.
All rounding is charged: what a multiplication by an adjoint loses was prepared as `NodeState.charge` by the forward pass and
sits in the intercepts of the lines (`lines`) or is taken off at the start node, so that the bound returned holds for real
arithmetic whatever the precision of the matrices.

Rows live in groups: (groups, rows, *shape). The rows of a group belong to one box: either the groups are the boxes of the batch
(`owner` None), or `owner` says which box a group belongs to, so that boxes may have different numbers of rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from milpverify.arithmetic.rounding import LARGEST_DEVIATION, U64, UNIT_ROUNDOFF, cast_down, cast_up, gamma
from milpverify.balls.confined import confining
from milpverify.config import check_time
from milpverify.operators import Affine, Input, Window
from milpverify.operators.window import filled
from milpverify.propagation.request import CostTuning
from milpverify.propagation.state import Lines, Passage, SplitConstraints, State
from milpverify.relaxations.registry import rule_of
from milpverify.relaxations.rule import PerInput

if TYPE_CHECKING:
    from milpverify.balls.confined import Confined
    from milpverify.graph import Graph

LineTable = dict[int, Lines]
"""Nonlinear node id -> its lines."""

SplitTable = dict[int, SplitConstraints]
"""Node id -> the split constraints on its entries."""

UNDERFLOW: Final = {torch.float32: 2.0**6 * 2.0**-126 * LARGEST_DEVIATION, torch.float64: 2.0**6 * 2.0**-1022 * LARGEST_DEVIATION}
"""Per entry of the graph: what products that underflow can cost a bound (flushed to zero too, as many as 64 in a sum)."""


def lines(
    graph: Graph,
    node: int,
    state: State,
    dtype: torch.dtype,
    k_lower: PerInput,
    k_upper: PerInput,
    intercepts: tuple[Tensor, Tensor] | None = None,
) -> Lines:
    """Sound lines with the given slopes around a nonlinear node, in deviations and with the charges taken out.

    Args:
        k_lower, k_upper: one slope per input in `dtype`, (batch, *shape) or (batch, rows, *shape); differentiable.
        intercepts: of the lower and the upper line, float64, where they are known or not those that the node's rule makes of the slopes.
    """
    check_time()
    known = graph.nodes[node]
    sources = [state[i] for i in known.inputs]
    y, rows = state[node].center, k_lower[0].dim() > state[node].center.dim()  # slopes of their own per row

    def fit(t: Tensor) -> Tensor:
        return t.unsqueeze(1) if rows else t

    u = UNIT_ROUNDOFF[dtype]
    charge: Tensor | None = None
    for place, source in enumerate(sources):
        steepest = torch.maximum(k_lower[place].detach().abs(), k_upper[place].detach().abs())
        # Eight roundings, and one more for every further node whose multipliers are added to these.
        several = u * (7 + len(graph.consumers[known.inputs[place]]))
        per_unit = several * source.reach
        if source.charge is not None:
            per_unit = per_unit + (1 + 2 * several) * source.charge
        # Nothing arrives where both slopes are 0. Those that are no normal numbers lose as much as the least one when they are halved.
        lost = torch.where(steepest > 0, steepest.clamp(min=torch.finfo(dtype).tiny).double() * fit(per_unit), 0.0)
        charge = lost if charge is None else charge + lost
    assert charge is not None
    # A dot product with as many terms as the node has entries will be formed with the intercepts.
    g = 2 * gamma(known.size, dtype)
    y, centers = fit(y), [fit(source.center) for source in sources]

    def shifted(intercept: Tensor, slopes: PerInput) -> tuple[Tensor, Tensor]:
        moved = [slope * z for slope, z in zip(slopes, centers, strict=True)]
        size = intercept.detach().abs() + y.abs()
        for part in moved:
            intercept, size = intercept + part, size + part.detach().abs()
        return intercept - y, 8 * U64 * size

    wide_lower = tuple(k.double() for k in k_lower)
    wide_upper = wide_lower if k_upper is k_lower else tuple(k.double() for k in k_upper)
    if intercepts is None:
        ends = tuple(fit(source.bounds.lower) for source in sources), tuple(fit(source.bounds.upper) for source in sources)
        intercepts = rule_of(known.op).intercepts(*ends, wide_lower, wide_upper)
    below, above = intercepts
    (low, low_pad), (high, high_pad) = shifted(below, wide_lower), shifted(above, wide_upper)
    size_low, size_high = low.detach().abs(), high.detach().abs()
    larger = torch.maximum(size_low, size_high)
    pad = charge + low_pad + high_pad + g * larger
    if not bool(pad.isfinite().all()):  # one line may be missing and the other not
        alone = ~larger.isfinite()
        below, above = (torch.where(alone, charge + own + g * size, pad) for own, size in ((low_pad, size_low), (high_pad, size_high)))
        far = torch.finfo(dtype).max / 8  # sums of such intercepts do not overflow
        low = (low - below).nan_to_num(-torch.inf, torch.inf, -torch.inf).clamp(max=far)
        high = (high + above).nan_to_num(torch.inf, torch.inf, -torch.inf).clamp(min=-far)
    else:
        low, high = low - pad, high + pad
    return Lines(k_lower, k_upper, _straight(cast_down, low, dtype), _straight(cast_up, high, dtype))


def _straight(cast: Callable[[Tensor, torch.dtype], Tensor], x: Tensor, dtype: torch.dtype) -> Tensor:
    """A directed conversion that gradients pass through."""
    if not x.requires_grad:
        return cast(x, dtype)
    plain = x.to(dtype)
    return plain + (cast(x.detach(), dtype) - plain.detach())


def default_lines(graph: Graph, node: int, state: State, dtype: torch.dtype) -> Lines:
    """The lines with the default slopes."""
    return _lines(graph, node, state, dtype, *rule_of(graph.nodes[node].op).default_slopes(*ends_of(graph, node, state)))


def parallel_lines(graph: Graph, node: int, state: State, dtype: torch.dtype) -> Lines:
    """The lines with the same slopes for both sides."""
    slopes = rule_of(graph.nodes[node].op).parallel_slopes(*ends_of(graph, node, state))
    return _lines(graph, node, state, dtype, slopes, slopes)


def _lines(graph: Graph, node: int, state: State, dtype: torch.dtype, below: PerInput, above: PerInput) -> Lines:
    """Lines with given slopes, float64; where one is missing, with 0 for slopes that are too steep or meet what nothing is charged for."""
    k_lower = tuple(k.to(dtype) for k in below)
    found = lines(graph, node, state, dtype, k_lower, k_lower if above is below else tuple(k.to(dtype) for k in above))
    if found.missing is None:
        return found
    limit = LARGEST_DEVIATION**0.75 if dtype == torch.float32 else LARGEST_DEVIATION
    near = [state[i].deviation <= LARGEST_DEVIATION for i in graph.nodes[node].inputs]

    def usable(slopes: PerInput) -> PerInput:
        return tuple(torch.where((k.abs() <= limit) & held, k, 0.0) for k, held in zip(slopes, near, strict=True))

    k_lower = usable(found.k_lower)
    return lines(graph, node, state, dtype, k_lower, k_lower if above is below else usable(found.k_upper))


def ends_of(graph: Graph, node: int, state: State) -> tuple[PerInput, PerInput]:
    """The lower and the upper bounds of a node's inputs."""
    known = [state[i].bounds for i in graph.nodes[node].inputs]
    return tuple(b.lower for b in known), tuple(b.upper for b in known)


class Backward:
    """A pass under way: multipliers waiting at nodes, and what has been accumulated.

    Args:
        graph: in the precision of the matrices.
        through: the boxes that it is for.
        groups, rows: how many groups of rows there are, and rows in each.
        owner: (groups,) the boxes that the groups are of; None where they are the boxes.
        parallel: the lines have one slope for both sides, so that upper bounds come along.
        share: of a node, what a window may hold to be worth its while (`CostTuning.share`).
    """

    def __init__(
        self, graph: Graph, through: Passage, groups: int, rows: int, owner: Tensor | None, parallel: bool, share: float = CostTuning.share
    ) -> None:
        self.graph, self.state, self.table, self.owner, self.parallel = graph, through.state, through.table, owner, parallel
        self.splits, self.intervals, self.share = through.splits, through.intervals, share
        self.seen: dict[int, Tensor] | None = None  # set to {} to record the multipliers that arrive at nonlinear nodes
        self.waiting: dict[int, Tensor] = {}
        self.windows: dict[int, Window] = {}  # of nodes where rows wait that are zero outside
        device = self.state[0].center.device
        self.lower = torch.zeros(groups, rows, dtype=torch.float64, device=device)
        self.upper = torch.zeros_like(self.lower) if parallel else self.lower
        self.size = torch.zeros_like(self.lower)
        self.terms = 0  # so many have been added to `lower` and `upper`

    def add(self, node: int, rows: Tensor, window: Window | None = None) -> None:
        """Let multipliers (groups, rows, *shape) arrive at a node, or (groups, rows, *within) those in a window."""
        if node in self.waiting:
            there = self.windows.get(node)
            both = None if there is None or window is None else there.joined(window)
            if both is not None and there is not None and window is not None:
                rows = there.grown(self.waiting[node], both) + window.grown(rows, both)
                window = both
            else:
                rows = self.whole(node) + self._whole(node, rows, window)
                window = None
        self.waiting[node] = rows
        self.windows.pop(node, None)
        if window is not None:
            if window.share > self.share:
                self.waiting[node] = self._whole(node, rows, window)
            else:
                self.windows[node] = window

    def whole(self, node: int) -> Tensor:
        """The multipliers that wait at a node, (groups, rows, *shape)."""
        return self._whole(node, self.waiting[node], self.windows.get(node))

    def _whole(self, node: int, rows: Tensor, window: Window | None) -> Tensor:
        return rows if window is None else window.whole(rows).reshape(*rows.shape[:2], *self.graph.nodes[node].shape)

    def step(self) -> bool:
        """Move the last waiting multipliers one node back; False when they have all reached the input."""
        check_time()
        last = max(self.waiting)
        node = self.graph.nodes[last]
        rows, window = self.waiting[last], self.windows.get(last)
        if last in self.splits:
            rows = self._split(rows, last, self.splits[last])
        if isinstance(node.op, Input):
            self.waiting[last], self.splits = rows, {}
            return False
        del self.waiting[last]
        self.windows.pop(last, None)
        if isinstance(node.op, Affine):
            behind = None if window is None else node.op.behind(window, node.shape)
            if window is None or behind is None:
                flat = self._whole(last, rows, window).reshape(-1, *node.shape).to(self.graph.precision(last))
                parts = tuple(part.reshape(*rows.shape[:2], *part.shape[1:]) for part in node.op.adjoint(flat))
            else:
                clean = window.cleaned(rows) if node.op.length > 1 else rows
                parts = node.op.adjoint_within(clean.to(self.graph.precision(last)), window, node.shape)
            for source, part, there in zip(node.inputs, parts, behind or [None] * len(parts), strict=True):
                self.add(source, part, there)
        else:
            if self.seen is not None:
                self.seen[last] = self._whole(last, rows, window)
            there = None if window is None else replace(window, clean=True)  # beyond the node slopes are 0
            for source, part in zip(node.inputs, self._relax(rows, self.table[last], window), strict=True):
                self.add(source, part, there)
        return True

    def _take(self, vector: Tensor, window: Window | None) -> Tensor:
        """A (batch, ...) vector of a node as it applies to the groups."""
        if self.owner is None:
            return vector
        return vector[self.owner] if window is None else window.cut(filled(vector.unsqueeze(0)), self.owner)[0]

    def _relax(self, rows: Tensor, around: Lines, window: Window | None) -> list[Tensor]:
        # Half the sum and half the difference round: a unit each, far within the factor 2 of the intercepts' own margin.
        if window is None or self.owner is None:
            *slopes, middle, half = around.centred if self.owner is None else around.centred[:, self.owner]
        else:
            *slopes, middle, half = window.cut(around.filled, self.owner)
        magnitude = rows.abs()
        self._account(self._dot(rows, middle), self._dot(magnitude, half))
        if around.missing is not None:
            self._lack(rows, around.missing, window)
        parts = []
        for mean, tilt in zip(slopes[::2], slopes[1::2], strict=True):
            straight = rows * self._wide(mean, rows)
            parts.append(straight if self.parallel else torch.addcmul(straight, magnitude, self._wide(tilt, rows)))
        return parts

    def _lack(self, rows: Tensor, missing: Tensor, window: Window | None) -> None:
        """Nothing is known of a row that needs a missing line."""
        if self.owner is None:
            below, above = missing.unsqueeze(2) if missing.dim() == rows.dim() else missing
        elif window is None:
            below, above = missing[:, self.owner].unsqueeze(2)
        else:
            below, above = window.cut(filled(missing), self.owner).unsqueeze(2)
        up, down = rows > 0, rows < 0
        sides = ((up & below) | (down & above), (up & above) | (down & below))
        lost_below, lost_above = (side.flatten(2).any(2) for side in sides)
        self.lower = self.lower.masked_fill(lost_below, -torch.inf)
        if self.parallel:
            self.upper = self.upper.masked_fill(lost_above, torch.inf)

    def _account(self, linear: Tensor, spread: Tensor) -> None:
        self.terms += 2
        self.lower = self.lower + (linear - spread)
        if self.parallel:
            self.upper = self.upper + (linear + spread)
        self.size = self.size + (linear.detach().abs() + spread.detach().abs())

    def _split(self, rows: Tensor, node: int, split: SplitConstraints) -> Tensor:
        """Subtract beta * side * (z - point), which is >= 0 on the subproblem, from the bounded function (arXiv 2103.06624, eq. 8)."""
        known = self.state[node]
        signed = split.beta * split.side.unsqueeze(1)
        offset = split.point - known.center.flatten(1).gather(1, split.index)
        # Every split rounds what is there at its entry, the other splits' share too.
        u, count = UNIT_ROUNDOFF[rows.dtype], split.index.shape[1]
        reach = known.reach.flatten(1).gather(1, split.index)
        lost = (7 + count) * u * reach + (3 + count) * U64 * (split.point.abs() + offset.abs())
        if known.charge is not None:
            lost = lost + known.charge.flatten(1).gather(1, split.index)
        flat = rows.flatten(2)
        there = flat.detach().gather(2, split.index.unsqueeze(1).expand_as(signed)).double()
        paid = torch.where(split.beta > 0, split.beta.double() * lost.unsqueeze(1), 0.0)
        paid = paid + torch.where(there == 0, 0.0, there.abs() * (2 * u * split.side.abs() * reach).unsqueeze(1))
        gained = (signed.double() * offset.unsqueeze(1)).sum(2)
        self.lower = self.lower + gained - paid.sum(2) * (1 + 2.0**-20)
        self.size = self.size + (signed.double() * offset.unsqueeze(1)).abs().sum(2).detach()
        self.terms += 2
        return flat.scatter_add(2, split.index.unsqueeze(1).expand_as(signed), -signed.to(flat.dtype)).reshape(rows.shape)

    @staticmethod
    def _wide(vector: Tensor, rows: Tensor) -> Tensor:
        return vector if vector.dim() == rows.dim() else vector.unsqueeze(1)

    def _dot(self, rows: Tensor, vector: Tensor) -> Tensor:
        """Inner products with a vector per group over the node's entries, (groups, rows) float64, summed in the inner precision.

        A batched product of matrix and vector takes three times as long as the product and the sum, which stay in the caches.
        """
        return (rows * self._wide(vector, rows)).flatten(2).sum(2, dtype=self.graph.inner).double()

    def concretise(self, confined: bool = True) -> tuple[Tensor, Tensor]:
        """Bounds (lower, upper) by the intervals of the nodes where multipliers wait, (groups, rows) float64 each.

        What rounding has cost on the way is charged for. The upper ones mean nothing unless the pass is `parallel`.

        Args:
            confined: whether what inputs are confined to besides the box counts; without it, the bounds hold over the whole box.
        """
        lower, upper, size = self.lower, self.upper, self.size
        for node, rows in self.waiting.items():
            if node not in self.intervals:
                self.intervals[node] = self._interval(node, rows.dtype)
            (middle, radius), window = self.intervals[node], self.windows.get(node)
            reach = self._dot(rows.abs(), around := self._take(radius, window))
            if bool(reach.isnan().any()):  # zero times infinity
                unknown = self._wide(around.isinf(), rows)
                reach = self._dot(rows.abs(), around.masked_fill(around.isinf(), 0.0))
                reach = reach.masked_fill((unknown & (rows != 0)).flatten(2).any(2), torch.inf)
            shift = torch.zeros_like(reach) if middle is None else self._dot(rows, self._take(middle, window))
            below, above = shift - reach, shift + reach
            for region in self.regions if confined and node == 0 else ():
                own, whole = region.take(self.owner), self.whole(node)
                below = torch.maximum(below, own.least(whole))
                above = torch.minimum(above, -own.least(-whole)) if self.parallel else above
            lower, upper = lower + below, upper + above
            size = size + (shift.abs() + reach).detach()
        pad = self._pad(size)
        return lower - pad, upper + pad

    @cached_property
    def regions(self) -> tuple[Confined, ...]:
        """What inputs are confined to with the state's boxes, where it cuts them."""
        known = self.state[0]
        return confining(self.graph.ball, self.graph.halfspaces, known.bounds.lower, known.bounds.upper, known.center)

    def accumulated(self, reach: Tensor) -> tuple[Tensor, Tensor]:
        """Bounds (lower, upper) if what still waits is known to be at most `reach` (groups, rows) in absolute value."""
        pad = self._pad(self.size + reach)
        return self.lower - reach - pad, self.upper + reach + pad

    def _pad(self, size: Tensor) -> Tensor:
        return (16 + self.terms + 2 * len(self.waiting)) * U64 * size + self.graph.entries * UNDERFLOW[self.graph.dtype]

    def _interval(self, node: int, dtype: torch.dtype) -> tuple[Tensor | None, Tensor]:
        """The interval of a node's deviation, with the charges of using it."""
        known = self.state[node]
        size = self.graph.nodes[node].size
        g = 2 * (gamma(size, dtype) if self.graph.inner is None else gamma(1, dtype) + gamma(size, self.graph.inner))
        if node == 0:
            return None, cast_up(known.deviation * (1 + g), dtype)
        half = 0.5 * known.bounds.width
        centre = known.bounds.lower + half
        middle = centre - known.center
        radius = half + 8 * U64 * (half + centre.abs() + known.center.abs()) + 2 * g * middle.abs()
        if known.charge is not None:
            radius = radius + known.charge
        kept = middle.to(dtype)
        radius = radius + (middle - kept.double()).abs()
        # Infinite ends have no middle.
        return torch.where(radius.isfinite(), kept, 0.0), cast_up(radius.nan_to_num(torch.inf, torch.inf) * (1 + g), dtype)

    def gather(self, group: Tensor, position: Tensor) -> None:
        """Go on with some of the rows only, rearranged; those of a new group come from one group.

        Args:
            group: (n,) from which the new groups come.
            position: (n, r), the places of the new rows among all groups * rows.
        """
        assert self.owner is not None
        self.owner = self.owner[group]
        self.windows = {node: window.take(group) for node, window in self.windows.items()}
        self.waiting = {node: rows.flatten(0, 1)[position] for node, rows in self.waiting.items()}
        self.lower, self.upper, self.size = (total.flatten()[position] for total in (self.lower, self.upper, self.size))
