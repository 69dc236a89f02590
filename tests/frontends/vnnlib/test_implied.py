from __future__ import annotations

import itertools
import random
from fractions import Fraction

import numpy as np
import pytest

from milpverify.errors import InvalidProperty
from milpverify.frontends.vnnlib.rational_program import Unbounded, least
from milpverify.frontends.vnnlib.reader import parse_vnnlib
from milpverify.spec import Box

linprog = pytest.importorskip("scipy.optimize").linprog


def boxes(text: str, n: int = 2) -> list[Box]:
    header = "".join(f"(declare-const X_{i} Real)" for i in range(n)) + "(declare-const Y_0 Real)(assert (<= Y_0 0))"
    return [d.box for d in parse_vnnlib(header + text, n, 1, "p")]


def ends(text: str, n: int = 2) -> list[tuple[list[float], list[float]]]:
    return [(box.lower.tolist(), box.upper.tolist()) for box in boxes(text, n)]


def test_rows_imply_bounds() -> None:
    assert ends("(assert (<= 0 X_0 X_1 1))") == [([0, 0], [1, 1])]
    assert ends("(assert (<= 0 X_0 1))(assert (= X_1 (+ 1 (* 2 X_0))))") == [([0, 1], [1, 3])]
    assert ends("(assert (<= (+ (abs X_0) (abs X_1)) 2))") == [([-2, -2], [2, 2])]  # no row bounds anything alone
    assert ends("(assert (<= 0 X_0))(assert (<= 0 X_1))(assert (<= (+ X_0 (* 2 X_1)) 4))") == [([0, 0], [4, 2])]
    assert ends("(assert (<= X_0 Y_0))(assert (<= 0 X_0))(assert (<= 0 X_1 X_0))") == [([0, 0], [0, 0])]  # outputs are variables, too
    assert ends("(assert (<= -1 X_0 1))(assert (or (<= 0 X_1 X_0) (<= X_0 X_1 5)))") == [([-1, 0], [1, 1]), ([-1, -1], [1, 5])]
    [box] = boxes("(assert (<= 0 X_0))(assert (<= (* 3 X_0) (- 1 X_1)))(assert (<= 0 X_1))")
    assert Fraction(box.upper[0]) >= Fraction(1, 3) > Fraction(np.nextafter(box.upper[0], 0))


def test_what_no_row_bounds_is_named() -> None:
    with pytest.raises(InvalidProperty, match="p: input X_1 has no lower bound"):
        boxes("(assert (<= 0 X_0 1))(assert (<= X_1 X_0))")
    with pytest.raises(InvalidProperty, match="p: input X_0 has no upper bound"):
        boxes("(assert (<= 0 X_0 X_1))")
    with pytest.raises(InvalidProperty, match=r"input X_1 has no lower bound \(.*: a, b are X_0, X_1; c is Y_0\)"):
        parse_vnnlib("(declare-const a Real)(declare-const b Real)(declare-const c Real)(assert (<= 0 a 1))(assert (<= b a c))", 2, 1)


def test_rows_that_exclude_each_other_leave_no_disjunct() -> None:
    assert ends("(assert (<= (+ X_0 X_1) 0))(assert (>= (+ X_0 X_1) 1))") == []
    assert ends("(assert (<= 1 X_0 X_1))(assert (<= X_1 0))") == []
    assert ends("(assert (<= 0 X_0))(assert (or (and (<= X_0 X_1) (<= X_1 (- 1))) (and (<= X_0 X_1) (<= X_1 1))))") == [([0, 0], [1, 1])]


def test_long_chains() -> None:
    n = 2000
    text = "(assert (<= -1 X_0))" + "".join(f"(assert (<= X_{i} X_{i + 1}))" for i in range(n - 1)) + f"(assert (<= X_{n - 1} 1))"
    [box] = boxes(text, n)
    assert set(box.lower.tolist()) == {-1.0}
    assert set(box.upper.tolist()) == {1.0}


@pytest.mark.parametrize("seed", range(30))
def test_bounds_are_those_of_a_float_solver(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 4))
    a = rng.integers(-3, 4, (int(rng.integers(n + 1, 3 * n + 2)), n))
    b = rng.integers(-1, 5, len(a))
    rows = [" ".join(f"(* {c} X_{i})" for i, c in enumerate(row)) for row in a.tolist()]
    text = "".join(f"(assert (<= (+ {row}) {right}))" for row, right in zip(rows, b.tolist(), strict=True))
    whole = [linprog(sign * np.eye(n)[i], a, b, bounds=(None, None)) for i in range(n) for sign in (1, -1)]
    try:
        found = boxes(text, n)
    except InvalidProperty as error:
        assert "has no" in str(error) or "the box is empty" in str(error)
        assert any(outcome.status in (2, 3, 4) for outcome in whole)
        return
    if not found:
        assert any(outcome.status == 2 for outcome in whole)
        return
    limits = np.array([outcome.fun for outcome in whole]).reshape(n, 2)
    for i, side, ours in [(i, side, ends[i]) for side, ends in enumerate((found[0].lower, -found[0].upper)) for i in range(n)]:
        stated = ((a != 0).sum(1) == 1) & ((a[:, i] > 0) if side else (a[:, i] < 0))  # that stays, even where rows imply more
        assert ours <= limits[i, side] + 1e-9
        assert stated.any() or ours >= limits[i, side] - 1e-7


def test_programs_in_rationals() -> None:
    rng = random.Random(0)
    for _ in range(60):
        m, n = 2, 5
        a = [[Fraction(rng.randint(-3, 3)) for _ in range(n)] for _ in range(m)]
        c, b = [Fraction(rng.randint(-3, 3)) for _ in range(m)], [Fraction(rng.randint(-1, 4)) for _ in range(n)]
        rows = [{j: value for j, value in enumerate(row) if value} for row in a]
        outcome = linprog([float(v) for v in b], A_eq=[[float(v) for v in row] for row in a], b_eq=[float(v) for v in c])
        try:
            y = least(rows, c, b, lambda: None)
        except Unbounded as unbounded:
            assert outcome.status in (3, 4)
            assert all(w >= 0 for w in unbounded.ray.values())
            assert all(sum(row[j] * w for j, w in unbounded.ray.items()) == 0 for row in a)
            assert sum(b[j] * w for j, w in unbounded.ray.items()) < 0
            continue
        if y is None:
            assert outcome.status in (2, 4)
            continue
        assert all(w >= 0 for w in y.values())
        assert [sum(row[j] * w for j, w in y.items()) for row in a] == c
        assert abs(float(sum(b[j] * w for j, w in y.items())) - outcome.fun) < 1e-7


def test_a_search_can_be_ended() -> None:
    calls = itertools.count()

    def over() -> None:
        if next(calls) > 20:
            raise TimeoutError

    text = "".join(f"(declare-const X_{i} Real)" for i in range(8)) + "(declare-const Y_0 Real)"
    text += "(assert (<= (+ " + " ".join(f"(abs X_{i})" for i in range(8)) + ") 1))"
    with pytest.raises(TimeoutError):
        parse_vnnlib(text, 8, 1, pace=over)
