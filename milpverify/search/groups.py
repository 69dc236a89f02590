"""Disjuncts that share a box, and how bounds of their rows become bounds of the margin."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from milpverify.arithmetic.rounding import down
from milpverify.spec import closes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from milpverify.spec import Box, Disjunct, Problem


@dataclass(frozen=True, eq=False)
class Group:
    """Disjuncts over one box, with all their unsafe rows stacked: x_rows x + y_rows y - rhs.

    `members` are their places in `Problem.disjuncts`. `y_rows` (S, ny), `x_rows` (S, nx) or None where no row mentions an
    input, `rhs` (S,), `disjunct` (S,) the place within the group of the disjunct that a row belongs to, `strict` (D,) as
    `Disjunct.strict`. float64.
    """

    box: Box
    members: tuple[int, ...]
    disjuncts: tuple[Disjunct, ...]
    y_rows: Tensor
    x_rows: Tensor | None
    rhs: Tensor
    disjunct: Tensor
    strict: Tensor

    @staticmethod
    def of(members: Sequence[int], disjuncts: Sequence[Disjunct], device: torch.device) -> Group:
        """Stack the rows of disjuncts that share a box."""
        rows = [d.unsafe for d in disjuncts]
        mentions = any(r.mentions_x.any() for r in rows)
        return Group(
            disjuncts[0].box,
            tuple(members),
            tuple(disjuncts),
            torch.cat([torch.tensor(r.y_rows) for r in rows]).to(device),
            torch.cat([torch.tensor(r.x_rows) for r in rows]).to(device) if mentions else None,
            torch.cat([torch.tensor(r.rhs) for r in rows]).to(device),
            torch.cat([torch.full((len(r),), k) for k, r in enumerate(rows)]).to(device),
            torch.tensor([d.strict for d in disjuncts], device=device),
        )

    @cached_property
    def places(self) -> Tensor | None:
        """The rows of every disjunct, (D, most rows), shorter lists padded with their first row; None if a disjunct has none."""
        rows = [(self.disjunct == d).nonzero(as_tuple=True)[0] for d in range(self.count)]
        most = max(len(r) for r in rows)
        return torch.stack([torch.cat([r, r[:1].expand(most - len(r))]) for r in rows]) if all(len(r) for r in rows) else None

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
        """The group with some of its disjuncts only."""
        return Group.of([self.members[k] for k in keep], [self.disjuncts[k] for k in keep], self.rhs.device)

    def margins(self, lower: Tensor) -> Tensor:
        """Proved lower bounds of the margins: bounds of the rows (batch, S) -> (batch, D) float64; -inf where there are no rows."""
        residual = down(lower - self.rhs)
        margin = residual.new_full((lower.shape[0], self.count), -torch.inf)
        return margin.scatter_reduce(1, self.disjunct.expand_as(residual), residual, "amax")

    def closed(self, margins: Tensor) -> Tensor:
        """Which margins prove their disjunct, (batch, D) bool."""
        return closes(margins, self.strict)

    def closes(self, bound: Tensor, disjunct: Tensor) -> Tensor:
        """Which lower bounds prove the disjuncts at the places given, (n,) bool."""
        return closes(bound, self.strict[disjunct])


FEW_INPUTS, MANY_INPUTS = 8, 64
"""With at most so many inputs that vary bisecting inputs beats splitting neurons, with more than so many it is hopeless."""


def few_inputs(group: Group) -> bool:
    """Whether the group's box varies in few enough inputs to bisect them and nothing else."""
    return _varying(group) <= FEW_INPUTS


def many_inputs(group: Group) -> bool:
    """Whether the group's box varies in too many inputs to bisect them."""
    return _varying(group) > MANY_INPUTS


def _varying(group: Group) -> int:
    return int((group.box.upper > group.box.lower).sum())


def groups(problem: Problem, device: torch.device | str = "cpu") -> list[Group]:
    """The disjuncts of a problem by the box they share."""
    shared: dict[int, list[int]] = {}
    for k, d in enumerate(problem.disjuncts):
        shared.setdefault(id(d.box), []).append(k)
    return [Group.of(members, [problem.disjuncts[k] for k in members], torch.device(device)) for members in shared.values()]
