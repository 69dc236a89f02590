"""Clipped subproblems keep every unsafe point that they had, and what is closed with their help counts as 0 at most."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from points import sampled
from random_nets import CONTINUOUS, enumerated_minimum, random_problem, relu_network, shifted
from trees import PLAIN, clip, context_of, grown, neurons_of

from milpverify.arithmetic.rounding import down
from milpverify.balls.ball import Ball
from milpverify.config import SearchOptions
from milpverify.graph import Graph, evaluate_all
from milpverify.propagation.optimised.halfspaces import HalfspaceForms
from milpverify.search.neuron_split.branching import children
from milpverify.search.neuron_split.clip import Clipper
from milpverify.search.neuron_split.space import NeuronSpace
from milpverify.search.neuron_split.subproblems import Subproblems
from milpverify.search.tree import Tree
from milpverify.spec import Box, Disjunct, Problem, Rows

CLIPPING = replace(PLAIN, clipping=True)


def searching(
    graph: Graph, disjunct: Disjunct, options: SearchOptions = CLIPPING, dtype: torch.dtype = torch.float64
) -> tuple[NeuronSpace, Tree[Subproblems]]:
    return neurons_of(context_of(Problem(graph, (disjunct,)), options=options), dtype=dtype)


def space_of(graph: Graph, disjunct: Disjunct, dtype: torch.dtype = torch.float64) -> NeuronSpace:
    return searching(graph, disjunct, dtype=dtype)[0]


def margins(disjunct: Disjunct, points: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    unsafe = disjunct.unsafe
    return (points @ torch.tensor(unsafe.x_rows).T + y @ torch.tensor(unsafe.y_rows).T - torch.tensor(unsafe.rhs)).amax(1)


def kept(space: NeuronSpace, subs: Subproblems, pre: torch.Tensor, unsafe: torch.Tensor) -> int:
    """How many unsafe points lie in the subproblems, all of which satisfy what these inherited."""
    checked = 0
    for n in range(len(subs)):
        inside = unsafe.clone()
        for slot, index, side, point in subs.literals(n):
            column = int(space.bounder.lookup[slot, index])
            inside &= side * (pre[:, column] - point) >= 0
        slack = 1e-12 * (1 + pre[inside].abs())
        assert bool((pre[inside] >= subs.low[n] - slack).all()) and bool((pre[inside] <= subs.high[n] + slack).all())
        assert not bool(inside.any()) or float(subs.bound[n]) <= 0
        checked += int(inside.sum())
    return checked


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("seed", range(16))
def test_unsafe_points_stay(seed: int, dtype: torch.dtype) -> None:
    graph, disjunct = random_problem(seed, CONTINUOUS)
    check_unsafe_points(graph, disjunct, sampled(disjunct.box, 4000, seed), dtype)


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("seed", range(3))
def test_unsafe_points_of_a_ball_stay(seed: int, norm: str) -> None:
    graph, ball = relu_network([3, 12, 12, 2], seed), Ball([0.2, -0.1, 0.3], 1.0, norm)
    box = Box(*ball.ends)
    disjunct = Disjunct(box, Rows.on_outputs([[1.0, -1.0]], [0.0], 3), Rows.none(3, 2))
    points = torch.from_numpy(np.stack([ball.pulled(x) for x in sampled(box, 2000, seed).numpy()]))
    check_unsafe_points(graph.confined(ball), disjunct, points, torch.float64)


def check_unsafe_points(graph: Graph, disjunct: Disjunct, points: torch.Tensor, dtype: torch.dtype) -> None:
    """Clipping keeps those of some inputs (N, nx) that are unsafe, for several thresholds and splits."""
    values = evaluate_all(graph, points)
    worst = margins(disjunct, points, values[graph.output])
    size = 1e-9 * max(1.0, float(worst.abs().amax()))
    for share in (0.0, 0.05, 0.4):
        near = shifted(disjunct, float(worst.quantile(share)) + size)
        unsafe = margins(near, points, values[graph.output]) <= 0
        space = space_of(graph, near, dtype)
        bounder = space.bounder
        if not bounder.relaxations.count:
            pytest.skip("everything is stable")
        pre = torch.cat([values[z].flatten(1)[:, bounder.relaxations.entries[z]] for z in space.bounder.slots], 1)
        clipper = Clipper(bounder, HalfspaceForms(bounder.relaxations))
        with torch.no_grad():
            subs, checked = space.bounder.first(), 0
            for _ in range(4):
                subs, _, found = bounder.bound(subs, 3)
                subs = clip(clipper, subs, found)
                checked += kept(space, subs, pre, unsafe)
                domain = bounder.domain_of(subs)
                split = ((domain.low < 0) & (domain.high > 0)).int()
                alive = (domain.low <= domain.high).all(1)
                if not bool(alive.any()):
                    break
                subs = children(bounder, subs.take(alive), split[alive].argmax(1))
        assert checked > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("seed", range(8))
def test_split_constraints_tighten_what_they_leave(seed: int, dtype: torch.dtype) -> None:
    graph, box = relu_network([3, 12, 12, 2], seed), Box(-np.ones(3), np.ones(3))
    points = sampled(box, 4000, seed)
    values = evaluate_all(graph, points)
    disjunct = Disjunct(
        box, Rows.on_outputs([[1.0, -1.0]], [float((values[graph.output] @ torch.tensor([1.0, -1.0]).double()).amin())], 3), Rows.none(3, 2)
    )
    space = space_of(graph, disjunct, dtype)
    bounder = space.bounder
    pre = torch.cat([values[z].flatten(1)[:, bounder.relaxations.entries[z]] for z in space.bounder.slots], 1)
    clipper, every = Clipper(bounder, HalfspaceForms(bounder.relaxations)), torch.ones(len(points), dtype=torch.bool)
    with torch.no_grad():
        assert clipper.divided(space.bounder.first()).low.isinf().all()  # nothing is split
        subs, tighter = space.bounder.first(), 0
        for _ in range(4):
            domain = bounder.domain_of(subs)
            alive = (domain.low <= domain.high).all(1) & ((domain.low < 0) & (domain.high > 0)).any(1)
            open_entries = ((domain.low < 0) & (domain.high > 0))[alive].double()
            widest = (open_entries * (domain.high - domain.low)[alive]).argmax(1)
            both = children(bounder, subs.take(alive), widest)
            before = bounder.domain_of(both)
            subs = clipper.divided(both)
            after = bounder.domain_of(subs)
            assert bool((after.low >= before.low).all()) and bool((after.high <= before.high).all())
            tighter += int(((after.high - after.low) < 0.99 * (before.high - before.low)).sum())
            assert kept(space, subs, pre, every) > 0
    assert tighter > 0


@pytest.mark.parametrize("seed", range(3))
def test_clipping_raises_bounds_closes_more_and_is_inherited(seed: int) -> None:
    graph, box = relu_network([16, 40, 40, 2], seed), Box(-0.4 * np.ones(16), 0.4 * np.ones(16))
    disjunct = Disjunct(box, Rows.on_outputs([[1.0, -1.0]], [0.0], 16), Rows.none(16, 2))
    with torch.no_grad():
        bounder = space_of(graph, disjunct).bounder
        bound = float(bounder.bound(bounder.first(), 40)[0].bound)
        near = shifted(disjunct, bound + 0.01 * abs(bound))  # the bound is below 0 by a little
        space, tree = searching(graph, near)
        clipper = Clipper(space.bounder, HalfspaceForms(space.bounder.relaxations))
        subs, _, found = space.bounder.bound(space.bounder.first(), 40)
        assert float(subs.bound) < 0
        narrowed = clip(clipper, subs, found)
        assert bool((narrowed.bound >= subs.bound).all()) and float(narrowed.bound) > 0.9 * float(subs.bound)
        assert bool((narrowed.low >= subs.low).all()) and bool((narrowed.high <= subs.high).all())
        of = space.bounder.relaxations
        assert bool((narrowed.low > of.low + 1e-3 * (of.high - of.low)).any())
        both = children(space.bounder, narrowed, (of.high - of.low).argmax(1))
        assert torch.equal(both.low, narrowed.low.repeat(2, 1)) and torch.equal(both.high, narrowed.high.repeat(2, 1))
        domain = space.bounder.domain_of(both)
        assert bool((domain.low >= narrowed.low).all()) and bool((domain.high <= narrowed.high).all())
        # Bounds that are to hold everywhere know nothing of it.
        plain, everywhere = space.bounder.state_of(narrowed), space.plain.state_of(narrowed)
        wider = [z for z in space.bounder.slots if bool((everywhere[z].bounds.lower < plain[z].bounds.lower).any())]
        assert wider and all(torch.equal(everywhere[z].bounds.lower, space.plain.state[z].bounds.lower) for z in space.bounder.slots)
    bare, whole = searching(graph, near, PLAIN)
    less, more = grown(whole, bare, 6000), grown(tree, space, 6000)
    assert more.closed and more.detail["subproblems"] < 0.7 * less.detail["subproblems"]
    assert more.lower_bound == 0.0


@pytest.mark.parametrize("seed", range(30))
def test_bounds_rise_and_are_below_the_exact_minimum_whenever_the_search_stops(seed: int) -> None:
    graph, disjunct = random_problem(seed, CONTINUOUS)
    least = enumerated_minimum(graph, disjunct)
    if not np.isfinite(least):
        pytest.skip("the input set is empty")
    slack = 1e-6 * max(1.0, abs(least))
    for by in (least - 1e-2 * max(1.0, abs(least)), least + 1e-3 * max(1.0, abs(least))):
        space, tree = searching(graph, shifted(disjunct, by))
        before = -np.inf
        for limit in (1, 3, 7, 20, 100):
            outcome = grown(tree, space, limit)
            assert outcome.lower_bound >= before
            assert outcome.lower_bound <= max(0.0, least - by) + slack and (outcome.lower_bound <= 0.0)
            assert not (outcome.closed and least - by < -slack)
            before = outcome.lower_bound


def test_linear_bounds_are_those_of_the_rows() -> None:
    graph, disjunct = (
        relu_network([16, 40, 40, 2], 0),
        Disjunct(Box(-np.ones(16), np.ones(16)), Rows.on_outputs([[1.0, -1.0]], [0.5], 16), Rows.none(16, 2)),
    )
    space = space_of(graph, disjunct)
    with torch.no_grad():
        _, _, found = space.bounder.bound(space.bounder.first(), 10)
    points = sampled(disjunct.box, 5000, 0)
    values = evaluate_all(graph, points)[graph.output]
    a = found.coefficients[0, 0].double()
    distance = torch.where(a > 0, points + 1.0, 1.0 - points)
    assert bool(((values[:, 0] - values[:, 1] - 0.5) >= down(found.lower - 0.5)[0, 0] + distance @ a.abs() - 1e-12).all())
