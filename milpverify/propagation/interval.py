"""Interval bound propagation, reference values and rounding charges: one forward pass of float64 vectors.

Affine nodes go through centre and radius with |W|; nonlinear nodes through the outward-rounded range of their function.
Everything holds for real arithmetic on the stored weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from milpverify.arithmetic.rounding import U64, UNDERFLOW, UNIT_ROUNDOFF, down, gamma, up
from milpverify.config import check_time
from milpverify.operators import Affine, Input, Nonlinear
from milpverify.propagation.lookup import lookups
from milpverify.propagation.request import BoundTuning
from milpverify.propagation.state import Bounds, NodeState, State
from milpverify.relaxations.registry import rule_of

if TYPE_CHECKING:
    from milpverify.graph import Graph, Node


_FARTHEST: Final = 2.0**512
"""Reference values of functions are no larger."""
_ENOUGH: Final = 2.0**960
"""A lower end need not be larger."""


def propagate(graph: Graph, lower: Tensor, upper: Tensor, dtype: torch.dtype = torch.float64) -> State:
    """Interval bounds of every node.

    Args:
        graph: in float64.
        lower, upper: the boxes, (batch, nx) float64.
        dtype: the precision of the backward passes that the charges are for.
    """
    fast = graph.to(dtype, graph.device)
    state: State = {}
    for node in graph.nodes:
        state[node.id] = step(graph, node, state, lower, upper, fast)
    return state


def step(
    graph: Graph, node: Node, state: State, lower: Tensor, upper: Tensor, fast: Graph, tuning: BoundTuning = BoundTuning()
) -> NodeState:
    """The state of one node from those of its inputs.

    Args:
        graph: in float64.
        lower, upper: the input's boxes, (batch, nx) float64.
        fast: the copy that backward passes multiply with, whose precision the charges are for.
    """
    check_time()
    match node.op:
        case Input():
            return input_state(lower, upper)
        case Affine():
            found, table = _affine(graph, node, state, fast), lookups(graph, tuning).get(node.id)
            if table is None:
                return found
            ends = state[table.source].bounds
            bounds = table.bounds(Bounds(ends.lower.flatten(1), ends.upper.flatten(1)))
            return _met(found, bounds.lower.reshape(found.center.shape), bounds.upper.reshape(found.center.shape))
        case Nonlinear() as op:
            sources = [state[i] for i in node.inputs]
            reach = rule_of(op).range(tuple(s.bounds.lower for s in sources), tuple(s.bounds.upper for s in sources))
            center = op.value([s.center for s in sources])
            return NodeState(Bounds(*reach), center if op.pieces is not None else _number(center), None)
        case _:
            raise NotImplementedError(f"no interval rule for {type(node.op).__name__} ({node.name})")


def follow(graph: Graph, state: State) -> None:
    """Let bounds that have become tighter reach the copies of variables, and functions of one input that are variables, in place."""
    for z, readings in graph.readers.items():
        known = state[z]
        if len(graph.readings.get(z, ())) == 1:
            source = state[graph.nodes[z].inputs[0]].bounds
            state[z] = known = _met(known, *rule_of(graph.nodes[z].op).range((source.lower,), (source.upper,)))
        for reading in readings:
            if reading.index is not None:
                copy = graph.nodes[reading.reader].inputs[reading.place]
                shape = state[copy].bounds.lower.shape
                ends = (side.flatten(1)[:, reading.index].reshape(shape) for side in (known.bounds.lower, known.bounds.upper))
                state[copy] = _met(state[copy], *ends)


def _number(center: Tensor) -> Tensor:
    """A reference value, which may be any number, in place of what is none, or so large that sums of it might be none."""
    return torch.where(center.abs() <= _FARTHEST, center, 0.0)


def _met(known: NodeState, lower: Tensor, upper: Tensor) -> NodeState:
    return NodeState(known.bounds.meet(Bounds(lower, upper)), known.center, known.charge)


def input_state(lower: Tensor, upper: Tensor) -> NodeState:
    """The input's state: its boxes, (batch, nx) float64, with their midpoints as reference."""
    return NodeState(Bounds(lower, upper), lower + 0.5 * (upper - lower), None)


def charged(graph: Graph, node: Node, state: State, known: NodeState, fast: Graph) -> NodeState:
    """What is known of a node, with the charges for passes in the precision of `fast`, from the states of its inputs."""
    if not isinstance(node.op, Affine):
        return known
    sources = [state[i] for i in node.inputs]
    sizes = [s.center.abs() for s in sources]
    charges = [_incoming_charge(fast, node, i, s) for i, s in zip(node.inputs, sources, strict=True)]
    absolute = graph.absolutes[node.id]
    moved, _ = _summed(absolute, [torch.cat(parts) for parts in zip(sizes, charges, strict=True)])
    size, charge = _shaped(moved, node).tensor_split(2)
    if absolute.bias is not None:
        size = size + absolute.bias
    charge, _ = _with_loss(node.op, charge, size)
    return _narrowed(NodeState(known.bounds, known.center, charge), node, sources, fast)


def _summed(absolute: Affine, parts: list[Tensor]) -> tuple[Tensor, bool]:
    """|W| times vectors >= 0, where zero times infinity is zero, and whether all of it is finite."""
    found = absolute.linear(parts)
    if bool(found.isfinite().all()):
        return found, True
    unknown = [~part.isfinite() for part in parts]
    found = absolute.linear([part.masked_fill(u, 0.0) for part, u in zip(parts, unknown, strict=True)])
    return torch.where(absolute.linear([u.double() for u in unknown]) > 0, torch.inf, found), False


def _with_loss(op: Affine, charge: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """The charge of an affine node with what its reference values lose, and that loss.

    Args:
        charge: |W| with what multipliers lose at the sources.
        size: |W| |c| + |b|.
    """
    g = gamma(op.terms)
    loss = g * (1 + 2 * g) * size + op.terms * UNDERFLOW
    return charge * (1 + 2 * g) + loss, loss


def _affine(graph: Graph, node: Node, state: State, fast: Graph) -> NodeState:
    op = node.op
    assert isinstance(op, Affine)
    sources = [state[i] for i in node.inputs]
    middles = [(s.bounds.lower + 0.5 * (s.bounds.upper - s.bounds.lower)).nan_to_num(0.0, 0.0, 0.0) for s in sources]
    radii = [up(torch.maximum(s.bounds.upper - m, m - s.bounds.lower)) for s, m in zip(sources, middles, strict=True)]
    sizes = [torch.maximum(s.center.abs(), m.abs()) for s, m in zip(sources, middles, strict=True)]
    charges = [_incoming_charge(fast, node, i, s) for i, s in zip(node.inputs, sources, strict=True)]

    moved = op.forward([torch.cat([s.center, m]) for s, m in zip(sources, middles, strict=True)])
    center, middle = _shaped(moved, node).tensor_split(2)
    absolute = graph.absolutes[node.id]
    spread, known = _summed(absolute, [torch.cat(parts) for parts in zip(radii, sizes, charges, strict=True)])
    radius, size, charge = _shaped(spread, node).tensor_split(3)
    if absolute.bias is not None:
        size = size + absolute.bias
    # Rounding of the centres themselves, and of the three products with |W|.
    charge, loss = _with_loss(op, charge, size)
    radius = (radius * (1 + 2 * gamma(op.terms)) + loss) * (1 + 4 * U64)
    # NaN comes from infinite ends, and says nothing.
    low, high = middle - radius, middle + radius
    bounds = Bounds(down(low).nan_to_num(-torch.inf, torch.inf, -torch.inf), up(high).nan_to_num(torch.inf, torch.inf, -torch.inf))
    if not known:
        bounds = bounds.meet(_one_sided(node, [s.bounds for s in sources], absolute))
    return _narrowed(NodeState(bounds, center.contiguous(), charge), node, sources, fast)


def _one_sided(node: Node, sources: list[Bounds], absolute: Affine) -> Bounds:
    """Bounds of an affine node some of whose inputs have no lower or no upper end: an end is found from the ends that it depends on.

    Only where every input enters with coefficients of one sign; elsewhere nothing is said.
    """
    op = node.op
    assert isinstance(op, Affine)
    directions = op.directions

    def end(sign: int) -> Tensor:
        # Ends that say far more than matters are moved to where sums of them do not overflow.
        ends = [
            b.lower.clamp(max=_ENOUGH) if sign * d > 0 else b.upper.clamp(min=-_ENOUGH) for b, d in zip(sources, directions, strict=True)
        ]
        size = _shaped(absolute.forward([e.abs().nan_to_num(0.0, 0.0, 0.0) for e in ends]), node)
        # Infinite ends make the sum infinite or no number.
        value = _shaped(op.forward(ends), node) - sign * (2 * gamma(op.terms + 2) * size + op.terms * UNDERFLOW)
        return (down(value) if sign > 0 else up(value)).nan_to_num(-sign * torch.inf, -sign * torch.inf, -sign * torch.inf)

    if 0 in directions:
        least = torch.full((len(sources[0].lower), *node.shape), -torch.inf, dtype=torch.float64, device=sources[0].lower.device)
        return Bounds(least, -least)
    return Bounds(end(1), end(-1))


def _narrowed(known: NodeState, node: Node, sources: list[NodeState], fast: Graph) -> NodeState:
    """The state with the charges for what the precisions of `fast` cannot hold.

    Those are coefficients that underflow, and multipliers of the inner precision at a front node.
    """
    charge = known.charge
    assert charge is not None and isinstance(node.op, Affine)
    if node.id in fast.lost:
        farthest = torch.stack([s.deviation.flatten(1).amax(1) for s in sources]).amax(0)
        charge = charge + (2 * node.op.terms * fast.lost[node.id] * farthest).reshape(-1, *[1] * len(node.shape))
    if fast.inner is not None and node.id in fast.front:
        charge = charge + UNIT_ROUNDOFF[fast.dtype] * known.reach
    return known if charge is known.charge else NodeState(known.bounds, known.center, charge)


def _incoming_charge(fast: Graph, node: Node, source: int, state: NodeState) -> Tensor:
    """What multipliers arriving at a source lose per unit: their own rounding (times the deviation) and the way on from there.

    They are formed in the precision of the node, and meet others there, before they are rounded to that of the source.
    """
    assert isinstance(node.op, Affine)
    dtype = fast.precision(node.id)
    per_unit = gamma(node.op.adjoint_terms, dtype) + len(fast.consumers[source]) * UNIT_ROUNDOFF[dtype]
    fresh = per_unit * state.reach
    return fresh if state.charge is None else fresh + (1 + 2 * per_unit) * state.charge


def _shaped(value: Tensor, node: Node) -> Tensor:
    return value if value.shape[1:] == node.shape else value.expand(value.shape[0], *node.shape)
