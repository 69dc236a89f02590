"""verify(): presolve -> attack -> refine -> search, one readable page.

1. Presolve: CROWN bounds what the rows depend on over each box; disjuncts whose margin is proved positive are closed. Where that is
   dear, cheaper bounds and a short attack come first (`ladder`).
2. Attack: projected gradient looks for a counterexample; only one that holds in the network's runtime and in real arithmetic counts.
3. Refine: where inputs are many, alpha-CROWN tightens the pre-activations and the margins.
4. Search: what is still open is decided by branching, by whole mixed-integer models, or by SMT, as the method says.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

from milpverify.config import Branching, Deadline, Milp, Options, SearchMethod, in_force
from milpverify.errors import InvalidInput, OutOfTime
from milpverify.margin import Gap, margin_to_gap
from milpverify.run import OnEvent, Run, unread
from milpverify.run_info import settings_of, threads, working
from milpverify.spec import Problem

if TYPE_CHECKING:
    from pathlib import Path

    from milpverify.frontends.network import Network
    from milpverify.result import Result


def verify(
    problem: Problem | tuple[Network, str | Path],
    timeout: float | None = None,
    method: str | SearchMethod | Milp = SearchMethod.AUTO,
    *,
    deadline: Deadline | None = None,
    options: Options | None = None,
    on_event: OnEvent | None = None,
    margin: bool = False,
    gap: float = 1e-4,
) -> Result:
    """Decide whether the unsafe set of a problem is empty over real arithmetic.

    Args:
        problem: from `load`, `robustness` or `Problem`; or a pair of what `load` takes, a network and the path of a property.
        timeout: seconds of wall clock; None for no limit.
        method: "auto", "bab" (branch-and-bound), "milp" or "smt", or a `Milp(solver)`.
        deadline: in place of `timeout`, a deadline that the caller can cancel.
        options: the rest; `method` here wins over the one there unless it is "auto".
        on_event: called with progress events.
        margin: go on until the margin itself is known to within the gap, not only its sign: `lower_bound` and `upper_bound` of the result.
        gap: how close these two shall come, relative to margins that are larger than 1.

    Returns:
        the verdict with its reason, what it rests on (`Trust`), and a proved lower bound of the margin that is valid however the
        run ended. VERIFIED is proved with bounds that hold under rounding unless the trust is SOLVER; FALSIFIED comes with a point
        that violates the property in the network's own runtime and in real arithmetic.

    Raises:
        InvalidInput: no problem, an unknown method, solver or trust, a gap that is not positive.
        Contradiction: a proved bound of the margin excludes a point.
        InvalidInput and its subclasses: as `load`, of a pair.
    """
    settings = settings_of(options or Options(), method)
    pair = isinstance(problem, tuple | list) and len(problem) == 2
    if not pair and not isinstance(problem, Problem):
        raise InvalidInput(f"verify takes a problem, such as mv.load(...) or mv.robustness(...), not a {type(problem).__name__}")
    deadline = deadline or Deadline(math.inf if timeout is None else timeout)
    if not isinstance(problem, Problem):
        from milpverify.frontends.load import load

        try:
            problem = load(*problem, deadline=deadline, tuning=settings.search.tuning)
        except OutOfTime:
            return unread(deadline, settings)
    if margin:
        with threads(settings.threads):
            return margin_to_gap(problem, partial(verify, deadline=deadline), Gap(gap, relative=True), settings, deadline, on_event)
    run = Run(problem, settings, deadline, on_event)
    with working(settings), in_force(deadline):
        if not problem.disjuncts:
            return run.empty()
        run.reduce()
        if not run.problem.disjuncts:
            return run.contradicted()
        with run.phase("presolve") as detail:
            open_groups, rungs = run.presolve()
            detail.update(disjuncts=len(run.problem.disjuncts), open=sum(g.count for g, _ in open_groups), rungs=rungs)
        if run.example is not None:
            return run.falsified(open_groups, run.example)
        if not open_groups:
            return run.conclude([])
        if settings.attack:
            with run.phase("attack") as detail:
                example = run.attack(open_groups)
                detail.update(found=example is not None)
            if example is not None:
                return run.falsified(open_groups, example)
        if settings.search.refining:
            with run.phase("refine") as detail:
                open_groups = run.refine(open_groups)
                detail.update(open=sum(g.count for g, _ in open_groups))
        if not open_groups or settings.search.branching is Branching.NONE:
            return run.conclude(open_groups)
        from milpverify.search.strategy import decide  # half of the package, which what bounds and attack decide does without

        with run.phase("search") as detail:
            outcome = decide(run.context(), open_groups)
            detail.update(outcome.detail)
        return run.conclude(open_groups, outcome)
    return run.cut_short()
