"""Every smooth function of the catalogue under every method: 10 000 sampled points inside every bound, in float32 and float64.

What a node's true value at a point is, is known to within a rigorous enclosure; there is no tolerance.
"""

from __future__ import annotations

import math

import flint
import pytest
import relaxation
import torch
from torch import Tensor

import milpverify as mv
from milpverify.arithmetic.rounding import down, up
from milpverify.bounding import METHODS
from milpverify.functions.catalogue import Function, catalogue
from milpverify.graph import Graph, Node
from milpverify.operators import Elementwise, Input, Linear
from milpverify.propagation.backward import parallel_lines
from milpverify.propagation.crown import bound_rows, crown
from milpverify.propagation.forward import forward
from milpverify.propagation.state import Bounds

DTYPES = {"float32": torch.float32, "float64": torch.float64}
SMOOTH = {name: f for name, entry in catalogue().items() if entry.domain and not (f := entry.trial()).staircase}
POINTS = 2500  # per interval, four intervals per function


def graph_of(function: Function) -> Graph:
    """x -> f(x) -> sum and difference: f on intervals of any size, with weights that mix two neurons."""
    mixing = torch.tensor([[1.0, 1.0], [1.0, -1.0], [0.5, 0.25]], dtype=torch.float64)
    own = torch.eye(2, dtype=torch.float64)
    return Graph(
        (
            Node(0, Input(), (), (2,)),
            Node(1, Linear(own), (0,), (2,)),
            Node(2, Elementwise(function), (1,), (2,)),
            Node(3, Linear(mixing), (2,), (3,)),
        ),
        3,
    )


def boxes_of(function: Function) -> tuple[list[mv.Box], list[Tensor]]:
    """Tiny, middling and huge boxes, straddling an inflection or an extremum where there are any; points of each, corners included."""
    special = [0.5 * (a + b) for a, b in (*function.inflections, *function.extrema)] or [0.3]
    (_, start), (end, _) = function.domain
    random = torch.Generator().manual_seed(1)
    boxes, points = [], []
    for i, width in enumerate((1e-9, 0.1, 4.0, 1e6)):
        centre = torch.tensor([special[i % len(special)], special[-1] + 0.7 * (width > 1)], dtype=torch.float64)
        low, high = (c.clamp(max(start, -1e7), min(end, 1e7)) for c in (centre - 0.4 * width, centre + 0.6 * width))
        if math.isfinite(start):
            low = torch.maximum(low, torch.full_like(low, start + 1e-3))
        if math.isfinite(end):
            high = torch.minimum(high, torch.full_like(high, end - 1e-3))
        for _, b in function.poles:  # on one side of it
            low = torch.maximum(low, torch.full_like(low, b + 1e-3))
        high = torch.maximum(low, high)
        share = torch.rand(POINTS, 2, generator=random, dtype=torch.float64)
        share[: POINTS // 3] = share[: POINTS // 3].round()
        share[POINTS // 3 : POINTS // 2] = share[POINTS // 3 : POINTS // 2] ** 8
        boxes.append(mv.Box(low.numpy(), high.numpy()))
        points.append((low + share * (high - low)).clamp(low, high))
    return boxes, points


def truth(function: Function, x: Tensor) -> tuple[Tensor, Tensor]:
    """Enclosures of the outputs at the points, (N, 3)."""
    near = function.near(x)
    low, high = near.value - near.error, near.value + near.error
    mixing = torch.tensor([[1.0, 1.0], [1.0, -1.0], [0.5, 0.25]], dtype=torch.float64)
    middle, radius = 0.5 * (low + high), 0.5 * (high - low)
    size = 2.0**-48 * (low.abs() + high.abs()) @ mixing.abs().T
    reach = radius @ mixing.abs().T * (1 + 2.0**-40) + size
    low, high = down(middle @ mixing.T - reach), up(middle @ mixing.T + reach)
    return low.nan_to_num(-math.inf), high.nan_to_num(math.inf)  # unknown where the function overflows


def inside(found: Bounds, xs: list[Tensor], function: Function) -> bool:
    truths = [truth(function, x) for x in xs]
    return all(bool(((found.lower[k] <= high) & (found.upper[k] >= low)).all()) for k, (low, high) in enumerate(truths))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SMOOTH)
def test_no_sample_is_outside_any_bound(name: str, dtype: str) -> None:
    function = SMOOTH[name]
    graph, (boxes, xs) = graph_of(function), boxes_of(function)
    for method in METHODS:
        assert inside(mv.bounds(graph, boxes, method, DTYPES[dtype]).output, xs, function), method
    lower, upper = (torch.stack([torch.tensor(side) for side in sides]) for sides in zip(*((b.lower, b.upper) for b in boxes), strict=True))
    state, _ = forward(graph, lower, upper, DTYPES[dtype])
    assert inside(state[3].bounds, xs, function)
    state, _ = crown(graph, lower, upper, DTYPES[dtype])
    parallel = {2: parallel_lines(graph, 2, state, DTYPES[dtype])}
    unit = torch.eye(3, dtype=torch.float64)
    found = bound_rows(graph.to(DTYPES[dtype]), state, parallel, torch.cat([unit, -unit]).expand(len(boxes), -1, -1)).lower
    assert inside(Bounds(found[:, :3], -found[:, 3:]), xs, function)


def test_a_bound_moved_inward_is_seen() -> None:
    function = SMOOTH["tanh"]
    boxes, xs = boxes_of(function)
    found = mv.bounds(graph_of(function), boxes, "crown").output
    least = torch.stack([truth(function, x)[1].amin(0) for x in xs])
    assert not inside(Bounds(up(least), found.upper), xs, function)


def test_a_tangent_with_a_slope_in_float32_does_not_cross_tanh() -> None:
    """Formed in float32, the tangent at many points crosses tanh, by 3e-8 and more; the line with the same rounded slope does not."""
    function = SMOOTH["tanh"]
    at = torch.linspace(0.1, 3.0, 400)
    plain = torch.tanh(at)
    slope = 1 - plain * plain
    naive = plain - slope * at  # an upper line of the concave side
    lower, upper = (at - 0.05).double(), (at + 0.05).double()
    _, ours = relaxation.intercepts(function, lower, upper, slope.double(), slope.double())

    def crossed(intercept: Tensor) -> float:
        worst = 0.0
        with flint.ctx.workprec(200):
            for x, k, b in zip(at.tolist(), slope.double().tolist(), intercept.double().tolist(), strict=True):
                for point in (x - 0.05, x - 1e-3, x, x + 1e-3, x + 0.05):
                    worst = max(worst, float((function.ball(flint.arb(point)) - flint.arb(k) * flint.arb(point) - flint.arb(b)).lower()))
        return worst

    assert crossed(naive) > 3e-8
    assert crossed(ours) <= 0
