"""The core operators that every network is lowered to: affine maps with their adjoints, elementwise nonlinearities and products.

Algorithms know no operator by name. An affine operator offers `linear` (the map without its bias), `adjoint` (its transpose, all that
backward bound propagation needs), `absolute` (the map with |W|, all that intervals and rounding-error bounds need) and `terms` (how many
roundings a product may suffer). A nonlinear one offers its values in floats, intervals and rationals, and says what encodings may make of
it; how it is relaxed is a rule of `relaxations/`. Tensors carry one leading batch axis N that static shapes do not mention: (N, *shape).
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from milpverify.arithmetic.interval import Interval, mul
from milpverify.tuning import Tuning

if TYPE_CHECKING:
    from collections.abc import Sequence
    from fractions import Fraction

    from milpverify.balls.ball import Ball
    from milpverify.balls.halfspaces import Halfspaces
    from milpverify.functions.catalogue import Function
    from milpverify.functions.pieces import Pieces
    from milpverify.functions.terms import Term
    from milpverify.operators.window import Window

Shape = tuple[int, ...]


class OperatorTuning(Tuning):
    """Which form of a product is faster, by shape. Operators know no options of a search."""

    of_runs = False

    few_out: int = 16
    few_in: int = 12
    """In float32 a flipped kernel is faster than a transposed convolution for fewer output channels where there is no stride, and for at
    most so many input channels (with their share of the zeros that fill up strides) where there is: 1.4 to 5 times, on one core with
    AVX-512."""
    more: int = 2
    """In float64, where so many times more channels result from a flipped kernel than enter it: 1.2 to 7 times."""
    sparse: float = 0.05
    fewest: int = 1 << 14
    """Matrices with so small a share of entries other than 0, and so many entries, are multiplied as sparse ones."""


def converted(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Weights, of any shape, in another precision: 0 where they are subnormal there, which takes a hundred times as long in products."""
    kept = weight.to(dtype)
    return kept if dtype == weight.dtype else torch.where(kept.abs() < torch.finfo(dtype).tiny, 0.0, kept)


def units(index: Tensor, shape: Shape, dtype: torch.dtype) -> Tensor:
    """Unit vectors (R, *shape) for flat entries (R,)."""
    zeros = torch.zeros(len(index), math.prod(shape), dtype=dtype, device=index.device)
    return zeros.scatter_(1, index.unsqueeze(1), 1.0).reshape(len(index), *shape)


class Operator(ABC):
    """A core operator: the `Input`, an `Affine` or a `Nonlinear` one. Immutable; `to` returns a copy in another precision or elsewhere."""

    def to(self, dtype: torch.dtype, device: torch.device) -> Operator:
        """The same operator with its floating-point tensors converted (index tensors only moved)."""
        changes: dict[str, Tensor | Operator] = {}
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                changes[field.name] = converted(value, dtype).to(device) if value.is_floating_point() else value.to(device)
            elif isinstance(value, Operator):
                changes[field.name] = value.to(dtype, device)
        return dataclasses.replace(self, **changes) if changes else self  # type: ignore[type-var]


@dataclass(frozen=True, eq=False)
class Input(Operator):
    """The network's input x, flattened: shape (nx,); perhaps confined to a ball, and to half-spaces."""

    ball: Ball | None = None
    halfspaces: Halfspaces | None = None


class Nonlinear(Operator):
    """y = f(a, b, ...), entry by entry: inputs and output have one shape. Subclasses answer all that is asked here, or cannot be made."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What its entries are called where neurons are counted."""

    @abstractmethod
    def __str__(self) -> str:
        """What messages call one of them, parameters included."""

    @abstractmethod
    def value(self, xs: Sequence[Tensor]) -> Tensor:
        """f entry by entry: inputs (N, *shape) each -> (N, *shape), in their precision, differentiable; its rounding is not bounded."""

    @abstractmethod
    def interval(self, xs: Sequence[Interval]) -> Interval:
        """A range that contains f of all reals in intervals of any one shape, float64; (-inf, inf) where they leave the domain."""

    @abstractmethod
    def exact(self, xs: Sequence[Fraction]) -> Fraction | None:
        """f of one rational number per input; None where no rational is known to be the value."""

    @property
    @abstractmethod
    def pieces(self) -> Pieces | None:
        """The lines that it is made of, as a function of its one input; None where it is curved, or reads more than one."""

    @property
    @abstractmethod
    def staircase(self) -> bool:
        """Whether its values are integers and its jumps too many to be pieces."""

    @property
    @abstractmethod
    def bilinear(self) -> bool:
        """Whether it is the product of its first and its last input, which may be the same one."""

    @property
    @abstractmethod
    def term(self) -> Term | None:
        """The function in x that it applies to its one input, for solvers that take functions; None where it is none."""


@dataclass(frozen=True, eq=False)
class Elementwise(Nonlinear):
    """y = f(x), elementwise, with a function of the catalogue."""

    function: Function

    @property
    def name(self) -> str:
        return self.function.name

    def __str__(self) -> str:
        return str(self.function)

    def value(self, xs: Sequence[Tensor]) -> Tensor:
        return self.function(xs[0])

    def interval(self, xs: Sequence[Interval]) -> Interval:
        return Interval(*self.function.interval(*xs[0]))

    def exact(self, xs: Sequence[Fraction]) -> Fraction | None:
        return None if self.function.pieces is None else self.function.pieces.value(xs[0])

    @property
    def pieces(self) -> Pieces | None:
        return self.function.pieces

    @property
    def staircase(self) -> bool:
        return self.function.staircase

    @property
    def bilinear(self) -> bool:
        return self.function.is_square

    @property
    def term(self) -> Term:
        return self.function.term


@dataclass(frozen=True)
class Norm:
    """What is known of the factors of a normalisation: 0 <= b and |a| b <= |a| / sqrt((a / largest)^2 + floor), so |a b| <= `largest`.

    b is the reciprocal of a norm of a vector that a belongs to: it is small where a is large. Where `floor` is 0 the norm may be 0.
    """

    largest: float
    floor: float


@dataclass(frozen=True, eq=False)
class Product(Nonlinear):
    """y = a * b, elementwise, of two nodes of one shape. A square is an `Elementwise`, which knows that both factors are one."""

    norm: Norm | None = None

    @property
    def name(self) -> str:
        return "product"

    def __str__(self) -> str:
        return "a product"

    def value(self, xs: Sequence[Tensor]) -> Tensor:
        return xs[0] * xs[1]

    def interval(self, xs: Sequence[Interval]) -> Interval:
        return mul(xs[0], xs[1])

    def exact(self, xs: Sequence[Fraction]) -> Fraction:
        return xs[0] * xs[1]

    @property
    def pieces(self) -> None:
        return None

    @property
    def staircase(self) -> bool:
        return False

    @property
    def bilinear(self) -> bool:
        return True

    @property
    def term(self) -> None:
        return None


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

    def products(self, shape: Shape) -> int:
        """How many multiplications a product of `linear` or `adjoint` takes, about; `shape` is the node's."""
        return math.prod(shape) * self.length

    def behind(self, window: Window, shape: Shape) -> tuple[Window, ...] | None:
        """Per input where the adjoint of rows lies that lie in a window; None where that may be everywhere. `shape` is the node's."""
        return self._behind(window) if window.shape == shape else None

    def _behind(self, window: Window) -> tuple[Window, ...] | None:
        return None

    def adjoint_within(self, rows: Tensor, window: Window, shape: Shape) -> tuple[Tensor, ...]:
        """The transpose of rows in a window (groups, r, *within), clean where anything is summed: one per input, in the window behind."""
        return tuple(part.reshape(*rows.shape[:2], *part.shape[1:]) for part in self.adjoint(rows.flatten(0, 1)))

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
                if torch.equal(held := converted(weight, dtype).to(weight.dtype), weight):  # as most are: float32, in a file
                    continue
                small = weight.abs() < torch.finfo(dtype).tiny
                most = max(most, float((weight - held)[small].abs().amax()) if bool(small.any()) else 0.0)
        return most

    def forward(self, xs: Sequence[Tensor]) -> Tensor:
        """The whole map: (N, *input_shape) each -> (N, *shape)."""
        y = self.linear(xs)
        return y if self.bias is None else y + self.bias

    @property
    def dtype(self) -> torch.dtype:
        """The precision of its coefficients; float32 where it has none."""
        values = (getattr(self, f.name) for f in dataclasses.fields(self))  # type: ignore[arg-type]
        return next((v.dtype for v in values if isinstance(v, Tensor) and v.is_floating_point()), torch.float32)

    def rows(self, index: Tensor, shape: Shape) -> tuple[Tensor, ...]:
        """The adjoint of unit vectors: flat output indices (R,) -> one (R, *input_shape) per input.

        `shape` is the node's shape. Dense operators override it to read their rows instead of multiplying.
        """
        return self.adjoint(units(index, shape, self.dtype))

    def rows_within(self, index: Tensor, window: Window, shape: Shape) -> tuple[Tensor, ...]:
        """As `rows`, of entries (groups, r) of what lies in a window, in the windows behind it."""
        found = units(index.flatten(), window.within, self.dtype)
        return self.adjoint_within(found.reshape(*index.shape, *window.within), window, shape)


class Weighted:
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


class Choosing:
    """What is said of an operator with one input and no coefficient but 0 and 1."""

    bias: Tensor | None
    directions: tuple[int, ...] = (1,)

    def absolute(self) -> Self:
        return self if self.bias is None else dataclasses.replace(self, bias=self.bias.abs())  # type: ignore[type-var]
