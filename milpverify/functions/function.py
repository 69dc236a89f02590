"""What a nonlinearity is: a family of functions with parameters (`Nonlinearity`), and one of them (`Function`).

Everything is derived from the term: evaluation on tensors, intervals and balls, the derivative, and the linear pieces of a
piecewise-linear function.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import Enum
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from milpverify.errors import InvalidInput, InvalidModel
from milpverify.functions.algebras import ball_algebra, interval_algebra, running_algebra, tensor_algebra
from milpverify.functions.pieces import Pieces, RationalPieces, derive
from milpverify.functions.terms import Apply, Constant, Number, Symbol, Term, differentiate, enclose, evaluate, prepare, substitute, symbols

if TYPE_CHECKING:
    import flint
    from torch import Tensor

    from milpverify.arithmetic.interval import Interval
    from milpverify.arithmetic.running_error import Near
    from milpverify.functions.ranges import Shape

_PRECISION: Final = 128  # bits, of the balls around constants
_X = Symbol("x")
_SQUARE = Apply("pow", (_X, Constant(Fraction(2))))
_FLOOR, _ROUND = Apply("floor", (_X,)), Apply("round", (_X,))


class Curvature(Enum):
    """The shape of a function between two neighbouring inflections."""

    CONVEX = "convex"
    CONCAVE = "concave"
    LINEAR = "linear"


@dataclass(frozen=True)
class Parameter:
    """A parameter's default (None: it must be given) and its values: minimum <= value <= maximum, in steps where given."""

    default: float | None
    minimum: float = -math.inf
    step: float | None = None
    maximum: float = math.inf

    def accepts(self, value: float) -> bool:
        """Whether the value is allowed; an infinite one is if the default is infinite."""
        if math.isinf(value):
            return self.default is not None and math.isinf(self.default)
        return self.minimum <= value <= self.maximum and (
            self.step is None or (Fraction(value) - Fraction(self.minimum)) % Fraction(self.step) == 0
        )

    @property
    def trial(self) -> float:
        """An allowed value to check a file with: the default, or one that makes nothing vanish."""
        if self.default is not None:
            return self.default
        return 0.5 if self.accepts(0.5) else self.minimum


Enclosure = tuple[Term, Term]  # of a number: two ends, equal when one term defines it


@dataclass(frozen=True, eq=False)
class Nonlinearity:
    """One TOML file, parsed: a family of functions, which `bind` turns into a `Function` by fixing the parameters.

    `domain`, `range`, `extrema`, `inflections` and `curvature` are empty where the function is piecewise linear: its pieces,
    derived from the term, say all that.
    """

    name: str
    term: Term
    limits: Mapping[str, Parameter]
    onnx: tuple[str, ...]
    torch: tuple[str, ...]
    derivative: Term | None = None  # in x and the output y
    domain: tuple[Enclosure, ...] = ()  # two ends
    range: tuple[Enclosure, ...] = ()  # two ends
    extrema: tuple[Enclosure, ...] = ()
    inflections: tuple[Enclosure, ...] = ()
    curvature: tuple[Curvature, ...] = ()
    poles: tuple[Enclosure, ...] = ()  # among the inflections
    period: Term | None = None
    jumps: tuple[Term, ...] = ()
    backend: Mapping[str, Term] = field(default_factory=dict)

    @property
    def parameters(self) -> Mapping[str, float | None]:
        """The parameters' names and defaults; None where there is no default."""
        return {name: limit.default for name, limit in self.limits.items()}

    def bind(self, **parameters: float) -> Function:
        """The function with these parameters, the others at their defaults.

        Raises:
            InvalidModel: an unknown or missing parameter, a value that is NaN or not allowed, or a piecewise-linear function
                whose pieces are not exact in binary64.
        """
        for name in parameters:
            if name not in self.limits:
                raise InvalidModel(f"{self.name} has no parameter {name!r}; it has: {', '.join(self.limits) or 'none'}")
        bound = []
        for name, limit in self.limits.items():
            given = parameters.get(name, limit.default)
            if given is None:
                raise InvalidModel(f"{self.name} needs its parameter {name!r}")
            value = float(given)
            if not limit.accepts(value):
                raise InvalidModel(f"{self.name}: {name} = {value} is not allowed")
            bound.append((name, value))
        try:
            rational = self.rational_pieces(dict(bound))
            pieces = None if rational is None else rational.exact()
            if pieces is None and not self.domain:
                raise InvalidInput("the term is piecewise linear with the default parameters, but not with these")
        except InvalidInput as error:
            raise InvalidModel(f"{_call(self.name, bound)}: {error}") from error
        return Function(self.name, tuple(bound), self, pieces)

    def trial(self) -> Function:
        """The function with its default parameters, and some allowed value where there is no default."""
        return self.bind(**{name: limit.trial for name, limit in self.limits.items()})

    def rational_pieces(self, parameters: Mapping[str, float]) -> RationalPieces | None:
        """The exact pieces under these parameters; None where the function is not piecewise linear.

        Raises:
            InvalidInput: a jump that `jumps` does not declare, an infinite parameter where it has an effect.
        """
        values = {name: Constant(_number(value)) for name, value in parameters.items()}
        pieces = derive(substitute(self.term, values))
        declared = {substitute(jump, values) for jump in self.jumps}
        for jump in pieces.jumps if pieces else ():
            if Constant(jump) not in declared:
                raise InvalidInput(f"the term is discontinuous at {jump}, which jumps does not declare")
        return pieces


def _call(name: str, parameters: Sequence[tuple[str, float]]) -> str:
    return f"{name}({', '.join(f'{key}={value}' for key, value in parameters)})" if parameters else name


def _number(value: float) -> Number:
    return Fraction(value) if math.isfinite(value) else value


@dataclass(frozen=True)
class Function:
    """A univariate function, applied elementwise. Functions compare and hash by name and parameters.

    `pieces` is set if and only if the function is piecewise linear. `domain`, `range`, `extrema`, `inflections` are enclosed
    by float64 pairs (lower, upper), equal where the number is a float. The curvature of the pieces between neighbouring
    inflections (kinks of the derivative and poles included) is in `curvature`: one more than the inflections, or, for a
    function with a period, one per inflection, of the piece to its right.
    """

    name: str
    parameters: tuple[tuple[str, float], ...]
    definition: Nonlinearity = field(compare=False, repr=False)
    pieces: Pieces | None = field(compare=False, repr=False)

    def __getstate__(self) -> dict[str, object]:
        """What is derived is made anew where it is unpickled: compiled terms cannot be sent."""
        return {part.name: getattr(self, part.name) for part in fields(self)}

    def __str__(self) -> str:
        """Such as leaky_relu(alpha=0.25)."""
        return _call(self.name, self.parameters)

    def _bound(self, term: Term) -> Term:
        return substitute(term, {name: Constant(_number(value)) for name, value in self.parameters})

    @cached_property
    def term(self) -> Term:
        """The definition, in x alone."""
        return self._bound(self.definition.term)

    @cached_property
    def numeric(self) -> Term:
        """The term that float arithmetic evaluates: equal to `term` in the reals, without overflow or cancellation."""
        return self._bound(self.definition.backend.get("numeric", self.definition.term))

    @cached_property
    def derivative_term(self) -> Term:
        """f' in x and the output y."""
        given = self.definition.derivative
        return differentiate(self.numeric) if given is None else self._bound(given)

    @cached_property
    def staircase(self) -> bool:
        """Whether this is floor or round, whose jumps are too many to be pieces."""
        return self.term in (_FLOOR, _ROUND)

    @cached_property
    def drop(self) -> float:
        """By how much a jump of a staircase lies above the limit from its left: by 1 for floor, by a half for round."""
        return 0.5 if self.term == _ROUND else 1.0

    @cached_property
    def is_square(self) -> bool:
        """Whether this is x * x."""
        return self.term == _SQUARE

    @cached_property
    def exponential(self) -> float:
        """c where this is c exp(x), as functions with f' = f are, which floats cannot hold at arguments of a few hundred; 0 elsewhere."""
        import torch

        return float(self(torch.zeros((), dtype=torch.float64))) if self.derivative_term == Symbol("y") else 0.0

    def _enclosures(self, numbers: tuple[Enclosure, ...]) -> tuple[tuple[float, float], ...]:
        return tuple((_enclose(self._bound(a))[0], _enclose(self._bound(b))[1]) for a, b in numbers)

    @cached_property
    def domain(self) -> tuple[tuple[float, float], ...]:
        """The ends of the domain, enclosed."""
        return self._enclosures(self.definition.domain)

    @cached_property
    def range(self) -> tuple[tuple[float, float], ...]:
        """The ends of a range that contains every value, enclosed."""
        return self._enclosures(self.definition.range)

    @cached_property
    def extrema(self) -> tuple[tuple[float, float], ...]:
        """Where the monotonicity changes, enclosed (within one period)."""
        return self._enclosures(self.definition.extrema)

    @cached_property
    def extreme_values(self) -> tuple[tuple[float, float], ...]:
        """f at the extrema, enclosed."""
        import flint

        with flint.ctx.workprec(_PRECISION):
            balls = [flint.arb(low).union(flint.arb(high)) for low, high in self.extrema]
            return tuple(_outward(self.ball(ball), f"{self}: the value at the extremum {ball}") for ball in balls)

    @cached_property
    def inflections(self) -> tuple[tuple[float, float], ...]:
        """Where the curvature changes, kinks and poles included, enclosed (within one period)."""
        return self._enclosures(self.definition.inflections)

    @cached_property
    def poles(self) -> tuple[tuple[float, float], ...]:
        """The points inside the domain's ends where f is not defined, enclosed; they are among the inflections."""
        return self._enclosures(self.definition.poles)

    @property
    def curvature(self) -> tuple[Curvature, ...]:
        """The curvature of the pieces between the inflections."""
        return self.definition.curvature

    @cached_property
    def period(self) -> tuple[float, float] | None:
        """The period, enclosed."""
        period = self.definition.period
        return None if period is None else _enclose(self._bound(period))

    @cached_property
    def _torch_term(self) -> Term:
        given = self.definition.backend.get("torch")
        if given is not None:
            return self._bound(given)
        own = next((name for name in self.definition.torch if name.startswith("torch.")), None)
        if own is not None and not self.parameters:
            return Apply(own, (Symbol("x"),))
        return self.numeric

    @cached_property
    def _on_tensors(self) -> Callable[[Mapping[str, Any]], Any]:
        return prepare(self._torch_term, tensor_algebra())

    @cached_property
    def _slope_on_tensors(self) -> tuple[Callable[[Mapping[str, Any]], Any], bool]:
        return prepare(self.derivative_term, tensor_algebra()), "y" in symbols(self.derivative_term)

    @cached_property
    def _running(self) -> tuple[Callable[[Mapping[str, Near]], Near], Callable[[Mapping[str, Near]], Near]]:
        return prepare(self.numeric, running_algebra()), prepare(self.derivative_term, running_algebra())

    def __call__(self, x: Tensor) -> Tensor:
        """f(x) elementwise, in x's precision, differentiable; nothing is proved about its rounding."""
        value = self._on_tensors({"x": x})
        return x.new_full(x.shape, value) if isinstance(value, float) else value

    def derivative(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """f'(x) elementwise, in x's precision; one of the one-sided derivatives, or their mean, at a kink.

        Args:
            y: f(x), where it is known.
        """
        slope, reads_value = self._slope_on_tensors
        value = slope({"x": x, "y": (self(x) if y is None else y) if reads_value else x})
        return x.new_full(x.shape, value) if isinstance(value, float) else value

    def near(self, x: Tensor) -> Near:
        """f(x) elementwise with a proved bound of its rounding error, float64; the error is infinite outside the domain."""
        from milpverify.arithmetic.running_error import Near, exactly, known

        found = known(self._running[0]({"x": exactly(x)}))
        return Near(found.value.expand_as(x), found.error.expand_as(x))

    def derivative_near(self, x: Tensor, y: Near) -> Near:
        """f'(x) elementwise with a proved bound of its rounding error, float64; x is no kink.

        Args:
            y: f(x), from `near`.
        """
        from milpverify.arithmetic.running_error import Near, exactly, known

        found = known(self._running[1]({"x": exactly(x), "y": y}))
        return Near(found.value.expand_as(x), found.error.expand_as(x))

    def interval(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """The range of f over [lower, upper], elementwise and outward-rounded: no real x in it has f(x) outside.

        At a jump the one-sided limits belong to the range. A box that leaves the domain has the range (-inf, inf).

        Args:
            lower, upper: tensors of one shape, any floating type; -inf and inf allowed.

        Returns:
            two float64 tensors of that shape.
        """
        import torch

        from milpverify.functions.ranges import curved_range, linear_range

        low, high = lower.double(), upper.double()
        if self.pieces is not None:
            found = linear_range(self.pieces, low, high)
        else:
            found = curved_range(self._shape, self._values(low, high), low, high)
        unknown = low.isnan() | high.isnan()
        return torch.where(unknown, -math.inf, found.lower), torch.where(unknown, math.inf, found.upper)

    @cached_property
    def _shape(self) -> Shape:
        from milpverify.functions.ranges import Shape

        return Shape(self.domain, self.range, self.extrema, self.extreme_values, self.poles, self.period)

    def _values(self, lower: Tensor, upper: Tensor) -> Interval:
        """The hull of f at both ends: by running errors, and by intervals where these know nothing (infinite ends, an overflow)."""
        import torch

        from milpverify.arithmetic.interval import Interval, point
        from milpverify.arithmetic.rounding import down, up
        from milpverify.functions.ranges import hull

        near = self.near(torch.stack([lower, upper]))
        if bool(near.error.isfinite().all()):
            low, high = down(near.value - near.error), up(near.value + near.error)
            return Interval(torch.minimum(low[0], low[1]), torch.maximum(high[0], high[1]))
        ends: list[Interval] = [evaluate(self.numeric, interval_algebra(), {"x": point(x)}) for x in (lower, upper)]
        return hull(*ends)

    def ball(self, x: flint.arb) -> flint.arb:
        """A rigorous enclosure of f over a ball, at the working precision of `flint.ctx`; at a jump, of the limits too."""
        value: flint.arb = evaluate(self.term, ball_algebra(), {"x": x})
        return value

    def derivative_ball(self, x: flint.arb) -> flint.arb:
        """A rigorous enclosure of f' over a ball that contains no kink."""
        value: flint.arb = evaluate(self.derivative_term, ball_algebra(), {"x": x, "y": self.ball(x)})
        return value


def _enclose(term: Term) -> tuple[float, float]:
    """The floats around a constant term: exactly rational ones are rounded correctly, others are enclosed by balls."""
    if isinstance(term, Constant):
        return enclose(term.value)
    import flint

    with flint.ctx.workprec(_PRECISION):
        return _outward(evaluate(term, ball_algebra(), {}), f"the constant {term}")


def _outward(ball: flint.arb, what: str) -> tuple[float, float]:
    if not ball.is_finite():
        raise InvalidInput(f"{what} is not finite")
    return math.nextafter(float(ball.lower()), -math.inf), math.nextafter(float(ball.upper()), math.inf)
