"""Bounds of subproblems of the neuron search: intermediate bounds are the root's, clamped by the split decisions (beta-CROWN)."""

from __future__ import annotations

import math
from contextlib import nullcontext
from copy import copy
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from milpverify.arithmetic.rounding import down
from milpverify.propagation.differences.asked import differences
from milpverify.propagation.interval import follow, step
from milpverify.propagation.optimised.beta import AlphaOptions, Domain, Dual, Relaxations
from milpverify.propagation.relevance import needed
from milpverify.propagation.state import Bounds, LinearBound, NodeState, State
from milpverify.search.ledger import Part
from milpverify.search.neuron_split.split_points import Points
from milpverify.search.neuron_split.subproblems import Subproblems
from milpverify.tuning import Tuning

if TYPE_CHECKING:
    from milpverify.config import Deadline
    from milpverify.encode.cut_forms import Split
    from milpverify.graph import Graph
    from milpverify.propagation.differences.bounding import Differences
    from milpverify.propagation.optimised.dual import Columns
    from milpverify.search.groups import Group
    from milpverify.search.ledger import Ledger


class NeuronTuning(Tuning):
    """How neurons are split and subproblems bounded: of whole boxes, where bounds are dear and splits must count."""

    candidates: int = 8
    """How many splits of a subproblem are compared by the bounds of their children."""
    iterations: int = 8
    step: float = 0.1
    """Steps of the optimiser that bound a subproblem, and how far each moves slopes."""
    root_iterations: int = 20
    root_step: float = 0.25
    """The same of a subproblem without splits, which starts from default slopes."""
    per_box: int | None = None
    """A box of the root's batch that has branched so often is abandoned, and stays open."""
    batch: int | None = None
    """So many subproblems are bounded at a time, instead of as many as measurement shows to be best."""
    counted: int = 512
    """So many where choices go by counts, not measurement."""
    entries: int = 1 << 22
    """Of one matrix of multipliers, over a batch."""
    points: int = 1024
    """Points of an attack that a tree begins with: each costs an evaluation."""
    largest_program: int = 200
    """With more open neurons there are no linear programs of subproblems of smooth networks: with 400 (digits, 4x100) one takes as long as
    the tree takes to close dozens of subproblems."""


class Bounder:
    """Bounds subproblems of a group over a batch of boxes.

    Args:
        graph: in float64.
        root: the state of the boxes, from `crown` in float64 or float32.
        tuning: among others, how many splits a subproblem remembers.
        inherits: whether subproblems have bounds of open entries of their own.
        optimised: whether smooth functions are split where their children are tightest, not in the middle.
        resets: whether slopes are reset where intervals become much narrower; only where there are curves.
    """

    def __init__(
        self,
        graph: Graph,
        group: Group,
        root: State,
        deadline: Deadline,
        tuning: NeuronTuning = NeuronTuning(),
        inherits: bool = False,
        optimised: bool = True,
        resets: bool = True,
    ) -> None:
        self.graph, self.group, self.deadline, self.tuning, self.inherits = graph, group, deadline, tuning, inherits
        fast, lower, upper = graph.to(torch.float32, graph.device), root[0].bounds.lower, root[0].bounds.upper
        self.state: State = {}
        for node in graph.nodes:  # the charges of float32 passes, with the bounds that are known
            now = step(graph, node, self.state, lower, upper, fast)
            self.state[node.id] = NodeState(now.bounds.meet(root[node.id].bounds), now.center, now.charge)
        self.relaxations = Relaxations(fast, self.state, needed=needed(graph, group.y_rows))
        self.resets = resets and any(math.isinf(o.rule.span[1]) for o in self.relaxations.opened.values())
        self.points = Points(self.relaxations, optimised)
        # Where what is gained at an input of a node counts: at the variable that is split for it.
        self.home: dict[int, list[Columns]] = {}
        for i, o in self.relaxations.opened.items():
            roots = [self.relaxations.split_for[c] for c in o.columns]
            self.home[i] = [
                c if isinstance(c, slice) and not self.relaxations.derived else r for c, r in zip(o.columns, roots, strict=True)
            ]
        table = group.places
        if table is None:
            raise ValueError("a disjunct without rows has no margin to bound")
        self.y_rows, self.rhs = group.y_rows[table], group.rhs[table]  # (D, r, ny), (D, r), padded by repeating the first row
        self.x_rows = None if group.x_rows is None else group.x_rows[table]
        entries = [self.relaxations.entries[z] for z in self.slots]
        none = torch.zeros(0, dtype=torch.long, device=graph.device)
        self.slot_of = torch.cat([none, *(torch.full_like(e, k) for k, e in enumerate(entries))])  # of an open entry
        self.index_of = torch.cat([none, *entries])
        # Where an entry of a slot is among the open ones.
        self.lookup = torch.zeros(
            len(self.slots), max([1, *(graph.nodes[z].size for z in self.slots)]), dtype=torch.long, device=graph.device
        )
        self.lookup[self.slot_of, self.index_of] = torch.arange(len(self.index_of), device=graph.device)

    @cached_property
    def differences(self) -> Differences | None:
        """What the rows compare, if copies of one network."""
        return differences(self.graph, self.group.y_rows, self.group.x_rows, [d.domain for d in self.group.disjuncts])

    @property
    def fast(self) -> Graph:
        """The network in float32."""
        return self.graph.to(torch.float32, self.graph.device)

    @property
    def candidates(self) -> int:
        """How many splits a subproblem remembers."""
        return self.tuning.candidates

    @property
    def slots(self) -> list[int]:
        """The pre-activations that may be split."""
        return self.relaxations.slots

    def inheriting(self) -> Bounder:
        """The same with subproblems that have bounds of open entries of their own."""
        found = copy(self)
        found.inherits = True
        return found

    def first(self, box: Tensor | None = None, disjunct: Tensor | None = None) -> Subproblems:
        """Subproblems without splits: the (box, disjunct) pairs given, or every disjunct on every box."""
        device = self.graph.device
        boxes = self.state[0].center.shape[0]
        if box is None or disjunct is None:
            box = torch.arange(boxes, device=device).repeat_interleave(self.group.count)
            disjunct = torch.arange(self.group.count, device=device).repeat(boxes)
        count, rows = len(box), self.rhs.shape[1]
        slopes = self.relaxations.slopes(self.relaxations.lines, box).unsqueeze(1).repeat(1, rows, 1)
        none = torch.zeros(count, 0, device=device)
        low = torch.full((count, self.relaxations.count if self.inherits else 0), -torch.inf, device=device)
        return Subproblems(
            box, disjunct, torch.full((count,), -torch.inf, dtype=torch.float64, device=device),
            none.long(), none.long(), none.float(), none.double(), torch.zeros(count, rows, 0, device=device),
            torch.full((count, self.candidates), -1, device=device), slopes, low, -low,
            torch.zeros(count, self.relaxations.count if self.resets else 0, dtype=torch.bool, device=device),
        )  # fmt: skip

    def rows_of(self, disjunct: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Rows on the outputs (n, r, ny), right-hand sides (n, r), and rows on the inputs (n, r, nx) or None, of some disjuncts (n,)."""
        return self.y_rows[disjunct], self.rhs[disjunct], None if self.x_rows is None else self.x_rows[disjunct]

    def domain_of(self, subs: Subproblems) -> Domain:
        """The subproblems' open entries, with what they inherit, clamped by their decisions."""
        of = self.relaxations
        column = self.lookup[subs.slot, subs.index] if len(self.slots) else subs.slot
        low, high = of.own(of.low, subs.box), of.own(of.high, subs.box)
        if self.inherits:
            low, high = torch.maximum(low, subs.low.double()), torch.minimum(high, subs.high.double())
        for which, target, reduce in ((subs.side > 0, low, "amax"), (subs.side < 0, high, "amin")):
            point = torch.where(which, subs.point, -torch.inf if reduce == "amax" else torch.inf)
            clamped = target.scatter_reduce(1, column, point, reduce) if column.shape[1] else target
            low, high = (clamped, high) if reduce == "amax" else (low, clamped)
        if of.derived:
            low, high = low.clone(), high.clone()
            of.derive(low, high)
        return Domain(subs.box, low, high, column, subs.side, subs.point)

    def decisions(self, one: Subproblems) -> tuple[Split, ...]:
        """The split decisions of one subproblem by node."""
        return tuple((self.slots[slot], index, side, point) for slot, index, side, point in one.literals(0))

    def state_of(self, subs: Subproblems) -> State:
        """The states of the subproblems' boxes with the split pre-activations clamped."""
        of, domain = self.relaxations, self.domain_of(subs)
        state: State = {}
        for i, s in self.state.items():
            low, high = of.own(s.bounds.lower, subs.box), of.own(s.bounds.upper, subs.box)
            if i in of.columns:
                shape = low.shape
                low, high = low.flatten(1).clone(), high.flatten(1).clone()
                low[:, of.entries[i]], high[:, of.entries[i]] = domain.low[:, of.columns[i]], domain.high[:, of.columns[i]]
                low, high = low.reshape(shape), high.reshape(shape)
            state[i] = NodeState(Bounds(low, high), of.own(s.center, subs.box), None if s.charge is None else of.own(s.charge, subs.box))
        follow(self.graph, state)
        return state

    def bound(self, subs: Subproblems, iterations: int, ledger: Ledger | None = None) -> tuple[Subproblems, Domain, LinearBound]:
        """Bound subproblems, with some iterations of the optimiser; the time of the rigorous pass goes to the ledger."""
        domain = self.domain_of(subs)
        rows, rhs, x_rows = self.rows_of(subs.disjunct)
        options = AlphaOptions(iterations, self.tuning.step if subs.slot.shape[1] else self.tuning.root_step)
        dual = self.relaxations.ascend(domain, rows, Dual(subs.slopes, subs.beta), options, x_rows, rhs, self.deadline)
        with nullcontext() if ledger is None else ledger.spent(Part.RIGOROUS_PASS):
            found = self.relaxations.certify(domain, rows, dual, x_rows)
        margin = torch.maximum(subs.bound, down(found.lower - rhs).amax(1))
        margin = torch.where((domain.low > domain.high).any(1), torch.inf, margin)  # decisions that the root's bounds contradict
        margin = margin if self.differences is None else self._compared(subs, margin, self.differences)
        return replace(subs, bound=margin, slopes=dual.slopes, beta=dual.beta), domain, found

    def _compared(self, subs: Subproblems, margin: Tensor, differences: Differences) -> Tensor:
        """The margins of what is open raised by bounds of differences."""
        (left,) = (~self.group.closes(margin, subs.disjunct)).nonzero(as_tuple=True)
        if not len(left):
            return margin
        some = subs.take(left)
        place = some.disjunct.unsqueeze(1)
        every = margin.new_full((len(left), self.group.count), torch.inf).scatter(1, place, margin[left].unsqueeze(1))
        raised = differences.raised(every, self.state_of(some), self.group.margins, self.group.closed)
        return margin.index_put((left,), raised.gather(1, place).squeeze(1))

    def estimate(self, subs: Subproblems) -> Tensor:
        """The margins that the multipliers give, without rounding charges and proving nothing: (n,) float64."""
        rows, rhs, x_rows = self.rows_of(subs.disjunct)
        return (self.relaxations.value(self.domain_of(subs), rows, Dual(subs.slopes, subs.beta), x_rows).double() - rhs).amax(1)

    @property
    def entries_each(self) -> int:
        """The entries of the largest matrix of multipliers per subproblem."""
        return max(node.size for node in self.graph.nodes) * self.rhs.shape[1]
