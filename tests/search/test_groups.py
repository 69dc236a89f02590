"""What closes a disjunct is the same for one bound and for a batch of them."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from milpverify.frontends.vnnlib.reader import parse_vnnlib
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


def test_rows_that_disjuncts_share_are_there_once() -> None:
    text = (
        "".join(f"(declare-const {v} Real)\n" for v in ("X_0", "X_1", "Y_0", "Y_1"))
        + "(assert (and (>= X_0 0) (<= X_0 1) (>= X_1 0) (<= X_1 1)))"
    )
    text += "(assert (or (<= Y_0 1) (< Y_1 2)))(assert (or (< (+ Y_0 Y_1) 3) (<= (- Y_0 Y_1) 4) (<= (+ X_0 Y_1) 5)))"
    disjuncts = parse_vnnlib(text, 2, 2)
    apart = [replace(d, unsafe=replace(d.unsafe, rhs=d.unsafe.rhs.copy())) for d in disjuncts]
    shared, separate = (Group.of(range(6), part, torch.device("cpu")) for part in (disjuncts, apart))
    assert (len(shared.rhs), len(separate.rhs)) == (5, 12)
    assert shared.strict.tolist() == separate.strict.tolist() == [d.strict for d in disjuncts]
    generator = torch.Generator().manual_seed(0)
    y, x = (torch.randn(7, 2, dtype=torch.float64, generator=generator) for _ in range(2))

    def judged(group: Group) -> tuple[Tensor, Tensor]:
        """Margins, and for every disjunct its residuals, in its order; a row is open where a disjunct is that has it."""
        assert group.x_rows is not None
        assert group.places is not None
        lower = y @ group.y_rows.T + x @ group.x_rows.T
        margins = group.margins(lower)
        for row, is_open in enumerate(group.open_rows(margins).T):
            having = (group.places == row).any(1)
            assert torch.equal(is_open, ~group.closed(margins)[:, having].all(1))
        return margins, (lower - group.rhs)[:, group.places]

    for keep in (range(6), [0, 2, 5], [4]):
        for mine, other in zip(judged(shared.select(list(keep))), judged(separate.select(list(keep))), strict=True):
            assert torch.equal(mine, other)
        assert len(shared.select(list(keep)).rhs) == int(shared.rows_of(list(keep)).sum())


def test_what_is_made_of_shared_rows_is_bounded_by_itself() -> None:
    # Were the table asked, a shifted question would be answered with the old right-hand sides.
    table = Rows.on_outputs([[1.0, 0.0], [0.0, 1.0]], [1.0, 2.0], 1)
    parts = Rows.parts(table, np.array([0, 1, 1]), [2, 3])
    box = Box([0.0], [1.0])
    disjuncts = [Disjunct(box, replace(rows, rhs=rows.rhs + 10), Rows.none(1, 2)) for rows in parts]
    assert Group.of(range(2), disjuncts, torch.device("cpu")).rhs.tolist() == [11.0, 12.0, 12.0]
    assert Group.of(range(2), [Disjunct(box, rows, Rows.none(1, 2)) for rows in parts], torch.device("cpu")).rhs.tolist() == [1.0, 2.0]
