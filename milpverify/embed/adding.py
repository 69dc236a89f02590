"""embed(): a network added to a user's model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from milpverify.embed.deviation import EmbedTuning, sizes
from milpverify.embed.embedding import Choices, Embedding, node_ranges
from milpverify.embed.inputs import box_of, read, variables_of
from milpverify.errors import InvalidInput, InvalidModel
from milpverify.frontends.network import load_network
from milpverify.graph import Graph
from milpverify.solvers.registry import host_of
from milpverify.spec import Box

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike

    from milpverify.frontends.network import Loaded, Network
    from milpverify.solvers.hosts.base import Host

METHODS = ("ibp", "crown", "alpha-crown")
ENCODINGS = ("auto", "native", "pieces")


def embed(
    model: Any,
    net: Network,
    inputs: Any,
    lower: ArrayLike | None = None,
    upper: ArrayLike | None = None,
    *,
    bounds: str = "crown",
    encoding: str = "auto",
    pieces: int = 4,
    name: str | None = None,
    shape: Sequence[int] | None = None,
    outputs: Sequence[str] | None = None,
    tuning: EmbedTuning = EmbedTuning(),
) -> Embedding:
    """Add a network to an optimisation model of the user's own; returns its outputs, as variables of the model.

    The network's neurons are bounded over the bounds that the inputs have in the model, by CROWN unless another method is asked for, which
    makes the big-M rows of ReLUs tight (Tjeng et al., arXiv 1711.07356) and takes binaries away. What is added contains the network's
    graph over these bounds, up to the solver's own tolerances, and is that graph where the network is made of lines. Rows keep the inputs
    within them. The parameters of the model's solver are never changed.

    Args:
        model: a `pyscipopt.Model`, a `gurobipy.Model` or a `highspy.Highs`. A SCIP model that was solved is freed of it (`freeTransform`).
        net: a torch module in evaluation mode, the path of an ONNX file, or a graph.
        inputs: one variable of the model per input of the network, linear expressions of such, or numbers: a list or an array of any shape
            (flattened), an MVar, or a mapping's values. Integer variables may be among them.
        lower, upper: bounds of the inputs, met with those that the variables have; flat, or numbers for all.
        bounds: "ibp", "crown" or "alpha-crown": how neurons are bounded (`mv.bounds`).
        encoding: how smooth functions and products are held: "native", as the solver's own expressions (SCIP, Gurobi), "pieces",
            enclosures within proved lines on pieces, chosen by binaries, which `Embedding.tighten` refines (products stay with solvers that
            take them), or "auto": native where the solver takes a function, in pieces where not, as always with HiGHS.
        pieces: so many per neuron to begin with, where it is in pieces.
        name: what the names of variables and constraints begin with: "net", "net2", ... unless given.
        shape: of a torch module's input, with its batch axis, where the inputs' shape does not tell.
        outputs: of an ONNX file, the names of those that are added, as for `load`.
        tuning: numbers other than the defaults.

    Raises:
        InvalidInput: an input is unbounded, not the model's own, or one too many; bounds cross; an option is unknown; the name is taken.
        InvalidModel, UnsupportedOperator: the network cannot be read or traced, or an operation of it has no rule.
        SolverUnavailable: the solver does not take the network, or its licence not the model with it; the model is as before.
    """
    if bounds not in METHODS:
        raise InvalidInput(f"there are no bounds {bounds!r}: choose one of {', '.join(METHODS)}")
    if encoding not in ENCODINGS:
        raise InvalidInput(f"there is no encoding {encoding!r}: choose one of {', '.join(ENCODINGS)}")
    if isinstance(pieces, bool) or not isinstance(pieces, (int, np.integer)) or pieces < 1:
        raise InvalidInput(f"the pieces per neuron must be a whole number of at least 1, not {pieces!r}")
    host = host_of(model)
    given = read(host, inputs)
    box = box_of(host, given, lower, upper)
    if isinstance(net, Graph) and net.nx != box.size:
        raise InvalidInput(f"{box.size} inputs were given, but the network takes {net.nx}")
    loaded = _loaded(net, box, given.shape, shape, outputs)
    graph = loaded.graph
    if graph.nx != box.size:
        raise InvalidInput(f"{box.size} inputs were given, but the network takes {graph.nx}")
    choices = Choices(bounds, encoding, int(pieces), _prefix(host, name), tuning)
    ranges = node_ranges(graph, box, bounds)
    host.begin()
    variables, added = variables_of(host, given, box, lambda _, i: f"{choices.prefix}_x{i}")
    made = Embedding(host, loaded, choices, variables, [], box, sizes(graph, box, tuning.samples), ranges, [added])
    try:
        made.add_outputs()
        made.write(choices.attempts(host, graph))
    except BaseException:
        host.delete(made.kept)
        raise
    return made


def _loaded(net: Network, box: Box, given: tuple[int, ...], shape: Sequence[int] | None, outputs: Sequence[str] | None) -> Loaded:
    """The network on inputs of the shape in which they were given, or where it refuses that, of a flat one."""
    if shape is not None or len(given) < 2:
        return load_network(net, box, shape, outputs)
    try:
        return load_network(net, Box(box.lower.reshape(given), box.upper.reshape(given)), None, outputs)
    except InvalidModel:
        try:
            return load_network(net, box, None, outputs)
        except InvalidModel:
            pass
        raise


def _prefix(host: Host, name: str | None) -> str:
    """A prefix that no variable's name begins with."""
    names = host.names()
    taken = {label.rsplit("_", 1)[0] for label in names if "_" in label}
    if name is None:
        return next(prefix for k in range(1, len(taken) + 2) if (prefix := "net" if k == 1 else f"net{k}") not in taken)
    if not isinstance(name, str) or not name or any(c.isspace() for c in name):
        raise InvalidInput(f"a name is a text without spaces, not {name!r}")
    if name in taken:
        raise InvalidInput(f"the name {name!r} is taken: names of the model's variables begin with it")
    return name
