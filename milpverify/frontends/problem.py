"""Problems stated in Python: a network, a box or a ball, and what must not happen in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from milpverify import spec
from milpverify.balls.ball import Ball
from milpverify.balls.norm import Norm
from milpverify.errors import InvalidInput, InvalidProperty
from milpverify.frontends.network import load_network
from milpverify.frontends.vnnlib.reader import parse_vnnlib
from milpverify.spec import Box, Disjunct, Rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from milpverify.frontends.network import Network
    from milpverify.graph import Graph

Unsafe = Rows | Sequence[Rows] | str


@dataclass(frozen=True, eq=False, init=False)
class Problem(spec.Problem):
    """A network, a box or a ball, and the unsafe set: VERIFIED means that no input in it has an unsafe output.

    `Problem(net, Box(lower, upper), unsafe=...)`, `Problem(net, Ball(centre, radius, "l2"), unsafe=...)`, or `Problem(graph, disjuncts)`
    for disjuncts that are there already.

    Args:
        graph: a torch module in evaluation mode, the path of an ONNX file, or a graph.
        disjuncts: the input box, or a ball; bounds shaped as the module's input without its batch axis (or flat where that is flat).
        unsafe: what must not happen: `Rows` (all of its inequalities hold), a sequence of `Rows` (those of one of them do), or a
            VNN-LIB term over X_i and Y_j, such as "(or (<= Y_0 Y_1) (<= Y_0 Y_2))".
        shape: of a torch module's input, with its batch axis, where the box does not tell.
        outputs: of an ONNX file, the names of those that Y_0, Y_1, ... number, as for `load`.
        notes: what to say of how the problem was read.

    Raises:
        InvalidModel: the network cannot be read or traced, or is in training mode, or differs from what it was lowered to.
        UnsupportedOperator: an operation of the network has no rule.
        InvalidProperty: the unsafe set is about other inputs and outputs than the network's.
    """

    def __init__(
        self,
        graph: Network,
        disjuncts: Box | Ball | Sequence[Disjunct],
        runtime: object | None = None,
        files: Mapping[str, str] | None = None,
        *,
        unsafe: Unsafe | None = None,
        shape: Sequence[int] | None = None,
        outputs: Sequence[str] | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        from milpverify.graph import Graph

        if isinstance(disjuncts, Box | Ball):
            if unsafe is None:
                raise InvalidInput("a problem on a box or ball needs the unsafe set: unsafe=Rows(...), several of them, or a VNN-LIB term")
            box = box_of(disjuncts)
            loaded = load_network(graph, box, shape, outputs)
            graph, runtime, notes = confined_to(loaded.graph, disjuncts), runtime or loaded.runtime, (*notes, *loaded.notes)
            files = {**(files or {}), **loaded.files}
            disjuncts = _disjuncts(unsafe, box, graph.nx, graph.ny)
        elif not isinstance(graph, Graph) or unsafe is not None or outputs is not None:
            raise InvalidInput("a problem is a network with a Box or a Ball and unsafe=..., or a Graph with disjuncts")
        super().__init__(graph, tuple(disjuncts), runtime, files or {}, notes=tuple(notes))


def robustness(
    net: Network,
    x0: Any,
    label: int,
    eps: float | NDArray[np.float64],
    *,
    clip: tuple[float, float] | None = None,
    norm: str | Norm = Norm.LINF,
    shape: Sequence[int] | None = None,
    outputs: Sequence[str] | None = None,
) -> Problem:
    """Whether every input within eps of x0 gets the same label: unsafe is that another output is as large.

    Args:
        net: a torch module in evaluation mode, the path of an ONNX file, or a graph; its outputs are one score per label.
        x0: the input, shaped as the module's without its batch axis; an array or a tensor.
        label: the number of the output that must stay the largest.
        eps: the radius, >= 0; of "linf" also one per entry.
        clip: the ends of the range that inputs have anyway, such as (0, 1) for pixels.
        norm: "linf", so that no entry changes by more than eps, "l1" or "l2".
        shape: of a torch module's input, with its batch axis, where x0 does not tell.
        outputs: of an ONNX file, the names of those that hold the scores, as for `load`.

    Raises:
        InvalidInput: eps is negative or no number, or there is no such label.
        InvalidModel, UnsupportedOperator: as `Problem`.
    """
    centre, radius = array(x0), np.asarray(array(eps))
    if not (np.isfinite(radius) & (radius >= 0)).all():
        raise InvalidInput(f"eps must be a number >= 0, not {eps}")
    if clip is not None and np.shape(clip) != (2,):
        raise InvalidInput(f"clip is the two ends of the range that inputs have, such as (0, 1), not {clip!r}")
    inputs: Box | Ball
    if Norm.of(norm) is Norm.LINF:
        lower, upper = centre - radius, centre + radius
        if clip is not None:
            lower, upper = (np.clip(side, *clip) for side in (lower, upper))
        inputs = Box(lower, upper)
    else:
        if radius.size != 1:
            raise InvalidInput(f"the norm {Norm.of(norm).value} takes one radius eps; for weights by entry use mv.Ball")
        inputs = Ball(centre, float(radius.reshape(())), norm, *(clip or (-np.inf, np.inf)))
    box = box_of(inputs)
    loaded = load_network(net, box, shape, outputs)
    graph, ny = confined_to(loaded.graph, inputs), loaded.graph.ny
    if ny < 2:
        raise InvalidInput("the network has one output, hence no labels to tell apart; state the problem by Problem(net, box, unsafe=...)")
    if not (isinstance(label, (int, np.integer)) and 0 <= label < ny):
        raise InvalidInput(f"there is no label {label!r}: the network has the outputs 0 to {ny - 1}")
    rows = np.delete(np.eye(ny)[label] - np.eye(ny), label, axis=0)
    unsafe = [Rows.on_outputs(row, 0.0, loaded.graph.nx) for row in rows]
    return Problem(graph, _disjuncts(unsafe, box, graph.nx, ny), loaded.runtime, loaded.files, notes=loaded.notes)


def box_of(inputs: Box | Ball) -> Box:
    """The box itself, or the smallest one that is sure to contain the ball."""
    return inputs if isinstance(inputs, Box) else Box(*(end.reshape(inputs.shape) for end in inputs.ends))


def confined_to(graph: Graph, inputs: Box | Ball) -> Graph:
    """The network with its inputs confined to the ball, and to no other; a box says all itself, and so does a ball of the maximum norm.

    Raises:
        InvalidProperty: the ball has another number of inputs.
    """
    if isinstance(inputs, Box) or inputs.norm is Norm.LINF:
        return graph if graph.ball is None else graph.confined(None)
    if inputs.size != graph.nx:
        raise InvalidProperty(f"the ball has {inputs.size} inputs, the network {graph.nx}")
    return graph.confined(inputs)


def array(values: Any) -> NDArray[np.float64]:
    """Numbers as a float64 array; a torch tensor may require gradients and lie on any device."""
    detach = getattr(values, "detach", None)
    try:
        return np.asarray(values if detach is None else detach().cpu().double().numpy(), dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"numbers, an array or a tensor of them are needed: {error}") from error


def _disjuncts(unsafe: Unsafe, box: Box, nx: int, ny: int) -> tuple[Disjunct, ...]:
    if box.size != nx:
        raise InvalidProperty(f"the box has {box.size} inputs, the network {nx}")
    if isinstance(unsafe, str):
        lines = [f"(declare-const X_{i} Real)" for i in range(nx)] + [f"(declare-const Y_{i} Real)" for i in range(ny)]
        for i, (low, high) in enumerate(zip(box.lower.tolist(), box.upper.tolist(), strict=True)):
            lines.append(f"(assert (and (>= X_{i} {low!r}) (<= X_{i} {high!r})))")
        return parse_vnnlib("\n".join([*lines, f"(assert {unsafe})"]), nx, ny, "unsafe")
    found: list[Disjunct] = []
    for rows in [unsafe] if isinstance(unsafe, Rows) or not isinstance(unsafe, Sequence) else unsafe:
        if not isinstance(rows, Rows):
            raise InvalidInput(f"the unsafe set is a VNN-LIB term, mv.Rows or a sequence of mv.Rows; {rows!r} is a {type(rows).__name__}")
        found.append(_disjunct(rows, box, nx, ny))
    return tuple(found)


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
