"""Bounds of pre-activations where a linear constraint on the input holds (Clip-and-Verify, arXiv 2512.11087).

The root's backward passes leave two linear forms in the input around every open pre-activation. Over a box, the row z that such a form
bounds is at least L + sum_k |a_k| s_k, where L is its proved minimum, a the form's coefficients, and s_k the distance of x_k from the end
that minimises a_k x_k. Let a second row with minimum M <= 0 and coefficients g be <= 0 where it matters: a split constraint through the
form of the entry split, or the property's row at unsafe points. For every multiplier >= 0,

    z  >=  z + multiplier * row  >=  L + multiplier * M + sum over k with a_k g_k < 0 of min(|a_k|, multiplier |g_k|) w_k

with w the widths of the box: where both pull to the same end, a point can be at both ends; where not, it is as far from one as it is near
to the other. The sum has no negative term, so that any part of it may be left out, and rounding costs it a share of itself alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from milpverify.arithmetic.rounding import U64, cast_down, gamma
from milpverify.propagation.crown import bound_rows
from milpverify.propagation.passes import rows_at_once
from milpverify.propagation.state import select, select_lines
from milpverify.tuning import Tuning

if TYPE_CHECKING:
    from milpverify.propagation.optimised.beta import Relaxations

TINY: Final = torch.finfo(torch.float32).tiny


class HalfspaceTuning(Tuning):
    """How much of a constraint on the inputs is looked at, and when that pays."""

    memory: int = 1 << 28
    """Bytes of all forms at most."""
    entries: int = 256
    """So many entries of a box get forms at most."""
    coordinates: int = 1024
    sample: int = 32
    """So many inputs, those that the constraint feels most, are summed over; the multiplier is found on a sample of them."""
    tried: int = 64
    """Half-spaces to try before how deep they are says whether they pay."""
    bisections: int = 7
    """For the multiplier."""
    chunk_cpu: int = 1 << 20
    chunk_cuda: int = 1 << 26
    """Entries of a matrix of terms."""
    worth: float = 0.01
    """The least share of its width that an entry must be expected to lose on average."""


@dataclass(frozen=True, eq=False)
class HalfSpace:
    """A row that is <= 0 on the points of each subproblem that matter.

    `pull` (n, nx): the row's coefficients times the widths of the root box, in the precision of the matrices; `least` (n,) float64: the
    row's proved minimum over that box.
    """

    pull: Tensor
    least: Tensor

    def take(self, chosen: Tensor) -> HalfSpace:
        """Those of some subproblems, by their places (m,) or by a mask (n,)."""
        return HalfSpace(self.pull[chosen], self.least[chosen])


@dataclass(eq=False)
class Depths:
    """How deep half-spaces of one kind were that were tried, and those that paid: much deeper ones are not worth a try.

    The depth of a half-space within a box is a share of the box's width along its row.
    """

    tried: int = 0
    deepest: float = 0.0
    reach: float = math.inf

    def learn(self, tried: Tensor, paid: Tensor, enough: int) -> None:
        """Note the depths that were tried, (n,), and those that paid, (m,); after `enough` tries the deepest says what is worth one."""
        self.tried += len(tried)
        self.deepest = max(self.deepest, float(paid.amax()) if len(paid) else 0.0)
        if self.tried >= enough:
            self.reach = 2 * self.deepest if self.deepest > 0 else min(self.reach, 0.5 * float(tried.amin()))


_Inputs = tuple[Tensor, Tensor, Tensor]
"""Of a row, over the inputs that it feels most, falling: |pull|, -sign(pull), which inputs they are, (n, C) each."""


class HalfspaceForms:
    """The linear forms of some open entries of a root's boxes.

    `columns` (m, E) the open entries that have forms, per box made. The forms of their lower bounds come first, then those of their
    negatives'.
    """

    def __init__(self, of: Relaxations, tuning: HalfspaceTuning = HalfspaceTuning()) -> None:
        self.of, self.tuning = of, tuning
        boxes, nx = of.state[0].center.shape
        bytes_each = 2 * nx * boxes * torch.finfo(of.graph.dtype).bits // 8
        self.count = min(of.count, tuning.entries, tuning.memory // bytes_each)
        ends = of.state[0].bounds
        self.width = cast_down(ends.width * (1 - 2.0**-50), of.graph.dtype).clamp(min=0.0)  # (B, nx)
        self.place = torch.full((boxes,), -1, dtype=torch.long, device=ends.lower.device)
        self.columns = self.place.new_zeros(0, self.count)
        self.matrix = self.width.new_zeros(0, nx, 2 * self.count)  # (m, nx, 2E), coefficients times widths
        self.least = ends.lower.new_zeros(0, 2 * self.count)

    def missing(self, box: Tensor) -> Tensor:
        """Which of the boxes of subproblems (n,) have no forms yet, each once and ascending, (m,) int64."""
        return (torch.bincount(box, minlength=len(self.place)) > 0).logical_and(self.place < 0).nonzero(as_tuple=True)[0]

    def below(self, box: Tensor, coefficients: Tensor, least: Tensor) -> HalfSpace:
        """The half-spaces of rows that are known to be <= 0, by linear bounds of them (n, nx) and the proved minima of these (n,)."""
        return HalfSpace(coefficients * self.of.own(self.width, box), least)

    def split(self, box: Tensor, column: Tensor, side: Tensor, point: Tensor) -> tuple[HalfSpace, Tensor]:
        """The half-spaces of split constraints side * (z - point) >= 0 and which of them have a form, (n,) bool.

        Args:
            box, column, side, point: (n,) each: the box, the open entry, +1 or -1 (0: no constraint), float64.
        """
        if not self.count:
            return HalfSpace(self.width[box], point), torch.zeros_like(box, dtype=torch.bool)
        same = self.columns[self.place[box]] == column.unsqueeze(1)
        form = same.int().argmax(1) + torch.where(side > 0, self.count, 0)  # z >= point is -z + point <= 0
        least = self.least[self.place[box], form] + side * point
        least = least - 2.0**-50 * (least.abs() + point.abs())
        return HalfSpace(self.matrix[self.place[box], :, form], least), same.any(1)

    def around(self, box: Tensor, column: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The forms of some entries and of their negatives on their boxes, (N,).

        Returns:
            coefficients times widths (2, N, nx), the values that the forms have in the middle of the box (2, N) float64, and which
            entries have forms (N,) bool; what the others are given means nothing.
        """
        if not self.count:
            none = torch.zeros_like(column, dtype=torch.bool)
            return self.width.new_zeros(2, len(column), self.width.shape[1]), self.of.low.new_zeros(2, len(column)), none
        place = self.place[box]
        same = self.columns[place] == column.unsqueeze(1)
        form = same.int().argmax(1)
        matrix = torch.stack([self.matrix[place, :, form], self.matrix[place, :, form + self.count]])
        least = torch.stack([self.least[place, form], self.least[place, form + self.count]])
        return matrix, least + 0.5 * matrix.abs().sum(2).double(), same.any(1)

    def raised(self, box: Tensor, given: HalfSpace, low: Tensor, high: Tensor, depths: Depths) -> tuple[Tensor, Tensor]:
        """Bounds of the open entries that hold where the half-spaces do, met with those known, (n, T) float64.

        Args:
            box: (n,).
            low, high: (n, T), what is known.
            depths: of such half-spaces, so far.
        """
        low, high = low.clone(), high.clone()
        total = given.pull.abs().sum(1)
        depth = -given.least / total  # of the half-space within the box, as a share of its width along the row
        usable = torch.isfinite(total) & torch.isfinite(given.least) & (given.least <= 0) & (total > 0) & (depth <= depths.reach)
        which = usable.nonzero(as_tuple=True)[0]
        if not self.count or not len(which):
            return low, high
        box, given, depth, total = box[which], given.take(which), depth[which], total[which]
        below, above = self._met(box, given, depth, total, low[which], high[which], depths)
        low[which], high[which] = below, above
        return low, high

    def _met(
        self, box: Tensor, given: HalfSpace, depth: Tensor, total: Tensor, low: Tensor, high: Tensor, depths: Depths
    ) -> tuple[Tensor, Tensor]:
        """`raised` where the rows are finite."""
        tuning = self.tuning
        pull, order = given.pull.abs().topk(min(tuning.coordinates, given.pull.shape[1]), dim=1)  # (n, C), falling
        turn = -torch.sign(given.pull.gather(1, order))
        per = max(1, (tuning.chunk_cuda if box.device.type == "cuda" else tuning.chunk_cpu) // (pull.shape[1] * 2 * self.count))
        thin = max(1, pull.shape[1] // tuning.sample)
        columns = self.columns[self.place[box]]
        known = torch.cat([low.gather(1, columns), -high.gather(1, columns)], 1)
        multipliers, chosen = [], []
        for n in torch.arange(len(box), device=box.device).split(per * thin):
            sample = pull[n, ::thin], turn[n, ::thin], order[n, ::thin]
            found, pays = self._multipliers(box[n], sample, total[n], given.least[n], known[n])
            multipliers.append(found[pays])
            chosen.append(n[pays])
        which, multiplier = torch.cat(chosen), torch.cat(multipliers)
        depths.learn(depth, depth[which], tuning.tried)
        for k in range(0, len(which), per):
            n = which[k : k + per]
            least = self._least(box[n], (pull[n], turn[n], order[n]), given.least[n], multiplier[k : k + per])
            known[n] = torch.maximum(known[n], least)
        below, above = known.chunk(2, dim=1)
        return low.scatter(1, columns, below), high.scatter(1, columns, -above)

    def _pulls(self, box: Tensor, inputs: _Inputs) -> Tensor:
        """What the forms pull, per unit of what the half-space's row does, positive where against it: (n, C, 2E)."""
        pull, turn, order = inputs
        own: Tensor = self.matrix[self.place[box].unsqueeze(1), order]
        own *= (turn / pull.clamp(min=TINY)).unsqueeze(2)
        return own

    def _multipliers(self, box: Tensor, inputs: _Inputs, total: Tensor, least: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        """Good multipliers (n, 2E) by a sample of the inputs, and for which subproblems they pay.

        Args:
            total: what all inputs pull.
        """
        pull, ratio = inputs[0], self._pulls(box, inputs).clamp_(min=0.0)
        share = (pull.sum(1) / total).unsqueeze(1)
        paid = (-least).to(pull.dtype).unsqueeze(1)
        high = ratio.amax(1)
        low = high * 2.0**-12
        for _ in range(self.tuning.bisections):
            middle = (low * high).sqrt()
            rising = _weighted(pull, (ratio > middle.unsqueeze(1)).to(pull.dtype)) > paid * share
            low, high = torch.where(rising, middle, low), torch.where(rising, high, middle)
        multiplier = torch.nan_to_num(low, 0.0, 0.0, 0.0)
        gain = _weighted(pull, torch.minimum(ratio, multiplier.unsqueeze(1))) / share - multiplier * paid
        width = -known.unflatten(1, (2, -1)).sum(1)
        moved = (self.least[self.place[box]] + gain - known).clamp(min=0.0).unflatten(1, (2, -1)).sum(1)
        shares = torch.where(width > 0, moved / width, 0.0).clamp(max=1.0)
        return multiplier, shares.mean(1) > self.tuning.worth

    def _least(self, box: Tensor, inputs: _Inputs, least: Tensor, multiplier: Tensor) -> Tensor:
        """Proved minima (n, 2E) with some multipliers."""
        pull, ratio = inputs[0], self._pulls(box, inputs)
        ratio = torch.minimum(ratio, multiplier.unsqueeze(1), out=ratio).clamp_(min=0.0)
        gain, wide = _weighted(pull, ratio).double(), multiplier.double()
        # A few roundings of every term, then those of the sum; what underflows is as much as the least normal number at most.
        gain = gain * (1 - 2 * gamma(pull.shape[1] + 16, pull.dtype)) - pull.shape[1] * (1 + wide + pull[:, :1].double()) * 8 * TINY
        paid = wide * least.unsqueeze(1) * (1 + 2.0**-50)
        known = self.least[self.place[box]]
        found = known + gain + paid
        found = found - 4 * U64 * (known.abs() + gain.abs() + paid.abs())
        return torch.where(torch.isnan(found), -torch.inf, found)

    def make(self, box: Tensor, columns: Tensor) -> None:
        """Form what some boxes lack.

        Args:
            box: (b,).
            columns: (b, E) ascending, the open entries to take.
        """
        of, graph = self.of, self.of.graph
        state = select(of.state, box)
        table = {i: select_lines(around, box) for i, around in of.lines.items()}
        every = torch.arange(len(box), device=box.device)
        matrix = self.matrix.new_zeros(len(box), 2 * self.count, self.matrix.shape[1])
        least = self.least.new_zeros(len(box), 2 * self.count)
        for z, here in of.columns.items():
            inside = (columns >= here.start) & (columns < here.stop)
            reached = inside.any(0).nonzero(as_tuple=True)[0].tolist()
            if not reached:
                continue
            last = reached[-1] + 1
            for start in range(reached[0], last, per := max(1, rows_at_once(graph) // (2 * len(box)))):
                part = slice(start, min(start + per, last))
                entry = of.entries[z][(columns[:, part] - here.start).clamp(0, here.stop - here.start - 1)]
                unit = torch.zeros(*entry.shape, graph.nodes[z].size, dtype=torch.float64, device=box.device)
                unit.scatter_(2, entry.unsqueeze(2), 1.0)
                found = bound_rows(graph, state, table, torch.cat([unit, -unit], 1), z)
                n, k = inside[:, part].nonzero(as_tuple=True)
                for side in (0, 1):
                    row, at = k + side * entry.shape[1], k + start + side * self.count
                    matrix[n, at], least[n, at] = found.coefficients[n, row], found.over_box[n, row]
        matrix = (matrix * self.width[box].unsqueeze(1)).transpose(1, 2)
        self.place[box] = len(self.matrix) + every
        self.columns = torch.cat([self.columns, columns])
        self.matrix = torch.cat([self.matrix, torch.nan_to_num(matrix, 0.0, 0.0, 0.0)])
        self.least = torch.cat([self.least, least])


def _weighted(weight: Tensor, terms: Tensor) -> Tensor:
    """Sums over the inputs: (n, C) and (n, C, 2E) -> (n, 2E)."""
    return torch.bmm(weight.unsqueeze(1), terms).squeeze(1)
