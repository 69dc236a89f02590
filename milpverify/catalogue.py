"""The nonlinearity catalogue: encodings/*.toml -> Nonlinearity -> Function.

A TOML file says what is known about one function (encodings/README.md describes the format); everything else is derived from
its term: evaluation on tensors, intervals and balls, derivatives, and the linear pieces of a piecewise-linear function.
"""

from __future__ import annotations

import functools
import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from milpverify.errors import InvalidInput, InvalidModel
from milpverify.pieces import Pieces, RationalPieces, derive
from milpverify.terms import (
    Apply,
    Constant,
    Number,
    Symbol,
    Term,
    ball_algebra,
    differentiate,
    evaluate,
    operators,
    parse,
    substitute,
    symbols,
    tensor_algebra,
)

if TYPE_CHECKING:
    import flint
    from torch import Tensor

__all__ = ["Catalogue", "Curvature", "Function", "Nonlinearity", "Parameter", "Pieces", "catalogue", "register_nonlinearity"]

_REQUIRED = ("name", "term", "onnx", "torch")
_SMOOTH = ("domain", "range", "extrema", "inflections", "curvature")  # required of, and only given by, what is not piecewise linear
_OPTIONAL = ("derivative", "period", "poles", "jumps", "parameters", "backend")
_BACKENDS = ("torch", "numeric", "scip", "gurobi", "z3", "cvc5")


class Curvature(Enum):
    """The shape of a function between two neighbouring inflections."""

    CONVEX = "convex"
    CONCAVE = "concave"
    LINEAR = "linear"


@dataclass(frozen=True)
class Parameter:
    """A parameter's default (None: it must be given) and the values that it may have: minimum <= value, in steps where given."""

    default: float | None
    minimum: float = -math.inf
    step: float | None = None

    def accepts(self, value: float) -> bool:
        """Whether the value is allowed; an infinite one is if the default is infinite."""
        if math.isinf(value):
            return self.default is not None and math.isinf(self.default)
        return value >= self.minimum and (self.step is None or (Fraction(value) - Fraction(self.minimum)) % Fraction(self.step) == 0)

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
            rational = self.rational_pieces({name: _number(value) for name, value in bound})
            pieces = None if rational is None else rational.exact()
        except InvalidInput as error:
            raise InvalidModel(f"{_call(self.name, bound)}: {error}") from error
        return Function(self.name, tuple(bound), self, pieces)

    def trial(self) -> Function:
        """The function with its default parameters, and some allowed value where there is no default."""
        return self.bind(**{name: limit.trial for name, limit in self.limits.items()})

    def rational_pieces(self, parameters: Mapping[str, Number]) -> RationalPieces | None:
        """The exact pieces under these parameters; None where the function is not piecewise linear.

        Raises:
            InvalidInput: a jump that `jumps` does not declare, an infinite parameter where it has an effect.
        """
        values: Mapping[str, Term] = {name: Constant(value) for name, value in parameters.items()}
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
        if self.definition.torch and not self.parameters:
            return Apply(self.definition.torch[0], (Symbol("x"),))
        return self.numeric

    def __call__(self, x: Tensor) -> Tensor:
        """f(x) elementwise, in x's precision, differentiable; nothing is proved about its rounding."""
        value: Tensor = evaluate(self._torch_term, tensor_algebra(), {"x": x})
        return value

    def derivative(self, x: Tensor) -> Tensor:
        """f'(x) elementwise, in x's precision; one of the one-sided derivatives, or their mean, at a kink."""
        values = {"x": x, "y": self(x)} if "y" in symbols(self.derivative_term) else {"x": x}
        value = evaluate(self.derivative_term, tensor_algebra(), values)
        return x.new_full(x.shape, value) if isinstance(value, float) else value

    def interval(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """The range of f over [lower, upper], elementwise and outward-rounded: no real x in it has f(x) outside.

        At a jump the one-sided limits belong to the range. A box that leaves the domain has the range (-inf, inf).

        Args:
            lower, upper: tensors of one shape, any floating type; -inf and inf allowed.

        Returns:
            two float64 tensors of that shape.
        """
        from milpverify import ranges

        return ranges.function_range(self, lower.double(), upper.double())

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
        number = term.value
        if isinstance(number, float):
            return number, number
        nearest = float(number)
        below, above = math.nextafter(nearest, -math.inf), math.nextafter(nearest, math.inf)
        return (nearest, nearest) if nearest == number else (nearest, above) if nearest < number else (below, nearest)
    import flint

    with flint.ctx.workprec(128):
        ball = evaluate(term, ball_algebra(), {})
        if not ball.is_finite():
            raise InvalidInput(f"the constant {term} is not finite")
        return math.nextafter(float(ball.lower()), -math.inf), math.nextafter(float(ball.upper()), math.inf)


class Catalogue(Mapping[str, Nonlinearity]):
    """Nonlinearities by name. It only ever grows: `register` adds a user's own, and refuses a name that is taken."""

    def __init__(self) -> None:
        self._entries: dict[str, Nonlinearity] = {}

    def __getitem__(self, name: str) -> Nonlinearity:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def register(self, path: str | Path) -> Nonlinearity:
        """Read one TOML file and add it.

        Raises:
            InvalidInput: the file is missing or wrong, or a name, an ONNX operator or a torch function is taken.
        """
        entry = load_nonlinearity(Path(path))
        for known in self._entries.values():
            taken = {known.name} & {entry.name} | {*known.onnx} & {*entry.onnx} | {*known.torch} & {*entry.torch}
            if taken:
                raise InvalidInput(f"{path}: {taken.pop()} already belongs to the nonlinearity {known.name}")
        self._entries[entry.name] = entry
        return entry

    def by_onnx(self, operator: str) -> Nonlinearity | None:
        """The entry that is exactly this ONNX operator, its parameters named as the operator's attributes."""
        return next((entry for entry in self._entries.values() if operator in entry.onnx), None)

    def by_torch(self, function: str) -> Nonlinearity | None:
        """The entry that is this torch function, given as a dotted name (`torch.nn.functional.elu`)."""
        return next((entry for entry in self._entries.values() if function in entry.torch), None)


@functools.cache
def catalogue() -> Catalogue:
    """The process's catalogue, read from encodings/ on the first call: the installed package's data, else the checkout's."""
    package = Path(__file__).resolve().parent
    folder = next((f for f in (package / "encodings", package.parent / "encodings") if f.is_dir()), None)
    if folder is None:
        raise FileNotFoundError(f"the installation lacks its encodings folder (looked in {package} and beside it)")
    entries = Catalogue()
    for path in sorted(folder.glob("*.toml")):
        entries.register(path)
    return entries


def register_nonlinearity(path: str | Path) -> Nonlinearity:
    """Add a user's own TOML file to `catalogue()`, for this process, after the full check of `milpverify.selfcheck`.

    Raises:
        InvalidInput: the file is missing or wrong, what it claims about its term is false, or its name is taken.
    """
    from milpverify.selfcheck import check

    check(load_nonlinearity(Path(path)).trial(), str(path))
    return catalogue().register(path)


def load_nonlinearity(path: Path) -> Nonlinearity:
    """Parse one TOML file and check that it is consistent (what costs more than a millisecond is in `milpverify.selfcheck`).

    Raises:
        InvalidInput: one line with the file, the key and what is wrong.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
        return _build(data, path.stem)
    except OSError as error:
        raise InvalidInput(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, InvalidInput) as error:
        raise InvalidInput(f"{path}: {error}") from error


def _build(data: dict[str, Any], stem: str) -> Nonlinearity:
    for key in data:
        if key not in (*_REQUIRED, *_SMOOTH, *_OPTIONAL):
            raise InvalidInput(f"unknown key {key!r}")
    for key in _REQUIRED:
        if key not in data:
            raise InvalidInput(f"the key {key!r} is missing")
    if data["name"] != stem:
        raise InvalidInput(f"name {data['name']!r} differs from the file's name")
    limits = {name: _parameter(name, value) for name, value in _table(data, "parameters").items()}
    backend = _table(data, "backend")
    for key in backend:
        if key not in _BACKENDS:
            raise InvalidInput(f"unknown backend {key!r}")
    try:
        curvature = tuple(Curvature(value) for value in _list(data, "curvature"))
    except ValueError as error:
        raise InvalidInput(f"curvature: {error}") from error
    entry = Nonlinearity(
        name=stem,
        term=_term(data["term"], "term", limits, "x"),
        limits=limits,
        onnx=_strings(data, "onnx"),
        torch=_strings(data, "torch"),
        derivative=_term(data["derivative"], "derivative", limits, "x", "y") if "derivative" in data else None,
        domain=tuple(_enclosure(v, "domain", limits) for v in _list(data, "domain")),
        range=tuple(_enclosure(v, "range", limits) for v in _list(data, "range")),
        extrema=tuple(_enclosure(v, "extrema", limits) for v in _list(data, "extrema")),
        inflections=tuple(_enclosure(v, "inflections", limits) for v in _list(data, "inflections")),
        curvature=curvature,
        poles=tuple(_enclosure(v, "poles", limits) for v in _list(data, "poles")),
        period=_term(data["period"], "period", limits) if "period" in data else None,
        jumps=tuple(_term(v, "jumps", limits) for v in _strings(data, "jumps")),
        backend={key: _term(value, f"backend.{key}", limits, "x", foreign=key == "torch") for key, value in backend.items()},
    )
    _check_shape(entry, data)
    return entry


def _check_shape(entry: Nonlinearity, data: dict[str, Any]) -> None:
    """A piecewise-linear entry leaves to its term what a smooth one must declare."""
    if "x" not in symbols(entry.term):
        raise InvalidInput("term: x does not occur")
    trial = {name: _number(limit.trial) for name, limit in entry.limits.items()}
    if entry.rational_pieces(trial) is not None:
        for key in (*_SMOOTH, "period", "poles", "derivative"):
            if key in data:
                raise InvalidInput(f"{key}: the term is piecewise linear, and this is derived from it")
        return
    for key in _SMOOTH:
        if key not in data:
            raise InvalidInput(f"the key {key!r} is missing, which a function that is not piecewise linear needs")
    if entry.jumps or "sign" in operators(entry.term):
        raise InvalidInput("only piecewise-linear functions may have jumps, so no other term may use sign")
    for key, ends in (("domain", entry.domain), ("range", entry.range)):
        if len(ends) != 2:
            raise InvalidInput(f"{key}: two ends are needed")
    if not {*entry.poles} <= {*entry.inflections}:
        raise InvalidInput("poles: each must be listed among the inflections too")
    pieces = len(entry.inflections) + (entry.period is None)
    if len(entry.curvature) != pieces:
        raise InvalidInput(f"curvature: {len(entry.inflections)} inflections cut the line into {pieces} pieces, not {len(entry.curvature)}")


def _table(data: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = data.get(key, {})
    if not isinstance(value, dict):
        raise InvalidInput(f"{key}: a table is needed")
    return value


def _list(data: Mapping[str, Any], key: str) -> list[Any]:
    value = data.get(key, [])
    if not isinstance(value, list):
        raise InvalidInput(f"{key}: a list is needed")
    return value


def _strings(data: Mapping[str, Any], key: str) -> tuple[str, ...]:
    values = _list(data, key)
    if not all(isinstance(value, str) for value in values):
        raise InvalidInput(f"{key}: a list of strings is needed")
    return tuple(values)


def _term(text: object, key: str, limits: Mapping[str, Parameter], *variables: str, foreign: bool = False) -> Term:
    if not isinstance(text, str):
        raise InvalidInput(f"{key}: a string is needed, got {text!r}")
    try:
        term = parse(text, foreign=foreign)
    except InvalidInput as error:
        raise InvalidInput(f"{key}: {error}") from error
    unknown = symbols(term) - {*limits, *variables, "pi"}
    if unknown:
        raise InvalidInput(f"{key}: unknown name {min(unknown)!r}")
    return term


def _enclosure(value: object, key: str, limits: Mapping[str, Parameter]) -> Enclosure:
    if isinstance(value, list) and len(value) == 2:
        return _term(value[0], key, limits), _term(value[1], key, limits)
    term = _term(value, key, limits)
    return term, term


def _parameter(name: str, value: object) -> Parameter:
    numbers: dict[str, float] = {}
    for key, number in (value if isinstance(value, dict) else {"default": value}).items():
        if key not in ("default", "minimum", "step"):
            raise InvalidInput(f"parameters.{name}: unknown key {key!r}")
        if isinstance(number, bool) or not isinstance(number, int | float) or math.isnan(number):
            raise InvalidInput(f"parameters.{name}: {number!r} is not a number")
        numbers[key] = float(number)
    parameter = Parameter(numbers.get("default"), numbers.get("minimum", -math.inf), numbers.get("step"))
    if parameter.default is not None and not parameter.accepts(parameter.default):
        raise InvalidInput(f"parameters.{name}: the default {parameter.default} is not allowed")
    return parameter
