"""Linear programs for subproblems of smooth networks that bound propagation leaves nearly closed.

The optimiser's few iterations stop short of the best slopes and multipliers, which the linear relaxation of a subproblem has at once
(`linear_relaxation`). It takes as long as bounding several subproblems: it is worth it where it closes what would be split into more.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from milpverify.search.ledger import Part

if TYPE_CHECKING:
    from milpverify.config import Deadline
    from milpverify.search.neuron_split.bounder import Bounder
    from milpverify.search.neuron_split.subproblems import Subproblems
    from milpverify.search.solver.leaves import Leaves
    from milpverify.search.tree import Tree

_TREE = (Part.NEURON_SPLITS, Part.BRANCHING, Part.CLIPPING, Part.RIGOROUS_PASS, Part.NO_GOODS)


def close_by_programs(leaves: Leaves, bounder: Bounder, tree: Tree[Subproblems], subs: Subproblems, deadline: Deadline) -> Subproblems:
    """Try bounded subproblems, the nearest to being closed first, as long as that pays or there is time to spare; returns what is open."""
    context = tree.incumbents.context
    pace, by_counts, ledger = leaves.pace, context.switches.deterministic, context.ledger
    open_, bound = torch.ones_like(subs.bound, dtype=torch.bool), subs.bound.clone()
    pace.first = pace.tuning.each * bounder.relaxations.count
    waiting = subs.bound.argsort(descending=True, stable=True).tolist()  # the nearest to being closed first
    while waiting and not tree.decided and not deadline.expired():
        seconds, limit = sum(ledger.seconds.get(part, 0.0) for part in _TREE), deadline
        if by_counts:
            pays, due = pace.pays_by_counts(), pace.due_by_counts(tree.counts.before + tree.counts.bounded)
        else:
            pays, spare = pace.pays(seconds, sum(ledger.closed.get(part, 0) for part in _TREE)), pace.spare(seconds)
            due, limit = spare >= pace.mean_seconds, deadline.within(max(4 * pace.mean_seconds, spare))
        within = [k for k in waiting if float(subs.bound[k]) + pace.mean_gain >= 0]
        if not due and not (pays and within):
            break
        n = within[-1] if pays and within else waiting[0]  # the hardest of those that may close, for it saves most
        waiting.remove(n)
        before = float(subs.bound[n])
        one, began = subs.take(torch.tensor([n], device=bound.device)), time.perf_counter()
        disjunct = tree.group.disjuncts[int(one.disjunct)]
        with ledger.spent(Part.LEAVES):
            found = leaves.relax(disjunct, bounder.state_of(one), bounder.decisions(one), limit)
        ledger.bound(Part.LEAVES)
        bound[n] = max(before, found)
        open_[n] = not disjunct.closes(found)
        if not open_[n]:
            tree.close(found, Part.LEAVES)
        # What an empty subproblem gains is no measure.
        pace.note(time.perf_counter() - began, not open_[n], min(max(found - before, 0.0), 2 * abs(before)))
    return replace(subs, bound=bound).take(open_)
