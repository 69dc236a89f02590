"""Branching points: the summed area of the children, tables against the search on the spot, what leaves the tables."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from milpverify.functions.catalogue import catalogue, data_folder
from milpverify.functions.function import Function
from milpverify.relaxations import branching_points as module
from milpverify.relaxations.branching_points import FILE, area, best_share, branching_points, make_table, tabulated

SMOOTH = [e.trial() for e in catalogue().values() if e.domain]
TABLES = [f for f in SMOOTH if tabulated(f)]


def intervals(function: Function, count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Within the reach of the tables and within the domain."""
    rng = torch.Generator().manual_seed(seed)
    middle = 14.0 * torch.rand(count, generator=rng, dtype=torch.float64) - 7.0
    half = 0.5 * 2.0 ** (6.0 * torch.rand(count, generator=rng, dtype=torch.float64) - 2.0)
    if not tabulated(function):
        middle, half = 0.5 + middle.abs(), torch.minimum(half, 0.4 * middle.abs())
    return middle - half, middle + half


def loss(functions: list[Function], lower: torch.Tensor, upper: torch.Tensor, point: torch.Tensor) -> torch.Tensor:
    return torch.stack([area(f, lower, point) + area(f, point, upper) for f in functions]).sum(0)


def test_every_table_is_there_and_belongs_to_a_function() -> None:
    with np.load(data_folder() / FILE) as tables:
        assert sorted(tables) == sorted(f.name for f in TABLES)


@pytest.mark.parametrize("function", TABLES, ids=str)
def test_tables_are_as_good_as_the_search(function: Function) -> None:
    lower, upper = intervals(function, 300)
    found = loss([function], lower, upper, branching_points([function], lower, upper))
    share = best_share(lambda a, b: area(function, a, b), lower, upper)
    best = loss([function], lower, upper, lower + share * (upper - lower))
    assert torch.quantile(found / best.clamp(min=1e-9), 0.95) <= 1.02
    middle = loss([function], lower, upper, 0.5 * (lower + upper))
    assert found.sum() <= middle.sum() * (1 + 1e-9)


@pytest.mark.parametrize("name", ["tanh", "sin", "gelu"])
def test_optimised_points_beat_midpoints(name: str) -> None:
    function = catalogue()[name].bind()
    lower, upper = intervals(function, 300)
    found = loss([function], lower, upper, branching_points([function], lower, upper))
    ratio = found / loss([function], lower, upper, 0.5 * (lower + upper))
    assert ratio.mean() <= 0.9
    assert ratio.amax() <= 1.05


@pytest.mark.parametrize("function", SMOOTH, ids=str)
def test_points_lie_inside_and_beat_a_dense_grid_nearly(function: Function) -> None:
    lower, upper = intervals(function, 40, seed=1)
    scale = 1.0 if function.domain[0][0] > -math.inf or function.poles else 5.0  # leaves the tables
    lower, upper = scale * lower, scale * upper
    point = branching_points([function], lower, upper)
    assert ((point > lower) & (point < upper)).all()
    grid = torch.linspace(0.01, 0.99, 99, dtype=torch.float64).unsqueeze(1)
    best = loss([function], lower, upper, lower + grid * (upper - lower)).nan_to_num(math.inf).amin(0)
    found = loss([function], lower, upper, point)
    sure = torch.isfinite(best) & torch.isfinite(found)
    assert torch.quantile((found / best.clamp(min=1e-9))[sure], 0.9) <= 1.1


def test_the_search_knows_a_parabola_and_where_nothing_is_gained() -> None:
    square, line = catalogue()["square"].bind(), torch.zeros
    lower, upper = torch.tensor([-3.0, 1.0], dtype=torch.float64), torch.tensor([5.0, 1.5], dtype=torch.float64)
    torch.testing.assert_close(branching_points([square], lower, upper), 0.5 * (lower + upper), atol=0.05, rtol=0.0)
    assert best_share(lambda a, b: line(torch.broadcast_shapes(a.shape, b.shape), dtype=a.dtype), lower, upper).tolist() == [0.5, 0.5]


def test_several_readers_share_a_point() -> None:
    both = [catalogue()["tanh"].bind(), catalogue()["exp"].bind()]
    lower, upper = intervals(both[0], 30)
    point = branching_points(both, lower, upper)
    grid = torch.linspace(0.02, 0.98, 49, dtype=torch.float64).unsqueeze(1)
    best = loss(both, lower, upper, lower + grid * (upper - lower)).amin(0)
    assert (loss(both, lower, upper, point) <= 1.05 * best).all()


def test_degenerate_and_infinite_intervals() -> None:
    for function in SMOOTH:
        lower, upper = (
            torch.tensor([1.0, 1.0, -math.inf], dtype=torch.float64),
            torch.tensor([1.0, 1.0 + 2.0**-52, math.inf], dtype=torch.float64),
        )
        point = branching_points([function], lower, upper)
        assert ((point >= lower) & (point <= upper)).all()
        assert torch.isfinite(point).all()


def test_piecewise_linear_functions_are_split_at_breakpoints() -> None:
    relu = catalogue()["relu"].bind()
    lower, upper = torch.tensor([-1.0], dtype=torch.float64), torch.tensor([5.0], dtype=torch.float64)
    assert branching_points([relu], lower, upper).tolist() == [0.0]


def test_tables_can_be_made_again() -> None:
    function = catalogue()["sigmoid"].bind()
    made = make_table(function, 16)
    with np.load(data_folder() / FILE) as tables:
        known = tables["sigmoid"][::16]
    assert made.shape == known.shape
    assert np.mean(np.abs(made.astype(int) - known.astype(int)) <= 2) >= 0.95


def test_only_missing_tables_are_made_and_those_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others stay as they are: to make one anew may move its points where two are as good."""
    with np.load(data_folder() / FILE) as tables:
        known = dict(tables)
    path, made = tmp_path / FILE, list[str]()
    np.savez(path, **{name: table for name, table in known.items() if name != "tanh"}, gone=known["tanh"])
    monkeypatch.setattr(module, "make_table", lambda function: made.append(function.name) or known[function.name])
    module.main(["erf"], path)
    assert made == ["erf", "tanh"]
    with np.load(path) as tables:
        assert {name: table.tobytes() for name, table in tables.items()} == {name: table.tobytes() for name, table in known.items()}
