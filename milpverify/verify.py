"""verify(): presolve -> attack -> refine -> search, one readable page.

1. Presolve: CROWN bounds what the rows depend on over each box; disjuncts whose margin is proved positive are closed.
2. Attack: projected gradient looks for a counterexample; only one that holds in the network's runtime and in real arithmetic counts.
3. Refine: where inputs are many, alpha-CROWN tightens the pre-activations and the margins.
4. Search: what is still open is decided by branching, by whole mixed-integer models, or by SMT, as the method says.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from milpverify.arithmetic.rounding import ieee
from milpverify.config import Branching, Deadline, Milp, Options, SearchMethod
from milpverify.counterexamples.attack import attack
from milpverify.events import Event
from milpverify.result import Counterexample, Phase, Reason, Result, Trust, Verdict
from milpverify.run_info import device_of, settings_of, threads, versions
from milpverify.search.bounding import REFINE, BatchBounds, bound_batch, is_out_of_memory, reduce, refine
from milpverify.search.groups import Group, few_inputs, groups
from milpverify.search.ledger import Part, Reporter
from milpverify.search.strategy import Decision, decide

if TYPE_CHECKING:
    from milpverify.spec import Problem

OnEvent = Callable[[Event], None]
LARGE = 20_000
"""Above this number of entries of all nodes the presolve multiplies in float32, which halves its time; its bounds hold all the same."""
REFINE_SHARE = 0.25
"""The share of the time left that optimising the root's slopes may take, and"""
REFINE_SECONDS = 2.0
"""what of it comes before the search, which often needs no more."""


def verify(
    problem: Problem,
    timeout: float | None = None,
    method: str | SearchMethod | Milp = SearchMethod.AUTO,
    *,
    deadline: Deadline | None = None,
    options: Options | None = None,
    on_event: OnEvent | None = None,
) -> Result:
    """Decide whether the unsafe set of a problem is empty over real arithmetic.

    Args:
        problem: from `load`.
        timeout: seconds of wall clock; None for no limit.
        method: "auto", "bab" (branch-and-bound), "milp" or "smt", or a `Milp(solver)`.
        deadline: in place of `timeout`, a deadline that the caller can cancel.
        options: the rest; `method` here wins over the one there unless it is "auto".
        on_event: called with progress events.

    Returns:
        the verdict with its reason, what it rests on (`Trust`), and a proved lower bound of the margin that is valid however the
        run ended. VERIFIED is proved with bounds that hold under rounding unless the trust is SOLVER; FALSIFIED comes with a point
        that violates the property in the network's own runtime and in real arithmetic.

    Raises:
        InvalidInput: an unknown method, solver or trust.
    """
    settings = settings_of(options or Options(), method)
    run = _Run(problem, settings, deadline or Deadline(math.inf if timeout is None else timeout), on_event)
    with torch.no_grad(), ieee(), threads(settings.threads):
        try:
            answer = _decide(run)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            known = run.reporter
            answer = _Answer(Verdict.UNKNOWN, Reason.MEMORY, known.trust, known.lower_bound, bound_trust=known.trust)
        return run.result(answer)


def _decide(run: _Run) -> _Answer:
    """The algorithm."""
    if not run.problem.disjuncts:
        return _Answer(Verdict.VERIFIED, Reason.EMPTY_INPUT_SET, Trust.EXACT, math.inf)
    with run.phase("presolve") as detail:
        open_groups = run.presolve()
        detail.update(disjuncts=len(run.problem.disjuncts), open=sum(g.count for g, _ in open_groups))
    if not open_groups:
        return run.conclude([], Decision(True, run.closed_bound, Trust.ROUNDED))
    if run.options.attack:
        with run.phase("attack") as detail:
            found = run.attack(open_groups)
            detail.update(found=found is not None)
        if found is not None:
            return _Answer(Verdict.FALSIFIED, Reason.COUNTEREXAMPLE, Trust.ROUNDED, run.bound(open_groups), found)
    if run.options.search.refining:
        with run.phase("refine") as detail:
            open_groups = run.refine(open_groups)
            detail.update(open=sum(g.count for g, _ in open_groups))
    if not open_groups:
        return run.conclude([], Decision(True, run.closed_bound, Trust.ROUNDED))
    if run.options.search.branching is Branching.NONE:
        return run.conclude(open_groups, Decision(False, run.bound(open_groups), Trust.ROUNDED))
    with run.phase("search") as detail:
        run.reporter.others = run.closed_bound
        decision = decide(run.problem, run.graph, open_groups, run.points, run.options, run.deadline, run.reporter)
        detail.update(decision.detail)
    return run.conclude(open_groups, decision)


@dataclass(frozen=True)
class _Answer:
    verdict: Verdict
    reason: Reason
    trust: Trust
    lower_bound: float
    counterexample: Counterexample | None = None
    note: str = ""
    bound_trust: Trust = Trust.ROUNDED


@dataclass
class _Run:
    """A run under way: what every phase needs, and the ledger."""

    problem: Problem
    options: Options
    deadline: Deadline
    on_event: OnEvent | None
    phases: list[Phase] = field(default_factory=list)
    closed_bound: float = math.inf
    points: dict[int, Any] = field(default_factory=dict)  # per disjunct, the best input the attack saw
    disagreement: str = ""

    def __post_init__(self) -> None:
        self.reporter = Reporter(self.on_event)
        self.deadline.watch_memory(self.options.memory_mb)
        self.device = device_of(self.options.device)
        self.graph = self.problem.graph.to(torch.float64, self.device)
        self.began = time.monotonic()

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

    def presolve(self) -> list[tuple[Group, BatchBounds]]:
        """Bound every box; returns the groups with a disjunct still open, reduced to the open ones."""
        still_open = []
        ledger = self.reporter.ledger
        for group in groups(self.problem, self.device):
            box = group.box
            lower, upper = (torch.tensor(side, device=self.device)[None] for side in (box.lower, box.upper))
            dtype = torch.float64 if self.graph.entries <= LARGE else torch.float32
            with ledger.spent(Part.PRESOLVE):
                found = bound_batch(self.graph, group, lower, upper, dtype, deadline=self.deadline)
            ledger.bound(Part.PRESOLVE, group.count)
            still_open += self.open_part(group, found, Part.PRESOLVE)
        self.reporter.prove(self.bound(still_open))
        return still_open

    def refine(self, open_groups: list[tuple[Group, BatchBounds]]) -> list[tuple[Group, BatchBounds]]:
        """Optimise slopes where inputs are many; where they are few, smaller boxes are the better investment."""
        still_open = []
        for group, found in open_groups:
            if few_inputs(group):
                still_open.append((group, found))
            else:
                still_open += self.refined(group, found, max(1.0, REFINE_SHARE * self.deadline.remaining() / len(open_groups)))
        self.reporter.prove(self.bound(still_open))
        return still_open

    def refined(self, group: Group, found: BatchBounds, seconds: float) -> list[tuple[Group, BatchBounds]]:
        """What optimised slopes leave open of a group; where a search follows that may go on with them, they get a moment alone."""
        paced, followed = not self.options.search.deterministic, self.options.method.branches
        now = min(seconds, REFINE_SECONDS) if followed and self.options.search.branching is not Branching.NONE else seconds
        share = self.deadline.within(now) if paced else self.deadline
        with self.reporter.ledger.spent(Part.ALPHA_CROWN):
            found = refine(self.graph, group, found, REFINE, share, paced)
        self.reporter.ledger.bound(Part.ALPHA_CROWN, group.count)
        if paced and share.expired():
            found = dataclasses.replace(found, unrefined=seconds - now)
        return self.open_part(group, found, Part.ALPHA_CROWN)

    def open_part(self, group: Group, found: BatchBounds, part: Part) -> list[tuple[Group, BatchBounds]]:
        """What bounds leave open of a group (nothing, or one reduced group); what they close counts towards the bound."""
        margins = found.margins[0][group.closed(found.margins)[0]]
        self.closed_bound = min([self.closed_bound, *margins.tolist()])
        self.reporter.ledger.close(part, len(margins))
        left = reduce(group, found)
        return [] if left is None else [left]

    def attack(self, open_groups: list[tuple[Group, BatchBounds]]) -> Counterexample | None:
        """Look for a counterexample of any open disjunct."""
        members = [m for g, _ in open_groups for m in g.members]
        # Where inputs are few an evaluation is cheap, and stubborn counterexamples yield to more starts.
        starts, rounds = (128, 6) if all(few_inputs(g) for g, _ in open_groups) else (32, 2)
        with self.reporter.ledger.spent(Part.ATTACK):
            outcome = attack(
                self.problem,
                self.graph.to(torch.float32, self.device),
                [self.problem.disjuncts[m] for m in members],
                self.deadline,
                self.options.seed,
                starts=starts,
                rounds=rounds,
            )
        self.points = {m: outcome.points[k] for k, m in enumerate(members)}
        if outcome.disagreement is not None:
            self.disagreement = str(outcome.disagreement)
        return outcome.counterexample

    def bound(self, open_groups: list[tuple[Group, BatchBounds]]) -> float:
        """The proved lower bound of the margin after the presolve."""
        return min([self.closed_bound, *(float(found.margins.amin()) for _, found in open_groups)])

    def conclude(self, open_groups: list[tuple[Group, BatchBounds]], decision: Decision) -> _Answer:
        """The search's decision as the run's answer."""
        root = self.bound(open_groups)
        bound = min(self.closed_bound, max(root, decision.lower_bound))
        rests = Trust.ROUNDED if root >= bound else Trust.weakest(decision.trust, Trust.ROUNDED)
        if decision.counterexample is not None:
            example = decision.counterexample
            return _Answer(Verdict.FALSIFIED, Reason.COUNTEREXAMPLE, Trust.ROUNDED, bound, example, decision.note, rests)
        if decision.verified:
            trust = Trust.weakest(decision.trust, *([Trust.ROUNDED] if self.closed_bound < math.inf else []))
            if trust.rank < self.options.trust.rank:
                return _Answer(Verdict.UNKNOWN, Reason.TRUST, trust, root, None, decision.note)
            return _Answer(Verdict.VERIFIED, Reason.PROVED, trust, bound, None, decision.note, trust)
        disagreement = decision.disagreement or self.disagreement
        if self.deadline.cancelled:
            reason = Reason.INTERRUPTED
        elif self.deadline.out_of_memory:
            reason = Reason.MEMORY
        elif disagreement:
            return _Answer(Verdict.UNKNOWN, Reason.FLOAT_SEMANTICS, rests, bound, None, disagreement, rests)
        else:
            over = self.deadline.expired() and decision.reason is not Reason.DELTA
            reason = Reason.TIMEOUT if over else decision.reason
        return _Answer(Verdict.UNKNOWN, reason, rests, bound, None, decision.note, rests)

    def result(self, answer: _Answer) -> Result:
        """Everything about the run. What was proved on the way stays proved, however the search ended."""
        known = self.reporter
        if known.lower_bound > answer.lower_bound:
            rests = known.trust if answer.verdict is Verdict.UNKNOWN and answer.reason is not Reason.TRUST else answer.trust
            answer = dataclasses.replace(answer, lower_bound=known.lower_bound, bound_trust=known.trust, trust=rests)
        return Result(
            **{f.name: getattr(answer, f.name) for f in dataclasses.fields(answer)},
            ledger=self.reporter.ledger.to_dict(),
            seconds=time.monotonic() - self.began,
            phases=tuple(self.phases),
            versions=versions(),
            options=self.options.to_dict(),
            files={path: hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in self.problem.files},
        )
