"""Affine maps that move and add entries: sums, other shapes and orders, selections."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from milpverify.operators.core import Affine, Choosing, Shape

if TYPE_CHECKING:
    from collections.abc import Sequence

    from milpverify.operators.window import Window


@dataclass(frozen=True, eq=False)
class Sum(Affine):
    """y = sum_i c_i x_i of inputs of one shape; `signs` are the c_i, each +1 or -1."""

    signs: tuple[int, ...]

    def linear(self, xs: Sequence[Tensor]) -> Tensor:
        total = xs[0] if self.signs[0] > 0 else -xs[0]
        for sign, x in zip(self.signs[1:], xs[1:], strict=True):
            total = total + x if sign > 0 else total - x
        return total

    def adjoint(self, y: Tensor) -> tuple[Tensor, ...]:
        return tuple(y if sign > 0 else -y for sign in self.signs)

    def _behind(self, window: Window) -> tuple[Window, ...] | None:
        return (window,) * len(self.signs)

    @property
    def directions(self) -> tuple[int, ...]:
        return self.signs

    def absolute(self) -> Affine:
        return Sum(tuple(1 for _ in self.signs))

    @property
    def length(self) -> int:
        return len(self.signs)


@dataclass(frozen=True, eq=False)
class Reshape(Choosing, Affine):
    """The same entries in another shape."""

    in_shape: Shape
    shape: Shape
    length = 1
    copies = True

    def linear(self, xs: Sequence[Tensor]) -> Tensor:
        return xs[0].reshape(xs[0].shape[0], *self.shape)

    def adjoint(self, y: Tensor) -> tuple[Tensor, ...]:
        return (y.reshape(y.shape[0], *self.in_shape),)

    def behind(self, window: Window, shape: Shape) -> tuple[Window, ...] | None:
        return (window,)  # which sees the entries in the other shape still

    def adjoint_within(self, rows: Tensor, window: Window, shape: Shape) -> tuple[Tensor, ...]:
        return (rows,)


@dataclass(frozen=True, eq=False)
class Permute(Choosing, Affine):
    """y = x with its axes in the order `axes` (static axes, the batch axis not counted)."""

    axes: Shape
    length = 1
    copies = True

    def linear(self, xs: Sequence[Tensor]) -> Tensor:
        return xs[0].permute(0, *(a + 1 for a in self.axes))

    def adjoint(self, y: Tensor) -> tuple[Tensor, ...]:
        inverse = sorted(range(len(self.axes)), key=self.axes.__getitem__)
        return (y.permute(0, *(a + 1 for a in inverse)),)

    def _behind(self, window: Window) -> tuple[Window, ...] | None:
        shape = tuple(window.shape[self.axes.index(a)] for a in range(len(self.axes)))
        order = sorted(range(len(window.axes)), key=lambda k: self.axes[window.axes[k]])
        axes, size = (tuple(v[k] for k in order) for v in ([self.axes[a] for a in window.axes], window.size))
        return (replace(window, shape=shape, axes=axes, start=window.start[:, order], size=size),)


@dataclass(frozen=True, eq=False)
class Select(Choosing, Affine):
    """y_i = x[index_i] of the flattened input, 0 where index_i is -1: slicing, gathering, padding, broadcasting, flipping.

    `index` has the shape of the output; `bias` fills constants in.
    """

    index: Tensor  # (*shape), int64
    in_shape: Shape
    bias: Tensor | None = None
    rounded: int = 0

    @cached_property
    def _repeats(self) -> tuple[int, ...]:
        """The axes along which a broadcast repeats what is otherwise the input itself; none if this is not one."""
        axes = tuple(a for a, n in enumerate(self.index.shape) if n > 1 and bool((self.index == self.index.narrow(a, 0, 1)).all()))
        once = self.index[tuple(slice(1) if a in axes else slice(None) for a in range(self.index.dim()))].flatten()
        return axes if torch.equal(once, torch.arange(math.prod(self.in_shape), device=once.device)) else ()

    def linear(self, xs: Sequence[Tensor]) -> Tensor:
        if self._repeats:
            once = [1 if a in self._repeats else n for a, n in enumerate(self.index.shape)]
            return xs[0].reshape(xs[0].shape[0], *once).expand(xs[0].shape[0], *self.index.shape)
        flat = xs[0].reshape(xs[0].shape[0], math.prod(self.in_shape))
        flat = F.pad(flat, (0, 1))  # the zero that index -1 reads
        return flat[:, self.index.reshape(-1)].reshape(flat.shape[0], *self.index.shape)

    @property
    def copies(self) -> bool:
        return self.bias is None and bool((self.index >= 0).all())

    def adjoint(self, y: Tensor) -> tuple[Tensor, ...]:
        if self._repeats:  # a sum over axes takes a fifth of the time of one by places
            return (y.sum(dim=tuple(a + 1 for a in self._repeats)).reshape(y.shape[0], *self.in_shape),)
        flat = y.reshape(y.shape[0], self.index.numel())
        size = math.prod(self.in_shape)
        index = torch.where(self.index < 0, size, self.index).reshape(-1)
        out = flat.new_zeros(y.shape[0], size + 1).index_add(1, index, flat)
        return (out[:, :size].reshape(y.shape[0], *self.in_shape),)

    @property
    def length(self) -> int:
        used = self.index[self.index >= 0]
        return int(torch.bincount(used.reshape(-1)).max()) if used.numel() else 1


@dataclass(frozen=True, eq=False)
class Concat(Affine):
    """The inputs joined along `axis` (a static axis >= 0); `sizes` are their lengths there."""

    axis: int
    sizes: Shape
    length = 1

    def linear(self, xs: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(xs), dim=self.axis + 1)

    def adjoint(self, y: Tensor) -> tuple[Tensor, ...]:
        return tuple(y.split(list(self.sizes), dim=self.axis + 1))

    @property
    def directions(self) -> tuple[int, ...]:
        return (1,) * len(self.sizes)

    def absolute(self) -> Affine:
        return self


@dataclass(frozen=True, eq=False)
class ReduceSum(Choosing, Affine):
    """The sum over some static axes, which stay with length 1."""

    axes: Shape
    in_shape: Shape

    def linear(self, xs: Sequence[Tensor]) -> Tensor:
        return xs[0].sum(dim=tuple(a + 1 for a in self.axes), keepdim=True)

    def adjoint(self, y: Tensor) -> tuple[Tensor, ...]:
        return (y.expand(y.shape[0], *self.in_shape),)

    @property
    def length(self) -> int:
        return math.prod(self.in_shape[a] for a in self.axes)
