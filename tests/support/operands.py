"""Operands for the tests of arithmetic: the binary operators, the domains of functions, and numbers of all magnitudes."""

import math
import random

BINARY = ("+", "-", "*", "/", "min", "max")


DOMAINS = {"log": 0.0, "log1p": -1.0, "sqrt": 0.0}


def samples(rng: random.Random, count: int, least: float = -math.inf) -> list[float]:
    """Numbers of all magnitudes and both signs, with zeros and ones among them."""
    special = [0.0, 1.0, -1.0, 0.5, math.pi, 1e-300, -1e-300, 5e-324, 1e300]
    numbers = special + [rng.choice((-1, 1)) * rng.random() * 10.0 ** rng.choice((-12, -3, 0, 0, 1, 2, 3, 8)) for _ in range(count)]
    return [x for x in numbers if x >= least]
