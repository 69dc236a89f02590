"""Disjuncts that share a box, and how bounds of their rows become bounds of the margin."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from milpverify.arithmetic.interval import Interval, sub
from milpverify.spec import Rows, closes
from milpverify.tuning import Tuning

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from milpverify.spec import Box, Disjunct, Problem


@dataclass(frozen=True, eq=False)
class Group:
    """Disjuncts over one box, with all their unsafe rows stacked: x_rows x + y_rows y - rhs.

    `members` are their places in `Problem.disjuncts`. `y_rows` (S, ny), `x_rows` (S, nx) or None where no row mentions an
    input, `rhs` (S,); disjunct `disjunct[e]` of the group has the row `row[e]`, (E,) in the order of the disjuncts: a row that several
    have is there once, and bounded once. `strict` (D,) as `Disjunct.strict`. float64.
    """

    box: Box
    members: tuple[int, ...]
    disjuncts: tuple[Disjunct, ...]
    y_rows: Tensor
    x_rows: Tensor | None
    rhs: Tensor
    row: Tensor
    disjunct: Tensor
    strict: Tensor

    @staticmethod
    def of(members: Sequence[int], disjuncts: Sequence[Disjunct], device: torch.device) -> Group:
        """Stack the rows of disjuncts that share a box."""
        rows, place = _stacked([d.unsafe for d in disjuncts])
        counts = np.array([len(d.unsafe) for d in disjuncts])
        owner = np.repeat(np.arange(len(counts)), counts)
        weak = np.bincount(owner[~rows.strict[place]], minlength=len(counts))

        def tensor(array: NDArray[Any]) -> Tensor:
            return torch.tensor(array, device=device)

        return Group(
            disjuncts[0].box,
            tuple(members),
            tuple(disjuncts),
            tensor(rows.y_rows),
            tensor(rows.x_rows) if rows.mentions_x.any() else None,
            tensor(rows.rhs),
            tensor(place),
            tensor(owner),
            tensor((counts > 0) & (weak == 0)),
        )

    @cached_property
    def places(self) -> Tensor | None:
        """The rows of every disjunct, (D, R) for R rows at most, shorter lists padded with their first row; None if a disjunct has none."""
        counts = torch.bincount(self.disjunct, minlength=self.count)
        if not bool((counts > 0).all()):
            return None
        first = counts.cumsum(0) - counts
        step = torch.arange(int(counts.max()), device=counts.device).expand(self.count, -1)
        return self.row[first.unsqueeze(1) + torch.where(step < counts.unsqueeze(1), step, 0)]

    @cached_property
    def domains(self) -> tuple[Tensor, Tensor]:
        """The constraints between inputs of every disjunct, (D, q, nx) and (D, q); shorter lists padded with 0 <= inf."""
        most = max(len(d.domain) for d in self.disjuncts)
        device = self.rhs.device
        rows = torch.zeros(self.count, most, self.box.size, dtype=torch.float64, device=device)
        rhs = torch.full((self.count, most), torch.inf, dtype=torch.float64, device=device)
        for k, d in enumerate(self.disjuncts):
            rows[k, : len(d.domain)] = torch.tensor(d.domain.x_rows, device=device)
            rhs[k, : len(d.domain)] = torch.tensor(d.domain.rhs, device=device)
        return rows, rhs

    @property
    def count(self) -> int:
        """The number of disjuncts."""
        return len(self.disjuncts)

    def select(self, keep: Sequence[int]) -> Group:
        """The group with some of its disjuncts only, and their `rows_of`; `keep` ascends."""
        kept, rows = self._has(keep), self.rows_of(keep)
        return Group(
            self.box,
            tuple(self.members[k] for k in keep),
            tuple(self.disjuncts[k] for k in keep),
            self.y_rows[rows],
            None if self.x_rows is None else self.x_rows[rows],
            self.rhs[rows],
            (rows.cumsum(0) - 1)[self.row[kept[self.disjunct]]],
            (kept.cumsum(0) - 1)[self.disjunct[kept[self.disjunct]]],
            self.strict[kept],
        )

    def rows_of(self, keep: Sequence[int]) -> Tensor:
        """Which rows some disjuncts have, (S,) bool."""
        rows = torch.zeros_like(self.rhs, dtype=torch.bool)
        rows[self.row[self._has(keep)[self.disjunct]]] = True
        return rows

    def _has(self, keep: Sequence[int]) -> Tensor:
        chosen = torch.zeros_like(self.strict)
        chosen[list(keep)] = True
        return chosen

    def open_rows(self, margins: Tensor) -> Tensor:
        """Which rows belong to a disjunct that margins (batch, D) do not close, (batch, S) bool."""
        return self.most(~self.closed(margins)[:, self.disjunct])

    def most(self, values: Tensor) -> Tensor:
        """For every row the largest of some values that the disjuncts which have it give it, (batch, E) -> (batch, S)."""
        least = False if values.dtype == torch.bool else 0.0
        largest = values.new_full((values.shape[0], len(self.rhs)), least)
        return largest.scatter_reduce(1, self.row.expand_as(values), values, "amax")

    def margins(self, lower: Tensor) -> Tensor:
        """Proved lower bounds of the margins: bounds of the rows (batch, S) -> (batch, D) float64; -inf where there are no rows."""
        return self.largest(sub(Interval(lower, lower), Interval(self.rhs, self.rhs)).lower)

    def largest(self, residual: Tensor) -> Tensor:
        """The largest residual of every disjunct's rows, (batch, S) -> (batch, D); -inf where there are no rows."""
        margin = residual.new_full((residual.shape[0], self.count), -torch.inf)
        return margin.scatter_reduce(1, self.disjunct.expand(len(residual), -1), residual[:, self.row], "amax")

    def closed(self, margins: Tensor) -> Tensor:
        """Which margins prove their disjunct, (batch, D) bool."""
        return closes(margins, self.strict)

    def closes(self, bound: Tensor, disjunct: Tensor) -> Tensor:
        """Which lower bounds (n,) prove the disjuncts at the places given, (n,): (n,) bool."""
        return closes(bound, self.strict[disjunct])


class GroupTuning(Tuning):
    """When inputs are few, and how far the slopes of a root are optimised."""

    few_inputs: int = 8
    """With at most so many inputs that vary bisecting inputs mostly beats what takes long on a whole box."""
    slopes: int = 15
    """Steps of the optimiser of a root's slopes."""


def few_inputs(group: Group, tuning: GroupTuning) -> bool:
    """Whether the group's box varies in so few inputs that smaller boxes are a better investment than dear bounds of it."""
    return int((group.box.upper > group.box.lower).sum()) <= tuning.few_inputs


def groups(problem: Problem, device: torch.device | str = "cpu") -> list[Group]:
    """The disjuncts of a problem by the box they share."""
    shared: dict[int, list[int]] = {}
    for k, d in enumerate(problem.disjuncts):
        shared.setdefault(id(d.box), []).append(k)
    return [Group.of(members, [problem.disjuncts[k] for k in members], torch.device(device)) for members in shared.values()]


def _stacked(rows: Sequence[Rows]) -> tuple[Rows, NDArray[np.int64]]:
    """All rows, and where each is among them; those of one table are there once."""
    origins = [r.origin for r in rows if len(r)]
    first = origins[0] if origins else None
    if first is not None and all(origin is not None and origin[0] is first[0] for origin in origins):
        table = first[0]
        used, place = np.unique(np.concatenate([origin[1] for origin in origins if origin is not None]), return_inverse=True)
        return Rows(table.x_rows[used], table.y_rows[used], table.rhs[used], table.strict[used]), place.reshape(-1)
    mentions = any(r.mentions_x.any() for r in rows)
    x_rows = np.concatenate([r.x_rows for r in rows]) if mentions else np.broadcast_to(0.0, (sum(map(len, rows)), rows[0].x_rows.shape[1]))
    parts = (np.concatenate([getattr(r, name) for r in rows]) for name in ("y_rows", "rhs", "strict"))
    stacked = Rows(x_rows, *parts)
    return stacked, np.arange(len(stacked))
