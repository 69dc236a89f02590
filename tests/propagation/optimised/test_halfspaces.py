"""Bounds where a half-space of the inputs holds contain every point of it, at any split point and in both precisions."""

from __future__ import annotations

import pytest
import torch
from points import sampled
from random_nets import CONTINUOUS, random_problem, relu_network

from milpverify.graph import Graph, evaluate_all
from milpverify.propagation.crown import crown
from milpverify.propagation.optimised.beta import Relaxations
from milpverify.propagation.optimised.halfspaces import Depths, HalfSpace, HalfspaceForms, HalfspaceTuning
from milpverify.spec import Box

DTYPES = [torch.float32, torch.float64]


def forms_of(graph: Graph, box: Box, dtype: torch.dtype, most: int = 1000) -> HalfspaceForms:
    lower, upper = (torch.tensor(side)[None] for side in (box.lower, box.upper))
    state, _ = crown(graph, lower, upper, dtype)
    forms = HalfspaceForms(Relaxations(graph.to(dtype, graph.device), state), HalfspaceTuning(entries=most))
    every = torch.arange(forms.count).unsqueeze(0)
    forms.make(torch.tensor([0]), every)
    return forms


def entries(forms: HalfspaceForms, values: dict[int, torch.Tensor]) -> torch.Tensor:
    """The values of all open entries, (points, T)."""
    of = forms.of
    return torch.cat([values[z].flatten(1)[:, of.entries[z]] for z in of.slots], 1)


def hold(low: torch.Tensor, high: torch.Tensor, values: torch.Tensor) -> bool:
    slack = 1e-12 * (1 + values.abs())
    return bool((values >= low - slack).all()) and bool((values <= high + slack).all())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("seed", range(12))
def test_split_constraints_at_any_point_bound_what_satisfies_them(seed: int, dtype: torch.dtype) -> None:
    graph, disjunct = random_problem(seed, CONTINUOUS)
    forms = forms_of(graph, disjunct.box, dtype)
    of = forms.of
    if not of.count:
        pytest.skip("everything is stable")
    points = sampled(disjunct.box, 4000, seed)
    values = entries(forms, evaluate_all(graph, points))
    column = torch.arange(of.count).repeat_interleave(10)
    box = torch.zeros_like(column)
    g = torch.Generator().manual_seed(seed)
    low, high = of.own(of.low, box), of.own(of.high, box)
    share = torch.rand(len(column), generator=g, dtype=torch.float64) * 1.1 - 0.05  # some beyond the bounds
    at = low.gather(1, column[:, None])[:, 0] + share * (high - low).gather(1, column[:, None])[:, 0]
    side = torch.where(torch.arange(len(column)) % 2 == 0, 1.0, -1.0)
    half, known = forms.split(box, column, side, at)
    assert bool(known.all())
    below, above = forms.raised(box, half, low, high, Depths())
    assert bool((below >= low).all()) and bool((above <= high).all())
    for n in range(len(column)):
        inside = side[n] * (values[:, column[n]] - at[n]) >= 0
        assert hold(below[n], above[n], values[inside])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_half_spaces_far_from_the_centre_tighten_nearly_as_far_as_one_multiplier_can(seed: int, dtype: torch.dtype) -> None:
    graph, box = relu_network([16, 40, 40, 3], seed), Box([-1.0] * 16, [1.0] * 16)
    forms = forms_of(graph, box, dtype)
    of, points = forms.of, sampled(box, 20000, seed)
    values = entries(forms, evaluate_all(graph, points))
    g = torch.Generator().manual_seed(seed)
    row = torch.randn(6, 16, generator=g, dtype=torch.float64).to(dtype).double()
    # Unit-width coordinates from the end that minimises the row: of 2 |row|_1 that it moves over the box, a share is left.
    share = torch.tensor([0.02, 0.05, 0.1, 0.2, 0.3, 0.45])
    least = -share * 2 * row.abs().sum(1)
    which = torch.zeros(6, dtype=torch.long)
    half = forms.below(which, row.to(dtype), least)
    low, high = of.own(of.low, which), of.own(of.high, which)
    below, above = forms.raised(which, half, low, high, Depths())
    for n in range(6):
        inside = points @ row[n] + row[n].abs().sum() + least[n] <= 0
        assert hold(below[n], above[n], values[inside])
    gained = ((below - low) + (high - above)).sum(1) / (high - low).sum(1)
    assert float(gained[0]) > 0.3 and bool((gained.diff() <= 1e-9).all())
    # One multiplier for every entry, by trying many.
    matrix = forms.matrix[0].double()
    pull = row * 2.0
    for n in range(6):
        against = (matrix * -pull[n].sign()[:, None]).clamp(min=0.0)
        best = forms.least[0].clone()
        for multiplier in torch.logspace(-3, 1.5, 4000, dtype=torch.float64):
            found = forms.least[0] + torch.minimum(against, multiplier * pull[n].abs()[:, None]).sum(0) + multiplier * least[n]
            best = torch.maximum(best, found)
        most_low, most_high = torch.maximum(low[n], best[: of.count]), torch.minimum(high[n], -best[of.count :])
        assert bool((below[n] <= most_low + 1e-3 * (high - low)[n]).all())
        most = ((most_low - low[n]) + (high[n] - most_high)).sum() / (high - low)[n].sum()
        assert float(gained[n]) > 0.85 * float(most) - 0.01


def test_what_is_not_known_changes_nothing() -> None:
    graph, box = relu_network([8, 20, 20, 2], 0), Box([-1.0] * 8, [1.0] * 8)
    forms = forms_of(graph, box, torch.float32)
    of, which = forms.of, torch.zeros(5, dtype=torch.long)
    low, high = of.own(of.low, which), of.own(of.high, which)
    pull = torch.randn(5, 8)
    least = torch.tensor([-torch.inf, torch.nan, 1.0, -1e-3, -1e-3], dtype=torch.float64)  # 1.0: nothing is inside, which is not said here
    pull[3, 2], pull[4] = torch.nan, 0.0
    below, above = forms.raised(which, HalfSpace(pull, least), low, high, Depths())
    assert torch.equal(below, low) and torch.equal(above, high)


def test_few_forms_tighten_their_entries_alone_and_no_forms_none() -> None:
    graph, box = relu_network([8, 20, 20, 2], 0), Box([-1.0] * 8, [1.0] * 8)
    every, few, none = (forms_of(graph, box, torch.float64, most) for most in (1000, 7, 0))
    of, which = every.of, torch.zeros(1, dtype=torch.long)
    low, high = of.own(of.low, which), of.own(of.high, which)
    row = torch.randn(1, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    least = -0.1 * row.abs().sum(1)
    all_low, all_high = every.raised(which, every.below(which, row, least), low, high, Depths())
    some_low, some_high = few.raised(which, few.below(which, row, least), low, high, Depths())
    assert torch.allclose(some_low[:, :7], all_low[:, :7]) and torch.allclose(some_high[:, :7], all_high[:, :7])
    assert torch.equal(some_low[:, 7:], low[:, 7:]) and torch.equal(some_high[:, 7:], high[:, 7:])
    assert bool((all_low[:, 7:] > low[:, 7:]).any())
    same_low, same_high = none.raised(which, none.below(which, row, least), low, high, Depths())
    assert torch.equal(same_low, low) and torch.equal(same_high, high)
    assert not bool(none.split(which, which, torch.ones(1), torch.zeros(1, dtype=torch.float64))[1].any())
