"""Convolutions, and their adjoints in the form that is fastest for their shape.

A transposed convolution with few channels, or with a stride, reaches a few hundredths of a matrix product's rate. Two other forms are sums
of the same products, no longer than those of the convolution itself: a convolution with the flipped kernel, whose strided taps become
channels that are interleaved afterwards, and a matrix where the kernel covers its whole input. Which one is taken is a rule by shape.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from milpverify.operators.core import Affine, OperatorTuning, Shape, Weighted
from milpverify.operators.window import Window

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

CONVOLVED = (F.conv1d, F.conv2d, F.conv3d)
TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)


class _Map(torch.autograd.Function):
    """A linear map whose gradients go through a transpose that is given: torch's own has not the form that is fastest."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, there: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.back = back
        return there(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return ctx.back(gradients[0]), None, None


@dataclass(frozen=True, eq=False)
class Conv(Weighted, Affine):
    """Convolution in 1, 2 or 3 dimensions on (batch, channels, *space), as ONNX Conv. `weight` (out, in / groups, *kernel)."""

    weight: Tensor
    stride: Shape
    pads: tuple[tuple[int, int], ...]  # (begin, end) per spatial axis; an end below 0 is cut off
    dilation: Shape
    groups: int
    in_shape: Shape  # (batch, channels, *space)
    bias: Tensor | None = None  # (out, 1, ..., 1)
    rounded: int = 0

    def linear(self, xs: Sequence[Tensor]) -> Tensor:
        return self._along(xs[0], self._linear, self._adjoint)

    def _linear(self, x: Tensor) -> Tensor:
        flat = F.pad(x.flatten(0, 1), [p for pair in reversed(self.pads) for p in pair])
        y = CONVOLVED[len(self.stride) - 1](flat, self.weight, None, self.stride, 0, self.dilation, self.groups)
        return y.reshape(x.shape[0], self.in_shape[0], *y.shape[1:])

    def adjoint(self, y: Tensor) -> tuple[Tensor, ...]:
        return (self._along(y, self._adjoint, self._linear),)

    def _along(self, x: Tensor, there: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor]) -> Tensor:
        """One way; gradients that may come back take the other."""
        if not (x.requires_grad and self._flips):
            return there(x)
        moved: Tensor = _Map.apply(x, there, back)  # type: ignore[no-untyped-call]
        return moved

    def _adjoint(self, y: Tensor) -> Tensor:
        return self._within(self._spread(y.flatten(0, 1))).reshape(y.shape[0], *self.in_shape)

    def rows(self, index: Tensor, shape: Shape) -> tuple[Tensor, ...]:
        return (self._within(self._kernels(index, shape).flatten(0, 1)).reshape(len(index), *self.in_shape),)

    def rows_within(self, index: Tensor, window: Window, shape: Shape) -> tuple[Tensor, ...]:
        found = self._kernels(index.flatten(), window.within)
        return (found.reshape(*index.shape, *found.shape[1:]),)

    def _kernels(self, index: Tensor, within: Shape) -> Tensor:
        """A row is a kernel at its place among zeros: (R, batch, in, *reach)."""
        batch, channels, space = within[0], within[1], within[2:]
        reach = self._reach(space)
        position, base = index, torch.zeros_like(index)
        taps = torch.zeros(1, dtype=torch.int64, device=index.device)
        step = math.prod(reach)
        strides = [step := step // n for n in reach]
        for count, stride, along in zip(reversed(space), reversed(self.stride), reversed(strides), strict=True):
            base = base + position % count * (stride * along)
            position = position // count
        for count, dilation, along in zip(self.weight.shape[2:], self.dilation, strides, strict=True):
            taps = (taps.unsqueeze(1) + torch.arange(count, device=index.device) * (dilation * along)).flatten()
        channel, image = position % channels, position // channels
        slot = image * self.groups + channel // (channels // self.groups)
        each = self.weight.shape[1]
        out = self.weight.new_zeros(len(index), batch * self.groups, each, math.prod(reach))
        row = torch.arange(len(index), device=index.device).unsqueeze(1)
        out[row, slot.unsqueeze(1), :, base.unsqueeze(1) + taps] = self.weight.flatten(2).mT[channel]
        return out.reshape(len(index), batch, self.groups * each, *reach)

    def _behind(self, window: Window) -> tuple[Window, ...] | None:
        dims = len(self.stride)
        if window.axes != tuple(range(2, 2 + dims)) or any(end < 0 for _, end in self.pads):  # beyond the node would be inside the input
            return None
        begin = window.start.new_tensor([begin for begin, _ in self.pads])
        start, size = window.start * window.start.new_tensor(self.stride) - begin, self._reach(window.size)
        ends = start + start.new_tensor(size)
        inside = bool((start >= 0).all()) and bool((ends <= start.new_tensor(self.in_shape[2:])).all())
        return (Window(self.in_shape, window.axes, start, size, inside),)

    def adjoint_within(self, rows: Tensor, window: Window, shape: Shape) -> tuple[Tensor, ...]:
        spread = self._spread(rows.flatten(0, 2))
        return (spread.reshape(*rows.shape[:3], *spread.shape[1:]),)

    def products(self, shape: Shape) -> int:
        return math.prod(shape) * self.weight[0].numel()

    def _reach(self, space: Sequence[int]) -> Shape:
        """How many entries of the padded input so many windows read along each axis."""
        kernel = self.weight.shape[2:]
        return tuple((o - 1) * s + d * (k - 1) + 1 for o, s, d, k in zip(space, self.stride, self.dilation, kernel, strict=True))

    def _spread(self, y: Tensor) -> Tensor:
        """The transpose onto what the windows read of the padded input: (N, out, *windows) -> (N, in, *reach)."""
        space = y.shape[2:]
        if math.prod(space) == 1 and self.groups == 1 and max(self.dilation) == 1:
            return (y.flatten(1) @ self.weight.flatten(1)).reshape(len(y), *self.weight.shape[1:])
        if self._flips:
            return self._by_flipped_kernel(y)
        return TRANSPOSED[len(space) - 1](y, self.weight, None, self.stride, 0, 0, self.groups, self.dilation)

    @cached_property
    def _flips(self) -> bool:
        return self.flips()

    def flips(self, tuning: OperatorTuning = OperatorTuning()) -> bool:
        """Whether a convolution with the flipped kernel is faster than a transposed convolution."""
        if self.groups > 1 or max(self.dilation) > 1 or self.weight.is_cuda:
            return False
        out, channels, *kernel = self.weight.shape
        filled = math.prod(-(-k // s) * s / k for k, s in zip(kernel, self.stride, strict=True))
        if self.weight.dtype == torch.float64:
            return channels * math.prod(self.stride) >= tuning.more * out * filled
        return out < tuning.few_out if max(self.stride) == 1 else channels * filled <= tuning.few_in

    @cached_property
    def _flipped(self) -> Tensor:
        """Per place within a stride the taps there, flipped: (in * product of strides, out, *taps)."""
        out, channels, *kernel = self.weight.shape
        dims = len(kernel)
        taps = [-(-k // s) for k, s in zip(kernel, self.stride, strict=True)]
        filled = F.pad(
            self.weight, [v for k, t, s in zip(kernel[::-1], taps[::-1], self.stride[::-1], strict=True) for v in (0, t * s - k)]
        )
        split = filled.reshape(out, channels, *(n for pair in zip(taps, self.stride, strict=True) for n in pair))
        moved = split.permute(1, *range(3, 3 + 2 * dims, 2), 0, *range(2, 2 + 2 * dims, 2))
        return moved.reshape(-1, out, *taps).flip(*range(2, 2 + dims)).contiguous()

    def _by_flipped_kernel(self, y: Tensor) -> Tensor:
        dims, kernel = len(self.stride), self._flipped
        z = CONVOLVED[dims - 1](y, kernel, None, 1, [t - 1 for t in kernel.shape[2:]])
        if max(self.stride) == 1:
            return z
        channels, space = self.weight.shape[1], z.shape[2:]
        places = z.reshape(len(z), channels, *self.stride, *space)
        mixed = places.permute(0, 1, *(a for d in range(dims) for a in (2 + dims + d, 2 + d)))
        x = mixed.reshape(len(z), channels, *(n * s for n, s in zip(space, self.stride, strict=True)))
        for axis, n in enumerate(self._reach(y.shape[2:]), start=2):
            x = x.narrow(axis, 0, n)
        return x

    def _within(self, x: Tensor) -> Tensor:
        """What lies in the input of what lies in the padded input: (N, in, *reach) -> (N, in, *space)."""
        space = self.in_shape[2:]
        missed = [max(0, begin + n - r) for n, (begin, _), r in zip(space, self.pads, x.shape[2:], strict=True)]
        if any(missed):  # because strides skipped the rest, or pads below 0 the end
            x = F.pad(x, [v for m in reversed(missed) for v in (0, m)])
        for axis, (size, (begin, _)) in enumerate(zip(space, self.pads, strict=True)):
            x = x.narrow(2 + axis, begin, size)
        return x

    @property
    def length(self) -> int:
        return math.prod(self.weight.shape[2:]) * max(self.weight.shape[1], self.weight.shape[0] // self.groups)


@dataclass(frozen=True, eq=False)
class Transposed(Affine):
    """The transpose of a convolution, plus a bias: from the shape (batch, out, *windows) to its (batch, in, *space)."""

    conv: Conv  # without bias
    bias: Tensor | None = None  # (in, 1, ..., 1)
    rounded: int = 0

    def linear(self, xs: Sequence[Tensor]) -> Tensor:
        return self.conv.adjoint(xs[0])[0]

    def adjoint(self, y: Tensor) -> tuple[Tensor, ...]:
        return (self.conv.linear([y]),)

    @property
    def length(self) -> int:
        return self.conv.length

    @property
    def directions(self) -> tuple[int, ...]:
        return self.conv.directions

    @property
    def dtype(self) -> torch.dtype:
        return self.conv.dtype

    def absolute(self) -> Transposed:
        return replace(self, conv=self.conv.absolute(), bias=None if self.bias is None else self.bias.abs())

    def lost(self, dtype: torch.dtype) -> float:
        return self.conv.lost(dtype)

    def products(self, shape: Shape) -> int:
        kernels = self.conv.weight[:, 0].numel() // self.conv.groups
        return math.prod(shape) * kernels // math.prod(self.conv.stride)
