"""Looking for counterexamples: batched projected gradient on the disjunctive property.

What is found here is only a candidate: `validate` alone makes a counterexample of it.

Projected sign gradient after Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks (arXiv 1706.06083);
output-diversified starts after Tashiro et al., Diversity can be Transferred (arXiv 2003.06878).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from torch import Tensor

from milpverify.balls.points import distances, steepest
from milpverify.balls.points import project as project_on_ball
from milpverify.config import check_time
from milpverify.counterexamples.polish import polish, restore
from milpverify.counterexamples.surrogate import Surrogate, has_jumps
from milpverify.counterexamples.validate import Validation, Validity, validate
from milpverify.graph import evaluate
from milpverify.operators import Affine
from milpverify.spec import Rows
from milpverify.tuning import Tuning

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from milpverify.config import Deadline
    from milpverify.graph import Graph
    from milpverify.result import Counterexample
    from milpverify.spec import Array, Disjunct, Problem

LARGEST: Final = float(np.finfo(np.float32).max)


class AttackTuning(Tuning):
    """How far an attack goes, and what it computes at a time."""

    starts: int = 128
    """Per disjunct and round, fewer where disjuncts are many or the network is large."""
    rounds: int = 6
    steps: int = 24
    """Rounds, and steps of a descent."""
    disjuncts: int = 128
    all_starts: int = 512
    """Of one batch, at most."""
    entries: int = 30_000_000
    """Of all node values and rows of a batch."""
    products: int = 100_000_000
    """Of one evaluation of a batch, so that a round takes a fraction of a second."""
    judgements: int = 16
    """Per batch: a runtime that denies this many points would deny the next."""
    first_step: float = 0.25
    later_step: float = 0.08
    last_step: float = 0.003
    """Of the box width, geometrically from the first to the last; the second begins the later rounds."""
    scouts: int = 8
    """Random points of which the best becomes a start."""
    domain_tolerance: float = 1e-4
    """Within which a constraint between inputs counts as met, until the judge decides."""
    near: float = 0.01
    """Of the spread of the margins: near enough for a local search."""


@dataclass(frozen=True, eq=False)
class AttackOutcome:
    """What an attack found.

    `points` (D, nx) float64 are the best inputs per disjunct and `margins` (D,) their margins as the search computed them, inf
    where a disjunct was not reached. `disagreement` is a point whose violation the runtime and the reals do not agree on.
    """

    points: Array
    margins: Array
    counterexample: Counterexample | None = None
    disagreement: Validation | None = None


def attack(
    problem: Problem,
    graph: Graph,
    disjuncts: Sequence[Disjunct],
    deadline: Deadline,
    seed: int = 0,
    *,
    tuning: AttackTuning = AttackTuning(),
    points: Sequence[Array] = (),
    until: Deadline | None = None,
) -> AttackOutcome:
    """Projected sign-gradient descent on the margin, for all disjuncts at once; ends at the first counterexample.

    Every start belongs to one disjunct and stays in its box, on numbers of the graph's precision. The first round starts from
    the centre, the corner that the centre's gradient points to, random points and random corners; later rounds from around the
    best point, from the best of some random points, and from where a random direction of the output leads. Half of the starts
    descend the largest residual, the other half the sum of the positive ones. Linear constraints between inputs are projected
    on. The same seed gives the same result unless the deadline cuts it short. Where gradients say nothing a `Surrogate` has others.

    Args:
        graph: `problem.graph` in the precision and on the device to search in.
        points: the best (nx,) known per disjunct, of an attack before, which this one then goes on from: all rounds are later ones.
        until: further rounds follow for so long.
    """
    generator = torch.Generator(graph.device).manual_seed(seed)
    known = np.array(points) if len(points) else _centres(disjuncts, graph.nx)
    affordable = tuning.products // (_products(graph) + 1) + 1
    together = min(tuning.disjuncts, tuning.entries // graph.entries + 1, affordable)
    # Where an evaluation is dear, and time may not do for all, the nearest come first.
    order = _nearest_first(graph, disjuncts, known) if together < min(len(disjuncts), tuning.disjuncts) else np.arange(len(disjuncts))
    batches: list[_Batch] = []
    later = int(len(points) > 0)
    for first in range(0, len(disjuncts), together):
        chosen = order[first : first + together]
        batches.append(_Batch(problem, graph, [disjuncts[k] for k in chosen], known[chosen], generator, tuning))
        for number in range(later, tuning.rounds + later):
            batches[-1].descend(deadline, number)
        batches[-1].refine(deadline)
        if batches[-1].counterexample is not None or deadline.expired():
            break
    number = tuning.rounds + later
    while until is not None and batches and not until.expired():
        for batch in batches:
            batch.descend(until, number)
        number += 1
        if any(batch.counterexample is not None for batch in batches):
            break
    margins = np.full(len(disjuncts), np.inf)
    for batch, first in zip(batches, range(0, len(disjuncts), together), strict=False):
        chosen = order[first : first + together]
        known[chosen], margins[chosen] = batch.points, batch.margins
    return AttackOutcome(
        known,
        margins,
        next((b.counterexample for b in batches if b.counterexample is not None), None),
        next((b.disagreement for b in batches if b.disagreement is not None), None),
    )


class _Batch:
    """Some disjuncts under attack, with the best point of each, to begin with those given."""

    def __init__(
        self,
        problem: Problem,
        graph: Graph,
        disjuncts: Sequence[Disjunct],
        points: Array,
        generator: torch.Generator,
        tuning: AttackTuning,
    ) -> None:
        self.problem, self.graph, self.disjuncts, self.generator, self.tuning = problem, graph, disjuncts, generator, tuning
        self.lower, self.upper = (_tensor(side, graph) for side in _inner_boxes(disjuncts, graph.dtype))
        self.unsafe = _Table.pad([d.unsafe for d in disjuncts], graph)
        self.domain = _Table.pad([d.domain for d in disjuncts], graph) if any(d.domain.mentions_x.any() for d in disjuncts) else None
        self.points = points.copy()
        self.network: Surrogate | None = None  # known with the first starts
        self.margins = np.full(len(disjuncts), np.inf)
        self.spread = 0.0  # of the margins at the starts: what a small margin is compared with
        self.validations = 0
        self.counterexample: Counterexample | None = None
        self.disagreement: Validation | None = None

    def descend(self, deadline: Deadline, number: int) -> None:
        """Round `number` of projected sign-gradient descent."""
        if self.counterexample is not None or deadline.expired():
            return
        count = len(self.disjuncts)
        entries = self.graph.entries + self.unsafe.entries + (self.domain.entries if self.domain else 0)
        dear = self.tuning.products // (_products(self.graph) * count + 1)
        each = max(1, min(self.tuning.starts, self.tuning.all_starts // count, self.tuning.entries // (entries * count), dear))
        owner = torch.arange(count, device=self.graph.device).repeat_interleave(each)
        diversify = number > 0
        # Where there are few starts, their kinds take turns from round to round.
        kind = torch.arange(len(owner), device=self.graph.device) % each + (number if each < 4 else 0)
        lower, upper, unsafe = self.lower[owner], self.upper[owner], self.unsafe.of(owner)
        domain = self.domain.of(owner) if self.domain else None
        width = upper - lower

        def project(x: Tensor) -> Tensor:
            if self.graph.ball is not None:
                x = project_on_ball(self.graph.ball, x)
            x = torch.minimum(torch.maximum(x, lower), upper)
            for _ in range(3 if domain else 0):
                x = torch.minimum(torch.maximum(domain.project(x, width > 0), lower), upper) if domain else x
            return x

        x = project(self.start(owner, kind, lower, width, diversify))
        network = self.network = self.network or self._surrogate()
        if diversify:
            direction = torch.randn(len(owner), self.graph.ny, generator=self.generator, device=x.device, dtype=x.dtype)
            for _ in range(2):
                gradient, _ = _gradient(network, x, lambda _, y: (direction * y).sum(1, keepdim=True), kind >= 0)
                x = torch.where((kind % 2 == 0)[:, None], x, project(x + self.tuning.first_step * width * self.ascent(gradient)))
            with torch.no_grad():
                margin = unsafe.residual(x, evaluate(self.graph, x)).amax(1)
                for _ in range(self.tuning.scouts):
                    other = project(self.start(owner, kind, lower, width, diversify))
                    other_margin = unsafe.residual(other, evaluate(self.graph, other)).amax(1)
                    better = (other_margin < margin) & (kind % 2 == 0)
                    x, margin = torch.where(better[:, None], other, x), torch.where(better, other_margin, margin)
        best, best_margin = x, x.new_full((len(owner),), math.inf)
        for step in range(self.tuning.steps):
            gradient, margin = _gradient(network, x, unsafe.residual, kind % 2 == 0)
            if step == 0 and not network.temperatures and not bool(gradient.any()):
                network = self.network = network.softened(x)
                gradient, margin = _gradient(network, x, unsafe.residual, kind % 2 == 0)
            if self.graph.ball is not None:
                margin = margin.masked_fill(
                    distances(self.graph.ball, x) > self.graph.ball.radius * (1.0 + self.tuning.domain_tolerance), math.inf
                )
            if domain is not None:
                margin = margin.masked_fill(domain.distance(x).amax(1) > self.tuning.domain_tolerance, math.inf)
            if step == 0 and (finite := margin[margin.isfinite()]).numel():
                self.spread = max(self.spread, float(finite.max() - finite.min()))
            better = margin < best_margin
            best, best_margin = torch.where(better[:, None], x, best), torch.where(better, margin, best_margin)
            true = margin
            if network.temperatures:
                with torch.no_grad():
                    true = torch.where(margin.isfinite(), unsafe.residual(x, evaluate(self.graph, x)).amax(1), math.inf)
            value, index = torch.where(better, true, math.inf).min(0)
            if value.item() <= 0 and self.found(int(owner[index]), x[index], value.item()):
                return
            if deadline.expired():
                break
            first = self.tuning.later_step if diversify else self.tuning.first_step
            size = first * (self.tuning.last_step / first) ** (step / max(1, self.tuning.steps - 1)) * width
            if step == 0 and not diversify:
                size = torch.where((kind == 1)[:, None], width, size)  # to the corner
            x = project(x - size * self.ascent(gradient))
        margins, places = best_margin.reshape(count, each).min(1)
        improved = margins.double().cpu().numpy() < self.margins
        chosen = best[torch.arange(count, device=places.device) * each + places].double().cpu().numpy()
        self.points[improved] = chosen[improved]
        self.margins[improved] = margins.double().cpu().numpy()[improved]

    def _surrogate(self) -> Surrogate:
        """The network as gradients shall see it."""
        if not has_jumps(self.graph):
            return Surrogate(self.graph)
        unit = torch.rand(self.tuning.scouts, self.graph.nx, generator=self.generator, device=self.graph.device, dtype=self.graph.dtype)
        return Surrogate.across_jumps(self.graph, self.lower[:1] + unit * (self.upper - self.lower)[:1])

    def start(self, owner: Tensor, kind: Tensor, lower: Tensor, width: Tensor, diversify: bool) -> Tensor:
        """The centre twice, then random points and corners in turns; later the neighbourhood of the best point and random points."""
        unit = torch.rand(lower.shape, generator=self.generator, device=lower.device, dtype=lower.dtype)
        if diversify:
            near = _tensor(self.points, self.graph)[owner] + 0.1 * (unit - 0.5) * width
            return torch.where((kind == 0)[:, None], near, lower + unit * width)
        unit = torch.where((kind % 2 == 1)[:, None], unit.round(), unit)
        return lower + torch.where((kind < 2)[:, None], 0.5, unit) * width

    def ascent(self, gradient: Tensor) -> Tensor:
        """The steepest ascent within a box, or within the ball that inputs are confined to, in units of which the width is two."""
        ball = self.graph.ball
        if ball is None:
            return gradient.sign()
        reach = torch.from_numpy(ball.radius * ball.weight).to(gradient.device, gradient.dtype).clamp(min=1e-30)
        return steepest(ball, gradient) / reach

    def found(self, index: int, x: Tensor, margin: float) -> bool:
        """Judge a point of one disjunct; whether it is a counterexample."""
        if self.validations == self.tuning.judgements:
            return False
        self.validations += 1
        disjunct = self.disjuncts[index]
        validation = validate(self.problem, disjunct, restore(disjunct, x.double().cpu().numpy()))
        if validation.status is Validity.FLOAT_SEMANTICS and self.disagreement is None:
            self.disagreement = validation
        if validation.counterexample is not None:
            self.counterexample, self.points[index], self.margins[index] = validation.counterexample, validation.x, margin
        return validation.counterexample is not None

    def refine(self, deadline: Deadline) -> None:
        """Polish the best two points that come near to a violation."""
        if deadline.expired():
            return
        for index in np.argsort(self.margins, kind="stable")[:2].tolist():
            if self.counterexample is None and self.margins[index] <= self.tuning.near * self.spread:
                self.counterexample = polish(self.problem, self.disjuncts[index], self.points[index])


@dataclass(frozen=True, eq=False)
class _Table:
    """The rows of several disjuncts, padded with rows that always hold: (D, R, nx), (D, R, ny), (D, R)."""

    x_rows: Tensor | None
    y_rows: Tensor
    rhs: Tensor

    @staticmethod
    def pad(tables: Sequence[Rows], graph: Graph) -> _Table:
        height = max(1, *(len(t) for t in tables))
        x_rows = np.zeros((len(tables), height, graph.nx)) if any(t.mentions_x.any() for t in tables) else None
        y_rows, rhs = np.zeros((len(tables), height, graph.ny)), np.full((len(tables), height), np.inf)
        for i, table in enumerate(tables):
            y_rows[i, : len(table)], rhs[i, : len(table)] = table.y_rows, table.rhs
            if x_rows is not None:
                x_rows[i, : len(table)] = table.x_rows
        return _Table(None if x_rows is None else _tensor(x_rows, graph), _tensor(y_rows, graph), _tensor(rhs, graph))

    @property
    def entries(self) -> int:
        """Numbers per disjunct."""
        return self.y_rows[0].numel() + (0 if self.x_rows is None else self.x_rows[0].numel())

    def of(self, owner: Tensor) -> _Table:
        """The rows of the disjunct that each start belongs to."""
        return _Table(None if self.x_rows is None else self.x_rows[owner], self.y_rows[owner], self.rhs[owner])

    def residual(self, x: Tensor, y: Tensor) -> Tensor:
        linear = (self.y_rows @ y[:, :, None])[:, :, 0] - self.rhs
        return linear if self.x_rows is None else linear + (self.x_rows @ x[:, :, None])[:, :, 0]

    def distance(self, x: Tensor) -> Tensor:
        """How far x violates rows on inputs alone, in units of their largest coefficient."""
        assert self.x_rows is not None
        excess = (self.x_rows @ x[:, :, None])[:, :, 0] - self.rhs
        return excess.clamp(min=0) / self.x_rows.abs().amax(2).clamp(min=1e-30)

    def project(self, x: Tensor, free: Tensor) -> Tensor:
        """Project x onto one row on inputs after the other, moving the free coordinates only."""
        assert self.x_rows is not None
        for row, rhs in zip(self.x_rows.unbind(1), self.rhs.unbind(1), strict=True):
            normal = row * free
            excess = ((row * x).sum(1) - rhs).clamp(min=0)
            x = x - (excess / (normal * normal).sum(1).clamp(min=1e-30))[:, None] * normal
        return x


@torch.enable_grad()
def _gradient(
    network: Callable[[Tensor], Tensor], x: Tensor, residual: Callable[[Tensor, Tensor], Tensor], largest: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradient of the largest residual (where `largest`) or of the sum of the positive ones, and the margins (N,)."""
    check_time()
    x = x.detach().requires_grad_()
    residuals = residual(x, network(x))
    margin, total = residuals.amax(1), residuals.clamp(min=0).sum(1)
    (gradient,) = torch.autograd.grad(torch.where(largest | (total == 0), margin, total).sum(), x)
    return gradient.nan_to_num(), margin.detach().nan_to_num(nan=math.inf, neginf=-math.inf)


def _products(graph: Graph) -> int:
    """The multiplications of one evaluation."""
    return sum(node.size * node.op.terms for node in graph.nodes if isinstance(node.op, Affine))


def _nearest_first(graph: Graph, disjuncts: Sequence[Disjunct], points: Array) -> NDArray[np.int64]:
    """The places of disjuncts by their margins at the points (D, nx), ascending."""
    places, which = np.unique(points, axis=0, return_inverse=True)
    with torch.no_grad():
        outputs = [evaluate(graph, _tensor(x[None], graph))[0].double().cpu().numpy() for x in places]
    margins = [float(d.unsafe.residual(x, outputs[k]).max(initial=-math.inf)) for d, x, k in zip(disjuncts, points, which, strict=True)]
    return np.array(sorted(range(len(margins)), key=margins.__getitem__), dtype=np.int64)


def _tensor(values: Array, graph: Graph) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(graph.device, graph.dtype)


def _centres(disjuncts: Sequence[Disjunct], nx: int) -> Array:
    return np.array([(d.box.lower + d.box.upper) / 2 for d in disjuncts], dtype=np.float64).reshape(-1, nx)


def _inner_boxes(disjuncts: Sequence[Disjunct], dtype: torch.dtype) -> tuple[Array, Array]:
    """The bounds (D, nx) moved inward to the precision of the search; where nothing is left, both are the nearest finite number."""
    lower, upper = np.array([d.box.lower for d in disjuncts]), np.array([d.box.upper for d in disjuncts])
    if dtype == torch.float64:
        return lower, upper
    lower, upper = np.clip(lower, -LARGEST, LARGEST), np.clip(upper, -LARGEST, LARGEST)
    low, high = lower.astype(np.float32), upper.astype(np.float32)
    low = np.where(low < lower, np.nextafter(low, np.float32(LARGEST)), low)
    high = np.where(high > upper, np.nextafter(high, np.float32(-LARGEST)), high)
    nearest = lower.astype(np.float32)
    return np.where(low > high, nearest, low).astype(np.float64), np.where(low > high, nearest, high).astype(np.float64)
