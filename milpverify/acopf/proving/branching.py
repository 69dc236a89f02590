"""A tree of boxes over voltages and angles: the box with the lowest bound is split where the relaxation errs most."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from milpverify.acopf.proving.programs import Box
from milpverify.acopf.proving.proof import Node
from milpverify.acopf.proving.tightening import Region, Tightening, errors_of
from milpverify.tuning import Tuning

if TYPE_CHECKING:
    from milpverify.acopf.case import Array
    from milpverify.acopf.relaxation.cuts import Cuts
    from milpverify.acopf.relaxation.relaxation import Relaxation


class ProverTuning(Tuning):
    """How boxes are split, and how a prover divides its time."""

    root_rounds: int = 12
    rounds: int = 3
    """Rounds of tightening of the root, and of every other box."""
    narrow: float = 1e-9
    """p.u. and rad: narrower ranges are not split."""
    edge: float = 0.2
    """The share of a range that is left on either side of a split, at least."""
    touching: float = 1e-6
    """p.u.: the root begins with the planes of cones that are this close to tight at a point that is known."""
    native_share: float = 0.5
    """Of the time that is left, what a solver for products has."""
    recheck_share: float = 0.15
    recheck_most: float = 30.0
    """Of the time that is left, what the search leaves to the recheck, and how many seconds at most."""
    least_check: float = 1.0
    """Seconds for a recheck, whatever time it is."""


class Tree:
    """Regions that are open, best first, and the proof that they belong to."""

    def __init__(self, tightening: Tightening, box: Box, cuts: Cuts, tuning: ProverTuning = ProverTuning()) -> None:
        self.tightening, self._tuning = tightening, tuning
        self.root = Region(box, cuts)
        self._open: list[tuple[float, int, Region]] = []
        self._order = itertools.count()
        self.boxes = 1

    @property
    def proof(self) -> Node:
        """The root of the proof."""
        return self.root.node

    @property
    def bound(self) -> float:
        """What is proved of all of it."""
        return self.proof.bound

    def examine_root(self, target: float, rounds: int) -> None:
        """Bound the root alone."""
        self.tightening.examine(self.root, target, rounds)

    def grow(self, target: Callable[[], float], on_box: Callable[[Array | None], None]) -> None:
        """Until nothing is open below the target, or time is over. `target` is asked again, since better points lower it.

        `on_box` is told a solution (columns,) of the relaxation after every step.
        """
        tightening, deadline = self.tightening, self.tightening.deadline
        if not self.root.refuted:
            self._examine(self.root, target(), self._tuning.root_rounds)
        on_box(self.root.point)
        while self._open and self._open[0][0] < target() and not deadline.expired():
            _, _, region = heapq.heappop(self._open)
            if region.point is None:
                break
            split = split_of(tightening.relaxation, region, self._tuning)
            if split is None:
                break
            children = self._split(region, *split)
            for child in children:
                self._examine(child, target(), self._tuning.rounds)
                self.boxes += 1
            on_box(min(children, key=lambda child: child.bound).point)

    def _examine(self, region: Region, target: float, rounds: int) -> None:
        self.tightening.examine(region, target, rounds)
        if not region.refuted:
            heapq.heappush(self._open, (region.bound, next(self._order), region))

    def _split(self, region: Region, column: int, at: float) -> tuple[Region, Region]:
        """Both sides of a split, of which as much is known as of the region until they are examined."""
        low, high = region.box.upper.copy(), region.box.lower.copy()
        low[column] = high[column] = at
        node = region.node
        node.column, node.at, node.below, node.above, node.leaf = column, at, Node(leaf=node.leaf), Node(leaf=node.leaf), None
        below, above = Box(region.box.lower, low), Box(high, region.box.upper)
        return (
            Region(below, region.cuts, node.below, region.bound, region.point, region.basic),
            Region(above, region.cuts, node.above, region.bound, region.point, region.basic),
        )


def split_of(relaxation: Relaxation, region: Region, tuning: ProverTuning = ProverTuning()) -> tuple[int, float] | None:
    """The column to split and where: of the pair of buses at which the solution is furthest from any voltages, what adds most to that.

    The relaxation's error there is of the order of the squares of half the angles' range and of half the voltages' ranges. None where these
    are so small already that a split would change nothing.
    """
    columns, point, box = relaxation.columns, region.point, region.box
    assert point is not None
    width = box.upper - box.lower
    if not len(columns.d):
        return None
    voltage = np.sqrt(box.upper[columns.w]) - np.sqrt(np.maximum(box.lower[columns.w], 0.0))
    worth = np.zeros(len(point))
    p = int(np.argmax(errors_of(relaxation, point)))
    ends = (columns.pairs.i[p], columns.pairs.j[p])
    worth[columns.d[p]] = (width[columns.d[p]] / 2) ** 2
    worth[columns.w[list(ends)]] = voltage[list(ends)] ** 2
    column = int(np.argmax(worth))
    if worth[column] < tuning.narrow**2:
        return None
    low, high, edge = box.lower[column], box.upper[column], tuning.edge
    return column, float(np.clip(point[column], low + edge * (high - low), high - edge * (high - low)))
