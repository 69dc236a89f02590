"""Rows of entries that are near each other, together: how large a tile of them shares a window, by what rows cost behind it.

A larger tile has more rows to share its lines, which are cut out once for all, and a larger window for each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from milpverify.graph import Pullback
from milpverify.operators import Affine, Window
from milpverify.propagation.request import CostTuning

if TYPE_CHECKING:
    from milpverify.graph import Graph, Node


@dataclass(frozen=True)
class Cost:
    """Behind a tile: multiplications of a row and of a group of rows, and the mean number of entries that a row has at a node."""

    row: float
    group: float
    entries: float


@dataclass(frozen=True)
class Tiling:
    """A node's entries in tiles: stretches of `tile` along `axes`."""

    shape: tuple[int, ...]
    axes: tuple[int, ...]
    tile: tuple[int, ...]
    cost: Cost

    @property
    def counts(self) -> tuple[int, ...]:
        """How many tiles there are along each axis."""
        return tuple(-(-self.shape[axis] // t) for axis, t in zip(self.axes, self.tile, strict=True))

    @property
    def count(self) -> int:
        """How many tiles there are."""
        return math.prod(self.counts)

    def of(self, index: Tensor) -> Tensor:
        """The tiles that flat entries of the node lie in, elementwise, numbered row by row."""
        places = places_of(index, self.shape)
        found = torch.zeros_like(index)
        for axis, t, n in zip(self.axes, self.tile, self.counts, strict=True):
            found = found * n + places[axis] // t
        return found

    def window(self, tile: Tensor) -> Window:
        """The windows that are some tiles (groups,); at the ends of axes they overlap with those before."""
        starts = []
        for place, axis, t in zip(places_of(tile, self.counts), self.axes, self.tile, strict=True):
            starts.append((place * t).clamp(max=self.shape[axis] - t))
        return Window(self.shape, self.axes, torch.stack(starts, dim=1), self.tile)

    def local(self, index: Tensor, window: Window) -> Tensor:
        """Flat entries (groups, rows) as entries of what lies in their windows."""
        found = torch.zeros_like(index)
        for axis, (place, n) in enumerate(zip(places_of(index, self.shape), window.within, strict=True)):
            if axis in self.axes:
                place = place - window.start[:, self.axes.index(axis)].unsqueeze(1)
            found = found * n + place
        return found


def places_of(index: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Per axis, where flat entries lie, in the shape of `index` (torch's own imports a computer algebra system)."""
    places = []
    for count in reversed(shape):
        places.append(index % count)
        index = index // count
    return tuple(reversed(places))


_KNOWN: WeakKeyDictionary[Graph, dict[tuple[Any, ...], Cost]] = WeakKeyDictionary()


def tiling(graph: Graph, node: Node, rows: float, tuning: CostTuning = CostTuning()) -> Tiling | None:
    """The tiles that make so many rows of a node, of one box and equally spread, cheapest; None where whole rows are about as cheap."""
    shape = _view(graph, node)
    if len(shape) < 3 or not rows:
        return None
    best, least = None, cost(graph, node, shape, (), (), tuning).row * rows / tuning.cheaper
    if least < tuning.small:
        return None
    channels_first, channels_last = tuple(range(2, len(shape))), tuple(range(1, len(shape) - 1))
    for axes in (channels_first, channels_last) if len(shape) > 3 else (channels_first,):
        space = tuple(shape[a] for a in axes)
        size = 1
        while size < max(space):
            tile = tuple(min(size, n) for n in space)
            found = Tiling(shape, axes, tile, cost(graph, node, shape, axes, tile, tuning))
            total = rows * found.cost.row + min(rows, found.count) * found.cost.group
            if total < least:
                best, least = found, total
            size *= 2
    return best


def pass_for(graph: Graph, node: Node, rows: float, tuning: CostTuning = CostTuning()) -> float:
    """Multiplications of a pass for so many rows of a node, of one box, in windows where these are cheaper."""
    found = tiling(graph, node, rows, tuning)
    if found is None:
        return rows * cost(graph, node, node.shape, (), (), tuning).row
    return rows * found.cost.row + min(rows, found.count) * found.cost.group


def _view(graph: Graph, node: Node) -> tuple[int, ...]:
    """The shape as which a node is seen: where it is flat, that of the same entries before it, if there is one."""
    shape, now = node.shape, node
    while len(shape) < 3 and len(now.inputs) == 1 and graph.nodes[now.inputs[0]].size == node.size:
        now = graph.nodes[now.inputs[0]]
        shape = now.shape
    return shape if len(shape) >= 3 else node.shape


def cost(
    graph: Graph, node: Node, shape: tuple[int, ...], axes: tuple[int, ...], tile: tuple[int, ...], tuning: CostTuning = CostTuning()
) -> Cost:
    """What rows cost behind a tile of a node that is seen in a shape; without axes they are whole."""
    known = _KNOWN.setdefault(graph, {})
    key = node.id, axes, tile, tuning.entry, tuning.cut, tuning.share
    if key not in known:
        start = Window(shape, axes, torch.zeros(1, len(axes), dtype=torch.int64, device="cpu"), tile) if axes else None
        known[key] = _cost(graph, node, start, tuning)
    return known[key]


def _cost(graph: Graph, node: Node, start: Window | None, tuning: CostTuning) -> Cost:
    row = group = entries = 0.0
    entry, cut, share = tuning.entry, tuning.cut, tuning.share
    passed = 0
    walk: Pullback[Window | None] = Pullback(graph, {node.id: start}, lambda a, b: None if a is None or b is None else a.joined(b))
    for now, window in walk:
        if now.id != node.id and window is not None and window.share > share:
            window = None
        size = now.size if window is None else math.prod(window.within)
        row, entries, passed = row + entry * size, entries + size, passed + 1
        behind: tuple[Window | None, ...] = (window,) * len(now.inputs)
        if isinstance(now.op, Affine):
            found = None if window is None else now.op.behind(window, now.shape)
            if now.id != node.id:  # the first step reads rows
                row += now.op.products(now.shape if window is None or found is None else window.within)
            behind = found or (None,) * len(now.inputs)
        else:
            group += cut * size
        walk.send(now, behind)
    return Cost(row, group, entries / passed)
