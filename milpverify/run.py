"""A run of verify(): its phases up to the search, and the result that they and the search come to."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from milpverify.config import Branching, Deadline, Options
from milpverify.counterexamples.attack import AttackTuning, attack
from milpverify.counterexamples.margins import MarginTuning, with_example, with_points
from milpverify.ladder import climb
from milpverify.propagation.request import BoundRequest, BoundTuning, CostTuning
from milpverify.reduction.reducing import reduced
from milpverify.reduction.suspects import ReductionTuning
from milpverify.result import SIGN_ONLY, Counterexample, Event, Margin, Phase, Reason, Result, Setting, Stretch, Trust, Verdict
from milpverify.run_info import device_of, versions
from milpverify.search.bounding import BatchBounds, reduce, refine
from milpverify.search.context import SearchContext
from milpverify.search.groups import Group, GroupTuning, few_inputs, groups
from milpverify.search.ledger import Part, Reporter
from milpverify.search.outcome import SearchOutcome
from milpverify.tuning import Tuning

if TYPE_CHECKING:
    from milpverify.graph import TensorSpec
    from milpverify.spec import Array, Problem

OnEvent = Callable[[Event], None]


class RunTuning(Tuning):
    """What the phases before the search may take."""

    few: tuple[int, int] = (128, 6)
    many: tuple[int, int] = (32, 2)
    """Starts and rounds of the attack, where inputs are few and where they are many: where they are few an evaluation is cheap, and
    stubborn counterexamples yield to more starts."""
    first: tuple[int, int, int] = (8, 1, 12)
    short: float = 0.5
    """Starts, rounds and steps of an attack that comes before dear bounds, and seconds that it may take in any case."""
    attack_share: float = 0.15
    attack_seconds: float = 5.0
    """Of the time left, what an attack may take, and seconds that it may take in any case."""
    turn: float = 0.5
    """Of the time that bounds took, what an attack goes on for: where these are dear, neither shall wait for the other."""
    refine_share: float = 0.25
    refine_seconds: float = 2.0
    """The share of the time left that optimising the root's slopes may take, and seconds of it that come before the search, which often
    needs no more."""


def unread(deadline: Deadline, options: Options) -> Result:
    """The result of a run whose time was over before its problem was read."""
    reason = Reason.INTERRUPTED if deadline.cancelled else Reason.TIMEOUT
    note, seconds = "before the problem was read", deadline.elapsed()
    return Result(
        Verdict.UNKNOWN, reason, Trust.ROUNDED, -math.inf, note=note, seconds=seconds, setting=Setting(versions(), options.to_dict())
    )


@dataclass(eq=False)
class Run:
    """A run under way: what every phase needs, and the ledger.

    `closed_bound` is a proved bound of the disjuncts that are closed; `points` are the best inputs that the attack saw, (nx,) per disjunct;
    `disagreement` describes a point on which the network's runtime and real arithmetic differ. `proved` are bounds of the margins of single
    disjuncts of the problem as it was `given`, by their places; `places` are those of the disjuncts that are left of it, None if unknown.
    """

    problem: Problem
    options: Options
    deadline: Deadline
    on_event: OnEvent | None
    phases: list[Phase] = field(default_factory=list)
    closed_bound: float = math.inf
    points: dict[int, Array] = field(default_factory=dict)
    disagreement: str = ""
    example: Counterexample | None = None
    proved: dict[int, tuple[float, Trust]] = field(default_factory=dict)
    places: Sequence[int] | None = None

    def __post_init__(self) -> None:
        self.reporter = Reporter(self.on_event)
        self.deadline.watch_memory(self.options.memory_mb)
        self.device = device_of(self.options.device)
        self.graph = self.problem.graph.to(torch.float64, self.device)
        self.began, self.given = time.monotonic(), self.problem
        self.places = range(len(self.problem.disjuncts))

    @property
    def tuning(self) -> RunTuning:
        """What the phases may take."""
        return self.options.search.tuned(RunTuning)

    @contextmanager
    def phase(self, name: str) -> Iterator[dict[str, Any]]:
        """A line of the ledger."""
        self.tell(name, "")
        detail: dict[str, Any] = {}
        began = time.monotonic()
        try:
            yield detail
        finally:
            self.phases.append(Phase(name, time.monotonic() - began, detail))

    def tell(self, phase: str, message: str) -> None:
        """An event for whoever watches."""
        self.reporter(Event(phase, message))

    def reduce(self) -> None:
        """Make the problem smaller by its rows alone: nothing but what relates inputs or outputs costs anything."""
        with self.reporter.ledger.spent(Part.ROWS):
            found = reduced(self.problem, self.deadline, self.options.search.tuned(ReductionTuning))
        if found.problem is not self.problem or found.closed:
            self.phases.append(Phase("rows", time.monotonic() - self.began, {"closed": found.closed, "inputs": found.problem.graph.nx}))
            self.reporter.ledger.close(Part.ROWS, found.closed)
            self.problem, self.closed_bound = found.problem, found.bound
            self.proved = {k: (bound, Trust.EXACT) for k, bound in found.margins.items()}
            self.places = found.places
            self.graph = found.problem.graph.to(torch.float64, self.device)

    def presolve(self) -> tuple[list[tuple[Group, BatchBounds]], list[dict[str, Any]]]:
        """Bound every box, cheap bounds first; returns the groups with a disjunct still open, reduced to the open ones, and the rungs.

        Where bounds are dear a short attack follows the first of them; `example` is what it finds, which ends the run.
        """
        still_open, rungs, ledger = list[tuple[Group, BatchBounds]](), list[dict[str, Any]](), self.reporter.ledger
        waiting = groups(self.problem, self.device)
        for k, group in enumerate(waiting):
            found, began = None, time.monotonic()
            bisected = self.options.method.branches and self.options.search.branching is not Branching.NONE
            steps = climb(self.graph, group, self.deadline, self.options.search, bisected)
            while True:
                with ledger.spent(Part.PRESOLVE):
                    rung = next(steps, None)
                if rung is None:
                    break
                ledger.bound(Part.PRESOLVE, rung.group.count)
                found = self.open_part(rung.group, rung.found, Part.PRESOLVE)
                rungs.append(rung.line(time.monotonic() - began))
                if k + 1 == len(waiting):
                    self.reporter.prove(self.bound([*still_open, *found]))
                if rung.first and found and self.options.attack and self.example is None:
                    self.example = self.attack(found, max(self.tuning.short, time.monotonic() - began))
                if self.example is not None:
                    if k + 1 < len(waiting):  # of the groups that have not had their turn nothing is known
                        self.closed_bound = -math.inf
                    return [*still_open, *found], rungs
                began = time.monotonic()
            still_open += found or []
        self.reporter.prove(self.bound(still_open))
        return still_open, rungs

    def refine(self, open_groups: list[tuple[Group, BatchBounds]]) -> list[tuple[Group, BatchBounds]]:
        """Optimise slopes where inputs are many; where they are few, smaller boxes are the better investment."""
        still_open = []
        for group, found in open_groups:
            if few_inputs(group, self.options.search.tuned(GroupTuning)):
                still_open.append((group, found))
            else:
                still_open += self.refined(group, found, max(1.0, self.tuning.refine_share * self.deadline.remaining() / len(open_groups)))
        self.reporter.prove(self.bound(still_open))
        return still_open

    def refined(self, group: Group, found: BatchBounds, seconds: float) -> list[tuple[Group, BatchBounds]]:
        """What optimised slopes leave open of a group; where a search follows that may go on with them, they get a moment alone."""
        search, followed = self.options.search, self.options.method.branches and self.options.search.branching is not Branching.NONE
        paced, now = not search.deterministic, min(seconds, self.tuning.refine_seconds) if followed else seconds
        share = self.deadline.within(now) if paced else self.deadline
        request = BoundRequest(deadline=share, tuning=search.tuned(BoundTuning), cost=search.tuned(CostTuning))
        with self.reporter.ledger.spent(Part.ALPHA_CROWN):
            found = refine(self.graph, group, found, request, search.tuned(GroupTuning), paced)
        self.reporter.ledger.bound(Part.ALPHA_CROWN, group.count)
        if paced and share.expired():
            found = dataclasses.replace(found, unrefined=seconds - now)
        return self.open_part(group, found, Part.ALPHA_CROWN)

    def open_part(self, group: Group, found: BatchBounds, part: Part) -> list[tuple[Group, BatchBounds]]:
        """What bounds leave open of a group (nothing, or one reduced group); what they close counts towards the bound."""
        self.note(group.members, found.margins[0].tolist())
        margins = found.margins[0][group.closed(found.margins)[0]]
        self.closed_bound = min([self.closed_bound, *margins.tolist()])
        self.reporter.ledger.close(part, len(margins))
        left = reduce(group, found)
        return [] if left is None else [left]

    def note(self, members: Sequence[int], bounds: Sequence[float]) -> None:
        """Keep proved bounds of single disjuncts."""
        if (places := self.places) is None:
            return
        for place, bound in zip((places[k] for k in members), bounds, strict=True):
            if bound > self.proved.get(place, (-math.inf, Trust.ROUNDED))[0]:
                self.proved[place] = bound, Trust.ROUNDED

    def margins(self, bound: float, trust: Trust, example: Counterexample | None) -> tuple[Margin, ...]:
        """What is known of every disjunct, with a bound of all of them."""
        overall, nothing = Margin(bound, trust), (-math.inf, Trust.ROUNDED)
        single = (self.proved.get(k, nothing) for k in range(len(self.given.disjuncts)))
        found = [Margin(*known) if known[0] >= bound and known != nothing else overall for known in single]
        if self.points and self.places is not None:
            seconds, tuning = time.monotonic() - self.began, self.options.search.tuned(MarginTuning)
            left = with_points([found[k] for k in self.places], self.problem, self.points, seconds, tuning)
            for place, margin in zip(self.places, left, strict=True):
                found[place] = margin
        return tuple(found if example is None else with_example(found, self.given, example, self.options.search.tuned(MarginTuning)))

    def attack(self, open_groups: list[tuple[Group, BatchBounds]], seconds: float = math.inf) -> Counterexample | None:
        """Look for a counterexample of any open disjunct; where seconds are given for no longer than these, from few starts."""
        members = [m for g, _ in open_groups for m in g.members]
        tuning, numbers, search = self.tuning, self.options.search.tuned(AttackTuning), self.options.search
        few = all(few_inputs(group, search.tuned(GroupTuning)) for group, _ in open_groups)
        starts, rounds = tuning.few if few else tuning.many
        starts, rounds, steps = (starts, rounds, numbers.steps) if seconds == math.inf else tuning.first
        paced, share = not search.deterministic, max(tuning.attack_seconds, tuning.attack_share * self.deadline.remaining())
        turn = min(share, tuning.turn * self.reporter.ledger.seconds.get(Part.PRESOLVE, 0.0))
        with self.reporter.ledger.spent(Part.ATTACK):
            outcome = attack(
                self.problem,
                self.graph.to(torch.float32, self.device),
                [self.problem.disjuncts[m] for m in members],
                self.deadline.within(min(seconds, share)) if paced else self.deadline,
                self.options.seed,
                tuning=dataclasses.replace(numbers, starts=starts, rounds=rounds, steps=steps),
                until=self.deadline.within(turn) if paced and seconds == math.inf else None,
            )
        self.points = {m: outcome.points[k] for k, m in enumerate(members)}
        if outcome.disagreement is not None:
            self.disagreement = str(outcome.disagreement)
        return outcome.counterexample

    def bound(self, open_groups: list[tuple[Group, BatchBounds]]) -> float:
        """The proved lower bound of the margin after the presolve."""
        return min([self.closed_bound, *(float(found.margins.amin()) for _, found in open_groups)])

    def context(self) -> SearchContext:
        """What the search is told."""
        self.reporter.others = self.closed_bound
        return SearchContext(self.problem, self.graph, self.deadline, self.options, self.reporter, self.points)

    # -- the result ---------------------------------------------------------------------------------------------------------

    def empty(self) -> Result:
        """The input set is empty."""
        return self.result(Verdict.VERIFIED, Reason.EMPTY_INPUT_SET, Trust.EXACT, math.inf)

    def contradicted(self) -> Result:
        """The rows of every disjunct exclude each other."""
        reason = Reason.EMPTY_INPUT_SET if self.closed_bound == math.inf else Reason.PROVED
        return self.result(Verdict.VERIFIED, reason, Trust.EXACT, self.closed_bound, bound_trust=Trust.EXACT)

    def falsified(self, open_groups: list[tuple[Group, BatchBounds]], example: Counterexample) -> Result:
        """The attack found a counterexample."""
        return self.result(Verdict.FALSIFIED, Reason.COUNTEREXAMPLE, Trust.ROUNDED, self.bound(open_groups), example)

    def cut_short(self) -> Result:
        """Memory or time ended the run within a step; what was proved until then stays."""
        known, deadline = self.reporter, self.deadline
        timed = deadline.expired() and not deadline.out_of_memory
        reason = Reason.INTERRUPTED if deadline.cancelled else Reason.TIMEOUT if timed else Reason.MEMORY
        return self.result(Verdict.UNKNOWN, reason, known.trust, known.lower_bound, bound_trust=known.trust)

    def conclude(self, open_groups: list[tuple[Group, BatchBounds]], outcome: SearchOutcome | None = None) -> Result:
        """What the search made of what was open; without one, what bounds alone have proved."""
        root = self.bound(open_groups)
        outcome = outcome or SearchOutcome(not open_groups, root, Trust.ROUNDED)
        bound = min(self.closed_bound, max(root, outcome.lower_bound))
        rests = Trust.ROUNDED if root >= bound else Trust.weakest(outcome.trust, Trust.ROUNDED)
        if outcome.counterexample is not None:
            example = outcome.counterexample
            return self.result(Verdict.FALSIFIED, Reason.COUNTEREXAMPLE, Trust.ROUNDED, bound, example, outcome.note, rests)
        disagreement = outcome.disagreement or self.disagreement
        if outcome.closed:
            trust = Trust.weakest(outcome.trust, *([Trust.ROUNDED] if self.closed_bound < math.inf else []))
            if trust.rank < self.options.trust.rank:
                return self.result(Verdict.UNKNOWN, Reason.TRUST, trust, root, None, outcome.note)
            note = "; ".join(filter(None, [outcome.note, disagreement]))
            return self.result(Verdict.VERIFIED, Reason.PROVED, trust, bound, None, note, trust)
        if self.deadline.cancelled:
            reason = Reason.INTERRUPTED
        elif self.deadline.out_of_memory:
            reason = Reason.MEMORY
        elif disagreement:
            return self.result(Verdict.UNKNOWN, Reason.FLOAT_SEMANTICS, rests, bound, None, disagreement, rests)
        else:
            over = self.deadline.expired() and outcome.reason is not Reason.DELTA
            reason = Reason.TIMEOUT if over else outcome.reason
        return self.result(Verdict.UNKNOWN, reason, rests, bound, None, outcome.note, rests)

    def result(
        self,
        verdict: Verdict,
        reason: Reason,
        trust: Trust,
        lower_bound: float,
        counterexample: Counterexample | None = None,
        note: str = "",
        bound_trust: Trust = Trust.ROUNDED,
    ) -> Result:
        """Everything about the run. What was proved on the way stays proved, however the search ended."""
        known, substitution = self.reporter, self.problem.substitution
        if counterexample is not None and substitution is not None:
            lifted = substitution.lift(counterexample.x)
            assert lifted is not None  # or it would not have been accepted
            counterexample = dataclasses.replace(counterexample, x=lifted)
        tensors = (*stretches("X", self.given.graph.inputs), *stretches("Y", self.given.graph.outputs))
        if counterexample is not None:
            counterexample = dataclasses.replace(counterexample, tensors=tensors)
        if known.lower_bound > lower_bound:
            lower_bound, bound_trust = known.lower_bound, known.trust
            trust = known.trust if verdict is Verdict.UNKNOWN and reason is not Reason.TRUST else trust
        ours = SIGN_ONLY if verdict is Verdict.VERIFIED and lower_bound == 0.0 else ""
        note = "; ".join(filter(None, [*self.problem.notes, note, ours]))
        return Result(
            verdict=verdict,
            reason=reason,
            trust=trust,
            lower_bound=lower_bound,
            counterexample=counterexample,
            note=note,
            bound_trust=bound_trust,
            ledger=self.reporter.ledger.to_dict(),
            margins=self.margins(lower_bound, bound_trust, counterexample),
            seconds=time.monotonic() - self.began,
            phases=tuple(self.phases),
            setting=Setting(versions(), self.options.to_dict(), dict(self.given.files)),
            tensors=tensors,
        )


def stretches(letter: str, specs: Iterable[TensorSpec]) -> list[Stretch]:
    """Where the tensors of a network, one after the other, lie among the variables of a letter."""
    found, first = list[Stretch](), 0
    for spec in specs:
        found.append(Stretch(letter, spec.name, spec.shape, spec.dtype, first, first + spec.size - 1))
        first += spec.size
    return found
