"""Boxes: their halves, and the bounds that these inherit."""

from __future__ import annotations

import torch
from random_nets import relu_network

from milpverify.functions.catalogue import catalogue
from milpverify.operators import Elementwise
from milpverify.propagation.crown import crown
from milpverify.propagation.relevance import refinable
from milpverify.propagation.screening import inexact
from milpverify.search.input_split.boxes import Boxes, Inheritance


def made(margins: list[float]) -> Boxes:
    """Boxes that are told apart by their margins."""
    n = len(margins)
    at = torch.tensor(margins, dtype=torch.float64).unsqueeze(1)
    whole = torch.zeros(n, dtype=torch.int32)
    return Boxes(at - 1, at + 1, at, torch.ones(n, 1), whole, torch.zeros(n, dtype=torch.bool), whole.long(), torch.zeros(n, 2, 3))


def test_halves_cover_their_box_and_overlap_in_a_face_only() -> None:
    lower, upper = torch.randn(20, 3, dtype=torch.float64), torch.randn(20, 3, dtype=torch.float64)
    lower, upper = torch.minimum(lower, upper), torch.maximum(lower, upper)
    upper[3] = lower[3]
    upper[5] = torch.nextafter(lower[5], torch.full((3,), torch.inf, dtype=torch.float64))
    boxes = made([0.0] * 20)
    boxes = Boxes(lower, upper, boxes.margins, torch.rand(20, 3), boxes.unstable, boxes.tried, boxes.age, boxes.inherited)
    divisible = boxes.divisible()
    assert (~divisible).nonzero().flatten().tolist() == [3, 5]
    parents = boxes.take(divisible)
    halves = parents.halves()
    n = len(parents)
    differs = halves.upper[:n] != parents.upper
    assert (differs.sum(1) == 1).all() and (halves.upper[:n] == halves.lower[n:])[differs].all()
    assert (halves.lower[:n] == parents.lower).all() and (halves.upper[n:] == parents.upper).all()
    assert ((halves.lower[n:] != parents.lower) == differs).all()
    assert (halves.lower <= halves.upper).all()


def test_inherited_bounds_are_outside_those_of_the_parent_and_not_by_much() -> None:
    graph = relu_network([3, 20, 20, 20, 2], 0)
    lower, upper = -torch.ones(9, 3, dtype=torch.float64), torch.ones(9, 3, dtype=torch.float64)
    lower[1:] = 0.3 * torch.rand(8, 3, dtype=torch.float64)
    relu = Elementwise(catalogue()["relu"].trial())
    with torch.no_grad():
        root, _ = crown(graph, lower[:1], upper[:1])
        state, _ = crown(graph, lower, upper)
        inheritance = Inheritance(graph, root)
        known = inheritance.unpack(inheritance.pack(state, torch.arange(9)))
    assert set(known) == {node.id for node in refinable(graph)} and len(known) == 2
    for z, bounds in known.items():
        here, whole = state[z].bounds, root[z].bounds
        free = inexact([relu], whole.lower, whole.upper)[0]
        assert (bounds.lower <= here.lower)[:, free].all() and (bounds.upper >= here.upper)[:, free].all()
        assert torch.allclose(bounds.lower[:, free], here.lower[:, free], rtol=1e-6, atol=1e-30)
        assert (bounds.lower[:, ~free] == whole.lower[:, ~free]).all() and (bounds.upper[:, ~free] == whole.upper[:, ~free]).all()
