"""Attacks between the batches of a search: for a small share of its time, and a larger one where the proof makes no headway for long."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from milpverify.counterexamples.attack import AttackTuning, attack
from milpverify.search.gap import gap_closed
from milpverify.search.ledger import Part
from milpverify.tuning import Tuning

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from milpverify.config import Deadline, Options
    from milpverify.counterexamples.attack import AttackOutcome
    from milpverify.graph import Graph
    from milpverify.search.groups import Group
    from milpverify.search.ledger import Reporter
    from milpverify.spec import Array, Problem


class AttackTurnTuning(Tuning):
    """How much of a search's time attacks between its batches may take."""

    share: float = 0.02
    large_share: float = 0.15
    patience: float = 10.0
    headway: float = 0.25
    """What attacks may take; the larger share where after `patience` seconds no more than `headway` of the root's gap to 0 is closed."""
    seconds: float = 0.5
    starts: int = 16
    """Of one attack, and its starts per disjunct."""


@dataclass(eq=False)
class AttackTurns:
    """The attacks of a search over a group. Where a run must repeat exactly their turns go by the estimated cost of subproblems.

    `points` are the best inputs known, (nx,) per disjunct of the problem; `spent` are the seconds of `turns` attacks.
    """

    problem: Problem
    graph: Graph
    options: Options
    deadline: Deadline
    reporter: Reporter
    clock: Callable[[], float]
    points: Mapping[int, Array]
    spent: float = 0.0
    turns: int = 0
    began: float = field(init=False)
    tuning: AttackTurnTuning = field(init=False)

    def __post_init__(self) -> None:
        self.began, self.tuning = self.clock(), self.options.search.tuned(AttackTurnTuning)

    def due(self, bound: float, estimated: float) -> bool:
        """Whether attacks have had less than their share by one attack.

        Args:
            bound: the tree's.
            estimated: seconds that its subproblems were estimated to take.
        """
        counted, tuning = self.options.search.deterministic, self.tuning
        passed = estimated if counted else self.clock() - self.began
        stuck = passed > tuning.patience and gap_closed(self.reporter.floor, bound) < tuning.headway
        spent = self.turns * tuning.seconds if counted else self.spent
        return (tuning.large_share if stuck else tuning.share) * passed >= spent + tuning.seconds

    def take(self, group: Group, places: Sequence[int], best: Mapping[int, Array]) -> AttackOutcome:
        """Attack the disjuncts at some places in the group, from the best points known, with other random numbers every time."""
        began, paced, centre = self.clock(), not self.options.search.deterministic, (group.box.lower + group.box.upper) / 2
        known = [best.get(k, self.points.get(group.members[k], centre)) for k in places]
        self.turns += 1
        with self.reporter.ledger.spent(Part.ATTACK):
            outcome = attack(
                self.problem,
                self.graph.to(torch.float32, self.graph.device),
                [group.disjuncts[k] for k in places],
                self.deadline.within(self.tuning.seconds if paced else math.inf),
                self.options.seed + self.turns,
                tuning=replace(self.options.search.tuned(AttackTuning), starts=self.tuning.starts, rounds=1),
                points=known,
            )
        self.spent += self.clock() - began
        return outcome
