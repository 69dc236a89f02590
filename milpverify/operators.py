"""The core operators that every network is lowered to: affine maps with their adjoints, elementwise nonlinearities and products.

Algorithms know no operator by name. An affine operator offers `linear` (the map without its bias), `adjoint` (its transpose, all that
backward bound propagation needs), `absolute` (the map with |W|, all that intervals and rounding-error bounds need) and `terms` (how many
roundings a product may suffer). Tensors carry one leading batch axis N that static shapes do not mention: (N, *shape).
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Self

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from milpverify.balls.ball import Ball
    from milpverify.functions.catalogue import Function

Shape = tuple[int, ...]


class Operator(ABC):
    """A core operator. Immutable; `to` returns a copy in another precision or on another device."""

    def to(self, dtype: torch.dtype, device: torch.device) -> Operator:
        """The same operator with its floating-point tensors converted (index tensors only moved)."""
        changes = {}
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                changes[field.name] = value.to(device, dtype) if value.is_floating_point() else value.to(device)
        return dataclasses.replace(self, **changes) if changes else self  # type: ignore[type-var]


@dataclass(frozen=True, eq=False)
class Input(Operator):
    """The network's input x, flattened: shape (nx,); perhaps confined to a ball."""

    ball: Ball | None = None


@dataclass(frozen=True, eq=False)
class Elementwise(Operator):
    """y = f(x), elementwise, with a function of the catalogue."""

    function: Function


@dataclass(frozen=True, eq=False)
class Product(Operator):
    """y = a * b, elementwise, of two nodes of one shape. A square is an `Elementwise`, which knows that both factors are one."""


class Affine(Operator):
    """y = sum_i W_i x_i + b. Subclasses define linear part and adjoint, and say all that rounding errors and intervals rest on.

    A network stores its constants, and some are computed from them: a quotient, the reciprocal of a count. Where float64 does not hold the
    result, `rounded` says so: each coefficient of W and of b is that of the real map times as many factors (1 + d)^(-+1), |d| <= 2^-53.
    Rounding-error bounds take it as so many more roundings, so that they hold for the real map.
    """

    bias: Tensor | None = None  # broadcastable to the operator's shape
    rounded: int = 0

    @abstractmethod
    def linear(self, xs: Sequence[Tensor]) -> Tensor:
        """The map without bias: inputs (N, *input_shape) -> (N, *shape)."""

    @abstractmethod
    def adjoint(self, y: Tensor) -> tuple[Tensor, ...]:
        """The transpose: (N, *shape) -> one (N, *input_shape) per input."""

    @property
    @abstractmethod
    def length(self) -> int:
        """The length of the longest inner product that `linear` or `adjoint` forms (1 where nothing is summed)."""

    @property
    @abstractmethod
    def directions(self) -> tuple[int, ...]:
        """Per input 1 if it enters with no negative coefficient, -1 if with no positive one, 0 if with both."""

    @abstractmethod
    def absolute(self) -> Affine:
        """The operator with every coefficient of W and b replaced by its absolute value."""

    @property
    def adjoint_length(self) -> int:
        """The length of the longest inner product that `adjoint` forms: at most `length`."""
        return self.length

    @property
    def terms(self) -> int:
        """How many roundings a product of `linear` or `adjoint` suffers at most, those of its coefficient included."""
        return self.length + self.rounded

    @property
    def adjoint_terms(self) -> int:
        """How many roundings a product of `adjoint` suffers at most, those of its coefficient included."""
        return self.adjoint_length + self.rounded

    @property
    def copies(self) -> bool:
        """Whether every entry is one of the entries of the one input."""
        return False

    def lost(self, dtype: torch.dtype) -> float:
        """What a coefficient of W loses at most in another precision where it underflows, and rounding is not relative to its size."""
        most = 0.0
        for f in dataclasses.fields(self):  # type: ignore[arg-type]
            weight = getattr(self, f.name)
            if f.name != "bias" and isinstance(weight, Tensor) and weight.is_floating_point():
                small = weight[weight.abs() < torch.finfo(dtype).tiny]
                most = max(most, float((small - small.to(dtype).to(small.dtype)).abs().amax()) if len(small) else 0.0)
        return most

    def forward(self, xs: Sequence[Tensor]) -> Tensor:
        """The whole map: (N, *input_shape) each -> (N, *shape)."""
        y = self.linear(xs)
        return y if self.bias is None else y + self.bias

    def rows(self, index: Tensor, shape: Shape) -> tuple[Tensor, ...]:
        """The adjoint of unit vectors: flat output indices (R,) -> one (R, *input_shape) per input.

        `shape` is the node's shape. Dense operators override it to read their rows instead of multiplying.
        """
        weight = next(
            (v for f in dataclasses.fields(self) if isinstance(v := getattr(self, f.name), Tensor) and v.is_floating_point()),  # type: ignore[arg-type]
            torch.zeros((), device=index.device),
        )
        units = torch.zeros(len(index), math.prod(shape), dtype=weight.dtype, device=index.device)
        units[torch.arange(len(index), device=index.device), index] = 1.0
        return self.adjoint(units.reshape(len(index), *shape))


class _Weighted:
    """What is said of an operator by its `weight`, all of whose coefficients are entries of it (1 where it is None)."""

    weight: Tensor | None
    bias: Tensor | None

    @property
    def directions(self) -> tuple[int, ...]:
        if self.weight is None or bool((self.weight >= 0).all()):
            return (1,)
        return (-1 if bool((self.weight <= 0).all()) else 0,)

    def absolute(self) -> Self:
        weight, bias = (None if values is None else values.abs() for values in (self.weight, self.bias))
        return dataclasses.replace(self, weight=weight, bias=bias)  # type: ignore[type-var]


class _Choosing:
    """What is said of an operator with one input and no coefficient but 0 and 1."""

    bias: Tensor | None
    directions: tuple[int, ...] = (1,)

    def absolute(self) -> Self:
        return self if self.bias is None else dataclasses.replace(self, bias=self.bias.abs())  # type: ignore[type-var]


@dataclass(frozen=True, eq=False)
class Linear(_Weighted, Affine):
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
class Conv(_Weighted, Affine):
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
class Scale(_Weighted, Affine):
    """y = w * x + b elementwise; `weight` and `bias` broadcast to the shape, None means 1 and 0."""

    weight: Tensor | None = None
    bias: Tensor | None = None
    rounded: int = 0
    length = 1

    def linear(self, xs: Sequence[Tensor]) -> Tensor:
        return xs[0] if self.weight is None else xs[0] * self.weight

    def adjoint(self, y: Tensor) -> tuple[Tensor, ...]:
        return (y if self.weight is None else y * self.weight,)


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

    @property
    def directions(self) -> tuple[int, ...]:
        return self.signs

    def absolute(self) -> Affine:
        return Sum(tuple(1 for _ in self.signs))

    @property
    def length(self) -> int:
        return len(self.signs)


@dataclass(frozen=True, eq=False)
class Reshape(_Choosing, Affine):
    """The same entries in another shape."""

    in_shape: Shape
    shape: Shape
    length = 1
    copies = True

    def linear(self, xs: Sequence[Tensor]) -> Tensor:
        return xs[0].reshape(xs[0].shape[0], *self.shape)

    def adjoint(self, y: Tensor) -> tuple[Tensor, ...]:
        return (y.reshape(y.shape[0], *self.in_shape),)


@dataclass(frozen=True, eq=False)
class Permute(_Choosing, Affine):
    """y = x with its axes in the order `axes` (static axes, the batch axis not counted)."""

    axes: Shape
    length = 1
    copies = True

    def linear(self, xs: Sequence[Tensor]) -> Tensor:
        return xs[0].permute(0, *(a + 1 for a in self.axes))

    def adjoint(self, y: Tensor) -> tuple[Tensor, ...]:
        inverse = sorted(range(len(self.axes)), key=self.axes.__getitem__)
        return (y.permute(0, *(a + 1 for a in inverse)),)


@dataclass(frozen=True, eq=False)
class Select(_Choosing, Affine):
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
class ReduceSum(_Choosing, Affine):
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
