"""Bounds of every node of a network over boxes: interval propagation, CROWN and alpha-CROWN, all rigorous under rounding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from milpverify.propagation.state import Bounds

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from milpverify.balls.ball import Ball
    from milpverify.config import Deadline
    from milpverify.frontends.network import Network, Shapes
    from milpverify.graph import Graph
    from milpverify.propagation.state import State
    from milpverify.spec import Box

METHODS = ("ibp", "crown", "alpha-crown", "lp")


@dataclass(frozen=True, eq=False)
class NetworkBounds:
    """Bounds of every node of a graph over a batch of boxes.

    `bounds[node_id]` is a `Bounds` with `lower` and `upper` of shape (batch, *node.shape), float64; `output` is that of the
    network's output (batch, ny). They hold for real arithmetic on the stored weights, whatever the precision of computation.
    """

    graph: Graph
    method: str
    by_node: dict[int, Bounds]

    def __getitem__(self, node: int) -> Bounds:
        return self.by_node[node]

    def __iter__(self) -> Iterator[int]:
        return iter(self.by_node)

    def __len__(self) -> int:
        return len(self.by_node)

    @property
    def output(self) -> Bounds:
        """The bounds of the network's output, (batch, ny)."""
        return self.by_node[self.graph.output]


def bounds(
    network: Network,
    box: Box | Ball | Sequence[Box | tuple[Box, ...]],
    method: str = "crown",
    dtype: torch.dtype | None = None,
    device: str = "cpu",
    timeout: float | None = None,
    *,
    outputs: Sequence[str] | None = None,
    shape: Shapes | None = None,
) -> NetworkBounds:
    """Proved bounds of every node of a network over one or several boxes.

    Args:
        network: as for `Problem`: a torch network in evaluation mode, an ONNX network, or a graph, such as `load(...).graph`.
        box: the input box, or a ball, or a list of boxes as a batch; for a torch module shaped as its input without the batch axis. A tuple
            of boxes stands for one box where the network has several inputs: one for each.
        method: "ibp" (interval propagation), "crown" (arXiv 1811.00866, all intermediate bounds), "alpha-crown"
            (arXiv 2011.13824, slopes optimised for every undecided neuron) or "lp": the intermediate bounds of CROWN, and for the outputs
            the linear relaxation, solved by HiGHS, whose multipliers are checked (`linear_relaxation`).
        dtype: torch.float32 or torch.float64 (default) for the matrix products; the bounds are rigorous in either. CROWN in float32
            multiplies the two-sided passes in float64 behind the first nonlinear nodes, where rounding charges would be felt.
        device: "cpu" or "cuda".
        timeout: seconds after which "lp" solves no more: outputs keep the bounds of CROWN. None for no limit.
        outputs: the names of those that are kept, as for `load`.
        shape: of a torch module's input, as for `Problem`.

    Raises:
        InvalidProperty: a box has the wrong number of inputs.
        InvalidModel, UnsupportedOperator: the network cannot be read or traced, or an operation of it has no rule.
        ValueError: an unknown method.
    """
    import torch

    from milpverify.arithmetic.rounding import ieee
    from milpverify.balls.ball import Ball
    from milpverify.config import Deadline
    from milpverify.errors import InvalidInput, InvalidProperty
    from milpverify.frontends.network import fits, load_network
    from milpverify.frontends.problem import box_of, confined_to
    from milpverify.propagation.crown import bound_rows, crown
    from milpverify.propagation.interval import propagate
    from milpverify.propagation.optimised.alpha import alpha_crown
    from milpverify.propagation.request import BoundRequest
    from milpverify.spec import Box

    if method not in METHODS:
        raise InvalidInput(f"unknown bounding method {method!r}; there are {', '.join(METHODS)}")
    if not isinstance(box, Box | Ball | Sequence):
        raise InvalidInput(f"the inputs are an mv.Box, several of them, or an mv.Ball, not a {type(box).__name__}")
    whole = isinstance(box, Box | Ball) or (isinstance(box, tuple) and len(box) > 0)
    if not len(box if isinstance(box, Sequence) else [box]):
        raise InvalidProperty("there is no box to bound the network over")
    if not whole and any(isinstance(b, Ball) for b in cast("Sequence[object]", box)):
        raise InvalidProperty("several inputs are a batch of boxes; a ball is bounded by itself")
    boxes = [box_of(b) for b in cast("Sequence[Box]", [box] if whole else box)]
    graph = confined_to(load_network(network, boxes[0], shape, outputs).graph, box if isinstance(box, Ball) else boxes[0])
    for b in boxes:
        fits(graph, b)
    dtype = dtype or torch.float64
    graph = graph.to(torch.float64, device)
    lower = torch.stack([torch.tensor(b.lower) for b in boxes]).to(device)
    upper = torch.stack([torch.tensor(b.upper) for b in boxes]).to(device)
    with torch.no_grad(), ieee():
        if method == "ibp":
            state = propagate(graph, lower, upper, dtype)
            return NetworkBounds(graph, method, {i: s.bounds for i, s in state.items()})
        inner = torch.float64 if method in ("crown", "lp") else None
        state, table = crown(graph, lower, upper, dtype, BoundRequest(inner=inner))
        if method == "alpha-crown":
            state, table = alpha_crown(graph, state, dtype)
        by_node = {i: s.bounds for i, s in state.items()}
        unit = torch.eye(graph.ny, dtype=torch.float64, device=device)
        rows = torch.cat([unit, -unit]).expand(len(boxes), -1, -1)
        fast = graph.to(dtype, device, inner)
        if method == "alpha-crown":
            from milpverify.propagation.optimised.alpha import optimise

            found = optimise(fast, state, table, rows)[0].lower
        else:
            found = bound_rows(fast, state, table, rows).lower
        low, high = found[:, : graph.ny], -found[:, graph.ny :]
        by_node[graph.output] = by_node[graph.output].meet(Bounds(low, high))
        if method == "lp":
            deadline = Deadline(math.inf if timeout is None else timeout)
            by_node[graph.output] = by_node[graph.output].meet(_by_programs(graph, state, deadline))
    return NetworkBounds(graph, method, by_node)


def _by_programs(graph: Graph, state: State, deadline: Deadline) -> Bounds:
    """Bounds of the outputs from the linear relaxations over the boxes of a state; infinite for lack of time."""
    import torch

    from milpverify.linear_relaxation import output_bounds
    from milpverify.propagation.state import select
    from milpverify.solvers.process import SolverProcess

    own = graph.to(torch.float64, "cpu")
    with SolverProcess("highs") as process:
        alone = [select(state, torch.tensor([k], device=graph.device)) for k in range(len(state[0].center))]
        found = [output_bounds(own, one, process, deadline) for one in alone]
    low, high = (torch.stack([torch.from_numpy(t) for t in side]).to(graph.device) for side in zip(*found, strict=True))
    return Bounds(low, high)
