"""Problems stated in Python: a network, a box, and what must not happen in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from milpverify import spec
from milpverify.errors import InvalidInput, InvalidProperty
from milpverify.frontends.network import load_network
from milpverify.frontends.vnnlib.reader import parse_vnnlib
from milpverify.spec import Box, Disjunct, Rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from milpverify.frontends.network import Network

Unsafe = Rows | Sequence[Rows] | str


@dataclass(frozen=True, eq=False, init=False)
class Problem(spec.Problem):
    """A network, a box, and the unsafe set: VERIFIED means that no input of the box has an unsafe output.

    `Problem(net, Box(lower, upper), unsafe=...)`, or `Problem(graph, disjuncts)` for disjuncts that are there already.

    Args:
        graph: a torch module in evaluation mode, the path of an ONNX file, or a graph.
        disjuncts: the input box; bounds shaped as the module's input without its batch axis (or flat where that is flat).
        unsafe: what must not happen: `Rows` (all of its inequalities hold), a sequence of `Rows` (those of one of them do), or a
            VNN-LIB term over X_i and Y_j, such as "(or (<= Y_0 Y_1) (<= Y_0 Y_2))".
        shape: of a torch module's input, with its batch axis, where the box does not tell.

    Raises:
        InvalidModel: the network cannot be read or traced, or is in training mode, or differs from what it was lowered to.
        UnsupportedOperator: an operation of the network has no rule.
        InvalidProperty: the unsafe set is about other inputs and outputs than the network's.
    """

    def __init__(
        self,
        graph: Network,
        disjuncts: Box | Sequence[Disjunct],
        runtime: object | None = None,
        files: tuple[str, ...] = (),
        *,
        unsafe: Unsafe | None = None,
        shape: Sequence[int] | None = None,
    ) -> None:
        from milpverify.graph import Graph

        if isinstance(disjuncts, Box):
            if unsafe is None:
                raise InvalidInput("a problem on a box needs the unsafe set: unsafe=Rows(...), several of them, or a VNN-LIB term")
            loaded = load_network(graph, disjuncts, shape)
            graph, runtime, files = loaded.graph, runtime or loaded.runtime, (*files, *loaded.files)
            disjuncts = _disjuncts(unsafe, disjuncts, graph.nx, graph.ny)
        elif not isinstance(graph, Graph) or unsafe is not None:
            raise InvalidInput("a problem is a network with a Box and unsafe=..., or a Graph with disjuncts")
        super().__init__(graph, tuple(disjuncts), runtime, files)


def robustness(
    net: Network,
    x0: Any,
    label: int,
    eps: float | NDArray[np.float64],
    *,
    clip: tuple[float, float] | None = None,
    shape: Sequence[int] | None = None,
) -> Problem:
    """Whether every input within eps of x0, entry by entry, gets the same label: unsafe is that another output is as large.

    Args:
        net: a torch module in evaluation mode, the path of an ONNX file, or a graph; its outputs are one score per label.
        x0: the input, shaped as the module's without its batch axis; an array or a tensor.
        label: the number of the output that must stay the largest.
        eps: the radius, >= 0, or one per entry.
        clip: the ends of the range that inputs have anyway, such as (0, 1) for pixels.
        shape: of a torch module's input, with its batch axis, where x0 does not tell.

    Raises:
        InvalidInput: eps is negative or no number, or there is no such label.
        InvalidModel, UnsupportedOperator: as `Problem`.
    """
    centre, radius = array(x0), np.asarray(array(eps))
    if not (np.isfinite(radius) & (radius >= 0)).all():
        raise InvalidInput(f"eps must be a number >= 0, not {eps}")
    lower, upper = centre - radius, centre + radius
    if clip is not None:
        lower, upper = (np.clip(side, *clip) for side in (lower, upper))
    box = Box(lower, upper)
    loaded = load_network(net, box, shape)
    ny = loaded.graph.ny
    if ny < 2:
        raise InvalidInput("the network has one output, hence no labels to tell apart; state the problem by Problem(net, box, unsafe=...)")
    if not (isinstance(label, (int, np.integer)) and 0 <= label < ny):
        raise InvalidInput(f"there is no label {label!r}: the network has the outputs 0 to {ny - 1}")
    rows = np.delete(np.eye(ny)[label] - np.eye(ny), label, axis=0)
    unsafe = [Rows.on_outputs(row, 0.0, loaded.graph.nx) for row in rows]
    return Problem(loaded.graph, _disjuncts(unsafe, box, loaded.graph.nx, ny), loaded.runtime, loaded.files)


def array(values: Any) -> NDArray[np.float64]:
    """Numbers as a float64 array; a torch tensor may require gradients and lie on any device."""
    detach = getattr(values, "detach", None)
    return np.asarray(values if detach is None else detach().cpu().double().numpy(), dtype=np.float64)


def _disjuncts(unsafe: Unsafe, box: Box, nx: int, ny: int) -> tuple[Disjunct, ...]:
    if box.size != nx:
        raise InvalidProperty(f"the box has {box.size} inputs, the network {nx}")
    if isinstance(unsafe, str):
        lines = [f"(declare-const X_{i} Real)" for i in range(nx)] + [f"(declare-const Y_{i} Real)" for i in range(ny)]
        for i, (low, high) in enumerate(zip(box.lower.tolist(), box.upper.tolist(), strict=True)):
            lines.append(f"(assert (and (>= X_{i} {low!r}) (<= X_{i} {high!r})))")
        return parse_vnnlib("\n".join([*lines, f"(assert {unsafe})"]), nx, ny, "unsafe")
    return tuple(_disjunct(rows, box, nx, ny) for rows in ([unsafe] if isinstance(unsafe, Rows) else unsafe))


def _disjunct(rows: Rows, box: Box, nx: int, ny: int) -> Disjunct:
    """Inequalities on inputs alone restrict the input set; the others are the unsafe set."""
    if rows.x_rows.shape[1] != nx or rows.y_rows.shape[1] != ny:
        raise InvalidProperty(
            f"the unsafe set is about {rows.x_rows.shape[1]} inputs and {rows.y_rows.shape[1]} outputs; the network has {nx} and {ny}"
        )
    on_inputs = ~rows.y_rows.any(axis=1) & rows.mentions_x
    if not on_inputs.any():
        return Disjunct(box, rows, Rows.none(nx, ny))
    return Disjunct(box, _part(rows, ~on_inputs), _part(rows, on_inputs))


def _part(rows: Rows, kept: NDArray[np.bool_]) -> Rows:
    return Rows(rows.x_rows[kept], rows.y_rows[kept], rows.rhs[kept], rows.strict[kept])
