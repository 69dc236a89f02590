from __future__ import annotations

import gzip
import itertools
import random
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from milpverify.errors import InvalidProperty
from milpverify.frontends.vnnlib.reader import parse_vnnlib, read_vnnlib
from milpverify.spec import Disjunct, Rows

NX, NY = 2, 2
HEADER = "".join(f"(declare-const {v} Real)\n" for v in ("X_0", "X_1", "Y_0", "Y_1"))
BOX = "(assert (>= X_0 -2))\n(assert (<= X_0 2))\n(assert (>= X_1 -2))\n(assert (<= X_1 2))\n"


def parse(text: str) -> tuple[Disjunct, ...]:
    return parse_vnnlib(HEADER + BOX + text, NX, NY, "p.vnnlib")


# An evaluator of formulas that shares nothing with the reader.


def truth(formula: Any, env: dict[str, Fraction]) -> bool:
    op, *args = formula
    if op == "and":
        return all(truth(a, env) for a in args)
    if op == "or":
        return any(truth(a, env) for a in args)
    if op == "not":
        return not truth(args[0], env)
    values = [value(a, env) for a in args]
    compare = {"<=": Fraction.__le__, "<": Fraction.__lt__, ">=": Fraction.__ge__, ">": Fraction.__gt__, "=": Fraction.__eq__}[op]
    return all(compare(a, b) for a, b in itertools.pairwise(values))


def value(term: Any, env: dict[str, Fraction]) -> Fraction:
    if isinstance(term, str):
        return env[term] if term in env else Fraction(term)
    op, *args = term
    values = [value(a, env) for a in args]
    if op == "-" and len(values) == 1:
        return -values[0]
    total = values[0]
    for v in values[1:]:
        total = {"+": total + v, "-": total - v, "*": total * v, "/": total / v if v else total}[op]
    return total


def written(form: Any) -> str:
    return form if isinstance(form, str) else "(" + " ".join(map(written, form)) + ")"


def random_term(rng: random.Random, depth: int) -> Any:
    if depth == 0 or rng.random() < 0.4:
        return rng.choice(["X_0", "X_1", "Y_0", "Y_1", "1", "-0.5", "2e0", "-1.", ".25"])
    kind = rng.randrange(6)
    a, b = random_term(rng, depth - 1), random_term(rng, depth - 1)
    constant = rng.choice(["2", "-3", "0.5", ["-", "1.5"], ["/", "3", "4"]])
    return [["+", a, b, "1"], ["-", a, b], ["-", a], ["*", constant, a], ["*", a, constant, "2"], ["/", a, "-2"]][kind]


def random_formula(rng: random.Random, depth: int) -> Any:
    if depth == 0 or rng.random() < 0.3:
        op = rng.choice(["<=", "<", ">=", ">", "=", "<="])
        if rng.random() < 0.4:
            return [op, rng.choice(["X_0", "X_1", ["*", "2", "X_0"], ["-", "X_1"]]), rng.choice(["0", "1", "-1", "0.5"])]
        return [op, *(random_term(rng, 2) for _ in range(rng.choice([2, 2, 2, 3])))]
    parts = [random_formula(rng, depth - 1) for _ in range(rng.randrange(1, 4))]
    return rng.choice([["and", *parts], ["or", *parts], ["not", parts[0]]])


def all_hold(rows: Rows, x: list[Fraction], y: list[Fraction]) -> bool:
    for a, c, b, strict in zip(rows.x_rows, rows.y_rows, rows.rhs, rows.strict, strict=True):
        residual = sum(Fraction(k) * v for k, v in zip([*a, *c], [*x, *y], strict=True)) - Fraction(b)
        if residual > 0 or (strict and residual == 0):
            return False
    return True


def contains(d: Disjunct, x: list[Fraction], y: list[Fraction]) -> bool:
    in_box = all(Fraction(low) <= v <= Fraction(high) for low, v, high in zip(d.box.lower, x, d.box.upper, strict=True))
    return in_box and all_hold(d.domain, x, y) and all_hold(d.unsafe, x, y)


@pytest.mark.parametrize("seed", range(60))
def test_disjuncts_mean_what_the_assertions_mean(seed: int) -> None:
    rng = random.Random(seed)
    formulas = [random_formula(rng, 3) for _ in range(rng.randrange(1, 4))]
    text = "".join(f"(assert {written(f)})\n" for f in formulas)
    try:
        disjuncts = parse(text)
    except InvalidProperty as error:
        assert "the box is empty" in str(error)
        disjuncts = ()
    grid = [Fraction(k, 2) for k in range(-5, 6)]
    for _ in range(300):
        x, y = [rng.choice(grid), rng.choice(grid)], [rng.choice(grid), rng.choice(grid)]
        env = {"X_0": x[0], "X_1": x[1], "Y_0": y[0], "Y_1": y[1]}
        expected = all(abs(v) <= 2 for v in x) and all(truth(f, env) for f in formulas)
        assert any(contains(d, x, y) for d in disjuncts) == expected, (text, env)
    for d in disjuncts:
        assert not d.domain.y_rows.any()
        assert d.unsafe.y_rows.any(axis=1).all()


def test_short_and_general_path_agree() -> None:
    rng = random.Random(0)
    number = ["0.1", "-3", "+1e-3", "2.", ".5", "-1.5E+2", "7e2"]
    lines = [f"(assert ({rng.choice(['<=', '>='])} X_{rng.randrange(NX)} {rng.choice(number)}))" for _ in range(6)]
    for _ in range(50):
        rng.shuffle(lines)
        texts = "\n".join(lines), "\n".join(line.replace(" X", "  X") + " ; and a comment (" for line in lines), "".join(lines)
        results = []
        for text in texts:
            try:
                results.append([(d.box.lower.tolist(), d.box.upper.tolist()) for d in parse(text)])
            except InvalidProperty as error:
                results.append(re.sub(r"line \d+", "", str(error)))
        assert results[0] == results[1] == results[2]
        lines[rng.randrange(6)] = f"(assert ({rng.choice(['<=', '>='])} X_{rng.randrange(NX)} {rng.choice(number)}))"


def test_a_hundred_thousand_lines() -> None:
    n = 25_000
    lines = [f"(declare-const X_{i} Real)" for i in range(n)] + ["(declare-const Y_0 Real)"]
    lines += [f"(assert (<= X_{i} {i}.25))\n(assert (>= X_{i} -{i}e-1))" for i in range(n)]
    lines += [f"(assert (or (<= X_{i} 1) (and (>= Y_0 {i}.5) (<= (* 2 X_{i}) 3.))))" for i in range(1)]
    lines += [f"(assert (<= (- X_{i}) {i}))" for i in range(n)]
    disjuncts = parse_vnnlib("\n".join(lines), n, 1)
    assert disjuncts[0].box.upper[4] == 4.25
    assert disjuncts[0].box.lower[4] == -0.4


def test_equal_boxes_and_rows_are_one_object() -> None:
    disjuncts = parse(
        "(assert (or (and (<= X_0 0) (<= Y_0 2)) (and (<= X_0 0) (<= Y_1 1)) (>= X_0 1)))(assert (or (<= Y_1 Y_0) (<= Y_1 3)))"
    )
    assert len(disjuncts) == 5  # not the one that wants Y_1 <= 1 and Y_1 <= Y_0: another wants the first alone
    assert len({id(d.box) for d in disjuncts}) == 2
    assert len({id(d.domain) for d in disjuncts}) == 1
    assert all(d.unsafe.x_rows.strides[0] == 0 for d in disjuncts)
    tables = [d.unsafe.origin for d in disjuncts]
    assert len({id(table) for table, _ in tables}) == 1
    assert all((table.y_rows[places] == d.unsafe.y_rows).all() for (table, places), d in zip(tables, disjuncts, strict=True))


def test_what_adds_nothing_is_dropped() -> None:
    (d,) = parse("(assert (and (<= Y_0 3) (<= Y_0 1) (< Y_0 1) (<= Y_0 2)))")
    assert (d.unsafe.rhs.tolist(), d.unsafe.strict.tolist()) == ([1.0], [True])
    # 3^10 conjunctions, of which these are all that do not lie within another.
    clauses = [(k / 10, (7 * k % 10) / 10) for k in range(10)]
    disjuncts = parse("".join(f"(assert (or (<= Y_0 {a}) (<= Y_0 {a - 1}) (<= Y_1 {b})))\n" for a, b in clauses))
    limits = {tuple(d.unsafe.rhs.tolist()) for d in disjuncts}
    for y in itertools.product(np.linspace(-0.05, 0.95, 11), repeat=2):
        unsafe = all(y[0] <= a or y[1] <= b for a, b in clauses)
        assert unsafe == any(contains(d, [Fraction(0)] * 2, [*map(Fraction, y)]) for d in disjuncts), (y, limits)
    assert len(disjuncts) <= 11


def test_choices_outside_the_box_are_pruned_while_multiplying() -> None:
    # 3^12 conjunctions, of which the box of X_0 leaves 4095 at most: without pruning this would be refused or take minutes.
    parts = "".join(f"(assert (or (<= X_0 {k / 16}) (>= X_0 {k / 16 + 0.01}) (>= X_0 3)))\n" for k in range(12))
    disjuncts = parse(parts)
    assert len(disjuncts) == 13  # the gaps are ordered, so that 13 intervals are left
    assert all(d.box.upper[0] <= 2 for d in disjuncts)


def test_exponential_growth_is_an_error() -> None:
    text = "".join(f"(assert (or (<= (+ Y_0 (* {k} Y_1)) 0) (<= (- Y_0 (* {k} Y_1)) 0)))\n" for k in range(1, 26))
    with pytest.raises(InvalidProperty, match="more than 200000 conjunctions"):
        parse(text)
    calls: list[int] = []

    def over() -> None:
        calls.append(0)
        if len(calls) == 100:
            raise TimeoutError

    with pytest.raises(TimeoutError):
        parse_vnnlib(START + text, 2, 2, pace=over)


def test_strict_bounds_close_the_box_and_stay_in_the_domain() -> None:
    (d,) = parse("(assert (< X_0 1))")
    assert d.box.upper[0] == 1
    assert contains(d, [Fraction(0), Fraction(0)], [Fraction(0)] * 2)
    assert not contains(d, [Fraction(1), Fraction(0)], [Fraction(0)] * 2)
    assert d.domain.x_rows.tolist() == [[1.0, 0.0]]
    (tighter,) = parse("(assert (< X_0 1))(assert (<= X_0 0.5))")
    assert len(tighter.domain) == 0


def test_a_bound_that_is_no_float_is_rounded_outward_and_kept() -> None:
    (d,) = parse("(assert (<= (* 3 X_0) 1))(assert (>= (* 7 X_1) 0.1))")
    assert Fraction(d.box.upper[0]) >= Fraction(1, 3)
    assert not contains(d, [Fraction(d.box.upper[0]), Fraction(1)], [Fraction(0)] * 2)
    assert contains(d, [Fraction(np.nextafter(d.box.upper[0], -1)), Fraction(1)], [Fraction(0)] * 2)
    assert not contains(d, [Fraction(0), Fraction(d.box.lower[1])], [Fraction(0)] * 2)


def test_constant_assertions_are_decided() -> None:
    assert parse("(assert (<= 1 0))") == ()
    assert parse("(assert (< Y_0 Y_0))") == ()
    assert len(parse("(assert (or (<= 1 0) (<= Y_0 1) (and (<= 0 0) (<= Y_1 1))))")) == 2
    (d,) = parse("(assert (<= (- X_0 X_0) 0))")
    assert len(d.unsafe) == len(d.domain) == 0


def test_numerals_are_the_nearest_floats() -> None:
    (d,) = parse("(assert (<= (* 0.1 Y_0) (+ 0.1 0.2)))(assert (<= X_0 0.1))(assert (<= Y_1 (/ 1 3)))")
    assert d.unsafe.y_rows[0, 0] == 0.1
    assert d.unsafe.rhs[0] == float(Fraction(0.1) + Fraction(0.2))
    assert d.unsafe.rhs[1] == 1 / 3
    assert d.box.upper[0] == 0.1


def test_other_ways_to_write_it() -> None:
    text = "(set-logic QF_LRA)\n(declare-fun X_0 () Real) ; first (\n(declare-fun Y_0 () Real)\n"
    text += "(assert(<= 0 X_0\n1))(assert (<= Y_0 0))(check-sat)\n"
    (d,) = parse_vnnlib(text, 1, 1)
    assert (d.box.lower.tolist(), d.box.upper.tolist()) == ([0.0], [1.0])


def test_long_and_deep_terms() -> None:
    term = "0"
    for k in range(3000):
        term = f"(+ (* {k % 7 + 1} X_{k % 2}) {term})"
    (d,) = parse(f"(assert (<= {term} Y_0))")
    assert d.unsafe.x_rows[0].tolist() == [
        float(sum(k % 7 + 1 for k in range(0, 3000, 2))),
        float(sum(k % 7 + 1 for k in range(1, 3000, 2))),
    ]
    with pytest.raises(InvalidProperty, match="nested too deeply"):
        parse("(assert (or (<= Y_0 1) " + "(and (<= Y_0 1) (or (<= Y_1 0) " * 3000 + "(<= Y_0 0)" + "))" * 3000 + "))")


START = HEADER + BOX  # eight lines

ERRORS = [
    ("(assert (<= Y_0 1)", r"line 9: '\(' without '\)'"),
    ("(assert (<= Y_0 1)\n(assert (<= Y_0 1))", r"line 10: \(assert ...\) inside"),
    ("\n(assert (<= Y_0 1)))", r"line 10: '\)' without '\('"),
    ("(assert (<= Y_0\n\nabc))", "line 11: 'abc' is neither a number"),
    ("(assert (<= Y_0 0x10))", "line 9: '0x10' is neither"),
    ("(assert (<= Y_0 1_0))", "line 9: '1_0' is neither"),
    ("(assert (<= Y_0 nan))", "line 9: 'nan' is neither"),
    ("(assert (<= Y_0 1e999))", "line 9: the number 1e999 is too large"),
    ("(assert (<= X_0 1e999))", "line 9: the number 1e999 is too large"),
    ("(assert (<= Y_7 1))", "line 9: the property names output Y_7, but the network has 2 outputs"),
    ("(assert (<= X_2 1))", "line 9: the property names input X_2, but the network has 2 inputs"),
    ("(declare-const Y_7 Real)", "line 9: the property names output Y_7, but the network has 2 outputs"),
    ("(declare-const X_99999999999999999999 Real)", "but the network has 2 inputs"),
    ("(declare-const Z Real)", "line 9: 'Z' is declared"),
    ("(declare-const X_0 Real)", "line 9: X_0 is declared twice"),
    ("(declare-const X_0 Int)", "line 9: X_0 is declared as Int, but inputs and outputs are Real"),
    ("(assert (<= (* X_0 Y_0) 1))", "line 9: a product of variables"),
    ("(assert (<= (/ 1 Y_0) 1))", "line 9: a division by a variable"),
    ("(assert (<= (/ Y_0 0) 1))", "line 9: a division by zero"),
    ("(assert (<= Y_0))", "line 9: .* compares at least two terms"),
    ("(assert (and))", "line 9: .* takes formulas"),
    ("(assert (and Y_0))", "line 9: .* takes formulas"),
    ("(assert (<= (<= Y_0 1) 1))", "line 9: .* takes terms"),
    ("(assert Y_0)", "line 9: .* takes one formula"),
    ("(assert (<= Y_0 1) (<= Y_1 1))", "line 9: .* takes one formula"),
    ("(vnnlib-version <2.0>)", r"line 9: \(vnnlib-version ...\) is no command"),
    ("()", "line 9: "),
    ("(check-sat)\n(assert (<= Y_0 1))", r"line 10: \(assert ...\) after \(check-sat\)"),
    ("hello", "line 9: '\\(' is expected, not 'hello'"),
    ("(assert (>= X_1 2.5))", "line 9: the box is empty: input X_1 has its lower bound 2.5 above its upper bound 2.0"),
    ("(assert (and (< X_1 -1) (>= X_1 -1)))", "line 9: the box is empty: input X_1"),
    ("(assert (<= (* 1e-300 1e-300 Y_0) 1))", "line 9: a coefficient of this assertion is too small"),
    ("(assert (<= (* 1e300 1e300 Y_0) 1))", "line 9: a number of this assertion is too large"),
    ("(assert (<= (* 1e-300 X_0) 1e300))", "line 9: the bound on X_0 is out of range"),
]


@pytest.mark.parametrize(("text", "message"), ERRORS, ids=[t for t, _ in ERRORS])
def test_errors_say_what_and_where(text: str, message: str) -> None:
    with pytest.raises(InvalidProperty, match=message) as caught:
        parse_vnnlib(START + text, NX, NY, "p.vnnlib")
    assert str(caught.value).startswith("p.vnnlib")
    assert "\n" not in str(caught.value)


def test_every_input_needs_bounds_and_a_declaration() -> None:
    with pytest.raises(InvalidProperty, match="input X_1 has no lower bound"):
        parse_vnnlib(HEADER + "(assert (<= -1 X_0 1))(assert (<= X_1 1))", NX, NY)
    with pytest.raises(InvalidProperty, match="input X_0 has no upper bound"):
        parse_vnnlib(HEADER + "(assert (or (<= -1 X_0 1) (>= X_0 3)))(assert (<= -1 X_1 1))", NX, NY)
    with pytest.raises(InvalidProperty, match="declares 2 inputs, but the network has 5"):
        parse_vnnlib(HEADER + BOX, 5, NY)
    with pytest.raises(InvalidProperty, match="declares 0 inputs"):
        parse_vnnlib("; nothing", 1, 1)


def test_files(tmp_path: Path) -> None:
    plain, packed = tmp_path / "a.vnnlib", tmp_path / "a.vnnlib.gz"
    plain.write_text(START)
    packed.write_bytes(gzip.compress(START.encode()))
    assert read_vnnlib(plain) == read_vnnlib(str(packed)) == START
    packed.write_bytes(packed.read_bytes()[:-12])
    with pytest.raises(InvalidProperty, match="cannot be read"):
        read_vnnlib(packed)
    plain.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidProperty, match="cannot be read"):
        read_vnnlib(plain)
    with pytest.raises(InvalidProperty, match=r"missing\.vnnlib: there is no such"):
        read_vnnlib(tmp_path / "missing.vnnlib")
    with pytest.raises(InvalidProperty, match="cannot be read"):
        read_vnnlib(tmp_path)


def test_public_properties(benchmarks: Path) -> None:
    files = sorted(file for file in benchmarks.glob("*/vnnlib/*") if file.name.endswith((".vnnlib", ".vnnlib.gz")))
    assert files
    for file in files[::5]:
        text = read_vnnlib(file)
        nx, ny = (max(map(int, re.findall(rf"{v}_(\d+)", text))) + 1 for v in "XY")
        disjuncts = parse_vnnlib(text, nx, ny, file.name)
        assert len(disjuncts) >= 1
        assert all(len(d.unsafe) for d in disjuncts)
    regions = parse_vnnlib(read_vnnlib(benchmarks / "acasxu/vnnlib/prop_6.vnnlib.gz"), 5, 5)
    assert len(regions) == 8
    assert len({id(d.box) for d in regions}) == 2
