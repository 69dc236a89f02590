"""What the tree and the oracle tell each other, between two batches of the tree.

From the oracle: a bound closes everything of the tree that it is about, or raises it; points end the run. From the tree: what it has
closed is taken from the oracle, which gets the hardest of what is open, first whole disjuncts, and the best point to start from.
Without either way the oracle gets whole disjuncts only. Without `oracle_to_tree` the tree goes on with what the oracle has closed, until
nothing but that is open: who ends first ends the run. Without `tree_to_oracle` the oracle takes disjunct after disjunct, and is told
neither what is hardest nor what is closed, until the tree begins anew. In deterministic mode they take turns by counts.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from milpverify.errors import Contradiction
from milpverify.result import Trust
from milpverify.search.ledger import Part
from milpverify.search.solver.oracle import Finding, Oracle, Task

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from milpverify.search.neuron_split.search import Search
    from milpverify.search.neuron_split.subproblems import Subproblems

HEAD_START = 1.0
"""Seconds for the tree alone: easy problems need no solver."""
LARGEST = 20_000
"""The largest model that is worth making, in unstable neurons."""
LARGE, MODELS = 3000, 0.3
"""Making a larger model than this takes seconds, in which the tree waits: after the first, the share of the time that this may take."""
SMALL, SMALL_TREE = 150, 200
"""So few unstable neurons a solver often decides at once: its turn comes after so many subproblems of the tree, if that is earlier."""
END_SECONDS = 3.0
"""What an end of a pre-activation may take."""
WHOLE_SHARE, PART_SHARE, LEAST_TASK = 0.7, 0.1, 2.0
"""The shares of the time left that a whole disjunct and a single subproblem get, and the seconds that either gets at least."""
MIDDLING = 300
"""With at most so many unstable neurons a last disjunct gets all of the time: a solver's bound says little of how near its end is."""
TURN, NODES = 1000, 50
"""In deterministic mode, the subproblems before the oracle's first turn, and the solver's nodes in it; both double from turn to turn."""


def exchange(search: Search, oracle: Oracle) -> None:
    """Hear what the oracle found, and keep it busy with what is hardest. Waits in deterministic mode alone."""
    switches = oracle.options.search
    if switches.deterministic and not _due(search):
        return
    if switches.deterministic and oracle.usable:
        _give(search, oracle)
    finding = oracle.wait() if switches.deterministic else oracle.poll()
    if finding is not None and finding.task.end is not None:
        _note_end(search, oracle, finding)
        finding = None
    if oracle.counterexample is not None:
        return
    if finding is not None and finding.bound > -math.inf:
        _apply(search, oracle, finding)
    if oracle.proved and not switches.oracle_to_tree:
        _end_race(search, oracle)
    if finding is not None and finding.solved:
        oracle.solved.add((search.group.members[finding.task.disjunct], finding.task.decisions))
    if oracle.task is not None:
        if switches.tree_to_oracle and oracle.task.end is None and not _under(search, oracle.task)[2]:
            oracle.stop()
    elif not switches.deterministic and oracle.usable and _open(search) and _awaited(search):
        _give(search, oracle)


def _note_end(search: Search, oracle: Oracle, finding: Finding) -> None:
    """Keep what was found of an end of a pre-activation, until the root is built anew."""
    if search.tightening is None or finding.task.end is None:
        return
    try:
        search.tightening.ends.answer(finding.task.end, finding.bound, finding.ended)
    except Contradiction as error:
        if search.raised or search.trust is Trust.SOLVER:
            raise
        oracle.give_up(str(error))


def _awaited(search: Search) -> bool:
    """Whether the tree has had its head start."""
    return time.monotonic() - search.began > HEAD_START or (search.plain.relaxations.count <= SMALL and search.bounded >= SMALL_TREE)


def _open(search: Search) -> bool:
    return bool(len(search.frontier)) or bool(len(search.stuck))


def _due(search: Search) -> bool:
    """Whether it is the oracle's turn, in deterministic mode."""
    return _open(search) and (not len(search.frontier) or search.bounded >= TURN * 2 ** sum(search.tried.values()))


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
            if oracle.counts["oracle_closed"] or oracle.proved:
                raise Contradiction(text)
            oracle.give_up(text)
            return
    waiting, stuck, some = _under(search, task)
    closes = search.group.disjuncts[task.disjunct].closes(bound)
    if not oracle.options.search.oracle_to_tree:
        if closes and not task.decisions:
            oracle.proved[search.group.members[task.disjunct]] = bound
            oracle.stop()
        return
    if not some:
        return
    if closes:
        _close(search, oracle, bound, waiting, stuck)
        oracle.stop()
        return
    search.raised = True
    for subs, mask in ((search.frontier.store, waiting), (search.stuck, stuck)):
        subs.bound = torch.where(mask & (subs.bound < bound), bound, subs.bound)


def _close(search: Search, oracle: Oracle, bound: float, waiting: Tensor, stuck: Tensor) -> None:
    """Close some of the frontier and of what is stuck, by a bound of the oracle's."""
    search.trust = Trust.SOLVER
    oracle.counts["oracle_closed"] += 1
    search.closed_bound = min(search.closed_bound, bound)
    search.ledger.close(Part.ORACLE, int(waiting.sum()) + int(stuck.sum()))
    search.frontier.remove(waiting)
    search.stuck = search.stuck.take(~stuck)


def _end_race(search: Search, oracle: Oracle) -> None:
    """Where the tree is not told what the oracle closed: end it once nothing else is open."""
    places = [k for k in range(search.group.count) if _alive(search, k)]
    bounds = [oracle.proved.get(search.group.members[k]) for k in places]
    if None not in bounds:
        for place, bound in zip(places, bounds, strict=True):
            assert bound is not None
            waiting, stuck, _ = _under(search, Task(place))
            _close(search, oracle, bound, waiting, stuck)
        oracle.stop()


def _give(search: Search, oracle: Oracle) -> None:
    """The next task: the whole disjunct of the hardest subproblem, or that subproblem where the whole was tried."""
    if search.plain.relaxations.count > LARGEST:
        oracle.give_up("the network has too many unstable neurons for a solver's model")
        return
    switches, turn = oracle.options.search, sum(search.tried.values())
    large = search.plain.relaxations.count > LARGE
    if large and not switches.deterministic and oracle.modelling > MODELS * (time.monotonic() - oracle.began):
        return
    if _give_end(search, oracle):
        return
    hardest = _hardest(search, oracle)
    if hardest is None:
        oracle.give_up("the solver has nothing more to say about what the tree cannot split")
        return
    place = int(hardest.disjunct[0])
    whole = place not in search.tried
    if not switches.both_ways:
        rest = [k for k in _worth(search, oracle) if switches.deterministic or k not in search.tried]
        if not rest:
            if not len(search.frontier):
                oracle.give_up("the solver has nothing more to say about what the tree cannot split")
            return  # parts make sense only where both listen
        first = place if switches.tree_to_oracle else -1
        place, whole = min(rest, key=lambda k: (search.tried.get(k, 0), k != first)), True
    elif switches.deterministic:
        whole = len(search.frontier) > 0 and turn % 2 == 0 and (search.group.members[place], ()) not in oracle.solved
    search.tried[place] = search.tried.get(place, 0) + 1
    subproblem = search.first(*_pair(search, place)) if whole else hardest
    # The solver's bound is to hold everywhere: it gets no conditional bounds.
    state = search.plain.state_of(replace(subproblem, box=torch.zeros_like(subproblem.box)))
    bounds = [(s.bounds.lower[0].cpu(), s.bounds.upper[0].cpu()) for _, s in sorted(state.items())]
    share = WHOLE_SHARE if whole else PART_SHARE
    count = search.plain.relaxations.count
    if whole and count <= MIDDLING and all(k in search.tried for k in _worth(search, oracle)):
        share = 1.0
    seconds = max(LEAST_TASK, share * search.deadline.remaining())
    start = search.best[place][1] if whole and place in search.best else None
    task = Task(place, search.decisions(subproblem), seconds, unstable=count)
    if switches.deterministic:
        task = replace(task, seconds=math.inf, nodes=NODES * 2**turn)
    oracle.give(task, search.group.disjuncts[place], bounds, start)


def _worth(search: Search, oracle: Oracle) -> Iterator[int]:
    """The disjuncts that may be a task as a whole, as far as the oracle is told: open, and not closed or ended by it."""
    members, told = search.group.members, oracle.options.search.tree_to_oracle
    for k, m in enumerate(members):
        if m not in oracle.proved and (m, ()) not in oracle.solved and (not told or _alive(search, k)):
            yield k


def _give_end(search: Search, oracle: Oracle) -> bool:
    """An end of a pre-activation as the next task, where those are worth more than subproblems; whether there was one."""
    switches, tightening = oracle.options.search, search.tightening
    if tightening is None or switches.deterministic or not switches.both_ways or not oracle.options.believes_solvers:
        return False
    small = search.plain.relaxations.count <= SMALL
    if small and any(k not in search.tried and _alive(search, k) for k in range(search.group.count)):
        return False
    found = tightening.ends.next(search.deadline)
    if found is None:
        return False
    layer, end, place = found
    oracle.give_end(Task(-1, seconds=min(END_SECONDS, search.deadline.remaining()), end=end), layer, place)
    return True


def _hardest(search: Search, oracle: Oracle) -> Subproblems | None:
    """The subproblem of lowest bound; of those that cannot be split, the first that the solver is not done with."""
    if len(search.frontier):
        return search.frontier.hardest()
    for n in search.stuck.bound.argsort(stable=True).tolist():
        one = search.stuck.take(torch.tensor([n], device=search.stuck.bound.device))
        if (search.group.members[int(one.disjunct[0])], search.decisions(one)) not in oracle.solved:
            return one
    return None


def _alive(search: Search, place: int) -> bool:
    """Whether a disjunct has anything open."""
    return _under(search, Task(place))[2]


def _pair(search: Search, place: int) -> tuple[Tensor, Tensor]:
    """The whole box with one disjunct."""
    device = search.stuck.bound.device
    return torch.zeros(1, dtype=torch.long, device=device), torch.tensor([place], device=device)
