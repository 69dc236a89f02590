"""The expression language of the catalogue: s-expressions in x, with rational constants, read once and evaluated in any arithmetic.

A term is a tree of `Constant`, `Symbol` and `Apply`. An `Algebra` says what constants and operators mean; `evaluate` runs a
term in it. So the one line in a TOML file gives floats and tensors (`tensor_algebra`), rationals (`rational_algebra`), balls
(`ball_algebra`), outward-rounded intervals (`interval_algebra`), running errors (`running_algebra`)
and exact linear pieces (`pieces`).

    (+ a b ...)  (* a b ...)  (- a)  (- a b)  (/ a b)  (pow a n) with a constant integer n  (min a b ...)  (max a b ...)
    (abs a) (sign a) (floor a) (round a) (exp a) (expm1 a) (log a) (log1p a) (sqrt a) (sin a) (cos a) (tan a) (atan a) (tanh a)
    (erf a) (erfc a)

Numbers are exact rationals: 3, -1/6, 0.044715, 1e-3; inf and -inf are allowed below min and max. `pi` is the constant.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from operator import itemgetter
from typing import Generic, TypeVar

from milpverify.errors import InvalidInput

T = TypeVar("T")
Number = Fraction | float  # a float only for +-inf

UNARY = ("abs", "sign", "floor", "round", "exp", "expm1", "log", "log1p", "sqrt", "sin", "cos", "tan", "atan", "tanh", "erf", "erfc")
_VARIADIC = ("+", "*", "min", "max")  # read as nested binary operations
_BINARY = ("-", "/", "pow")
_TOKEN = re.compile(r"[()]|[^\s()]+")
_NAME = re.compile(r"[A-Za-z_]\w*")
FOREIGN = re.compile(r"torch(\.\w+)+")


@dataclass(frozen=True, slots=True)
class Constant:
    """A rational number, or +-inf."""

    value: Number

    def __str__(self) -> str:
        return str(self.value)


@dataclass(frozen=True, slots=True)
class Symbol:
    """x, the output y, pi, or a parameter."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Apply:
    """An operator on its arguments; `neg` (printed as a one-argument minus) is the only name that is not written."""

    op: str
    args: tuple[Term, ...]

    def __str__(self) -> str:
        return f"({'-' if self.op == 'neg' else self.op} {' '.join(map(str, self.args))})"


Term = Constant | Symbol | Apply
ZERO, ONE = Constant(Fraction(0)), Constant(Fraction(1))
_NEUTRAL = {"min": Constant(math.inf), "max": Constant(-math.inf)}


def parse(text: str, *, foreign: bool = False) -> Term:
    """Read one term.

    Args:
        foreign: also accept torch functions as operators, `(torch.nn.functional.elu x alpha)`.

    Raises:
        InvalidInput: a syntax error, an unknown operator or a wrong number of arguments, on one line.
    """
    tokens = _TOKEN.findall(text)
    position = 0

    def fail(what: str) -> InvalidInput:
        return InvalidInput(f"term {text!r}: {what}")

    def read() -> Term:
        nonlocal position
        if position == len(tokens):
            raise fail("ends too early")
        token = tokens[position]
        position += 1
        if token == ")":
            raise fail("')' without '('")
        if token != "(":
            return _atom(token, fail)
        if position == len(tokens) or tokens[position] in "()":
            raise fail("an operator must follow '('")
        op = tokens[position]
        position += 1
        args = []
        while position < len(tokens) and tokens[position] != ")":
            args.append(read())
        if position == len(tokens):
            raise fail("a ')' is missing")
        position += 1
        if op == "-" and len(args) == 1:
            return Apply("neg", (args[0],))
        if op in _VARIADIC and len(args) >= 2:
            return functools.reduce(lambda a, b: Apply(op, (a, b)), args)
        if (op in _BINARY and len(args) == 2) or (op in UNARY and len(args) == 1) or (foreign and args and FOREIGN.fullmatch(op)):
            return Apply(op, tuple(args))
        known = op in _VARIADIC or op in _BINARY or op in UNARY
        raise fail(f"{op!r} does not take {len(args)} argument(s)" if known else f"unknown operator {op!r}")

    term = read()
    if position != len(tokens):
        raise fail(f"{tokens[position]!r} after the end")
    return term


def _atom(token: str, fail: Callable[[str], InvalidInput]) -> Term:
    if token in ("inf", "+inf", "-inf"):
        return Constant(float(token))
    if _NAME.fullmatch(token):
        return Symbol(token)
    try:
        value = Fraction(token)
        float(value)
    except (ValueError, ZeroDivisionError):
        raise fail(f"{token!r} is neither a number nor a name") from None
    except OverflowError:
        raise fail(f"{token!r} is beyond the range of binary64") from None
    return Constant(value)


def symbols(term: Term) -> frozenset[str]:
    """The names that occur in the term."""
    match term:
        case Symbol(name):
            return frozenset({name})
        case Apply(_, args):
            return frozenset().union(*map(symbols, args))
    return frozenset()


def operators(term: Term) -> frozenset[str]:
    """The operators that occur in the term."""
    return frozenset({term.op}).union(*map(operators, term.args)) if isinstance(term, Apply) else frozenset()


def substitute(term: Term, values: Mapping[str, Term]) -> Term:
    """The term with symbols replaced, and simplified."""
    match term:
        case Symbol(name):
            return values.get(name, term)
        case Apply(op, args):
            return _simple(op, *(substitute(a, values) for a in args))
    return term


def _simple(op: str, *args: Term) -> Term:
    """`Apply`, with constants folded and neutral elements dropped; exact in the reals where the term is defined."""
    values = [a.value for a in args if isinstance(a, Constant) and isinstance(a.value, Fraction)]
    if len(values) == len(args) and op in RATIONAL and not (op == "/" and values[1] == 0):
        if op != "pow":
            return Constant(RATIONAL[op](*values))
        if values[1].denominator == 1 and (values[0] or values[1] >= 0):
            return Constant(values[0] ** int(values[1]))
    match op, args:
        case ("+", (Constant(0), a)) | ("+" | "-", (a, Constant(0))) | ("*", (Constant(1), a)) | ("*" | "/" | "pow", (a, Constant(1))):
            return a
        case ("*", (Constant(0), _) | (_, Constant(0))) | ("/", (Constant(0), _)):
            return ZERO
        case "-", (Constant(0), a):
            return _simple("neg", a)
        case "neg", (Apply("neg", (a,)),):
            return a
        case "pow", (_, Constant(0)):
            return ONE
        case ("min" | "max", (a, b)) if _NEUTRAL[op] in (a, b):
            return a if b == _NEUTRAL[op] else b
    return Apply(op, args)


def differentiate(term: Term, variable: str = "x") -> Term:
    """The derivative, with every other symbol constant. At a kink of abs, min or max it is the mean of both sides.

    Raises:
        InvalidInput: an operator without a derivative rule (a torch function).
    """
    if variable not in symbols(term):
        return ZERO
    if not isinstance(term, Apply):
        return ONE
    op, (a, *rest) = term.op, term.args
    da = differentiate(a, variable)
    if rest:
        b, db = rest[0], differentiate(rest[0], variable)
        match op:
            case "+" | "-":
                return _simple(op, da, db)
            case "*":
                return _simple("+", _simple("*", da, b), _simple("*", a, db))
            case "/":
                return _simple("/", _simple("-", da, _simple("*", term, db)), b)
            case "pow":
                return _simple("*", _simple("*", b, _simple("pow", a, _simple("-", b, ONE))), da)
            case "min" | "max":
                order = _simple("sign", _simple("-", a, b) if op == "max" else _simple("-", b, a))
                half = Constant(Fraction(1, 2))
                chosen = [_simple("*", _simple("*", half, _simple(o, ONE, order)), d) for o, d in (("+", da), ("-", db))]
                return _simple("+", *chosen)
    outer = _UNARY_DERIVATIVES.get(op)
    if outer is None:
        raise InvalidInput(f"{op!r} has no derivative rule")
    return _simple("*", substitute(outer, {"a": a, "f": term}), da)


# d/da op(a), with f = op(a).
_UNARY_DERIVATIVES: Mapping[str, Term] = {
    op: parse(text)
    for op, text in {
        "neg": "-1",
        "abs": "(sign a)",
        "sign": "0",
        "floor": "0",
        "round": "0",
        "exp": "f",
        "expm1": "(exp a)",
        "log": "(/ 1 a)",
        "log1p": "(/ 1 (+ 1 a))",
        "sqrt": "(/ 1 (* 2 f))",
        "sin": "(cos a)",
        "cos": "(- (sin a))",
        "tan": "(+ 1 (* f f))",
        "atan": "(/ 1 (+ 1 (* a a)))",
        "tanh": "(- 1 (* f f))",
        "erf": "(* (/ 2 (sqrt pi)) (exp (- (* a a))))",
        "erfc": "(* (/ -2 (sqrt pi)) (exp (- (* a a))))",
    }.items()
}


@dataclass(frozen=True)
class Algebra(Generic[T]):
    """What constants and operators mean. `operator` looks a name up, None if there is none; "pow" takes an int as second argument."""

    constant: Callable[[Number], T]
    operator: Callable[[str], Callable[..., T] | None]
    pi: Callable[[], T] | None = None


def evaluate(term: Term, algebra: Algebra[T], values: Mapping[str, T]) -> T:
    """The value of the term.

    Raises:
        InvalidInput: a symbol without a value, an operator that the algebra lacks, an exponent that is no integer.
    """
    match term:
        case Constant(value):
            return algebra.constant(value)
        case Symbol(name):
            if name in values:
                return values[name]
            if name == "pi" and algebra.pi is not None:
                return algebra.pi()
            raise InvalidInput(f"{name!r} has no value")
        case Apply(op, args):
            function = algebra.operator(op)
            if function is None:
                raise InvalidInput(f"{op!r} cannot be evaluated here")
            if op == "pow":
                return function(evaluate(args[0], algebra, values), _exponent(term))
            return function(*(evaluate(a, algebra, values) for a in args))


def prepare(term: Term, algebra: Algebra[T]) -> Callable[[Mapping[str, T]], T]:
    """`evaluate` as a function of the values, with constants formed and operators looked up once.

    Raises:
        InvalidInput: as `evaluate`, but for symbols, which the function returned looks up.
    """
    match term:
        case Symbol(name) if name != "pi":
            return itemgetter(name)
        case Apply(op, args) if symbols(term) - {"pi"}:
            function = algebra.operator(op)
            if function is None:
                raise InvalidInput(f"{op!r} cannot be evaluated here")
            if op == "pow":
                base, exponent = prepare(args[0], algebra), _exponent(term)
                return lambda values: function(base(values), exponent)
            if len(args) == 1:
                inner = prepare(args[0], algebra)
                return lambda values: function(inner(values))
            parts = [prepare(a, algebra) for a in args]
            if len(args) == 2:
                left, right = parts
                return lambda values: function(left(values), right(values))
            return lambda values: function(*(part(values) for part in parts))
    fixed = evaluate(term, algebra, {})
    return lambda _: fixed


def _exponent(term: Apply) -> int:
    exponent = term.args[1]
    if not (isinstance(exponent, Constant) and isinstance(exponent.value, Fraction) and exponent.value.denominator == 1):
        raise InvalidInput(f"the exponent in {term} is not a constant integer")
    return int(exponent.value)


def enclose(value: Number) -> tuple[float, float]:
    """The neighbouring floats of a rational number: equal if it is one."""
    nearest = float(value)
    if nearest == value:
        return nearest, nearest
    return (nearest, math.nextafter(nearest, math.inf)) if nearest < value else (math.nextafter(nearest, -math.inf), nearest)


def sign_of(a: Number) -> Fraction:
    """-1, 0 or 1."""
    return Fraction((a > 0) - (a < 0))


RATIONAL: Mapping[str, Callable[..., Number]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
    "neg": lambda a: -a,
    "pow": lambda a, n: a**n,
    "min": min,
    "max": max,
    "abs": abs,
    "sign": sign_of,
    "floor": lambda a: Fraction(math.floor(a)),
    "round": lambda a: Fraction(round(a)),
}
