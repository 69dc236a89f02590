"""The robustness radius: the nearest counterexample that is known is the threshold, and what is proved is a radius just below it.

1. The input itself is judged.
2. Attack: projections onto linearised decision boundaries find a near counterexample, mostly the nearest there is.
3. Bounds: CROWN proves a first radius, many of them in one batch.
4. Search: `verify` is asked about the radius that would close the gap. If that is proved, all is done; if not, there is a nearer
   counterexample. What takes too long is asked again with four times the seconds, and in between radii that are easier to prove, for
   the time that a proof takes grows steeply with the radius.

Bisection takes several times as long, for it needs five searches in place of one, and mixed-integer programs that minimise the distance
itself take longer still (`tests/benchmarks/PERFORMANCE.md`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from milpverify.counterexamples.attack import AttackTuning, attack
from milpverify.ladder import LadderTuning, precision
from milpverify.radius.bounding import GridTuning, proved_radius
from milpverify.radius.bracket import Bracket
from milpverify.radius.nearest import NearestTuning, nearest
from milpverify.radius.question import Witness
from milpverify.radius.result import Radius
from milpverify.result import Reason, Trust, Verdict
from milpverify.run_info import device_of, working
from milpverify.tuning import Tuning
from milpverify.verify import verify

if TYPE_CHECKING:
    from milpverify.config import Deadline, Options
    from milpverify.radius.question import Question
    from milpverify.run import OnEvent
    from milpverify.spec import Array


class RadiusTuning(Tuning):
    """How a radius is looked for."""

    starts: int = 8
    judged: int = 4
    """Where an attack starts: at a point and around it; and how many of the nearest points that it finds are judged."""
    around: float = 0.1
    """How far around, of the radius that is known to be too large."""
    shrinking: tuple[int, int] = (32, 2)
    """Starts and rounds of an attack in a ball that is smaller than what is known to be too large."""
    seconds: float = 2.0
    share: float = 0.25
    growth: float = 4.0
    """What the first search may take, at least, and of the time left; and by how much more the next one that asks the same."""
    below: float = 0.5
    kept: float = 0.25
    """How much of that goes to smaller radii after it, and what of the time left is kept for them."""
    near: float = 0.05
    """Where a search took too long, radii smaller by less than this share are not tried in its place."""
    tiny: float = 2.0**-20
    """Nothing is proved, and not even at so small a share of the radius that was aimed at: that is enough."""


def find(question: Question, gap: float, options: Options, deadline: Deadline, on_event: OnEvent | None = None) -> Radius:
    """The radius of a question, up to a relative gap.

    Raises:
        Contradiction: a counterexample lies within a proved radius.
    """
    began = deadline.elapsed()
    bracket = Bracket(question, gap, on_event)
    if (own := question.judge_centre().counterexample) is not None:
        bracket.witness = Witness(0.0, own)
        return _result(bracket, Reason.COUNTEREXAMPLE, deadline.elapsed() - began)
    search = Search(bracket, options, deadline, on_event)
    search.run()
    reason, note = search.ending()
    return _result(bracket, reason, deadline.elapsed() - began, search.searches, note)


def _result(bracket: Bracket, reason: Reason, seconds: float, searches: int = 0, note: str = "") -> Radius:
    question, example, other = bracket.question, None, None
    if bracket.witness is not None:
        example = bracket.witness.example
        other = max(question.targets, key=lambda t: float(example.y[t]))
    known = bracket.lower, bracket.upper, example, bracket.trust, reason, seconds
    return Radius(*known, question.label, other, searches, note, question.around.norm.value)


@dataclass(eq=False)
class Search:
    """A search under way. `stuck` is the least radius that `verify` gave up though there was time, and `given_up` says why."""

    bracket: Bracket
    options: Options
    deadline: Deadline
    on_event: OnEvent | None = None
    searches: int = 0
    stuck: float = math.inf
    given_up: tuple[Reason, str] = (Reason.UNDECIDED, "")

    def __post_init__(self) -> None:
        self.tuning = self.options.search.tuned(RadiusTuning)

    def run(self) -> None:
        """Go on until the gap is closed, nothing more can be decided, or the time is over."""
        bracket, deadline = self.bracket, self.deadline
        if self.options.attack:
            self._attack(bracket.question.around.centre, self.tuning.starts)
        self._bound()
        left = deadline.remaining()
        seconds = max(self.tuning.seconds, self.tuning.share * left if left < math.inf else 0.0)
        if self.options.search.deterministic:
            seconds = math.inf
        while not (bracket.closed or self._is_stuck() or deadline.expired()):
            high = min(bracket.top, self.stuck)
            if high == self.stuck or not self._ask(high, deadline.within(min(seconds, (1.0 - self.tuning.kept) * deadline.remaining()))):
                self._ask_below(min(high, self.stuck), deadline.within(self.tuning.below * seconds))
                seconds *= self.tuning.growth

    def ending(self) -> tuple[Reason, str]:
        """Why the search ended, and more in words."""
        bracket = self.bracket
        if bracket.lower >= bracket.upper * (1.0 - bracket.gap):
            return Reason.PROVED, ""
        if bracket.closed and bracket.tied < math.inf:
            note = f"at the distance {bracket.tied:.6g} an output is as large as the label's; no point is known where one is larger"
            return Reason.UNDECIDED, note
        if bracket.closed:
            return Reason.UNDECIDED, "without a clip, nothing further away is looked at"
        if self._is_stuck():
            return self.given_up
        if self.deadline.cancelled:
            return Reason.INTERRUPTED, ""
        return (Reason.MEMORY if self.deadline.out_of_memory else Reason.TIMEOUT), ""

    def _is_stuck(self) -> bool:
        """Whether no radius is left that is worth asking about."""
        bracket = self.bracket
        return self.stuck <= bracket.top and self.stuck - bracket.lower <= max(bracket.gap * self.stuck, self.tuning.tiny * bracket.top)

    # -- one step each --------------------------------------------------------------------------------------------------------

    def _attack(self, x: Array, starts: int) -> None:
        """Descend from x (nx,) and points around it to near counterexamples."""
        question = self.bracket.question
        around, graph = question.around, question.graph
        size = self.tuning.around * min(self.bracket.upper, around.reach, float(np.abs(around.centre).max()) or 1.0)
        shifts = np.random.default_rng(self.options.seed).uniform(-size, size, (starts - 1, len(x))) * around.weight
        points = np.concatenate([x[None], np.clip(x + shifts, around.low, around.high)])
        dtype = precision(graph, self.options.search.tuned(LadderTuning))
        with working(self.options):
            found = nearest(
                question, graph.to(dtype, device_of(self.options.device)), points, self.deadline, self.options.search.tuned(NearestTuning)
            )
            for candidate in found[: self.tuning.judged]:
                self.bracket.refute(candidate)

    def _shrink(self) -> None:
        """Attack in smaller and smaller balls: projections do not get on where kinks of the network meet."""
        question, share = self.bracket.question, 2.0 * self.bracket.gap
        graph = question.graph.to(torch.float32, device_of(self.options.device))
        starts, rounds = self.tuning.shrinking
        tuning = replace(self.options.search.tuned(AttackTuning), starts=starts, rounds=rounds)
        while share >= self.bracket.gap:
            problem = question.problem(self.bracket.upper * (1.0 - share), strict=True)
            found = None
            with working(self.options):
                found = attack(problem, graph, problem.disjuncts, self.deadline, self.options.seed, tuning=tuning).counterexample
            if self.deadline.expired():
                return
            if found is not None and self.bracket.refute(found.x):
                share = min(2.0 * share, 0.5)
            else:
                share *= 0.25

    def _bound(self) -> None:
        """Prove a first radius by bound propagation alone."""
        if self.options.trust.rank > Trust.ROUNDED.rank:
            return
        bracket = self.bracket
        with working(self.options):
            graph = bracket.question.graph.to(torch.float64, device_of(self.options.device))
            bracket.prove(
                proved_radius(bracket.question, graph, bracket.top, self.deadline, self.options.search.tuned(GridTuning)), Trust.ROUNDED
            )

    def _ask(self, radius: float, limit: Deadline) -> bool:
        """Ask `verify` about a radius; whether that changed what is known."""
        bracket = self.bracket
        self.searches += 1
        # Where the gap would be closed a counterexample is likely to be near; below, the search meets it if there is one.
        options = replace(self.options, attack=self.options.attack and radius == bracket.top)
        result = verify(bracket.question.problem(radius), deadline=limit, options=options, on_event=self.on_event)
        if result.verdict is Verdict.VERIFIED:
            bracket.prove(radius, result.trust)
            return True
        if result.counterexample is not None:
            x = result.counterexample.x
            if not bracket.refute(x):
                bracket.tied = min(bracket.tied, bracket.question.around.distance(x))
            elif self.options.attack:
                self._attack(x, 1)
                self._shrink()
            return True
        if result.reason not in (Reason.TIMEOUT, Reason.INTERRUPTED) and not self.deadline.expired():
            self.stuck, self.given_up = radius, (result.reason, result.note)
        return False

    def _ask_below(self, high: float, limit: Deadline) -> None:
        """Bisect between what is proved and a radius that was not decided, up to a limit of time."""
        bracket = self.bracket
        top = bracket.top
        near = bracket.gap if high == self.stuck else max(self.tuning.near, bracket.gap)
        while bracket.top == top and high - bracket.lower > max(near * high, self.tuning.tiny * top) and not limit.expired():
            radius = _between(bracket.lower, high)
            if not self._ask(radius, limit):
                high = radius


def _between(low: float, high: float) -> float:
    """A radius between two: in the middle, of their logarithms where they are far apart."""
    if low == 0.0:
        return high / 8.0
    return math.sqrt(low * high) if high > 4.0 * low else 0.5 * (low + high)
