"""Walks back through a graph."""

from __future__ import annotations

import torch
from random_graphs import mixed_network

from milpverify.graph import Pullback, affine_form, evaluate_all
from milpverify.operators import Affine


def test_a_walk_back_meets_nodes_once_and_after_their_readers() -> None:
    """What arrives are the readers, joined in the order in which they are met: the last one first."""
    graph = mixed_network(0)
    start = max(i for i in range(len(graph.nodes)) if len(graph.nodes[i].inputs) > 1)
    walk, met = Pullback(graph, {start: ("start",), 0: ("own",)}), dict[int, tuple[object, ...]]()
    for node, arrived in walk:
        assert node.id not in met
        met[node.id] = arrived
        walk.send(node, [(node.id,)] * len(node.inputs))
    assert list(met) == sorted(graph.ancestors[start], reverse=True)
    readers = {i: tuple(r for r in sorted(graph.consumers[i], reverse=True) if r in graph.ancestors[start]) for i in met}
    assert met == {**readers, start: ("start",), 0: ("own", *readers[0])}
    assert any(len(arrived) > 1 for arrived in readers.values())


def test_a_walk_ends_where_nothing_is_sent() -> None:
    """At the cut nodes, of which rows of a node are affine functions: their values give the node's."""
    graph = mixed_network(1)
    node = graph.output
    rows = torch.randn(3, graph.ny, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    form = affine_form(graph, node, rows)
    assert form.coefficients and not any(isinstance(graph.nodes[i].op, Affine) for i in form.coefficients)
    values = evaluate_all(graph, torch.randn(5, graph.nx, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    total = sum(values[i].flatten(1) @ rows_.flatten(1).T for i, rows_ in form.coefficients.items()) + form.constant
    assert torch.allclose(total, values[node] @ rows.T)
