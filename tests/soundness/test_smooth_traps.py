"""Planted traps on smooth networks: bumps between samples, margins of 1e-6 on either side, optima where models have their seams.

Whatever the form, the answer is right or there is none. The truth of every trap is checked in ball arithmetic, by a code of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import flint
import numpy as np
import pytest
from product_networks import Grower
from smooth_graphs import Balls, Case, truth

import milpverify as mv
from milpverify.graph import Node, TensorSpec
from milpverify.result import Verdict
from milpverify.spec import Box, Rows

FORMS: dict[str, object] = {
    "auto": "auto",
    "bab": "bab",
    "scip": mv.Milp("scip"),
    "highs": mv.Milp("highs"),
    "gurobi": mv.Milp("gurobi"),
    "scip, native": mv.Milp("scip", encoding="native"),
}
SECONDS = 0.3


@dataclass(frozen=True)
class Trap:
    """y of some inputs, whether y <= threshold (y < threshold where strict) is unsafe, and in truth reached.

    `witness` attains it where it is; else `steps` boxes are enough to prove that it is not (0: it is so by construction).
    """

    make: Callable[[Grower], Node]
    lower: Sequence[float]
    upper: Sequence[float]
    threshold: float
    unsafe: bool
    witness: Sequence[float] = ()
    strict: bool = False
    steps: int = 4000
    easy: bool = True

    def case(self) -> Case:
        """Its graph and box."""
        g = Grower(len(self.lower), 0)
        graph = g.finished(self.make(g))
        graph = replace(graph, inputs=(TensorSpec("x", (graph.nx,), "float64"),))
        return Case("trap", graph, Box(self.lower, self.upper), Rows.none(graph.nx, 1))

    def problem(self) -> mv.Problem:
        """y <= threshold is unsafe."""
        case = self.case()
        disjunct = case.disjunct(self.threshold)
        return mv.Problem(case.graph, (replace(disjunct, unsafe=replace(disjunct.unsafe, strict=np.array([self.strict]))),))


def affine(g: Grower, x: Node, weight: Sequence[Sequence[float]], bias: Sequence[float]) -> Node:
    return g.scale(g.matmul(x, np.array(weight, dtype=float)), bias=np.array(bias, dtype=float))


def bump(function: str, depth: float, n: int = 1) -> Callable[[Grower], Node]:
    """tanh or sigmoid of a sum in the background, less a plateau of width 2^-11 in every direction around odd places."""

    def make(g: Grower) -> Node:
        x, steep = g.nodes[0], 2.0**15
        centres = np.array([0.40625, -0.71875, 0.15625][:n])
        background = g.call(function, affine(g, x, [[0.5]] * n, [0.1]))
        ends = g.concat([g.scale(x, steep, -steep * (centres + side)) for side in (-(2.0**-12), 2.0**-12)], 0)
        steps = g.call(function, ends)
        height = 1.0 if function == "sigmoid" else 0.5
        inside = g.matmul(steps, height * np.concatenate([np.eye(n), -np.eye(n)]))  # about 1 within, 0 without
        if n > 1:  # all at once
            inside = g.call("sigmoid", affine(g, inside, [[40.0]] * n, [-40.0 * (n - 0.5)]))
        return g.sum([g.scale(background, 0.25), g.scale(inside, depth)], [1, -1])

    return make


def squared(function: str) -> Callable[[Grower], Node]:
    """f(x0 - x1 / 2)^2 + f(x0 + x1)^2, less their value at 0: the least value is where f turns."""

    def make(g: Grower) -> Node:
        z = g.call(function, affine(g, g.nodes[0], [[1.0, 1.0], [-0.5, 1.0]], [0.0, 0.0]))
        centred = g.scale(z, 1.0, -0.5) if function == "sigmoid" else z
        return g.reduce_sum(g.product(centred, centred), [0])

    return make


def kinked(g: Grower) -> Node:
    """|x - 1/4| + tanh(x - 1/4) / 4: the least value is 0, at a kink where tanh turns, too."""
    away = g.scale(g.nodes[0], 1.0, -0.25)
    return g.sum([g.call("abs", away), g.scale(g.call("tanh", away), 0.25)])


def rising(g: Grower) -> Node:
    """tanh(2 x) + x / 8: the least value is at the lower end of the box."""
    return g.sum([g.call("tanh", g.scale(g.nodes[0], 2.0)), g.scale(g.nodes[0], 0.125)])


def plateau(g: Grower) -> Node:
    """tanh(40 (x + 1/2)) - tanh(40 (x - 1/2)) is 2 within 1e-15 between -0.05 and 0.05, 0 at the ends; minus that, over 2."""
    steps = g.call("tanh", affine(g, g.nodes[0], [[40.0, 40.0]], [20.0, -20.0]))
    return g.matmul(steps, np.array([[-0.5], [0.5]]))


def wells(g: Grower) -> Node:
    """(x^2 - 1)^2: 0 at 1 and at -1."""
    s = g.scale(g.call("square", g.nodes[0]), 1.0, -1.0)
    return g.call("square", s)


def soft_wells(g: Grower) -> Node:
    """(4 sigmoid(x)(1 - sigmoid(x)) - 1/2)^2: 0 at two places that no float is."""
    s = g.call("sigmoid", g.nodes[0])
    return g.call("square", g.scale(g.product(s, g.scale(s, -1.0, 1.0)), 4.0, -0.5))


def waves(g: Grower) -> Node:
    """cos x + 1: the least value 0 is at many places, none of them a float."""
    return g.reduce_sum(g.scale(g.call("cos", g.nodes[0]), 1.0, 1.0), [0])


def quotient(g: Grower) -> Node:
    """(x^2 + 1) / (x + 2): 2 sqrt 5 - 4 at sqrt 5 - 2."""
    x = g.nodes[0]
    return g.product(g.scale(g.call("square", x), 1.0, 1.0), g.call("reciprocal", g.scale(x, 1.0, 2.0)))


def softmaxed(g: Grower) -> Node:
    """p q of a softmax of two: the least value is at a corner of the box."""
    p = g.softmax(affine(g, g.nodes[0], [[3.0, -3.0], [1.0, 2.0]], [0.0, 0.25]))
    return g.product(g.select(p, np.array([0])), g.select(p, np.array([1])))


def rooted(g: Grower) -> Node:
    """sqrt x - x: 0 at both ends, one of them the end of the domain."""
    return g.sum([g.call("sqrt", g.nodes[0]), g.nodes[0]], [1, -1])


def far(g: Grower) -> Node:
    """x / 1000 - log x around 1000: 1 - log 1000, and flat."""
    return g.sum([g.scale(g.nodes[0], 1e-3), g.call("log", g.nodes[0])], [1, -1])


def falling_short(g: Grower) -> Node:
    """floor x - x: above -1, and as close to it as one likes."""
    return g.sum([g.call("floor", g.nodes[0]), g.nodes[0]], [1, -1])


def stepped(g: Grower) -> Node:
    """tanh(2 x) sign(x) + floor(x) / 8 + 1/8: at least 0, at -0 side of 0 only in the limit; 1/8 at 0 itself."""
    x = g.nodes[0]
    return g.scale(g.sum([g.product(g.call("tanh", g.scale(x, 2.0)), g.call("sign", x)), g.scale(g.call("floor", x), 0.125)]), 1.0, 0.125)


TINY = 1e-6
TANH_END = math.tanh(-1.75) - 0.875 / 8
QUOTIENT = 2 * math.sqrt(5) - 4
LOG = 1 - math.log(1000)
CORNER = 1 / (2 + math.exp(7.25) + math.exp(-7.25))

TRAPS: dict[str, Trap] = {
    "a bump under tanh": Trap(bump("tanh", 1.0), [-1.0], [1.0], -0.5, True, [0.40625], easy=False),
    "its harmless twin": Trap(bump("tanh", 0.3), [-1.0], [1.0], -0.5, False),
    "a bump under sigmoid": Trap(bump("sigmoid", 1.0), [-1.0], [1.0], -0.5, True, [0.40625], easy=False),
    "its harmless twin, sigmoid": Trap(bump("sigmoid", 0.5), [-1.0], [1.0], -0.5, False),
    "a bump in two dimensions": Trap(bump("tanh", 1.0, 2), [-1.0] * 2, [1.0] * 2, -0.5, True, [0.40625, -0.71875], easy=False),
    "its harmless twin in two dimensions": Trap(bump("tanh", 0.2, 2), [-1.0] * 2, [1.0] * 2, -0.5, False, easy=False),
    "an inflection of tanh, reached": Trap(squared("tanh"), [-1.0] * 2, [1.25] * 2, TINY, True, [0.0, 0.0]),
    "an inflection of tanh, missed": Trap(squared("tanh"), [-1.0] * 2, [1.25] * 2, -TINY, False, steps=0),
    "an inflection of tanh, touched": Trap(squared("tanh"), [-1.0] * 2, [1.25] * 2, 0.0, True, [0.0, 0.0], easy=False),
    "an inflection of tanh, strict": Trap(squared("tanh"), [-1.0] * 2, [1.25] * 2, 0.0, False, strict=True, steps=0, easy=False),
    "an inflection of sigmoid, reached": Trap(squared("sigmoid"), [-1.0] * 2, [1.25] * 2, TINY, True, [0.0, 0.0]),
    "an inflection of sigmoid, missed": Trap(squared("sigmoid"), [-1.0] * 2, [1.25] * 2, -TINY, False, steps=0),
    "a kink, reached": Trap(kinked, [-1.0], [1.0], TINY, True, [0.25]),
    "a kink, missed": Trap(kinked, [-1.0], [1.0], -TINY, False, steps=0, easy=False),
    "a kink, strict": Trap(kinked, [-1.0], [1.0], 0.0, False, strict=True, steps=0, easy=False),
    "the end of the box, reached": Trap(rising, [-0.875], [0.75], TANH_END + TINY, True, [-0.875]),
    "the end of the box, missed": Trap(rising, [-0.875], [0.75], TANH_END - TINY, False),
    "a flat region, reached": Trap(plateau, [-1.0], [1.0], -1 + TINY, True, [0.0]),
    "a flat region, missed": Trap(plateau, [-1.0], [1.0], -1 - TINY, False),
    "two wells, reached": Trap(wells, [-1.5], [1.75], TINY, True, [1.0]),
    "two wells, missed": Trap(wells, [-1.5], [1.75], -TINY, False, steps=0),
    "two soft wells, reached": Trap(soft_wells, [-3.0], [4.0], TINY, True, [math.log(3 + 2 * math.sqrt(2))]),
    "two soft wells, missed": Trap(soft_wells, [-3.0], [4.0], -TINY, False, steps=0),
    "many wells, reached": Trap(waves, [-20.0], [15.0], TINY, True, [3 * math.pi]),
    "many wells, missed": Trap(waves, [-20.0], [15.0], -TINY, False, steps=0),
    "a quotient, reached": Trap(quotient, [-1.0], [2.0], QUOTIENT + TINY, True, [math.sqrt(5) - 2]),
    "a quotient, missed": Trap(quotient, [-1.0], [2.0], QUOTIENT - TINY, False, steps=20_000, easy=False),
    "a softmax, reached": Trap(softmaxed, [-1.0] * 2, [1.0] * 2, CORNER + TINY, True, [-1.0, 1.0], easy=False),
    "a softmax, missed": Trap(softmaxed, [-1.0] * 2, [1.0] * 2, CORNER - TINY, False, easy=False),
    "the end of a domain, reached": Trap(rooted, [0.0], [1.0], TINY, True, [0.0]),
    "the end of a domain, missed": Trap(rooted, [0.0], [1.0], -TINY, False, steps=0, easy=False),
    "far away and flat, reached": Trap(far, [999.99], [1000.02], LOG + TINY, True, [1000.0]),
    "far away and flat, missed": Trap(far, [999.99], [1000.02], LOG - TINY, False, easy=False),
    "a limit that is not reached": Trap(falling_short, [-1.5], [2.25], -1.0, False, steps=0, easy=False),
    "a limit that is nearly reached": Trap(falling_short, [-1.5], [2.25], -1.0 + TINY, True, [1.0 - 1e-7], easy=False),
    "a limit at a jump": Trap(stepped, [-0.5], [0.5], 0.0, False, steps=0, easy=False),
}


@pytest.mark.parametrize("name", TRAPS)
def test_never_wrong(name: str, processes: None) -> None:
    trap = TRAPS[name]
    verify_truth(trap)
    problem = trap.problem()
    wrong, verdicts = [], set()
    for k, (form, method) in enumerate(FORMS.items()):
        options = mv.Options(attack=k % 2 == 0)
        result = mv.verify(problem, SECONDS, method, options=options)  # type: ignore[arg-type]
        verdicts.add(result.verdict)
        if result.verdict is (Verdict.VERIFIED if trap.unsafe else Verdict.FALSIFIED):
            wrong.append(f"{form}: {result.verdict.name}")
        if trap.witness and result.lower_bound > margin(trap):
            wrong.append(f"{form}: a bound of {result.lower_bound!r} above {margin(trap)!r}, which is attained")
    assert not wrong, "\n".join(wrong)
    assert verdicts != {Verdict.UNKNOWN} or not trap.easy


def margin(trap: Trap) -> float:
    """A proved upper bound of the margin at the witness."""
    with flint.ctx.workprec(100):
        (y,) = Balls(trap.case().graph).outputs(trap.witness, trap.witness)
        exact = (y - flint.arb(trap.threshold)).upper()
        rounded = float(exact)
        return rounded if exact <= rounded else math.nextafter(rounded, math.inf)


def verify_truth(trap: Trap) -> None:
    """The trap is what it says."""
    if trap.unsafe:
        assert margin(trap) <= 0.0
    elif trap.steps:
        low, _ = truth(trap.case(), trap.steps, threshold=trap.threshold)
        assert low > trap.threshold
