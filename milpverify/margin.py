"""The margin itself, to within a gap: what verify(margin=True), minimize() and maximize() have in common.

The incumbent is the threshold: with a point of margin U at hand, the question whether any input has a margin of at most U - gap is one for
`verify`. If none has, the margin is known to within the gap; if one has, it is the next incumbent. At any time the threshold and the margin
that the last search proved above it bound the margin from below.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from milpverify.counterexamples.attack import attack
from milpverify.counterexamples.margins import at_least, at_point
from milpverify.counterexamples.validate import inside, real_margin
from milpverify.errors import Contradiction, InvalidProperty
from milpverify.result import SIGN_ONLY, Event, Reason, Result, Trust, Verdict
from milpverify.spec import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from milpverify.config import Deadline, Options
    from milpverify.spec import Array


@dataclass(frozen=True)
class Gap:
    """How close the bounds shall come: absolutely, or relative to margins that are larger than 1.

    Raises:
        InvalidProperty: it is not positive.
    """

    size: float
    relative: bool = False

    def __post_init__(self) -> None:
        if not (isinstance(self.size, int | float) and self.size > 0 and math.isfinite(self.size)):
            raise InvalidProperty(f"the gap must be a positive number, not {self.size}")

    def at(self, margin: float) -> float:
        """The absolute gap near a margin."""
        return self.size * max(1.0, abs(margin)) if self.relative and math.isfinite(margin) else self.size


@dataclass(frozen=True, eq=False)
class Bracket:
    """The margin of a problem in real arithmetic, between proved bounds.

    `lower_bound` rests on `trust`; `x` (nx,) attains at most `upper_bound` (None and inf where no point is known). `reason` is PROVED where
    the bounds are within the gap, else why the last search stopped. `searches` are the results of all of them, in their order.
    """

    lower_bound: float
    trust: Trust
    upper_bound: float
    x: Array | None
    reason: Reason
    searches: tuple[Result, ...]


def in_reals(problem: Problem) -> Problem:
    """The problem with points judged in float64: the margin is one of real arithmetic, no runtime is asked."""
    inputs = tuple(replace(s, dtype="float64") for s in problem.graph.inputs)
    return Problem(replace(problem.graph, inputs=inputs), problem.disjuncts)


def shifted(problem: Problem, threshold: float) -> Problem:
    """The question whether any point has a margin of at most the threshold; its own margin is that much smaller, or by a rounding more."""
    # Right-hand sides are rounded upwards, so that what is proved of the margin above the threshold is true.
    disjuncts = [replace(d, unsafe=replace(d.unsafe, rhs=np.nextafter(d.unsafe.rhs + threshold, np.inf))) for d in problem.disjuncts]
    return Problem(problem.graph, tuple(disjuncts))


def margin_at(problem: Problem, x: Array) -> float:
    """An upper bound of the margin at a point (nx,) in real arithmetic: over the disjuncts that it lies in; inf where there is none."""
    return min((real_margin(problem.graph, d.unsafe, x)[1] for d in problem.disjuncts if inside(problem.graph, d, x)), default=math.inf)


def seek(problem: Problem, deadline: Deadline, seed: int) -> list[Array]:
    """Points of small margins, by projected gradient: at most one per disjunct."""
    found = attack(problem, problem.graph, problem.disjuncts, deadline, seed)
    return [x for x, margin in zip(found.points, found.margins.tolist(), strict=True) if math.isfinite(margin)]


def bracket(
    problem: Problem,
    ask: Callable[[Problem, float], Result],
    gap: Gap,
    lower_bound: float,
    points: Iterable[Array],
    weakest: Trust,
    trust: Trust = Trust.ROUNDED,
) -> Bracket:
    """Ask until the margin is known to within a gap.

    Args:
        problem: in the reals.
        ask: decides a problem, whose margins are smaller by the second argument; answers UNKNOWN where time is over.
        lower_bound: a proved bound to begin with, which rests on `trust`.
        points: candidates for the first incumbent, (nx,) each.
        weakest: bounds that rest on less do not count.

    Raises:
        Contradiction: a proved bound excludes the incumbent.
    """
    lower, upper, x = lower_bound, math.inf, None
    for point in points:
        if (value := margin_at(problem, point)) < upper:
            upper, x = value, point
    reason, searches = Reason.PROVED, list[Result]()
    _refute(lower, trust, upper, x)
    while upper > lower + (width := gap.at(upper)):
        # With no incumbent (none satisfies the constraints so far) any value will do for a first one.
        threshold = upper - 0.75 * width if math.isfinite(upper) else (abs(lower) if math.isfinite(lower) else 0.0) * 1e3 + 1e3
        result = ask(shifted(problem, threshold), threshold)
        searches.append(result)
        before = lower, upper
        claims = [(result.lower_bound, result.bound_trust)] + [(0.0, result.trust)] * (result.verdict is Verdict.VERIFIED)
        claims = [(margin, rests) for margin, rests in claims if math.isfinite(margin) and rests.rank >= weakest.rank]
        margin, rests = max(claims, key=lambda claim: (claim[0], claim[1].rank), default=(-math.inf, trust))
        if threshold + margin > lower:
            lower, trust = math.nextafter(threshold + margin, -math.inf), rests
        if result.verdict is Verdict.FALSIFIED and result.counterexample is not None:
            value = margin_at(problem, result.counterexample.x)
            upper, x = (value, result.counterexample.x) if value < upper else (upper, x)
        _refute(lower, trust, upper, x)
        if upper <= lower + gap.at(upper):
            break
        if result.verdict is Verdict.UNKNOWN or not math.isfinite(upper):
            reason = result.reason
            break
        if (lower, upper) == before:
            reason = Reason.UNDECIDED  # the gap is below what rounding leaves of the values
            break
    if reason is Reason.PROVED and trust.rank < weakest.rank:
        reason = Reason.TRUST
    return Bracket(lower, trust, upper, x, reason, tuple(searches))


def raised(on_event: Callable[[Event], None] | None, threshold: float) -> Callable[[Event], None] | None:
    """Events about a shifted problem as those about the problem itself: bounds are larger by the threshold."""
    if on_event is None:
        return None

    def told(event: Event) -> None:
        bound = event.data.get("lower_bound")
        if isinstance(bound, float):
            event = replace(event, data={**event.data, "lower_bound": math.nextafter(bound + threshold, -math.inf)})
        on_event(event)

    return told


class Ask(Protocol):
    """`verify` with all but the problem and the options settled."""

    def __call__(self, problem: Problem, *, options: Options, on_event: Callable[[Event], None] | None) -> Result: ...


def margin_to_gap(
    problem: Problem, ask: Ask, gap: Gap, settings: Options, deadline: Deadline, on_event: Callable[[Event], None] | None = None
) -> Result:
    """The verdict, and then the margin to within a gap as long as there is time.

    The verdict is that of the sign alone, unless it was open and the margin's bound decides it.
    """
    first = ask(problem, options=settings, on_event=on_event)
    if on_event is not None:  # what bounds alone decide is over before they are told
        on_event(Event("margin", first.verdict.value, {"lower_bound": first.lower_bound, "bound_trust": first.bound_trust.value}))
    if not problem.disjuncts:
        return replace(first, upper_bound=math.inf)
    ours = in_reals(problem)
    points = [] if first.counterexample is None else [first.counterexample.x]
    if first.lower_bound < math.inf:
        # The attack ends at the first counterexample; none is left where the threshold is a bound.
        points += seek(shifted(ours, first.lower_bound if math.isfinite(first.lower_bound) else 0.0), deadline, settings.seed)
    options = replace(settings, delta=min(settings.delta, gap.size / 8))
    bound, rests = first.lower_bound, first.bound_trust

    def above(question: Problem, threshold: float) -> Result:
        return ask(question, options=options, on_event=raised(on_event, threshold))

    found = bracket(ours, above, gap, bound, points, settings.trust, rests)
    verdict, reason, trust, note = first.verdict, first.reason, first.trust, first.note.removesuffix(SIGN_ONLY).removesuffix("; ")
    if (
        verdict is Verdict.UNKNOWN
        and found.trust.rank >= settings.trust.rank
        and all(d.closes(found.lower_bound) for d in problem.disjuncts)
    ):
        verdict, reason, trust = Verdict.VERIFIED, Reason.PROVED, found.trust
    margins = at_least(first.margins, found.lower_bound, found.trust)
    if found.x is not None:
        margins = at_point(margins, ours, found.x)
    if found.reason is not Reason.PROVED:
        note = "; ".join(
            filter(
                None, [note, f"the margin is known to lie within [{found.lower_bound:.6g}, {found.upper_bound:.6g}]: {found.reason.value}"]
            )
        )
    return replace(
        first,
        verdict=verdict,
        reason=reason,
        trust=trust,
        note=note,
        lower_bound=found.lower_bound,
        bound_trust=found.trust,
        upper_bound=found.upper_bound,
        nearest=found.x,
        margins=tuple(margins),
        seconds=deadline.elapsed(),
        ledger=summed([first.ledger, *(result.ledger for result in found.searches)]),
    )


def summed(ledgers: Iterable[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Per part, what all ledgers say together."""
    total: dict[str, dict[str, float]] = {}
    for part, counts in (item for ledger in ledgers for item in ledger.items()):
        known = total.setdefault(part, dict.fromkeys(counts, 0))
        for name, count in counts.items():
            known[name] += count
    return total


def _refute(lower: float, trust: Trust, upper: float, x: Array | None) -> None:
    if lower > upper and x is not None:
        point = ", ".join(f"{v:.9g}" for v in x[:8].tolist()) + (", ..." if len(x) > 8 else "")
        raise Contradiction(
            f"a margin of at least {lower:.17g} was proved (trust {trust.value}), but it is at most {upper:.17g} at X = ({point})"
        )
