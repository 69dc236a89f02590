"""What a network file holds and whether it can be verified: the content of `milpverify info`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import onnx

from milpverify.errors import UnsupportedOperator
from milpverify.frontends.onnx.lowering import inlined, lower, needed, operator_name
from milpverify.frontends.onnx.node import RULES
from milpverify.frontends.onnx.outputs import ZIP_MAP, Ambiguous, choose, lowered, numbered
from milpverify.functions.catalogue import catalogue
from milpverify.operators import Nonlinear

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


@dataclass(frozen=True)
class Overview:
    """A network at a glance.

    `tensors` are ("input" or "output", name, type, shape, the variables X_i or Y_j that it is); `operators` are (ONNX operator, count,
    "yes", "no" or, where no output that is kept depends on any, "not needed"); `neurons` counts the entries of each nonlinearity after
    lowering, products of two variables among them; `obstacle` is why the network cannot be verified, empty where it can; `choice` is why
    it can be only when the outputs are named, empty where that is not so.
    """

    tensors: tuple[tuple[str, str, str, str, str], ...]
    operators: tuple[tuple[str, int, str], ...]
    neurons: dict[str, int]
    obstacle: str
    choice: str = ""


def overview(model: onnx.ModelProto, outputs: Sequence[str] | None = None) -> Overview:
    """Describe a network; an unsupported operator, and outputs that have to be chosen, are part of the description, not an error.

    Args:
        outputs: the names of those that are numbered, as for `load`.

    Raises:
        InvalidModel: the network contradicts itself, or holds a weight that is no finite number.
        InvalidInput: there is no output of such a name, or it holds no real numbers.
    """
    model = inlined(model)
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [info for info in model.graph.input if info.name not in weights]
    neurons: Counter[str] = Counter()
    choice, obstacle, variables = "", "", dict[tuple[str, str], str]()
    try:
        kept = choose(model.graph, outputs)
    except Ambiguous as error:
        kept, choice = choose(model.graph, error.usable), str(error)
    try:
        graph, kept = lowered(kept, outputs is not None, partial(lower, model))
    except UnsupportedOperator as error:
        obstacle = str(error)
    else:
        for kind, letter, specs in (("input", "X", graph.inputs), ("output", "Y", graph.outputs)):
            variables |= {(kind, spec.name): span for spec, span in numbered(letter, specs)}
        variables |= {("output", name): f"left out: {why}" for name, why in kept.left}
        for node in graph.nodes:
            if isinstance(node.op, Nonlinear):
                neurons[node.op.name] += node.size
    ends = [(kind, info) for kind, infos in (("input", inputs), ("output", model.graph.output)) for info in infos]
    return Overview(
        tuple((kind, info.name, *_type(info), variables.get((kind, info.name), "")) for kind, info in ends),
        tuple(_operators(model, {info.name for info in inputs}, needed(model.graph, kept.kept) | set(kept.keys))),
        dict(neurons),
        obstacle,
        choice,
    )


def _operators(model: onnx.ModelProto, varying: set[str], read: set[str]) -> Iterable[tuple[str, int, str]]:
    """Every operator, how often it occurs, and whether all its occurrences that matter have a rule or fold into constants.

    `varying` are the tensors that depend on the network's inputs; it grows along the way. `read` are those that matter.
    """
    rules = RULES.keys() | {".".join(ZIP_MAP)} | {op for entry in catalogue().values() for op in entry.onnx}
    counts: Counter[str] = Counter()
    unknown, matters = set(), set()
    for node in model.graph.node:
        name = operator_name(node)
        counts[name] += 1
        if read.isdisjoint(node.output):
            continue
        matters.add(name)
        if not varying.isdisjoint(node.input):
            if node.op_type not in ("Shape", "Size"):  # shapes are static: what is computed from them folds
                varying.update(node.output)
            if name not in rules:
                unknown.add(name)
        elif name != node.op_type or not onnx.defs.has(name):
            unknown.add(name)
    words = {name: "not needed" if name not in matters else "no" if name in unknown else "yes" for name in counts}
    return ((name, count, words[name]) for name, count in counts.most_common())


def _type(info: onnx.ValueInfoProto) -> tuple[str, str]:
    if not info.type.HasField("tensor_type"):
        return (info.type.WhichOneof("value") or "unknown").removesuffix("_type"), ""
    tensor = info.type.tensor_type
    sizes = [str(d.dim_value) if d.HasField("dim_value") else d.dim_param or "?" for d in tensor.shape.dim]
    return onnx.TensorProto.DataType.Name(tensor.elem_type).lower(), f"({', '.join(sizes)})"
