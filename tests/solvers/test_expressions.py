"""Terms as solvers' expressions: the same values in every form, none of them large on the way, and refusals that say why."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from milpverify.errors import SolverUnavailable
from milpverify.functions.catalogue import catalogue
from milpverify.functions.terms import parse
from milpverify.solvers.expressions import WIDEST, expression, takes, value_of

SIGMOID, SOFTPLUS = "(/ 1 (+ 1 (exp (- x))))", "(log1p (exp x))"
TERMS = {
    "tanh": "(tanh x)",
    "tanh of a line": "(tanh (+ (* 3 x) -1))",
    "sigmoid": SIGMOID,
    "silu": "(/ x (+ 1 (exp (- x))))",
    "softplus": SOFTPLUS,
    "mish": "(* x (tanh (log1p (exp x))))",
    "elu": "(+ (max x 0) (* 0.75 (expm1 (min x 0))))",
    "softsign": "(/ x (+ 1 (abs x)))",
    "gelu by tanh": "(/ x (+ 1 (exp (* -2 (sqrt (/ 2 pi)) (+ x (* 0.044715 (pow x 3)))))))",
    "bell": "(pow (+ 1 (pow x 2)) -1)",
    "waves": "(+ (sin x) (* 2 (cos (* 3 x))))",
    "kept within": "(min (max x -0.5) inf)",
    "constant there": "(max x 40)",
}
INTERVALS = ((-1.0, 2.0), (-20.0, 20.0), (-20.0, -14.0), (9.0, 20.0))


def watched(names: tuple[str, ...], seen: list[float]) -> dict[str, Callable[[Any], Any]]:
    """Native functions on arrays, which note the largest value that they give."""

    def native(name: str) -> Callable[[Any], Any]:
        def call(a: Any) -> Any:
            value = 1 / (1 + np.exp(-a)) if name == "logistic" else getattr(np, name)(a)
            seen.append(float(np.abs(value).max()))
            return value

        return call

    return {name: native(name) for name in ("abs", *names)}


@pytest.mark.parametrize("names", [("exp", "log", "sqrt", "sin", "cos"), ("exp", "log", "sqrt", "sin", "cos", "tan", "tanh", "logistic")])
@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("interval", INTERVALS)
def test_the_forms_have_the_value_of_the_term(names: tuple[str, ...], name: str, interval: tuple[float, float]) -> None:
    x, term, seen = np.linspace(*interval, 101), parse(TERMS[name]), [0.0]
    truth = np.array([value_of(term, a) for a in x.tolist()])
    found = expression(term, x, *interval, watched(names, seen), "test")
    assert np.broadcast_to(found, x.shape) == pytest.approx(truth, rel=1e-12, abs=1e-14)
    assert max(seen) <= WIDEST
    assert max(seen) <= 40 or name not in ("tanh", "mish") or interval != (-20.0, 20.0)


@pytest.mark.parametrize("term, low, high, why", [
    ("(erf x)", -1.0, 1.0, "it has no erf"),
    ("(+ (floor x) 1)", -1.0, 1.0, "it has no floor"),
    ("(exp x)", 0.0, 10.0, "ranges from 1 to 2.2e\\+04, which the solver's tolerances do not carry"),
    ("(log x)", 0.0, 1.0, "log inside it is not defined everywhere"),
    ("(sqrt x)", -1e-9, 1.0, "sqrt inside it is not defined everywhere"),
    ("(/ 1 x)", -1.0, 1.0, "a divisor inside it may be 0"),
    ("(- (pow x 9) (pow x 9))", -3.0, 3.0, "ranges from -1.97e\\+04"),
])  # fmt: skip
def test_what_cannot_be_written_is_refused(term: str, low: float, high: float, why: str) -> None:
    with pytest.raises(SolverUnavailable, match=f"test: .*{why}"):
        expression(parse(term), np.linspace(low, high, 3), low, high, watched(("exp", "log", "sqrt"), []), "test")


def test_floats_have_no_value_where_the_function_has_none() -> None:
    assert value_of(parse("(tanh x)"), 0.5) == math.tanh(0.5)
    assert value_of(parse("(floor x)"), -0.5) == -1.0 and value_of(parse("(sign x)"), -0.5) == -1.0
    assert all(math.isnan(value_of(parse(t), -1.0)) for t in ("(log x)", "(sqrt x)", "(/ 1 (+ 1 x))", "(exp (* x -1e4))"))


def test_what_a_solver_takes_can_be_told_without_it() -> None:
    """Functions that it lacks, ranges that no tolerance carries, and what is undefined somewhere are refused."""
    functions = frozenset({"exp", "log", "sqrt", "sin", "cos"})
    assert takes(functions, catalogue()["tanh"].trial().term, -3.0, 3.0)
    assert takes(functions, catalogue()["sigmoid"].trial().term, -300.0, 300.0)
    assert not takes(functions, catalogue()["gelu"].trial().term, -3.0, 3.0)
    assert not takes(functions, catalogue()["exp"].trial().term, -1.0, 30.0)
    assert not takes(functions, catalogue()["log"].trial().term, -1.0, 1.0)
