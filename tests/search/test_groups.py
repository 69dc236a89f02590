"""What closes a disjunct is the same for one bound and for a batch of them."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from milpverify.search.groups import Group
from milpverify.spec import Box, Disjunct, Rows, closes

BOX = Box(np.zeros(2), np.ones(2))
TINY = 5e-324


def disjunct(*strict: bool) -> Disjunct:
    """A disjunct with one unsafe row each."""
    count = len(strict)
    return Disjunct(BOX, Rows(np.zeros((count, 2)), np.ones((count, 1)), np.zeros(count), np.array(strict, dtype=bool)), Rows.none(2, 1))


ALL, SOME, NONE, BARE = disjunct(True, True), disjunct(True, False), disjunct(False), disjunct()
POSITIVE, ZERO, NOTHING = (math.inf, 1.0, TINY), (0.0, -0.0), (-TINY, -1.0, -math.inf, math.nan)


def proving(made: Disjunct) -> list[tuple[float, bool]]:
    """Bounds of the margin, and whether each proves a disjunct; without rows nothing is strict."""
    return [(b, b in POSITIVE or (made is ALL and b in ZERO)) for b in (*POSITIVE, *ZERO, *NOTHING)]


def test_a_disjunct_is_strict_where_all_of_its_rows_are_and_there_are_some() -> None:
    assert [d.strict for d in (ALL, SOME, NONE, BARE)] == [True, False, False, False]
    assert Group.of(range(4), (ALL, SOME, NONE, BARE), torch.device("cpu")).strict.tolist() == [True, False, False, False]


@pytest.mark.parametrize("made", [ALL, SOME, NONE, BARE], ids=["strict", "partly strict", "not strict", "no rows"])
def test_what_closes_a_disjunct(made: Disjunct) -> None:
    group = Group.of([0], [made], torch.device("cpu"))
    for bound, proved in proving(made):
        assert made.closes(bound) is proved and closes(bound, made.strict) is proved
        assert made.closes(np.float64(bound)) is proved
        assert group.closed(torch.tensor([[bound]], dtype=torch.float64)).tolist() == [[proved]]
        assert group.closes(torch.tensor([bound], dtype=torch.float64), torch.tensor([0])).tolist() == [proved]


def test_bounds_close_the_disjuncts_at_their_places_alone() -> None:
    disjuncts = (NONE, ALL, BARE, SOME)
    group = Group.of(range(4), disjuncts, torch.device("cpu"))
    bounds = [*POSITIVE, *ZERO, *NOTHING]
    pairs = list(itertools.product(range(4), bounds))
    place = torch.tensor([k for k, _ in pairs])
    found = group.closes(torch.tensor([b for _, b in pairs], dtype=torch.float64), place)
    assert found.tolist() == [disjuncts[k].closes(b) for k, b in pairs]
    margins = torch.tensor(bounds, dtype=torch.float64).unsqueeze(1).expand(-1, 4)
    assert group.closed(margins).tolist() == [[d.closes(b) for d in disjuncts] for b in bounds]
