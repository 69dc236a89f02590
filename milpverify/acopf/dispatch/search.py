"""Branch and bound over loads: boxes are enclosed, attacked and cut where the enclosure of all of them proves too little."""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from milpverify.acopf.dispatch.attack import Attack, LoadTuning
from milpverify.acopf.dispatch.linking import agree, all_one, at_loads, over, parameters
from milpverify.acopf.dispatch.newton import base, flat, follow
from milpverify.acopf.dispatch.witness import Violation, reached, witness

if TYPE_CHECKING:
    from collections.abc import Callable

    from milpverify.acopf.case import Array
    from milpverify.acopf.dispatch.enclosure import Enclosure
    from milpverify.acopf.dispatch.grid import Grid
    from milpverify.acopf.dispatch.limits import Enclosed, Limits
    from milpverify.acopf.dispatch.policy import Box, Policy
    from milpverify.config import Deadline

LOST = "Newton's method, followed from the base case, finds no power flow at some loads of the box"


@dataclass(frozen=True, eq=False)
class Node:
    """A box of loads with the power flow in its middle, margins and ranges that hold in it, and the innermost enclosure around it."""

    box: Box
    x: Array  # (2n,) rad and p.u.
    margin: Array  # (K,) p.u. and rad
    lower: Array  # (K,)
    upper: Array  # (K,)
    enclosure: Enclosure | None
    around: Enclosure | None
    enclosed: Enclosed | None = None


@dataclass
class Found:
    """What a search has to say."""

    message: str = ""
    x: Array | None = None  # (2n,) the base case's power flow, rad and p.u.
    attack: Attack | None = None
    margin: Array = field(default_factory=lambda: np.empty(0))  # (K,) p.u. and rad; as are the ends of the ranges
    lower: Array = field(default_factory=lambda: np.empty(0))
    upper: Array = field(default_factory=lambda: np.empty(0))
    holds: bool = False
    violation: Violation | None = None
    boxes: int = 0
    out_of_time: bool = False


class Search:
    """Decide whether all limits hold over a box of loads."""

    def __init__(
        self,
        grid: Grid,
        limits: Limits,
        policy: Policy,
        box: Box,
        tolerance: float,
        deadline: Deadline,
        tell: Callable[[str, int, float], None] = lambda message, boxes, margin: None,
        tuning: LoadTuning = LoadTuning(),
    ) -> None:
        self.grid, self.limits, self.policy, self.box = grid, limits, policy, box
        self.tolerance, self.deadline, self.tell, self.tuning = tolerance, deadline, tell, tuning
        self.needed = np.where(limits.given, -tolerance, 0.0)
        self.gap = math.inf
        self.tops: list[tuple[Box, Enclosure]] = []  # the largest boxes that were enclosed
        self.root: Node | None = None
        self.found = Found()

    def run(self, start: Array | None, samples: int, seed: int, decide: bool = True) -> Found:
        """Base case, attack, enclosure, branch and bound.

        Args:
            start: (2n,) angles (rad) and magnitudes (p.u.) from which Newton's method finds the base case's power flow; flat where none
                are given.
            samples: random loads of the attack.
            seed: of these.
            decide: whether limits are violated, or hold, is looked for beyond the root.
        """
        found, middle = self.found, self.box.middle
        p = parameters(self.grid, self.policy, middle)
        found.x = base(self.grid, p, flat(self.grid, p) if start is None else start)
        found.margin = np.full(len(self.limits.entries), -np.inf)
        found.lower, found.upper = found.margin.copy(), -found.margin
        if found.x is None:
            found.message = "Newton's method finds no power flow at the base case's loads"
            return found
        self.root = self._node(self.box, found.x, None)
        self._keep([self.root])
        found.attack = Attack(self.grid, self.limits, self.policy, self.box, found.x, self.root.enclosure, self.tuning)
        found.attack.corners()
        found.attack.sample(samples, seed)
        broken, few = found.attack.margin < -self.tolerance, self.tuning.few
        found.attack.follow_gradients(self.deadline, np.argsort(found.attack.margin)[:few] if broken.any() and decide else None)
        if not decide:
            return found
        if not self._broken():
            self._branch()
        if found.violation is None and not found.holds and found.attack.lost is not None and not found.message:
            found.message = LOST
        return found

    def close(self, gap: float) -> None:
        """After `run`: go on until every margin is within a gap (p.u. and rad) of what the attack found, whether limits hold or not."""
        found = self.found
        if found.attack is None or self.root is None:
            return
        self.gap = gap
        self.needed = found.attack.margin - gap
        self.tops = [] if self.root.enclosure is None else [(self.root.box, self.root.enclosure)]
        self._branch()

    def _branch(self) -> None:
        """Cut boxes until all limits hold in each, loads are found that violate one, or time is over."""
        found = self.found
        assert self.root is not None
        count = 0
        heap = [(self._short(self.root), count, self.root)] if self._short(self.root) < 0 else []
        closed = [] if heap else [self.root]
        while heap:
            found.out_of_time = self.deadline.expired()
            found.message = self._hopeless() or f"{len(heap)} boxes of loads are left open after {found.boxes}"
            if found.out_of_time or found.boxes >= self.tuning.boxes or self._hopeless():
                self._keep([*closed, *(node for *_, node in heap)])
                return
            _, _, node = heapq.heappop(heap)
            for half in node.box.halves(self._cut(node)):
                child = self._child(half, node)
                if child is None:
                    found.message = LOST
                    self._keep([*closed, node, *(each for *_, each in heap)])
                    return
                count += 1
                if self._short(child) < 0:
                    heapq.heappush(heap, (self._short(child), count, child))
                    if self._corner(child) and self.gap == math.inf and self._broken():
                        self._keep([*closed, node, *(each for *_, each in heap)])  # the other half may not be there yet
                        return
                else:
                    closed.append(child)
            self.tell("boxes", found.boxes, heap[0][0] if heap else 0.0)
        found.message = ""
        found.holds = self._keep(closed)
        if not found.holds:
            found.message = "all limits hold in every box of loads, but their power flows were not proved to be those of one solution"

    def _hopeless(self) -> str:
        """Why cutting boxes will not help; nothing where it may."""
        attack = self.found.attack
        assert attack is not None
        if not len(self.box.varying):
            return "the loads are given, and a margin is too close to 0 to be proved"
        between = np.flatnonzero((attack.margin < self.needed) & (attack.margin >= -self.tolerance))
        if not len(between) or self.gap < math.inf:
            return ""
        return f"{self.limits.entries[between[0]]} is beyond its limit, but not by more than the tolerance"

    def _begins(self) -> bool:
        """Whether the base case's power flow is proved to be one of those enclosed."""
        middle, x = self.box.middle, self.found.x
        assert x is not None
        start = at_loads(self.grid, self.policy, middle, x)
        around = [one for box, one in self.tops if (box.lower <= middle).all() and (middle <= box.upper).all()]
        return start is not None and any(one.contains(start) for one in around)

    def _node(self, box: Box, x: Array, parent: Node | None) -> Node:
        """Enclose a box around the power flow x (2n,) in its middle."""
        self.found.boxes += 1
        around = None if parent is None else parent.around
        enclosure = over(self.grid, self.policy, box, x)
        if enclosure is not None and around is not None and not agree(self.grid, self.policy, around, enclosure, box.middle, x):
            enclosure = None
        count = len(self.limits.entries)
        below = np.full(count, -np.inf)
        margin, lower, upper = (below, below, -below) if parent is None else (parent.margin, parent.lower, parent.upper)
        if enclosure is None:
            return Node(box, x, margin, lower, upper, None, around)
        if around is None:
            self.tops.append((box, enclosure))
        enclosed = self.limits.enclosed(enclosure)
        margin, lower, upper = np.maximum(margin, enclosed.margin), np.maximum(lower, enclosed.lower), np.minimum(upper, enclosed.upper)
        return Node(box, x, margin, lower, upper, enclosure, enclosure, enclosed)

    def _child(self, box: Box, parent: Node) -> Node | None:
        ends = parameters(self.grid, self.policy, parent.box.middle), parameters(self.grid, self.policy, box.middle)
        x = follow(self.grid, ends[0], parent.x, ends[1])
        return None if x is None else self._node(box, x, parent)

    def _short(self, node: Node) -> float:
        """By how much the least margin falls short of what is needed; 0 where none does."""
        return float(np.minimum(node.margin - self.needed, 0.0).min())

    def _worst(self, node: Node) -> int:
        return int((node.margin - self.needed).argmin())

    def _cut(self, node: Node) -> int:
        """The load that matters most for the worst limit; without an enclosure the one that moves voltages most."""
        varying = node.box.varying
        if node.enclosure is None or node.enclosed is None:
            return int(varying[node.box.radius[varying].argmax()])
        row = node.enclosed.row(self.limits, self._worst(node))
        influence = node.enclosure.influence(None if row is None else row[1])[: len(varying)]
        if row is not None:
            influence = influence + np.abs(row[0][: len(varying)])
        return int(varying[influence.argmax()])

    def _corner(self, node: Node) -> bool:
        """Attack the worst limit in a box at the corner where its linear function is; whether a limit is violated somewhere."""
        attack = self.found.attack
        assert attack is not None
        row = None if node.enclosed is None else node.enclosed.row(self.limits, self._worst(node))
        if row is not None and node.enclosed is not None:
            k, varying = self._worst(node), node.box.varying
            upward = self.limits.upper[k] - node.enclosed.upper[k] < node.enclosed.lower[k] - self.limits.lower[k]
            share = np.full(len(node.box.lower), 0.5)
            share[varying] = (np.sign(row[0][: len(varying)]) * (1 if upward else -1) + 1) / 2
            attack.look(node.box.at(share[None]))
        return bool((attack.margin < -self.tolerance).any())

    def _broken(self) -> bool:
        """Whether the attack found what violates a limit, and that is proved or reproduced."""
        found, attack = self.found, self.found.attack
        assert attack is not None
        for k in np.argsort(attack.margin)[: self.tuning.few].tolist():
            if not attack.margin[k] < -self.tolerance:
                break
            for share in self.tuning.nearer:
                one = self._witness(k, share)
                if one is not None and (found.violation is None or (one.proved and one.continuous)):
                    found.violation = one
                if found.violation is None or (found.violation.proved and found.violation.continuous):
                    break
            if found.violation is not None:
                return True
            if not self._is_followed(k):
                attack.forget(k)
        return False

    def _is_followed(self, k: int) -> bool:
        """Whether what the attack found for limit k is the base case's power flow, followed to these loads."""
        attack, x = self.found.attack, self.found.x
        assert attack is not None and x is not None
        return reached(self.grid, self.policy, self.box.middle, x, attack.loads[k], attack.flow[k])

    def _witness(self, k: int, share: float) -> Violation | None:
        """What is proved at the worst loads of limit k, or at some on the way there from the middle; None where it is not violated."""
        attack, x, middle = self.found.attack, self.found.x, self.box.middle
        assert attack is not None and self.root is not None and x is not None
        loads, flow = attack.loads[k], attack.flow[k]
        if share < 1.0:
            loads = np.clip(middle + share * (loads - middle), self.box.lower, self.box.upper)
            ends = parameters(self.grid, self.policy, middle), parameters(self.grid, self.policy, loads)
            nearer = follow(self.grid, ends[0], x, ends[1])
            if nearer is None:
                return None
            flow = nearer
        base_case = middle, at_loads(self.grid, self.policy, middle, x), self.root.enclosure
        return witness(self.grid, self.limits, self.policy, loads, (k, flow), base_case, self.tolerance, self.deadline)

    def contradicted(self, noise: float) -> int | None:
        """A limit whose margin is below what was proved, at loads that were found; other solutions than the base case's are forgotten."""
        found, attack = self.found, self.found.attack
        if attack is None or found.x is None:
            return None
        for k in np.flatnonzero(found.margin > attack.margin + noise).tolist():
            if self._is_followed(k):
                return int(k)
            attack.forget(k)
        return None

    def _keep(self, nodes: list[Node]) -> bool:
        """Keep what holds in all of these, which make up the box; only if their power flows are proved to be those of the base case."""
        found, root = self.found, self.root
        assert root is not None
        proved = root.enclosure is not None or (all(node.around for node in nodes) and self._begins() and self._one())
        nodes = nodes if proved else [root]
        found.margin = np.min([node.margin for node in nodes], axis=0)
        found.lower, found.upper = np.min([node.lower for node in nodes], axis=0), np.max([node.upper for node in nodes], axis=0)
        return proved

    def _one(self) -> bool:
        """Whether all enclosures are proved to be of one power flow."""
        return all_one(self.grid, self.policy, self.tops)
