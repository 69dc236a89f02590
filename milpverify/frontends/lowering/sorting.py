"""The largest entries along an axis, in order, by a sorting network: Batcher's odd-even merge sort (AFIPS 1968).

A comparator costs one ReLU, r = relu(b - a): its results are a + r and b - r. What no result needs is left out, so that the largest entry
alone takes a comparator per entry. Values only: which entries they come from jumps with x.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from milpverify.frontends.lowering import composites
from milpverify.frontends.lowering.builder import entries

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from milpverify.frontends.lowering.builder import Builder
    from milpverify.graph import Node

COMPARATORS: Final = 4096
"""The most of one sorting network: those of 256 entries. Bounds behind more would say little."""


def ordered(g: Builder, x: Node, axis: int, ranks: Sequence[int], largest: bool = True) -> Node:
    """The entries along an axis that have these ranks in order (0 is the largest, or the smallest), side by side.

    Raises:
        ValueError: the axis or a rank is none, or the network would be too large.
    """
    rank = len(x.shape)
    if not -rank <= axis < rank:
        raise ValueError(f"axis {axis} of a tensor of shape {x.shape}")
    axis %= rank
    length = x.shape[axis]
    if not all(0 <= r < length for r in ranks):
        raise ValueError(f"{max(ranks, default=0) + 1} entries of {length}")
    if not ranks:
        raise ValueError("no entry is asked for")
    sign = 1 if largest else -1
    if len(ranks) == 1 and ranks[0] in (0, length - 1):
        return composites.extremum(g, x, [axis], True, sign if ranks[0] == 0 else -sign)
    layers = _needed(list(_layers(length)), ranks)
    if sum(map(len, layers)) > COMPARATORS:
        raise ValueError(f"to order {len(ranks)} of {length} entries takes more than {COMPARATORS} comparisons")
    axes = [*(a for a in range(rank) if a != axis), axis]
    moved = g.permute(x, axes)
    y = g.reshape(moved, (x.size // length, length))
    for layer in layers:
        y = _compared(g, y, np.array(layer), sign)
    y = g.select(y, entries(y.shape)[:, list(ranks)])
    return g.permute(g.reshape(y, (*moved.shape[:-1], len(ranks))), np.argsort(axes).tolist())


def _compared(g: Builder, y: Node, pairs: np.ndarray[tuple[int, int], np.dtype[np.int64]], sign: int) -> Node:
    """y (planes, entries) with the larger entry (sign 1) of every pair in its first place, the smaller one in its second."""
    places = entries(y.shape)
    first, second = (g.select(y, places[:, c]) for c in pairs.T)
    gain = g.relu(g.sum([second, first], [sign, -sign]))
    source = np.full((2, y.shape[1]), -1, dtype=np.int64)
    for side in (0, 1):
        source[side, pairs[:, side]] = np.arange(len(pairs))
    rows = len(pairs) * np.arange(y.shape[0])[:, None]
    up, down = (g.select(gain, np.where(s < 0, -1, rows + s)) for s in source)
    return g.sum([y, up, down], [1, sign, -sign])


def _layers(length: int) -> Iterator[list[tuple[int, int]]]:
    """Comparators that may work at the same time, layer by layer; beyond the length there would be the smallest entries."""
    size = 1 << (length - 1).bit_length()
    merged = 1
    while merged < size:
        step = merged
        while step:
            pairs = [
                (i + j, i + j + step)
                for j in range(step % merged, size - step, 2 * step)
                for i in range(step)
                if (i + j) // (2 * merged) == (i + j + step) // (2 * merged) and i + j + step < length
            ]
            if pairs:
                yield pairs
            step //= 2
        merged *= 2


def _needed(layers: list[list[tuple[int, int]]], ranks: Sequence[int]) -> list[list[tuple[int, int]]]:
    """The layers without comparators that no rank depends on."""
    read, kept = set(ranks), []
    for layer in reversed(layers):
        pairs = [pair for pair in layer if not read.isdisjoint(pair)]
        read.update(*pairs)
        if pairs:
            kept.append(pairs)
    return kept[::-1]
