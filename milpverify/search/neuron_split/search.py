"""Branch-and-bound on neurons: pre-activations are split at breakpoints, split constraints enter as multipliers (beta-CROWN).

A subproblem is a disjunct with split decisions. `Bounder` bounds them, `branching` says what to split; here is the loop, and what
it knows: the frontier, what cannot be split, the points tried, and the bound of everything that was closed.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from milpverify.config import DELTA, SearchOptions, SplitPoints
from milpverify.counterexamples.polish import polish
from milpverify.counterexamples.validate import Validation, Validity, validate
from milpverify.events import Event
from milpverify.graph import evaluate
from milpverify.propagation.optimised.halfspaces import HalfspaceForms
from milpverify.result import Reason, Trust
from milpverify.search.batch_size import LARGEST, BatchSize
from milpverify.search.bounding import is_out_of_memory
from milpverify.search.ledger import Ledger, Part
from milpverify.search.neuron_split.bounder import Bounder
from milpverify.search.neuron_split.branching import Brancher, bound_anew, children, decide, narrowed
from milpverify.search.neuron_split.clip import Clipper
from milpverify.search.neuron_split.conditional import conditional_root, implied
from milpverify.search.neuron_split.conflicts import Conflicts
from milpverify.search.neuron_split.subproblems import Frontier, NeuronOutcome, Subproblems
from milpverify.search.solver.sharing import exchange

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from milpverify.config import Deadline
    from milpverify.encode.cut_forms import Split
    from milpverify.graph import Graph
    from milpverify.propagation.state import LinearBound, State
    from milpverify.search.groups import Group
    from milpverify.search.ledger import Reporter
    from milpverify.search.solver.leaves import Leaves
    from milpverify.search.solver.oracle import Oracle
    from milpverify.search.tightening.tighten import Tightening
    from milpverify.spec import Array, Problem

PLAIN = SearchOptions(clipping=False, output_constraints=False, no_goods=False)
FIXED_BATCH = 512
PATIENCE = 1000
"""Subproblems before the root is bounded anew under output constraints, which takes as long as many: clipping closes most before."""
_ENTRIES = 1 << 22  # of one matrix of multipliers, over a batch
_FRONTIER_BYTES = 1 << 30  # beyond this much, the search dives


class Search:
    """Branch-and-bound over one group, from one box or from many at once; `run` can be called again with more time.

    Args:
        graph: in float64.
        root: the state of a batch of boxes within the group's, from `crown` in float64 or float32.
        reporter: what is told what is proved, and keeps the ledger; or None.
        points: per disjunct of the problem, the best input known.
        oracle: a solver to work beside the tree, or None; only where the root is the group's box alone.
        leaves: what decides subproblems without a split left, or None.
        candidates: how many splits of a subproblem are compared by the bounds of their children.
        options: which parts of the search are on; the default is a search that derives nothing under "the point is unsafe".
        delta: a smooth network whose margin is known to be this close to zero is not divided further.
        seed: of what is random.
    """

    def __init__(
        self,
        problem: Problem,
        graph: Graph,
        group: Group,
        root: State,
        deadline: Deadline,
        reporter: Reporter | None = None,
        points: Mapping[int, Array] | None = None,
        oracle: Oracle | None = None,
        leaves: Leaves | None = None,
        candidates: int = 4,
        options: SearchOptions = PLAIN,
        delta: float = DELTA,
        seed: int = 0,
    ) -> None:
        self.problem, self.graph, self.group, self.deadline = problem, graph, group, deadline
        self.reporter, self.oracle, self.leaves = reporter, oracle, leaves
        self.options, self.seed = options, seed
        # Where relaxations are curves, bounding candidates takes as long as several subproblems, and saves few.
        candidates = candidates if options.filtering and (graph.piecewise_linear or options.filtering_smooth) else 1
        optimised, fresh = options.points is SplitPoints.OPTIMISED, options.fresh_lines
        self.plain = Bounder(graph, group, root, deadline, candidates, optimised=optimised, fresh=fresh)
        # What subproblems inherit holds at unsafe points only, and so may what `bounder` comes to begin with.
        self.bounder = self.plain.inheriting() if options.clipping else self.plain
        self._equip()
        self.slots = self.bounder.slots
        self.per = max(2, _ENTRIES // self.bounder.entries_each)
        self.judgement: Validation | None = None
        self.delta = -math.inf if graph.piecewise_linear else delta
        self.near: Validation | None = None  # of a point whose margin is within delta
        self.best: dict[int, tuple[float, Array]] = {}
        for place, member in enumerate(group.members):
            if points and member in points:
                self._remember(place, points[member])
        self.patience: float = PATIENCE  # so many subproblems are bounded before output constraints are used at the root
        self.refuted = 0  # disjuncts that output constraints left without a point
        self.bounded, self.closed_bound, self.reported = 0, math.inf, 0.0
        self.trust, self.note, self.out_of_memory = Trust.ROUNDED, "", False
        self.tied, self.raised = set[int](), False  # the boxes with leaves that are ties; whether open bounds rest on the oracle
        self.tried: dict[int, int] = {}  # how many tasks of a disjunct the oracle had, the first as a whole
        self.began, self.ledger = time.monotonic(), Ledger() if reporter is None else reporter.ledger
        self.no_goods: Conflicts | None = None
        self.tightening: Tightening | None = None  # ends of pre-activations that an oracle may tighten
        self._nothing_yet()
        self.per_box: int | None = None  # after so many branchings a box is given up
        self.spent = torch.zeros(len(root[0].center), dtype=torch.long, device=graph.device)
        # What else a machine does says nothing of the batch; but the time of several threads, or of a GPU, is that of the clock.
        alone = graph.device.type == "cpu" and torch.get_num_threads() == 1
        self.clock = time.process_time if alone else time.perf_counter
        self.batch = BatchSize(fixed=FIXED_BATCH if options.deterministic else None, size=16, largest=LARGEST[graph.device.type])
        self.waiting: Subproblems | None = None  # not bounded yet
        self.fresh = True

    def _equip(self) -> None:
        """What works with the bounder that there is now."""
        forms = HalfspaceForms(self.bounder.relaxations)
        self.clipper = Clipper(self.bounder, forms)
        self.brancher = Brancher(self.bounder, self.options.branching, forms, self.seed)

    def _nothing_yet(self) -> None:
        none = torch.zeros(0, dtype=torch.long, device=self.graph.device)
        self.none = self.first(none, none)
        self.stuck = self.given_up = self.held = self.none  # held: out of the frontier, in work
        self.frontier = Frontier(self.stuck)

    def _condition(self) -> None:
        """Begin again from bounds that hold at the unsafe points of every open disjunct, where these pay; what was proved stays."""
        self.patience = math.inf
        if len(self.stuck) or len(self.given_up):
            return
        known = self.frontier.all()
        places = known.disjunct.unique().tolist()
        root = conditional_root(self.plain, places, self.deadline, self.options.deterministic)
        if root is None:
            return
        self.refuted = len(root.refuted)
        if root.refuted:
            self.closed_bound = min(self.closed_bound, 0.0)
        if not root.disjuncts:
            self._nothing_yet()
            return
        lowest = [float(known.bound[known.disjunct == place].amin()) for place in root.disjuncts]
        plain, inherits = self.plain, self.options.clipping
        ways = plain.points.optimised, plain.fresh
        bounder = Bounder(self.graph, self.group, root.state, self.deadline, plain.candidates, inherits, *ways)
        no_goods = Conflicts(bounder) if self.options.no_goods else None
        box = torch.arange(len(root.disjuncts), device=self.graph.device)
        again = bounder.first(box, torch.tensor(root.disjuncts, device=self.graph.device))
        again = replace(again, bound=torch.tensor(lowest, dtype=torch.float64, device=self.graph.device))
        self.bounder, self.no_goods, self.waiting = bounder, no_goods, again  # what waits stands for the frontier from here on
        self._nothing_yet()
        self._equip()

    @property
    def conditional(self) -> bool:
        """Whether the bounds hold at unsafe points only, so that what they close counts as 0 at most."""
        return self.bounder is not self.plain

    def _count(self, bound: float) -> None:
        """What is closed counts towards the bound of everything."""
        self.closed_bound = min(self.closed_bound, bound, 0.0 if self.conditional else math.inf)

    # -- bounding ---------------------------------------------------------------------------------------------------------

    def first(self, box: Tensor | None = None, disjunct: Tensor | None = None) -> Subproblems:
        """Subproblems without splits: the (box, disjunct) pairs given, or every disjunct on every box."""
        return self.bounder.first(box, disjunct)

    def bound(self, subs: Subproblems, iterations: int) -> Subproblems:
        """Bound subproblems, with some iterations of the optimiser; try their points and rank their splits."""
        self.bounded += len(subs)
        self.ledger.bound(Part.NEURON_SPLITS, len(subs))
        if self.options.clipping:
            with self.ledger.spent(Part.CLIPPING):
                subs = self.clipper.divided(subs)
        subs, domain, found = bound_anew(self.bounder, subs, iterations, self.ledger)
        self._attack(found, subs)
        if self.options.clipping:
            with self.ledger.spent(Part.CLIPPING):
                before, subs = domain, self.clipper.clip(subs, found, self.ledger)
                domain = self.bounder.domain_of(subs)
                subs = narrowed(self.bounder, subs, before, domain)
        with self.ledger.spent(Part.BRANCHING):
            return replace(subs, best=self.brancher.rank(subs, domain, found))

    def branch(self, parents: Subproblems) -> Subproblems | None:
        """The children of the best of each parent's candidate splits."""
        with self.ledger.spent(Part.BRANCHING):
            found = self._in_chunks(parents, max(1, self.per // (2 * self.bounder.candidates)), self._choose)
        return None if found is None else children(self.bounder, parents, found.best[:, 0])

    def _choose(self, parents: Subproblems) -> Subproblems:
        return replace(parents, best=decide(self.bounder, parents).unsqueeze(1))

    def bound_in_chunks(self, subs: Subproblems, iterations: int) -> Subproblems | None:
        """`bound`, as many at a time as memory allows; None when the deadline comes first."""
        return self._in_chunks(subs, self.per, lambda part: self.bound(part, iterations))

    def _in_chunks(self, subs: Subproblems, per: int, work: Callable[[Subproblems], Subproblems]) -> Subproblems | None:
        done: list[Subproblems] = []
        start = 0
        while start < len(subs):
            if self.deadline.expired():
                return None
            part = subs.take(torch.arange(start, min(start + per, len(subs)), device=subs.bound.device))
            try:
                done.append(work(part))
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error) or per == 1:
                    raise
                per = max(1, min(per, len(part)) // 2)
                self.per = min(self.per, per)
                self.batch.at_most(max(2, per))
                continue
            start += len(part)
        return done[0].join(*done[1:]) if done else subs

    # -- the loop ---------------------------------------------------------------------------------------------------------

    def run(
        self,
        iterations: int = 10,
        root_iterations: int = 20,
        batch: int | None = None,
        start: Subproblems | None = None,
        limit: int | None = None,
        per_box: int | None = None,
    ) -> NeuronOutcome:
        """Split until everything is closed or stuck, a counterexample holds, `limit` subproblems were bounded, or the deadline.

        Args:
            batch: bound so many at a time, instead of as many as measurement shows to be best.
            start: what to begin with, instead of every disjunct on every box. It is bounded whatever the limit.
            per_box: a box that has branched so often is given up, and stays open.
        """
        self.per_box = per_box
        if batch is not None:
            self.batch = BatchSize(size=batch, fixed=batch)
        if self.fresh:
            self.waiting, self.fresh = self.first() if start is None else start, False
            if start is None and self.options.no_goods:
                self.no_goods = Conflicts(self.bounder)
            if start is not None or not self.options.output_constraints:
                self.patience = math.inf
        try:
            self.frontier.push(self.held)  # what a deadline or the end of memory left
            self.held = self.none
            while self._going() and (self.waiting is not None or limit is None or self.bounded < limit):
                if self.waiting is not None:
                    if (bounded := self.bound_in_chunks(self.waiting, root_iterations)) is None:
                        break
                    self._sift(bounded)
                    self.waiting = None
                    continue
                if self.bounded >= self.patience and len(self.frontier):
                    self._condition()
                    continue
                if not len(self.frontier):
                    time.sleep(0.01)  # the oracle is at work on what the tree cannot split
                    self.consult()
                    continue
                nearest = len(self.frontier) * self.frontier.store.bytes_each > _FRONTIER_BYTES
                began, before = self.clock(), self.bounded
                self.held = self.frontier.pop(max(1, self.batch.size // 2), nearest)
                if not self._expand(self.held, iterations):
                    break
                self.held = self.none
                self.batch.took(self.bounded - before, self.clock() - began)
                self.consult()
                self._report()
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            self.out_of_memory = True
        return self._outcome()

    def _going(self) -> bool:
        """Whether there is anything left to do and time to do it."""
        if self.broken or self.closest or self.deadline.expired():
            return False
        if self.waiting is not None:
            return True
        helps = self.oracle is not None and self.oracle.usable and self.oracle.options.believes_solvers
        return bool(len(self.frontier)) or (helps and bool(len(self.stuck)))

    def _expand(self, parents: Subproblems, iterations: int) -> bool:
        """Split, bound and sift; False when the deadline comes first."""
        parents = self._spend(parents)
        if self.no_goods is not None:
            with self.ledger.spent(Part.NO_GOODS):
                refuted = self.no_goods.refute(parents)
            parents = self._open(replace(parents, bound=torch.maximum(parents.bound, refuted)), Part.NO_GOODS)
        if not len(parents):
            return True
        children = self.branch(parents)
        children = None if children is None else self._pruned(children)
        fresh = None if children is None else self.bound_in_chunks(children, iterations)
        if fresh is None:
            return False
        self._sift(fresh)
        return True

    def _pruned(self, subs: Subproblems) -> Subproblems:
        """What no-goods leave, with the decisions that they force."""
        if self.no_goods is None:
            return subs
        with self.ledger.spent(Part.NO_GOODS):
            refuted = self.no_goods.refute(subs)
        subs = self._open(replace(subs, bound=torch.maximum(subs.bound, refuted)), Part.NO_GOODS)
        column, side, cut = self.no_goods.implied(subs)
        forced = column >= 0
        if bool(forced.any()):
            self._count(cut)
            some = subs.take(forced)
            both = children(self.bounder, some, column[forced])
            half = torch.arange(len(some), device=side.device) + torch.where(side[forced] > 0, len(some), 0)
            subs = subs.take(~forced).join(both.take(half))
        return subs

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

    def consult(self) -> None:
        """Let the oracle and the tree tell each other what they know."""
        if self.oracle is not None and (self.oracle.usable or self.oracle.proved):
            with self.ledger.spent(Part.ORACLE):
                exchange(self, self.oracle)

    def _open(self, subs: Subproblems, by: Part = Part.NEURON_SPLITS) -> Subproblems:
        """Those that are not closed; what is closed counts towards the bound."""
        closed = self.group.closes(subs.bound, subs.disjunct)
        if bool(closed.any()):
            self._count(float(subs.bound[closed].amin()))
            self.ledger.close(by, int(closed.sum()))
        return subs.take(~closed)

    def _sift(self, subs: Subproblems) -> None:
        """Into the frontier goes what is open and can be split; the rest are linear programs."""
        if self.no_goods is not None:
            with self.ledger.spent(Part.NO_GOODS):
                self.no_goods.learn(subs.take(subs.bound > 0))
        subs = self._open(subs)
        final = subs.best[:, 0] < 0
        self.frontier.push(subs.take(~final))
        for n in final.nonzero(as_tuple=True)[0].tolist():
            self._decide_leaf(subs.take(torch.tensor([n], device=subs.bound.device)))

    def _decide_leaf(self, leaf: Subproblems) -> None:
        """Decide a subproblem without a split left by a linear program, or keep it."""
        disjunct = self.group.disjuncts[int(leaf.disjunct)]
        if self.leaves is not None and not self.broken and not self.deadline.expired():
            with self.ledger.spent(Part.LEAVES):
                state, decisions = self.bounder.state_of(leaf), self.decisions(leaf)
                if self.conditional:
                    alike = self.bounder.root is self.plain.root  # otherwise its boxes are the disjuncts'
                    plain = leaf if alike else replace(leaf, box=torch.zeros_like(leaf.box))
                    decisions += implied(self.graph, self.plain.state_of(plain), state)
                outcome = self.leaves.decide(disjunct, state, decisions)
            self.ledger.bound(Part.LEAVES)
            if outcome.judgement is not None:
                self._note(outcome.judgement)
            self.note = outcome.note or self.note
            self.tied |= {int(leaf.box)} if outcome.tie else set()
            leaf = replace(leaf, bound=leaf.bound.clamp(min=outcome.bound))
            if outcome.closed:
                self._count(outcome.bound)
                self.ledger.close(Part.LEAVES)
                return
        self.stuck = self.stuck.join(leaf)

    def decisions(self, one: Subproblems) -> tuple[Split, ...]:
        """The split decisions of one subproblem by node."""
        return tuple((self.slots[slot], index, side, point) for slot, index, side, point in one.literals(0))

    @property
    def left(self) -> Subproblems:
        """All that is open and not stuck: in the frontier, in work, given up, or not bounded yet."""
        return self.frontier.all().join(self.held, self.given_up, *([] if self.waiting is None else [self.waiting]))

    @property
    def _lowest(self) -> float:
        """The bound of everything, closed and open."""
        parts = [self.stuck, self.held, self.given_up, *([] if self.waiting is None else [self.waiting])]
        return min([self.closed_bound, self.frontier.lowest, *(float(p.bound.amin()) for p in parts if len(p))])

    def _outcome(self) -> NeuronOutcome:
        bound = min(self._lowest, 0.0) if self.conditional else self._lowest
        left = self.left
        closed = not len(left) and not len(self.stuck) and self.waiting is None and not self.out_of_memory
        detail = {"method": "neuron split", "subproblems": self.bounded, "open": len(left) + len(self.stuck)}
        if self.no_goods is not None:
            detail.update(no_goods=self.no_goods.learned, pruned=self.no_goods.pruned, implied=self.no_goods.forced)
        detail.update({"refuted_at_root": self.refuted} if self.refuted else {})
        detail.update({} if self.leaves is None else {"leaves": self.leaves.solved})
        if self.oracle is not None:
            detail.update(self.oracle.counts)
        trust = self.trust if closed else self.trust_of_bound
        tied = Reason.FLOAT_SEMANTICS if self.tied and not len(self.frontier) else Reason.UNDECIDED
        reason = Reason.MEMORY if self.out_of_memory else Reason.DELTA if self.closest else tied
        near = [] if self.near is None else [self.near.where]
        note = "; ".join(filter(None, [self.note, *near, *(self.oracle.notes if self.oracle else [])]))
        return NeuronOutcome(closed, bound, self.judgement, left, self.stuck, trust, reason, note, detail)

    def _report(self) -> None:
        now = time.monotonic()
        if self.reporter is not None and now - self.reported > 0.2:
            self.reported = now
            bound, trust = self._lowest, self.trust_of_bound
            self.reporter.prove(bound, trust)
            data = {"open": len(self.frontier), "subproblems": self.bounded, "bound": bound, "trust": trust.value}
            self.reporter(Event("search", f"{len(self.frontier)} open, {self.bounded} bounded", data))

    # -- points -----------------------------------------------------------------------------------------------------------

    def _attack(self, found: LinearBound, subs: Subproblems) -> None:
        """Try the corners that minimise the rows' linear bounds; judge the best."""
        ends = self.bounder.root[0].bounds
        lower, upper = ends.lower[subs.box].unsqueeze(1), ends.upper[subs.box].unsqueeze(1)
        points = torch.where(found.coefficients > 0, lower, upper).flatten(0, 1)
        disjunct = subs.disjunct.repeat_interleave(found.lower.shape[1])
        y_rows, rhs, x_rows = self.bounder.rows_of(disjunct)
        residual = (y_rows @ evaluate(self.bounder.fast, points.float()).double().unsqueeze(2)).squeeze(2) - rhs
        if x_rows is not None:
            residual = residual + (x_rows @ points.unsqueeze(2)).squeeze(2)
        margin = residual.amax(1)
        for k in torch.argsort(margin)[:2].tolist():
            if float(margin[k]) > max(1e-6, self.delta):
                return
            self._judge(int(disjunct[k]), points[k].cpu().numpy())

    def _judge(self, place: int, x: Array) -> None:
        """Judge a point; a counterexample ends the search."""
        judgement = validate(self.problem, self.group.disjuncts[place], x)
        self._note(judgement)
        if self.near is None and judgement.within(self.delta):
            self.near = judgement
            if (example := polish(self.problem, self.group.disjuncts[place], x)) is not None:
                self._note(validate(self.problem, self.group.disjuncts[place], example.x))

    @property
    def trust_of_bound(self) -> Trust:
        """What the bound of everything rests on."""
        return Trust.SOLVER if self.raised else self.trust

    @property
    def closest(self) -> bool:
        """Whether the margin is known up to delta: a point is that close to a violation, and none can be further beyond."""
        return self.near is not None and self._lowest >= -self.delta

    def _note(self, judgement: Validation) -> None:
        if judgement.status is Validity.HOLDS or (judgement.status is Validity.FLOAT_SEMANTICS and not self.broken):
            self.judgement = judgement

    @property
    def broken(self) -> bool:
        """Whether a counterexample was found."""
        by_oracle = self.oracle is not None and self.oracle.counterexample is not None
        return by_oracle or (self.judgement is not None and self.judgement.status is Validity.HOLDS)

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
            if self.near is None and margin <= self.delta:
                self._judge(place, x)
