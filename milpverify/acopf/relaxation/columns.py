"""Which operating points a question is about, and the columns of its relaxation."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from milpverify.acopf.case import Array, Case, Index


@dataclass(frozen=True, eq=False)
class Question:
    """Which operating points are meant: of a case, with these ranges of loads, up to a violation of `tolerance` p.u. (rad).

    Loads are the case's own times a factor where `growth` is a range of it, which is then a column, and the box of loads is not used.
    `priced`: whether costs are columns.
    """

    case: Case
    loads: tuple[Array, Array, Array, Array]  # pd from, to, qd from, to, (n,) p.u.
    growth: tuple[float, float] | None = None
    tolerance: float = 0.0
    priced: bool = False


@dataclass(frozen=True, eq=False)
class Pairs:
    """The pairs of buses that branches join, i < j, and where each branch belongs."""

    i: Index  # (P,)
    j: Index  # (P,)
    of_branch: Index  # (m,)
    sign: Index  # (m,) +1 where the branch goes from i to j
    cycles: tuple[tuple[tuple[int, int], ...], ...]
    """Of each pair that closes a cycle with a spanning tree, the pairs round it and their signs."""


class Columns:
    """Where every quantity has its column. What a question has no use for is empty."""

    def __init__(self, question: Question) -> None:
        case, self._count = question.case, 0
        self.pairs = pairs_of(case)
        n, generators, pairs = case.num_buses, len(case.generators), len(self.pairs.i)
        self.w, self.c, self.s, self.d = self._add(n), self._add(pairs), self._add(pairs), self._add(pairs)
        self.pg, self.qg = self._add(generators), self._add(generators)
        self.rated = np.flatnonzero(np.isfinite(case.branches.rate))
        low_p, high_p, low_q, high_q = question.loads
        fixed = question.growth is not None
        self.varying = tuple(np.flatnonzero((low != high) & (not fixed)) for low, high in ((low_p, high_p), (low_q, high_q)))
        self.loads = tuple(self._add(len(buses)) for buses in self.varying)
        self.growth = self._add(int(fixed))
        self.price = self._add(generators if question.priced else 0)
        self.total = self._add(int(question.priced))

    def _add(self, count: int) -> Index:
        first, self._count = self._count, self._count + count
        return np.arange(first, self._count)

    def __len__(self) -> int:
        return self._count


def pairs_of(case: Case) -> Pairs:
    """The pairs of a case, and a fundamental cycle for every pair outside a spanning tree of least depth."""
    import networkx as nx

    ends = np.sort(np.stack([case.branches.f, case.branches.t]), axis=0)
    pairs, of_branch = np.unique(ends, axis=1, return_inverse=True)
    i, j = pairs
    index = {(int(a), int(b)): p for p, (a, b) in enumerate(zip(i, j, strict=True))}
    graph = nx.Graph(list(index))
    graph.add_nodes_from(range(case.num_buses))
    tree = nx.bfs_tree(graph, case.reference).to_undirected()

    def step(a: int, b: int) -> tuple[int, int]:
        return (index[a, b], 1) if a < b else (index[b, a], -1)

    cycles = []
    for (a, b), p in index.items():
        if not tree.has_edge(a, b):
            path = nx.shortest_path(tree, b, a)
            cycles.append(((p, 1), *(step(x, y) for x, y in pairwise(path))))
    return Pairs(i, j, of_branch.reshape(-1), np.where(case.branches.f < case.branches.t, 1, -1), tuple(cycles))
