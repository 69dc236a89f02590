"""Splitting neurons: pre-activations are split at breakpoints, split constraints enter as multipliers (beta-CROWN, arXiv 2103.06624).

A subproblem is a disjunct with split decisions. `Bounder` bounds them, `branching` says what to split, `Conflicts` close what is known
to be empty; a subproblem without a split left is a linear program.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from milpverify.balls.dual import lowest
from milpverify.config import SplitPoints
from milpverify.graph import evaluate
from milpverify.propagation.optimised.halfspaces import HalfspaceForms, HalfspaceTuning
from milpverify.propagation.optimised.output_constraints import ConstraintTuning
from milpverify.propagation.request import CostTuning
from milpverify.propagation.state import select
from milpverify.result import Trust
from milpverify.search.batch_size import BatchSize
from milpverify.search.branch_and_bound import Chunks, Space
from milpverify.search.effort import Effort, EffortTuning
from milpverify.search.ledger import Part
from milpverify.search.neuron_split.bounder import Bounder, NeuronTuning
from milpverify.search.neuron_split.branching import Brancher, BranchingTuning, children, narrowed, reset_slopes, where_worse, with_those_of
from milpverify.search.neuron_split.clip import Clipper
from milpverify.search.neuron_split.conditional import ConditionalRoot, ConditionalTuning, conditional_root, implied, stacked, swept_state
from milpverify.search.neuron_split.conflicts import Conflicts
from milpverify.search.neuron_split.programs import close_by_programs
from milpverify.search.neuron_split.subproblems import Subproblems
from milpverify.search.tree import Tree

if TYPE_CHECKING:
    from milpverify.config import Deadline
    from milpverify.encode.cut_forms import Split
    from milpverify.encode.encoding import NodeRanges
    from milpverify.propagation.state import LinearBound, State
    from milpverify.search.context import SearchContext
    from milpverify.search.groups import Group


class NeuronSpace(Space[Subproblems, "LinearBound"]):
    """Split decisions over one group, on one box or on many at once.

    Args:
        root: the state of a batch of boxes within the group's, from `crown` in float64 or float32.
        tuning: by default the context's.
    """

    def __init__(self, context: SearchContext, group: Group, root: State, tuning: NeuronTuning | None = None) -> None:
        self.context, self.group, self.tuning = context, group, tuning or context.tuned(NeuronTuning)
        self.conditional = context.tuned(ConditionalTuning)
        switches, graph = context.switches, context.graph
        # Where relaxations are curves, bounding candidates takes as long as several subproblems, and saves few.
        filtered = switches.filtering and (graph.piecewise_linear or switches.filtering_smooth)
        self.plain = Bounder(
            graph, group, root, context.deadline, self.tuning if filtered else replace(self.tuning, candidates=1),
            optimised=switches.points is SplitPoints.OPTIMISED, resets=switches.fresh_lines,
        )  # fmt: skip
        # What subproblems inherit holds at unsafe points only, and so may what `bounder` comes to begin with.
        self.bounder = self.plain.inheriting() if switches.clipping else self.plain
        self.conflicts: Conflicts | None = None
        self.clipper, self.brancher = self._helpers(self.bounder)
        efforts = context.tuned(EffortTuning)
        passes = self.tuning.iterations + 2 * self.plain.candidates
        self.effort = Effort.of_splits(graph, passes, efforts, context.tuned(CostTuning))
        self.patience = self.effort.subproblems(self.conditional.patience) if switches.output_constraints else math.inf
        self.roots: dict[int, State] = {}  # by disjunct, where they are conditional
        self.swept: dict[int, NodeRanges] = {}  # by disjunct, what a solver proved of unsafe points since
        self.refuted = 0  # disjuncts that output constraints left without a point
        self.branchings = torch.zeros(len(root[0].center), dtype=torch.long, device=graph.device)  # of every box
        memory = max(2, self.tuning.entries // self.bounder.entries_each)
        fixed = self.tuning.counted if switches.deterministic else None
        self.batch = BatchSize(size=16, largest=efforts.largest(graph.device), fixed=fixed, memory=memory, tuning=efforts)
        if self.tuning.batch is not None:
            self.batch = BatchSize(size=self.tuning.batch, fixed=self.tuning.batch, memory=memory, tuning=efforts)
        self.batch.expect(self.effort.each)

    def _helpers(self, bounder: Bounder) -> tuple[Clipper, Brancher]:
        """What works with a bounder."""
        context, heuristic = self.context, self.context.switches.branching
        forms = HalfspaceForms(bounder.relaxations, context.tuned(HalfspaceTuning))
        brancher = Brancher(bounder, heuristic, forms, context.options.seed, context.tuned(BranchingTuning))
        return Clipper(bounder, forms, self.conditional), brancher

    def tree(self, roots: Subproblems | None = None) -> Tree[Subproblems]:
        """A tree to begin with: every disjunct on every box, or other roots, of which nothing is learned."""
        tree = Tree.of(self.context, self.group, self.bounder.first() if roots is None else roots)
        tree.conditional = self.bounder is not self.plain
        known = ((place, self.context.points[m]) for place, m in enumerate(self.group.members) if m in self.context.points)
        for place, x in itertools.islice(known, self.tuning.points):
            tree.incumbents.remember(place, x)
        if roots is not None:
            self.patience = math.inf
        elif self.context.switches.no_goods:
            self.conflicts = Conflicts(self.bounder, self.conditional)
        return tree

    def decisions(self, one: Subproblems) -> tuple[Split, ...]:
        """The split decisions of one subproblem by node."""
        return self.bounder.decisions(one)

    # -- split --------------------------------------------------------------------------------------------------------------

    def split(self, tree: Tree[Subproblems], parents: Subproblems, deadline: Deadline) -> Subproblems | None:
        """The children of the best of each parent's candidate splits, less what conflicts refute."""
        parents = self._refuted(tree, self._charged(tree, parents))
        if not len(parents):
            return parents
        with self.context.ledger.spent(Part.BRANCHING):
            chosen: list[Tensor] = []
            chunks = Chunks(parents, self.batch, deadline, share=2 * self.bounder.candidates)
            for part in chunks:
                with chunks:
                    chosen.append(self.brancher.best_split(part))
            if not chunks.complete:
                return None
            both = children(self.bounder, parents, torch.cat(chosen))
        return self._forced(tree, self._refuted(tree, both))

    def _charged(self, tree: Tree[Subproblems], parents: Subproblems) -> Subproblems:
        """Charge the boxes of some parents for a branching; whatever belongs to a box that has spent its share is abandoned."""
        if self.tuning.per_box is None:
            return parents
        self.branchings += torch.bincount(parents.box, minlength=len(self.branchings))
        over = self.branchings > self.tuning.per_box
        waiting = tree.frontier.alive & over[tree.frontier.store.box]
        tree.abandoned = tree.abandoned.join(tree.frontier.store.take(waiting), parents.take(over[parents.box]))
        tree.frontier.remove(waiting)
        tree.in_progress = parents.take(~over[parents.box])
        return tree.in_progress

    def _refuted(self, tree: Tree[Subproblems], subs: Subproblems) -> Subproblems:
        """What conflicts leave open."""
        if self.conflicts is None:
            return subs
        with self.context.ledger.spent(Part.NO_GOODS):
            refuted = self.conflicts.refute(subs)
        return self._open(tree, replace(subs, bound=torch.maximum(subs.bound, refuted)), Part.NO_GOODS)

    def _forced(self, tree: Tree[Subproblems], subs: Subproblems) -> Subproblems:
        """Subproblems with the decisions that conflicts force."""
        if self.conflicts is None:
            return subs
        column, side, cut = self.conflicts.implied(subs)
        forced = column >= 0
        if bool(forced.any()):
            tree.count(cut)
            some = subs.take(forced)
            both = children(self.bounder, some, column[forced])
            half = torch.arange(len(some), device=side.device) + torch.where(side[forced] > 0, len(some), 0)
            subs = subs.take(~forced).join(both.take(half))
        return subs

    # -- bound, prune -------------------------------------------------------------------------------------------------------

    def bound(self, tree: Tree[Subproblems], children: Subproblems) -> tuple[Subproblems, LinearBound]:
        """Bound subproblems with some iterations of the optimiser, clip what they inherit, and rank their splits."""
        ledger, clips, bounder = self.context.ledger, self.context.switches.clipping, self.bounder
        iterations = self.tuning.iterations if children.slot.shape[1] else self.tuning.root_iterations
        tree.counts.bounded += len(children)
        ledger.bound(Part.NEURON_SPLITS, len(children))
        if clips:
            with ledger.spent(Part.CLIPPING):
                children = self.clipper.divided(children)
        subs, domain, found = bounder.bound(reset_slopes(bounder, children), iterations, ledger)
        worse = where_worse(bounder, children, found)
        if len(worse):
            again, _, better = bounder.bound(children.take(worse), iterations, ledger)
            subs, found = with_those_of(worse, subs, found, again, better)
        subs = replace(subs, narrower=torch.zeros_like(subs.narrower))
        if clips and not bounder.deadline.expired():
            with ledger.spent(Part.CLIPPING):
                clipping, before = self.clipper.begin(subs, found), domain
                while (clipped := clipping.next()) is not None:
                    again, _, better = bounder.bound(clipped, 0, ledger)
                    clipping.keep(again, better)
                subs, domain = clipping.subs, bounder.domain_of(clipping.subs)
                subs = narrowed(bounder, subs, before, domain, self.brancher.tuning)
        with ledger.spent(Part.BRANCHING):
            return replace(subs, best=self.brancher.rank(subs, domain, found)), found

    def try_points(self, tree: Tree[Subproblems], children: Subproblems, found: LinearBound) -> None:
        """Try the points, corners where no ball cuts the box, that minimise the rows' linear bounds; validate the best."""
        ends = self.bounder.state[0].bounds
        points = lowest(self.bounder.graph.ball, found.coefficients, ends.lower[children.box], ends.upper[children.box]).flatten(0, 1)
        disjunct = children.disjunct.repeat_interleave(found.lower.shape[1])
        y_rows, rhs, x_rows = self.bounder.rows_of(disjunct)
        residual = (y_rows @ evaluate(self.bounder.fast, points.float()).double().unsqueeze(2)).squeeze(2) - rhs
        if x_rows is not None:
            residual = residual + (x_rows @ points.unsqueeze(2)).squeeze(2)
        margin = residual.amax(1)
        for k in torch.argsort(margin)[:2].tolist():
            if float(margin[k]) > max(1e-6, self.context.delta):
                return
            tree.incumbents.validate(int(disjunct[k]), points[k].cpu().numpy())

    def prune(self, tree: Tree[Subproblems], children: Subproblems, found: LinearBound) -> Subproblems:
        """What is not closed; conflicts are learned from what is."""
        if self.conflicts is not None:
            with self.context.ledger.spent(Part.NO_GOODS):
                shrunk = self.conflicts.shrunk(children.take(children.bound > 0))
                if len(shrunk):
                    self.conflicts.keep(self.bounder.bound(shrunk, 0)[0])
        return self._open(tree, children, Part.NEURON_SPLITS)

    def _open(self, tree: Tree[Subproblems], subs: Subproblems, part: Part) -> Subproblems:
        closed = self.group.closes(subs.bound, subs.disjunct)
        if bool(closed.any()):
            tree.close(float(subs.bound[closed].amin()), part, int(closed.sum()))
        return subs.take(~closed)

    # -- leaves -------------------------------------------------------------------------------------------------------------

    def leaves(self, tree: Tree[Subproblems], children: Subproblems, deadline: Deadline) -> Subproblems:
        """Decide subproblems without a split left by linear programs, or keep them; of others, close what is nearly closed."""
        leaves, small = self.context.leaves, self.bounder.relaxations.count <= self.tuning.largest_program
        if leaves is not None and small and not self.context.graph.piecewise_linear and self.tuning.per_box is None:
            children = close_by_programs(leaves, self.bounder, tree, children, deadline)
        final = children.best[:, 0] < 0
        for n in final.nonzero(as_tuple=True)[0].tolist():
            self._decide_leaf(tree, children.take(torch.tensor([n], device=final.device)), deadline)
        return children.take(~final)

    def _decide_leaf(self, tree: Tree[Subproblems], leaf: Subproblems, deadline: Deadline) -> None:
        programs, ledger = self.context.leaves, self.context.ledger
        if programs is not None and self.context.graph.piecewise_linear and not tree.falsified and not deadline.expired():
            with ledger.spent(Part.LEAVES):
                state, decisions = self.bounder.state_of(leaf), self.decisions(leaf)
                if tree.conditional:
                    alike = self.bounder.state is self.plain.state  # otherwise its boxes are the disjuncts'
                    plain = leaf if alike else replace(leaf, box=torch.zeros_like(leaf.box))
                    decisions += implied(self.context.graph, self.plain.state_of(plain), state)
                outcome = programs.decide(self.group.disjuncts[int(leaf.disjunct)], state, decisions)
            ledger.bound(Part.LEAVES)
            tree.incumbents.note(outcome.validation)
            tree.note = outcome.note or tree.note
            tree.ties |= {int(leaf.box)} if outcome.tie else set()
            leaf = replace(leaf, bound=leaf.bound.clamp(min=outcome.bound))
            if outcome.closed and not tree.falsified:
                tree.close(outcome.bound, Part.LEAVES)
                return
        tree.unsplittable = tree.unsplittable.join(leaf)

    # -- output constraints -------------------------------------------------------------------------------------------------

    def renew(self, tree: Tree[Subproblems], deadline: Deadline) -> bool:
        """Begin again from bounds that hold at the unsafe points of every open disjunct, where these pay; what was proved stays.

        After so many subproblems they are made from the rows; a solver's sweeps may bring better ones at any time (trust SOLVER).
        """
        due = tree.counts.bounded >= self.patience
        if not (due or self.swept) or not len(tree.frontier):
            return False
        self.patience = math.inf if due else self.patience
        if len(tree.unsplittable) or len(tree.abandoned):
            return False
        known, plain, switches = tree.frontier.all(), self.plain, self.context.switches
        places = known.disjunct.unique().tolist()
        by_counts, tuning = switches.deterministic, self.conditional
        numbers = tuning, self.context.tuned(ConstraintTuning)
        root = conditional_root(plain, places, deadline, by_counts, *numbers) if due else self._swept_root(places)
        if root is None:
            return False
        if not root.disjuncts:
            tree.clear(known)
            self._refuted_at_root(tree, root)
            return True
        ways = plain.points.optimised, plain.resets
        bounder = Bounder(plain.graph, self.group, root.state, self.context.deadline, plain.tuning, switches.clipping, *ways)
        assert bounder.slots == plain.slots  # decisions and bounds of either are read by the other
        conflicts, helpers = Conflicts(bounder, tuning) if switches.no_goods else None, self._helpers(bounder)
        place = torch.tensor(root.disjuncts, device=known.disjunct.device)
        lowest = torch.stack([known.bound[known.disjunct == k].amin() for k in root.disjuncts])
        roots = replace(bounder.first(torch.arange(len(place), device=place.device), place), bound=lowest)
        if not due:
            fresh = bounder.bound(roots, self.tuning.root_iterations, self.context.ledger)[0].bound
            if bool((fresh < (1.0 + tuning.loses) * lowest.clamp(max=0.0)).any()):
                return False
        conditional = {d: select(root.state, torch.tensor([k], device=place.device)) for k, d in enumerate(root.disjuncts)}
        # Only now that memory held everything: what is open belongs to one bounder at any time.
        tree.begin_again(roots)
        if not due:  # all that is proved from here rests on what was swept
            tree.trust, tree.raised = Trust.SOLVER, True
        self.bounder, self.conflicts, (self.clipper, self.brancher), self.roots = bounder, conflicts, helpers, conditional
        self._refuted_at_root(tree, root)
        return True

    def _swept_root(self, places: list[int]) -> ConditionalRoot | None:
        """The roots met with what a solver swept, where that made much of one narrower."""
        swept, self.swept = self.swept, {}
        if len(places) > self.conditional.disjuncts or len(self.plain.state[0].center) != 1:
            return None
        states, better = [self.roots.get(d, self.plain.state) for d in places], False
        for k, d in enumerate(places):
            found = swept_state(self.plain.graph, states[k], swept[d], self.conditional) if d in swept else None
            if found is not None:
                states[k], better = found, True
        return stacked(states, places) if better else None

    def _refuted_at_root(self, tree: Tree[Subproblems], root: ConditionalRoot) -> None:
        """Count the disjuncts that have no unsafe point: their margin is at least 0."""
        self.refuted = len(root.refuted)
        if root.refuted:
            tree.count(0.0)

    # -- the ledger ---------------------------------------------------------------------------------------------------------

    def open_disjuncts(self, tree: Tree[Subproblems]) -> list[int]:
        """The places of the disjuncts of open subproblems."""
        return [int(k) for k in tree.left.disjunct.unique()]

    def detail(self, tree: Tree[Subproblems]) -> dict[str, Any]:
        """Counts for the ledger."""
        found: dict[str, Any] = {"method": "neuron split"}
        if self.conflicts is not None:
            found.update(no_goods=self.conflicts.learned, pruned=self.conflicts.pruned, implied=self.conflicts.forced)
        if self.refuted:
            found.update(refuted_at_root=self.refuted)
        if self.context.leaves is not None:
            found.update(leaves=self.context.leaves.solved)
        return found
