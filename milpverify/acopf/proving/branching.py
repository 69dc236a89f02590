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

if TYPE_CHECKING:
    from milpverify.acopf.case import Array
    from milpverify.acopf.relaxation.cuts import Cuts
    from milpverify.acopf.relaxation.relaxation import Relaxation

ROOT_ROUNDS = 12
ROUNDS = 3
NARROW = 1e-9  # p.u. and rad: ranges that are left
EDGE = 0.2  # the share of a range that is left on either side of a split, at least


class Tree:
    """Regions that are open, best first, and the proof that they belong to."""

    def __init__(self, tightening: Tightening, box: Box, cuts: Cuts) -> None:
        self.tightening = tightening
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

        `on_box` is told a solution of the relaxation after every step.
        """
        tightening, deadline = self.tightening, self.tightening.deadline
        if not self.root.refuted:
            self._examine(self.root, target(), ROOT_ROUNDS)
        on_box(self.root.point)
        while self._open and self._open[0][0] < target() and not deadline.expired():
            _, _, region = heapq.heappop(self._open)
            if region.point is None:
                break
            split = split_of(tightening.relaxation, region)
            if split is None:
                break
            children = self._split(region, *split)
            for child in children:
                self._examine(child, target(), ROUNDS)
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


def split_of(relaxation: Relaxation, region: Region) -> tuple[int, float] | None:
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
    if worth[column] < NARROW**2:
        return None
    low, high = box.lower[column], box.upper[column]
    return column, float(np.clip(point[column], low + EDGE * (high - low), high - EDGE * (high - low)))
