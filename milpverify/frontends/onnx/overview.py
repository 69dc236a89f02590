"""What a network file holds and whether it can be verified: the content of `milpverify info`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx

from milpverify.errors import UnsupportedOperator
from milpverify.frontends.onnx.lowering import inlined, lower, operator_name
from milpverify.frontends.onnx.node import RULES
from milpverify.functions.catalogue import catalogue
from milpverify.operators import Elementwise, Product

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True)
class Overview:
    """A network at a glance.

    `tensors` are ("input" or "output", name, type, shape); `operators` are (ONNX operator, count, supported); `neurons` counts the
    entries of each nonlinearity after lowering, products of two variables among them; `obstacle` is why the network cannot be
    verified, empty where it can.
    """

    tensors: tuple[tuple[str, str, str, str], ...]
    operators: tuple[tuple[str, int, bool], ...]
    neurons: dict[str, int]
    obstacle: str


def overview(model: onnx.ModelProto) -> Overview:
    """Describe a network; an unsupported operator is part of the description, not an error.

    Raises:
        InvalidModel: the network contradicts itself, or holds a weight that is no finite number.
    """
    model = inlined(model)
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [info for info in model.graph.input if info.name not in weights]
    neurons: Counter[str] = Counter()
    obstacle = ""
    try:
        graph = lower(model)
    except UnsupportedOperator as error:
        obstacle = str(error)
    else:
        for node in graph.nodes:
            if isinstance(node.op, Elementwise):
                neurons[node.op.function.name] += node.size
            elif isinstance(node.op, Product):
                neurons["product"] += node.size
    return Overview(
        tuple((kind, i.name, *_type(i)) for kind, infos in (("input", inputs), ("output", model.graph.output)) for i in infos),
        tuple(_operators(model, {info.name for info in inputs})),
        dict(neurons),
        obstacle,
    )


def _operators(model: onnx.ModelProto, varying: set[str]) -> Iterable[tuple[str, int, bool]]:
    """Every operator, how often it occurs, and whether all its occurrences have a rule or fold into constants.

    `varying` are the tensors that depend on the network's inputs; it grows along the way.
    """
    rules = RULES.keys() | {op for entry in catalogue().values() for op in entry.onnx}
    counts: Counter[str] = Counter()
    unknown = set()
    for node in model.graph.node:
        name = operator_name(node)
        counts[name] += 1
        if not varying.isdisjoint(node.input):
            if node.op_type not in ("Shape", "Size"):  # shapes are static: what is computed from them folds
                varying.update(node.output)
            if name not in rules:
                unknown.add(name)
        elif name != node.op_type or not onnx.defs.has(name):
            unknown.add(name)
    return ((name, count, name not in unknown) for name, count in counts.most_common())


def _type(info: onnx.ValueInfoProto) -> tuple[str, str]:
    tensor = info.type.tensor_type
    sizes = [str(d.dim_value) if d.HasField("dim_value") else d.dim_param or "?" for d in tensor.shape.dim]
    return onnx.TensorProto.DataType.Name(tensor.elem_type).lower(), f"({', '.join(sizes)})"
