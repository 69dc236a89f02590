"""What is to be proved: an input set and an unsafe set, as in VNN-LIB, in disjunctive normal form.

Numerals of a property denote the nearest binary64 numbers, as those of an ONNX file denote their binary32 weights; the
property that is proved is the one with these values.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from itertools import chain, pairwise
from typing import TYPE_CHECKING, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from milpverify.errors import InvalidProperty

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import Tensor

    from milpverify.graph import Graph

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Box:
    """The box lower <= x <= upper. Both (nx,) float64, finite, lower <= upper.

    The bounds are flattened; `shape` is the one that they were given in, which says how a torch module takes its input. Where the box is
    `joined` of several, one for each input of a network, `shapes` are theirs; otherwise that is its own.

    Raises:
        InvalidProperty: a bound is no number, NaN or infinite, or a lower bound lies above its upper bound.
    """

    lower: Array
    upper: Array
    shape: tuple[int, ...] = field(init=False)
    shapes: tuple[tuple[int, ...], ...] = field(init=False)

    def __init__(self, lower: ArrayLike, upper: ArrayLike) -> None:
        try:
            low, high = (np.ascontiguousarray(np.asarray(side, dtype=np.float64).reshape(-1)) for side in (lower, upper))
        except (TypeError, ValueError) as error:
            raise InvalidProperty(f"the bounds of a box are arrays of numbers: {error}") from error
        if low.shape != high.shape:
            raise InvalidProperty(f"the box has {low.size} lower and {high.size} upper bounds")
        bad = np.flatnonzero(~(np.isfinite(low) & np.isfinite(high)))
        if bad.size:
            i = int(bad[0])
            raise InvalidProperty(f"the bounds of input X_{i} are not finite numbers: [{low[i]}, {high[i]}]")
        bad = np.flatnonzero(low > high)
        if bad.size:
            i = int(bad[0])
            raise InvalidProperty(f"the box is empty: input X_{i} has lower bound {low[i]} above its upper bound {high[i]}")
        low.flags.writeable = high.flags.writeable = False
        object.__setattr__(self, "lower", low)
        object.__setattr__(self, "upper", high)
        object.__setattr__(self, "shape", np.shape(lower))
        object.__setattr__(self, "shapes", (self.shape,))

    @staticmethod
    def joined(boxes: Sequence[Box]) -> Box:
        """The boxes of several inputs, one after the other, as one."""
        if len(boxes) == 1:
            return boxes[0]
        box = Box(*(np.concatenate([getattr(b, side) for b in boxes]) for side in ("lower", "upper")))
        object.__setattr__(box, "shapes", tuple(shape for b in boxes for shape in b.shapes))
        return box

    @property
    def size(self) -> int:
        """The number of input variables."""
        return int(self.lower.size)


@dataclass(frozen=True, eq=False)
class Rows:
    """Linear inequalities over inputs and outputs: x_rows @ x + y_rows @ y <= rhs, `<` where strict.

    `x_rows` (r, nx), `y_rows` (r, ny), `rhs` (r,), float64; `strict` (r,) bool. Where many disjuncts are made of the same inequalities,
    `origin` is the table of all of these and the places of these rows in it, so that each needs to be bounded only once. What is made of
    rows (`dataclasses.replace`) has none.
    """

    x_rows: Array
    y_rows: Array
    rhs: Array
    strict: NDArray[np.bool_]
    origin: tuple[Rows, NDArray[np.int64]] | None = field(default=None, init=False)

    def __len__(self) -> int:
        return len(self.rhs)

    @staticmethod
    def none(nx: int, ny: int) -> Rows:
        """No inequality at all."""
        return Rows(np.zeros((0, nx)), np.zeros((0, ny)), np.zeros(0), np.zeros(0, dtype=bool))

    @staticmethod
    def on_outputs(y_rows: ArrayLike, rhs: ArrayLike, nx: int, strict: bool = False) -> Rows:
        """Inequalities y_rows @ y <= rhs on outputs alone (the zeros for x take no memory)."""
        y = np.atleast_2d(np.asarray(y_rows, dtype=np.float64))
        b = np.asarray(rhs, dtype=np.float64).reshape(-1)
        return Rows(np.broadcast_to(0.0, (len(b), nx)), y, b, np.full(len(b), strict))

    @staticmethod
    def parts(table: Rows, places: NDArray[np.int64], ends: Iterable[int]) -> list[Rows]:
        """Rows of a table at some places, cut at the ends given: views of one array that know where they come from."""
        x_rows = table.x_rows[places] if table.x_rows.strides[0] else np.broadcast_to(0.0, (len(places), table.x_rows.shape[1]))
        y_rows, rhs, strict = table.y_rows[places], table.rhs[places], table.strict[places]
        out = []
        for begin, end in pairwise(chain([0], ends)):
            rows = Rows(x_rows[begin:end], y_rows[begin:end], rhs[begin:end], strict[begin:end])
            object.__setattr__(rows, "origin", (table, places[begin:end]))
            out.append(rows)
        return out

    @property
    def mentions_x(self) -> NDArray[np.bool_]:
        """Which rows have a nonzero coefficient on an input, (r,)."""
        mentioned: NDArray[np.bool_] = np.any(self.x_rows != 0.0, axis=1)
        return mentioned

    def residual(self, x: Array, y: Array) -> Array:
        """x_rows @ x + y_rows @ y - rhs in plain float64, (r,)."""
        linear = self.x_rows @ x if self.mentions_x.any() else 0.0
        return linear + self.y_rows @ y - self.rhs


@dataclass(frozen=True, eq=False)
class Disjunct:
    """One way to be unsafe: x in `box`, `domain` holds (rows on inputs alone) and all of `unsafe` holds.

    The box already contains every inequality on a single input. Disjuncts that share a box share the object.
    The margin of a point is the largest residual of the `unsafe` rows (-inf if there are none).
    """

    box: Box
    unsafe: Rows
    domain: Rows

    @cached_property
    def strict(self) -> bool:
        """Whether all `unsafe` rows are strict, so that a margin of exactly 0 is safe; not so where there are no rows."""
        return len(self.unsafe) > 0 and bool(self.unsafe.strict.all())

    def closes(self, bound: float) -> bool:
        """Whether a lower bound of the margin proves that no point is unsafe."""
        return bool(closes(bound, self.strict))


@overload
def closes(bound: float, strict: bool) -> bool: ...
@overload
def closes(bound: Tensor, strict: Tensor) -> Tensor: ...
def closes(bound: float | Tensor, strict: bool | Tensor) -> bool | Tensor:
    """Whether lower bounds of margins prove their disjuncts, elementwise: the one test that closes anything. NaN and -inf prove nothing.

    Args:
        strict: whether all rows of the disjunct are (`Disjunct.strict`).
    """
    return (bound > 0) | (strict & (bound >= 0))


@dataclass(frozen=True, eq=False)
class Problem:
    """A network and the unsafe set: VERIFIED means that no point of any disjunct exists.

    The margin of the problem is the minimum over disjuncts of the margin over the disjunct's inputs. No disjunct at all
    means that the unsafe set is empty. `runtime` holds the original network (ONNX bytes, or a torch module), in which
    counterexamples are re-run; `files` are the files that it came from, each with the SHA-256 of what was read of it (unpacked); `notes`
    say what reading them took for granted or left out.
    `substitution` says which problem it stands for, if it has fewer inputs than that.
    """

    graph: Graph
    disjuncts: tuple[Disjunct, ...]
    runtime: object | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    substitution: Substitution | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for d in self.disjuncts:
            if d.box.size != self.graph.nx:
                raise InvalidProperty(f"the property has {d.box.size} inputs, the network {self.graph.nx}")
            if d.unsafe.y_rows.shape[1] != self.graph.ny:
                raise InvalidProperty(f"the property has {d.unsafe.y_rows.shape[1]} outputs, the network {self.graph.ny}")


@dataclass(frozen=True, eq=False)
class Substitution:
    """The inputs of the problem `whole` as affine functions x = matrix z + offset of fewer inputs z, in the reals.

    `matrix` (nx, nz) and `offset` (nx,), float64: their numbers are exact.
    """

    whole: Problem
    matrix: Array
    offset: Array

    def lift(self, z: Array) -> Array | None:
        """x (nx,) for z (nz,), where float64 holds it; None where it does not."""
        point, x = z.tolist(), np.zeros(len(self.offset))
        for i, (row, constant) in enumerate(zip(self.matrix, self.offset.tolist(), strict=True)):
            places = np.flatnonzero(row).tolist()
            exact = sum((Fraction(float(row[j])) * Fraction(point[j]) for j in places), start=Fraction(constant))
            x[i] = float(exact)
            if Fraction(float(x[i])) != exact:
                return None
        return x
