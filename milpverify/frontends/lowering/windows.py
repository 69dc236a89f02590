"""Windows that slide over (batch, channels, *space), for every frontend: convolution, its transpose, and pooling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np

from milpverify.frontends.lowering.axes import along
from milpverify.frontends.lowering.builder import Builder, Index, entries
from milpverify.frontends.lowering.constants import Array, Constant
from milpverify.graph import Node


@dataclass(frozen=True)
class Axis:
    """How a window slides along one axis: tap j of window i reads entry i * stride - begin + j * dilation of `size`."""

    size: int
    kernel: int
    stride: int
    dilation: int
    begin: int  # padding before the first entry
    end: int  # and behind the last
    windows: int

    @staticmethod
    def padded(size: int, kernel: int, stride: int, dilation: int, begin: int, end: int, ceil: bool = False) -> Axis:
        """An axis with as many windows as its padding allows; with `ceil` the last may reach beyond it, but not begin there."""
        free = size + begin + end - (kernel - 1) * dilation - 1
        windows = (-(-free // stride) if ceil else free // stride) + 1
        if ceil and (windows - 1) * stride >= size + begin:
            windows -= 1
        return Axis(size, kernel, stride, dilation, begin, end, windows)

    @property
    def reach(self) -> int:
        """The padding behind the last entry that the windows read (with `ceil_mode` more than `end`)."""
        return max(0, (self.windows - 1) * self.stride + (self.kernel - 1) * self.dilation + 1 - self.size - self.begin)

    @property
    def taps(self) -> Index:
        """The entries that each window reads, (windows, kernel); below 0 and from `size` on they are padding."""
        return np.arange(self.windows)[:, None] * self.stride - self.begin + np.arange(self.kernel) * self.dilation


# Convolution


def convolve(g: Builder, x: Node, weight: Array | Constant, axes: Sequence[Axis], groups: int, bias: Array | None = None) -> Node:
    """A convolution along the axes, plus a bias per channel."""
    pads = [(a.begin, a.reach) for a in axes]
    y = g.conv(x, weight, [a.stride for a in axes], pads, [a.dilation for a in axes], groups)
    return _biased(g, y, bias)


def convolve_transposed(
    g: Builder,
    x: Node,
    weight: Array,
    strides: Sequence[int],
    dilations: Sequence[int],
    crops: Sequence[tuple[int, int]],
    groups: int,
    bias: Array | None = None,
) -> Node:
    """A transposed convolution, plus a bias per channel.

    Without strides it is a convolution with the flipped kernel, over the input with zeros around; rows that lie in windows stay there.

    Args:
        weight: (in, out / groups, *kernel).
        crops: what the result lacks of the full one at both ends of each axis; below 0 it is padded.
    """
    n = len(x.shape) - 2
    if max(strides) > 1 and all(begin >= 0 for begin, _ in crops):
        return _biased(g, g.conv_transposed(x, weight, strides, dilations, crops, groups), bias)
    places = entries(x.shape)
    for a, stride in enumerate(strides, start=2):
        spread = np.full((*places.shape[:a], (places.shape[a] - 1) * stride + 1, *places.shape[a + 1 :]), -1, dtype=np.int64)
        spread[(slice(None),) * a + (slice(None, None, stride),)] = places
        places = spread
    for a, (kernel, dilation, crop) in enumerate(zip(weight.shape[2:], dilations, crops, strict=True), start=2):
        begin, end = ((kernel - 1) * dilation - c for c in crop)
        widths = [(0, 0)] * places.ndim
        widths[a] = (max(0, begin), max(0, end))
        kept = slice(max(0, -begin), places.shape[a] - max(0, -end))
        places = np.pad(places[(slice(None),) * a + (kept,)], widths, constant_values=-1)
    rows = weight.reshape(groups, -1, *weight.shape[1:]).swapaxes(1, 2)
    flipped = np.flip(rows.reshape(-1, *rows.shape[2:]), tuple(range(2, n + 2)))
    return _biased(g, g.conv(g.select(x, places), flipped, dilation=dilations, groups=groups), bias)


def _biased(g: Builder, y: Node, bias: Array | None) -> Node:
    return y if bias is None else g.scale(y, bias=bias.reshape(-1, *[1] * (len(y.shape) - 2)))


# Pooling


def average_pool(g: Builder, x: Node, axes: Sequence[Axis], include_padding: bool, divisor: float | None = None) -> Node:
    """A convolution with ones, divided by the number of entries that each window counts, or by a divisor.

    Raises:
        ValueError: a window counts no entry.
    """
    counts = []
    for axis in axes:
        first, last = (-axis.begin, axis.size + axis.end) if include_padding else (0, axis.size)
        counts.append(((axis.taps >= first) & (axis.taps < last)).sum(1))
    count = reduce(np.multiply.outer, counts)
    if not count.all():
        raise ValueError("a window lies in the padding altogether")
    count = count if divisor is None else np.full_like(count, divisor, dtype=np.float64)
    channels = x.shape[1]
    ones = np.ones((channels, 1, *(a.kernel for a in axes)))
    if (count == count.flat[0]).all():
        return convolve(g, x, Constant(ones) / count.flat[0], axes, channels)
    return g.scale(convolve(g, x, ones, axes, channels), 1.0 / Constant.of(count))


def max_pool(g: Builder, x: Node, axes: Sequence[Axis]) -> Node:
    """The largest entry of each window.

    Along each axis the taps are filled up to a power of two by repeating the last one, so that windows which overlap play
    the same pairs and share them.

    Raises:
        ValueError: a window holds no entry.
    """
    return _largest(g, x, [_filled(axis) for axis in axes])


def _filled(axis: Axis) -> Index:
    taps = axis.taps
    valid = (taps >= 0) & (taps < axis.size)
    if not valid.any(1).all():
        raise ValueError("a window lies in the padding altogether")
    # A tap in the padding reads an entry that the window has already.
    taps = np.where(valid, taps, np.take_along_axis(taps, valid.argmax(1)[:, None], 1))
    return np.pad(taps, ((0, 0), (0, (1 << (axis.kernel - 1).bit_length()) - axis.kernel)), mode="edge")


def _largest(g: Builder, x: Node, taps: Sequence[Index]) -> Node:
    """A tournament among the entries of each window, which along each axis are its taps (windows, kernel)."""
    sets = np.zeros((1, 1), dtype=np.int64)  # (windows, taps), over the axes so far
    for size, along_axis in zip(x.shape[2:], taps, strict=True):
        joined = sets[:, None, :, None] * size + along_axis[None, :, None, :]
        sets = joined.reshape(len(sets) * len(along_axis), -1)
    planes = g.reshape(x, (math.prod(x.shape[:2]), math.prod(x.shape[2:])))
    return g.extremum(planes, sets, (*x.shape[:2], *(len(t) for t in taps)))


def adaptive_average_pool(g: Builder, x: Node, counts: Sequence[int]) -> Node:
    """Along each axis a product with the matrix that averages over its stretches, of which there are so many."""
    for axis, count in enumerate(counts, start=2):
        size = x.shape[axis]
        if count == size:
            continue
        if count == 1:
            x = g.scale(g.reduce_sum(x, [axis]), 1.0 / Constant.of(size))
            continue
        ones, lengths = np.zeros((count, size)), np.ones((count, 1))
        for i, (first, last) in enumerate(_stretches(size, count)):
            ones[i, first:last], lengths[i] = 1.0, last - first
        x = along(g, x, axis, Constant(ones) / lengths)
    return x


def adaptive_max_pool(g: Builder, x: Node, counts: Sequence[int]) -> Node:
    """The largest entry of each stretch, of which there are so many along each axis."""
    taps = []
    for size, count in zip(x.shape[2:], counts, strict=True):
        ends = _stretches(size, count)
        longest = max(last - first for first, last in ends)
        taps.append(np.array([np.minimum(np.arange(first, first + longest), last - 1) for first, last in ends]))
    return _largest(g, x, taps)


def _stretches(size: int, count: int) -> list[tuple[int, int]]:
    """The stretches that adaptive pooling cuts an axis into."""
    return [(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]
