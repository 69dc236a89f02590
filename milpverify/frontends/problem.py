"""Problems stated in Python: a network, a box or a ball, and what must not happen in it."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, SupportsIndex, cast

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

    from milpverify.frontends.network import Network, Shapes
    from milpverify.graph import Graph

    Inputs = Box | Ball | Sequence[Box]
    """A box, a box for each of several inputs, or a ball."""

Unsafe = Rows | Sequence[Rows] | str


@dataclass(frozen=True, eq=False, init=False)
class Problem(spec.Problem):
    """A network, a box or a ball, and the unsafe set: VERIFIED means that no input in it has an unsafe output.

    `Problem(net, Box(lower, upper), unsafe=...)`, `Problem(net, Ball(centre, radius, "l2"), unsafe=...)`, or `Problem(graph, disjuncts)`
    for disjuncts that are there already.

    Args:
        graph: a torch network in evaluation mode (a module, one of TorchScript, or an exported program), an ONNX network (the path of its
            file, its bytes, or a `ModelProto`), or a graph.
        disjuncts: the input box, or a ball; bounds shaped as the module's input without its batch axis (or flat where that is flat). A
            tuple of boxes where the network has several inputs: one for each, in their order.
        unsafe: what must not happen: `Rows` (all of its inequalities hold), a sequence of `Rows` (those of one of them do), or a
            VNN-LIB term over X_i and Y_j, such as "(or (<= Y_0 Y_1) (<= Y_0 Y_2))".
        shape: of a torch module's input, with its batch axis, where the box does not tell; of several inputs their shapes.
        outputs: the names of those that Y_0, Y_1, ... number, as for `load`; a torch module's are the keys and fields of what it returns.
        notes: what to say of how the problem was read.

    Raises:
        InvalidInput: there is no unsafe set, or what is handed in is no network, box, ball or output.
        InvalidModel: the network cannot be read or traced, or is in training mode, or differs from what it was lowered to.
        UnsupportedOperator: an operation of the network has no rule.
        InvalidProperty: the unsafe set is about other inputs and outputs than the network's.
    """

    def __init__(
        self,
        graph: Network,
        disjuncts: Box | Ball | Sequence[Box] | Sequence[Disjunct],
        runtime: object | None = None,
        files: Mapping[str, str] | None = None,
        *,
        unsafe: Unsafe | None = None,
        shape: Shapes | None = None,
        outputs: Sequence[str] | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        from milpverify.graph import Graph

        if isinstance(disjuncts, Box | Ball) or (isinstance(disjuncts, tuple | list) and disjuncts and isinstance(disjuncts[0], Box)):
            if unsafe is None:
                raise InvalidInput("a problem on a box or ball needs the unsafe set: unsafe=Rows(...), several of them, or a VNN-LIB term")
            box = box_of(cast("Inputs", disjuncts))
            loaded = load_network(graph, box, shape, outputs)
            graph, runtime, notes = confined_to(loaded.graph, cast("Inputs", disjuncts)), runtime or loaded.runtime, (*notes, *loaded.notes)
            files = {**(files or {}), **loaded.files}
            disjuncts = _disjuncts(unsafe, box, graph.nx, graph.ny)
        elif not isinstance(graph, Graph) or unsafe is not None or outputs is not None:
            raise InvalidInput("a problem is a network with a Box or a Ball and unsafe=..., or a Graph with disjuncts")
        super().__init__(graph, cast("tuple[Disjunct, ...]", tuple(disjuncts)), runtime, files or {}, notes=tuple(notes))


def robustness(
    net: Network,
    x0: Any,
    label: SupportsIndex,
    eps: Any,
    *,
    clip: tuple[float, float] | None = None,
    norm: str | Norm = Norm.LINF,
    shape: Shapes | None = None,
    outputs: Sequence[str] | None = None,
) -> Problem:
    """Whether every input within eps of x0 gets the same label: unsafe is that another output is as large.

    Args:
        net: a network, as for `Problem`; its outputs are one score per label.
        x0: the input, shaped as the module's without its batch axis; an array or a tensor; of several inputs a tuple of such.
        label: the number of the output that must stay the largest: whatever is a whole number, such as the tensor `net(x).argmax()`.
        eps: the radius, >= 0; of "linf" also one per entry, or, of several inputs, a tuple of what each has.
        clip: the ends of the range that inputs have anyway, such as (0, 1) for pixels.
        norm: "linf", so that no entry changes by more than eps, "l1" or "l2".
        shape: of a torch module's input, with its batch axis, where x0 does not tell.
        outputs: the names of those that hold the scores, as for `Problem`.

    Raises:
        InvalidInput: eps is negative or no number, or there is no such label.
        InvalidModel, UnsupportedOperator: as `Problem`.
    """
    if parts_of(x0) is not None:
        return _of_several(net, x0, label, eps, clip, norm, shape, outputs)
    centre, radius = array(x0), _radius(eps)
    if clip is not None and np.shape(clip) != (2,):
        raise InvalidInput(f"clip is the two ends of the range that inputs have, such as (0, 1), not {clip!r}")
    inputs: Inputs
    if Norm.of(norm) is Norm.LINF:
        inputs = _around(centre, radius, clip)
    else:
        if radius.size != 1:
            raise InvalidInput(f"the norm {Norm.of(norm).value} takes one radius eps; for weights by entry use mv.Ball")
        inputs = Ball(centre, float(radius.reshape(())), norm, *(clip or (-np.inf, np.inf)))
    return _robust(net, inputs, label, shape, outputs)


def _of_several(
    net: Network,
    x0: Sequence[Any],
    label: SupportsIndex,
    eps: Any,
    clip: tuple[float, float] | None,
    norm: str | Norm,
    shape: Shapes | None,
    outputs: Sequence[str] | None,
) -> Problem:
    """The problem around several inputs."""
    if Norm.of(norm) is not Norm.LINF:
        raise InvalidInput(f"the norm {Norm.of(norm).value} measures one input; with several inputs norm='linf' alone is supported")
    if isinstance(eps, tuple | list) and len(eps) != len(x0):
        raise InvalidInput(f"there are {len(x0)} inputs and {len(eps)} radii eps")
    each = eps if isinstance(eps, tuple | list) else [eps] * len(x0)
    boxes = [_around(array(x), _radius(radius), clip) for x, radius in zip(x0, each, strict=True)]
    return _robust(net, boxes, label, shape, outputs)


def _radius(eps: Any) -> NDArray[np.float64]:
    radius = np.asarray(array(eps))
    if not (np.isfinite(radius) & (radius >= 0)).all():
        raise InvalidInput(f"eps must be a number >= 0, not {eps}")
    return radius


def _around(centre: NDArray[np.float64], radius: NDArray[np.float64], clip: tuple[float, float] | None) -> Box:
    if clip is not None and np.shape(clip) != (2,):
        raise InvalidInput(f"clip is the two ends of the range that inputs have, such as (0, 1), not {clip!r}")
    try:
        lower, upper = centre - radius, centre + radius
    except ValueError as error:
        raise InvalidInput(f"eps, of shape {radius.shape}, does not fit an input of shape {centre.shape}") from error
    if clip is not None:
        lower, upper = (np.clip(side, *clip) for side in (lower, upper))
    return Box(lower, upper)


def _robust(net: Network, inputs: Inputs, label: SupportsIndex, shape: Shapes | None, outputs: Sequence[str] | None) -> Problem:
    """Unsafe is that another output is as large."""
    box = box_of(inputs)
    loaded = load_network(net, box, shape, outputs)
    graph, ny = confined_to(loaded.graph, inputs), loaded.graph.ny
    if ny < 2:
        raise InvalidInput("the network has one output, hence no labels to tell apart; state the problem by Problem(net, box, unsafe=...)")
    place = label_of(label, ny)
    rows = np.delete(np.eye(ny)[place] - np.eye(ny), place, axis=0)
    unsafe = [Rows.on_outputs(row, 0.0, loaded.graph.nx) for row in rows]
    return Problem(graph, _disjuncts(unsafe, box, graph.nx, ny), loaded.runtime, loaded.files, notes=loaded.notes)


def label_of(label: Any, ny: int) -> int:
    """A label as a number: anything that is a whole number will do, such as a tensor or an array of one entry.

    Raises:
        InvalidInput: it is none, or there is no such output.
    """
    one = label.reshape(-1)[0] if getattr(label, "shape", None) and np.prod(label.shape) == 1 else label
    one = one[0] if isinstance(one, tuple | list) and len(one) == 1 else one
    try:
        place = operator.index(one)
    except TypeError:
        place = -1
    truth = isinstance(one, bool | np.bool_) or "bool" in str(getattr(one, "dtype", ""))
    if truth or not 0 <= place < ny:
        several = getattr(label, "shape", None) or isinstance(label, tuple | list)
        advice = "; several inputs with a label each are as many problems (mv.verify_many)" if several else ""
        raise InvalidInput(f"there is no label {' '.join(repr(label).split())}: the network has the outputs 0 to {ny - 1}{advice}")
    return place


def parts_of(x0: Any) -> Sequence[Any] | None:
    """The inputs of a network of several, which are a tuple of arrays or tensors; None for one input."""
    several = isinstance(x0, tuple) and bool(x0) and all(getattr(x, "shape", None) for x in x0)
    return x0 if several else None


def box_of(inputs: Inputs) -> Box:
    """The box itself, several as one, or the smallest one that is sure to contain the ball.

    Raises:
        InvalidInput: there is none.
    """
    if isinstance(inputs, Box):
        return inputs
    if isinstance(inputs, Ball):
        return Box(*(end.reshape(inputs.shape) for end in inputs.ends))
    if isinstance(inputs, tuple | list) and inputs and all(isinstance(box, Box) for box in inputs):
        return Box.joined(inputs)
    what = f"a {type(inputs).__name__}{' of other things' if isinstance(inputs, tuple | list) else ''}"
    raise InvalidInput(f"the inputs are an mv.Box or an mv.Ball, not {what}; where the network has several, a tuple of boxes")


def confined_to(graph: Graph, inputs: Inputs) -> Graph:
    """The network with its inputs confined to the ball, and to no other; a box says all itself, and so does a ball of the maximum norm.

    Raises:
        InvalidProperty: the ball has another number of inputs.
    """
    if not isinstance(inputs, Ball) or inputs.norm is Norm.LINF:
        return graph if graph.ball is None else graph.confined(None)
    if inputs.size != graph.nx:
        raise InvalidProperty(f"the ball has {inputs.size} inputs, the network {graph.nx}")
    return graph.confined(inputs)


def array(values: Any) -> NDArray[np.float64]:
    """Numbers as a float64 array; a torch tensor may require gradients and lie on any device.

    Raises:
        InvalidInput: they are no numbers.
    """
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
