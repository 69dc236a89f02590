"""Affine maps with weights: matrices, dense and sparse, and scales."""

from __future__ import annotations

import dataclasses
import math
import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from milpverify.operators.core import Affine, OperatorTuning, Shape, Weighted
from milpverify.operators.window import Window, filled

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
    def of(dense: Linear, tuning: OperatorTuning = OperatorTuning()) -> SparseLinear | None:
        """A matrix as a sparse one, where that pays."""
        weight = dense.weight
        if weight.numel() < tuning.fewest:
            return None
        lies = weight if (by_rows := weight.is_contiguous()) else weight.T.contiguous()
        most = tuning.sparse * weight.numel()
        if int(lies[: len(lies) // 8].count_nonzero()) > most or int(lies.count_nonzero()) > most:  # a part tells mostly
            return None
        row, column = lies.nonzero(as_tuple=True)
        if not by_rows:
            order = column.argsort(stable=True)
            row, column = column[order], row[order]
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

    def behind(self, window: Window, shape: Shape) -> tuple[Window, ...] | None:
        return (window,)

    def adjoint_within(self, rows: Tensor, window: Window, shape: Shape) -> tuple[Tensor, ...]:
        if self.weight is None:
            return (rows,)
        full = self.weight.reshape(*[1] * (len(shape) - self.weight.dim()), *self.weight.shape)
        if window.shape == shape and all(full.shape[axis] == 1 for axis in window.axes):
            return (rows * full,)
        every = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
        return (rows * window.cut(filled(full.expand(1, 1, *shape)), every)[0].unsqueeze(1),)
