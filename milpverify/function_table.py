"""What is supported of every function of the catalogue, found out by trying: the content of `milpverify functions`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from milpverify.bounding import bounds
from milpverify.encode.milp import encode
from milpverify.encode.smt import smt_script
from milpverify.errors import InvalidModel, UnsupportedOperator
from milpverify.frontends.lowering.builder import Builder
from milpverify.functions.catalogue import catalogue
from milpverify.functions.terms import operators
from milpverify.graph import TensorSpec
from milpverify.spec import Box, Disjunct, Rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from milpverify.functions.catalogue import Function, Nonlinearity
    from milpverify.graph import Graph


@dataclass(frozen=True)
class Support:
    """One function: its `name` and parameters, its names in ONNX and torch, and what works on it.

    `branching` says at which points of its input a neuron may be split; `decided` is "exact" where a verdict needs no tolerance,
    "up to delta" where the function is curved, "closure" where it jumps: at the jump both one-sided values count.
    """

    name: str
    onnx: tuple[str, ...]
    torch: tuple[str, ...]
    bounds: bool
    branching: str
    milp: bool
    smt: bool
    decided: str


def support(function: Function) -> Support:
    """Try a function: bound, encode and script a network of one neuron."""
    graph, box = _neuron(function)
    disjunct = Disjunct(box, Rows.on_outputs([[1.0]], [0.0], 1), Rows.none(1, 1))
    found = bounds(graph, box, "crown").output
    ranges = bounds(graph, box, "ibp")
    state = [(ranges[i].lower[0], ranges[i].upper[0]) for i in range(len(graph.nodes))]
    entry, pieces = function.definition, function.pieces
    decided = "closure" if operators(entry.term) & {"sign", "floor", "round"} else "up to delta" if pieces is None else "exact"
    return Support(
        f"{entry.name}({', '.join(entry.limits)})" if entry.limits else entry.name,
        entry.onnx,
        entry.torch,
        bool((found.upper - found.lower).isfinite().all()),
        "its kinks" if pieces is not None else "any point",
        _works(lambda: encode(graph, state, disjunct)),
        _works(lambda: smt_script(graph, disjunct)),
        decided,
    )


def markdown() -> str:
    """The table of all functions, in Markdown."""
    rows = [support(_example(entry)) for entry in catalogue().values()]
    lines = ["| function | ONNX | torch | bounds | splits at | MILP | SMT | decided |", "|---|---|---|---|---|---|---|---|"]
    for row in rows:
        names = (", ".join(row.onnx) or "-", ", ".join(f"`{n.removeprefix('torch.')}`" for n in row.torch) or "-")
        cells = (f"`{row.name}`", *names, _yes(row.bounds), row.branching, _yes(row.milp), _yes(row.smt), row.decided)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _example(entry: Nonlinearity) -> Function:
    """The function with its default parameters, or with the nearest powers of two where only those make its pieces exact."""
    try:
        return entry.trial()
    except InvalidModel:
        return entry.bind(**{name: 2.0 ** round(math.log2(limit.trial)) for name, limit in entry.limits.items()})


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _works(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except UnsupportedOperator:
        return False
    return True


def _neuron(function: Function) -> tuple[Graph, Box]:
    """y = f(x) of one entry, over a box in the middle of the domain with more than one linear piece."""
    builder = Builder(1)
    node = builder.apply(function, builder.nodes[0])
    spec = (TensorSpec("x", (1,), "float64"),), (TensorSpec("y", (1,), "float64"),)
    graph = builder.graph([node], *spec)
    (_, start), (end, _) = function.domain if function.domain else ((-math.inf, -math.inf), (math.inf, math.inf))
    breaks = [p for p in (function.pieces.breakpoints if function.pieces else ()) if math.isfinite(p)]
    middle = breaks[0] if breaks else 1.0
    return graph, Box([max(middle - 0.5, start)], [min(middle + 0.5, end)])
