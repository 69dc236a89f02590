"""Random small networks, their exact optimum by enumeration of activation patterns, and a model that no solver finishes soon."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import highspy
import numpy as np
import torch

from milpverify.bounding import bounds
from milpverify.encode.encoding import NodeRanges
from milpverify.encode.milp import encode
from milpverify.functions.catalogue import Function, catalogue
from milpverify.graph import Graph, Node, evaluate
from milpverify.operators import Concat, Elementwise, Input, Linear, ReduceSum, Scale, Select, Sum
from milpverify.solvers.model import Model
from milpverify.spec import Box, Disjunct, Problem, Rows

CONTINUOUS = ("relu", "abs", "leaky_relu", "relu6", "hard_tanh", "clip")
_BOUND = {"leaky_relu": {"alpha": 0.25}, "clip": {"min": -0.5, "max": 0.75}}


def function(name: str) -> Function:
    """A piecewise-linear function of the catalogue, with parameters where it needs them."""
    return catalogue()[name].bind(**_BOUND.get(name, {}))


def proved_bounds(graph: Graph, box: Box, method: str = "crown") -> NodeRanges:
    """Rigorous bounds per node, without the batch axis."""
    found = bounds(graph, box, method)
    return [(found[i].lower[0], found[i].upper[0]) for i in range(len(graph.nodes))]


class Stack:
    """A network under construction; `last` is the node that grows."""

    def __init__(self, nx: int) -> None:
        self.nodes = [Node(0, Input(), (), (nx,))]

    def add(self, op: object, *inputs: int, size: int) -> int:
        self.nodes.append(Node(len(self.nodes), op, inputs, (size,)))  # type: ignore[arg-type]
        return len(self.nodes) - 1

    def graph(self) -> Graph:
        return Graph(tuple(self.nodes), len(self.nodes) - 1)


def dense(rng: np.random.Generator, rows: int, columns: int, scale: float = 1.0) -> Linear:
    """A layer with float32 weights, as ONNX files hold them; some are zero."""
    weight = rng.normal(0, scale * (1.5 / columns) ** 0.5, (rows, columns)) * (rng.random((rows, columns)) < 0.9)
    bias = rng.normal(0, 0.3 * scale, rows)
    return Linear(*(torch.tensor(a.astype(np.float32).astype(np.float64)) for a in (weight, bias)))


def relu_network(sizes: list[int], seed: int) -> Graph:
    """A fully connected ReLU network."""
    rng, stack = np.random.default_rng(seed), Stack(sizes[0])
    for i, (m, n) in enumerate(pairwise(sizes)):
        last = stack.add(dense(rng, n, m), len(stack.nodes) - 1, size=n)
        if i + 2 < len(sizes):
            stack.add(Elementwise(function("relu")), last, size=n)
    return stack.graph()


def random_problem(seed: int, names: tuple[str, ...] = CONTINUOUS) -> tuple[Graph, Disjunct]:
    """Mixed operators and functions, a residual or a concatenation, degenerate boxes, tiny and huge scales, rows over x and y."""
    rng = np.random.default_rng(seed)
    nx, width, scale = int(rng.integers(1, 4)), int(rng.integers(2, 4)), float(10.0 ** rng.choice([-4, 0, 0, 0, 4]))
    stack = Stack(nx)
    hidden = stack.add(Elementwise(function(str(rng.choice(names)))), stack.add(dense(rng, width, nx, scale), 0, size=width), size=width)
    inner = stack.add(dense(rng, width, width, 1.0 / scale), hidden, size=width)
    other = stack.add(Elementwise(function(str(rng.choice(names)))), inner, size=width)
    match int(rng.integers(4)):
        case 0:
            other = stack.add(Sum((1, -1)), other, inner, size=width)
        case 1:
            scaled = stack.add(Scale(torch.tensor(rng.normal(0, 1, width)), torch.tensor(rng.normal(0, 1, width))), other, size=width)
            joined = stack.add(Concat(0, (width, width)), scaled, inner, size=2 * width)
            other = stack.add(Select(torch.tensor([2 * width - 1, -1, *range(width)]), (2 * width,)), joined, size=width + 2)
        case 2:
            total = stack.add(ReduceSum((0,), (width,)), other, size=1)
            other = stack.add(Concat(0, (1, width)), total, other, size=width + 1)
        case _:
            pass
    ny = 2
    stack.add(dense(rng, ny, stack.nodes[other].size), other, size=ny)
    graph = stack.graph()
    centre, radius = rng.normal(0, 1, nx), rng.uniform(0.1, 1.5, nx) * (rng.random(nx) < 0.85)
    box = Box(centre - radius, centre + radius)
    count = int(rng.integers(1, 4))
    y_rows = rng.normal(0, 1, (count, ny))
    x_rows = rng.normal(0, 1, (count, nx)) * (rng.random() < 0.3)
    x = torch.tensor(rng.uniform(box.lower, box.upper))
    at = x_rows @ x.numpy() + y_rows @ evaluate(graph, x[None])[0].numpy()
    rhs = at + rng.normal(-0.2, 0.4, count)
    unsafe = Rows(x_rows, y_rows, rhs, rng.random(count) < 0.3)
    domain = Rows.none(nx, ny)
    if rng.random() < 0.3:
        row = rng.normal(0, 1, (1, nx))
        domain = Rows(row, np.zeros((1, ny)), row @ x.numpy() + rng.uniform(0, 0.5, 1), np.array([False]))
    return graph, Disjunct(box, unsafe, domain)


_Rows = list[tuple[np.ndarray, float]]


@dataclass
class _Linear:
    """Rows A x + c of a node, under the choices made so far."""

    A: np.ndarray
    c: np.ndarray


def enumerated_minimum(graph: Graph, disjunct: Disjunct) -> float:
    """The smallest margin over the closure of the graph: one linear program per activation pattern, written without the encoder."""
    nx = graph.nx
    best = math.inf

    def visit(node: int, values: dict[int, _Linear], rows: _Rows) -> None:
        nonlocal best
        if node == len(graph.nodes):
            out = values[graph.output]
            unsafe = disjunct.unsafe
            A, c = unsafe.x_rows + unsafe.y_rows @ out.A, unsafe.y_rows @ out.c - unsafe.rhs
            best = min(best, _program(disjunct.box, rows, (A, c)))
            return
        op = graph.nodes[node].op
        inputs = [values[i] for i in graph.nodes[node].inputs]
        if isinstance(op, Input):
            visit(node + 1, {**values, node: _Linear(np.eye(nx), np.zeros(nx))}, rows)
        elif not isinstance(op, Elementwise):
            columns = op.linear([torch.tensor(v.A.T.copy()) for v in inputs]).numpy().T  # type: ignore[attr-defined]
            constant = op.forward([torch.tensor(v.c)[None] for v in inputs])[0].numpy()  # type: ignore[attr-defined]
            visit(node + 1, {**values, node: _Linear(columns, constant)}, rows)
        else:
            for choice, extra in _patterns(op.function, inputs[0], disjunct.box, rows):
                visit(node + 1, {**values, node: choice}, rows + extra)

    visit(0, {}, [(row, float(rhs)) for row, rhs in zip(disjunct.domain.x_rows, disjunct.domain.rhs, strict=True)])
    return best


def _patterns(f: Function, pre: _Linear, box: Box, rows: _Rows) -> Iterator[tuple[_Linear, _Rows]]:
    pieces = f.pieces
    assert pieces is not None
    ends = [-math.inf, *pieces.breakpoints, math.inf]
    cases = [(ends[k], ends[k + 1], pieces.slopes[k], pieces.intercepts[k]) for k in range(len(pieces.slopes))]
    cases += [(p, p, 0.0, v) for p, v in zip(pieces.breakpoints, pieces.values, strict=True)]

    def extend(i: int, chosen: list[tuple[float, float]], extra: _Rows) -> Iterator[tuple[_Linear, _Rows]]:
        if i == len(pre.c):
            slopes, intercepts = (np.array(part) for part in zip(*chosen, strict=True))
            yield _Linear(slopes[:, None] * pre.A, slopes * pre.c + intercepts), extra
            return
        for low, high, slope, intercept in cases:
            new = [(-pre.A[i], pre.c[i] - low)] if low > -math.inf else []
            new += [(pre.A[i], high - pre.c[i])] if high < math.inf else []
            if _program(box, rows + extra + new, None) < math.inf:
                yield from extend(i + 1, [*chosen, (slope, intercept)], extra + new)

    yield from extend(0, [], [])


def _program(box: Box, rows: _Rows, objective: tuple[np.ndarray, np.ndarray] | None) -> float:
    """min over the box and the rows of max(A x + c), 0 without an objective; inf where infeasible."""
    highs = highspy.Highs()
    highs.setOptionValue("output_flag", False)
    highs.setOptionValue("threads", 1)
    for tolerance in ("primal_feasibility_tolerance", "dual_feasibility_tolerance"):
        highs.setOptionValue(tolerance, 1e-9)
    nx = box.size
    for low, high in zip(box.lower, box.upper, strict=True):
        highs.addVar(float(low), float(high))
    highs.addVar(-highspy.kHighsInf, highspy.kHighsInf)
    everything = [(np.append(a, 0.0), b) for a, b in rows]
    if objective is None:
        highs.changeColBounds(nx, 0.0, 0.0)
    else:
        highs.changeColCost(nx, 1.0)
        everything += [(np.append(a, -1.0), -c) for a, c in zip(*objective, strict=True)]
    for a, b in everything:
        size = (float(np.abs(a[:nx]).max()) or 1.0) if a[nx] == 0 else 1.0
        highs.addRow(-highspy.kHighsInf, float(b / size), nx + 1, np.arange(nx + 1), a / size)
    highs.run()
    if highs.getModelStatus() == highspy.HighsModelStatus.kInfeasible:
        return math.inf
    assert highs.getModelStatus() == highspy.HighsModelStatus.kOptimal, highs.getModelStatus()
    return float(highs.getInfo().objective_function_value)


def shifted(disjunct: Disjunct, by: float) -> Disjunct:
    """The disjunct with margins smaller by so much."""
    unsafe = disjunct.unsafe
    return replace(disjunct, unsafe=Rows(unsafe.x_rows, unsafe.y_rows, unsafe.rhs + by, unsafe.strict))


def disjunct_of(box: Box, threshold: float) -> Disjunct:
    """Of three outputs each but the last is at most the next one and the threshold."""
    return Disjunct(box, Rows.on_outputs([[1, -1, 0], [0, 1, -1]], [threshold, threshold], box.size), Rows.none(box.size, 3))


def sampled_problem(name: str, seed: int, by: float, inputs: int = 48) -> Problem:
    """Whether the output of a small network stays above a threshold; where inputs are many, neurons are split.

    Args:
        name: of a function of the catalogue.
        by: the share of the range of a sample by which the threshold lies below it.
    """
    rng, sizes = np.random.default_rng(seed), [inputs, 12, 12, 1]
    stack = Stack(inputs)
    for m, n in pairwise(sizes):
        last = stack.add(dense(rng, n, m, 1.2), len(stack.nodes) - 1, size=n)
        if n > 1:
            stack.add(Elementwise(function(name)), last, size=n)
    graph, box = stack.graph(), Box(np.full(inputs, -0.3), np.full(inputs, 0.3))
    least, most = (float(end) for end in evaluate(graph, torch.tensor(rng.uniform(-0.3, 0.3, (4096, inputs)))).aminmax())
    unsafe = Rows.on_outputs([[1.0]], [least - by * (most - least)], inputs)
    return Problem(graph, (Disjunct(box, unsafe, Rows.none(inputs, 1)),))


def hard_model(sizes: Sequence[int] = (8, 40, 40, 40, 3)) -> Model:
    """A margin model; with the usual sizes it keeps every solver busy for far longer than a test lasts."""
    nx = sizes[0]
    graph, box = relu_network(list(sizes), 1), Box(-np.ones(nx), np.ones(nx))
    disjunct = Disjunct(box, Rows.on_outputs([[1, -1, 0], [0, 1, -1]], [0.1, 0.2], nx), Rows.none(nx, 3))
    return encode(graph, proved_bounds(graph, box, "ibp"), disjunct, start=np.zeros(nx)).model
