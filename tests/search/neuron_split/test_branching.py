"""Scores of splits are estimates of what the children's bounds gain; every heuristic decides the same, repeatably."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from product_networks import attention_network, product_network, recurrent_network
from random_nets import random_problem, sampled_problem
from trees import PLAIN, context_of, grown, neurons_of

from milpverify import verify
from milpverify.config import Branching, Deadline, Options, SearchOptions, SplitPoints
from milpverify.frontends.lowering.builder import Builder
from milpverify.functions.catalogue import catalogue
from milpverify.graph import Graph, evaluate
from milpverify.propagation.optimised.beta import Dual
from milpverify.propagation.optimised.halfspaces import HalfspaceForms
from milpverify.relaxations.branching_points import branching_points
from milpverify.result import Verdict
from milpverify.search.neuron_split.bounder import NeuronTuning
from milpverify.search.neuron_split.branching import Brancher, BranchingTuning, children, ensure_forms, narrowed, reset_slopes
from milpverify.search.neuron_split.branching.bbps import gains
from milpverify.search.neuron_split.branching.candidates import Candidates, Consumers, looseness, splittable
from milpverify.search.neuron_split.branching.first_order import pointwise
from milpverify.search.neuron_split.branching.heuristic import heuristic_of
from milpverify.search.neuron_split.branching.reset_slopes import relaxed_anew
from milpverify.search.neuron_split.space import NeuronSpace
from milpverify.search.neuron_split.split_points import Points
from milpverify.search.neuron_split.subproblems import Subproblems
from milpverify.spec import Box, Disjunct, Problem, Rows

BRANCHINGS = tuple(b for b in Branching if b is not Branching.NONE)
SMOOTH = {
    "products": lambda: product_network(1),
    "attention": lambda: attention_network(0, sharp=2.0),
    "cells": lambda: recurrent_network(0),
}

WIDE = {("relu", 1, 1.4): Verdict.VERIFIED, ("relu", 0, 1.0): Verdict.FALSIFIED, ("tanh", 0, 0.7): Verdict.VERIFIED}


def problem_of(graph: Graph, by: float, size: float = 0.4) -> Problem:
    """y_0 <= threshold, with a threshold below what a sample attains by a share of its range."""
    nx = graph.nodes[0].size
    box = Box(np.full(nx, -size), np.full(nx, size))
    points = 2 * size * torch.rand(4096, nx, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - size
    values = evaluate(graph, points)[:, 0]
    threshold = float(values.min() - by * (values.max() - values.min()))
    row = [1.0] + [0.0] * (graph.nodes[graph.output].size - 1)
    return Problem(graph, (Disjunct(box, Rows.on_outputs([row], [threshold], nx), Rows.none(nx, len(row))),))


def space_of(problem: Problem, options: SearchOptions = PLAIN) -> NeuronSpace:
    return neurons_of(context_of(problem, options=options))[0]


@pytest.mark.parametrize("name", SMOOTH)
def test_scores_are_near_what_the_children_gain(name: str) -> None:
    """The split that either score likes best gains at least a quarter of what the best one gains."""
    space = space_of(problem_of(SMOOTH[name](), 0.05))
    bounder = space.bounder
    of, every = bounder.relaxations, Consumers(bounder.relaxations)
    with torch.no_grad():
        root, domain, found = bounder.bound(bounder.first(), 40)
        y_rows, _, x_rows = bounder.rows_of(root.disjunct)
        primal = of.primal(domain, y_rows, Dual(root.slopes, root.beta), x_rows)
        column = splittable(of, bounder.home, domain)[0].nonzero().T
        candidates = Candidates.of(of, bounder.points, domain, column, torch.ones_like(column, dtype=torch.bool))
        both = children(bounder, root.take(torch.zeros(column.shape[1], dtype=torch.long)), column[0])
        actual = (bounder.bound(both, 60)[0].bound - root.bound).reshape(2, -1)
        forms = HalfspaceForms(of)
        ensure_forms(bounder, forms, root)
        by_bbps = gains(every, forms, candidates, primal, found)[:, 0, :, 0]
        by_point = pointwise(every, candidates, primal, attained=True)[:, 0, :, 0]
    assert column.shape[1] > 4 and float(actual.max()) > 0
    for scores in (by_bbps, by_point):
        assert bool(torch.isfinite(scores).all())
        chosen = scores.clamp(min=0).amin(0).argmax()
        assert float(actual.amin(0)[chosen]) >= 0.25 * float(actual.amin(0).max())
    assert float(by_bbps.max()) > 0


def test_a_split_relaxes_anew_what_reads_it_and_nothing_else() -> None:
    space = space_of(problem_of(attention_network(0), 0.05))
    of = space.bounder.relaxations
    table = Consumers(of).table
    for i, o in of.opened.items():
        wanted = {(int(of.split_for[of_input]), k) for c in o.columns for k, of_input in enumerate(torch.arange(of.count)[c])}
        entries, start, count = table[i]
        found = {(v, int(e)) for v in range(of.count) for e in entries[start[v] : start[v] + count[v]]}
        assert found == wanted


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("branching", BRANCHINGS, ids=lambda b: b.value)
def test_every_heuristic_proves_no_more_than_is_true_and_repeats(name: str, branching: Branching) -> None:
    problem = problem_of(SMOOTH[name](), 0.1, 0.3)
    disjunct = problem.disjuncts[0]
    points = 0.6 * torch.rand(4096, problem.graph.nodes[0].size, generator=torch.Generator().manual_seed(1), dtype=torch.float64) - 0.3
    least = float(evaluate(problem.graph, points)[:, 0].min()) - float(disjunct.unsafe.rhs[0])
    found = []
    for where in (*SplitPoints, SplitPoints.MIDPOINT):
        options = replace(PLAIN, branching=branching, points=where, deterministic=True)
        space, tree = neurons_of(context_of(problem, options=options), NeuronTuning(iterations=4))
        root, outcome = grown(tree, space, 0).lower_bound, grown(tree, space, 40)
        assert root <= outcome.lower_bound <= least
        found.append((outcome.closed, outcome.lower_bound, tree.counts.bounded))
    assert found[-1] == found[-2]
    assert root > 0 or not heuristic_of(branching).needs_bounds or max(bound for _, bound, _ in found) > root


@pytest.mark.parametrize("branching", BRANCHINGS, ids=lambda b: b.value)
@pytest.mark.parametrize(("name", "seed", "by"), WIDE)
def test_every_heuristic_gives_the_same_verdict(name: str, seed: int, by: float, branching: Branching) -> None:
    options = SearchOptions(branching=branching, oracle=False, refining=False, deterministic=True)
    result = verify(sampled_problem(name, seed, by), 60, options=Options(attack=False, search=options))
    assert result.verdict is WIDE[name, seed, by]
    assert result.ledger["neuron-split bounds"]["bounded"] > 2  # neurons were split


def test_the_ranking_is_a_choice_of_open_entries_by_every_heuristic() -> None:
    space = space_of(problem_of(attention_network(0, sharp=2.0), 0.05))
    bounder = space.bounder
    with torch.no_grad():
        root, domain, found = bounder.bound(bounder.first(), 20)
        some = root.take(torch.zeros(3, dtype=torch.long))
        domain = bounder.domain_of(some)
        found = found.map(lambda t: t.expand(3, *t.shape[1:]))
        still = splittable(bounder.relaxations, bounder.home, domain)
        for heuristic in BRANCHINGS:
            best = Brancher(bounder, heuristic, HalfspaceForms(bounder.relaxations), seed=3).rank(some, domain, found)
            again = Brancher(bounder, heuristic, HalfspaceForms(bounder.relaxations), seed=3).rank(some, domain, found)
            assert torch.equal(best, again) and best.shape == (3, bounder.candidates)
            assert bool(still.gather(1, best).all())
            assert heuristic is Branching.RANDOM or torch.equal(best[0], best[2])
        primal = bounder.relaxations.primal(domain, *_rows(space, some))
        assert bool((looseness(bounder.relaxations, bounder.home, domain, primal) >= 0).all())


def test_no_two_heuristics_rank_alike() -> None:
    """One whose score was forgotten would have another's."""
    problem = problem_of(SMOOTH["cells"](), 0.05, 0.6)
    bounder = neurons_of(context_of(problem, options=replace(PLAIN, filtering_smooth=True)), NeuronTuning(candidates=8))[0].bounder
    with torch.no_grad():
        root, domain, found = bounder.bound(bounder.first(), 20)
        ranks = {b: Brancher(bounder, b, HalfspaceForms(bounder.relaxations)).rank(root, domain, found)[0].tolist() for b in BRANCHINGS}
    assert len({tuple(rank) for rank in ranks.values()}) == len(BRANCHINGS), ranks


def _rows(space: NeuronSpace, subs: Subproblems) -> tuple[torch.Tensor, Dual, torch.Tensor | None]:
    y_rows, _, x_rows = space.bounder.rows_of(subs.disjunct)
    return y_rows, Dual(subs.slopes, subs.beta), x_rows


@pytest.mark.parametrize("name", SMOOTH)
def test_children_relax_anew_what_reads_the_split_and_keep_other_lines(name: str) -> None:
    space = space_of(problem_of(SMOOTH[name](), 0.05))
    bounder = space.bounder
    of = bounder.relaxations
    with torch.no_grad():
        root, domain, _ = bounder.bound(bounder.first(), 20)
        column = splittable(of, bounder.home, domain)[0].nonzero().flatten()
        both = reset_slopes(bounder, children(bounder, root.take(torch.zeros(len(column), dtype=torch.long)), column))
        halves = bounder.domain_of(both)
        seen = 0
        for o in of.opened.values():
            low, high = (tuple(side[:, c] for c in o.columns) for side in (halves.low, halves.high))
            reads = of.split_for[o.columns[0]].unsqueeze(0) == torch.cat([column, column]).unsqueeze(1)
            reads = reads & math.isinf(o.rule.span[1])
            for which, part in enumerate((o.lower, o.upper)):
                if part is not None and len(o.index):
                    fresh = o.rule.parameters(low, high, which, o.rule.default_slopes(low, high)[which]).to(both.slopes.dtype)
                    wanted = torch.where(reads.unsqueeze(1), fresh.unsqueeze(1), root.slopes[:, :, part])
                    assert torch.equal(both.slopes[:, :, part], wanted)
                    seen += int(reads.sum())
    assert seen > 0 or name == "products"


def test_what_clipping_narrows_is_relaxed_anew() -> None:
    space = space_of(problem_of(attention_network(0), 0.05, 0.3))
    bounder = space.bounder
    of = bounder.relaxations
    with torch.no_grad():
        root, domain, _ = bounder.bound(bounder.first(), 20)
        width = domain.high - domain.low
        low = domain.low + torch.where(torch.arange(of.count) % 3 == 0, 0.5 * width, 0.02 * width)
        now = replace(domain, low=low)
        wide = narrowed(bounder, root, domain, now, BranchingTuning())
        closed = narrowed(bounder, replace(root, bound=torch.ones_like(root.bound)), domain, now, BranchingTuning())
        fresh = relaxed_anew(bounder, wide, now, wide.narrower)
    assert torch.equal(wide.slopes, root.slopes)
    assert not bool(closed.narrower.any())
    moved = (fresh.slopes != root.slopes)[0, 0]
    may = torch.zeros_like(moved)
    for o in of.opened.values():
        for which, part in enumerate((o.lower, o.upper)):
            if part is not None and math.isinf(o.rule.span[1]):
                here = o.columns[0]
                may[part] = torch.arange(of.count)[here] % 3 == 0
                ends = (now.low[:, here],), (now.high[:, here],)
                made = o.rule.parameters(*ends, which, o.rule.default_slopes(*ends)[which]).to(fresh.slopes.dtype)
                assert torch.equal(fresh.slopes[0, 0, part][may[part]], made[0][may[part]])
    assert bool(moved.any()) and not bool((moved & ~may).any())


def test_fresh_lines_are_worth_more_than_those_of_the_parent() -> None:
    """Summed over all splits, children gain more at once than with the parent's lines."""
    space = space_of(problem_of(attention_network(0), 0.05, 0.3))
    bounder = space.bounder
    with torch.no_grad():
        root, domain, _ = bounder.bound(bounder.first(), 40)
        column = splittable(bounder.relaxations, bounder.home, domain)[0].nonzero().flatten()
        both = children(bounder, root.take(torch.zeros(len(column), dtype=torch.long)), column)
        gained = [(bounder.estimate(some) - root.bound).clamp(min=0.0).sum() for some in (reset_slopes(bounder, both), both)]
    assert float(gained[0]) > float(gained[1])


def test_lines_that_were_fitted_to_each_other_are_kept_where_fresh_ones_are_worth_less() -> None:
    builder = Builder(80)
    z = builder.matmul(builder.nodes[0], np.full((80, 1), 1.0 / 80))
    y = builder.sum([builder.function("exp", z), builder.function("exp", builder.scale(z, -1.0))])
    graph, box = builder.graph([y], (), ()), Box(np.full(80, -1.5), np.full(80, 1.0))
    problem = Problem(graph, (Disjunct(box, Rows.on_outputs([[1.0]], [2.0], 80), Rows.none(80, 1)),))
    space, tree = neurons_of(context_of(problem, options=PLAIN), NeuronTuning(iterations=2))
    bounder = space.bounder
    with torch.no_grad():
        root, _, _ = bounder.bound(bounder.first(), 200)  # the tangents of both at 0
        assert float(root.bound) > -1e-3
        both = children(bounder, root, torch.tensor([0]))
        both = replace(both, bound=torch.full_like(both.bound, -torch.inf))
        fresh, _, _ = bounder.bound(reset_slopes(bounder, both), 2)
        assert float(fresh.bound.amin()) < -0.01
        kept, found = space.bound(tree, replace(both, bound=root.bound.expand(2)))
    assert bool((kept.bound >= root.bound).all())
    assert float((found.lower - 2.0).amin()) > -1e-3


def test_points_go_by_everything_that_reads_a_variable() -> None:
    tanh = catalogue()["tanh"].bind()
    low, high = torch.tensor([-0.5, -0.5], dtype=torch.float64), torch.tensor([4.0, 6.0], dtype=torch.float64)
    alone = branching_points([tanh], low, high)
    both = branching_points([tanh], low, high, torch.full_like(low, 0.5))
    middle = branching_points([], low, high, torch.ones_like(low))
    assert torch.equal(middle, 0.5 * (low + high))
    assert bool(((both - middle).abs() < (alone - middle).abs()).all())
    assert torch.allclose(branching_points([tanh], low, high, torch.zeros_like(low)), alone)


def test_products_are_split_in_the_middle_and_breakpoints_where_they_are() -> None:
    of = space_of(problem_of(recurrent_network(0), 0.05)).bounder.relaxations
    column = torch.arange(of.count)
    low, high = torch.full((of.count,), -1.0, dtype=torch.float64), torch.full((of.count,), 3.0, dtype=torch.float64)
    optimised, middle = (Points(of, optimised=way)(column, low, high) for way in (True, False))
    assert torch.equal(middle, torch.ones_like(middle))
    assert bool(((optimised > low) & (optimised < high)).all()) and not torch.equal(optimised, middle)
    graph, disjunct = random_problem(0, ("relu",))
    kinked = space_of(Problem(graph, (disjunct,))).bounder.relaxations
    column = torch.arange(kinked.count)
    low, high = (torch.full((kinked.count,), end, dtype=torch.float64) for end in (-1.0, 3.0))
    assert torch.equal(Points(kinked)(column, low, high), torch.zeros_like(low))


def test_unknown_names_are_errors() -> None:
    with pytest.raises(ValueError, match="branching"):
        SearchOptions(branching="best")
    with pytest.raises(ValueError, match="points"):
        SearchOptions(points="best")


def test_smooth_networks_are_filtered_where_that_is_asked_for() -> None:
    problem = problem_of(product_network(1), 0.3)
    options = replace(PLAIN, branching="bbps")
    assert space_of(problem, options).bounder.candidates == 1
    filtered, tree = neurons_of(
        context_of(problem, options=replace(options, filtering_smooth=True)), NeuronTuning(4, 2, root_iterations=2, batch=4)
    )
    assert filtered.bounder.candidates == 4
    assert space_of(problem, replace(options, filtering_smooth=True, filtering=False)).bounder.candidates == 1
    grown(tree, filtered, 30)
    assert tree.counts.bounded >= 30 or not len(tree.frontier)


def test_nothing_is_searched_where_nothing_is_to_be_split() -> None:
    problem = problem_of(attention_network(0, sharp=2.0), 0.01, 0.4)
    result = verify(problem, 60, options=Options(attack=False, search=replace(SearchOptions(branching="none"), refining=False)))
    assert result.verdict is Verdict.UNKNOWN and {p.name for p in result.phases} == {"presolve"}
    assert result.lower_bound > -float("inf")


def test_a_deadline_goes_by_its_clock_and_so_do_its_parts() -> None:
    now = 5.0
    deadline = Deadline(10.0, lambda: now)
    inner = deadline.within(4.0)
    now = 8.0
    assert (deadline.elapsed(), deadline.remaining(), inner.remaining()) == (3.0, 7.0, 1.0)
    now = 9.5
    assert inner.expired() and not deadline.expired()
    assert inner.within(1.0).expired()
