"""BBPS: what a split gains, by bound propagation cut short (GenBaB, arXiv 2405.21063, section 3.2).

A child relaxes anew only what reads the neuron that is split. Its lines take the multipliers that arrived in the parent's final bound,
and what they send on meets the linear forms of their inputs in the network's inputs, saved from the root, instead of a propagation:
the parent's linear bound, changed by that, is concretised over the box.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from milpverify.search.neuron_split.branching.heuristic import Heuristic

if TYPE_CHECKING:
    from milpverify.propagation.optimised.dual import Primal
    from milpverify.propagation.optimised.halfspaces import HalfspaceForms
    from milpverify.propagation.state import LinearBound
    from milpverify.search.neuron_split.branching.candidates import Candidates, Consumers
    from milpverify.search.neuron_split.branching.heuristic import Splits


class BBPS(Heuristic):
    """What the children gain by linear forms that were saved."""

    name = "bbps"
    needs_bounds = needs_forms = True

    def score(self, splits: Splits) -> Tensor:
        of = splits.parents
        if of.forms is None or of.found is None:
            raise TypeError("BBPS needs linear bounds and saved linear forms")
        return of.score(gains(of.consumers, of.forms, of.candidates, of.primal, of.found))


def gains(consumers: Consumers, forms: HalfspaceForms, candidates: Candidates, primal: Primal, found: LinearBound) -> Tensor:
    """What both children of candidates gain, (2, n, C, r) float64: estimates, which prove nothing.

    Args:
        found: the parents' final linear bounds.
    """
    n, count = candidates.column.shape
    rows, box = found.coefficients.shape[1], candidates.domain.box
    pulls = found.coefficients.flatten(2) * forms.of.own(forms.width, box).unsqueeze(1)  # (n, r, nx), over a box of unit widths
    change = pulls.new_zeros(2, 2, n * count, *pulls.shape[1:])  # of children, by either of their lines
    moved = pulls.new_zeros(2, 2, n * count, rows, dtype=torch.float64)
    for part in candidates.relaxed(consumers, primal):
        ways = part.changed()
        for k, (_, constant) in enumerate(ways):
            moved[:, k].index_add_(1, part.pair, constant)
        inputs = zip(part.columns, part.low, part.high, part.center, strict=True)
        for place, (columns, low, high, center) in enumerate(inputs):
            matrix, middle = _forms(forms, box[part.sub], columns, low - center, high - center, center)
            for k, (steep, _) in enumerate(ways):
                up, down = steep[place].clamp(min=0.0), (-steep[place]).clamp(min=0.0)
                moved[:, k].index_add_(1, part.pair, up * middle[0] + down * middle[1])
                up, down = (t.to(matrix.dtype).unsqueeze(3) for t in (up, down))
                change[:, k].index_add_(1, part.pair, up * matrix[0].unsqueeze(1) + down * matrix[1].unsqueeze(1))
    own = pulls.abs().sum(2).repeat_interleave(count, 0).double()
    change += pulls.repeat_interleave(count, 0)
    gain = moved + 0.5 * (own - change.abs().sum(4).double())
    return gain.amax(1).reshape(2, n, count, rows)


def _forms(forms: HalfspaceForms, box: Tensor, columns: Tensor, low: Tensor, high: Tensor, center: Tensor) -> tuple[Tensor, Tensor]:
    """Linear bounds of the deviations of variables and of their negatives: coefficients (2, E, nx), values in the box's middle (2, E, 1).

    Those without a form are at their bounds, whatever the inputs.
    """
    matrix, middle, known = forms.around(box, columns)
    ends, signed = torch.stack([low, -high]), torch.stack([center, -center])
    known = known.unsqueeze(1)
    return torch.where(known, matrix, 0.0), torch.where(known, middle.unsqueeze(2) - signed, ends)
