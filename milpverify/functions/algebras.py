"""What terms are evaluated in: rationals, tensors, balls, intervals, running errors. An algebra loads what it needs when it is made."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from milpverify.errors import InvalidInput
from milpverify.functions.terms import FOREIGN, RATIONAL, UNARY, Algebra, Number, enclose, sign_of

if TYPE_CHECKING:
    import flint
    from torch import Tensor

    from milpverify.arithmetic.interval import Interval
    from milpverify.arithmetic.running_error import Near


_OWN = ("abs", "sign", "round")
"""Functions that libraries have by other names, or not at all."""


def rational_algebra() -> Algebra[Number]:
    """Exact arithmetic on `fractions.Fraction`: no pi, no transcendental functions."""
    return Algebra(lambda value: value, RATIONAL.get)


def _extremum(name: str, other: str) -> Callable[..., Any]:
    def operator(a: Any, b: Any) -> Any:
        if isinstance(a, float) and isinstance(b, float):
            return (max if name == "max" else min)(a, b)
        if isinstance(a, float) or isinstance(b, float):
            tensor, bound = (b, a) if isinstance(a, float) else (a, b)
            return tensor.clamp(**{other: bound})
        return getattr(a, name + "imum")(b)

    return operator


@functools.cache
def tensor_algebra() -> Algebra[Any]:
    """torch tensors of any floating type, with Python floats for what is constant; differentiable. Imports torch."""
    import torch

    def unary(name: str) -> Callable[..., Any]:
        on_tensor, on_float = getattr(torch, name), getattr(math, name, None)
        return lambda a: on_float(a) if on_float is not None and isinstance(a, float) else on_tensor(a)

    operators: dict[str, Callable[..., Any]] = {**RATIONAL, **{name: unary(name) for name in UNARY if name not in _OWN}}
    operators |= {
        "max": _extremum("max", "min"),
        "min": _extremum("min", "max"),
        "sign": lambda a: float(sign_of(a)) if isinstance(a, float) else torch.sign(a),
        "round": lambda a: float(round(a)) if isinstance(a, float) else torch.round(a),
    }
    return Algebra(float, lambda op: torch_function(op) if FOREIGN.fullmatch(op) else operators.get(op), lambda: math.pi)


@functools.cache
def torch_function(name: str) -> Callable[..., Tensor]:
    """The torch function of this dotted name, such as `torch.nn.functional.elu`, which works elementwise.

    Raises:
        InvalidInput: torch has no such function.
    """
    import torch

    found: Any = torch
    for part in name.split(".")[1:]:
        found = getattr(found, part, None)
    if not callable(found):
        raise InvalidInput(f"torch has no function {name!r}")
    return found  # type: ignore[no-any-return]


@functools.cache
def ball_algebra() -> Algebra[flint.arb]:
    """Rigorous ball arithmetic at the working precision of `flint.ctx`. Imports flint."""
    import flint

    arb = flint.arb

    def constant(value: Number) -> flint.arb:
        return arb(flint.fmpq(*value.as_integer_ratio()))

    def power(a: flint.arb, n: int) -> flint.arb:
        if n < 0:
            return 1 / power(a, -n)
        base = abs(a) if n % 2 == 0 else a  # an even power of a ball around 0 is not negative
        return math.prod([base] * n, start=arb(1))

    operators: dict[str, Callable[..., Any]] = {**RATIONAL, **{name: getattr(arb, name) for name in UNARY if name not in _OWN}}
    half = arb(1) / 2
    operators |= {
        "round": lambda a: (a - half).ceil().union((a + half).floor()),
        "sign": arb.sgn,
        "abs": abs,
        "min": arb.min,
        "max": arb.max,
        "pow": power,
    }
    return Algebra(constant, operators.get, arb.pi)


def _neighbours(value: Number) -> tuple[Tensor, Tensor]:
    """The neighbouring floats of a finite constant, as lone numbers of the CPU, which combine with tensors of any device."""
    import torch

    if not math.isfinite(value):
        raise InvalidInput("an infinite constant is allowed below min and max only, where it has no effect")
    lower, upper = (torch.tensor(v, dtype=torch.float64, device="cpu") for v in enclose(value))
    return lower, upper


def interval_algebra() -> Algebra[Interval]:
    """Outward-rounded intervals: `evaluate(term, interval_algebra(), {"x": Interval(lower, upper)})`. Imports torch."""
    import torch

    from milpverify.arithmetic.interval import OPERATORS, Interval

    def pi() -> Interval:
        return Interval(*(torch.tensor(v, dtype=torch.float64, device="cpu") for v in (math.pi, math.nextafter(math.pi, 4.0))))

    return Algebra(lambda value: Interval(*_neighbours(value)), OPERATORS.get, pi)


def running_algebra() -> Algebra[Near]:
    """Running errors: `evaluate(term, running_algebra(), {"x": exactly(x)})`. Imports torch."""
    import torch

    from milpverify.arithmetic.running_error import OPERATORS, Near

    def constant(value: Number) -> Near:
        lower, upper = _neighbours(value)
        return Near(lower, upper - lower)

    pi = torch.tensor(math.pi, dtype=torch.float64, device="cpu")
    return Algebra(constant, OPERATORS.get, lambda: Near(pi, torch.full_like(pi, 2.0**-51)))
