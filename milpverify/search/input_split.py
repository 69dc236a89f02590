"""Branch-and-bound on the inputs: boxes are bisected until their bounds decide them. Strong where inputs are few.

The input to bisect is the one whose interval moves the open rows most. Three estimates of that are added up, each as a share
of the whole: the coefficients of the rows' lower bounds (what the bound depends on now, as alpha-beta-CROWN scores), those of the
pass with parallel slopes (which no zero slope hides), and the products of absolute values along all paths (which nothing cancels).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from milpverify.bounds.backward import parallel_lines, path_weights
from milpverify.bounds.crown import bound_rows, functions_of, refinable
from milpverify.bounds.rounding import down
from milpverify.bounds.screening import undecided
from milpverify.bounds.state import Bounds, select
from milpverify.events import Event
from milpverify.graph import evaluate
from milpverify.search.attack import polish
from milpverify.search.clip import clip, least
from milpverify.search.combine import combined
from milpverify.search.finish import Finisher
from milpverify.search.relaxer import Bounded, bound_batch
from milpverify.search.witness import Judgement, Status, judge

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from milpverify.config import Deadline
    from milpverify.graph import Graph
    from milpverify.search.margin import Group
    from milpverify.spec import Problem


@dataclass(eq=False)
class Frontier:
    """Open boxes, compactly: (n, nx) float64 ends, (n, D) margins, and per pre-activation node the bounds that hold there.

    Inherited bounds are kept in float32, rounded outwards.
    """

    lower: Tensor
    upper: Tensor
    margins: Tensor
    scores: Tensor  # (n, nx): how much an input's interval moves the open rows
    unstable: Tensor  # (n,) the number of pre-activations whose relaxation is not exact
    tried: Tensor  # (n,) whether neuron splits were tried on the box
    known: dict[int, tuple[Tensor, Tensor]]

    def __len__(self) -> int:
        return len(self.lower)

    def take(self, index: Tensor) -> Frontier:
        """Some of the boxes."""
        known = {i: (low[index], high[index]) for i, (low, high) in self.known.items()}
        return Frontier.of((t[index] for t in self.plain), known)

    def join(self, other: Frontier) -> Frontier:
        """Both sets of boxes."""
        if not len(self):
            return other
        known = {i: (torch.cat([low, other.known[i][0]]), torch.cat([high, other.known[i][1]])) for i, (low, high) in self.known.items()}
        return Frontier.of((torch.cat(pair) for pair in zip(self.plain, other.plain, strict=True)), known)

    @property
    def plain(self) -> tuple[Tensor, ...]:
        """Everything but the inherited bounds."""
        return self.lower, self.upper, self.margins, self.scores, self.unstable, self.tried

    @staticmethod
    def of(plain: Iterable[Tensor], known: dict[int, tuple[Tensor, Tensor]]) -> Frontier:
        """The frontier of what `plain` gives, and inherited bounds."""
        lower, upper, margins, scores, unstable, tried = plain
        return Frontier(lower, upper, margins, scores, unstable, tried, known)

    def bounds(self) -> dict[int, Bounds]:
        """The inherited bounds, float64."""
        return {i: Bounds(low.double(), high.double()) for i, (low, high) in self.known.items()}


@dataclass(eq=False)
class SplitOutcome:
    """How the search over a group ended. `points` counts boxes too small to bisect in float64 that stay open: ties."""

    closed: bool
    lower_bound: float
    judgement: Judgement | None
    subproblems: int
    seconds: float
    open_boxes: int
    points: int


def search(
    problem: Problem,
    graph: Graph,
    group: Group,
    deadline: Deadline,
    dtype: torch.dtype = torch.float32,
    on_event: Callable[[Event], None] | None = None,
    root: Bounded | None = None,
    largest_batch: int = 1024,
) -> SplitOutcome:
    """Bisect the group's box until every disjunct is proved, a counterexample holds, or the deadline.

    Args:
        graph: in float64.
    """
    start = time.monotonic()
    fast = graph.to(torch.float32, graph.device)
    closed_bound = float("inf")
    lower = torch.tensor(group.box.lower, device=graph.device)[None]
    upper = torch.tensor(group.box.upper, device=graph.device)[None]
    found = root or bound_batch(graph, group, lower, upper, dtype, deadline=deadline)
    frontier, closed_bound = _open(graph, group, found, lower, upper, closed_bound)
    subproblems, batch, reported = 1, 32, 0.0
    judgement = _attack(problem, fast, group, found, frontier) if len(frontier) and not deadline.expired() else None
    if judgement is not None and judgement.status is Status.HOLDS:
        return SplitOutcome(False, _least(closed_bound, frontier), judgement, subproblems, time.monotonic() - start, 1, 0)
    finisher = Finisher(problem, graph, group, deadline)
    stuck = frontier.take(torch.zeros(0, dtype=torch.long, device=graph.device))
    while len(frontier) and not deadline.expired():
        order = torch.argsort(frontier.margins.amin(1))
        chosen, rest = order[: batch // 2], order[batch // 2 :]
        parents, frontier = frontier.take(chosen), frontier.take(rest)
        divisible = _divisible(parents)
        if not bool(divisible.all()):
            stuck = stuck.join(parents.take((~divisible).nonzero(as_tuple=True)[0]))
            parents = parents.take(divisible.nonzero(as_tuple=True)[0])
            if not len(parents):
                continue
        children = _bisect(parents)
        found = bound_batch(graph, group, children.lower, children.upper, dtype, children.bounds())
        subproblems += len(children)
        fresh, closed_bound = _open(graph, group, found, children.lower, children.upper, closed_bound, children.margins)
        judgement = _attack(problem, fast, group, found, children) or judgement
        if judgement is not None and judgement.status is Status.HOLDS:
            return SplitOutcome(
                False,
                _least(closed_bound, frontier, fresh, stuck),
                judgement,
                subproblems,
                time.monotonic() - start,
                len(frontier),
                len(stuck),
            )
        frontier = frontier.join(fresh)
        batch = min(2 * batch, largest_batch)
        small = finisher.candidates(frontier.unstable, frontier.tried, subproblems)
        if len(small):
            boxes = frontier.take(small)
            proved, verdict = finisher.run(boxes.lower, boxes.upper, boxes.margins, boxes.bounds())
            closed_bound = min(closed_bound, 0.0) if bool(proved.any()) else closed_bound
            judgement = verdict or judgement
            frontier.tried[small] = True
            keep = torch.ones(len(frontier), dtype=torch.bool, device=proved.device)
            keep[small[proved]] = False
            frontier = frontier.take(keep.nonzero(as_tuple=True)[0])
            if judgement is not None and judgement.status is Status.HOLDS:
                break
        if on_event is not None and time.monotonic() - reported > 0.2:
            reported = time.monotonic()
            bound = min(closed_bound, float(frontier.margins.amin())) if len(frontier) else closed_bound
            rate = subproblems / max(1e-9, reported - start)
            on_event(
                Event(
                    "search",
                    f"{len(frontier)} open, {subproblems} bounded, {rate:.0f}/s",
                    {"open": len(frontier), "subproblems": subproblems, "bound": bound},
                )
            )
    left = frontier.join(stuck) if len(stuck) else frontier
    bound = min(closed_bound, float(left.margins.amin())) if len(left) else closed_bound
    subproblems += finisher.bounded
    return SplitOutcome(not len(left), bound, judgement, subproblems, time.monotonic() - start, len(frontier), len(stuck))


def _least(closed_bound: float, *frontiers: Frontier) -> float:
    """The lower bound over what is closed and what is open."""
    return min([closed_bound, *(float(f.margins.amin()) for f in frontiers if len(f))])


def _open(
    graph: Graph, group: Group, found: Bounded, lower: Tensor, upper: Tensor, closed_bound: float, parents: Tensor | None = None
) -> tuple[Frontier, float]:
    """The boxes that are still open, and the lower bound over those closed so far."""
    margins = found.margins if parents is None else torch.maximum(found.margins, parents)
    closed = group.closed(margins)
    done = closed.all(1)
    if bool(done.any()):
        closed_bound = min(closed_bound, float(margins[done].amin()))
    left = (~done).nonzero(as_tuple=True)[0]
    weights = (~closed)[left][:, group.disjunct].unsqueeze(2)
    width = (upper - lower)[left].unsqueeze(1)
    scores = torch.zeros_like(lower[left])
    for weight, coefficients in ((1.0, found.rows.coefficients[left]), *_influences(graph, group, found, left)):
        moved = coefficients.double().abs() * width * weights
        scores += weight * (moved / moved.sum(2, keepdim=True).clamp(min=1e-300)).sum(1)
    known = {}
    for node in refinable(graph):
        b = found.state[node.id].bounds
        known[node.id] = (_outward(b.lower[left], -1.0), _outward(b.upper[left], 1.0))
    unstable = sum(
        undecided(functions_of(graph, graph.nodes[z]), found.state[z].bounds.lower[left], found.state[z].bounds.upper[left])
        .flatten(1)
        .sum(1)
        for z in sorted({graph.nodes[i].inputs[0] for i in graph.nonlinear})
    ) + torch.zeros_like(left)
    frontier = Frontier(lower[left], upper[left], margins[left], scores, unstable, torch.zeros_like(left, dtype=torch.bool), known)
    return _clip(graph, group, found, frontier, closed, left, closed_bound)


def _clip(
    graph: Graph, group: Group, found: Bounded, frontier: Frontier, closed: Tensor, left: Tensor, closed_bound: float
) -> tuple[Frontier, float]:
    """Cut from boxes with one open disjunct what that disjunct's rows prove safe; its margin there is > 0, by an unknown amount."""
    is_open = ~closed[left]
    single = (is_open.sum(1) == 1).nonzero(as_tuple=True)[0]
    if not len(single) or group.places is None:
        return frontier, closed_bound
    disjunct = is_open[single].int().argmax(1)
    rows = group.places[disjunct]
    minima = down(found.rows.lower - group.rhs)[left[single]].gather(1, rows)
    coefficients = found.rows.coefficients[left[single].unsqueeze(1), rows]
    if rows.shape[1] > 1:
        same = graph.to(found.rows.coefficients.dtype, graph.device)  # the precision that the state's charges are for
        least_sum, slopes = combined(same, group, found, left[single], rows, minima, coefficients)
        minima, coefficients = torch.cat([minima, least_sum], 1), torch.cat([coefficients, slopes], 1)
    low, high = frontier.lower[single], frontier.upper[single]
    domain, rhs = (t[disjunct] for t in group.domains)
    if domain.shape[1]:  # what violates a constraint between inputs is no input at all
        minima = torch.cat([minima, least(domain, rhs, low, high)], 1)
        coefficients = torch.cat([coefficients.double(), domain], 1)
    low, high, refuted = clip(low, high, minima, coefficients)
    if bool(((low > frontier.lower[single]) | (high < frontier.upper[single])).any()) or bool(refuted.any()):
        closed_bound = min(closed_bound, 0.0)
    frontier.lower[single], frontier.upper[single] = low, high
    keep = torch.ones(len(frontier), dtype=torch.bool, device=low.device)
    keep[single[refuted]] = False
    return frontier.take(keep.nonzero(as_tuple=True)[0]), closed_bound


def _influences(graph: Graph, group: Group, found: Bounded, left: Tensor) -> list[tuple[float, Tensor]]:
    """Weighted estimates of what an input does to the rows, (boxes left, rows, nx): with parallel slopes, and along all paths."""
    fast = graph.to(torch.float32, graph.device)
    state = select(found.state, left)
    table = {i: parallel_lines(graph, i, state, torch.float32) for i in graph.nonlinear}
    rows = group.y_rows.expand(len(left), -1, -1)
    x_rows = None if group.x_rows is None else group.x_rows.expand(len(left), -1, -1)
    return [(1.0, bound_rows(fast, state, table, rows, x_rows=x_rows).coefficients), (0.5, path_weights(fast, table, rows))]


def _outward(x: Tensor, direction: float) -> Tensor:
    y = x.float()
    return torch.nextafter(y, y.new_full((), direction * torch.inf))


def _divisible(boxes: Frontier) -> Tensor:
    """Which boxes have an input whose interval has a float64 strictly inside, (n,) bool."""
    middle = boxes.lower + 0.5 * (boxes.upper - boxes.lower)
    return ((middle > boxes.lower) & (middle < boxes.upper)).any(1)


def _bisect(parents: Frontier) -> Frontier:
    """Both halves of every box, cut at the middle of its most sensitive input."""
    n = len(parents)
    width = parents.upper - parents.lower
    middles = parents.lower + 0.5 * width
    axis = torch.where((middles > parents.lower) & (middles < parents.upper), parents.scores + 1e-9 * width, -1.0).argmax(1)
    rows = torch.arange(n, device=axis.device)
    middle = middles[rows, axis]
    low, high = parents.lower.clone(), parents.upper.clone()
    high[rows, axis] = middle
    low[rows, axis] = middle
    known = {i: (torch.cat([a, a]), torch.cat([b, b])) for i, (a, b) in parents.known.items()}
    margins, scores, unstable, tried = (torch.cat([t, t]) for t in (parents.margins, parents.scores, parents.unstable, parents.tried))
    return Frontier(torch.cat([parents.lower, low]), torch.cat([high, parents.upper]), margins, scores, unstable, tried, known)


def _attack(problem: Problem, fast: Graph, group: Group, found: Bounded, children: Frontier) -> Judgement | None:
    """Try the corner that minimises each open row's linear bound, and the centre; judge the best of them, and polish the best."""
    open_rows = ~group.closed(found.margins)[:, group.disjunct]
    box, row = open_rows.nonzero(as_tuple=True)
    if not len(box):
        return None
    corner = torch.where(found.rows.coefficients[box, row] > 0, children.lower[box], children.upper[box])
    points = torch.cat([corner, 0.5 * (children.lower + children.upper)])
    y = evaluate(fast, points.float()).double()
    residual = y @ group.y_rows.T - group.rhs
    if group.x_rows is not None:
        residual = residual + points @ group.x_rows.T
    margin = residual.new_full((len(points), group.count), -torch.inf).scatter_reduce(
        1, group.disjunct.expand_as(residual), residual, "amax"
    )
    best: Judgement | None = None
    for flat in torch.argsort(margin.flatten())[:4].tolist():
        point, disjunct = divmod(flat, group.count)
        if float(margin[point, disjunct]) > 1e-6:
            break
        judgement = judge(problem, group.disjuncts[disjunct], points[point].cpu().numpy().astype(np.float64))
        if judgement.status is Status.HOLDS:
            return judgement
        if judgement.status is Status.FLOAT_SEMANTICS:
            best = judgement
    # The best point of a batch starts a descent: in boxes this small it is often next to a counterexample.
    point, disjunct = divmod(int(margin.argmin()), group.count)
    example = polish(problem, group.disjuncts[disjunct], points[point].cpu().numpy().astype(np.float64))
    return best if example is None else judge(problem, group.disjuncts[disjunct], example.x)
