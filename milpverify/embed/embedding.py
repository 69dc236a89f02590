"""A network within a user's model: its outputs, its error at a solution, and how it is tightened and removed."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from milpverify.bounding import bounds
from milpverify.embed.deviation import Deviation, EmbedTuning, deviation
from milpverify.embed.pieces import Parting
from milpverify.encode.encoding import ModelForm
from milpverify.encode.model import NumericallyUnfit
from milpverify.encode.outputs import encode_outputs, is_left
from milpverify.errors import InvalidInput, SolverUnavailable
from milpverify.solvers.base import Capability
from milpverify.solvers.expressions import takes
from milpverify.solvers.hosts.base import Added
from milpverify.solvers.model import Model
from milpverify.spec import Box

if TYPE_CHECKING:
    from collections.abc import Sequence

    from milpverify.embed.pieces import Cuts
    from milpverify.encode.encoding import Encoding, NodeRanges
    from milpverify.frontends.network import Loaded
    from milpverify.graph import Graph
    from milpverify.solvers.hosts.base import Host
    from milpverify.spec import Array


@dataclass(frozen=True)
class Choices:
    """How a network is embedded: `method` of `mv.bounds`, `encoding` as of `embed`, pieces per curved neuron, and the prefix of names."""

    method: str
    encoding: str
    pieces: int
    prefix: str
    tuning: EmbedTuning = field(default_factory=EmbedTuning)

    def attempts(self, host: Host, graph: Graph) -> list[frozenset[Capability]]:
        """What of a network's curved neurons is left to a solver, to be tried in this order."""
        curved = [op for op in graph.nonlinearities.values() if op.pieces is None]
        products = {Capability.QUADRATIC} if any(op.bilinear for op in curved) else set()
        functions = {Capability.FUNCTIONS} if any(op.term is not None and not op.bilinear for op in curved) else set()
        wanted = {"native": [products | functions], "pieces": [products, set()], "auto": [products | functions, products, set()]}
        return list(dict.fromkeys(frozenset(one) & host.capabilities for one in wanted[self.encoding]))


@dataclass(frozen=True, eq=False)
class _Written:
    """The network as it stands in the model."""

    encoding: Encoding
    native: frozenset[Capability]
    cuts: Cuts
    added: Added


@dataclass(eq=False)
class Embedding:
    """A network in a user's model; made by `mv.embed`.

    `outputs` are the model's own variables, in the order of the network's flattened output; `inputs` those that it reads, `box` their
    bounds, within which rows hold them.
    """

    host: Host
    loaded: Loaded
    choices: Choices
    inputs: list[Any]
    outputs: list[Any]
    box: Box
    scale: Array
    ranges: NodeRanges = field(repr=False)
    kept: list[Added] = field(repr=False)  # variables of inputs and outputs, and what could not go
    written: _Written | None = field(default=None, repr=False)
    sharpness: float = field(default=1.0, repr=False)

    @property
    def graph(self) -> Graph:
        """The network as it was read."""
        return self.loaded.graph

    @property
    def name(self) -> str:
        """What the names of all that was added begin with."""
        return self.choices.prefix

    def __repr__(self) -> str:
        state = "" if self.written is not None else ", removed"
        return f"Embedding({self.name}: {self.graph.nx} inputs, {self.graph.ny} outputs in a {self.host.name} model{state})"

    def error(self) -> Deviation:
        """How far the outputs at the model's solution are from the network at its inputs.

        Raises:
            InvalidInput: the model has no solution, or the embedding was removed.
        """
        self._alive()
        values = self.host.values([*self.inputs, *self.outputs])
        nx = len(self.inputs)
        return deviation(self.loaded, values[:nx], values[nx:], self.scale)

    def tighten(self, to: float = 1e-6) -> bool:
        """Make the model truer to the network around its solution; solve it again afterwards.

        Curved neurons in pieces get breakpoints on either side of what they read at the solution. What is exact but for the solver's
        tolerance has its rows multiplied, so that the tolerance means less. Where the variables' bounds are narrower than they were, the
        network is bounded anew. What the user added stays; the outputs are the same variables.

        Args:
            to: the error (`Deviation.largest`) that is wanted.

        Returns:
            Whether anything was changed: not if the error is no larger, or if there is nothing left to do.

        Raises:
            InvalidInput: the model has no solution, or the embedding was removed.
            SolverUnavailable: the solver's licence does not cover what would be added; the model is as before.
        """
        written = self._alive()
        if not to > 0:
            raise InvalidInput(f"the error to tighten to must be positive, not {to}")
        found = self.error()
        if found.largest <= to:
            return False
        columns = self._columns(written.encoding) | written.added.variables
        point = self.host.values([columns[j] for j in range(written.encoding.model.num_variables)])
        narrower = self._narrower()
        cuts = self._parting(written.native).more_cuts(written.cuts, written.encoding, written.encoding.quantities(point), found, to)
        if cuts == written.cuts and not narrower:
            if self.sharpness >= self.choices.tuning.sharpest:
                return False
            self.sharpness *= self.choices.tuning.sharper
        self.host.begin()
        if narrower:
            self._bound_anew()
        if not self.host.delete([written.added], retire=True):
            self.kept.append(Added({}, written.added.rows, list(written.added.variables.values())))
        self.written = None
        try:
            self.write([written.native], cuts)
        except (InvalidInput, SolverUnavailable):
            self.write([written.native], written.cuts)  # as it was
            raise
        return True

    def remove(self, *later: Any) -> None:
        """Take out of the model all that was added.

        Args:
            later: of a HiGHS model, variables and constraints (or collections of them) that were added after the network: HiGHS
                renumbers them, and their numbers are changed with it.

        Raises:
            InvalidInput: a constraint still reads the outputs, or HiGHS would renumber what was not handed in; nothing is changed.
        """
        written = self._alive()
        self.host.begin()
        parts = [written.added, *self.kept]
        user = self.host.users([v for part in self.kept for v in part.variables.values()], parts)
        if user is not None:
            raise InvalidInput(f"the constraint {user} still reads outputs of {self.name}: remove it (or what it belongs to) first")
        self.host.delete(parts, later)
        self.written = None

    def write(self, attempts: Sequence[frozenset[Capability]], cuts: Cuts | None = None) -> None:
        """Add the network's neurons and rows, in the first of some forms that the solver takes.

        Raises:
            InvalidInput: the network's numbers are beyond what solvers' tolerances carry.
            SolverUnavailable: the solver, or its licence, takes none of the forms.
        """
        refusal: Exception | None = None
        for native in attempts:
            try:
                parted = self._parting(native).first_cuts(self.choices.pieces) if cuts is None else cuts
                encoding = encode_outputs(self.graph, self.ranges, self.box, ModelForm(parted, native), self._takes)
                added = self.host.add(encoding.model.sharpened(self.sharpness), self._columns(encoding), self._named)
            except (NumericallyUnfit, SolverUnavailable) as error:
                refusal = error
                continue
            self.written = _Written(encoding, native, parted, added)
            return
        if isinstance(refusal, NumericallyUnfit):
            raise InvalidInput(f"the network cannot be embedded over these bounds of its inputs: {refusal}") from refusal
        assert refusal is not None
        raise refusal

    def add_outputs(self) -> None:
        """Add the outputs' variables, within their proved bounds."""
        low, high = self._ends()
        empty, none = np.zeros(0), np.zeros(0, dtype=np.int64)
        model = Model(low, high, np.zeros(len(low), dtype=bool), np.zeros(1, dtype=np.int64), none, empty, empty, empty, np.zeros(len(low)))
        added = self.host.add(model, {}, lambda _, k: f"{self.name}_y{k}")
        self.kept.append(added)
        self.outputs[:] = [added.variables[k] for k in range(len(low))]

    def _ends(self) -> tuple[Array, Array]:
        low, high = (side.reshape(-1).numpy().astype(np.float64) for side in self.ranges[self.graph.output])
        return np.minimum(low, high), np.maximum(low, high)

    def _alive(self) -> _Written:
        if self.written is None:
            raise InvalidInput(f"{self.name} was removed from the model: embed the network again")
        if self.outputs and self.host.label(self.outputs[-1]) != f"{self.name}_y{len(self.outputs) - 1}":
            raise InvalidInput(f"variables of {self.name}, or some before them, were deleted from the {self.host.name} model")
        return self.written

    @functools.cached_property
    def _takes(self) -> Any:
        return functools.partial(takes, self.host.functions)

    def _parting(self, native: frozenset[Capability]) -> Parting:
        """What parts the neurons that the solver does not get as they are."""
        return Parting(self.graph, self.ranges, functools.partial(self._left, native), self.choices.tuning)

    def _left(self, native: frozenset[Capability], node: Any, lower: tuple[Array, ...], upper: tuple[Array, ...]) -> bool:
        return is_left(node, native, self._takes, lower, upper)

    def _columns(self, encoding: Encoding) -> dict[int, Any]:
        """The variables that are there before the neurons are, by their columns."""
        given = {int(j): v for j, v in zip(encoding.columns, self.inputs, strict=True) if j >= 0}
        return given | dict(zip(encoding.outputs.tolist(), self.outputs, strict=True))

    def _named(self, kind: str, number: int) -> str:
        return f"{self.name}_{kind}{number}"

    def _narrower(self) -> bool:
        """Meet the box with the variables' bounds; whether that changes it."""
        low, high = self.host.ranges(self.inputs)
        lower, upper = np.maximum(low, self.box.lower), np.minimum(high, self.box.upper)
        if not (lower <= upper).all() or ((lower == self.box.lower).all() and (upper == self.box.upper).all()):
            return False
        self.box = Box(lower, upper)
        return True

    def _bound_anew(self) -> None:
        """Bounds over the new box; those of the outputs' variables are met with them."""
        self.ranges = node_ranges(self.graph, self.box, self.choices.method)
        ends = self._ends()
        for variable, low, high, a, b in zip(self.outputs, *self.host.ranges(self.outputs), *ends, strict=True):
            if max(low, a) <= min(high, b):
                self.host.restrict(variable, float(max(low, a)), float(min(high, b)))


def node_ranges(graph: Graph, box: Box, method: str) -> NodeRanges:
    """Proved bounds of every node over a box."""
    found = bounds(graph, box, method)
    return [(found[i].lower[0], found[i].upper[0]) for i in range(len(graph.nodes))]
