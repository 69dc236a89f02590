"""The state of a branch-and-bound search over one group, as a value: what is open, what is closed, and the best points."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic

import numpy as np
import torch

from milpverify.counterexamples.polish import polish
from milpverify.counterexamples.validate import Validity, validate
from milpverify.graph import evaluate
from milpverify.result import Reason, Trust
from milpverify.search.context import SearchTuning
from milpverify.search.frontier import B, Frontier
from milpverify.search.outcome import SearchOutcome

if TYPE_CHECKING:
    from milpverify.counterexamples.validate import Validation
    from milpverify.result import Counterexample
    from milpverify.search.context import SearchContext
    from milpverify.search.groups import Group
    from milpverify.search.ledger import Part
    from milpverify.spec import Array


@dataclass(eq=False)
class Counts:
    """`bounded` subproblems; `before` it, those of the trees that this one goes on from, and how many `restarts` these are.

    `began`: when the tree did, of `time.monotonic`.
    """

    bounded: int = 0
    before: int = 0
    restarts: int = 0
    began: float = field(default_factory=time.monotonic)


class Incumbents:
    """The best points of a search: a counterexample, or else what comes nearest to one.

    `best` are the margin and the input of the best point of a disjunct, by its place in the group; `near` is a validated point whose
    margin is within delta; `disagreement` describes the last point on which the network's runtime and the reals differ.
    """

    def __init__(self, context: SearchContext, group: Group) -> None:
        self.context, self.group = context, group
        self.best: dict[int, tuple[float, Array]] = {}
        self.counterexample: Counterexample | None = None
        self.near: Validation | None = None
        self.disagreement = ""

    def note(self, validation: Validation | None) -> None:
        """Keep what a validated point says."""
        if validation is None:
            return
        if validation.status is Validity.HOLDS:
            self.counterexample = validation.counterexample
        elif validation.status is Validity.FLOAT_SEMANTICS and self.counterexample is None:
            self.disagreement = str(validation)
        if self.near is None and validation.within(self.context.delta):
            self.near = validation

    def take(self, other: Incumbents | None) -> None:
        """What was found on a part of the boxes."""
        if other is None:
            return
        self.counterexample = self.counterexample or other.counterexample
        self.near = self.near or other.near
        self.disagreement = other.disagreement or self.disagreement

    def validate(self, place: int, x: Array) -> None:
        """Validate a point as a counterexample to a disjunct; the first that is within delta starts a descent."""
        disjunct, before = self.group.disjuncts[place], self.near
        self.note(validate(self.context.problem, disjunct, x))
        if before is None and self.near is not None and (example := polish(self.context.problem, disjunct, x)) is not None:
            self.note(validate(self.context.problem, disjunct, example.x))

    def remember(self, place: int, x: Array) -> None:
        """Keep a point that is better than what is known of its disjunct, an input, and satisfies the constraints between inputs."""
        disjunct, graph = self.group.disjuncts[place], self.context.graph
        box = disjunct.box
        x = np.clip(x, box.lower, box.upper)
        if graph.ball is not None:
            x = graph.ball.pulled(x)
            if not ((box.lower <= x) & (x <= box.upper)).all():
                return
        if len(disjunct.domain) and not bool((disjunct.domain.x_rows @ x <= disjunct.domain.rhs).all()):
            return
        y = evaluate(graph, torch.from_numpy(x)[None].to(graph.device))[0].cpu().numpy()
        margin = float(disjunct.unsafe.residual(x, y).max())
        if place not in self.best or margin < self.best[place][0]:
            self.best[place] = (margin, x)
            if self.near is None and margin <= self.context.delta:
                self.validate(place, x)


@dataclass(eq=False)
class Tree(Generic[B]):
    """A tree over one group.

    What is left to do is in the `frontier`, `in_progress` (taken out of it, its children not known yet) and `unbounded` (roots that were
    never bounded; they stand for everything). `unsplittable` has no split left and nothing closed it; `abandoned` has had its share of
    branchings. All these are open.

    `closed_bound` is a proved lower bound of the margin over everything closed, which rests on `trust`; `proved` is the best bound of
    everything that was known at any time. `conditional`: bounds hold at unsafe points only, so that what they close counts as 0 at
    most; `raised`: bounds of open subproblems rest on a solver. `ties` are the places, in the root's batch of boxes, of leaves whose
    margin is not positive in rationals either; `note` says so in words.
    """

    group: Group
    incumbents: Incumbents
    frontier: Frontier[B]
    in_progress: B
    unsplittable: B
    abandoned: B
    unbounded: B | None
    counts: Counts = field(default_factory=Counts)
    closed_bound: float = math.inf
    proved: float = -math.inf
    trust: Trust = Trust.ROUNDED
    raised: bool = False
    conditional: bool = False
    ties: set[int] = field(default_factory=set)
    note: str = ""
    out_of_memory: bool = False

    @classmethod
    def of(cls, context: SearchContext, group: Group, roots: B) -> Tree[B]:
        """A tree of nothing but roots that are to be bounded."""
        none = roots.none
        return cls(group, Incumbents(context, group), Frontier(none), none, none, none, roots)

    # -- what is open -------------------------------------------------------------------------------------------------------

    @property
    def left(self) -> B:
        """All that is open and may be split: in the frontier, in progress, abandoned, or not bounded yet."""
        return self.frontier.all().join(self.in_progress, self.abandoned, *([] if self.unbounded is None else [self.unbounded]))

    @property
    def unfinished(self) -> bool:
        """Whether there is anything to bound or to split."""
        return self.unbounded is not None or bool(len(self.frontier))

    @property
    def closed(self) -> bool:
        """Whether nothing is open."""
        waiting = len(self.in_progress) + len(self.abandoned) + len(self.unsplittable)
        return not self.unfinished and not waiting and not self.out_of_memory

    @property
    def lowest(self) -> float:
        """The bound of everything, closed and open."""
        parts = [self.in_progress, self.unsplittable, self.abandoned, *([] if self.unbounded is None else [self.unbounded])]
        return min([self.closed_bound, self.frontier.lowest, *(p.lowest for p in parts)])

    @property
    def lower_bound(self) -> float:
        """A proved lower bound of the margin over the whole tree."""
        return min(self.lowest, 0.0) if self.conditional else self.lowest

    @property
    def trust_of_bound(self) -> Trust:
        """What that bound rests on."""
        return Trust.SOLVER if self.raised else self.trust

    @property
    def falsified(self) -> bool:
        """Whether a counterexample was found."""
        return self.incumbents.counterexample is not None

    @property
    def delta_complete(self) -> bool:
        """Whether the margin is known up to delta: a point is that close to a violation, and none can be further beyond."""
        return self.incumbents.near is not None and self.lowest >= -self.incumbents.context.delta

    @property
    def decided(self) -> bool:
        """Whether the search has its answer, whatever is open."""
        return self.falsified or self.delta_complete

    # -- steps --------------------------------------------------------------------------------------------------------------

    def pop(self, count: int) -> B:
        """Take subproblems out of the frontier; until `push` has their children they stay open."""
        most = self.incumbents.context.tuned(SearchTuning).frontier_bytes
        self.in_progress = self.frontier.pop(count, nearest=self.frontier.bytes > most)
        return self.in_progress

    def push(self, batch: B) -> None:
        """Put into the frontier what is left of the children of what was taken out, or of the roots."""
        self.frontier.push(batch)
        self.in_progress, self.unbounded = batch.none, None

    def reopen(self) -> None:
        """Put back what a deadline or the end of memory left in progress."""
        self.frontier.push(self.in_progress)
        self.in_progress = self.in_progress.none

    def continues(self, old: Tree[B]) -> None:
        """Go on from another tree over the same disjuncts, or more of them: what it closed, proved and found stays."""
        self.counts.before, self.counts.restarts = old.counts.before + old.counts.bounded, old.counts.restarts + 1
        self.closed_bound, self.proved, self.trust, self.raised = old.closed_bound, old.proved, old.trust, old.raised
        self.incumbents.take(old.incumbents)
        self.note = old.note

    def clear(self, like: B) -> None:
        """Begin again with nothing open, for subproblems of other shapes; what is closed stays closed."""
        none = like.none
        self.frontier, self.in_progress, self.unsplittable, self.abandoned, self.unbounded = Frontier(none), none, none, none, None

    def begin_again(self, roots: B) -> None:
        """Begin again from roots whose bounds hold at unsafe points only, and which stand for everything that is open."""
        none = roots.none
        frontier = Frontier(none)
        self.unbounded, self.conditional, self.frontier, self.in_progress, self.unsplittable, self.abandoned = (
            roots, True, frontier, none, none, none,
        )  # fmt: skip

    def close(self, bound: float, part: Part, count: int = 1) -> None:
        """Count so many subproblems, with a margin of at least `bound` > 0 (or >= 0 where rows are strict), as closed by a part."""
        if count:
            self.count(bound)
            self.incumbents.context.ledger.close(part, count)

    def count(self, bound: float) -> None:
        """What is closed counts towards the bound of everything."""
        self.closed_bound = min(self.closed_bound, bound, 0.0 if self.conditional else math.inf)

    # -- the end ------------------------------------------------------------------------------------------------------------

    def outcome(self, detail: dict[str, Any]) -> SearchOutcome:
        """What the search has come to, with counts for the ledger."""
        points, oracle = self.incumbents, self.incumbents.context.oracle
        tied = self.ties and not len(self.frontier) and not len(self.in_progress)
        undecided = Reason.FLOAT_SEMANTICS if tied else Reason.UNDECIDED
        reason = Reason.MEMORY if self.out_of_memory else Reason.DELTA if self.delta_complete else undecided
        note = "; ".join(filter(None, [self.note, "" if points.near is None else points.near.where, *(oracle.notes if oracle else [])]))
        open_ = len(self.left) + len(self.unsplittable)
        counts = {"subproblems": self.counts.before + self.counts.bounded, "open": open_, **detail, **(oracle.counts if oracle else {})}
        example, disagreement = points.counterexample, points.disagreement
        if oracle is not None:
            example, disagreement = example or oracle.counterexample, disagreement or oracle.disagreement
        return SearchOutcome(
            self.closed, max(self.proved, self.lower_bound), self.trust if self.closed else self.trust_of_bound, example, reason, note,
            "" if example is not None else disagreement, counts,
        )  # fmt: skip
