"""Planted traps of known truth: by every method, with the attack and without, the verdict is right or UNKNOWN, and never wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

import exact
import numpy as np
import pytest
from judging import Lasting, contradictions
from random_networks import ABS, SIGN, Builder, Case, spec_text

import milpverify as mv
from milpverify import Verdict
from milpverify.config import PARTS
from milpverify.solvers.base import Limits
from milpverify.solvers.model import Model
from milpverify.solvers.names import MILP_SOLVERS
from milpverify.solvers.trusted_bound import safe_dual_bound

METHODS: dict[str, str | mv.Milp] = {"auto": "auto", "bab": "bab", "smt": "smt", **{s: mv.Milp(s) for s in MILP_SOLVERS}}


class Kind(Enum):
    """The truth, and the verdicts that it allows."""

    SAFE = "no violation", (Verdict.VERIFIED, Verdict.UNKNOWN)
    UNSAFE = "violated in both arithmetics", (Verdict.FALSIFIED, Verdict.UNKNOWN)
    REAL = "violated in the reals, never in the runtime", (Verdict.UNKNOWN,)


@dataclass
class Trap:
    """`easy`: some method must decide it."""

    builder: Builder
    output: str
    kind: Kind
    disjuncts: list[exact.Disjunct]
    easy: bool = True

    def case(self) -> Case:
        model = self.builder.model(self.output)
        network = self.builder.network
        return Case(network, self.disjuncts, model, spec_text(network.nx, network.size(network.output), self.disjuncts))


def box(lower: list[float], upper: list[float], *rows: exact.Row, domain: tuple[exact.Row, ...] = ()) -> exact.Disjunct:
    return exact.Disjunct(lower, upper, list(rows), list(domain))


def row(x: list[float], y: list[float], rhs: float, strict: bool = False) -> exact.Row:
    return exact.Row(np.array(x), np.array(y), rhs, strict)


def hats(b: Builder, centres: list[float], steep: float) -> str:
    """Per input a hat of height 1 and width 2 / steep around a centre: (1, 3 n) of its kinks, before they are summed."""
    n = len(centres)
    weight = np.repeat(np.eye(n), 3, axis=0) * steep
    return b.relu(b.gemm("x", weight, [1.0 - steep * c + k for c in centres for k in (0.0, -1.0, -2.0)]))


def bumped(height: float, n: int, kind: Kind) -> Callable[[], Trap]:
    """y = (sum of x) / 4 + height * (a pyramid of width 2^-13 and height 1): unsafe where y >= 1, far from where gradients lead."""

    def make() -> Trap:
        b = Builder(n)
        top = b.relu(b.gemm(hats(b, [0.15625, 0.71875, 0.40625][:n], 2.0**14), [[1.0, -2.0, 1.0] * n], [1.0 - n]))
        peak, flat = b.gemm(top, [[height]], [0.0]), b.gemm("x", [[0.25] * n], [0.0])
        y = b.affine("Add", [peak, flat], (1, 1), [(peak, np.eye(1)), (flat, np.eye(1))])
        return Trap(b, y, kind, [box([0.0] * n, [1.0] * n, row([0.0] * n, [-1.0], -1.0))])

    return make


def absolute(shift: float, kind: Kind, strict: bool = False) -> Callable[[], Trap]:
    """y = |x_0| + |x_1| + shift, exact in float32 at dyadic points: unsafe where y <= 0."""

    def make() -> Trap:
        b = Builder(2)
        y = b.gemm(b.elementwise("Abs", ["x"], ABS), [[1.0, 1.0]], [shift])
        return Trap(b, y, kind, [box([-1.0, -0.5], [1.0, 0.75], row([0.0, 0.0], [1.0], 0.0, strict))])

    return make


def scaled(first: float, second: float, shift: float, kind: Kind) -> Callable[[], Trap]:
    """|x_0 - x_1| / 2 through a layer scaled by `first` and one scaled by `second`: unsafe where it is <= -shift."""

    def make() -> Trap:
        b = Builder(2)
        h = b.relu(b.gemm("x", np.array([[1.0, -1.0], [-1.0, 1.0], [1.0, 1.0]]) * first, np.zeros(3)))
        h = b.relu(b.gemm(h, np.array([[0.5, 0.5, 0.0], [0.25, 0.25, 1.0]]) * second, np.zeros(2)))
        y = b.gemm(h, [[1.0, 0.0]], [0.0])
        unit = float(np.float32(first)) * float(np.float32(second))
        return Trap(b, y, kind, [box([-1.0, -1.0], [1.0, 1.0], row([0.0, 0.0], [1.0], -shift * unit))])

    return make


def cancelled(least: float, rows: list[exact.Row], kind: Kind, hidden: bool, bias: float) -> Callable[[], Trap]:
    """y = relu(x + bias) - bias: x in the reals, 0 in float32; `hidden` sends it through one more ReLU."""

    def make() -> Trap:
        b = Builder(1)
        y = b.gemm(b.relu(b.gemm("x", [[1.0]], [bias])), [[1.0]], [-bias])
        if hidden:
            y = b.gemm(b.relu(b.gemm(y, [[1.0], [-1.0]], [0.0, 0.0])), [[1.0, -1.0]], [0.0])
        return Trap(b, y, kind, [box([least], [1.0], *rows)], easy=False)

    return make


def twins(kind: Kind, *rows: exact.Row) -> Callable[[], Trap]:
    """y_0 = y_1 = relu(x_0 - x_1), by two neurons."""

    def make() -> Trap:
        b = Builder(2)
        h = b.relu(b.gemm("x", [[1.0, -1.0], [1.0, -1.0]], [0.0, 0.0]))
        return Trap(b, b.gemm(h, np.eye(2), [0.0, 0.0]), kind, [box([-1.0, -1.0], [1.0, 1.0], *rows)])

    return make


def cornered(kind: Kind, strict: bool) -> Callable[[], Trap]:
    """Inputs in the unit square with x_0 + x_1 >= 2, or > 2."""

    def make() -> Trap:
        b = Builder(2)
        inputs = box([0.0] * 2, [1.0] * 2, row([0.0] * 2, [-1.0], -0.5), domain=(row([-1.0, -1.0], [0.0], -2.0, strict),))
        return Trap(b, b.relu(b.gemm("x", [[1.0, 1.0]], [-1.0])), kind, [inputs])

    return make


def relu_of_x(kind: Kind, *disjuncts: exact.Disjunct, easy: bool = True) -> Callable[[], Trap]:
    def make() -> Trap:
        b = Builder(1)
        return Trap(b, b.gemm(b.relu(b.gemm("x", [[1.0]], [0.0])), [[1.0]], [0.0]), kind, list(disjuncts), easy)

    return make


def sign_of_x(lower: float, upper: float, kind: Kind, *rows: exact.Row, easy: bool = True) -> Callable[[], Trap]:
    def make() -> Trap:
        b = Builder(1)
        return Trap(b, b.elementwise("Sign", [b.gemm("x", [[1.0]], [0.0])], SIGN), kind, [box([lower], [upper], *rows)], easy)

    return make


def affine(weight: list[list[float]], bias: list[float], kind: Kind, *disjuncts: exact.Disjunct, easy: bool = True) -> Callable[[], Trap]:
    """A network without a nonlinearity."""

    def make() -> Trap:
        b = Builder(len(weight[0]))
        return Trap(b, b.gemm("x", weight, bias), kind, list(disjuncts), easy)

    return make


def chain(factors: list[float], bias: float, kind: Kind, *disjuncts: exact.Disjunct) -> Callable[[], Trap]:
    """y = factors[-1] relu(... factors[0] x + bias)."""

    def make() -> Trap:
        b = Builder(1)
        y = b.gemm("x", [[factors[0]]], [bias])
        for factor in factors[1:]:
            y = b.gemm(b.relu(y), [[factor]], [0.0])
        return Trap(b, y, kind, list(disjuncts), easy=False)

    return make


S, U, R = Kind.SAFE, Kind.UNSAFE, Kind.REAL
TINY = 2.0**-23  # 1.2e-7
LOW, HIGH = row([0.0], [1.0], -0.5), row([0.0], [-1.0], -0.5)  # y <= -0.5, y >= 0.5
TENTH = 0.1  # no float32
BIG = float(np.float32(1e38))
OFTEN = [box([0.0], [1.0], row([0.0], [1.0], -1.0 - k)) for k in range(5)]

TRAPS: dict[str, Callable[[], Trap]] = {
    "a narrow bump": bumped(1.0, 1, U),
    "its harmless twin": bumped(0.75, 1, S),
    "a narrow bump in three dimensions": bumped(1.0, 3, U),
    "its harmless twin in three dimensions": bumped(0.125, 3, S),
    "margin +1e-7": absolute(TINY, S),
    "margin -1e-7": absolute(-TINY, U),
    "margin 0": absolute(0.0, U),
    "margin 0, strict": absolute(0.0, S, strict=True),
    "1e6, then 1e-6": scaled(1e6, 1e-6, 1e-3, S),
    "1e6, then 1e-6, violated": scaled(1e6, 1e-6, -1e-3, U),
    "1e6, then 1e-6, margin 1e-7": scaled(2.0**20, 2.0**-20, TINY, S),
    "1e-6, then 1e6": scaled(1e-6, 1e6, 1e-3, S),
    "1e-6, then 1e6, violated": scaled(1e-6, 1e6, -1e-3, U),
    "1e9, then 1e-9": scaled(1e9, 1e-9, 1e-3, S),
    "1e9, then 1e-9, violated": scaled(1e9, 1e-9, -1e-3, U),
    "1e6, then 1e6": scaled(1e6, 1e6, 1e-3, S),
    **{
        f"bias {bias:g}{', hidden' if hidden else ''}, {name}": cancelled(least, rows, kind, hidden, bias)
        for bias in (1e9, 1e15)
        for hidden in (False, True)
        for name, least, rows, kind in (
            ("violated in the reals", -1.0, [LOW], R),
            ("violated in the reals above", -1.0, [HIGH], R),
            ("violated in float32", 0.5, [row([0.0], [1.0], 0.25), row([0.0], [-1.0], 0.25)], S),
            ("safe", -1.0, [row([0.0], [1.0], -1.5)], S),
            ("safe by strictness", -1.0, [row([-1.0], [1.0], 0.0, True)], S),
            ("violated", -1.0, [row([-1.0], [1.0], 0.0)], U),
        )
    },
    "a tie": twins(U, row([0.0, 0.0], [1.0, -1.0], 0.0)),
    "a tie, strict": twins(S, row([0.0, 0.0], [1.0, -1.0], 0.0, True)),
    "a tie, both ways": twins(U, row([0.0, 0.0], [1.0, -1.0], 0.0), row([0.0, 0.0], [-1.0, 1.0], 0.0)),
    "a tie, one way strict": twins(S, row([0.0, 0.0], [1.0, -1.0], 0.0), row([0.0, 0.0], [-1.0, 1.0], 0.0, True)),
    "a tie at the rim": relu_of_x(U, box([-1.0], [1.0], row([-1.0], [1.0], 0.0))),
    "a tie at the rim, strict": relu_of_x(S, box([-1.0], [1.0], row([-1.0], [1.0], 0.0, True))),
    "a corner": relu_of_x(U, box([0.0], [1.0], row([0.0], [-1.0], -1.0))),
    "a corner, strict": relu_of_x(S, box([0.0], [1.0], row([0.0], [-1.0], -1.0, True))),
    "a corner that the input excludes": relu_of_x(
        S, box([0.0], [1.0], row([0.0], [-1.0], -1.0), domain=(row([1.0], [0.0], 1.0, True),)), easy=False
    ),
    "an empty input set": cornered(S, True),
    "an input set of one point": cornered(U, False),
    "the last of five": relu_of_x(U, *OFTEN, box([0.0], [1.0], row([0.0], [-1.0], -0.75))),
    "none of five": relu_of_x(S, *OFTEN),
    "the last of five, another box": relu_of_x(U, *OFTEN, box([2.0], [3.0], row([0.0], [-1.0], -2.75))),
    "the first of five": relu_of_x(U, box([2.0], [3.0], row([0.0], [-1.0], -2.75)), *OFTEN),
    "one row of a conjunction misses": relu_of_x(S, box([0.0], [1.0], row([0.0], [-1.0], -0.5), row([0.0], [1.0], 0.49))),
    "a conjunction in one point": relu_of_x(U, box([0.0], [1.0], row([0.0], [-1.0], -0.5), row([0.0], [1.0], 0.5))),
    "a conjunction in one point, strict": relu_of_x(S, box([0.0], [1.0], row([0.0], [-1.0], -0.5), row([0.0], [1.0], 0.5, True))),
    "coefficients 1e9 and 1e-9": relu_of_x(S, box([0.5], [1.0], row([-1e-9], [1e9], 4.9e8))),
    "coefficients 1e9 and 1e-9, violated": relu_of_x(U, box([0.5], [1.0], row([-1e-9], [1e9], 5.1e8))),
    "no row on outputs": relu_of_x(U, box([-1.0], [1.0], domain=(row([1.0], [0.0], 0.5, True),))),
    "a point": relu_of_x(U, box([0.5], [0.5], row([0.0], [-1.0], -0.5))),
    "a point, strict": relu_of_x(S, box([0.5], [0.5], row([0.0], [-1.0], -0.5, True))),
    "a point that is no float32": relu_of_x(R, box([TENTH], [TENTH], row([0.0], [1.0], TENTH)), easy=False),
    "a point that is no float32, strict": relu_of_x(S, box([TENTH], [TENTH], row([0.0], [-1.0], -TENTH, True)), easy=False),
    "a sign of zero": sign_of_x(-1.0, 1.0, U, row([0.0], [1.0], 0.0), row([0.0], [-1.0], 0.0)),
    "a sign never a half": sign_of_x(-1.0, 1.0, S, row([0.0], [1.0], 0.75), row([0.0], [-1.0], -0.25)),
    "a sign at the end of the box": sign_of_x(0.0, 1.0, S, row([0.0], [1.0], -0.5), easy=False),
    "a sign past the end of the box": sign_of_x(-TINY, 1.0, U, row([0.0], [1.0], -0.5)),
    "a constant": affine([[0.0, 0.0]], [0.5], S, box([-1.0, -1.0], [1.0, 1.0], row([0.0, 0.0], [1.0], 0.25))),
    "a constant, violated": affine([[0.0, 0.0]], [0.5], U, box([-1.0, -1.0], [1.0, 1.0], row([0.0, 0.0], [1.0], 0.5))),
    "a constant, strict": affine([[0.0, 0.0]], [0.5], S, box([-1.0, -1.0], [1.0, 1.0], row([0.0, 0.0], [1.0], 0.5, True))),
    "the input": affine([[1.0]], [0.0], U, box([-1.0], [1.0], row([1.0], [-1.0], 0.0))),
    "the input, strict": affine([[1.0]], [0.0], S, box([-1.0], [1.0], row([1.0], [-1.0], 0.0, True))),
    "overflow in float32": chain([BIG, BIG, 1.0], 0.0, R, box([0.0], [1.0], row([0.0], [-1.0], -1e70))),
    "overflow in float32, safe": chain([BIG, BIG, 1.0], 0.0, S, box([0.0], [1.0], row([0.0], [-1.0], -1e77))),
    "overflow in float64": chain([BIG] * 9, 0.0, R, box([0.0], [1.0], row([0.0], [-1.0], -1e300))),
    "overflow in float64, safe": chain([BIG] * 9, 0.0, S, box([0.0], [1.0], row([0.0], [1.0], -1e300))),
    "underflow in float32": chain([1e-30, 1e-30, 1.0], 1e-30, S, box([0.0], [1.0], row([0.0], [1.0], 0.0))),
    "underflow in float32, violated": chain([1e-30, 1e-30, 1.0], 1e-30, R, box([0.0], [1.0], row([0.0], [-1.0], 0.0, True))),
    "underflow in float64": chain([1e-30] * 14, 1e-30, S, box([0.0], [1.0], row([0.0], [1.0], 0.0))),
    "underflow in float64, violated": chain([1e-30] * 14, 1e-30, R, box([0.0], [1.0], row([0.0], [-1.0], 0.0, True))),
}


@pytest.mark.parametrize("name", TRAPS)
def test_never_wrong(name: str, tmp_path: Path, processes: None) -> None:
    trap = TRAPS[name]()
    case = trap.case()
    truths = [exact.truth(case.network, d) for d in case.disjuncts]
    assert any(t.unsafe for t in truths) == (trap.kind is not Kind.SAFE), "the trap is not what it says"
    problem = mv.load(*case.write(tmp_path))
    wrong, verdicts = [], set()
    for label, method in METHODS.items():
        for attack in (False, True) if label in ("auto", "scip") else (False,):
            result = mv.verify(problem, 0.2 if label in ("auto", "bab") else 10.0, method, options=mv.Options(attack=attack))
            verdicts.add(result.verdict)
            wrong += contradictions(case, truths, result, f"{label}, attack {attack}")
            if result.verdict not in trap.kind.value[1]:
                wrong.append(f"{label}, attack {attack}: {result.verdict.name}, but {trap.kind.value[0]}")
    assert not wrong, "\n".join(wrong)
    assert verdicts != {Verdict.UNKNOWN} or not trap.easy


PART_SETS = [(name,) for name in PARTS] + [tuple(PARTS)]


@pytest.mark.parametrize("off", PART_SETS, ids="+".join)
def test_never_wrong_with_parts_off(off: tuple[str, ...], tmp_path: Path, processes: None) -> None:
    """All parts of the search off at once, every part off alone on a third of the traps, and choices by counts in a third of the runs."""
    wrong = []
    for k, (name, make) in enumerate(TRAPS.items()):
        if len(off) == 1 and (k + PARTS.index(off[0])) % 3:
            continue
        trap = make()
        case = trap.case()
        truths = [exact.truth(case.network, d) for d in case.disjuncts]
        folder = tmp_path / str(k)
        folder.mkdir()
        search = replace(mv.SearchOptions().without(*off), deterministic=k // 3 % 3 == 0)
        result = mv.verify(mv.load(*case.write(folder)), 0.1, options=mv.Options(attack=k % 2 == 0, search=search))
        wrong += contradictions(case, truths, result, f"{name}, without {off}")
        if result.verdict not in trap.kind.value[1]:
            wrong.append(f"{name}, without {off}: {result.verdict.name}, but {trap.kind.value[0]}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("solver", MILP_SOLVERS)
@pytest.mark.parametrize("unit", [2.0**-60, 2.0**-40, 2.0**-20, 1.0, 2.0**20, 2.0**40])
def test_a_small_objective_is_not_taken_for_nothing(solver: str, unit: float, processes: None) -> None:
    """Minimise unit * t where t >= z / 2 - 1/4 and z is binary: a cost below the dual tolerance must not make every t optimal."""
    model = Model(
        lower=np.array([0.0, -1.0]),
        upper=np.array([1.0, 1.0]),
        integer=np.array([True, False]),
        row_start=np.array([0, 2]),
        column=np.array([0, 1]),
        value=np.array([-0.5, 1.0]),
        row_lower=np.array([-0.25]),
        row_upper=np.array([np.inf]),
        objective=np.array([0.0, unit]),
    )
    outcome = Lasting(solver).solve(model, Limits(10.0), mv.Deadline())
    assert safe_dual_bound(outcome, model) <= -0.25 * unit
    assert abs(outcome.dual_bound + 0.25 * unit) <= 1e-6 * unit


def test_a_violation_by_inputs_alone_is_json(tmp_path: Path, processes: None) -> None:
    result = mv.verify(mv.load(*TRAPS["no row on outputs"]().case().write(tmp_path)), 10.0)
    assert result.verdict is Verdict.FALSIFIED

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    assert json.loads(result.to_json(), parse_constant=refuse)["counterexample"]["margin_runtime"] == "-inf"
