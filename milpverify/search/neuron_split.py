"""Branch-and-bound on neurons: pre-activations are split at breakpoints, split constraints enter as multipliers (beta-CROWN).

A subproblem is a disjunct with split decisions; the intermediate bounds are the root's, clamped by the decisions. The split is
chosen by the looseness that the relaxation of a neuron causes in the bounded rows (|multiplier| times the gap of its line, in the
spirit of BaBSR), and the best few candidates are bounded for real before one is taken (filtered smart branching, arXiv 2104.06718).
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from milpverify.bounds import relaxation
from milpverify.bounds.alpha import AlphaOptions, Slopes
from milpverify.bounds.beta import Multipliers, optimise, relaxed
from milpverify.bounds.crown import bound_rows
from milpverify.bounds.interval_propagation import step
from milpverify.bounds.rounding import down
from milpverify.bounds.state import Bounds, LinearBound, NodeState, SplitConstraints, State
from milpverify.events import Event
from milpverify.graph import evaluate
from milpverify.operators import Elementwise
from milpverify.result import Reason, Trust
from milpverify.search.exchange import exchange
from milpverify.search.relaxer import is_out_of_memory
from milpverify.search.subproblems import Frontier, NeuronOutcome, Subproblems
from milpverify.search.witness import Judgement, Status, judge

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from milpverify.bounds.backward import SplitTable
    from milpverify.catalogue import Function
    from milpverify.config import Deadline
    from milpverify.encode.milp import Decision
    from milpverify.graph import Graph
    from milpverify.search.lp_leaf import Leaves
    from milpverify.search.margin import Group
    from milpverify.search.oracle import Oracle
    from milpverify.spec import Array, Problem

_ENTRIES = 1 << 22  # of one matrix of multipliers, over a batch
_FRONTIER_BYTES = 1 << 30  # beyond this much, the search dives


class Search:
    """Branch-and-bound over one group, from one box or from many at once; `run` can be called again with more time.

    Args:
        graph: in float64.
        root: the state of a batch of boxes within the group's, from `crown` in float64 or float32.
        points: per disjunct of the problem, the best input known.
        oracle: a solver to work beside the tree, or None; only where the root is the group's box alone.
        leaves: what decides subproblems without a split left, or None.
        candidates: how many splits of a subproblem are bounded for real before one is taken.
    """

    def __init__(
        self,
        problem: Problem,
        graph: Graph,
        group: Group,
        root: State,
        deadline: Deadline,
        on_event: Callable[[Event], None] | None = None,
        points: Mapping[int, Array] | None = None,
        oracle: Oracle | None = None,
        leaves: Leaves | None = None,
        candidates: int = 4,
    ) -> None:
        self.problem, self.graph, self.group, self.deadline = problem, graph, group, deadline
        self.on_event, self.oracle, self.leaves, self.candidates = on_event, oracle, leaves, candidates
        self.fast = graph.to(torch.float32, graph.device)
        lower, upper = root[0].bounds.lower, root[0].bounds.upper
        self.root: State = {}
        for node in graph.nodes:  # the charges of float32 passes, with the bounds that are known
            now = step(graph, node, self.root, lower, upper, self.fast)
            self.root[node.id] = NodeState(now.bounds.meet(root[node.id].bounds), now.center, now.charge)
        self.slots = sorted({graph.nodes[i].inputs[0] for i in graph.nonlinear})
        self.consumers = [[c for c in graph.consumers[z] if isinstance(graph.nodes[c].op, Elementwise)] for z in self.slots]
        sizes = [graph.nodes[z].size for z in self.slots]
        self.offsets = torch.tensor([0, *torch.tensor(sizes).cumsum(0).tolist()], device=graph.device)
        table = group.places
        if table is None:
            raise ValueError("a disjunct without rows has no margin to bound")
        self.y_rows, self.rhs = group.y_rows[table], group.rhs[table]  # (D, r, ny), (D, r), padded by repeating the first row
        self.x_rows = None if group.x_rows is None else group.x_rows[table]
        self.free = {
            i: (~relaxation.is_exact(self._function(i), *self._ends(i))).any(0).flatten().nonzero(as_tuple=True)[0] for i in graph.nonlinear
        }
        self.per = max(2, _ENTRIES // (max(node.size for node in graph.nodes) * self.rhs.shape[1]))
        self.best: dict[int, tuple[float, Array]] = {}
        for place, member in enumerate(group.members):
            if points and member in points:
                self._remember(place, points[member])
        self.bounded, self.closed_bound, self.batch, self.reported = 0, math.inf, 8, 0.0
        self.judgement: Judgement | None = None
        self.trust, self.note, self.out_of_memory = Trust.ROUNDED, "", False
        self.tied, self.raised = set[int](), False  # the boxes with leaves that are ties; whether open bounds rest on the oracle
        self.tried: dict[int, int] = {}  # how many tasks of a disjunct the oracle had, the first as a whole
        self.began = time.monotonic()
        none = torch.zeros(0, dtype=torch.long, device=graph.device)
        self.stuck = self.first(none, none)
        self.frontier = Frontier(self.stuck)
        self.per_box: int | None = None  # after so many branchings a box is given up
        self.spent = torch.zeros(lower.shape[0], dtype=torch.long, device=graph.device)
        self.given_up = self.stuck
        self.waiting: Subproblems | None = None  # not bounded yet
        self.fresh = True

    def _function(self, node: int) -> Function:
        op = self.graph.nodes[node].op
        assert isinstance(op, Elementwise)
        return op.function

    def _ends(self, node: int) -> tuple[Tensor, Tensor]:
        bounds = self.root[self.graph.nodes[node].inputs[0]].bounds
        return bounds.lower, bounds.upper

    # -- bounding ---------------------------------------------------------------------------------------------------------

    def first(self, box: Tensor | None = None, disjunct: Tensor | None = None) -> Subproblems:
        """Subproblems without splits: the (box, disjunct) pairs given, or every disjunct on every box."""
        device = self.graph.device
        boxes = self.root[0].center.shape[0]
        if box is None or disjunct is None:
            box = torch.arange(boxes, device=device).repeat_interleave(self.group.count)
            disjunct = torch.arange(self.group.count, device=device).repeat(boxes)
        count, rows = len(box), self.rhs.shape[1]
        slopes: Slopes = {}
        for i in self.graph.nonlinear:
            sides = relaxation.default_slopes(self._function(i), *self._ends(i))
            low, high = (k[box].float().unsqueeze(1).expand(count, rows, *k.shape[1:]) for k in sides)
            slopes[i] = (low, high)
        none = torch.zeros(count, 0, device=device)
        return Subproblems(
            box, disjunct, torch.full((count,), -torch.inf, dtype=torch.float64, device=device),
            none.long(), none.long(), none.float(), none.double(), torch.zeros(count, rows, 0, device=device),
            torch.full((count, self.candidates), -1, device=device), self._pack(slopes, count),
        )  # fmt: skip

    def _pack(self, slopes: Slopes, count: int) -> Tensor:
        """The slopes of neurons that are unstable at the root, (n, r, 2, U)."""
        parts = [torch.stack([k.flatten(2)[:, :, self.free[i]] for k in pair], 2) for i, pair in slopes.items()]
        return torch.cat(parts, 3) if parts else torch.zeros(count, self.rhs.shape[1], 2, 0, device=self.graph.device)

    def _unpack(self, packed: Tensor) -> Slopes:
        """All slopes; 0 stands for those of neurons that are stable at the root, which are the function's own."""
        slopes: Slopes = {}
        start = 0
        for i, free in self.free.items():
            part = packed[..., start : start + len(free)]
            start += len(free)
            full = packed.new_zeros(*packed.shape[:3], self.graph.nodes[i].size)
            full[..., free] = part
            low, high = full.reshape(*packed.shape[:3], *self.graph.nodes[i].shape).unbind(2)
            slopes[i] = (low, high)
        return slopes

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

    def bound(self, subs: Subproblems, iterations: int, choose: bool) -> Subproblems:
        """Bound subproblems, with some iterations of the optimiser; with `choose` also try points and rank their splits."""
        self.bounded += len(subs)
        state = self.state_of(subs)
        start = Multipliers(self._unpack(subs.slopes), self.splits_of(subs))
        rows, rhs = self.y_rows[subs.disjunct], self.rhs[subs.disjunct]
        x_rows = None if self.x_rows is None else self.x_rows[subs.disjunct]
        options = AlphaOptions(iterations, 0.1 if subs.slot.shape[1] else 0.25)
        found, kept = optimise(self.fast, state, rows, start, options, x_rows, rhs, self.deadline)
        margin = torch.maximum(subs.bound, down(found.lower - rhs).amax(1))
        subs = replace(subs, bound=margin, slopes=self._pack(kept.slopes, len(subs)), beta=self._betas(subs, kept.splits))
        if choose:
            self._attack(found, subs)
            subs = replace(subs, best=self._rank(subs, state, kept, rows, x_rows))
        return subs

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
        if not self.slots:
            return subs.best
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
        values, best = top.topk(min(self.candidates, top.shape[1]), dim=1)
        best = torch.where(values > 0, best, -1)
        return torch.nn.functional.pad(best, (0, self.candidates - best.shape[1]), value=-1)

    # -- branching --------------------------------------------------------------------------------------------------------

    def children(self, parents: Subproblems, number: Tensor) -> Subproblems:
        """Both children of every parent for the split with the flat number given: (2 n), lower sides first."""
        slot = torch.searchsorted(self.offsets, number.contiguous(), right=True) - 1
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

    def branch(self, parents: Subproblems) -> Subproblems | None:
        """The children of the best of each parent's candidate splits, judged by one pass with the parent's multipliers."""
        n, best = len(parents), parents.best
        if not bool((best[:, 1:] >= 0).any()):
            return self.children(parents, best[:, 0])
        rows = torch.arange(n, device=best.device).repeat_interleave(self.candidates)
        number = torch.where(best >= 0, best, best[:, :1]).flatten()
        trial = self.bound_in_chunks(self.children(parents.take(rows), number), 0, choose=False)
        if trial is None:
            return None
        gains = trial.bound.reshape(2, n, self.candidates)
        # The smaller child decides; the other counts a little.
        value = gains.amin(0) + 0.1 * gains.amax(0).clamp(max=0.0)
        chosen = torch.arange(n, device=best.device) * self.candidates + value.argmax(1)
        return trial.take(torch.cat([chosen, chosen + n * self.candidates]))

    def bound_in_chunks(self, subs: Subproblems, iterations: int, choose: bool) -> Subproblems | None:
        """`bound`, as many at a time as memory allows; None when the deadline comes first."""
        done: list[Subproblems] = []
        start = 0
        while start < len(subs):
            if self.deadline.expired():
                return None
            part = subs.take(torch.arange(start, min(start + self.per, len(subs)), device=subs.bound.device))
            try:
                done.append(self.bound(part, iterations, choose))
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error) or self.per == 1:
                    raise
                self.per = max(1, min(self.per, len(part)) // 2)
                continue
            start += len(part)
        return done[0].join(*done[1:]) if done else subs

    # -- the loop ---------------------------------------------------------------------------------------------------------

    def run(
        self,
        iterations: int = 10,
        root_iterations: int = 20,
        largest: int = 256,
        start: Subproblems | None = None,
        limit: int | None = None,
        per_box: int | None = None,
    ) -> NeuronOutcome:
        """Split until everything is closed or stuck, a counterexample holds, `limit` subproblems were bounded, or the deadline.

        Args:
            start: what to begin with, instead of every disjunct on every box.
            per_box: a box that has branched so often is given up, and stays open.
        """
        self.per_box = per_box
        if self.fresh:
            self.waiting, self.batch, self.fresh = self.first() if start is None else start, 8 if start is None else largest, False
        try:
            if self.waiting is not None and (bounded := self.bound_in_chunks(self.waiting, root_iterations, choose=True)) is not None:
                self.waiting = None
                self._sift(bounded)
            while self._going() and (limit is None or self.bounded < limit):
                if not len(self.frontier):
                    time.sleep(0.01)  # the oracle is at work on what the tree cannot split
                    self._consult()
                    continue
                nearest = len(self.frontier) * self.frontier.store.bytes_each > _FRONTIER_BYTES
                parents = self.frontier.pop(self.batch, nearest)
                if not self._expand(parents, iterations):
                    self.frontier.push(parents)
                    break
                self.batch = min(2 * self.batch, largest)
                self._consult()
                self._report()
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            self.out_of_memory = True
        return self._outcome()

    def _going(self) -> bool:
        """Whether there is anything left to do and time to do it."""
        if self.waiting is not None or self.broken or self.deadline.expired():
            return False
        helps = self.oracle is not None and self.oracle.usable and self.oracle.options.trust == "solver"
        return bool(len(self.frontier)) or (helps and bool(len(self.stuck)))

    def _expand(self, parents: Subproblems, iterations: int) -> bool:
        """Split, bound and sift; False when the deadline comes first. What memory cannot hold goes back to the frontier."""
        parents = self._spend(parents)
        if not len(parents):
            return True
        try:
            children = self.branch(parents)
            children = None if children is None else self._open(children)
            fresh = None if children is None else self.bound_in_chunks(children, iterations, choose=True)
        except (MemoryError, RuntimeError):
            self.frontier.push(parents)
            raise
        if fresh is None:
            return False
        self._sift(fresh)
        return True

    def _spend(self, parents: Subproblems) -> Subproblems:
        """Charge the boxes of some parents for a branching; whatever belongs to a box that has spent its share is given up."""
        if self.per_box is None:
            return parents
        self.spent += torch.bincount(parents.box, minlength=len(self.spent))
        over = self.spent > self.per_box
        waiting = self.frontier.alive & over[self.frontier.store.box]
        self.given_up = self.given_up.join(self.frontier.store.take(waiting), parents.take(over[parents.box]))
        self.frontier.remove(waiting)
        return parents.take(~over[parents.box])

    def _consult(self) -> None:
        """Let the oracle and the tree tell each other what they know."""
        if self.oracle is not None and self.oracle.usable:
            exchange(self, self.oracle)

    def _open(self, subs: Subproblems) -> Subproblems:
        """Those that are not closed; what is closed counts towards the bound."""
        closed = (subs.bound > 0) | (self.group.strict[subs.disjunct] & (subs.bound >= 0))
        if bool(closed.any()):
            self.closed_bound = min(self.closed_bound, float(subs.bound[closed].amin()))
        return subs.take(~closed)

    def _sift(self, subs: Subproblems) -> None:
        """Into the frontier goes what is open and can be split; the rest are linear programs."""
        subs = self._open(subs)
        final = subs.best[:, 0] < 0
        self.frontier.push(subs.take(~final))
        for n in final.nonzero(as_tuple=True)[0].tolist():
            self._decide_leaf(subs.take(torch.tensor([n], device=subs.bound.device)))

    def _decide_leaf(self, leaf: Subproblems) -> None:
        """Decide a subproblem without a split left by a linear program, or keep it."""
        disjunct = self.group.disjuncts[int(leaf.disjunct)]
        if self.leaves is not None and not self.broken and not self.deadline.expired():
            outcome = self.leaves.decide(disjunct, self.state_of(leaf), self.decisions(leaf))
            if outcome.judgement is not None:
                self._note(outcome.judgement)
            self.note = outcome.note or self.note
            self.tied |= {int(leaf.box)} if outcome.tie else set()
            leaf = replace(leaf, bound=leaf.bound.clamp(min=outcome.bound))
            if not outcome.note and not self.broken:
                self.closed_bound = min(self.closed_bound, outcome.bound)
                return
        self.stuck = self.stuck.join(leaf)

    def decisions(self, one: Subproblems) -> tuple[Decision, ...]:
        """The split decisions of one subproblem by node."""
        return tuple((self.slots[slot], index, side, point) for slot, index, side, point in one.literals(0))

    def _outcome(self) -> NeuronOutcome:
        unbounded = [] if self.waiting is None else [-math.inf]
        bound = min([self.closed_bound, self.frontier.lowest, *self.stuck.bound.tolist(), *self.given_up.bound.tolist(), *unbounded])
        left = self.frontier.all().join(self.given_up, *([] if self.waiting is None else [self.waiting]))
        closed = not len(left) and not len(self.stuck) and self.waiting is None
        detail = {"method": "neuron split", "subproblems": self.bounded, "open": len(self.frontier) + len(self.stuck)}
        detail.update({} if self.leaves is None else {"leaves": self.leaves.solved})
        if self.oracle is not None:
            detail.update(self.oracle.counts)
        trust = Trust.SOLVER if self.raised and not closed else self.trust
        tied = Reason.FLOAT_SEMANTICS if self.tied and not len(self.frontier) else Reason.UNDECIDED
        reason = Reason.MEMORY if self.out_of_memory else tied
        note = "; ".join(filter(None, [self.note, *(self.oracle.notes if self.oracle else [])]))
        return NeuronOutcome(closed, bound, self.judgement, left, self.stuck, trust, reason, note, detail)

    def _report(self) -> None:
        now = time.monotonic()
        if self.on_event is not None and now - self.reported > 0.2:
            self.reported = now
            bound = min([self.closed_bound, self.frontier.lowest, *self.stuck.bound.tolist()])
            data = {"open": len(self.frontier), "subproblems": self.bounded, "bound": bound}
            self.on_event(Event("search", f"{len(self.frontier)} open, {self.bounded} bounded", data))

    # -- points -----------------------------------------------------------------------------------------------------------

    def _attack(self, found: LinearBound, subs: Subproblems) -> None:
        """Try the corners that minimise the rows' linear bounds; judge the best."""
        ends = self.root[0].bounds
        lower, upper = ends.lower[subs.box].unsqueeze(1), ends.upper[subs.box].unsqueeze(1)
        points = torch.where(found.coefficients > 0, lower, upper).flatten(0, 1)
        disjunct = subs.disjunct.repeat_interleave(found.lower.shape[1])
        residual = (self.y_rows[disjunct] @ evaluate(self.fast, points.float()).double().unsqueeze(2)).squeeze(2) - self.rhs[disjunct]
        if self.x_rows is not None:
            residual = residual + (self.x_rows[disjunct] @ points.unsqueeze(2)).squeeze(2)
        margin = residual.amax(1)
        for k in torch.argsort(margin)[:2].tolist():
            if float(margin[k]) > 1e-6:
                return
            self._judge(int(disjunct[k]), points[k].cpu().numpy())

    def _judge(self, place: int, x: Array) -> None:
        """Judge a point; a counterexample ends the search."""
        self._note(judge(self.problem, self.group.disjuncts[place], x))

    def _note(self, judgement: Judgement) -> None:
        if judgement.status is Status.HOLDS or (judgement.status is Status.FLOAT_SEMANTICS and not self.broken):
            self.judgement = judgement

    @property
    def broken(self) -> bool:
        """Whether a counterexample was found."""
        by_oracle = self.oracle is not None and self.oracle.counterexample is not None
        return by_oracle or (self.judgement is not None and self.judgement.status is Status.HOLDS)

    def _remember(self, place: int, x: Array) -> None:
        """Keep a point that is better than what is known of its disjunct and satisfies the domain rows."""
        disjunct = self.group.disjuncts[place]
        x = np.clip(x, disjunct.box.lower, disjunct.box.upper)
        if len(disjunct.domain) and not bool((disjunct.domain.x_rows @ x <= disjunct.domain.rhs).all()):
            return
        y = evaluate(self.graph, torch.from_numpy(x)[None].to(self.graph.device))[0].cpu().numpy()
        margin = float(disjunct.unsafe.residual(x, y).max())
        if place not in self.best or margin < self.best[place][0]:
            self.best[place] = (margin, x)
