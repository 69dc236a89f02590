"""The computation graph: immutable, static shapes, one flat input vector and one flat output vector."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Generic, TypeVar

import torch
from torch import Tensor

from milpverify.operators import Affine, Elementwise, Input, Nonlinear, Operator, Shape

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    import networkx

    from milpverify.balls.ball import Ball
    from milpverify.balls.halfspaces import Halfspaces

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Node:
    """One operation. `id` is its place in `Graph.nodes`; `shape` is static (an ONNX batch dimension of 1 is part of it)."""

    id: int
    op: Operator
    inputs: tuple[int, ...]
    shape: Shape
    name: str = ""  # of the source node it was lowered from, for messages

    @property
    def size(self) -> int:
        """The number of entries."""
        return math.prod(self.shape)

    def applies(self, function: str) -> bool:
        """Whether it is a function of the catalogue, by its name there."""
        return isinstance(self.op, Elementwise) and self.op.name == function


@dataclass(frozen=True, eq=False)
class Reading:
    """One input of a nonlinear node `reader`, its `place`-th, traced to the variable that it copies.

    Entry k of the input is entry index[k] of `node`, flat; None where they are the same. An operator of one input reads that input
    itself; inputs of others are often broadcast, and a split or a bound belongs to the variable, not to one of its copies.
    """

    reader: int
    place: int
    node: int
    index: Tensor | None


@dataclass(frozen=True)
class TensorSpec:
    """A named tensor of the source network: how a stretch of the flat x or y is called, shaped and typed there."""

    name: str
    shape: Shape
    dtype: str = "float32"

    @property
    def size(self) -> int:
        """The number of entries."""
        return math.prod(self.shape)


@dataclass(frozen=True, eq=False)
class Graph:
    """A network y = f(x) with x (nx,) and y (ny,) flat, in topological order.

    `nodes[0]` is the `Input`; `output` is the id of the node that holds y, of shape (ny,). Weights are float64, which holds
    float32 weights exactly; operators say where a computed one is `rounded`. `to` gives the copy that an algorithm computes with.
    `inputs` and `outputs` say how the source network cuts x and y into named tensors. `inner` is the precision behind the first nonlinear
    nodes where it is not `dtype`.
    `lost`, for a copy: the affine nodes some of whose coefficients underflowed, and how much these lost at most.
    """

    nodes: tuple[Node, ...]
    output: int
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    dtype: torch.dtype = torch.float64
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    inner: torch.dtype | None = None
    lost: dict[int, float] = field(default_factory=dict)

    @property
    def nx(self) -> int:
        """The number of input variables."""
        return self.nodes[0].size

    @property
    def ny(self) -> int:
        """The number of output variables."""
        return self.nodes[self.output].size

    def to(self, dtype: torch.dtype, device: torch.device | str = "cpu", inner: torch.dtype | None = None) -> Graph:
        """The same graph with its tensors in another precision and on another device; made once and kept.

        Args:
            inner: the precision behind the first nonlinear nodes, where it differs. The affine nodes at the front are often the
                dearest, and their rounding is the least that a backward pass loses.
        """
        device = torch.device(device)
        wanted = dtype, device, None if inner == dtype else inner
        if wanted == (self.dtype, self.device, self.inner):
            return self
        if wanted not in self._copies:
            kinds = [dtype if inner is None or node.id in self.front else inner for node in self.nodes]
            pairs = list(zip(self.nodes, kinds, strict=True))
            nodes = tuple(replace(node, op=node.op.to(kind, device)) for node, kind in pairs)
            lost = {node.id: most for node, kind in pairs if isinstance(node.op, Affine) and (most := node.op.lost(kind))}
            self._copies[wanted] = replace(self, nodes=nodes, dtype=dtype, device=device, inner=wanted[2], lost=lost)
        return self._copies[wanted]

    def __getstate__(self) -> dict[str, object]:
        """Without what was derived, such as copies in other precisions."""
        return {part.name: getattr(self, part.name) for part in fields(self)}

    @cached_property
    def _copies(self) -> dict[tuple[torch.dtype, torch.device, torch.dtype | None], Graph]:
        return {}

    @property
    def ball(self) -> Ball | None:
        """The ball that inputs are confined to, if they are: what is proved holds there, and points outside are no inputs."""
        op = self.nodes[0].op
        return op.ball if isinstance(op, Input) else None

    @property
    def halfspaces(self) -> Halfspaces | None:
        """Inequalities that inputs satisfy, if there are any: what is proved holds there."""
        op = self.nodes[0].op
        return op.halfspaces if isinstance(op, Input) else None

    @property
    def boxed(self) -> bool:
        """Whether inputs are confined to nothing but a box."""
        return self.ball is None and self.halfspaces is None

    def confined(self, ball: Ball | None, halfspaces: Halfspaces | None = None) -> Graph:
        """The same network, of inputs in a ball and in half-spaces."""
        first = replace(self.nodes[0], op=Input(ball, halfspaces))
        return replace(self, nodes=(first, *self.nodes[1:]))

    def precision(self, node: int) -> torch.dtype:
        """The precision of a node's matrices, and of the multipliers that wait at it in a backward pass."""
        return self.dtype if self.inner is None or node in self.front else self.inner

    @cached_property
    def front(self) -> frozenset[int]:
        """The input and the nodes that are affine functions of it."""
        return frozenset(affine_descendants(self, [0]))

    @cached_property
    def consumers(self) -> tuple[tuple[int, ...], ...]:
        """Per node, the ids of the nodes that read it (once per reading)."""
        readers: list[list[int]] = [[] for _ in self.nodes]
        for node in self.nodes:
            for i in node.inputs:
                readers[i].append(node.id)
        return tuple(map(tuple, readers))

    @cached_property
    def nonlinearities(self) -> dict[int, Nonlinear]:
        """The operators of the nonlinear nodes, in topological order."""
        return {node.id: node.op for node in self.nodes if isinstance(node.op, Nonlinear)}

    @cached_property
    def nonlinear(self) -> tuple[int, ...]:
        """The ids of the nonlinear nodes, in topological order."""
        return tuple(self.nonlinearities)

    @cached_property
    def piecewise_linear(self) -> bool:
        """Whether every nonlinear node is a function of one variable that is made of lines."""
        return all(op.pieces is not None for op in self.nonlinearities.values())

    @cached_property
    def rounded(self) -> bool:
        """Whether constants were computed that float64 does not hold, so that no rational arithmetic is exact on this graph."""
        return any(op.rounded for op in self.absolutes.values())

    @cached_property
    def readings(self) -> dict[int, tuple[Reading, ...]]:
        """Per nonlinear node, what its inputs read."""
        return {i: tuple(self._reading(i, place) for place in range(len(self.nodes[i].inputs))) for i in self.nonlinear}

    def _reading(self, reader: int, place: int) -> Reading:
        inputs = self.nodes[reader].inputs
        node, index = inputs[place], None
        while len(inputs) > 1 and isinstance(op := self.nodes[node].op, Affine) and op.copies:
            (source,) = self.nodes[node].inputs
            # Numbers below 2^53 are exact, and moved as any values are.
            numbers = torch.arange(self.nodes[source].size, dtype=torch.float64, device=self.device)
            moved = op.linear([numbers.reshape(1, *self.nodes[source].shape)]).flatten().long()
            index, node = moved if index is None else moved[index], source
        return Reading(reader, place, node, index)

    @cached_property
    def readers(self) -> dict[int, tuple[Reading, ...]]:
        """Per variable that nonlinear nodes read, how they do, in topological order of the variables."""
        found: dict[int, list[Reading]] = {}
        for readings in self.readings.values():
            for reading in readings:
                found.setdefault(reading.node, []).append(reading)
        return {node: tuple(found[node]) for node in sorted(found)}

    @cached_property
    def ancestors(self) -> tuple[frozenset[int], ...]:
        """Per node, itself and every node that it depends on."""
        known: list[frozenset[int]] = []
        for node in self.nodes:
            known.append(frozenset({node.id}).union(*(known[i] for i in node.inputs)))
        return tuple(known)

    @cached_property
    def entries(self) -> int:
        """The number of entries of all nodes together."""
        return sum(node.size for node in self.nodes)

    @cached_property
    def absolutes(self) -> dict[int, Affine]:
        """Per affine node, its operator with |W| and |b|."""
        return {node.id: node.op.absolute() for node in self.nodes if isinstance(node.op, Affine)}

    def to_networkx(self) -> networkx.DiGraph:
        """The graph for networkx, to draw it or to ask about paths: nodes are ids with the attributes `op`, `shape`, `name`."""
        import networkx as nx

        view = nx.DiGraph()
        for node in self.nodes:
            view.add_node(node.id, op=type(node.op).__name__, shape=node.shape, name=node.name)
            view.add_edges_from((i, node.id) for i in node.inputs)
        return view


def evaluate_all(graph: Graph, x: Tensor, value: Callable[[Node, Sequence[Tensor]], Tensor] | None = None) -> list[Tensor]:
    """Every node's value at the points x (N, nx), in the graph's precision: one (N, *shape) tensor per node.

    Args:
        value: what to take for the value of a nonlinear node, if not its own.
    """
    values: list[Tensor] = []
    for node in graph.nodes:
        args = [values[i] for i in node.inputs]
        match node.op:
            case Input():
                values.append(x)
            case Affine():
                y = node.op.forward(args)
                values.append(y if y.shape[1:] == node.shape else y.expand(y.shape[0], *node.shape))
            case Nonlinear():
                values.append(node.op.value(args) if value is None else value(node, args))
            case _:
                raise NotImplementedError(f"{type(node.op).__name__} ({node.name}) is neither affine nor nonlinear")
    return values


def evaluate(graph: Graph, x: Tensor) -> Tensor:
    """y = f(x) at the points x (N, nx) -> (N, ny), in the graph's precision and differentiable."""
    return evaluate_all(graph, x)[graph.output]


@dataclass(frozen=True, eq=False)
class AffineForm:
    """Rows of a node as an affine function of the cut nodes behind it (nonlinear nodes and the input).

    rows = sum over cuts of coefficients[cut] . value(cut) + constant, with coefficients (R, *cut shape), constant (R,).
    """

    coefficients: dict[int, Tensor]
    constant: Tensor


class Pullback(Generic[T]):
    """A walk from some nodes back towards the input, on which something is pulled back through every node: rows, say, by its adjoint.

    Iterating yields the nodes that something has arrived at, each once and the last one first, so that all that reads a node has sent
    to it by then; whoever iterates sends on what the inputs of the node get, or nothing where the walk is to end. A rigorous pass
    (`propagation/backward.py`) has a walk of its own, which can be stopped between two nodes, looked at, and continued with some rows.

    Args:
        start: what arrives at the nodes to begin with.
        join: of what several readers send to one node, in the order in which they send it.
    """

    def __init__(self, graph: Graph, start: Mapping[int, T], join: Callable[[T, T], T] = operator.add) -> None:
        self.graph, self.waiting, self.join = graph, dict(start), join

    def __iter__(self) -> Iterator[tuple[Node, T]]:
        while self.waiting:
            last = max(self.waiting)
            yield self.graph.nodes[last], self.waiting.pop(last)

    def arrive(self, node: int, part: T) -> None:
        """Let something arrive at a node."""
        self.waiting[node] = self.join(self.waiting[node], part) if node in self.waiting else part

    def send(self, node: Node, parts: Iterable[T]) -> None:
        """Let something arrive at each input of a node."""
        for source, part in zip(node.inputs, parts, strict=True):
            self.arrive(source, part)


def affine_form(graph: Graph, node: int, rows: Tensor) -> AffineForm:
    """Pull `rows` . value(node) back through affine nodes to the nearest cut nodes.

    Args:
        rows: (R, *shape of the node), in the graph's precision.
    """
    constant = rows.new_zeros(rows.shape[0])
    cuts: dict[int, Tensor] = {}
    walk = Pullback(graph, {node: rows})
    for here, row in walk:
        if not isinstance(here.op, Affine):
            cuts[here.id] = row
            continue
        if here.op.bias is not None:
            constant = constant + (row * here.op.bias).flatten(1).sum(1)
        walk.send(here, here.op.adjoint(row))
    return AffineForm(cuts, constant)


def affine_descendants(graph: Graph, sources: Iterable[int]) -> set[int]:
    """The nodes that are affine functions of the sources alone, the sources included."""
    known = set(sources)
    for node in graph.nodes:
        if isinstance(node.op, Affine) and node.inputs and all(i in known for i in node.inputs):
            known.add(node.id)
    return known
