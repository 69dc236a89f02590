"""Networks with products of two variables: verdicts follow known and sampled optima, and splits of factors decide what planes cannot."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from product_networks import Grower, attention_network, product_network, recurrent_network
from trees import PLAIN, context_of, grown, neurons_of

import milpverify as mv
from milpverify.graph import Graph, evaluate, evaluate_all
from milpverify.propagation.optimised.beta import AlphaOptions, Dual
from milpverify.result import Verdict
from milpverify.search.neuron_split.bounder import Bounder, NeuronTuning
from milpverify.search.neuron_split.branching import children
from milpverify.spec import Box, Disjunct, Problem, Rows


def problem(graph: Graph, box: Box, row: list[float], rhs: float) -> Problem:
    """Unsafe where row . y <= rhs."""
    return Problem(graph, (Disjunct(box, Rows.on_outputs([row], [rhs], graph.nx), Rows.none(graph.nx, graph.ny)),))


def bounder_of(of: Problem) -> Bounder:
    return neurons_of(context_of(of, options=PLAIN))[0].bounder


def parabola() -> Graph:
    """x (x - 1) of two nodes, least at 1/2: -1/4."""
    g = Grower(1, 0)
    return g.finished(g.product(g.scale(g.nodes[0], 2.0), g.scale(g.nodes[0], 0.5, -0.5)))


def saddle() -> Graph:
    """x y + y z over three inputs."""
    g = Grower(3, 0)
    x, y, z = (g.select(g.nodes[0], np.array([i])) for i in range(3))
    return g.finished(g.sum([g.product(x, y), g.product(y, z)]))


def cubic() -> Graph:
    """(x y) (x + y): a product of a product."""
    g = Grower(2, 0)
    x, y = (g.select(g.nodes[0], np.array([i])) for i in range(2))
    return g.finished(g.product(g.product(x, y), g.sum([x, y])))


KNOWN = {
    "parabola": (parabola(), [-1.0], [2.0], -0.25),
    "saddle": (saddle(), [-1.0, -2.0, -0.5], [1.0, 1.0, 3.0], -8.0),  # y (x + z) at y = -2, x = 1, z = 3
    "cubic": (cubic(), [-1.0, -1.0], [1.0, 1.0], -2.0),
}


@pytest.mark.parametrize("name", KNOWN)
def test_known_optima_are_found_by_splitting_factors(name: str) -> None:
    graph, lower, upper, least = KNOWN[name]
    for by, safe in ((-0.01, True), (0.01, False)):
        context = context_of(problem(graph, Box(lower, upper), [1.0], least + by), options=PLAIN)
        space, tree = neurons_of(context, NeuronTuning(iterations=40))
        outcome = grown(tree, space, 3000)
        assert outcome.closed == safe
        assert outcome.lower_bound <= -by + 1e-9
        assert mv.verify(problem(graph, Box(lower, upper), [1.0], least + by), timeout=60).verdict is (
            Verdict.VERIFIED if safe else Verdict.FALSIFIED
        )


def test_planes_alone_do_not_prove_the_parabola() -> None:
    graph, lower, upper, least = KNOWN["parabola"]
    bounder = bounder_of(problem(graph, Box(lower, upper), [1.0], least - 0.01))
    with torch.no_grad():
        bounded, _, _ = bounder.bound(bounder.first(), 50)
    assert float(bounded.bound) < -0.5


def sampled_least(graph: Graph, box: Box, row: np.ndarray) -> float:
    """The least value of row . y that samples and descent find."""
    lower, upper = torch.tensor(box.lower), torch.tensor(box.upper)
    random = torch.Generator().manual_seed(0)
    x = lower + torch.rand(4000, graph.nx, generator=random, dtype=torch.float64) * (upper - lower)
    x[::2] = torch.where(torch.rand(x[::2].shape, generator=random) < 0.5, lower, upper)
    direction = torch.tensor(row)
    with torch.enable_grad():
        for k in range(80):
            x = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad((evaluate(graph, x) @ direction).sum(), x)
            x = torch.minimum(torch.maximum(x - 0.1 * 0.93**k * (upper - lower) * gradient.sign(), lower), upper)
    return float((evaluate(graph, x.detach()) @ direction).min())


SMALL = {
    **{f"products {seed}": (product_network(seed, 3), 0.4) for seed in range(3)},
    "attention": (attention_network(0, nx=3, sharp=2.0), 0.2),
    "recurrent": (recurrent_network(0, nx=1), 0.5),
}


@pytest.mark.parametrize("name", SMALL)
def test_verdicts_follow_the_sampled_optimum(name: str) -> None:
    graph, radius = SMALL[name]
    rng = np.random.default_rng(2)
    centre, row = 0.5 * rng.normal(size=graph.nx), rng.normal(size=graph.ny)
    box = Box(centre - radius, centre + radius)
    least = sampled_least(graph, box, row)
    for by, verdict in ((-0.1, Verdict.VERIFIED), (0.02, Verdict.FALSIFIED)):
        result = mv.verify(problem(graph, box, list(row), least + by * max(0.3, abs(least))), timeout=100)
        assert result.verdict is verdict
        assert result.lower_bound <= -by * max(0.3, abs(least)) + 1e-9


@pytest.mark.parametrize("name", [n for n in SMALL if n != "recurrent"])
def test_bounds_of_children_hold_where_their_decisions_do(name: str) -> None:
    """Three levels of splits, of every kind of variable, with optimised multipliers, against samples that satisfy them."""
    graph, radius = SMALL[name]
    rng = np.random.default_rng(3)
    box, row = Box(-radius * np.ones(graph.nx), radius * np.ones(graph.nx)), rng.normal(size=graph.ny)
    bounder = bounder_of(problem(graph, box, list(row), 0.0))
    x = radius * (2 * torch.rand(3000, graph.nx, generator=torch.Generator().manual_seed(1), dtype=torch.float64) - 1)
    values, checked = [v.flatten(1) for v in evaluate_all(graph, x)], 0
    truth = values[graph.output] @ torch.tensor(row)
    allowed = (bounder.relaxations.split_for == torch.arange(bounder.relaxations.count)).nonzero(as_tuple=True)[0]
    with torch.no_grad():
        subs = bounder.first()
        for _ in range(3):
            subs = subs.take(torch.arange(len(subs)).repeat(4))
            subs = children(
                bounder, subs, allowed[torch.randint(len(allowed), (len(subs),), generator=torch.Generator().manual_seed(len(subs)))]
            )
        subs, domain, found = bounder.bound(subs, 6)
        for n in range(len(subs)):
            inside = torch.ones(len(x), dtype=torch.bool)
            for slot, index, side, point in subs.literals(n):
                inside &= side * (values[bounder.slots[slot]][:, index] - point) >= 0
            for z in bounder.slots:  # what the decisions clamp, derived variables included
                here = values[z][inside][:, bounder.relaxations.entries[z]]
                assert (here >= domain.low[n, bounder.relaxations.columns[z]] - 1e-9).all()
                assert (here <= domain.high[n, bounder.relaxations.columns[z]] + 1e-9).all()
            assert (truth[inside] >= found.lower[n, 0] - 1e-9).all()
            checked += int(inside.sum())
        assert checked > 3000


def test_the_optimiser_climbs_what_is_certified() -> None:
    graph, radius = SMALL["attention"]
    bounder = bounder_of(problem(graph, Box(-radius * np.ones(3), radius * np.ones(3)), [1.0, -1.0], 0.0))
    with torch.no_grad():
        both = children(bounder, bounder.first(), torch.tensor([bounder.relaxations.columns[bounder.slots[0]].start]))
        domain = bounder.domain_of(both)
        rows, _, x_rows = bounder.rows_of(both.disjunct)
        dual = bounder.relaxations.ascend(domain, rows, Dual(both.slopes, both.beta), AlphaOptions(iterations=20, step=0.1), x_rows)
        climbed = bounder.relaxations.value(domain, rows, dual, x_rows).double()
        proved = bounder.relaxations.certify(domain, rows, dual, x_rows).lower
    torch.testing.assert_close(climbed, proved, rtol=1e-3, atol=1e-4)
