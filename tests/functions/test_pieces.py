import random
from fractions import Fraction
from itertools import pairwise

import pytest
from random_terms import random_terms

from milpverify.errors import InvalidInput
from milpverify.functions.algebras import rational_algebra
from milpverify.functions.pieces import derive
from milpverify.functions.terms import evaluate, parse


def test_pieces_have_the_values_of_their_term() -> None:
    rng = random.Random(0)
    found = 0
    for term in random_terms(400, 4, ("neg", "abs", "sign"), ("+", "-", "min", "max")):
        pieces = derive(term)
        if pieces is None:
            continue  # a power of something that is not constant
        found += 1
        assert list(pieces.breakpoints) == sorted(set(pieces.breakpoints))
        edges = [Fraction(-100), *pieces.breakpoints, Fraction(100)]
        for (left, right), (slope, intercept) in zip(pairwise(edges), pieces.lines, strict=True):
            inside = [left + (right - left) * Fraction(rng.randint(1, 999), 1000) for _ in range(4)]
            for x in inside:
                assert evaluate(term, rational_algebra(), {"x": x}) == slope * x + intercept
        for at, value in zip(pieces.breakpoints, pieces.values, strict=True):
            assert evaluate(term, rational_algebra(), {"x": at}) == value
        for (a, b), at, value in zip(pairwise(pieces.lines), pieces.breakpoints, pieces.values, strict=True):
            assert a != b or a[0] * at + a[1] != value, "a breakpoint where nothing happens"
    assert found > 200


@pytest.mark.parametrize("text", ["(pow x 2)", "(* x x)", "(* x (max x 0))", "(/ 1 x)", "(exp x)", "(* pi x)", "(max (* x x) 0)"])
def test_what_is_curved_has_no_pieces(text: str) -> None:
    assert derive(parse(text)) is None


def test_products_are_linear_where_a_factor_is_constant() -> None:
    pieces = derive(parse("(* x (sign x))"))  # |x|
    assert pieces is not None
    assert pieces.lines == ((-1, 0), (1, 0))
    assert pieces.jumps == ()


def test_jumps_are_found() -> None:
    pieces = derive(parse("(+ (sign (- x 1)) (max x 0))"))
    assert pieces is not None
    assert pieces.breakpoints == (0, 1)
    assert pieces.jumps == (1,)
    assert pieces.values == (-1, 1)


@pytest.mark.parametrize(("text", "what"), [("(max (/ x 3) 0)", "slope 1/3"), ("(max (- x 1/3) 0)", "breakpoint 1/3")])
def test_pieces_that_floats_do_not_hold_are_refused(text: str, what: str) -> None:
    pieces = derive(parse(text))
    assert pieces is not None
    with pytest.raises(InvalidInput, match=f"{what} is not exact in binary64"):
        pieces.exact()
