"""Affine maps with weights: matrices, dense and sparse, convolutions, scales."""

from __future__ import annotations

import dataclasses
import math
import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from milpverify.operators.core import Affine, Shape, Weighted

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, eq=False)
class Linear(Weighted, Affine):
    """y = x W^T + b along the last axis. `weight` (m, n), `bias` (m,)."""

    weight: Tensor
    bias: Tensor | None = None
    rounded: int = 0

    def linear(self, xs: Sequence[Tensor]) -> Tensor:
        return xs[0] @ self.weight.T

    def adjoint(self, y: Tensor) -> tuple[Tensor, ...]:
        return (y @ self.weight,)

    @property
    def length(self) -> int:
        return max(self.weight.shape)

    @property
    def adjoint_length(self) -> int:
        return self.weight.shape[0]

    def rows(self, index: Tensor, shape: Shape) -> tuple[Tensor, ...]:
        if math.prod(shape) != shape[-1]:
            return super().rows(index, shape)
        return (self.weight[index].reshape(len(index), *shape[:-1], -1),)


SPARSE, FEWEST = 0.05, 1 << 14
"""Matrices with so small a share of entries other than 0, and so many entries, are multiplied as sparse ones."""


@dataclass(frozen=True, eq=False)
class SparseLinear(Affine):
    """y = x W^T + b along the last axis, of a matrix W (m, n) whose entries other than 0 are `values` at (`row`, `column`), row by row.

    A layer that pairs entries, or moves and adds some of them, as a dense matrix takes a thousand times the work.
    """

    values: Tensor  # (k,)
    row: Tensor  # (k,) int64, ascending
    column: Tensor  # (k,) int64
    size: tuple[int, int]
    bias: Tensor | None = None
    rounded: int = 0

    @staticmethod
    def of(dense: Linear) -> SparseLinear | None:
        """A matrix as a sparse one, where that pays."""
        weight = dense.weight
        if weight.numel() < FEWEST or int(weight.count_nonzero()) > SPARSE * weight.numel():
            return None
        if weight.is_contiguous():
            row, column = weight.nonzero(as_tuple=True)
        else:  # by columns, as it lies
            column, row = weight.T.nonzero(as_tuple=True)
            order = row.argsort(stable=True)
            row, column = row[order], column[order]
        return SparseLinear(weight[row, column], row, column, (weight.shape[0], weight.shape[1]), dense.bias, dense.rounded)

    @cached_property
    def _matrix(self) -> Tensor:
        return self._compressed(self.row, self.column, self.size)

    @cached_property
    def _transposed(self) -> Tensor:
        return self._compressed(self.column, self.row, self.size[::-1])

    def _compressed(self, row: Tensor, column: Tensor, size: tuple[int, ...]) -> Tensor:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse (CSR tensor support|invariant checks)")
            return torch.sparse_coo_tensor(torch.stack([row, column]), self.values, size).coalesce().to_sparse_csr()

    def linear(self, xs: Sequence[Tensor]) -> Tensor:
        return self._times(self._matrix, xs[0])

    def adjoint(self, y: Tensor) -> tuple[Tensor, ...]:
        return (self._times(self._transposed, y),)

    @staticmethod
    def _times(matrix: Tensor, x: Tensor) -> Tensor:
        return (matrix @ x.reshape(-1, x.shape[-1]).T).T.reshape(*x.shape[:-1], matrix.shape[0])

    @cached_property
    def length(self) -> int:
        return max(self._longest(self.row), self._longest(self.column))

    @cached_property
    def adjoint_length(self) -> int:
        return self._longest(self.column)

    @staticmethod
    def _longest(place: Tensor) -> int:
        return max(1, int(place.bincount().max())) if len(place) else 1

    @property
    def directions(self) -> tuple[int, ...]:
        return (1 if bool((self.values >= 0).all()) else -1 if bool((self.values <= 0).all()) else 0,)

    def absolute(self) -> SparseLinear:
        return dataclasses.replace(self, values=self.values.abs(), bias=None if self.bias is None else self.bias.abs())

    def products(self, shape: Shape) -> int:
        return len(self.values) * math.prod(shape[:-1])


@dataclass(frozen=True, eq=False)
class Conv(Weighted, Affine):
    """Convolution in 1, 2 or 3 dimensions on (batch, channels, *space), as ONNX Conv. `weight` (out, in / groups, *kernel)."""

    weight: Tensor
    stride: Shape
    pads: tuple[tuple[int, int], ...]  # (begin, end) per spatial axis
    dilation: Shape
    groups: int
    in_shape: Shape  # (batch, channels, *space)
    bias: Tensor | None = None  # (out, 1, ..., 1)
    rounded: int = 0

    def linear(self, xs: Sequence[Tensor]) -> Tensor:
        x = xs[0]
        flat = F.pad(x.flatten(0, 1), [p for pair in reversed(self.pads) for p in pair])
        conv = (F.conv1d, F.conv2d, F.conv3d)[len(self.stride) - 1]
        y = conv(flat, self.weight, None, self.stride, 0, self.dilation, self.groups)
        return y.reshape(x.shape[0], self.in_shape[0], *y.shape[1:])

    def adjoint(self, y: Tensor) -> tuple[Tensor, ...]:
        space = self.in_shape[2:]
        kernel = self.weight.shape[2:]
        flat = y.flatten(0, 1)
        # What the transposed convolution misses of the padded input, because strides skipped the rest.
        extra = [
            s + sum(p) - ((o - 1) * st + d * (k - 1) + 1)
            for s, p, o, st, d, k in zip(space, self.pads, flat.shape[2:], self.stride, self.dilation, kernel, strict=True)
        ]
        transposed = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[len(self.stride) - 1]
        x = transposed(flat, self.weight, None, self.stride, 0, 0, self.groups, self.dilation)
        x = F.pad(x, [v for e in reversed(extra) for v in (0, e)])
        for axis, (size, (begin, _)) in enumerate(zip(space, self.pads, strict=True)):
            x = x.narrow(2 + axis, begin, size)
        return (x.reshape(y.shape[0], *self.in_shape),)

    @property
    def length(self) -> int:
        return math.prod(self.weight.shape[2:]) * max(self.weight.shape[1], self.weight.shape[0] // self.groups)


@dataclass(frozen=True, eq=False)
class Scale(Weighted, Affine):
    """y = w * x + b elementwise; `weight` and `bias` broadcast to the shape, None means 1 and 0."""

    weight: Tensor | None = None
    bias: Tensor | None = None
    rounded: int = 0
    length = 1

    def linear(self, xs: Sequence[Tensor]) -> Tensor:
        return xs[0] if self.weight is None else xs[0] * self.weight

    def adjoint(self, y: Tensor) -> tuple[Tensor, ...]:
        return (y if self.weight is None else y * self.weight,)
