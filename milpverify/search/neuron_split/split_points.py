"""Where a variable is split: at the point that leaves the relaxations of everything that reads it tightest, or in the middle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from milpverify.operators import Elementwise
from milpverify.propagation.optimised.dual import accumulate
from milpverify.relaxations.branching_points import branching_points
from milpverify.relaxations.registry import univariate

if TYPE_CHECKING:
    from milpverify.functions.catalogue import Function
    from milpverify.propagation.optimised.beta import Relaxations

VOLUME: Final = 1.0 / 6.0
"""Between the McCormick envelopes of a product over a box of unit widths."""


class Points:
    """The branching points of the open entries of a root.

    Args:
        optimised: whether smooth functions are split where their children are tightest, not in the middle.
    """

    def __init__(self, of: Relaxations, optimised: bool = True) -> None:
        self.optimised = optimised
        graph, device = of.graph, of.low.device
        self.kinds: list[tuple[Function, ...]] = []
        self.kind = torch.zeros(of.count, dtype=torch.long, device=device)
        # A product's loss as a function of one factor's interval: the volume of its envelopes over the other factor's width.
        self.bilinear = torch.zeros(of.count, dtype=torch.float64, device=device)
        for z, here in of.columns.items():
            ops = [graph.nodes[r.reader].op for r in graph.readers[z] if r.reader in of.opened]
            functions = tuple(dict.fromkeys(op.function for op in ops if isinstance(op, Elementwise)))
            if functions not in self.kinds:
                self.kinds.append(functions)
            self.kind[here] = self.kinds.index(functions)
        width = (of.high - of.low).amax(0) if len(of.low) else self.bilinear
        for o in of.opened.values():
            for place, columns in enumerate(o.columns):
                for other in (c for k, c in enumerate(o.columns) if k != place):
                    accumulate(self.bilinear, columns, VOLUME * width[other])

    def __call__(self, column: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """The points that split the intervals [low, high] of some open entries; all of one shape."""
        point = torch.empty_like(low)
        kind = self.kind[column]
        for k, functions in enumerate(self.kinds):
            here = kind == k
            if bool(here.any()):
                point[here] = self._points(functions, column[here], low[here], high[here])
        return point

    def _points(self, functions: tuple[Function, ...], column: Tensor, low: Tensor, high: Tensor) -> Tensor:
        broken = next((f for f in functions if f.pieces is not None), None)
        if broken is not None or not (functions and self.optimised):
            first = broken or next(iter(functions), None)
            return 0.5 * (low + high) if first is None else univariate(first).split_point(low, high)
        return branching_points(functions, low, high, self.bilinear[column])
