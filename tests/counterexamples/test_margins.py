"""What results say of every disjunct's margin, against dense sampling."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

import milpverify as mv
from milpverify.counterexamples.margins import at_least
from milpverify.result import Margin


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4)).double().eval()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("margin", [False, True])
def test_margins_of_labels_hold_at_all_points(seed: int, margin: bool) -> None:
    net, x0 = network(seed), torch.rand(2, generator=torch.Generator().manual_seed(seed)).double()
    label = net(x0).argmax()
    random = 2 * torch.rand(4000, 2, generator=torch.Generator().manual_seed(1)).double() - 1
    for eps in (0.02, 0.1, 0.4, 1.5):
        result = mv.verify(mv.robustness(net, x0, label, eps), timeout=20, margin=margin)
        with torch.no_grad():
            y = net(x0 + eps * random)
        sampled = (y[:, [label]] - y)[:, [k for k in range(4) if k != label]].amin(0)
        assert len(result.margins) == 3
        assert min(m.lower_bound for m in result.margins) >= result.lower_bound
        for known, least in zip(result.margins, sampled.tolist(), strict=True):
            assert known.lower_bound <= least + 1e-9
            assert known.lower_bound <= known.upper_bound
            if known.point is not None:
                assert (abs(known.point - x0.numpy()) <= eps + 1e-12).all()
        best = [m.upper_bound for m in result.margins]
        if result.verdict is mv.Verdict.FALSIFIED:
            assert min(best) <= 0
        if margin:
            assert min(best) == pytest.approx(result.upper_bound, abs=1e-9)
        for other, known in zip([k for k in range(4) if k != label], result.margins, strict=True):
            if known.point is not None:
                with torch.no_grad():
                    y = net(torch.from_numpy(known.point))
                assert float(y[label] - y[other]) == pytest.approx(known.upper_bound, abs=1e-9)


def test_closed_by_rows_alone_and_reduced() -> None:
    """Disjuncts that are closed before any bound, and inputs that an equation eliminates."""
    net, box = network(0), mv.Box([0, 0], [1, 1])
    problem = mv.Problem(net, box, unsafe="(or (and (>= Y_0 1) (<= Y_0 0)) (>= Y_1 -9) (>= Y_2 99))")
    result = mv.verify(problem)
    never, always, far = result.margins
    assert never.lower_bound >= 0
    assert always.upper_bound < 0
    assert always.lower_bound <= always.upper_bound
    assert far.lower_bound > 0 or far.lower_bound == result.lower_bound
    tied = mv.Problem(net, box, unsafe="(and (= X_0 X_1) (>= Y_1 9))")
    result = mv.verify(tied)
    assert result.verdict is mv.Verdict.VERIFIED
    assert result.margins[0].lower_bound == result.lower_bound
    point = mv.verify(mv.Problem(net, box, unsafe="(and (= X_0 X_1) (>= Y_1 -9))")).margins[0].point
    assert point is not None
    assert point[0] == point[1]


def test_json_holds_them() -> None:
    net = network(1)
    result = mv.verify(mv.robustness(net, [0.5, 0.5], int(net(torch.tensor([0.5, 0.5]).double()).argmax()), 3.0))
    found = json.loads(result.to_json())
    assert [m["lower_bound"] for m in found["margins"]] == [m.lower_bound for m in result.margins]
    assert result.counterexample is not None
    ((name, x),) = found["counterexample"]["inputs"].items()
    assert (name, x) == ("input", [result.counterexample.x.tolist()])
    ((name, y),) = found["counterexample"]["outputs"].items()
    assert (name, y) == ("output", [result.counterexample.y.tolist()])


def test_nothing_is_known_of_what_was_not_looked_at() -> None:
    result = mv.verify(mv.Problem(network(0), mv.Box([0, 0], [1, 1]), unsafe="(or (>= Y_0 9) (>= Y_1 9))"), timeout=0)
    assert [m.lower_bound for m in result.margins] == [-np.inf] * 2
    assert at_least([Margin(), Margin(2.0)], 1.0, mv.Trust.EXACT) == [Margin(1.0, mv.Trust.EXACT), Margin(2.0)]


def test_a_graph_without_names_has_one_tensor_each() -> None:
    graph = mv.Problem(network(0), mv.Box([0, 0], [1, 1]), unsafe="(>= Y_0 9)").graph
    bare = mv.Graph(graph.nodes, graph.output)
    result = mv.verify(mv.Problem(bare, mv.Box([0, 0], [1, 1]), unsafe="(>= Y_0 -9)"))
    assert result.counterexample is not None
    assert list(result.counterexample.inputs) == ["X"]
    assert result.counterexample.outputs["Y"].shape == (4,)
