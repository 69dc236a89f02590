"""Robustness radii: against enumeration and planted counterexamples, between bounds that hold, and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
import torch
from points import sampled
from scipy.optimize import linprog
from torch import nn

import milpverify as mv
from milpverify.radius.bracket import Bracket
from milpverify.radius.nearest import nearest
from milpverify.radius.neighbourhood import Neighbourhood
from milpverify.radius.question import Question
from milpverify.radius.robustness import _neighbourhoods, _questions

Layers = list[tuple[np.ndarray, np.ndarray]]


def layers(sizes: list[int], seed: int) -> Layers:
    """Random weights in float32."""
    rng = np.random.default_rng(seed)
    shapes = [(rng.normal(0, (2.0 / m) ** 0.5, (n, m)), rng.normal(0, 0.3, n)) for m, n in pairwise(sizes)]
    return [(w.astype(np.float32).astype(float), b.astype(np.float32).astype(float)) for w, b in shapes]


def module(weights: Layers, activation: type[nn.Module] = nn.ReLU) -> nn.Module:
    parts: list[nn.Module] = []
    for w, b in weights:
        linear = nn.Linear(w.shape[1], w.shape[0])
        linear.weight.data, linear.bias.data = torch.tensor(w, dtype=torch.float32), torch.tensor(b, dtype=torch.float32)
        parts += [linear, activation()]
    return nn.Sequential(*parts[:-1]).eval()


def outputs(weights: Layers, x: np.ndarray) -> np.ndarray:
    for i, (w, b) in enumerate(weights):
        x = x @ w.T + b
        x = x if i + 1 == len(weights) else np.maximum(x, 0.0)
    return x


def enumerated(weights: Layers, x0: np.ndarray, label: int, targets: list[int], clip: tuple[float, float], weight: np.ndarray) -> float:
    """The least radius at which a target is as large as the label: a linear program for each activation pattern and target."""
    nx, hidden = len(x0), sum(len(b) for _, b in weights[:-1])
    best = math.inf
    for pattern in product((0, 1), repeat=hidden):
        A, c, rows, rhs, k = np.eye(nx), np.zeros(nx), [], [], 0
        for w, b in weights[:-1]:
            A, c = w @ A, w @ c + b
            on = np.array(pattern[k : k + len(b)])
            k += len(b)
            sign = np.where(on == 1, -1.0, 1.0)
            rows.append(sign[:, None] * A)
            rhs.append(-sign * c)
            A, c = A * on[:, None], c * on
        A, c = weights[-1][0] @ A, weights[-1][0] @ c + weights[-1][1]
        around = [np.column_stack([s * np.eye(nx), -weight]) for s in (1.0, -1.0)]
        for t in targets:
            inner = np.vstack([*rows, (A[label] - A[t])[None]])
            matrix = np.vstack([np.column_stack([inner, np.zeros(len(inner))]), *around])
            bound = np.concatenate([*rhs, [c[t] - c[label]], x0, -x0])
            found = linprog(np.eye(nx + 1)[nx], matrix, bound, bounds=[clip] * nx + [(0, None)])
            best = min(best, found.x[nx] if found.status == 0 else math.inf)
    return best


def check(
    net: nn.Module, x0: np.ndarray, found: mv.Radius, weight: np.ndarray | float = 1.0, clip: tuple[float, float] | None = None
) -> None:
    """The counterexample is one, as anyone can tell, and lies where it is said to."""
    assert 0.0 <= found.lower_bound <= found.upper_bound
    if found.counterexample is None:
        assert found.upper_bound == math.inf and found.other is None
        return
    x = found.counterexample.x
    for a, b, w in zip(x.tolist(), x0.reshape(-1).tolist(), np.broadcast_to(weight, x.shape).tolist(), strict=True):
        assert abs(Fraction(a) - Fraction(b)) <= Fraction(found.upper_bound) * Fraction(w)
        assert clip is None or clip[0] <= a <= clip[1]
    with torch.no_grad():
        y = net(torch.tensor(x, dtype=torch.float32)[None])[0]
    assert found.other is not None
    assert y[found.other] > y[found.label]


CLIP = (0.0, 1.0)


@pytest.mark.parametrize("seed", range(10))
def test_small_networks_against_enumeration(seed: int) -> None:
    rng = np.random.default_rng(seed)
    nx = int(rng.integers(1, 4))
    weights = layers([nx, 3, 3, 3], seed)
    x0 = rng.uniform(0, 1, nx).astype(np.float32).astype(float)
    label = int(outputs(weights, x0).argmax())
    weight = np.where(rng.random(nx) < 0.3, 0.5, 1.0) * (rng.random(nx) < 0.8)
    weight[0] = weight[0] or 1.0
    targets = [t for t in range(3) if t != label][: int(rng.integers(1, 3))]
    net = module(weights)
    found = mv.robustness_radius(net, x0, label, clip=CLIP, gap=1e-3, targets=targets, features=weight)
    exact = enumerated(weights, x0, label, targets, CLIP, weight)
    check(net, x0, found, weight, CLIP)
    assert found.reason is mv.Reason.PROVED
    if math.isinf(exact):
        assert found.lower_bound == found.upper_bound == math.inf
    else:
        assert found.lower_bound <= exact * (1 + 1e-6) + 1e-8 and found.upper_bound >= exact * (1 - 1e-6) - 1e-8
        assert found.gap <= 1e-3 * (1 + 1e-9)


def spike(at: float, width: float) -> Layers:
    """2-6-2: output 1 exceeds output 0, which is 1, on a stripe around x_0 = at only, and at x_0 >= 0.95."""
    hidden = np.array([[1, 0], [1, 0], [1, 0], [1, 0], [0, 1], [0, -1]], dtype=float)
    bias = np.array([width - at, -at, -width - at, -0.9, 0.0, 0.0])
    last = np.array([[0, 0, 0, 0, 0, 0], [1.5 / width, -3 / width, 1.5 / width, 20, 0, 0]], dtype=float)
    return [
        (w.astype(np.float32).astype(float), b.astype(np.float32).astype(float)) for w, b in [(hidden, bias), (last, np.array([1.0, 0]))]
    ]


@pytest.mark.parametrize("width", [0.02, 1e-3])
@pytest.mark.parametrize("attack", [True, False])
def test_a_narrow_planted_counterexample_is_found(width: float, attack: bool) -> None:
    """Gradients around the input lead nowhere, or to what is farther away."""
    weights, x0 = spike(0.7, width), np.array([0.25, 0.5])
    grid = np.stack(np.meshgrid(np.linspace(0, 1, 20001), [0.5]), axis=-1).reshape(-1, 2)
    y = outputs(weights, grid)
    brute = np.abs(grid[y[:, 1] > y[:, 0]] - x0).max(axis=1).min()
    net = module(weights)
    found = mv.robustness_radius(net, x0, 0, clip=CLIP, options=mv.Options(attack=attack))
    check(net, x0, found, clip=CLIP)
    assert found.reason is mv.Reason.PROVED and found.gap <= 0.01 + 1e-12
    assert found.lower_bound <= brute + 1e-9 and abs(found.upper_bound - brute) <= 0.01 * brute + 1e-4


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Sigmoid, nn.GELU])
def test_no_attack_is_inside_the_proved_radius(activation: type[nn.Module]) -> None:
    weights = [(3.0 * w, b) for w, b in layers([4, 12, 12, 3], 1)]
    net, x0 = module(weights, activation), np.full(4, 0.5)
    with torch.no_grad():
        label = int(net(torch.tensor(x0, dtype=torch.float32)).argmax())
    found = mv.robustness_radius(net, x0, label, clip=CLIP, timeout=30)
    check(net, x0, found, clip=CLIP)
    assert found.lower_bound > 0.0
    box = Neighbourhood.around(x0, None, CLIP).box(min(found.lower_bound, 1.0))
    x = sampled(box, 20000, 0).float().requires_grad_()
    lower, upper = (torch.tensor(side, dtype=torch.float32) for side in (box.lower, box.upper))
    for _ in range(20):
        y = net(x)
        others = torch.cat([y[:, :label], y[:, label + 1 :]], 1).amax(1)
        assert (others < y[:, label] + 1e-6).all()
        (gradient,) = torch.autograd.grad((others - y[:, label]).sum(), x)
        x = torch.minimum(torch.maximum(x.detach() + 0.1 * (upper - lower) * gradient.sign(), lower), upper).requires_grad_()


def test_verify_proves_just_below() -> None:
    net, x0 = module(layers([3, 8, 3], 4)), np.full(3, 0.5)
    found = mv.robustness_radius(net, x0, clip=CLIP)
    assert 0.0 < found.lower_bound < math.inf
    assert mv.verify(mv.robustness(net, x0, found.label, found.lower_bound, clip=CLIP)).verdict is mv.Verdict.VERIFIED
    assert mv.verify(mv.robustness(net, x0, found.label, found.upper_bound, clip=CLIP)).verdict is mv.Verdict.FALSIFIED


# -- the ends of what there is ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [None, 0.0])
def test_a_misclassified_input(timeout: float | None) -> None:
    weights, x0 = spike(0.7, 0.02), np.array([0.7, 0.5])
    net = module(weights)
    found = mv.robustness_radius(net, x0, 0, clip=CLIP, timeout=timeout)
    assert (found.lower_bound, found.upper_bound, found.reason, found.gap) == (0.0, 0.0, mv.Reason.COUNTEREXAMPLE, 0.0)
    assert found.counterexample is not None and (found.counterexample.x == x0).all()
    assert mv.robustness_radius(net, x0, 1, clip=CLIP).upper_bound > 0.0


def constant(*values: float) -> nn.Module:
    return module([(np.zeros((len(values), 2)), np.array(values))])


def test_a_constant_network() -> None:
    found = mv.robustness_radius(constant(1.0, 0.0), [0.5, 0.5], 0, clip=CLIP)
    assert (found.lower_bound, found.upper_bound, found.counterexample) == (math.inf, math.inf, None)
    assert found.reason is mv.Reason.PROVED and found.gap == 0.0
    assert found.to_dict()["upper_bound"] == "inf"
    unbounded = mv.robustness_radius(constant(1.0, 0.0), [0.5, 0.5], 0)
    assert 2.0**20 <= unbounded.lower_bound < unbounded.upper_bound == math.inf
    assert unbounded.reason is mv.Reason.UNDECIDED and "clip" in unbounded.note


def test_ties_are_no_counterexamples_and_not_proved() -> None:
    found = mv.robustness_radius(constant(1.0, 1.0), [0.5, 0.5], 0, clip=CLIP)
    assert (found.lower_bound, found.upper_bound, found.counterexample) == (0.0, math.inf, None)
    assert found.reason is mv.Reason.UNDECIDED and "as large" in found.note
    flat = module([(np.array([[1.0, 0.0], [-1.0, 0.0]]), np.array([-0.75, 0.25])), (np.array([[1.0, 0.0], [0.0, 0.0]]), np.zeros(2))])
    found = mv.robustness_radius(flat, [0.875, 0.5], 0, clip=CLIP)  # from x_0 = 0.75 downwards both outputs are 0
    assert 0.125 * 0.99 <= found.lower_bound < 0.125 and found.upper_bound == math.inf
    assert found.reason is mv.Reason.UNDECIDED and "0.125" in found.note


def test_a_clip_that_cuts_the_ball() -> None:
    """The nearest stripe is outside the clip, the other one further away; then none is left."""
    weights = spike(0.7, 0.02)
    net, x0 = module(weights), np.array([0.72, 0.5])
    near = mv.robustness_radius(net, [0.75, 0.5], 0, clip=CLIP)
    cut = mv.robustness_radius(net, [0.75, 0.5], 0, clip=([0.74, 0.0], [1.0, 1.0]))
    assert near.upper_bound < 0.06 < 0.15 < cut.lower_bound < cut.upper_bound < 0.21
    check(net, np.array([0.75, 0.5]), cut)
    assert cut.counterexample is not None and cut.counterexample.x[0] >= 0.95
    none = mv.robustness_radius(net, [0.75, 0.5], 0, clip=([0.74, 0.0], [0.94, 1.0]))
    assert none.lower_bound == none.upper_bound == math.inf
    assert mv.robustness_radius(net, x0, 0, clip=([0.72, 0.5], [0.72, 0.5])).lower_bound == math.inf


def test_without_a_clip() -> None:
    net, x0 = module(layers([2, 6, 2], 0)), np.array([100.0, -50.0])
    found = mv.robustness_radius(net, x0)
    check(net, x0, found)
    assert found.reason is mv.Reason.PROVED and 0 < found.lower_bound <= found.upper_bound < math.inf


def test_targets() -> None:
    weights = [(np.array([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]), np.array([0.0, 0.25, 0.5]))]
    net, x0 = module(weights), np.array([1.0, 0.0])
    ends = {t: mv.robustness_radius(net, x0, 0, targets=t, clip=(-5, 5)).upper_bound for t in (1, 2, (1, 2), (0, 1))}
    assert ends == pytest.approx({1: 0.75, 2: 0.5, (1, 2): 0.5, (0, 1): 0.75}, rel=0.01)
    # Another label is larger at the input, but only the target counts.
    assert mv.robustness_radius(net, [0.3, 0.0], 0, targets=[1], clip=(-5, 5)).upper_bound == pytest.approx(0.05, rel=0.01)


def test_masks_and_weights_of_features() -> None:
    net, x0 = module([(np.array([[1.0, 1.0], [0.0, 0.0]]), np.array([0.0, 1.0]))]), np.array([1.0, 1.0])
    for features, radius in ((None, 0.5), ([True, False], 1.0), ([0, 1], 1.0), ([3.0, 1.0], 0.25), (2.0, 0.25)):
        found = mv.robustness_radius(net, x0, 0, features=features, clip=(-9, 9))
        check(net, x0, found, np.asarray(1.0 if features is None else features, dtype=float), (-9, 9))
        assert found.upper_bound == pytest.approx(radius, rel=0.01) and found.lower_bound <= radius
        assert found.reason is mv.Reason.PROVED


def test_an_input_between_the_numbers_of_the_runtime() -> None:
    """0.1 is no float32, and a feature that must not change keeps its own value in the reals."""
    net, x0 = module([(np.array([[1.0, 1.0], [0.0, 0.0]]), np.array([0.0, 0.15]))]), np.array([0.1, 0.1])
    found = mv.robustness_radius(net, x0, 0, features=[1, 0], clip=CLIP)
    check(net, x0, found, np.array([1.0, 0.0]), CLIP)
    assert found.upper_bound == pytest.approx(0.05, rel=0.01) and found.reason is mv.Reason.PROVED


# -- time, interrupts, trust ------------------------------------------------------------------------------------------------------


def wide() -> tuple[nn.Module, np.ndarray]:
    """What takes longer than a test."""
    return module([(1.2 * w, b) for w, b in layers([24, 64, 64, 64, 3], 0)]), np.full(24, 0.5)


def test_no_time_at_all() -> None:
    net, x0 = wide()
    found = mv.robustness_radius(net, x0, clip=CLIP, timeout=0)
    assert (found.lower_bound, found.upper_bound, found.reason, found.searches) == (0.0, math.inf, mv.Reason.TIMEOUT, 0)


def test_an_attack_does_not_creep_along_a_kink() -> None:
    """Where verify finds a nearer point, it is asked again only once attacks in smaller balls find none."""
    net, x0 = wide()
    searches = mv.robustness_radius(net, x0, clip=CLIP, gap=1e-3, timeout=3).searches
    assert searches < 20


def test_bounds_hold_when_the_time_is_over() -> None:
    net, x0 = wide()
    found = mv.robustness_radius(net, x0, clip=CLIP, gap=1e-4, timeout=3)
    check(net, x0, found, clip=CLIP)
    assert found.seconds < 6 and 0 < found.lower_bound < found.upper_bound < math.inf
    assert found.reason is mv.Reason.TIMEOUT and found.searches >= 2


def test_bounds_hold_when_the_run_is_cancelled() -> None:
    net, x0 = wide()
    deadline, seen = mv.Deadline(), []

    def watch(event: mv.Event) -> None:
        if event.phase == "radius":
            seen.append((event.data["lower_bound"], event.data["upper_bound"]))
        elif event.phase == "search":
            deadline.cancel()

    found = mv.robustness_radius(net, x0, clip=CLIP, gap=1e-4, deadline=deadline, on_event=watch)
    assert found.reason is mv.Reason.INTERRUPTED
    assert 0 < found.lower_bound < found.upper_bound < math.inf
    assert seen[-1] == (found.lower_bound, found.upper_bound)
    assert all(a[0] <= b[0] and a[1] >= b[1] for a, b in pairwise(seen))


def test_what_may_not_be_trusted_proves_nothing() -> None:
    net = module(layers([2, 3, 2], 0))
    found = mv.robustness_radius(net, [0.5, 0.5], clip=CLIP, options=mv.Options(trust="exact"))
    assert found.lower_bound == 0.0 and found.reason is mv.Reason.TRUST


def test_what_contradicts_itself_is_said() -> None:
    net, x0 = module(spike(0.7, 0.02)), np.array([0.25, 0.5])
    (question,) = _questions(net, _neighbourhoods([x0], None, CLIP, "linf"), [0], 0.01, None, None)
    bracket = Bracket(question, 0.01)
    bracket.prove(0.5, mv.Trust.SOLVER)
    with pytest.raises(mv.Contradiction, match=r"radius 0.5 was proved \(trust solver\), but a counterexample"):
        bracket.refute(np.array([0.7, 0.5]))


# -- parts ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_the_box_contains_the_ball(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, weight = rng.normal(0, 10.0 ** rng.integers(-6, 6), 5), rng.uniform(0, 2, 5) * (rng.random(5) < 0.8)
    weight[0] = 1.0
    radius = float(rng.uniform(0, 10.0 ** rng.integers(-8, 3)))
    box = Neighbourhood.around(x, weight).box(radius)
    for low, high, a, w in zip(box.lower.tolist(), box.upper.tolist(), x.tolist(), weight.tolist(), strict=True):
        reach = Fraction(radius) * Fraction(w)
        assert Fraction(low) <= Fraction(a) - reach and Fraction(a) + reach <= Fraction(high)
        assert w > 0 or low == high == a
    ball = Neighbourhood.around(x, weight, (x.min() - 1.0, x.max() + 2.0))
    whole = ball.box(ball.reach)
    moves = weight > 0
    assert (whole.lower[moves] == ball.low[moves]).all() and (whole.upper[moves] == ball.high[moves]).all()
    assert ball.distance(x) == 0.0
    moved = np.where(moves, x + 0.1 * weight, x)
    away = [abs(Fraction(a) - Fraction(b)) / Fraction(w) for a, b, w in zip(moved.tolist(), x.tolist(), weight.tolist(), strict=True) if w]
    assert Fraction(math.nextafter(ball.distance(moved), 0.0)) < max(away) <= Fraction(ball.distance(moved))
    assert ball.distance(ball.high + 1.0) == math.inf


def test_the_attack_finds_the_nearest_of_a_linear_network() -> None:
    rng = np.random.default_rng(0)
    w = rng.normal(size=(2, 6)).astype(np.float32).astype(float)
    net, x0 = module([(w, np.array([5.0, 0.0]))]), np.full(6, 0.5)
    (question,) = _questions(net, _neighbourhoods([x0], None, (-10, 10), "linf"), [0], 0.01, None, None)
    exact = (5.0 + (w[0] - w[1]) @ x0) / np.abs(w[0] - w[1]).sum()
    found = nearest(question, question.graph, x0[None], mv.Deadline())
    assert np.abs(found[0] - x0).max() == pytest.approx(exact, rel=1e-5)


# -- what is refused --------------------------------------------------------------------------------------------------------------

GOOD: dict[str, Any] = {"x0": [0.5, 0.5], "label": 0, "clip": CLIP}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"norm": "max"}, "unknown norm 'max'"),
        ({"x0": [0.5, math.nan]}, "entry 1 is no finite number"),
        ({"x0": [0.5, 1.5]}, "entry 1 is 1.5, outside clip"),
        ({"x0": [0.5]}, "1"),
        ({"x0": [0.5, 0.5, 0.5]}, "3"),
        ({"label": 2}, "no label 2"),
        ({"label": -1}, "no label -1"),
        ({"label": 0.0}, "no label 0.0"),
        ({"targets": [2]}, "no label 2"),
        ({"targets": [0]}, "targets are the label 0 alone"),
        ({"targets": []}, "must be other outputs"),
        ({"gap": 0.0}, "gap"),
        ({"gap": math.nan}, "gap"),
        ({"clip": (1.0, 0.0)}, "outside clip"),
        ({"clip": (math.nan, 1.0)}, "clip must be numbers"),
        ({"clip": ([0.0, 0.0, 0.0], 1.0)}, "clip must be a number, or one per feature"),
        ({"features": [True, True, True]}, "features must be a number, or one per feature"),
        ({"features": [0, 0]}, "no feature that may change"),
        ({"features": [1, -1]}, "features must be"),
        ({"features": [1, math.nan]}, "features must be"),
        ({"features": [1.0, 1e-320]}, "too large or too small"),
        ({"method": "none"}, "unknown method"),
    ],
)
def test_bad_input_is_refused(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(mv.InvalidInput, match=words) as refused:
        mv.robustness_radius(constant(1.0, 0.0), **{**GOOD, **changed})
    assert "\n" not in str(refused.value)


def test_several_inputs() -> None:
    net = module(spike(0.7, 0.02))
    inputs = [[0.25, 0.5], [0.7, 0.5], [0.5, 0.5]]
    found = mv.robustness_radii(net, inputs, [0, 0, 0], clip=CLIP)
    assert isinstance(found, Iterator)
    assert [r.upper_bound for r in found] == pytest.approx([0.4433, 0.0, 0.1933], abs=5e-3)
    assert [r.label for r in mv.robustness_radii(net, inputs, clip=CLIP)] == [0, 1, 0]
    with pytest.raises(mv.InvalidInput, match="3 inputs and 2 labels"):
        mv.robustness_radii(net, inputs, [0, 0])
    stopped = mv.Deadline()
    stopped.cancel()
    assert list(mv.robustness_radii(net, inputs, deadline=stopped)) == []


def test_a_result_as_json_and_in_words() -> None:
    found = mv.robustness_radius(module(spike(0.7, 0.02)), [0.25, 0.5], 0, clip=CLIP)
    told = json.loads(found.to_json())
    assert told["lower_bound"] == found.lower_bound and told["other"] == 1 and told["trust"] == found.trust.value
    assert told["counterexample"]["x"] == found.counterexample.x.tolist()  # type: ignore[union-attr]
    assert str(found).startswith("radius within [0.4") and "output 1 is larger than 0" in str(found)
    around = _neighbourhoods([np.zeros(2)], None, None, "linf")
    assert isinstance(_questions(constant(1.0, 0.0), around, None, 0.1, None, None)[0], Question)
