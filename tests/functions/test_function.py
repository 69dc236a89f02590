"""What a function is, told by its term: whatever it is called."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from milpverify.functions.catalogue import Function, catalogue, load_nonlinearity
from milpverify.functions.pieces import RELU
from milpverify.graph import Graph, Node, evaluate
from milpverify.operators import Elementwise, Input

SETTINGS = {"hard_sigmoid": {"alpha": 0.25}, "prelu": {"slope": 0.25}}
GROWTH = """name = "growth"
term = "(* 3 (exp x))"
derivative = "y"
domain = ["-inf", "inf"]
range = ["0", "inf"]
extrema = []
inflections = []
curvature = ["convex"]
onnx = []
torch = []
"""


def functions() -> list[Function]:
    found = []
    for name, entry in catalogue().items():
        given = {key: value for key, value in SETTINGS.get(name, {}).items() if key in entry.parameters}
        trial = {key: limit.trial for key, limit in entry.limits.items()}
        found.append(entry.bind(**{**trial, **given}))
    return found


def test_squares_exponentials_and_staircases_of_the_catalogue() -> None:
    assert {f.name for f in functions() if f.is_square} == {"square", "pow_even"}
    assert catalogue()["pow_even"].bind(n=2).is_square and not catalogue()["pow_even"].bind(n=4).is_square
    assert {f.name for f in functions() if f.exponential} == {"exp"}
    assert {f.name for f in functions() if f.pieces == RELU} == {"relu"}
    assert catalogue()["clip"].bind(min=0.0, max=math.inf).pieces == RELU
    assert catalogue()["exp"].bind().exponential == 1
    staircases = {f.name: f for f in functions() if f.staircase}
    assert set(staircases) == {"floor", "round"}
    for f, jump in ((staircases["floor"], 3.0), (staircases["round"], 3.5)):
        before = torch.tensor([math.nextafter(jump, -math.inf)], dtype=torch.float64)
        assert float(f(before)) == jump - f.drop


def test_an_exponential_has_no_other_name(tmp_path: Path) -> None:
    """An attack's gradients know a user's own as they know exp."""
    from milpverify.counterexamples.surrogate import Surrogate

    path = tmp_path / "growth.toml"
    path.write_text(GROWTH)
    own = load_nonlinearity(path).bind()
    assert own.exponential == 3 and not own.is_square
    graph = Graph((Node(0, Input(), (), (1,)), Node(1, Elementwise(own), (0,), (1,))), 1)
    x = torch.tensor([[1e4], [2.0]], dtype=torch.float64, requires_grad=True)
    y = Surrogate(graph)(x)
    assert torch.isinf(evaluate(graph, x)[0]) and y[0] > 1e300 and y[0].isfinite()
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert slope[0] == 0 and torch.isclose(slope[1], y[1])
