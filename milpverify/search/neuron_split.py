"""Branch-and-bound on neurons: pre-activations are split at breakpoints, split constraints enter as multipliers (beta-CROWN).

A subproblem is a disjunct with split decisions; the intermediate bounds are the root's, clamped by the decisions. The split is
chosen by the looseness that the relaxation of a neuron causes in the bounded rows (|multiplier| times the gap of its line, in the
spirit of BaBSR), and the best few candidates are bounded for real before one is taken (filtered smart branching, arXiv 2104.06718).
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from milpverify.bounds import relaxation
from milpverify.bounds.alpha import AlphaOptions
from milpverify.bounds.beta import Multipliers, optimise, relaxed
from milpverify.bounds.crown import bound_rows
from milpverify.bounds.interval_propagation import step
from milpverify.bounds.rounding import down
from milpverify.bounds.state import Bounds, LinearBound, NodeState, SplitConstraints, State
from milpverify.events import Event
from milpverify.graph import evaluate
from milpverify.operators import Elementwise
from milpverify.search.witness import Judgement, Status, judge

if TYPE_CHECKING:
    from collections.abc import Callable

    from milpverify.bounds.backward import SplitTable
    from milpverify.config import Deadline
    from milpverify.graph import Graph
    from milpverify.search.margin import Group
    from milpverify.spec import Problem

_ENTRIES = 1 << 22  # of one matrix of multipliers, over a batch
_CANDIDATES = 4  # splits bounded for real per subproblem


@dataclass(eq=False)
class Subproblems:
    """Subproblems as arrays over n. K is the largest number of splits, C of candidates; slot k means `Search.slots[k]`.

    `box` (n,) the place in the root's batch of boxes; `disjunct` (n,) the place in the group; `bound` (n,) float64, proved; `slot`, `index`, `side`, `point`, `beta` (n, K)
    (`beta` (n, r, K)) the split decisions, side 0 where there is none; `slopes` per nonlinear node; `best` (n, C) the flat
    numbers of the splits to consider, -1 where there is none left.
    """

    box: Tensor
    disjunct: Tensor
    bound: Tensor
    slot: Tensor
    index: Tensor
    side: Tensor
    point: Tensor
    beta: Tensor
    best: Tensor
    slopes: dict[int, tuple[Tensor, Tensor]]

    def __len__(self) -> int:
        return len(self.disjunct)

    def take(self, chosen: Tensor) -> Subproblems:
        """Some of them, in the order given (repetition allowed)."""
        plain = {f.name: getattr(self, f.name)[chosen] for f in fields(self) if f.name != "slopes"}
        return Subproblems(**plain, slopes={i: (a[chosen], b[chosen]) for i, (a, b) in self.slopes.items()})

    def join(self, other: Subproblems) -> Subproblems:
        """Both together; the shorter list of splits is padded."""
        if not len(self):
            return other
        width = max(self.slot.shape[1], other.slot.shape[1])
        a, b = self.padded(width), other.padded(width)
        plain = {f.name: torch.cat([getattr(a, f.name), getattr(b, f.name)]) for f in fields(self) if f.name != "slopes"}
        slopes = {i: (torch.cat([a.slopes[i][0], b.slopes[i][0]]), torch.cat([a.slopes[i][1], b.slopes[i][1]])) for i in self.slopes}
        return Subproblems(**plain, slopes=slopes)

    def padded(self, width: int) -> Subproblems:
        """With room for `width` splits."""
        more = width - self.slot.shape[1]
        if not more:
            return self
        pad = {name: torch.nn.functional.pad(getattr(self, name), (0, more)) for name in ("slot", "index", "side", "point", "beta")}
        return replace(self, **pad)


@dataclass(eq=False)
class NeuronOutcome:
    """How the search ended. `open` is what is left to split; `stuck` are subproblems without a split left that bounds do not close: linear programs."""

    closed: bool
    lower_bound: float
    judgement: Judgement | None
    open: Subproblems
    stuck: Subproblems
    detail: dict[str, Any]


class Search:
    """Branch-and-bound over one group, from one box or from many at once.

    Args:
        graph: in float64.
        root: the state of a batch of boxes within the group's, from `crown` in float64 or float32.
    """

    def __init__(self, problem: Problem, graph: Graph, group: Group, root: State, deadline: Deadline, on_event: Callable[[Event], None] | None = None) -> None:
        self.problem, self.graph, self.group, self.deadline, self.on_event = problem, graph, group, deadline, on_event
        self.fast = graph.to(torch.float32, graph.device)
        lower, upper = root[0].bounds.lower, root[0].bounds.upper
        self.root: State = {}
        for node in graph.nodes:  # the charges of float32 passes, with the bounds that are known
            now = step(graph, node, self.root, lower, upper, torch.float32)
            self.root[node.id] = NodeState(now.bounds.meet(root[node.id].bounds), now.center, now.charge)
        self.slots = sorted({graph.nodes[i].inputs[0] for i in graph.nonlinear})
        self.consumers = [[c for c in graph.consumers[z] if isinstance(graph.nodes[c].op, Elementwise)] for z in self.slots]
        sizes = [graph.nodes[z].size for z in self.slots]
        self.offsets = torch.tensor([0, *torch.tensor(sizes).cumsum(0).tolist()], device=graph.device)
        self.width = max(node.size for node in graph.nodes)
        self._stack_rows()
        self.bounded = 0

    def _stack_rows(self) -> None:
        """The rows of every disjunct, padded to one number by repeating the first: (D, r, ny), (D, r, nx) or None, (D, r)."""
        group = self.group
        table = group.places
        if table is None:
            raise ValueError("a disjunct without rows has no margin to bound")
        self.y_rows, self.rhs = group.y_rows[table], group.rhs[table]
        self.x_rows = None if group.x_rows is None else group.x_rows[table]

    # -- bounding ---------------------------------------------------------------------------------------------------------

    def first(self, box: Tensor | None = None, disjunct: Tensor | None = None) -> Subproblems:
        """Subproblems without splits: the (box, disjunct) pairs given, or every disjunct on every box."""
        device = self.graph.device
        boxes = self.root[0].center.shape[0]
        if box is None or disjunct is None:
            box = torch.arange(boxes, device=device).repeat_interleave(self.group.count)
            disjunct = torch.arange(self.group.count, device=device).repeat(boxes)
        count, rows = len(box), self.rhs.shape[1]
        slopes: dict[int, tuple[Tensor, Tensor]] = {}
        for i in self.graph.nonlinear:
            op = self.graph.nodes[i].op
            assert isinstance(op, Elementwise)
            b = self.root[self.graph.nodes[i].inputs[0]].bounds
            low, high = (
                k[box].float().unsqueeze(1).expand(count, rows, *k.shape[1:]).contiguous()
                for k in relaxation.default_slopes(op.function, b.lower, b.upper)
            )
            slopes[i] = (low, high)
        none = torch.zeros(count, 0, device=device)
        return Subproblems(
            box=box,
            disjunct=disjunct,
            bound=torch.full((count,), -torch.inf, dtype=torch.float64, device=device),
            slot=none.long(),
            index=none.long(),
            side=none.float(),
            point=none.double(),
            beta=torch.zeros(count, rows, 0, device=device),
            best=torch.full((count, _CANDIDATES), -1, device=device),
            slopes=slopes,
        )

    def state_of(self, subs: Subproblems) -> State:
        """The states of the subproblems' boxes with the split pre-activations clamped."""
        n = len(subs)

        def own(t: Tensor) -> Tensor:
            return t.expand(n, *t.shape[1:]) if len(t) == 1 else t[subs.box]

        state = {
            i: NodeState(Bounds(own(s.bounds.lower), own(s.bounds.upper)), own(s.center), None if s.charge is None else own(s.charge))
            for i, s in self.root.items()
        }
        for k, z in enumerate(self.slots):
            here = (subs.slot == k) & (subs.side != 0)
            box, column = here.nonzero(as_tuple=True)
            if not len(box):
                continue
            entry, point, side = subs.index[box, column], subs.point[box, column], subs.side[box, column]
            known = state[z]
            low, high = known.bounds.lower.flatten(1).clone(), known.bounds.upper.flatten(1).clone()
            for which, target, reduce in ((side > 0, low, "amax"), (side < 0, high, "amin")):
                flat = box[which] * low.shape[1] + entry[which]
                target.view(-1).scatter_reduce_(0, flat, point[which], reduce)
            shape = known.bounds.lower.shape
            state[z] = NodeState(Bounds(low.reshape(shape), high.reshape(shape)), known.center, known.charge)
        return state

    def splits_of(self, subs: Subproblems) -> SplitTable:
        """The split constraints per node, compacted."""
        table: SplitTable = {}
        for k, z in enumerate(self.slots):
            here = (subs.slot == k) & (subs.side != 0)
            most = int(here.sum(1).max()) if here.numel() else 0
            if most:
                order = torch.argsort(here.int(), dim=1, descending=True, stable=True)[:, :most]
                side = torch.where(here, subs.side, 0.0).gather(1, order)
                beta = torch.where(here.unsqueeze(1), subs.beta, 0.0).gather(2, order.unsqueeze(1).expand(-1, subs.beta.shape[1], -1))
                index = torch.where(here, subs.index, 0).gather(1, order)
                table[z] = SplitConstraints(index, side, torch.where(here, subs.point, 0.0).gather(1, order), beta)
        return table

    def bound(self, subs: Subproblems, iterations: int, choose: bool) -> tuple[Subproblems, LinearBound]:
        """Bound subproblems, with some iterations of the optimiser; with `choose` also rank their splits."""
        self.bounded += len(subs)
        state = self.state_of(subs)
        start = Multipliers(subs.slopes, self.splits_of(subs))
        rows, rhs = self.y_rows[subs.disjunct], self.rhs[subs.disjunct]
        x_rows = None if self.x_rows is None else self.x_rows[subs.disjunct]
        found, kept = optimise(self.fast, state, rows, start, AlphaOptions(iterations, 0.1 if subs.slot.shape[1] else 0.25), x_rows, rhs, self.deadline)
        margin = torch.maximum(subs.bound, down(found.lower - rhs).amax(1))
        subs = replace(subs, bound=margin, slopes=kept.slopes, beta=self._betas(subs, kept.splits))
        if choose:
            subs = replace(subs, best=self._rank(subs, state, kept, rows, x_rows))
        return subs, found

    def _betas(self, subs: Subproblems, splits: SplitTable) -> Tensor:
        beta = subs.beta.clone()
        for k, z in enumerate(self.slots):
            if z in splits:
                here = (subs.slot == k) & (subs.side != 0)
                rank = here.long().cumsum(1) - 1
                values = splits[z].beta.gather(2, rank.clamp(min=0).unsqueeze(1).expand_as(beta))
                beta = torch.where(here.unsqueeze(1), values, beta)
        return beta

    def _rank(self, subs: Subproblems, state: State, kept: Multipliers, rows: Tensor, x_rows: Tensor | None) -> Tensor:
        """The flat numbers of the best splits, (n, C)."""
        seen: dict[int, Tensor] = {}
        table = relaxed(self.fast, state, kept)
        bound_rows(self.fast, state, table, rows, x_rows=x_rows, splits=kept.splits, seen=seen)
        scores = []
        for z, consumers in zip(self.slots, self.consumers, strict=True):
            bounds = state[z].bounds
            score = torch.zeros_like(bounds.lower)
            for y in consumers:
                op = self.graph.nodes[y].op
                assert isinstance(op, Elementwise)
                low, high = (side.unsqueeze(1) for side in (bounds.lower, bounds.upper))
                up = seen[y].clamp(min=0).double() * relaxation.gap(op.function, low, high, table[y].k_lower.double())
                dn = seen[y].clamp(max=0).double() * relaxation.gap(op.function, low, high, table[y].k_upper.double())
                open_here = ~relaxation.is_exact(op.function, bounds.lower, bounds.upper)
                # A split also tightens what comes later, so that every open neuron keeps a little weight.
                score = score + torch.where(open_here, (up - dn).sum(1) + 1e-9 * bounds.width, 0.0)
            scores.append(score.flatten(1))
        top = torch.cat(scores, 1)
        values, best = top.topk(min(_CANDIDATES, top.shape[1]), dim=1)
        best = torch.where(values > 0, best, -1)
        return torch.nn.functional.pad(best, (0, _CANDIDATES - best.shape[1]), value=-1)

    # -- branching --------------------------------------------------------------------------------------------------------

    def children(self, parents: Subproblems, number: Tensor) -> Subproblems:
        """Both children of every parent for the split with the flat number given: (2 n), lower sides first."""
        slot = torch.searchsorted(self.offsets, number, right=True) - 1
        index = number - self.offsets[slot]
        point = torch.zeros(len(parents), dtype=torch.float64, device=number.device)
        state = self.state_of(parents)
        rows = torch.arange(len(parents), device=number.device)
        for k, z in enumerate(self.slots):
            here = slot == k
            if bool(here.any()):
                bounds = state[z].bounds
                low, high = (t.flatten(1)[rows[here], index[here]] for t in (bounds.lower, bounds.upper))
                op = self.graph.nodes[self.consumers[k][0]].op
                assert isinstance(op, Elementwise)
                point[here] = relaxation.split_point(op.function, low, high)
        both = parents.take(torch.cat([rows, rows]))
        width = int((parents.side != 0).sum(1).max()) + 1 if parents.side.numel() else 1
        both = both.padded(max(width, both.slot.shape[1]))
        column = (both.side != 0).sum(1)
        every = torch.arange(len(both), device=number.device)
        for target, value in ((both.slot, slot), (both.index, index), (both.point, point)):
            target[every, column] = torch.cat([value, value])
        both.side[every, column] = torch.cat([torch.full_like(slot, -1), torch.full_like(slot, 1)]).to(both.side.dtype)
        both.beta[every, :, column] = 0.0
        return both

    def branch(self, parents: Subproblems) -> Subproblems:
        """The children of the best of each parent's candidate splits, judged by one pass with the parent's multipliers."""
        n, best = len(parents), parents.best
        several = best[:, 1] >= 0
        if not bool(several.any()):
            return self.children(parents, best[:, 0])
        rows = torch.arange(n, device=best.device).repeat_interleave(_CANDIDATES)
        number = torch.where(best >= 0, best, best[:, :1]).flatten()
        trial, _ = self.bound_in_chunks(self.children(parents.take(rows), number), 0, choose=False)
        gains = trial.bound.reshape(2, n, _CANDIDATES)
        # The smaller child decides; the other counts a little.
        value = gains.amin(0) + 0.1 * gains.amax(0).clamp(max=0.0)
        pick = value.argmax(1)
        chosen = torch.arange(n, device=best.device) * _CANDIDATES + pick
        return trial.take(torch.cat([chosen, chosen + n * _CANDIDATES]))

    def bound_in_chunks(self, subs: Subproblems, iterations: int, choose: bool) -> tuple[Subproblems, LinearBound | None]:
        """`bound`, a few at a time where they are many."""
        per = max(2, _ENTRIES // (self.width * self.rhs.shape[1]))
        if len(subs) <= per:
            return self.bound(subs, iterations, choose)
        done: Subproblems | None = None
        for part in torch.arange(len(subs), device=self.graph.device).split(per):
            now, _ = self.bound(subs.take(part), iterations, choose)
            done = now if done is None else done.join(now)
        assert done is not None
        return done, None

    # -- the loop ---------------------------------------------------------------------------------------------------------

    def run(
        self, iterations: int = 10, root_iterations: int = 20, largest: int = 256, start: Subproblems | None = None, limit: int | None = None
    ) -> NeuronOutcome:
        """Split until everything is closed or stuck, a counterexample holds, `limit` subproblems were bounded, or the deadline."""
        began = time.monotonic()
        closed_bound, reported, batch = math.inf, 0.0, 8 if start is None else largest
        frontier, found = self.bound_in_chunks(self.first() if start is None else start, root_iterations, choose=True)
        judgement = None if found is None else self._attack(found, frontier)
        stuck = frontier.take(torch.zeros(0, dtype=torch.long, device=self.graph.device))
        frontier, stuck, closed_bound = self._sift(frontier, stuck, closed_bound)
        while len(frontier) and not self.deadline.expired() and not (judgement and judgement.status is Status.HOLDS):
            if limit is not None and self.bounded >= limit:
                break
            order = torch.argsort(frontier.bound)
            parents, frontier = frontier.take(order[:batch]), frontier.take(order[batch:])
            children = self.branch(parents)
            fresh, found = self.bound_in_chunks(children, iterations, choose=True)
            if found is not None:
                judgement = self._attack(found, fresh) or judgement
            fresh, stuck, closed_bound = self._sift(fresh, stuck, closed_bound)
            frontier = frontier.join(fresh)
            batch = min(2 * batch, largest)
            if self.on_event is not None and time.monotonic() - reported > 0.2:
                reported = time.monotonic()
                bound = min([closed_bound, *frontier.bound.tolist(), *stuck.bound.tolist()])
                self.on_event(Event("search", f"{len(frontier)} open, {self.bounded} bounded", {"open": len(frontier), "subproblems": self.bounded, "bound": bound}))
        bound = min([closed_bound, *frontier.bound.tolist(), *stuck.bound.tolist()])
        detail = {"method": "neuron split", "subproblems": self.bounded, "open": len(frontier), "stuck": len(stuck), "bab_seconds": round(time.monotonic() - began, 3)}
        return NeuronOutcome(not len(frontier) and not len(stuck), bound, judgement, frontier, stuck, detail)

    def _sift(self, subs: Subproblems, stuck: Subproblems, closed_bound: float) -> tuple[Subproblems, Subproblems, float]:
        """Take out what is closed and what cannot be split further."""
        closed = (subs.bound > 0) | (self.group.strict[subs.disjunct] & (subs.bound >= 0))
        if bool(closed.any()):
            closed_bound = min(closed_bound, float(subs.bound[closed].amin()))
        final = ~closed & (subs.best[:, 0] < 0)
        left = (~closed & ~final).nonzero(as_tuple=True)[0]
        return subs.take(left), stuck.join(subs.take(final.nonzero(as_tuple=True)[0])), closed_bound

    def _attack(self, found: LinearBound, subs: Subproblems) -> Judgement | None:
        """Try the corners that minimise the rows' linear bounds; judge the best."""
        ends = self.root[0].bounds
        lower, upper = ends.lower[subs.box].unsqueeze(1), ends.upper[subs.box].unsqueeze(1)
        r = found.lower.shape[1]
        points = torch.where(found.coefficients > 0, lower, upper).flatten(0, 1)
        disjunct = subs.disjunct.repeat_interleave(r)
        residual = (self.y_rows[disjunct] @ evaluate(self.fast, points.float()).double().unsqueeze(2)).squeeze(2) - self.rhs[disjunct]
        if self.x_rows is not None:
            residual = residual + (self.x_rows[disjunct] @ points.unsqueeze(2)).squeeze(2)
        margin = residual.amax(1)
        seen: Judgement | None = None
        for k in torch.argsort(margin)[:2].tolist():
            if float(margin[k]) > 1e-6:
                break
            judgement = judge(self.problem, self.group.disjuncts[int(disjunct[k])], points[k].cpu().numpy())
            if judgement.status is Status.HOLDS:
                return judgement
            seen = judgement if judgement.status is Status.FLOAT_SEMANTICS else seen
        return seen
