"""Splitting inputs: boxes are bisected until their bounds decide them. Strong where inputs are few.

Bisection alone does not end at a tie. Small boxes are finished by neuron splits, and what cannot be bisected in float64 any more is
split into linear programs: a piecewise-linear problem ends in a verdict or at a limit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from milpverify.arithmetic.rounding import down
from milpverify.propagation.differences.coefficients import DifferenceTuning
from milpverify.propagation.memory import boxes_that_fit
from milpverify.propagation.request import BoundTuning, CostTuning
from milpverify.propagation.screening import undecided
from milpverify.propagation.state import select
from milpverify.search.batch_size import BatchSize
from milpverify.search.bounding import BatchBounds, Prepared, bound_batch
from milpverify.search.branch_and_bound import Space
from milpverify.search.effort import Effort, EffortTuning
from milpverify.search.input_split.bounding_method import MethodChoice
from milpverify.search.input_split.boxes import Boxes, Inheritance
from milpverify.search.input_split.candidate_points import try_points
from milpverify.search.input_split.clip import clip, least
from milpverify.search.input_split.conjunctions import combined
from milpverify.search.input_split.finish import Finisher
from milpverify.search.input_split.influence import scores
from milpverify.search.ledger import Part
from milpverify.search.tree import Tree

if TYPE_CHECKING:
    from milpverify.config import Deadline
    from milpverify.propagation.request import Method
    from milpverify.search.context import SearchContext
    from milpverify.search.groups import Group


class BoxSpace(Space[Boxes, BatchBounds]):
    """Boxes within one group's box; `whole` is that.

    Args:
        root: the bounds over the group's box, if they are known.
        dtype: the precision of the matrix products.
    """

    def __init__(self, context: SearchContext, group: Group, root: BatchBounds | None = None, dtype: torch.dtype = torch.float32) -> None:
        graph, switches = context.graph, context.switches
        self.context, self.group, self.dtype = context, group, dtype
        lower, upper = (torch.tensor(side, device=graph.device)[None] for side in (group.box.lower, group.box.upper))
        self.prepared = Prepared.of(graph, group, context.tuned(DifferenceTuning))
        self.root = root or bound_batch(graph, group, lower, upper, dtype, context.request(), self.prepared)
        self.inheritance = Inheritance(graph, self.root.state)
        self.method = MethodChoice.begun(graph, group, self.root, self.prepared, switches)
        efforts = context.tuned(EffortTuning)
        self.effort = Effort.of_boxes(graph, self.method.first, efforts, context.tuned(CostTuning))
        varying = int((upper > lower).sum()) if switches.forward else 0
        largest = min(efforts.largest(graph.device), boxes_that_fit(graph, varying, context.tuned(BoundTuning)))
        fixed = min(self.method.tuning.batch, largest) if switches.deterministic else None
        self.batch = BatchSize(min(32, largest), min(16, largest), largest, fixed, largest, tuning=efforts)
        self.batch.expect(self.effort.each)
        self.method.next = int(min(self.method.next, self.effort.subproblems(self.method.tuning.seconds)))
        self.began = context.clock()
        self.finisher = Finisher(context, group, self.effort, self.prepared)
        first = torch.zeros(1, dtype=torch.long, device=graph.device)
        self.whole = self._boxes(self.root, lower, upper, self.root.margins, first, 1)

    def tree(self) -> Tree[Boxes]:
        """A tree to begin with: the whole box."""
        tree = Tree.of(self.context, self.group, self.whole)
        tree.counts.bounded = 1  # the whole box, whose bounds are known
        return tree

    # -- split --------------------------------------------------------------------------------------------------------------

    def split(self, tree: Tree[Boxes], parents: Boxes, deadline: Deadline) -> Boxes:
        """Both halves of every box; what has no float64 inside cannot be split."""
        divisible = parents.divisible()
        final = parents.take(~divisible)
        final.tried[:] = False  # not as linear programs
        tree.unsplittable = tree.unsplittable.join(final)
        tree.in_progress = parents.take(divisible)
        return self._confined(tree.in_progress.halves())

    def _confined(self, boxes: Boxes) -> Boxes:
        """What the half-spaces that inputs are confined to leave of boxes."""
        if (halfspaces := self.context.graph.halfspaces) is not None:
            rows, rhs = (torch.from_numpy(t).to(boxes.lower.device).expand(len(boxes), *t.shape) for t in (halfspaces.rows, halfspaces.rhs))
            boxes.lower[:], boxes.upper[:], empty = clip(boxes.lower, boxes.upper, least(rows, rhs, boxes.lower, boxes.upper), rows)
            boxes.margins[empty] = torch.inf
        return boxes

    # -- bound, prune -------------------------------------------------------------------------------------------------------

    def bound(self, tree: Tree[Boxes], children: Boxes) -> tuple[Boxes, BatchBounds]:
        """Bound boxes by the method that is best so far."""
        if tree.unbounded is not None:
            return children, self.root
        if self.method.due(tree.counts.bounded, len(children), self.context.clock() - self.began):
            self._compare(children)
        found = bound_batch(*self._request(children, self.method.now))
        tree.counts.bounded += len(children)
        self.context.ledger.bound(Part.BISECTION, len(children))
        return children, found

    def _request(self, boxes: Boxes, method: Method) -> tuple[Any, ...]:
        """What `bound_batch` is told of some boxes."""
        context, known = self.context, self.inheritance.unpack(boxes.inherited)
        request = context.request(known, method, context.switches.second_order)
        return context.graph, self.group, boxes.lower, boxes.upper, self.dtype, request, self.prepared

    def _compare(self, boxes: Boxes) -> None:
        """Bound a sample by every method, for the choice between them."""
        clock = self.context.clock
        sample = boxes.take(self.method.sample(len(boxes), boxes.lower.device, clock() - self.began))
        for method in self.method.candidates:
            if self.context.deadline.expired():
                return
            began = clock()
            found = bound_batch(*self._request(sample, method))
            closed = int(self.group.closed(torch.maximum(found.margins, sample.margins)).all(1).sum())
            self.method.took(method, len(sample), closed, clock() - began)
        self.method.choose()

    def try_points(self, tree: Tree[Boxes], children: Boxes, found: BatchBounds) -> None:
        """Try corners and centres of open boxes."""
        with self.context.ledger.spent(Part.ATTACK):
            fast = self.context.graph.to(torch.float32, self.context.graph.device)
            points = children.lower, children.upper
            tree.incumbents.note(try_points(self.context.problem, fast, self.group, found, *points, self.context.delta))

    def prune(self, tree: Tree[Boxes], children: Boxes, found: BatchBounds) -> Boxes:
        """The boxes that are still open, clipped."""
        margins = torch.maximum(found.margins, children.margins)
        closed = self.group.closed(margins)
        done = closed.all(1)
        if bool(done.any()):
            tree.close(float(margins[done].amin()), Part.BISECTION, int(done.sum()))
        left = (~done).nonzero(as_tuple=True)[0]
        boxes = self._boxes(found, children.lower, children.upper, margins, left, tree.counts.bounded)
        with self.context.ledger.spent(Part.CLIPPING):
            return self._clipped(tree, found, boxes, closed, left)

    def _boxes(self, found: BatchBounds, lower: Tensor, upper: Tensor, margins: Tensor, left: Tensor, age: int) -> Boxes:
        """Some boxes of a bounded batch as they wait in the frontier."""
        graph, needed = self.context.graph, self.prepared.needed
        scored = scores(graph, self.group, found, upper - lower, margins, left)
        unstable = torch.zeros_like(left, dtype=torch.int32)
        waiting = select(found.state, left)
        for z in graph.readers:
            bounds = waiting[z].bounds
            loose = undecided(graph, z, waiting, bounds.lower.flatten(1), bounds.upper.flatten(1))
            unstable += (loose & needed[z] if z in needed else loose).sum(1)
        tried, ages = torch.zeros_like(left, dtype=torch.bool), torch.full_like(left, age)
        return Boxes(lower[left], upper[left], margins[left], scored, unstable, tried, ages, self.inheritance.pack(found.state, left))

    def _clipped(self, tree: Tree[Boxes], found: BatchBounds, boxes: Boxes, closed: Tensor, left: Tensor) -> Boxes:
        """Cut from boxes with one open disjunct what that disjunct's rows prove safe; its margin there is > 0, by an unknown amount."""
        is_open = ~closed[left]
        single = (is_open.sum(1) == 1).nonzero(as_tuple=True)[0]
        group, graph = self.group, self.context.graph
        if not len(single) or group.places is None:
            return boxes
        disjunct = is_open[single].int().argmax(1)
        low, high = boxes.lower[single], boxes.upper[single]
        domain, rhs = (t[disjunct] for t in group.domains)
        outside = least(domain, rhs, low, high)  # what violates a constraint between inputs is no input at all
        if self.context.switches.clipping:
            rows = group.places[disjunct]
            minima = down(found.rows.over_box - group.rhs)[left[single]].gather(1, rows)
            coefficients = found.rows.coefficients[left[single].unsqueeze(1), rows]
            if rows.shape[1] > 1:
                same = graph.to(found.rows.coefficients.dtype, graph.device)  # the precision that the state's charges are for
                sums, slopes = combined(same, group, found, left[single], rows, minima, coefficients, self.method.tuning)
                minima, coefficients = torch.cat([minima, sums], 1), torch.cat([coefficients, slopes], 1)
            minima, coefficients = torch.cat([minima, outside], 1), torch.cat([coefficients.double(), domain], 1)
            low, high, refuted = clip(low, high, minima, coefficients)
        else:
            refuted = (outside > 0).any(1)
        if bool(((low > boxes.lower[single]) | (high < boxes.upper[single])).any()) or bool(refuted.any()):
            tree.count(0.0)
        self.context.ledger.close(Part.CLIPPING, int(refuted.sum()))
        boxes.lower[single], boxes.upper[single] = low, high
        keep = torch.ones(len(boxes), dtype=torch.bool, device=low.device)
        keep[single[refuted]] = False
        return boxes.take(keep)

    # -- neuron splits ------------------------------------------------------------------------------------------------------

    def finish(self, tree: Tree[Boxes], deadline: Deadline) -> None:
        """Try neuron splits on small boxes where there are enough of them, and split what cannot be bisected into linear programs."""
        if not tree.unfinished and not len(tree.unsplittable):
            return
        if self.context.switches.finishing:
            self._finish_small(tree, deadline)
        hopeful = ~tree.unsplittable.tried
        if tree.unfinished or tree.decided or self.finisher.programs is None or not bool(hopeful.any()):
            return
        boxes, rest = tree.unsplittable.take(hopeful), tree.unsplittable.take(~hopeful)
        proved = self._settled(tree, boxes, None, deadline)
        boxes.tried[:] = not deadline.expired()
        tree.unsplittable = rest.join(boxes.take(~proved))

    def _finish_small(self, tree: Tree[Boxes], deadline: Deadline) -> None:
        """Small boxes, and once the whole box of a small network."""
        finisher, bounded = self.finisher, tree.counts.bounded
        if finisher.begins(bounded) and finisher.programs is not None and not bool(self.whole.tried):
            small = int(self.whole.unstable) <= finisher.tuning.small
            proved = small and bool(self._settled(tree, self.whole, finisher.tuning.small_leaves, deadline).all())
            self.whole.tried[:] = not deadline.expired()
            if proved:
                tree.frontier.remove(tree.frontier.alive.clone())
                tree.unsplittable = tree.unsplittable.none
                return
        store = tree.frontier.store
        place = finisher.candidates(store.unstable, store.tried | ~tree.frontier.alive, bounded)
        if not len(place):
            return
        boxes = store.take(place)
        boxes.tried[:] = True
        with self.context.ledger.spent(Part.FINISHING):
            found = finisher.run(boxes, self.inheritance.unpack(boxes.inherited), deadline)
        store.tried[place] = not deadline.expired()
        tree.incumbents.take(found.incumbents)
        tree.close(0.0, Part.FINISHING, int(found.proved.sum()))
        self._keep_ties(tree, bool(found.tied.any()))
        tree.unsplittable = tree.unsplittable.join(boxes.take(found.tied))
        tree.frontier.remove(place[found.proved | found.tied])

    def _settled(self, tree: Tree[Boxes], boxes: Boxes, programs: int | None, deadline: Deadline) -> Tensor:
        """Which boxes neuron splits and at most so many linear programs prove, (n,) bool."""
        with self.context.ledger.spent(Part.FINISHING):
            found = self.finisher.settle(boxes, self.inheritance.unpack(boxes.inherited), programs, deadline)
        tree.incumbents.take(found.incumbents)
        tree.close(0.0, Part.FINISHING, int(found.proved.sum()))
        self._keep_ties(tree, bool(found.tied.any()))
        return found.proved

    def _keep_ties(self, tree: Tree[Boxes], tied: bool) -> None:
        tree.ties |= {0} if tied else set()
        tree.note = self.finisher.note or tree.note

    def open_disjuncts(self, tree: Tree[Boxes]) -> list[int]:
        """The places of the disjuncts that some box is open for."""
        return [int(k) for k in (~self.group.closed(tree.left.margins)).any(0).nonzero().flatten()]

    def detail(self, tree: Tree[Boxes]) -> dict[str, Any]:
        """Counts for the ledger."""
        count = tree.counts.bounded + self.finisher.bounded
        found = {"method": "input split", "subproblems": count, "batch": self.batch.size, "bounds": self.method.now.value}
        return {**found, "finished": self.finisher.closed, **self.finisher.detail}
