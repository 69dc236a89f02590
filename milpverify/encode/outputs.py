"""A network as a model of its own: inputs and outputs are variables in the network's units, and nothing is minimised.

Rows hold the inputs within the box, outside which nothing is known. What is in the model contains the network's graph over the box: it
is that graph where all nonlinear neurons are made of lines or left to the solver as they are, up to rounding that is moved outwards,
and encloses it within the proved lines elsewhere.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from milpverify.encode.encoding import Encoding, ModelForm
from milpverify.encode.model import NumericallyUnfit
from milpverify.encode.neurons import NetworkEncoder
from milpverify.operators import Nonlinear
from milpverify.solvers.base import Capability

if TYPE_CHECKING:
    from collections.abc import Callable

    from milpverify.encode.encoding import NodeRanges
    from milpverify.functions.terms import Term
    from milpverify.graph import Graph, Node
    from milpverify.solvers.model import Array, Index, Model
    from milpverify.spec import Box

    Takes = Callable[[Term, float, float], bool]
    """Whether a solver takes a function over a range as it is."""

FURTHEST: Final = 12
"""Beyond so many powers of two the network's own units are no coefficients: solvers drop small ones."""
SMALLEST: Final = 2.0**-40
LARGEST: Final = 2.0**44
"""The least unit of an input or output, and the largest one that solvers' numbers carry."""
LEAST: Final = 2.0**-13
"""A function's argument and result have units of so much of their size at least, for `FunctionTerm`s of smaller ones are refused."""


def encode_outputs(graph: Graph, bounds: NodeRanges, box: Box, form: ModelForm, takes: Takes | None = None) -> Encoding:
    """The model of a network over a box, whose `columns` are inputs (-1 where nothing depends on one) and whose `outputs` are y.

    Args:
        graph: in float64 on the CPU.
        bounds: of every node, proved over the box.
        form: how the network's neurons are held; `cuts` are those of curved neurons that the solver does not get as they are.
        takes: which functions are left to it, of those that `form.native` allows; all unless given.

    Raises:
        NumericallyUnfit: bounds are not finite, or numbers are beyond what a solver's tolerance carries.
    """
    return _OutputEncoder(graph, bounds, box, form, takes).encode(bounds[graph.output])


def is_left(node: Node, native: frozenset[Capability], takes: Takes | None, lower: tuple[Array, ...], upper: tuple[Array, ...]) -> bool:
    """Whether a curved node is left to a solver, whose neurons read what lies within some bounds, (R,) each."""
    op = node.op
    assert isinstance(op, Nonlinear)
    if op.bilinear:
        return Capability.QUADRATIC in native
    if Capability.FUNCTIONS not in native or op.term is None or op.staircase:
        return False
    term = op.term
    return takes is None or all(takes(term, low, high) for low, high in zip(lower[0].tolist(), upper[0].tolist(), strict=True))


class _OutputEncoder(NetworkEncoder):
    def __init__(self, graph: Graph, bounds: NodeRanges, box: Box, form: ModelForm, takes: Takes | None) -> None:
        super().__init__(graph, bounds, box, None, None, form)
        self._takes = takes

    def is_native(self, node: Node, lower: tuple[Array, ...], upper: tuple[Array, ...]) -> bool:
        return is_left(node, self.form.native, self._takes, lower, upper)

    def units(self, cut: int) -> tuple[float, bool]:
        known = self.graph.nonlinearities
        curved = [i for i in (cut, *self.graph.consumers[cut]) if i in known and not known[i].bilinear]
        if cut == 0 or not curved or Capability.FUNCTIONS not in self.form.native:
            return (SMALLEST if cut == 0 else 0.0), cut != 0
        return LEAST * max(1.0, *(float(np.abs(side[cut]).max()) for side in (self.lower, self.upper))), True

    @np.errstate(over="ignore", invalid="ignore")  # what overflows is refused as NumericallyUnfit
    def encode(self, ends: tuple[torch.Tensor, torch.Tensor]) -> Encoding:
        """The network, and a variable within its ends for every output."""
        forms = self.compose.units(self.graph.output, np.arange(self.graph.ny, dtype=np.int64))
        self.add_network()
        inputs = self.column[0]
        for i in np.flatnonzero(inputs >= 0).tolist():  # the bounds of variables may change
            self.builder.row([inputs[i]], [1.0], float(self.box.lower[i]), float(self.box.upper[i]))
        low, high = (t.detach().reshape(-1).numpy().astype(np.float64) for t in ends)
        outputs = self.builder.variables(np.minimum(low, high), np.maximum(low, high), least=SMALLEST, centred=False)
        lines = [line for form in forms for line in self.lines(form)]
        for column, line in zip(outputs.tolist(), lines, strict=True):
            self.equal(column, line)
        return self._in_own_units(self.builder.build({}), inputs, outputs)

    def _in_own_units(self, model: Model, inputs: Index, outputs: Index) -> Encoding:
        """The model with inputs and outputs in the network's units: as they are, or where these are far off, as further variables."""
        unit, inputs = self.builder.unit.copy(), inputs.copy()
        ends = np.concatenate([inputs[inputs >= 0], outputs])
        if (unit[ends] > LARGEST).any():
            raise NumericallyUnfit(f"an input or output is as large as {float(unit[ends].max()):.3g}")
        far = ends[np.abs(np.log2(unit[ends])) > FURTHEST]
        factor = np.ones(model.num_variables)
        near = np.setdiff1d(ends, far)
        factor[near] = 1.0 / unit[near]
        quadratic, n = model.quadratic, model.num_variables
        if quadratic is not None:
            quadratic = replace(quadratic, value=quadratic.value * factor[quadratic.first] * factor[quadratic.second])
        functions = tuple(
            replace(
                f,
                argument_scale=(f.argument_scale[0], f.argument_scale[1] * float(factor[f.argument])),
                result_scale=(f.result_scale[0], f.result_scale[1] * float(factor[f.result])),
            )
            for f in model.functions
        )
        # unit v = q, by factors that are their reciprocals
        root = np.exp2(np.round(0.5 * np.log2(unit[far])))
        links = np.stack([unit[far] / root, -1.0 / root], axis=1).reshape(-1)
        moved = np.arange(n)
        moved[far] = np.arange(n, n + len(far))
        free, none = np.zeros(len(far), dtype=bool), np.zeros(len(far))
        changed = replace(
            model,
            lower=np.concatenate([model.lower / factor, model.lower[far] * unit[far]]),
            upper=np.concatenate([model.upper / factor, model.upper[far] * unit[far]]),
            integer=np.concatenate([model.integer, free]),
            objective=np.zeros(n + len(far)),
            row_start=np.concatenate([model.row_start, model.row_start[-1] + 2 * np.arange(1, len(far) + 1)]),
            column=np.concatenate([model.column, np.stack([far, moved[far]], axis=1).reshape(-1)]),
            value=np.concatenate([model.value * factor[model.column], links]),
            row_lower=np.concatenate([model.row_lower, none]),
            row_upper=np.concatenate([model.row_upper, none]),
            quadratic=quadratic,
            functions=functions,
        )
        inputs[inputs >= 0] = moved[inputs[inputs >= 0]]
        return Encoding(
            changed,
            inputs,
            np.concatenate([self.builder.centre, none]),
            np.concatenate([unit * factor, none + 1.0]),
            self.box.lower,
            self.box.upper,
            self.unstable,
            tuple(self.neurons),
            self.arguments,
            outputs=moved[outputs],
        )
