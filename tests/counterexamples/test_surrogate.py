from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from milpverify.config import Deadline
from milpverify.counterexamples.attack import AttackTuning, attack
from milpverify.counterexamples.surrogate import Surrogate, has_jumps
from milpverify.frontends.problem import robustness
from milpverify.graph import Graph, evaluate
from milpverify.spec import Box, Disjunct, Problem, Rows


class Signs(torch.nn.Module):
    """Two layers of signs, and the outputs as they are or as a softmax of what is thousands apart."""

    def __init__(self, softmax: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.last = torch.nn.Linear(20, 60), torch.nn.Linear(60, 60), torch.nn.Linear(60, 3)
        self.softmax = softmax

    def forward(self, x: Tensor) -> Tensor:
        y = 3000.0 * self.last(torch.sign(self.second(torch.sign(self.first(x)))))
        return torch.softmax(y, -1) if self.softmax else y


def signs(softmax: bool) -> Graph:
    return robustness(Signs(softmax).eval(), np.full(20, 0.1, dtype=np.float32), 0, 0.1).graph


def gradient(network: object, x: Tensor) -> Tensor:
    with torch.enable_grad():
        x = x.clone().requires_grad_()
        return torch.autograd.grad(network(x)[:, 0].sum(), x)[0].nan_to_num()  # type: ignore[operator]


def test_jumps_have_slopes_and_keep_their_values() -> None:
    graph, x = signs(softmax=False), torch.rand(8, 20, dtype=torch.float64)
    assert has_jumps(graph) and not bool(gradient(lambda x: evaluate(graph, x), x).any())
    network = Surrogate.across_jumps(graph, x)
    assert torch.allclose(network(x), evaluate(graph, x)) and bool(gradient(network, x).all())


def test_temperatures_are_for_functions_that_are_flat_everywhere() -> None:
    graph = signs(softmax=True).to(torch.float32)
    x = torch.rand(8, 20)
    network = Surrogate.across_jumps(graph, x)
    assert not network.temperatures and not bool(gradient(network, x).any())
    soft = network.softened(x)
    assert soft.temperatures and bool(gradient(soft, x).any())
    # The order of a softmax's outputs is that of its logits at any temperature.
    assert torch.equal(soft(x).argsort(1)[:, -1], evaluate(graph, x).argsort(1)[:, -1])


def test_a_network_of_signs_is_attacked() -> None:
    """The class that random points have least often, through a softmax whose values are 0 and 1 to the last digit as well."""
    for softmax in (False, True):
        graph, box = signs(softmax), Box(-np.ones(20), np.ones(20))
        x = torch.rand(2000, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
        rarest = int(torch.bincount(evaluate(graph, x).argmax(1), minlength=3).argmin())
        rows = np.eye(3)[[k for k in range(3) if k != rarest]] - np.eye(3)[rarest]
        problem = Problem(graph, (Disjunct(box, Rows.on_outputs(rows, [0.0, 0.0], 20), Rows.none(20, 3)),))
        assert (
            attack(
                problem, graph.to(torch.float32), problem.disjuncts, Deadline(20.0), tuning=AttackTuning(starts=8, rounds=2)
            ).counterexample
            is not None
        )


class Masked(torch.nn.Module):
    """The softmax of two entries and of one that is masked by a finite number, whose differences have exponentials that overflow."""

    def forward(self, x: Tensor) -> Tensor:
        return (x.reshape(-1, 3) + torch.tensor([0.0, 0.0, -1e4])).softmax(-1)


def test_exponentials_that_overflow_leave_gradients() -> None:
    graph = robustness(Masked().eval(), np.zeros(3), 0, 0.5).graph.to(torch.float32)
    x = torch.tensor([[0.1, 0.2, 0.3]], requires_grad=True)
    y = Surrogate(graph)(x)
    assert torch.allclose(y, Masked()(x))
    expected, found = (torch.autograd.grad(out[0, 0], x, retain_graph=True)[0] for out in (Masked()(x), y))
    assert expected.any() and torch.allclose(found, expected)
