"""Random small smooth graphs, what is known of their least first output, and lower bounds of it by every form of model.

The graphs are meant to be unkind: every function of the catalogue, products, softmax, quotients and normalisation, wide and narrow boxes,
values near 1000 with ranges of 1e-2, huge and tiny weights, saturated neurons, fixed inputs, constraints between inputs, and
piecewise-linear functions among it all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from heapq import heappop, heappush

import flint
import numpy as np
import torch
from judging import Lasting
from product_networks import Grower

import milpverify as mv
from milpverify.enclosure import enclose
from milpverify.encode.encoding import ModelForm, NodeRanges
from milpverify.encode.milp import encode
from milpverify.encode.model import NumericallyUnfit
from milpverify.functions.catalogue import Function, catalogue
from milpverify.graph import Graph, Node, TensorSpec, evaluate
from milpverify.operators import Affine, Elementwise, Input, Product
from milpverify.solvers.base import Capability, Limits
from milpverify.solvers.trusted_bound import safe_dual_bound
from milpverify.spec import Box, Disjunct, Rows

Array = np.ndarray

CURVED = tuple(sorted(name for name, entry in catalogue().items() if entry.domain or name in ("floor", "round")))
LINEAR = ("relu", "abs", "sign", "leaky_relu", "hard_tanh", "clip")
MOST = 12
"""Curved neurons of a graph."""
STEEP = ("exp", "cube", "pow_even", "pow_odd", "square")
"""Functions whose arguments stay moderate, for their values to do so."""
FAR = 1e3
STRETCH, FIXED = 1e4, 1e-6
"""The most that a range is stretched; one that is so narrow for its values is taken for a point. More would blow up rounding errors."""


@dataclass(frozen=True, eq=False)
class Case:
    """A graph with the inputs over which its first output is minimised."""

    name: str
    graph: Graph
    box: Box
    domain: Rows

    def disjunct(self, threshold: float = 0.0) -> Disjunct:
        """The inputs whose first output is at most a number."""
        row = np.zeros((1, self.graph.ny))
        row[0, 0] = 1.0
        return Disjunct(self.box, Rows(np.zeros((1, self.graph.nx)), row, np.array([threshold]), np.array([False])), self.domain)

    @property
    def objective(self) -> Array:
        """The row of the first output."""
        return np.eye(self.graph.ny)[0]

    @cached_property
    def ranges(self) -> NodeRanges:
        """Proved bounds of every node."""
        found = mv.bounds(self.graph, self.box, "crown")
        return [(found[i].lower[0], found[i].upper[0]) for i in range(len(self.graph.nodes))]

    def inside(self, x: Array) -> Array:
        """Which of some inputs (N, nx) satisfy the constraints, whatever rounding does."""
        rows = self.domain
        size = np.abs(x) @ np.abs(rows.x_rows).T + np.abs(rows.rhs)
        return np.asarray((x @ rows.x_rows.T - rows.rhs <= -1e-13 * size).all(axis=1))

    def value(self, xs: Array) -> float:
        """A proved upper bound of the least first output: the least one of some inputs (N, nx) that are allowed, inf if none is."""
        xs = np.clip(np.atleast_2d(xs), self.box.lower, self.box.upper)
        xs = xs[self.inside(xs)]
        return float(enclose(self.graph, torch.from_numpy(xs))[1][:, 0].min()) if len(xs) else math.inf

    def sampled(self, count: int = 4000, steps: int = 60) -> float:
        """The same of random inputs, and of what descent from the best of them comes to."""
        rng = np.random.default_rng(0)
        share = rng.random((count, self.graph.nx))
        share[::3] = np.round(share[::3])
        low, high = self.box.lower, self.box.upper
        xs = low + share * (high - low)
        xs = xs[self.inside(xs)] if len(self.domain) else xs
        if not len(xs):
            return math.inf
        y = evaluate(self.graph, torch.from_numpy(xs))[:, 0].numpy()
        best = xs[np.argsort(y)[:32]]
        reached, now, length = [best], best, 0.1
        for _ in range(steps):
            point = torch.from_numpy(now).requires_grad_()
            with torch.enable_grad():
                (slope,) = torch.autograd.grad(evaluate(self.graph, point)[:, 0].sum(), point)
            now = np.clip(now - length * (high - low) * np.sign(np.nan_to_num(slope.numpy())), low, high)
            reached.append(now)
            length *= 0.85
        return self.value(np.concatenate(reached))


class Wild(Grower):
    """A grower that knows the box, so that arguments can be moved to where a function is curved, flat or defined at all."""

    def __init__(self, box: Box, seed: int) -> None:
        super().__init__(box.size, seed)
        self.box = box
        self.curved = 0

    def ranges(self, node: Node) -> tuple[Array, Array]:
        """Bounds of a node by interval propagation."""
        graph = Graph(tuple(self.nodes[: node.id + 1]), node.id)
        found = mv.bounds(graph, self.box, "ibp").output
        return found.lower[0].numpy(), found.upper[0].numpy()

    def fitted(self, node: Node, low: float, high: float) -> Node:
        """Every entry, mapped into an interval."""
        lower, upper = self.ranges(node)
        width, size = upper - lower, 1.0 + np.maximum(np.abs(lower), np.abs(upper))
        known = width > FIXED * size
        factor = np.where(known, np.minimum((high - low) / np.where(known, width, 1.0), STRETCH) * (1 - 1e-9), 1.0)
        return self.scale(node, factor, 0.5 * (low + high) - factor * (lower + 0.5 * (upper - lower)))

    def called(self, name: str, node: Node) -> Node:
        """A function of the catalogue, over an interval of one kind or another."""
        f, rng = catalogue()[name].trial(), self.rng
        low, high = self.interval(f)
        if f.pieces is None:
            self.curved += node.size
        return self.apply(f, self.fitted(node, low, high) if rng.random() < 0.8 or restricted(f) else node)

    def interval(self, f: Function) -> tuple[float, float]:
        """Around or off an inflection, an extremum or nothing special; narrow or wide; inside the domain."""
        rng = self.rng
        special = [0.5 * (a + b) for a, b in (*f.inflections, *f.extrema) if math.isfinite(b)] or [0.0]
        centre = float(rng.choice(special)) + float(rng.choice([0.0, 0.0, 0.7, -1.5, 8.0, -12.0]))
        width = float(rng.choice([1e-2, 1.0, 3.0, 6.0]))
        if f.name in STEEP:
            centre, width = max(-3.0, min(centre, 3.0)), min(width, 3.0)
        (_, start), (end, _) = f.domain or ((-math.inf, -math.inf), (math.inf, math.inf))
        start, end = max(start, *(pole for _, pole in f.poles), -math.inf) + 0.1, end - 0.1
        share = rng.random()
        low, high = centre - share * width, centre + (1 - share) * width
        inner = max(start, min(low, end - 0.1)), min(end, max(high, start + 0.1))
        return inner if inner[0] < inner[1] else (inner[1], inner[0])

    def part(self, node: Node, kind: str) -> Node:
        """One more block on a vector."""
        rng, n = self.rng, node.size
        mixed = self.layer(node, int(rng.integers(1, 4)), float(rng.choice([1e-3, 1.0, 1.0, 1.0, 30.0])))
        match kind:
            case "curved":
                return self.called(str(rng.choice(CURVED)), mixed)
            case "linear":
                return self.called(str(rng.choice(LINEAR)), mixed)
            case "product":
                a, b = self.moderate(mixed), self.moderate(self.layer(node, mixed.size))
                self.curved += mixed.size
                return self.product(a, b)
            case "square":
                self.curved += mixed.size
                return self.product(part := self.moderate(mixed), part)
            case "softmax":
                logits = self.fitted(self.layer(node, 3), -float(rng.choice([0.5, 2.0, 5.0])), 2.0)
                self.curved += 7
                return self.softmax(logits)
            case "quotient":
                below = self.fitted(self.layer(node, mixed.size), float(rng.choice([0.05, 0.5])), 2.0)
                self.curved += 2 * mixed.size
                return self.product(self.moderate(mixed), self.call("reciprocal", below))
            case "normalised":
                a = self.moderate(self.layer(node, 2))
                mean = self.scale(self.reduce_sum(a, [0]), 0.5)
                away = self.sum([a, mean], [1, -1])
                spread = self.scale(self.reduce_sum(self.product(away, away), [0]), 0.5, 0.1)
                self.curved += 5
                return self.product(away, self.call("rsqrt", spread))
        return self.select(node, np.arange(n))

    def moderate(self, node: Node) -> Node:
        """With values of at most a few units."""
        lower, upper = self.ranges(node)
        return node if max(np.abs(lower).max(), np.abs(upper).max()) < 10.0 else self.fitted(node, -2.0, 3.0)


def restricted(f: Function) -> bool:
    """Whether the function is not defined everywhere, or grows too fast."""
    ends = f.domain or ((-math.inf, -math.inf), (math.inf, math.inf))
    return bool(f.poles) or f.name in STEEP or not all(map(math.isinf, (ends[0][1], ends[1][0])))


KINDS = ("curved", "curved", "curved", "linear", "product", "square", "softmax", "quotient", "normalised")


def smooth_case(seed: int) -> Case:
    """A graph by its seed."""
    rng = np.random.default_rng(seed)
    nx = int(rng.integers(1, 5))
    width = float(rng.choice([1e-2, 0.3, 1.0, 3.0]))
    centre = rng.normal(size=nx) + (FAR if rng.random() < 0.15 else 0.0)
    radius = width * rng.uniform(0.2, 1.0, nx) * (rng.random(nx) < 0.9)
    box = Box(centre - radius, centre + radius)
    g = Wild(box, seed)
    x = g.nodes[0]
    node = x if rng.random() < 0.3 else g.fitted(x, -1.0, 1.5)
    kinds = []
    for _ in range(int(rng.integers(1, 4))):
        kind = str(rng.choice(KINDS))
        before = g.curved
        made = g.part(node, kind)
        if g.curved > MOST:
            g.curved = before
            del g.nodes[made.id :]  # what is not read goes with the graph's tidying
            continue
        kinds.append(kind)
        node = g.concat([made, node], 0) if rng.random() < 0.3 and len(node.shape) == 1 else made
        if rng.random() < 0.1:  # far from 0 for its range
            node = g.scale(node, 1.0, FAR)
    if not g.curved:
        node = g.called("tanh", g.layer(node, 2))
        kinds.append("tanh")
    end = g.layer(node, int(rng.integers(1, 3)), float(rng.choice([1e-2, 1.0, 1.0, 10.0])))
    graph = replace(g.finished(end), inputs=(TensorSpec("x", (nx,), dtype="float64"),))
    domain = Rows.none(nx, graph.ny)
    if nx > 1 and rng.random() < 0.3:
        row, inner = rng.normal(size=nx), rng.uniform(box.lower, box.upper)
        slack = float(rng.uniform(0.0, 0.3) * (np.abs(row) @ radius)) + 1e-9
        domain = Rows(row[None], np.zeros((1, graph.ny)), np.array([row @ inner + slack]), np.array([bool(rng.random() < 0.3)]))
    return Case(f"{seed}: {', '.join(kinds)}, {nx} inputs", graph, box, domain)


# -- the truth, by balls ------------------------------------------------------------------------------------------------------


class Balls:
    """A graph in ball arithmetic: a rigorous enclosure of its outputs over a box, by a code of its own."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.maps: dict[int, tuple[list[list[tuple[int, int, flint.arb]]], list[flint.arb]]] = {}
        for node in graph.nodes:
            if isinstance(node.op, Affine):
                self.maps[node.id] = self._map(node, node.op)

    def _map(self, node: Node, op: Affine) -> tuple[list[list[tuple[int, int, flint.arb]]], list[flint.arb]]:
        """Per entry its terms (input, place, coefficient), and its constant."""
        assert not op.rounded
        shapes = [self.graph.nodes[i].shape for i in node.inputs]
        zeros = [torch.zeros(1, *shape, dtype=torch.float64) for shape in shapes]
        constant = op.forward(zeros).expand(1, *node.shape).reshape(-1).tolist()
        terms: list[list[tuple[int, int, flint.arb]]] = [[] for _ in range(node.size)]
        for place, shape in enumerate(shapes):
            size = math.prod(shape)
            units = torch.eye(size, dtype=torch.float64).reshape(size, *shape)
            given = [units if k == place else torch.zeros(size, *s, dtype=torch.float64) for k, s in enumerate(shapes)]
            columns = op.linear(given).reshape(size, -1)
            for j, i in columns.nonzero().tolist():
                terms[i].append((node.inputs[place], j, flint.arb(float(columns[j, i]))))
        return terms, [flint.arb(c) for c in constant]

    def outputs(self, lower: Sequence[float], upper: Sequence[float]) -> list[flint.arb]:
        """Enclosures over a box."""
        values: list[list[flint.arb]] = []
        for node in self.graph.nodes:
            match node.op:
                case Input():
                    now = [flint.arb(a).union(flint.arb(b)) if a < b else flint.arb(a) for a, b in zip(lower, upper, strict=True)]
                case Affine():
                    terms, constant = self.maps[node.id]
                    now = [sum((k * values[i][j] for i, j, k in row), start=c) for row, c in zip(terms, constant, strict=True)]
                case Elementwise(f):
                    now = [image(f, z) for z in values[node.inputs[0]]]
                case Product():
                    now = [a * b for a, b in zip(*(values[i] for i in node.inputs), strict=True)]
                case _:
                    raise NotImplementedError(str(node.op))
            values.append(now)
        return values[self.graph.output]


def image(f: Function, z: flint.arb) -> flint.arb:
    """The values of a function over a ball; of a monotone one by both ends, where balls that are wide cancel."""
    if f.pieces is not None or f.staircase or f.extrema or f.poles or f.period is not None:
        return f.ball(z)
    return f.ball(z.lower()).union(f.ball(z.upper()))


def truth(case: Case, boxes: int = 600, close: float = 1e-6, threshold: float = math.inf) -> tuple[float, float]:
    """Proved bounds of the least first output: parts of the box are halved, the one with the least bound first.

    Args:
        boxes: how many are looked at; the bounds are the closer the more.
        close: how close they need not be.
        threshold: a lower bound above which it may stop.
    """
    balls = Balls(case.graph)
    rows = [
        ([flint.arb(float(a)) for a in row], flint.arb(float(rhs))) for row, rhs in zip(case.domain.x_rows, case.domain.rhs, strict=True)
    ]

    def residuals(low: Sequence[float], high: Sequence[float]) -> list[flint.arb]:
        xs = [flint.arb(a).union(flint.arb(b)) for a, b in zip(low, high, strict=True)]
        return [sum((a * x for a, x in zip(row, xs, strict=True)), start=-rhs) for row, rhs in rows]

    def least(low: Sequence[float], high: Sequence[float]) -> float:
        if any(r > 0 for r in residuals(low, high)):
            return math.inf
        y = balls.outputs(low, high)[0]
        return math.nextafter(float(y.lower()), -math.inf) if y.is_finite() else -math.inf

    best = math.inf

    def tried(x: Sequence[float]) -> float:
        if not all(r < 0 for r in residuals(x, x)):
            return math.inf
        y = balls.outputs(x, x)[0]
        return math.nextafter(float(y.upper()), math.inf) if y.is_finite() else math.inf

    with flint.ctx.workprec(80):
        root = case.box.lower.tolist(), case.box.upper.tolist()
        heap: list[tuple[float, int, list[float], list[float]]] = [(least(*root), 0, *root)]
        done = math.inf
        for count in range(1, boxes, 2):
            if not heap or heap[0][0] >= min(best - close, threshold):
                break
            _, _, low, high = heappop(heap)
            best = min(best, tried([a + 0.5 * (b - a) for a, b in zip(low, high, strict=True)]), tried(low), tried(high))
            width = [b - a for a, b in zip(low, high, strict=True)]
            k = int(np.argmax(np.array(width) / np.maximum(case.box.upper - case.box.lower, 1e-300)))
            middle = low[k] + 0.5 * width[k]
            if not low[k] < middle < high[k]:
                done = min(done, least(low, high))
                continue
            for side in (0, 1):
                a, b = list(low), list(high)
                (b if side == 0 else a)[k] = middle
                heappush(heap, (least(a, b), count + side, a, b))
        bound = min(done, heap[0][0] if heap else math.inf)
    return bound, best


# -- bounds by form -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bounds:
    """What a form says of a case: a lower bound of the least first output, an upper one, and in words why there is none."""

    lower: float
    upper: float = math.inf
    note: str = ""


def contradictions(case: Case, found: dict[str, Bounds], known: Iterable[float] = (), least: float = -math.inf) -> list[str]:
    """Which lower bounds are above what some input attains, and which upper bounds are below what no input goes under.

    Args:
        known: proved upper bounds of the least first output.
        least: a proved lower bound of it.
    """
    best = min([*known, *(bounds.upper for bounds in found.values())])
    wrong = [f"case {case.name}: {form} proves {b.lower!r}, but {best!r} is attained" for form, b in found.items() if not b.lower <= best]
    wrong += [f"case {case.name}: {form} has {b.upper!r}, but nothing is below {least!r}" for form, b in found.items() if b.upper < least]
    return wrong


Form = Callable[[Case, float], Bounds]
"""Bounds of a case within so many seconds."""


def by_search(method: str | mv.Milp, gap: float = 1e-5) -> Form:
    """`minimize` by one of the methods of `verify`."""

    def form(case: Case, seconds: float) -> Bounds:
        found = mv.minimize(case.graph, case.box, case.objective, gap, seconds, method, constraints=case.domain)
        return Bounds(found.lower_bound, math.inf if found.x is None else case.value(found.x), found.reason.value)

    return form


def by_model(solver: str) -> Form:
    """One model with functions and products as they are."""

    def form(case: Case, seconds: float) -> Bounds:
        try:
            native = frozenset({Capability.QUADRATIC, Capability.FUNCTIONS})
            encoding = encode(case.graph, case.ranges, case.disjunct(), form=ModelForm(native=native))
        except NumericallyUnfit as error:
            return Bounds(-math.inf, note=str(error))
        found = Lasting(solver).solve(encoding.model, Limits(seconds), mv.Deadline(seconds + 5.0))
        upper = math.inf if found.point is None else case.value(encoding.x_of(found.point))
        return Bounds(safe_dual_bound(found, encoding.model), upper, found.message)

    return form


FORMS: dict[str, Form] = {
    "own search": by_search("bab"),
    "pieces, highs": by_search(mv.Milp("highs")),
    "pieces, scip": by_search(mv.Milp("scip")),
    "native, scip": by_model("scip"),
    "native, gurobi": by_model("gurobi"),
}
