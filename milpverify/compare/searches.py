"""Complete methods, which stop at the sign of the margin, branch-and-bound cut short, and the margin itself."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from milpverify.compare.relaxations import Level, concluded, raised
from milpverify.compare.rows import Answer, Witness, Word
from milpverify.config import Milp, Options, SearchMethod
from milpverify.result import Reason, Trust, Verdict
from milpverify.run import Run
from milpverify.run_info import working
from milpverify.search.branch_and_bound import Budget, branch_and_bound
from milpverify.search.neuron_split.space import NeuronSpace
from milpverify.search.outcome import SearchOutcome, together
from milpverify.solvers.process import SolverProcess
from milpverify.verify import verify

if TYPE_CHECKING:
    from collections.abc import Callable

    from milpverify.compare.relaxations import Root
    from milpverify.compare.rows import Tell
    from milpverify.config import Deadline
    from milpverify.result import Counterexample, Event, Result
    from milpverify.search.context import SearchContext
    from milpverify.spec import Problem


def decide(problem: Problem, method: SearchMethod | Milp, deadline: Deadline, tell: Tell) -> Answer:
    """The verdict of `verify`."""
    result = verify(problem, deadline=deadline, method=method, on_event=_telling(tell))
    return replace(_answer(result), signed=result.verdict is not Verdict.UNKNOWN)


def exact(problem: Problem, gap: float, deadline: Deadline, tell: Tell) -> Answer:
    """The margin to within a gap, relative to margins larger than 1."""
    result = verify(problem, deadline=deadline, margin=True, gap=gap, on_event=_telling(tell))
    found = _answer(result)
    least = result.upper_bound
    closed = math.isfinite(least) and least <= result.lower_bound + gap * max(1.0, abs(least))
    if result.nearest is not None:
        found = replace(found, witness=Witness(least, tuple(result.nearest.tolist())))
    return replace(found, closed=closed, signed=False)


def split(problem: Problem, subproblems: int, deadline: Deadline, tell: Tell) -> Answer:
    """beta-CROWN: branch-and-bound on neurons from the bounds of alpha-CROWN until so many subproblems are bounded."""
    with SolverProcess("highs") as process:
        roots = raised(problem, Level.ALPHA_CROWN, deadline, tell, process)
    first = concluded(roots)
    if first.verdict is not Word.UNKNOWN:
        return first
    run = Run(problem, Options(method=SearchMethod.BAB, attack=False), deadline, None)
    parts, left = list[SearchOutcome](), subproblems
    with working(run.options):
        for root in roots:
            outcome, spent = _searched(run.context(), root, left)
            parts, left = [*parts, outcome], max(0, left - spent)
            if outcome.counterexample is not None:
                break
    if not parts:
        return replace(first, message=Reason.MEMORY.value)
    parts += [SearchOutcome(False, float(root.margins.amin()), Trust.ROUNDED) for root in roots[len(parts) :]]
    found = together(parts)
    bound, trust = max(first.lower_bound, found.lower_bound), Trust.weakest(found.trust, Trust.ROUNDED)
    if found.counterexample is not None:
        return Answer(Word.SAT, bound, trust, witness=_witness(found.counterexample), signed=True)
    if found.closed:
        return Answer(Word.UNSAT, bound, trust, signed=True)
    return Answer(Word.TIMEOUT if deadline.expired() else Word.UNKNOWN, bound, trust)


def _searched(context: SearchContext, root: Root, budget: int) -> tuple[SearchOutcome, int]:
    """The search of one group, with the bound of all of it, and how many subproblems it bounded."""
    margins, closed = root.margins[0], root.group.closed(root.margins)[0]
    known = min(margins[closed].tolist(), default=math.inf)
    if bool(closed.all()):
        return SearchOutcome(True, known, Trust.ROUNDED), 0
    group = root.group.select((~closed).nonzero(as_tuple=True)[0].tolist())
    space = NeuronSpace(context, group, root.state)
    tree = branch_and_bound(space.tree(), space, Budget(context.deadline, budget))
    outcome = tree.outcome({})
    return replace(outcome, lower_bound=min(known, max(outcome.lower_bound, float(margins[~closed].amin())))), tree.counts.bounded


def _answer(result: Result) -> Answer:
    words = {Verdict.VERIFIED: Word.UNSAT, Verdict.FALSIFIED: Word.SAT, Verdict.UNKNOWN: Word.UNKNOWN}
    verdict = words[result.verdict]
    if verdict is Word.UNKNOWN and result.reason is Reason.TIMEOUT:
        verdict = Word.TIMEOUT
    plain = result.reason in (Reason.PROVED, Reason.COUNTEREXAMPLE, Reason.TIMEOUT)
    message = "; ".join(filter(None, ["" if plain else result.reason.value, result.note]))
    witness = None if result.counterexample is None else _witness(result.counterexample)
    # One word for the bound and the verdict: the weaker of the two.
    trust = Trust.weakest(result.trust, result.bound_trust) if math.isfinite(result.lower_bound) else result.trust
    known = result.verdict is not Verdict.UNKNOWN or result.lower_bound > -math.inf
    return Answer(verdict, result.lower_bound, trust if known else None, message, witness)


def _witness(example: Counterexample) -> Witness:
    return Witness(example.margin_real, tuple(example.x.tolist()))


def _telling(tell: Tell) -> Callable[[Event], None]:
    """Pass proved bounds on as they come."""

    def heard(event: Event) -> None:
        bound, trust = event.data.get("lower_bound"), event.data.get("bound_trust")
        if isinstance(bound, float) and isinstance(trust, str) and bound > -math.inf:
            tell(Answer(Word.TIMEOUT, bound, Trust(trust)))

    return heard
