"""The lowering rules of ONNX operators that slide a window: convolution, average and max pooling."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING

import numpy as np

from milpverify.errors import InvalidModel
from milpverify.frontends.builder import Builder, Index
from milpverify.frontends.constants import Array, Constant
from milpverify.frontends.onnx_node import Operation, Value, rule
from milpverify.graph import Node
from milpverify.operators import Shape

if TYPE_CHECKING:
    from collections.abc import Sequence

WINDOW = "auto_pad dilations kernel_shape pads strides"


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

    @property
    def reach(self) -> int:
        """The padding behind the last entry that the windows read (with `ceil_mode` more than `end`)."""
        return max(0, (self.windows - 1) * self.stride + (self.kernel - 1) * self.dilation + 1 - self.size - self.begin)

    @property
    def taps(self) -> Index:
        """The entries that each window reads, (windows, kernel); below 0 and from `size` on they are padding."""
        return np.arange(self.windows)[:, None] * self.stride - self.begin + np.arange(self.kernel) * self.dilation


def window_axes(op: Operation, x: Node, kernel: Shape) -> list[Axis]:
    """The window of a convolution or pooling along every spatial axis."""
    space = x.shape[2:]
    n = len(space)
    if not 1 <= n <= 3:
        raise op.refuse(f"its input has shape {x.shape}; 1 to 3 spatial axes have a rule")
    strides, dilations = (op.attributes.get(key) or [1] * n for key in ("strides", "dilations"))
    pads = op.attributes.get("pads") or [0] * (2 * n)
    auto, ceil = op.attributes["auto_pad"], op.attributes.get("ceil_mode", 0)
    if not len(kernel) == len(strides) == len(dilations) == len(pads) // 2 == n:
        raise InvalidModel(f"{op} has a kernel, strides, dilations or pads that do not fit its input of shape {x.shape}")
    if min(*kernel, *strides, *dilations) < 1:
        raise InvalidModel(f"{op} has a kernel, strides or dilations that are not positive")
    if auto not in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"):
        raise InvalidModel(f"{op} has auto_pad '{auto}', which the standard does not know")
    if min(pads) < 0:
        raise op.refuse("negative pads have no rule; crop with a Slice instead")
    axes = []
    for a in range(n):
        size, k, stride, dilation, begin, end = space[a], kernel[a], strides[a], dilations[a], pads[a], pads[a + n]
        span = (k - 1) * dilation + 1
        if auto in ("SAME_UPPER", "SAME_LOWER"):
            if dilation != 1:
                # The standard pads for the dilated kernel. ONNX Runtime refuses such a Conv and pads poolings as if they were not dilated.
                raise op.refuse(
                    f"auto_pad {auto} with dilations is padded by ONNX Runtime otherwise than the standard says; export explicit pads"
                )
            windows = -(-size // stride)
            padding = max(0, (windows - 1) * stride + span - size)
            begin = padding // 2 if auto == "SAME_UPPER" else padding - padding // 2
            end = padding - begin
        else:
            if auto == "VALID":
                begin = end = 0
            free = size + begin + end - span
            windows = (-(-free // stride) if ceil else free // stride) + 1
            if ceil and (windows - 1) * stride >= size + begin:
                windows -= 1  # a window that would begin in the padding behind is left out
        if windows < 1:
            raise InvalidModel(f"{op} has a window larger than its padded input of shape {x.shape}")
        axes.append(Axis(size, k, stride, dilation, begin, end, windows))
    return axes


def slide(g: Builder, x: Node, weight: Array | Constant, axes: Sequence[Axis], groups: int) -> Node:
    """A convolution along the axes."""
    pads = [(a.begin, a.reach) for a in axes]
    return g.conv(x, weight, [a.stride for a in axes], pads, [a.dilation for a in axes], groups)


@rule("Conv", attributes=f"{WINDOW} group")
def _conv(g: Builder, op: Operation) -> Value:
    x, weight, bias = op.node(), op.weight(1), op.constant(2)
    kernel = tuple(op.attributes.get("kernel_shape") or weight.shape[2:])
    if kernel != weight.shape[2:]:
        raise InvalidModel(f"{op} has a kernel_shape {kernel} that is not that of its weight {weight.shape}")
    y = slide(g, x, weight, window_axes(op, x, kernel), op.attributes["group"])
    return y if bias is None else g.scale(y, bias=bias.reshape(-1, *[1] * len(kernel)))


@rule("AveragePool", attributes=f"{WINDOW} ceil_mode count_include_pad")
def _average_pool(g: Builder, op: Operation) -> Value:
    x = op.node()
    return average_pool(g, x, window_axes(op, x, tuple(op.attributes["kernel_shape"])), bool(op.attributes["count_include_pad"]))


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
        return slide(g, x, Constant(ones) / count.flat[0], axes, channels)
    return g.scale(slide(g, x, ones, axes, channels), 1.0 / Constant.of(count))


@rule("MaxPool", attributes=f"{WINDOW} ceil_mode storage_order")
def _max_pool(g: Builder, op: Operation) -> Value:
    x = op.node()
    return max_pool(g, x, window_axes(op, x, tuple(op.attributes["kernel_shape"])))


def max_pool(g: Builder, x: Node, axes: Sequence[Axis]) -> Node:
    """A tournament among the entries of each window.

    Along each axis the taps are filled up to a power of two by repeating the last one, so that windows which overlap play
    the same pairs and share them.

    Raises:
        ValueError: a window holds no entry.
    """
    windows = np.zeros((1, 1), dtype=np.int64)  # (windows, taps), over the axes so far
    for axis in axes:
        taps = axis.taps
        valid = (taps >= 0) & (taps < axis.size)
        if not valid.any(1).all():
            raise ValueError("a window lies in the padding altogether")
        # A tap in the padding reads an entry that the window has already.
        taps = np.where(valid, taps, np.take_along_axis(taps, valid.argmax(1)[:, None], 1))
        taps = np.pad(taps, ((0, 0), (0, (1 << (axis.kernel - 1).bit_length()) - axis.kernel)), mode="edge")
        joined = windows[:, None, :, None] * axis.size + taps[None, :, None, :]
        windows = joined.reshape(len(windows) * len(taps), -1)
    planes = g.reshape(x, (math.prod(x.shape[:2]), math.prod(x.shape[2:])))
    return g.extremum(planes, windows, (*x.shape[:2], *(a.windows for a in axes)))
