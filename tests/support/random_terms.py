"""Random terms of the catalogue's language, for the tests."""

import random
from fractions import Fraction

from milpverify.functions.terms import Apply, Constant, Symbol, Term, symbols


def random_term(rng: random.Random, depth: int, unary: tuple[str, ...], binary: tuple[str, ...]) -> Term:
    if depth == 0:
        return Symbol("x") if rng.random() < 0.7 else Constant(Fraction(rng.randint(-5, 5), rng.randint(1, 4)))
    if rng.random() < 0.4:
        return Apply(rng.choice(unary), (random_term(rng, depth - 1, unary, binary),))
    if rng.random() < 0.1:
        return Apply("pow", (random_term(rng, depth - 1, unary, binary), Constant(Fraction(rng.randint(1, 3)))))
    return Apply(rng.choice(binary), tuple(random_term(rng, depth - 1, unary, binary) for _ in range(2)))


def random_terms(count: int, depth: int, unary: tuple[str, ...], binary: tuple[str, ...]) -> list[Term]:
    rng = random.Random(depth)
    terms = (random_term(rng, depth, unary, binary) for _ in range(3 * count))
    return [t for t in terms if "x" in symbols(t)][:count]
