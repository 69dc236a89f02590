"""SMT scripts of graphs that are not piecewise linear: answers against interval subdivision, and optima to the last digit."""

from __future__ import annotations

import math
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from product_networks import Grower

from milpverify.balls.ball import Ball
from milpverify.config import Deadline
from milpverify.encode.smt import smt_script
from milpverify.errors import UnsupportedOperator
from milpverify.functions.catalogue import Function, catalogue, load_nonlinearity
from milpverify.graph import Graph, evaluate
from milpverify.operators import Affine, Elementwise, Input, Product
from milpverify.solvers.base import Answer, Capability, Limits, SmtOutcome, SolverStatus
from milpverify.solvers.model import Logic
from milpverify.solvers.process import SolverProcess
from milpverify.solvers.registry import load
from milpverify.spec import Box, Disjunct, Rows

SECONDS = 20.0
with_cvc5 = pytest.mark.skipif(find_spec("cvc5") is None, reason="cvc5 is not installed (pip install cvc5)")


def below(box: Box, value: float, strict: bool = False, sign: float = 1.0) -> Disjunct:
    """sign y_0 <= value is unsafe."""
    return Disjunct(box, Rows.on_outputs([[sign]], [value], box.size, strict), Rows.none(box.size, 1))


def ask(graph: Graph, disjunct: Disjunct, solver: str = "z3", seconds: float = SECONDS) -> SmtOutcome:
    able = Capability.SMT_TRANSCENDENTAL in load(solver).capabilities
    with SolverProcess(solver) as process:
        return process.solve(smt_script(graph, disjunct, transcendental=able), Limits(seconds), Deadline(seconds + 5.0))


def minimum(graph: Graph, box: Box, tolerance: float = 1e-3) -> tuple[float, float]:
    """Both ends of y_0's minimum, by subdivision: every piece is bounded in intervals, and pieces beyond the best point are dropped."""
    low, high = (torch.tensor(end)[None] for end in (box.lower, box.upper))
    best = math.inf
    while True:
        values = [(low, high)]
        for node in graph.nodes[1:]:
            values.append(_bounded(graph, node.id, values))
        least = values[graph.output][0][:, 0] - 1e-9  # far more than all rounding
        best = min(best, float(evaluate(graph, 0.5 * (low + high))[:, 0].min()))
        keep = least < best - tolerance
        if not bool(keep.any()):
            return best - tolerance, best
        low, high = low[keep], high[keep]
        assert len(low) < 200_000, "the subdivision grows too large"
        axis = (high - low).argmax(dim=1, keepdim=True)
        middle = 0.5 * (low + high)
        low, high = (
            torch.cat([low, low.scatter(1, axis, middle.gather(1, axis))]),
            torch.cat([high.scatter(1, axis, middle.gather(1, axis)), high]),
        )


def _bounded(graph: Graph, node: int, values: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    op, ends = graph.nodes[node].op, [values[i] for i in graph.nodes[node].inputs]
    match op:
        case Affine():
            centre = op.forward([0.5 * (a + b) for a, b in ends])
            radius = op.absolute().linear([0.5 * (b - a) for a, b in ends])
            return centre - radius, centre + radius
        case Elementwise(function):
            return function.interval(*ends[0])
        case Product():
            products = torch.stack([p * q for p in ends[0] for q in ends[1]])
            return products.amin(dim=0), products.amax(dim=0)
    assert isinstance(op, Input)
    return values[0]


def of_one(function: Function) -> Graph:
    g = Grower(1, 0)
    return g.finished(g.apply(function, g.nodes[0]))


def polynomial_graph(seed: int) -> Graph:
    """Products of affine forms, powers, lines and a little of what equations define, with short weights."""
    nx = 1 + seed % 2
    g = Grower(nx, seed)
    x = g.nodes[0]
    names = ("square", "relu", "abs") if nx > 1 else ("square", "cube", "relu", "abs", "softsign")
    hidden = g.call(names[seed % len(names)], _layer(g, x, 2))
    if seed % 3:
        hidden = g.product(_layer(g, x, 2), _layer(g, hidden, 2) if seed % 3 == 1 else hidden)
    else:
        hidden = g.concat([hidden, g.call("square", _layer(g, x, 1))], 0)
    return g.finished(_layer(g, hidden, 1))


def _layer(g: Grower, x: object, size: int) -> object:
    n = x.shape[-1]  # type: ignore[attr-defined]
    weight = np.round(16 * g.rng.normal(size=(n, size)) / n**0.5) / 16
    return g.scale(g.matmul(x, weight), bias=np.round(8 * g.rng.normal(size=size)) / 16)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(30))
def test_z3_agrees_with_subdivision(seed: int) -> None:
    graph = polynomial_graph(seed)
    box = Box(-np.ones(graph.nx), np.linspace(0.5, 1.0, graph.nx))
    low, high = minimum(graph, box)
    outcome = ask(graph, below(box, low - 1e-2))
    assert outcome.answer is Answer.UNSAT, outcome.message
    outcome = ask(graph, below(box, high + 1e-2))
    assert outcome.answer is Answer.SAT, outcome.message
    x = torch.tensor([[float(v) for v in outcome.values()]], dtype=torch.float64)
    assert float(evaluate(graph, x)[0, 0]) <= high + 1e-2 + 1e-9


def cubic(tmp_path: Path) -> Function:
    """A user's own polynomial: x^3 - x."""
    file = tmp_path / "own_cubic.toml"
    file.write_text(
        'name = "own_cubic"\nterm = "(- (pow x 3) x)"\ndomain = ["-inf", "inf"]\nrange = ["-inf", "inf"]\n'
        'extrema = ["(/ -1 (sqrt 3))", "(/ 1 (sqrt 3))"]\ninflections = ["0"]\ncurvature = ["concave", "convex"]\nonnx = []\ntorch = []\n'
    )
    return load_nonlinearity(file).bind()


OPTIMA = {
    "x^2": ("square", {}, (-1.0, 1.0), 1.0, 0.0),
    "x^4, on one side": ("pow_even", {"n": 4}, (0.5, 1.0), 1.0, 0.0625),
    "x^3": ("cube", {}, (-0.5, 1.0), 1.0, -0.125),
    "x^5, from above": ("pow_odd", {"n": 5}, (-0.5, 2.0), -1.0, -32.0),
    "1 / x": ("reciprocal", {}, (1.0, 4.0), 1.0, 0.25),
    "1 / x on the left": ("reciprocal", {}, (-4.0, -1.0), 1.0, -1.0),
    "sqrt": ("sqrt", {}, (0.0, 4.0), -1.0, -2.0),
    "sqrt from 0": ("sqrt", {}, (0.0, 4.0), 1.0, 0.0),
    "1 / sqrt": ("rsqrt", {}, (0.25, 4.0), 1.0, 0.5),
    "x / (1 + |x|)": ("softsign", {}, (-1.0, 1.0), 1.0, -0.5),
}


@pytest.mark.parametrize("case", OPTIMA)
def test_strictness_at_an_exact_optimum(case: str) -> None:
    name, parameters, ends, sign, optimum = OPTIMA[case]
    graph, box = of_one(catalogue()[name].bind(**parameters)), Box([ends[0]], [ends[1]])
    assert ask(graph, below(box, optimum, sign=sign)).answer is Answer.SAT
    assert ask(graph, below(box, optimum, strict=True, sign=sign)).answer is Answer.UNSAT


def test_a_product_at_its_exact_optimum() -> None:
    g = Grower(2, 0)
    x, y = g.select(g.nodes[0], np.array([0])), g.select(g.nodes[0], np.array([1]))
    graph, box = g.finished(g.product(x, y)), Box([-1.0, -0.5], [1.0, 2.0])
    assert ask(graph, below(box, -2.0)).answer is Answer.SAT
    assert ask(graph, below(box, -2.0, strict=True)).answer is Answer.UNSAT


def test_a_users_polynomial_and_an_irrational_optimum(tmp_path: Path) -> None:
    graph, box = of_one(cubic(tmp_path)), Box([-1.0], [1.0])
    optimum = -2.0 / (3.0 * math.sqrt(3.0))
    assert ask(graph, below(box, optimum - 1e-12)).answer is Answer.UNSAT
    found = ask(graph, below(box, optimum + 1e-12))
    assert found.answer is Answer.SAT and abs(float(found.values()[0]) - 3**-0.5) < 1e-5
    rows = Rows.on_outputs([[1.0], [-1.0]], [-0.25, 0.25], 1)  # x^3 - x = -1/4 at irrational points alone
    found = ask(graph, Disjunct(Box([0.0], [0.5]), rows, Rows.none(1, 1)))
    (x,) = found.values()
    assert found.answer is Answer.SAT and abs(x**3 - x + Fraction(1, 4)) < Fraction(1, 10**18)


def test_outside_a_domain_nothing_is_proved() -> None:
    """A function has no value there, and the script none that it excludes."""
    for name, ends in (("reciprocal", (-1.0, 1.0)), ("reciprocal", (0.0, 0.0)), ("sqrt", (-1.0, 1.0)), ("rsqrt", (0.0, 1.0))):
        graph, box = of_one(catalogue()[name].bind()), Box([ends[0]], [ends[1]])
        assert ask(graph, below(box, -1e9)).answer is Answer.SAT
    graph = of_one(catalogue()["reciprocal"].bind())
    assert ask(graph, below(Box([0.0], [1.0]), 0.5)).answer is Answer.SAT  # at 0 alone


def test_bounds_that_are_given_decide_domains_and_shorten_the_script() -> None:
    g = Grower(1, 0)
    x = g.nodes[0]
    graph = g.finished(g.call("reciprocal", g.scale(g.product(x, x), bias=np.array([-0.5]))))
    disjunct = below(Box([1.0], [2.0]), 0.0)
    graph_bounds = [(torch.full(n.shape, -1e9), torch.full(n.shape, 1e9)) for n in graph.nodes]
    source = graph.nodes[graph.nonlinear[-1]].inputs[0]
    graph_bounds[source] = (torch.tensor([0.5]), torch.tensor([3.5]))
    assert "or" not in smt_script(graph, disjunct, graph_bounds).text
    with SolverProcess("z3") as process:
        assert process.solve(smt_script(graph, disjunct, graph_bounds), Limits(SECONDS), Deadline(SECONDS)).answer is Answer.UNSAT


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_scripts_confine_inputs_to_a_ball_exactly(norm: str) -> None:
    """The largest x_0 + x_1 is 1 for L1 with the weights 1 and 1/2, and 5/4 for L2 with 3/4 and 1; x_2 stays at 1."""
    g = Grower(3, 0)
    graph = g.finished(g.call("relu", g.matmul(g.nodes[0], np.array([[1.0], [1.0], [1.0]]))))
    weight, largest = ([1.0, 0.5, 0.0], 1.0 + 1.0) if norm == "l1" else ([0.75, 1.0, 0.0], 1.0 + 1.25)
    ball = Ball([0.0, 0.0, 1.0], 1.0, norm, weight=weight)
    box = Box([-2.0, -2.0, 0.0], [2.0, 2.0, 1.0]) if norm == "l1" else Box(*ball.ends)
    for value, answer in ((largest, Answer.SAT), (largest + 2.0**-40, Answer.UNSAT)):
        assert ask(graph.confined(ball), below(box, -value, sign=-1.0)).answer is answer


def test_the_logic_is_the_poorest_that_will_do() -> None:
    box = Box([-1.0], [1.0])
    logics = {
        name: smt_script(of_one(catalogue()[name].trial()), below(box, 0.0), transcendental=True).logic
        for name in ("relu", "square", "tanh")
    }
    assert logics == {"relu": Logic.LINEAR, "square": Logic.POLYNOMIAL, "tanh": Logic.TRANSCENDENTAL}
    bare = Disjunct(box, Rows.none(1, 1), Rows.none(1, 1))
    assert smt_script(of_one(catalogue()["tanh"].bind()), bare).logic is Logic.LINEAR  # nothing depends on it


@pytest.mark.parametrize(
    ("name", "words"), [("tanh", "is transcendental.*method bab or milp, or solver cvc5"), ("erf", "has no SMT form; use method bab")]
)
def test_what_has_no_form_is_refused_by_name(name: str, words: str) -> None:
    graph, disjunct = of_one(catalogue()[name].bind()), below(Box([-1.0], [1.0]), 0.0)
    with pytest.raises(UnsupportedOperator, match=f"{name} .*{words}"):
        smt_script(graph, disjunct)
    if name == "erf":
        with pytest.raises(UnsupportedOperator, match="erf"):
            smt_script(graph, disjunct, transcendental=True)


def test_z3_is_killed_where_it_overruns_its_time() -> None:
    g = Grower(4, 1)
    x = g.nodes[0]
    for _ in range(3):
        x = g.product(g.layer(x, 4), g.layer(x, 4))
    graph = g.finished(g.layer(x, 1))
    box = Box(-np.ones(4), np.ones(4))
    least = float(evaluate(graph, torch.rand(10_000, 4, dtype=torch.float64) * 2 - 1).min())
    outcome = ask(graph, below(box, 1.05 * least - 1e-2), seconds=1.5)
    assert outcome.answer is Answer.UNKNOWN and outcome.status is SolverStatus.TIME_LIMIT
    assert outcome.seconds < 3.0


@with_cvc5
@pytest.mark.parametrize("name", ["tanh", "sin", "exp", "atan", "log"])
def test_cvc5_agrees_with_subdivision(name: str) -> None:
    """It may leave the answer open, above all where there is a point."""
    graph, box = of_one(catalogue()[name].bind()), Box([0.25], [1.25])
    for sign in (1.0, -1.0):
        g = Grower(1, 0)
        graph = g.finished(g.scale(g.call(name, g.nodes[0]), np.array([sign])))
        low, high = minimum(graph, box)
        assert ask(graph, below(box, low - 1e-2), "cvc5", 2.0).answer is Answer.UNSAT
        found = ask(graph, below(box, high + 0.1), "cvc5", 1.0)
        assert found.answer is not Answer.UNSAT
        if found.answer is Answer.SAT:
            x = torch.tensor([[float(v) for v in found.values()]], dtype=torch.float64)
            assert float(evaluate(graph, x)[0, 0]) <= high + 0.1 + 1e-9


@with_cvc5
def test_cvc5_knows_what_z3_knows() -> None:
    for seed in (0, 1, 2):
        graph = polynomial_graph(seed)
        box = Box(-np.ones(graph.nx), np.ones(graph.nx))
        low, high = minimum(graph, box)
        assert ask(graph, below(box, low - 0.1), "cvc5").answer is not Answer.SAT
        assert ask(graph, below(box, high + 0.1), "cvc5").answer is not Answer.UNSAT
    rows = Rows.on_outputs([[1.0], [-1.0]], [2.0, -2.0], 1)
    found = ask(of_one(catalogue()["square"].bind()), Disjunct(Box([0.0], [2.0]), rows, Rows.none(1, 1)), "cvc5")
    assert found.answer is Answer.SAT and abs(float(found.values()[0]) - 2**0.5) < 0.2
