"""Branch-and-bound on the inputs: boxes are bisected until their bounds decide them. Strong where inputs are few.

The input to bisect is the one whose interval moves the open rows most. Three estimates of that are added up, each as a share
of the whole: the coefficients of the rows' lower bounds (what the bound depends on now, as alpha-beta-CROWN scores), those of the
pass with parallel slopes (which no zero slope hides), and the products of absolute values along all paths (which nothing cancels).
Where rows are bounded to second order, their linear parts lose little: then what an input's width makes the second order lose takes
the place of the first two, and rows that are far from proving their disjunct count little.

Bisection alone does not end at a tie. Small boxes are finished by neuron splits, and what cannot be bisected in float64 any more is
split into linear programs: a piecewise-linear problem ends in a verdict or at a limit.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from milpverify.arithmetic.rounding import down
from milpverify.config import DELTA, SearchOptions
from milpverify.counterexamples.validate import Validation, Validity
from milpverify.events import Event
from milpverify.propagation.backward import parallel_lines, path_weights
from milpverify.propagation.crown import bound_rows
from milpverify.propagation.screening import undecided
from milpverify.propagation.state import select
from milpverify.result import Reason, Trust
from milpverify.search.batch_size import LARGEST, BatchSize
from milpverify.search.bounding import BatchBounds, Method, Prepared, bound_batch, is_out_of_memory
from milpverify.search.input_split.bounding_method import MethodChoice
from milpverify.search.input_split.boxes import Boxes, BoxFrontier, Inheritance
from milpverify.search.input_split.candidate_points import try_points
from milpverify.search.input_split.clip import clip, least
from milpverify.search.input_split.conjunctions import combined
from milpverify.search.input_split.finish import Finisher
from milpverify.search.ledger import Ledger, Part
from milpverify.search.solver.box_sharing import BoxExchange

if TYPE_CHECKING:
    from milpverify.config import Deadline
    from milpverify.graph import Graph
    from milpverify.propagation.state import Bounds
    from milpverify.search.groups import Group
    from milpverify.search.ledger import Reporter
    from milpverify.search.solver.leaves import Leaves
    from milpverify.search.solver.oracle import Oracle
    from milpverify.spec import Problem

FRONTIER_BYTES = 1 << 30
"""Beyond this much the search dives: it takes the boxes that are nearest to being closed, so that the frontier stops growing."""
FIXED_BATCH = 1024
SMALL, SMALL_LEAVES = 24, 256
"""A network with so few unstable neurons is tried whole by neuron splits, with so many linear programs at most."""


@dataclass(eq=False)
class SplitOutcome:
    """How the search over a group ended. `points` counts boxes that cannot be bisected in float64 or are ties, and stay open.

    `lower_bound` and a closure rest on `trust`.
    """

    closed: bool
    lower_bound: float
    judgement: Validation | None
    subproblems: int
    seconds: float
    open_boxes: int
    points: int
    reason: Reason = Reason.UNDECIDED
    note: str = ""
    detail: dict[str, Any] = field(default_factory=dict)
    trust: Trust = Trust.ROUNDED


class Bisection:
    """The search over one group; `run` can be called again with more time.

    Args:
        graph: in float64.
        dtype: the precision of the matrix products.
        reporter: what is told what is proved, and keeps the ledger; or None.
        root: the bounds over the group's box, if they are known.
        leaves: what decides boxes of which every neuron is on one piece, or None.
        oracle: a solver to work beside the bisection, or None.
        delta: a smooth network whose margin is known to be this close to zero is not divided further.
    """

    def __init__(
        self,
        problem: Problem,
        graph: Graph,
        group: Group,
        deadline: Deadline,
        dtype: torch.dtype,
        reporter: Reporter | None,
        root: BatchBounds | None,
        options: SearchOptions,
        leaves: Leaves | None,
        oracle: Oracle | None = None,
        delta: float = DELTA,
    ) -> None:
        self.problem, self.graph, self.group, self.deadline, self.dtype = problem, graph, group, deadline, dtype
        self.delta = -math.inf if graph.piecewise_linear else delta
        self.near: Validation | None = None  # of a point whose margin is within delta
        self.reporter, self.options = reporter, options
        self.fast = graph.to(torch.float32, graph.device)
        lower, upper = (torch.tensor(side, device=graph.device)[None] for side in (group.box.lower, group.box.upper))
        self.prepared = Prepared.of(graph, group)
        self.root = root or bound_batch(graph, group, lower, upper, dtype, deadline=deadline, prepared=self.prepared)
        self.inheritance = Inheritance(graph, self.root.state)
        self.closed_bound, self.subproblems, self.reported, self.began = math.inf, 1, 0.0, time.monotonic()
        self.judgement: Validation | None = None
        self.out_of_memory, self.fresh = False, True
        self.ledger = Ledger() if reporter is None else reporter.ledger
        self.per = LARGEST[graph.device.type]  # as many as memory holds
        # What else a machine does says nothing of the batch; but the time of several threads, or of a GPU, is that of the clock.
        alone = graph.device.type == "cpu" and torch.get_num_threads() == 1
        self.clock = time.process_time if alone else time.perf_counter
        self.batch = BatchSize(largest=self.per, fixed=FIXED_BATCH if options.deterministic else None)
        self.method = MethodChoice(options.forward, options.deterministic)
        self.finisher = Finisher(problem, graph, group, deadline, leaves if options.leaves else None, self.prepared)
        whole = self._boxes(self.root, lower, upper, self.root.margins, torch.zeros(1, dtype=torch.long, device=lower.device))
        self.whole, self.held, self.stuck, self.frontier = whole, whole, whole.take(whole.tried), BoxFrontier(whole)
        self.exchange: BoxExchange | None = None
        self.consult(oracle)

    def consult(self, oracle: Oracle | None) -> None:
        """Let an oracle work beside the bisection from now on, where the options allow that."""
        if oracle is not None and self.options.oracle:
            self.exchange = BoxExchange(self, oracle)

    def run(self, deadline: Deadline | None = None, limit: float = math.inf) -> SplitOutcome:
        """Search until all is closed, a counterexample holds, so many boxes were bounded in all, or the deadline.

        Args:
            deadline: in place of the one given first.
        """
        self.deadline = self.finisher.deadline = deadline or self.deadline
        try:
            if self.fresh:
                self.fresh = False
                self.frontier.push(self._sifted(self.root, self.held))
                self.held = self._none
                if len(self.frontier) and not self.deadline.expired():
                    ends = self.root.state[0].bounds
                    self._note(try_points(self.problem, self.fast, self.group, self.root, ends.lower, ends.upper, self.delta))
            self.frontier.push(self.held)  # what the end of memory left
            self.held = self._none
            while self._going() and len(self.frontier) and self.subproblems < limit:
                began = self.clock()
                self.held = self.frontier.pop(max(1, self.batch.size // 2), self.frontier.bytes > FRONTIER_BYTES)
                count = self._expand()
                self.batch.took(count, self.clock() - began)
                if self._going() and self.options.finishing:
                    self._finish()
                if self.exchange is not None:
                    with self.ledger.spent(Part.ORACLE):
                        self.exchange.consult()
                self._report()
            if not len(self.frontier):
                self._settle()
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            self.out_of_memory = True
        return self._outcome()

    def _going(self) -> bool:
        return not self.broken and not self.closest and not self.deadline.expired()

    @property
    def closest(self) -> bool:
        """Whether the margin is known up to delta: a point is that close to a violation, and none can be further beyond."""
        return self.near is not None and self._lowest >= -self.delta

    @property
    def _none(self) -> Boxes:
        return self.whole.take(torch.zeros(0, dtype=torch.long, device=self.graph.device))

    @property
    def _lowest(self) -> float:
        """The bound of everything, closed and open."""
        return min(self.closed_bound, self.frontier.lowest, self.stuck.lowest, self.held.lowest)

    @property
    def broken(self) -> bool:
        """Whether a counterexample was found."""
        by_oracle = self.exchange is not None and self.exchange.found
        return by_oracle or (self.judgement is not None and self.judgement.status is Validity.HOLDS)

    def _note(self, judgement: Validation | None) -> None:
        if judgement is None or self.broken:
            return
        if judgement.status is not Validity.NOT_A_COUNTEREXAMPLE:
            self.judgement = judgement
        if judgement.within(self.delta):
            self.near = judgement

    def _outcome(self) -> SplitOutcome:
        bound = self._lowest
        waiting = len(self.frontier) + len(self.held)
        closed = not waiting and not len(self.stuck)
        count = self.subproblems + self.finisher.bounded
        tied = Reason.FLOAT_SEMANTICS if self.finisher.ties and not waiting else Reason.UNDECIDED
        detail = {"batch": self.batch.size, "bounds": self.method.now.value, "finished": self.finisher.closed, **self.finisher.detail}
        note = "; ".join(filter(None, [self.finisher.note, "" if self.near is None else self.near.where]))
        trust, exchange = Trust.ROUNDED, self.exchange
        if exchange is not None:
            detail.update(exchange.oracle.counts)
            trust = exchange.trust if closed else self._trust_of_bound
        return SplitOutcome(
            closed, bound, self.judgement, count, time.monotonic() - self.began, waiting, len(self.stuck),
            Reason.MEMORY if self.out_of_memory else Reason.DELTA if self.closest else tied, note, detail, trust,
        )  # fmt: skip

    def _report(self) -> None:
        now = time.monotonic()
        if self.reporter is None or now - self.reported < 0.2:
            return
        self.reported = now
        bound, trust = self._lowest, self._trust_of_bound
        self.reporter.prove(bound, trust)
        message = f"{len(self.frontier)} open, {self.subproblems} bounded, {self.subproblems / max(1e-9, now - self.began):.0f}/s"
        data = {"open": len(self.frontier), "subproblems": self.subproblems, "bound": bound, "trust": trust.value}
        self.reporter(Event("search", message, data))

    @property
    def _trust_of_bound(self) -> Trust:
        """What the bound of everything rests on."""
        exchange = self.exchange
        return Trust.ROUNDED if exchange is None else Trust.SOLVER if exchange.raised else exchange.trust

    # -- a batch ----------------------------------------------------------------------------------------------------------

    def _expand(self) -> int:
        """Bisect the boxes held, bound the halves and put what stays open into the frontier; returns how many were bounded."""
        divisible = self.held.divisible()
        final = self.held.take(~divisible)
        final.tried[:] = False  # not as linear programs
        self.stuck = self.stuck.join(final)
        self.held = self.held.take(divisible)
        halves = self.held.halves()
        start, fresh = 0, []
        while start < len(halves) and not self.broken:
            part = halves.take(torch.arange(start, min(start + self.per, len(halves)), device=halves.lower.device))
            try:
                fresh.append(self._bound(part))
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error) or self.per == 1:
                    raise
                self.per = max(1, min(self.per, len(part)) // 2)
                self.batch.at_most(self.per)
                continue
            start += len(part)
        if self.broken:  # what was not bounded stays open
            return start
        for boxes in fresh:
            self.frontier.push(boxes)
        self.held = self._none
        return start

    def _bound(self, boxes: Boxes) -> Boxes:
        """Bound some boxes and try their points; returns what stays open."""
        known = self.inheritance.unpack(boxes.ends)
        if self.method.due(self.subproblems, len(boxes)):
            self._compare(boxes)
        found = self._bounded(boxes, known, self.method.now)
        self.subproblems += len(boxes)
        self.ledger.bound(Part.BISECTION, len(boxes))
        fresh = self._sifted(found, boxes)
        with self.ledger.spent(Part.ATTACK):
            self._note(try_points(self.problem, self.fast, self.group, found, boxes.lower, boxes.upper, self.delta))
        return fresh

    def _bounded(self, boxes: Boxes, known: dict[int, Bounds], method: Method) -> BatchBounds:
        ends, quadratic = (boxes.lower, boxes.upper), self.options.second_order
        return bound_batch(self.graph, self.group, *ends, self.dtype, known, self.deadline, method, quadratic, self.prepared)

    def _compare(self, boxes: Boxes) -> None:
        """Bound a sample by every method, for the choice between them."""
        sample = boxes.take(self.method.sample(len(boxes), boxes.lower.device))
        known = self.inheritance.unpack(sample.ends)
        for method in self.method.candidates:
            if self.deadline.expired():
                return
            began = self.clock()
            found = self._bounded(sample, known, method)
            closed = int(self.group.closed(torch.maximum(found.margins, sample.margins)).all(1).sum())
            self.method.took(method, len(sample), closed, self.clock() - began)
        self.method.choose()

    def _sifted(self, found: BatchBounds, boxes: Boxes) -> Boxes:
        """The boxes that are still open, clipped; what is closed counts towards the bound."""
        margins = torch.maximum(found.margins, boxes.margins)
        closed = self.group.closed(margins)
        done = closed.all(1)
        if bool(done.any()):
            self.closed_bound = min(self.closed_bound, float(margins[done].amin()))
            self.ledger.close(Part.BISECTION, int(done.sum()))
        left = (~done).nonzero(as_tuple=True)[0]
        fresh = self._boxes(found, boxes.lower, boxes.upper, margins, left)
        with self.ledger.spent(Part.CLIPPING):
            return self._clipped(found, fresh, closed, left)

    def _boxes(self, found: BatchBounds, lower: Tensor, upper: Tensor, margins: Tensor, left: Tensor) -> Boxes:
        """Some boxes of a bounded batch as they wait in the frontier."""
        open_rows = ~self.group.closed(margins)[left][:, self.group.disjunct].unsqueeze(2)
        width = (upper - lower)[left].unsqueeze(1)
        if found.losses is not None:
            open_rows = open_rows * self._nearness(found.rows.lower[left]).unsqueeze(2)
        scores = torch.zeros_like(lower[left])
        for weight, moved in self._influences(found, left, width):
            moved = moved.double().abs()
            scores += weight * (open_rows * moved / moved.sum(2, keepdim=True).clamp(min=1e-300)).sum(1)
        unstable = torch.zeros_like(left, dtype=torch.int32)
        waiting = select(found.state, left)
        for z in self.graph.readers:
            bounds = waiting[z].bounds
            loose = undecided(self.graph, z, waiting, bounds.lower.flatten(1), bounds.upper.flatten(1))
            unstable += (loose & self.prepared.needed[z] if z in self.prepared.needed else loose).sum(1)
        tried, age = torch.zeros_like(left, dtype=torch.bool), torch.full_like(left, self.subproblems)
        ends = self.inheritance.pack(found.state, left)
        return Boxes(lower[left], upper[left], margins[left], scores.float(), unstable, tried, age, ends)

    def _nearness(self, lower: Tensor) -> Tensor:
        """How near rows are to proving their disjunct, against the nearest of its rows: (boxes, rows), 1 for that one."""
        missing = (self.group.rhs - lower).clamp(min=1e-12)
        least = missing.new_full((len(lower), self.group.count), torch.inf)
        least = least.scatter_reduce(1, self.group.disjunct.expand_as(missing), missing, "amin")
        return (least[:, self.group.disjunct] / missing).nan_to_num(1.0)

    def _influences(self, found: BatchBounds, left: Tensor, width: Tensor) -> list[tuple[float, Tensor]]:
        """Weighted estimates of what the widths of inputs (boxes left, 1, nx) do to the rows, (boxes left, rows, nx): see the module."""
        state = select(found.state, left)
        table = {i: parallel_lines(self.graph, i, state, torch.float32) for i in self.graph.nonlinear}
        rows = self.group.y_rows.expand(len(left), -1, -1)
        paths = path_weights(self.fast, table, rows) * width
        if found.losses is not None:
            return [(1.0, found.losses[left]), (1.0, paths)]
        x_rows = None if self.group.x_rows is None else self.group.x_rows.expand(len(left), -1, -1)
        straight = bound_rows(self.fast, state, table, rows, x_rows=x_rows).coefficients
        return [(1.0, found.rows.coefficients[left] * width), (1.0, straight * width), (0.5, paths)]

    def _clipped(self, found: BatchBounds, boxes: Boxes, closed: Tensor, left: Tensor) -> Boxes:
        """Cut from boxes with one open disjunct what that disjunct's rows prove safe; its margin there is > 0, by an unknown amount."""
        is_open = ~closed[left]
        single = (is_open.sum(1) == 1).nonzero(as_tuple=True)[0]
        group = self.group
        if not len(single) or group.places is None:
            return boxes
        disjunct = is_open[single].int().argmax(1)
        low, high = boxes.lower[single], boxes.upper[single]
        domain, rhs = (t[disjunct] for t in group.domains)
        outside = least(domain, rhs, low, high)  # what violates a constraint between inputs is no input at all
        if self.options.clipping:
            rows = group.places[disjunct]
            minima = down(found.rows.lower - group.rhs)[left[single]].gather(1, rows)
            coefficients = found.rows.coefficients[left[single].unsqueeze(1), rows]
            if rows.shape[1] > 1:
                same = self.graph.to(found.rows.coefficients.dtype, self.graph.device)  # the precision that the state's charges are for
                sums, slopes = combined(same, group, found, left[single], rows, minima, coefficients)
                minima, coefficients = torch.cat([minima, sums], 1), torch.cat([coefficients, slopes], 1)
            minima, coefficients = torch.cat([minima, outside], 1), torch.cat([coefficients.double(), domain], 1)
            low, high, refuted = clip(low, high, minima, coefficients)
        else:
            refuted = (outside > 0).any(1)
        if bool(((low > boxes.lower[single]) | (high < boxes.upper[single])).any()) or bool(refuted.any()):
            self.closed_bound = min(self.closed_bound, 0.0)
        self.ledger.close(Part.CLIPPING, int(refuted.sum()))
        boxes.lower[single], boxes.upper[single] = low, high
        keep = torch.ones(len(boxes), dtype=torch.bool, device=low.device)
        keep[single[refuted]] = False
        return boxes.take(keep)

    # -- neuron splits ----------------------------------------------------------------------------------------------------

    def _finish(self) -> None:
        """Try neuron splits on small boxes where there are enough of them, and once on the whole box of a small network."""
        if self.finisher.begins(self.subproblems) and self.finisher.leaves is not None and not bool(self.whole.tried):
            self.whole.tried[:] = True
            if int(self.whole.unstable) <= SMALL and bool(self._settled(self.whole, SMALL_LEAVES).all()):
                self.frontier.remove(self.frontier.alive)
                self.stuck = self.stuck.take(torch.zeros_like(self.stuck.tried))
                return
        store = self.frontier.store
        place = self.finisher.candidates(store.unstable, store.tried | ~self.frontier.alive, self.subproblems)
        if not len(place):
            return
        store.tried[place] = True
        boxes = store.take(place)
        with self.ledger.spent(Part.FINISHING):
            found = self.finisher.run(boxes.lower, boxes.upper, boxes.margins, self.inheritance.unpack(boxes.ends))
        self.ledger.close(Part.FINISHING, int(found.proved.sum()))
        self._note(found.judgement)
        if bool(found.proved.any()):
            self.closed_bound = min(self.closed_bound, 0.0)
        self.stuck = self.stuck.join(boxes.take(found.tied))
        self.frontier.remove(place[found.proved | found.tied])

    def _settle(self) -> None:
        """Split the boxes that cannot be bisected into linear programs."""
        hopeful = ~self.stuck.tried
        if not self._going() or not bool(hopeful.any()) or self.finisher.leaves is None:
            return
        boxes = self.stuck.take(hopeful)
        proved = self._settled(boxes, None)
        boxes.tried[:] = True
        self.stuck = self.stuck.take(~hopeful).join(boxes.take(~proved))

    def _settled(self, boxes: Boxes, leaves: int | None) -> Tensor:
        """Which boxes neuron splits and at most so many linear programs prove, (n,) bool."""
        with self.ledger.spent(Part.FINISHING):
            found = self.finisher.settle(boxes.lower, boxes.upper, boxes.margins, self.inheritance.unpack(boxes.ends), leaves)
        self.ledger.close(Part.FINISHING, int(found.proved.sum()))
        self._note(found.judgement)
        if bool(found.proved.any()):
            self.closed_bound = min(self.closed_bound, 0.0)
        return found.proved
