"""What the tree and the oracle tell each other, between two batches of the tree.

From the oracle: a bound closes everything of the tree that it is about, or raises it; points end the run. From the tree: what it has
closed is taken from the oracle, which gets the hardest of what is open, first whole disjuncts, and the best point to start from.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import torch

from milpverify.errors import Contradiction
from milpverify.result import Trust
from milpverify.search.oracle import Finding, Oracle, Task

if TYPE_CHECKING:
    from torch import Tensor

    from milpverify.search.neuron_split import Search

HEAD_START = 1.0
"""Seconds for the tree alone: easy problems need no solver."""
LARGEST = 3000
"""The largest model that is worth making, in unstable neurons."""
WHOLE_SHARE, PART_SHARE, LEAST_TASK = 0.7, 0.1, 2.0
"""The shares of the time left that a whole disjunct and a single subproblem get, and the seconds that either gets at least."""


def exchange(search: Search, oracle: Oracle) -> None:
    """Hear what the oracle found, and keep it busy with what is hardest. Never waits."""
    finding = oracle.poll()
    if oracle.counterexample is not None:
        return
    if finding is not None and finding.bound > -math.inf:
        _apply(search, oracle, finding)
    if oracle.task is not None:
        if not _under(search, oracle.task)[2]:
            oracle.stop()
    elif oracle.usable and (len(search.frontier) or len(search.stuck)) and time.monotonic() - search.began > HEAD_START:
        _give(search, oracle)


def _under(search: Search, task: Task) -> tuple[Tensor, Tensor, bool]:
    """What a task's answer is about: in the frontier, among those stuck, and whether there is anything."""
    literals = tuple((search.slots.index(node), index, side, point) for node, index, side, point in task.decisions)
    waiting, stuck = search.frontier.under(task.disjunct, literals), search.stuck.under(task.disjunct, literals)
    return waiting, stuck, bool(waiting.any()) or bool(stuck.any())


def _apply(search: Search, oracle: Oracle, finding: Finding) -> None:
    """Close what a finding closes, or raise bounds by it."""
    task, bound = finding.task, finding.bound
    if not task.decisions and task.disjunct in search.best:
        margin = search.best[task.disjunct][0]
        if bound > margin + 1e-6 * max(1.0, abs(margin)):
            text = f"the solver says that the margin is at least {bound:.9g}, a point has {margin:.9g}"
            if oracle.counts["oracle_closed"]:
                raise Contradiction(text)
            oracle.give_up(text)
            return
    waiting, stuck, some = _under(search, task)
    if not some:
        return
    if bound > 0 or (bound >= 0 and bool(search.group.strict[task.disjunct])):
        search.trust = Trust.SOLVER
        oracle.counts["oracle_closed"] += 1
        search.closed_bound = min(search.closed_bound, bound)
        search.frontier.remove(waiting)
        search.stuck = search.stuck.take(~stuck)
        oracle.stop()
        return
    search.raised = True
    for subs, mask in ((search.frontier.store, waiting), (search.stuck, stuck)):
        subs.bound = torch.where(mask & (subs.bound < bound), bound, subs.bound)


def _give(search: Search, oracle: Oracle) -> None:
    """The next task: the whole disjunct of the hardest subproblem, or that subproblem where the whole was tried."""
    if sum(len(free) for free in search.free.values()) > LARGEST:
        oracle.give_up("the network has too many unstable neurons for a solver's model")
        return
    hardest = search.frontier.hardest() if len(search.frontier) else search.stuck.take(search.stuck.bound.argmin().unsqueeze(0))
    place = int(hardest.disjunct[0])
    whole = place not in search.tried
    search.tried.add(place)
    subproblem = hardest.padded(0) if whole else hardest
    bounds = [(s.bounds.lower[0].cpu(), s.bounds.upper[0].cpu()) for _, s in sorted(search.state_of(subproblem).items())]
    seconds = max(LEAST_TASK, (WHOLE_SHARE if whole else PART_SHARE) * search.deadline.remaining())
    start = search.best[place][1] if whole and place in search.best else None
    oracle.give(Task(place, search.decisions(subproblem), seconds), search.group.disjuncts[place], bounds, start)
