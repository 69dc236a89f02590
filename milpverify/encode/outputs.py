"""A network as a model of its own: inputs and outputs are variables in the network's units, and nothing is minimised.

Rows hold the inputs within the box, outside which nothing is known. What is in the model contains the network's graph over the box: it
is that graph where all nonlinear neurons are made of lines or left to the solver as they are, up to rounding that is moved outwards,
and encloses it within the proved lines elsewhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from milpverify.encode.encoding import Encoding
from milpverify.encode.neurons import NetworkEncoder
from milpverify.operators import Elementwise
from milpverify.relaxations.registry import rule_of
from milpverify.solvers.base import Capability

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from milpverify.encode.curves import Cuts
    from milpverify.encode.encoding import NodeRanges
    from milpverify.functions.terms import Term
    from milpverify.graph import Graph, Node
    from milpverify.solvers.model import Array
    from milpverify.spec import Box

    Takes = Callable[[Term, float, float], bool]
    """Whether a solver takes a function over a range as it is."""

LEAST = 2.0**-13
"""A function's argument and result have units of so much of their size at least, for `FunctionTerm`s of smaller ones are refused."""


def encode_outputs(
    graph: Graph, bounds: NodeRanges, box: Box, cuts: Cuts, native: frozenset[Capability] = frozenset(), takes: Takes | None = None
) -> Encoding:
    """The model of a network over a box, whose `columns` are inputs (-1 where nothing depends on one) and whose `outputs` are y.

    Args:
        graph: in float64 on the CPU.
        bounds: of every node, proved over the box.
        cuts: where curved neurons that the solver does not get as they are have their breakpoints.
        native: what is left to the solver: QUADRATIC products and squares, FUNCTIONS smooth functions.
        takes: which functions; all unless given.

    Raises:
        NumericallyUnfit: bounds are not finite, or numbers are beyond what a solver's tolerance carries.
    """
    return _OutputEncoder(graph, bounds, box, cuts, native, takes).encode(bounds[graph.output])


def is_left(node: Node, native: frozenset[Capability], takes: Takes | None, lower: tuple[Array, ...], upper: tuple[Array, ...]) -> bool:
    """Whether a curved node is left to a solver, whose neurons read what lies within some bounds, (R,) each."""
    if rule_of(node.op).bilinear:
        return Capability.QUADRATIC in native
    if Capability.FUNCTIONS not in native or not isinstance(node.op, Elementwise) or node.op.function.staircase:
        return False
    term = node.op.function.term
    return takes is None or all(takes(term, low, high) for low, high in zip(lower[0].tolist(), upper[0].tolist(), strict=True))


class _OutputEncoder(NetworkEncoder):
    def __init__(self, graph: Graph, bounds: NodeRanges, box: Box, cuts: Cuts, native: frozenset[Capability], takes: Takes | None) -> None:
        super().__init__(graph, bounds, box, None, None, cuts, native)
        self._takes = takes
        self._least = self._units_of_functions(bounds) if Capability.FUNCTIONS in native else {}

    def is_native(self, node: Node, lower: tuple[Array, ...], upper: tuple[Array, ...]) -> bool:
        return is_left(node, self.native, self._takes, lower, upper)

    def units(self, cut: int) -> tuple[float, bool]:
        return self._least.get(cut, 0.0), cut == 0

    def _units_of_functions(self, bounds: NodeRanges) -> Mapping[int, float]:
        """The least units of what smooth functions read and return."""
        curved = [self.graph.nodes[i] for i in self.graph.nonlinear if not rule_of(self.graph.nodes[i].op).bilinear]
        used = {i for node in curved for i in (node.id, *node.inputs)}
        return {i: LEAST * max(1.0, *(float(side.abs().max()) for side in bounds[i])) for i in used}

    @np.errstate(over="ignore", invalid="ignore")  # what overflows is refused as NumericallyUnfit
    def encode(self, ends: tuple[torch.Tensor, torch.Tensor]) -> Encoding:
        """The network, and a variable within its ends for every output."""
        forms = self.compose.units(self.graph.output, np.arange(self.graph.ny, dtype=np.int64))
        self.add_network()
        inputs = self.column[0]
        for i in np.flatnonzero(inputs >= 0).tolist():  # the bounds of variables may change
            self.builder.row([inputs[i]], [1.0], float(self.box.lower[i]), float(self.box.upper[i]))
        low, high = (t.detach().reshape(-1).numpy().astype(np.float64) for t in ends)
        outputs = self.builder.variables(np.minimum(low, high), np.maximum(low, high), plain=True)
        lines = [line for form in forms for line in self.lines(form)]
        for column, line in zip(outputs.tolist(), lines, strict=True):
            self.equal(column, line)
        return Encoding(
            self.builder.build({}),
            inputs,
            self.builder.centre.copy(),
            self.builder.unit.copy(),
            self.box.lower,
            self.box.upper,
            self.unstable,
            tuple(self.neurons),
            self.arguments,
            outputs=outputs,
        )
