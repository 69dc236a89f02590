"""Properties as people write them, against the plain spelling of the same, and against the meaning of random formulas."""

from __future__ import annotations

import itertools
import random
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from milpverify.errors import InvalidProperty
from milpverify.frontends.vnnlib.reader import parse_property, parse_vnnlib, read_vnnlib
from milpverify.spec import Disjunct

HEADER = "".join(f"(declare-const {v} Real)\n" for v in ("X_0", "X_1", "Y_0", "Y_1"))
BOX = "(assert (>= X_0 -2))\n(assert (<= X_0 2))\n(assert (>= X_1 -2))\n(assert (<= X_1 2))\n"  # with the header, eight lines


def parse(text: str) -> tuple[Disjunct, ...]:
    return parse_vnnlib(HEADER + BOX + text, 2, 2, "p.vnnlib")


def written(disjuncts: tuple[Disjunct, ...]) -> list[Any]:
    """All numbers of some disjuncts."""
    rows = [(r.x_rows.tolist(), r.y_rows.tolist(), r.rhs.tolist(), r.strict.tolist()) for d in disjuncts for r in (d.unsafe, d.domain)]
    return [[(d.box.lower.tolist(), d.box.upper.tolist()) for d in disjuncts], rows]


PLAIN = [
    ("(assert ((<= ((X_0)) (1))))", "(assert (<= X_0 1))"),
    ("((assert (<= Y_0 1)))", "(assert (<= Y_0 1))"),
    ("(assert (<= |Y_0| (* 2 |X_1|)))", "(assert (<= Y_0 (* 2 X_1)))"),
    ("(assert (<= Y_0 (/ 1 4)))(assert (<= Y_1 (- 1)))", "(assert (<= Y_0 0.25))(assert (<= Y_1 -1))"),
    ("(assert (<= Y_0 +1.0))(assert (>= Y_0 -.5))(assert (<= Y_1 1.))", "(assert (<= Y_0 1))(assert (>= Y_0 -0.5))(assert (<= Y_1 1))"),
    ("(assert (<= Y_0 1e-3)) ; a comment (\r\n(assert (<= Y_1 1E+2))\r\n", "(assert (<= Y_0 0.001))(assert (<= Y_1 100))"),
    ("(assert (=> (<= Y_0 1) (<= Y_1 1)))", "(assert (or (> Y_0 1) (<= Y_1 1)))"),
    ("(assert (=> (<= Y_0 1) (< Y_1 2) (<= Y_1 1)))", "(assert (or (> Y_0 1) (>= Y_1 2) (<= Y_1 1)))"),
    ("(assert (ite (<= Y_0 1) (<= Y_1 1) (<= Y_1 0)))", "(assert (or (and (<= Y_0 1) (<= Y_1 1)) (and (> Y_0 1) (<= Y_1 0))))"),
    ("(assert (<= (ite (<= Y_0 1) Y_1 3) 1))", "(assert (or (and (<= Y_0 1) (<= Y_1 1)) (and (> Y_0 1) (<= 3 1))))"),
    ("(assert (<= (ite (>= Y_0 Y_1) Y_0 Y_1) 1))", "(assert (and (<= Y_0 1) (<= Y_1 1)))"),
    ("(assert (>= (ite (< Y_0 Y_1) Y_0 Y_1) 1))", "(assert (and (>= Y_0 1) (>= Y_1 1)))"),
    ("(assert (<= (abs (- X_0 0.5)) 0.25))", "(assert (and (<= X_0 0.75) (>= X_0 0.25)))"),
    ("(assert (> (abs Y_0) 1))", "(assert (or (> Y_0 1) (< Y_0 -1)))"),
    ("(assert (<= (abs (- 3)) Y_0))", "(assert (<= 3 Y_0))"),
    ("(assert (xor (<= Y_0 1) (<= Y_1 1)))", "(assert (or (and (<= Y_0 1) (> Y_1 1)) (and (> Y_0 1) (<= Y_1 1))))"),
    ("(assert (= (<= Y_0 1) (<= Y_1 1)))", "(assert (or (and (<= Y_0 1) (<= Y_1 1)) (and (> Y_0 1) (> Y_1 1))))"),
    ("(assert (distinct Y_0 Y_1))", "(assert (or (< Y_0 Y_1) (> Y_0 Y_1)))"),
    ("(assert (<= 0 Y_0 Y_1 1))", "(assert (and (<= 0 Y_0) (<= Y_0 Y_1) (<= Y_1 1)))"),
    ("(assert (let ((a (+ Y_0 Y_1)) (b 2.0)) (<= (+ a a) b)))", "(assert (<= (+ (* 2 Y_0) (* 2 Y_1)) 2))"),
    ("(assert (let ((Y_0 Y_1) (Y_1 Y_0)) (<= Y_0 (* 2 Y_1))))", "(assert (<= Y_1 (* 2 Y_0)))"),
    ("(assert (let ((p (<= Y_0 1))) (let ((q (not p))) (and q (<= Y_1 1)))))", "(assert (and (> Y_0 1) (<= Y_1 1)))"),
    ("(assert (and (let ((a 1)) (<= Y_0 a)) (let ((a 2)) (<= Y_1 a))))", "(assert (and (<= Y_0 1) (<= Y_1 2)))"),
    ("(define-fun c () Real (/ 1 2))(assert (<= Y_0 c))(assert (<= Y_1 (c)))", "(assert (<= Y_0 0.5))(assert (<= Y_1 0.5))"),
    ("(define-const c Real 2)(define-fun n () Int 3)(assert (<= (* n Y_0) c))", "(assert (<= (* 3 Y_0) 2))"),
    ("(define-fun safe () Bool (<= Y_0 Y_1))(assert (not safe))", "(assert (> Y_0 Y_1))"),
    ("(define-fun f ((a Real) (k Real)) Real (* k (- a 1)))\n(assert (<= (f Y_0 2) (f (f Y_1 1) 3)))",
     "(assert (<= (- (* 2 Y_0) 2) (- (* 3 Y_1) 6)))"),
    ("(define-fun max ((a Real) (b Real)) Real (ite (> a b) a b))(assert (<= (max Y_0 Y_1) 0))", "(assert (and (<= Y_0 0) (<= Y_1 0)))"),
    ("(define-fun p ((|a b| Real) (q Bool)) Bool (and q (<= |a b| 1)))(assert (p Y_0 (<= Y_1 1)))", "(assert (and (<= Y_1 1) (<= Y_0 1)))"),
    ("(define-fun f ((a Real)) Real (abs a))(define-fun abs ((a Real)) Real (* 2 a))(assert (<= (f Y_0) 1))",
     "(assert (and (<= Y_0 1) (>= Y_0 -1)))"),
    ("(assert (! (<= Y_0 1) :named first))", "(assert (<= Y_0 1))"),
    ('(set-info :source |a (b|)(echo "a)")(assert (<= (to_real Y_0) 1))(check-sat)(get-value (X_0 Y_0))(exit)', "(assert (<= Y_0 1))"),
    ("(assert (<= (min Y_0 Y_1 1) 0))", "(assert (or (<= Y_0 0) (<= Y_1 0)))"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "plain"), PLAIN, ids=[t for t, _ in PLAIN])
def test_every_spelling_is_the_plain_one(text: str, plain: str) -> None:
    assert written(parse(text)) == written(parse(plain))


def test_declarations_and_byte_order_marks(tmp_path: Path) -> None:
    plain = written(parse("(assert (<= Y_0 1))"))
    for header in (
        HEADER.replace("declare-const", "declare-fun").replace(" Real", " () Real"),
        HEADER.replace("declare-const", "declare-fun"),
    ):
        assert written(parse_vnnlib(header + BOX + "(assert (<= Y_0 1))", 2, 2)) == plain
    bars = (HEADER + BOX).replace("X_0", "|X_0|")
    assert written(parse_vnnlib(bars + "(assert (<= Y_0 1))", 2, 2)) == plain
    file = tmp_path / "p.vnnlib"
    file.write_bytes(b"\xef\xbb\xbf" + (HEADER + BOX + "(assert (<= Y_0 1))").replace("\n", "\r\n").encode())
    assert written(parse_vnnlib(read_vnnlib(file), 2, 2)) == plain


def named(names: str, text: str = "(assert (<= Y_0 (* 2 Y_1)))") -> Any:
    """A property whose variables X_0, X_1, Y_0, Y_1 have other names."""
    whole = "".join(f"(declare-const {name} Real)" for name in names.split()) + BOX + text
    for old, new in zip(("X_0", "X_1", "Y_0", "Y_1"), names.split(), strict=False):
        whole = whole.replace(f" {old}", f" {new}")
    return parse_property(whole, 2, 2, "p")


@pytest.mark.parametrize(
    "names", ["a b c d", "x0 x1 y0 y1", "X_0 X_1 left right", "speed |1go| out_1 out_2", "x_1 x_2 y_1 y_2", "a b Y_0 Y_1"]
)
def test_other_names_are_taken_in_their_order(names: str) -> None:
    disjuncts, notes = named(names)
    assert written(disjuncts) == written(parse("(assert (<= Y_0 (* 2 Y_1)))"))
    [note] = notes
    assert "in the order of their declarations" in note
    assert all(name in note for name in names.split() if not name.startswith(("X_", "Y_")))
    assert parse_property(HEADER + BOX, 2, 2, "p").notes == ()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("y0 y1 x0 x1", "'y0' stands where an input is declared"),
        ("x0 x1 x2 y0", "'x2' stands where an output is declared"),
        ("b2 b1 c d", "'b2' is declared before 'b1'"),
        ("a b c", "declares 1 outputs, but the network has 2"),
        ("a b c d e", "'e' is declared, which is one more variable"),
        ("a X_1 Y_0 Y_1", "X_1 is declared, but 'a' may stand for it"),
        ("X_0 X_1 left Y_1", "Y_1 is declared, but 'left' may stand for it"),
        ("X_0 X_1 Y_0 right", "'right' is declared, but variables are called"),
        ("a a c d", "a is declared twice"),
    ],
)
def test_names_that_are_not_clear_are_refused(names: str, message: str) -> None:
    with pytest.raises(InvalidProperty, match=message):
        named(names, "")


ERRORS = [
    ("(assert (<= (* X_0 Y_0) 1))", r"line 9: a product of variables: only linear terms are allowed: \(\* X_0 Y_0\)$"),
    ("(assert\n(<= (/ 1\n (+ X_0 1)) 1))", r"line 10: a division by a variable: only linear terms are allowed: \(/ 1 \(\+ X_0 1\)\)$"),
    ("(assert (<= (* (abs X_0) (ite (<= Y_0 1) 1 2)) 1))", "line 9: a product of variables"),
    ("(assert (<= (exp Y_0) 1))", r"line 9: 'exp' is no operator of VNN-LIB 1.0: \(exp Y_0\)$"),
    ("(assert (forall ((a Real)) (<= Y_0 a)))", "line 9: 'forall' is no operator"),
    ("(assert (<= (Y_0 1) 1))", "line 9: 'Y_0' is no operator"),
    ("(assert ((<= Y_0 1) (<= Y_1 1)))", "line 9: an operator is expected"),
    ("(assert (<= -Y_0 1))", r"line 9: '-Y_0' is neither a number nor a variable X_i or Y_j; for the negative write \(- Y_0\)"),
    ("(assert (=> (<= Y_0 1)))", "line 9: .* takes at least two formulas"),
    ("(assert (ite (<= Y_0 1) (<= Y_1 1) 2))", "line 9: .* takes a formula, and two terms or two formulas"),
    ("(assert (<= (abs Y_0 1) 1))", "line 9: .* takes one term"),
    ("(assert (let (a 1) (<= Y_0 a)))", "line 9: the bindings of"),
    ("(assert (let ((a 1)) (<= Y_0 a) (<= Y_0 b)))", "line 9: 'b' is neither"),
    ("(assert (let ((a 1) (b a)) (<= Y_0 b)))", "line 9: 'a' is neither"),
    ("(assert (and (let ((a 1)) (<= Y_0 a)) (<= Y_0 a)))", "line 9: 'a' is neither"),
    ("(assert (let ((a 1)) (<= Y_0 a)", r"line 9: '\(' without '\)'"),
    ("(define-fun f ((a Real)) Real (* a a))\n(assert (<= (f 2) Y_0))\n(assert (<= (f Y_1) 1))",
     r"line 9: a product .*\(f is used in line 11\)"),
    ("(define-fun f ((a Real)) Real (f a))(assert (<= (f Y_0) 1))", "line 9: 'f' is no operator"),
    ("(define-fun f ((a Real)) Real a)(assert (<= (f Y_0 1) 1))", "line 9: f takes 1 arguments"),
    ("(define-fun f ((a Int)) Real a)", "line 9: the parameters of f read"),
    ("(define-fun f ((a Real)) Real (g a))(define-fun g ((a Real)) Real a)(assert (<= (f Y_0) 1))", "line 9: 'g' is no operator"),
    ("(define-fun f ((a Real) (a Real)) Real a)", "line 9: a is bound twice"),
    ("(define-fun true () Bool false)", "line 9: true cannot be defined"),
    ("(define-fun f ((a Real)) Real (* a a))\n(define-fun g ((a Real)) Real (f a))\n(assert (<= (g Y_1) 1))",
     r"line 9: a product of variables: only linear terms are allowed: \(\* a a\) \(g is used in line 11\)$"),
    ("(define-fun f ((3 Real)) Real 3)", "line 9: 3 is no name"),
    ("(assert (let ((a 1) (|a| Y_0)) (<= a 1)))", "line 9: a is bound twice"),
    ("(assert (let ((3 Y_0)) (<= 3 1)))", "line 9: 3 is no name"),
    ("(assert (let ((true (<= Y_0 1))) true))", "line 9: true is no name"),
    ("(define-fun f () Bool 1)", "line 9: f is no formula, but declared as Bool"),
    ("(define-fun f () Int 1.5)", "line 9: f is no integer"),
    ("(define-fun and () Real 1)", "line 9: and cannot be defined"),
    ("(define-fun X_0 () Real 1)", "line 9: X_0 is declared twice"),
    ("(define-fun f Real 1)", "line 9: a definition reads"),
    ("(define-fun-rec f () Real 1)", r"line 9: \(define-fun-rec ...\) is no command"),
    ("(declare-fun X_3 (Real) Real)", "line 9: a declaration reads"),
    ("(declare-const b Bool)", "line 9: b is declared as Bool"),
    ("((assert (<= Y_0 1))\n(assert (<= Y_0 1)))", r"line 10: a '\)' is missing before"),
    ("; an open comment (assert (<= Y_0 abc))\n(assert", r"line 10: '\(' without '\)'"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), ERRORS, ids=[t for t, _ in ERRORS])
def test_errors_say_what_and_where(text: str, message: str) -> None:
    with pytest.raises(InvalidProperty, match=message) as caught:
        parse(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "(assert (let ((p0 (or (<= Y_0 1) (<= Y_1 1)))) "
        + " ".join(f"(let ((p{k + 1} (and p{k} p{k}))) " for k in range(60))
        + "p60"
        + ")" * 62,
        "(define-fun f0 ((a Real)) Real (+ a a))"
        + "".join(f"(define-fun f{k + 1} ((a Real)) Real (+ (f{k} a) (f{k} a)))" for k in range(60))
        + "(assert (<= (f60 Y_0) 1))",
        "(assert (xor " + " ".join(f"(<= (+ Y_0 (* {k} Y_1)) 1)" for k in range(40)) + "))",
        "(assert (<= (+ " + " ".join(f"(abs (+ Y_0 (* {k} Y_1)))" for k in range(40)) + ") 1))",
    ],
    ids=["let", "define-fun", "xor", "abs"],
)
def test_what_multiplies_out_to_too_much_is_refused(text: str) -> None:
    with pytest.raises(InvalidProperty, match=r"line 9: the definitions, maxima and case distinctions .* multiply out to too many"):
        parse(text)


# An evaluator of formulas that shares nothing with the reader.


def meaning(form: Any, env: dict[str, Any]) -> Any:
    if isinstance(form, str):
        return env[form] if form in env else Fraction(form)
    op, *args = form
    if op == "let":
        return meaning(args[1], {**env, **{name: meaning(value, env) for name, value in args[0]}})
    a = [meaning(arg, env) for arg in args]
    match op:
        case "and" | "or":
            return (all if op == "and" else any)(a)
        case "not":
            return not a[0]
        case "=>":
            return not all(a[:-1]) or a[-1]
        case "xor":
            return sum(a) % 2 == 1
        case "ite":
            return a[1] if a[0] else a[2]
        case "abs" | "min" | "max":
            return abs(a[0]) if op == "abs" else {"min": min, "max": max}[op](a)
        case "+" | "*":
            return sum(a) if op == "+" else a[0] * a[1]
        case "-":
            return -a[0] if len(a) == 1 else a[0] - a[1]
        case "distinct":
            return all(p != q for p, q in itertools.combinations(a, 2))
    compare = {"<=": lambda p, q: p <= q, "<": lambda p, q: p < q, ">=": lambda p, q: p >= q, ">": lambda p, q: p > q}
    return all(compare.get(op, lambda p, q: p == q)(p, q) for p, q in itertools.pairwise(a))


def text_of(form: Any) -> str:
    return form if isinstance(form, str) else "(" + " ".join(map(text_of, form)) + ")"


def random_term(rng: random.Random, depth: int, names: list[str]) -> Any:
    if depth == 0 or rng.random() < 0.3:
        return rng.choice([*names, *names, "1", "-0.5"])
    a, b = random_term(rng, depth - 1, names), random_term(rng, depth - 1, names)
    condition = random_formula(rng, 0, names)
    terms = [["+", a, b], ["-", a, b], ["-", a], ["*", rng.choice(["2", "-0.5"]), a], ["abs", a], ["max", a, b], ["min", a, b, "1"]]
    terms += [["ite", condition, a, b], ["ite", [rng.choice(["<=", "<", ">", ">="]), a, b], a, b], ["let", [["u", a]], ["+", "u", "u"]]]
    return rng.choice(terms)


def random_formula(rng: random.Random, depth: int, names: list[str]) -> Any:
    if depth == 0 or rng.random() < 0.3:
        op = rng.choice(["<=", "<", ">=", ">", "=", "distinct"])
        return (
            [op, *(random_term(rng, 2 if depth else 1, names) for _ in range(rng.choice([2, 2, 2, 3])))]
            if depth
            else [op, rng.choice(names), "0.5"]
        )
    p, q, r = (random_formula(rng, depth - 1, names) for _ in range(3))
    inner = ["and", "p", random_formula(rng, depth - 1, [*names, "w"])]
    formulas = [["and", p, q], ["or", p, q, r], ["not", p], ["=>", p, q], ["xor", p, q], ["=", p, q], ["ite", p, q, r], ["distinct", p, q]]
    return rng.choice([*formulas, ["let", [["p", p], ["w", random_term(rng, 1, names)]], inner]])


def contains(d: Disjunct, x: list[Fraction], y: list[Fraction]) -> bool:
    for rows in (d.domain, d.unsafe):
        for a, c, b, strict in zip(rows.x_rows.tolist(), rows.y_rows.tolist(), rows.rhs.tolist(), rows.strict.tolist(), strict=True):
            residual = sum(Fraction(k) * v for k, v in zip([*a, *c], [*x, *y], strict=True) if k) - Fraction(b)
            if residual > 0 or (strict and residual == 0):
                return False
    return all(low <= v <= high for low, v, high in zip(d.box.lower.tolist(), x, d.box.upper.tolist(), strict=True))


@pytest.mark.parametrize("seed", range(40))
def test_disjuncts_mean_what_random_formulas_mean(seed: int) -> None:
    rng = random.Random(seed)
    names = ["X_0", "X_1", "Y_0", "Y_1"]
    formula = random_formula(rng, 2, names)
    try:
        disjuncts = parse(f"(assert {text_of(formula)})")
    except InvalidProperty as error:
        if "multiply out" in str(error):
            return
        assert "the box is empty" in str(error)
        disjuncts = ()
    grid = [Fraction(k, 2) for k in range(-5, 6)]
    for _ in range(60):
        point = [rng.choice(grid) for _ in names]
        expected = all(abs(v) <= 2 for v in point[:2]) and bool(meaning(formula, dict(zip(names, point, strict=True))))
        assert any(contains(d, point[:2], point[2:]) for d in disjuncts) == expected, (text_of(formula), point)


def test_large_properties_of_every_kind() -> None:
    n = 5000
    lines = [f"(declare-fun x{i} () Real)" for i in range(n)] + ["(declare-fun out () Real)", "(define-fun eps () Real (/ 1 4))"]
    lines += [f"(assert (<= (abs (- x{i} {i}.0)) eps))" for i in range(n)]
    (d,) = parse_vnnlib("\r\n".join([*lines, "(assert (=> (> out 0) (<= out -1)))"]), n, 1)
    assert np.array_equal(d.box.upper, np.arange(n) + 0.25)
    assert np.array_equal(d.box.lower, np.arange(n) - 0.25)
    text = "".join(f"(let ((v{k} (+ Y_0 {k}))) " for k in range(2000)) + "(<= v1999 0)" + ")" * 2000
    (d,) = parse(f"(assert {text})")
    assert d.unsafe.rhs.tolist() == [-1999.0]
