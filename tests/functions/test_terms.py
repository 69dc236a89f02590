import random
from fractions import Fraction

import flint
import pytest
import torch
from random_terms import random_terms

from milpverify.errors import InvalidInput
from milpverify.functions.algebras import ball_algebra, rational_algebra, tensor_algebra
from milpverify.functions.terms import Constant, Symbol, differentiate, evaluate, parse, substitute

SMOOTH = ("exp", "expm1", "sin", "cos", "atan", "tanh", "erf", "erfc")


@pytest.mark.parametrize(
    "text", ["x", "-1/6", "(- x)", "(- x y)", "(+ (* 2 x) 0.5)", "(pow x 3)", "(min (max x -1) 1)", "(* 1/2 x (+ 1 (erf (/ x (sqrt 2)))))"]
)
def test_printed_terms_read_back_the_same(text: str) -> None:
    term = parse(text)
    assert parse(str(term)) == term


def test_random_terms_read_back_the_same() -> None:
    for term in random_terms(200, 4, (*SMOOTH, "neg", "abs", "sign"), ("+", "-", "*", "/", "min", "max")):
        assert parse(str(term)) == term


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "ends too early"),
        (")", "')' without '('"),
        ("(+ x", "a ')' is missing"),
        ("(+ x 1) x", "'x' after the end"),
        ("(foo x)", "unknown operator 'foo'"),
        ("(torch.relu x)", "unknown operator 'torch.relu'"),
        ("(exp x x)", "'exp' does not take 2 argument(s)"),
        ("(/ x)", "'/' does not take 1 argument(s)"),
        ("(+)", "'+' does not take 0 argument(s)"),
        ("((+ x 1))", "an operator must follow '('"),
        ("1.2.3", "neither a number nor a name"),
        ("1/0", "neither a number nor a name"),
        ("1e400", "beyond the range of binary64"),
    ],
)
def test_bad_terms_are_refused_with_the_reason(text: str, complaint: str) -> None:
    with pytest.raises(InvalidInput) as error:
        parse(text)
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["(pow x x)", "(pow x 1/2)", "(pow x inf)", "(+ x z)", "(+ x y)"])
def test_what_has_no_value_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        evaluate(parse(text), ball_algebra(), {"x": flint.arb(2)})


def test_simplification_keeps_the_value() -> None:
    rng = random.Random(1)
    for term in random_terms(300, 4, ("neg", "abs", "sign"), ("+", "-", "*", "min", "max")):
        at = Fraction(rng.randint(-40, 40), rng.randint(1, 9))
        folded = substitute(term, {"x": Constant(at)})
        assert folded == Constant(evaluate(term, rational_algebra(), {"x": at}))
        assert evaluate(substitute(term, {}), rational_algebra(), {"x": at}) == folded.value


def test_the_neutral_ends_of_a_clip_vanish() -> None:
    clip = parse("(min (max x lo) hi)")
    assert substitute(clip, {"lo": Constant(float("-inf")), "hi": Constant(float("inf"))}) == Symbol("x")


def test_tensors_agree_with_balls() -> None:
    points = torch.linspace(-1.5, 1.5, 7, dtype=torch.float64)
    for term in random_terms(150, 3, (*SMOOTH, "neg", "abs"), ("+", "-", "*", "min", "max")):
        values = evaluate(term, tensor_algebra(), {"x": points})
        assert values.shape == points.shape
        for x, y in zip(points.tolist(), values.tolist(), strict=True):
            with flint.ctx.workprec(200):
                exact = float(evaluate(term, ball_algebra(), {"x": flint.arb(x)}))
            assert y == pytest.approx(exact, rel=1e-9, abs=1e-9)


def test_a_derivative_encloses_the_difference_quotient() -> None:
    # Mean value theorem: the quotient over [x - h, x + h] is a value of f' there, so balls must overlap.
    with flint.ctx.workprec(200):
        step = flint.arb(2) ** -30
        for term in random_terms(200, 3, (*SMOOTH, "neg"), ("+", "-", "*")):
            slope = differentiate(term)
            for x in (-0.7, 0.3, 1.1):
                at = flint.arb(x)
                low, high = (evaluate(term, ball_algebra(), {"x": at + s * step}) for s in (-1, 1))
                enclosure = evaluate(slope, ball_algebra(), {"x": flint.arb(x, step)})
                assert enclosure.overlaps((high - low) / (2 * step)), term
                if enclosure.rad() < 1e-3 and abs(enclosure) > 1:
                    assert not (enclosure + 1).overlaps((high - low) / (2 * step))


@pytest.mark.parametrize(
    ("text", "derivative"),
    [
        ("(/ 1 x)", "(- (/ (/ 1 x) x))"),
        ("(log x)", "(/ 1 x)"),
        ("(log1p x)", "(/ 1 (+ 1 x))"),
        ("(sqrt x)", "(/ 1 (* 2 (sqrt x)))"),
        ("(tan x)", "(+ 1 (* (tan x) (tan x)))"),
        ("(pow x 5)", "(* 5 (pow x 4))"),
        ("(max x 1/2)", "1"),
        ("(min x 1/2)", "0"),
        ("(abs (- x))", "1"),
        ("(* p x)", "p"),
    ],
)
def test_derivative_rules(text: str, derivative: str) -> None:
    values = {"x": flint.arb(0.75), "p": flint.arb(3)}
    found, expected = (evaluate(t, ball_algebra(), values) for t in (differentiate(parse(text)), parse(derivative)))
    assert abs(found - expected) < 1e-12


def test_at_a_kink_the_derivative_is_the_mean_of_both_sides() -> None:
    slope = differentiate(parse("(max x (* 3 x))"))
    assert evaluate(slope, rational_algebra(), {"x": Fraction(0)}) == 2


def test_an_unknown_function_of_torch_is_named() -> None:
    with pytest.raises(InvalidInput, match=r"torch\.no_such_thing"):
        evaluate(parse("(torch.no_such_thing x)", foreign=True), tensor_algebra(), {"x": torch.zeros(1)})
