"""Small networks trained on digits, by every activation: what is verified, and that there is something to branch on."""

from __future__ import annotations

from functools import cache

import digits_networks as trained_on
import pytest
import torch
from torch import nn

import milpverify as mv
from milpverify.functions.catalogue import catalogue
from milpverify.operators import Elementwise
from milpverify.result import Verdict
from milpverify.search.bounding import bound_batch
from milpverify.search.groups import groups


@pytest.fixture(scope="session")
def networks() -> object:
    """Small networks by name, trained when first asked for."""
    return cache(lambda name: trained_on.trained(name, 16, 2, 40))


def right(net: nn.Module, k: int) -> tuple[torch.Tensor, int]:
    """A held-out image that a network reads right, and its label."""
    images, labels = trained_on.digits()
    with torch.no_grad():
        places = (net(images).argmax(1) == labels).nonzero().flatten()
    place = int(places[places >= trained_on.TRAINED][k])
    return images[place], int(labels[place])


@pytest.mark.parametrize("name", trained_on.NAMES)
def test_networks_are_trained_and_decided(name: str, networks: object) -> None:
    net = networks(name)  # type: ignore[operator]
    assert trained_on.accuracy(net) > 0.8
    image, label = right(net, 0)
    small = mv.verify(mv.robustness(net, image, label, 0.005, clip=(0, 1)), timeout=60)
    assert small.verdict is Verdict.VERIFIED
    large = mv.verify(mv.robustness(net, image, label, 0.5, clip=(0, 1)), timeout=60)
    assert large.verdict is Verdict.FALSIFIED


def test_the_softmax_of_the_transformer_is_not_degenerate(networks: object) -> None:
    """Over a box of the size that is verified the inputs of exp vary enough for its relaxation to matter."""
    net = networks("vit")  # type: ignore[operator]
    image, label = right(net, 0)
    problem = mv.robustness(net, image, label, 0.02, clip=(0, 1))
    (group,) = groups(problem)
    lower, upper = (torch.tensor(side)[None] for side in (group.box.lower, group.box.upper))
    with torch.no_grad():
        state = bound_batch(problem.graph, group, lower, upper, torch.float64).state
    exp = catalogue()["exp"].bind()
    widths = [
        state[node.inputs[0]].bounds.width for node in problem.graph.nodes if isinstance(node.op, Elementwise) and node.op.function == exp
    ]
    assert widths and float(widths[0].median()) > 0.2
