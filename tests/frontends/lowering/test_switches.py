"""Choices, masks and order of data: bounds contain what networks compute, jumps included; solvers agree; verdicts follow thresholds."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import milpverify as mv
from milpverify.enclosure import enclose, exact_outputs
from milpverify.frontends.lowering import sorting, switches
from milpverify.frontends.lowering.builder import Builder
from milpverify.frontends.torch.trace import lower_module
from milpverify.functions.pieces import RationalPieces
from milpverify.functions.piecewise import PIECEWISE, function_of
from milpverify.graph import Graph, TensorSpec, evaluate

FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "leaky": lambda x: torch.where(x > 0, x, 0.125 * x),
    "jump": lambda x: torch.where(x >= 0.25, x + 1, -x),
    "window": lambda x: torch.where((x > -0.5) & ~(x >= 0.5), x, 0.0 * x),
    "isolated": lambda x: torch.where(x == 0, 2.0, x),
    "gate": lambda x: x * (x.mean(1, keepdim=True) > 0.1),
    "chosen": lambda x: torch.where(x > x.flip(1), x * x, 0.5),
    "group": lambda x: x.unflatten(1, (2, 2)).sort(dim=-1).values.flatten(1),
    "order": lambda x: x.sort(dim=1, descending=True).values,
    "top": lambda x: torch.cat([x.topk(2, dim=1).values, x.median(1, keepdim=True).values.expand(-1, 2)], 1),
    "threshold": lambda x: F.threshold(x, 0.25, -0.5),
    "shrink": lambda x: F.hardshrink(x, 0.25),
    "round": lambda x: torch.round(4 * x) / 4,
    "step": lambda x: (x > 0.125).to(x.dtype) - (x < -0.125).to(x.dtype),
}


class Net(nn.Module):
    """Two inputs, a form of four, two outputs; with weights of a lattice multiples of 1/16 are where it jumps, now and then."""

    def __init__(self, form: Callable[[Tensor], Tensor], seed: int = 0, lattice: bool = True) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(seed)
        self.form = form
        for name, shape in (("first", (2, 4)), ("last", (4, 2))):
            weights = torch.randn(*shape, generator=random)
            self.register_buffer(name, (8 * weights).round() / 8 if lattice else weights)

    def forward(self, x: Tensor) -> Tensor:
        return self.form(x @ self.first) @ self.last


def grid() -> Tensor:
    """Points of [-1, 1]^2, the multiples of 1/16 among them."""
    side = torch.arange(-16, 17, dtype=torch.float64) / 16
    inner = 2 * torch.rand(300, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 1
    return torch.cat([torch.cartesian_prod(side, side), inner])


@pytest.mark.parametrize("name", FORMS)
def test_bounds_contain_what_is_computed_and_points_are_enclosed(name: str) -> None:
    for seed in range(1 if name in ("top", "order") else 2):
        net = Net(FORMS[name], seed).eval()
        graph, x = lower_module(net, (1, 2), torch.float32), grid()
        y = net.double()(x)
        torch.testing.assert_close(evaluate(graph, x), y, rtol=1e-12, atol=1e-12)
        lower, upper = enclose(graph, x)
        assert (lower <= y + 1e-12).all() and (upper >= y - 1e-12).all()
        for low, high in ((-1.0, 1.0), (0.0, 0.25), (0.125, 0.125), (-0.5, 0.0625)):
            inside = ((x >= low) & (x <= high)).all(1)
            for method in ("ibp", "crown", "alpha-crown"):
                found = mv.bounds(Net(FORMS[name], seed).eval(), mv.Box([low, low], [high, high]), method).output
                assert (found.lower <= y[inside] + 1e-12).all() and (found.upper >= y[inside] - 1e-12).all(), (method, low, high)


@pytest.mark.parametrize("name", ["jump", "window", "gate", "chosen", "top", "round"])
def test_verdicts_follow_the_least_value(name: str) -> None:
    """A threshold a little below the least value is proved, one a little above it is broken."""
    net, side = Net(FORMS[name], 1, lattice=False).eval(), torch.linspace(-1, 1, 401)
    least = float(net(torch.cartesian_prod(side, side))[:, 0].min())
    box = mv.Box([-1.0, -1.0], [1.0, 1.0])
    for threshold, verdict in ((least + 0.03, mv.Verdict.FALSIFIED), (least - 0.1, mv.Verdict.VERIFIED)):
        result = mv.verify(mv.Problem(net, box, unsafe=f"(<= Y_0 {threshold:.6f})"), timeout=30)
        assert result.verdict is verdict


@pytest.mark.parametrize("name", ["leaky", "jump", "window", "group", "top", "step"])
def test_models_for_solvers_agree(name: str) -> None:
    net, side = Net(FORMS[name], 3, lattice=False).eval(), torch.linspace(-1, 1, 401)
    least = float(net(torch.cartesian_prod(side, side))[:, 0].min())
    for threshold, verdict in ((least + 0.05, mv.Verdict.FALSIFIED), (least - 0.1, mv.Verdict.VERIFIED)):
        problem = mv.Problem(net, mv.Box([-1.0, -1.0], [1.0, 1.0]), unsafe=f"(<= Y_0 {threshold:.6f})")
        for method in ("milp", "smt"):
            assert mv.verify(problem, method=method, timeout=30).verdict is verdict, method


def test_where_a_jump_is_attained_both_sides_count_and_points_are_exact() -> None:
    """x > 0 ? 1 : 0 over [-1, 0] is 0; its closure holds 1, which no proof may miss over [-1, 1], and no point of the first box attains."""
    graph = built(lambda g, x: switches.compare(g, "greater", x, np.array(0.0)))
    zero, one = (torch.tensor([[v]], dtype=torch.float64) for v in (0.0, 5e-324))
    assert [float(v) for v in enclose(graph, zero)] == [0.0, 0.0]
    assert [float(v) for v in enclose(graph, one)] == [1.0, 1.0]
    assert exact_outputs(graph, np.zeros(1)) == [Fraction(0)]
    found = mv.bounds(graph, mv.Box([-1.0], [0.0]), "crown").output
    assert float(found.lower) <= 0 and float(found.upper) >= 1


def built(lower: Callable[..., object], size: int = 1) -> Graph:
    g = Builder(size)
    node = lower(g, g.nodes[0])
    return g.graph([node], (TensorSpec("x", (size,), "float64"),), (TensorSpec("y", node.shape, "float64"),))


# Parts


@pytest.mark.parametrize("length", [2, 3, 5, 8, 13])
def test_sorting_networks_sort(length: int) -> None:
    random = torch.Generator().manual_seed(length)
    x = torch.randn(64, length, generator=random, dtype=torch.float64)
    x[::2] = x[::2].round()  # ties
    for largest in (True, False):
        for ranks in (range(length), range(min(2, length)), [length // 2]):
            graph = built(lambda g, x, r=ranks, u=largest: sorting.ordered(g, x, 0, r, u), length)
            expected = x.sort(1, descending=largest).values[:, list(ranks)]
            torch.testing.assert_close(evaluate(graph, x), expected, rtol=1e-12, atol=1e-12)


def test_pieces_become_a_function_with_their_values() -> None:
    half = Fraction(1, 2)
    pieces = RationalPieces(
        (-half, half), ((Fraction(0), Fraction(1)), (Fraction(2), Fraction(0)), (Fraction(2), half)), (Fraction(3), Fraction(1))
    )
    function = function_of(pieces)
    assert function is not None and function.name == PIECEWISE
    x = torch.tensor([-1.0, -0.5, 0.0, 0.5, 0.75], dtype=torch.float64)
    assert function(x).tolist() == [1.0, 3.0, 0.0, 1.0, 2.0]
    lower, upper = function.interval(x - 0.25, x + 0.25)
    assert (lower <= function(x)).all() and (function(x) <= upper).all() and float(upper[1]) == 3.0
    assert function_of(RationalPieces((Fraction(1, 3),), ((Fraction(0), Fraction(0)), (Fraction(1), Fraction(0))), (Fraction(0),))) is None
    other = function_of(RationalPieces((half,), ((Fraction(0), Fraction(0)), (Fraction(1), half)), (Fraction(0),)))
    assert other != function and hash(other) is not None
