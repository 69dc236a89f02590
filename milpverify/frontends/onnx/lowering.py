"""Lowering ONNX networks to the graph of core operators.

The graph means real arithmetic on the stored weights, which float64 holds. Constants that nodes compute from them fold in float64: of sums,
products, quotients and roots what is lost is known and kept as a mark (`constants.Constant`); what any other operator makes of constants
(an exponential, a product of matrices) is by definition the float64 number that the reference of ONNX computes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np
import onnx
import onnx.defs
import onnx.helper
import onnx.numpy_helper
from numpy.typing import NDArray

from milpverify.config import check_time
from milpverify.errors import InvalidModel, MilpverifyError, UnsupportedOperator
from milpverify.frontends.lowering.builder import Builder, check_size, entries
from milpverify.frontends.lowering.constants import Constant, all_finite, in_float64
from milpverify.frontends.lowering.rule import LoweringTuning
from milpverify.frontends.onnx import (  # noqa: F401 (register their rules)
    attention,
    classical,
    composites,
    data,
    quantised,
    recurrent,
    resample,
    windows,
)
from milpverify.frontends.onnx.folding import check_sizes, folded_roundings
from milpverify.frontends.onnx.node import RULES, Operation, Value, attribute, describe, evaluate, evaluate_in_runtime
from milpverify.frontends.onnx.ops import FLOATS
from milpverify.frontends.onnx.outputs import Kept, Outputs, choose
from milpverify.functions.catalogue import catalogue
from milpverify.graph import Graph, Node, TensorSpec

OLDEST_OPSET: Final = 7
WIDE = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE)
NEWEST_OPSET = onnx.defs.onnx_opset_version()
MISFITS = (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError)
"""What numpy, onnx, torch and the rules raise where a node does not fit its inputs."""


def static_shape(info: onnx.ValueInfoProto) -> tuple[int, ...]:
    """The shape of a graph input, with 1 for an unknown batch (first) dimension.

    Raises:
        InvalidModel: the shape is left out or too large, or another dimension is unknown.
    """
    tensor = info.type.tensor_type
    if not info.type.HasField("tensor_type") or not tensor.HasField("shape"):
        raise InvalidModel(f"the network's input '{info.name}' has no shape; export the network with static shapes")
    sizes = [max(0, d.dim_value) for d in tensor.shape.dim]
    if 0 in sizes[1:]:
        axis = sizes.index(0, 1)
        unknown = tensor.shape.dim[axis].dim_param or "?"
        raise InvalidModel(f"axis {axis} of the network's input '{info.name}' has an unknown length ({unknown}); export it static")
    try:
        check_size(sizes)
    except ValueError as error:
        raise InvalidModel(f"the network's input '{info.name}': {error}") from error
    return tuple(n or 1 for n in sizes)


def spec_of(info: onnx.ValueInfoProto, shape: tuple[int, ...]) -> TensorSpec:
    """An input of the network, which must hold real numbers.

    Raises:
        InvalidModel: it holds something else.
    """
    kind = info.type.tensor_type.elem_type
    if kind not in FLOATS:
        name = onnx.TensorProto.DataType.Name(kind) if kind in onnx.TensorProto.DataType.values() else f"number {kind}"
        raise InvalidModel(f"the network's tensor '{info.name}' is of type {name}; inputs must be float32, float64 or float16")
    return TensorSpec(info.name, shape, FLOATS[kind])


def lower(model: onnx.ModelProto, outputs: Outputs | None = None, tuning: LoweringTuning = LoweringTuning()) -> Graph:
    """Lower a network to the core operators.

    Node 0 is the flat x (nx,), the network's inputs one after the other; the last node is the flat y (ny,). A node is called
    after the ONNX tensor that it holds; what a rewrite puts in between is called after it too, with " (part)" behind.

    Args:
        outputs: those that y holds, one after the other; only what they depend on is lowered. None for all of real numbers.

    Raises:
        InvalidModel: the network contradicts itself, or a weight is NaN or infinite (the message names it).
        UnsupportedOperator: an operator, or an attribute of it, has no rule.
        InvalidInput: no outputs are given, and which they are is not clear (`choose`).
    """
    return _Lowering(inlined(model), outputs or choose(model.graph), tuning).run()


def inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """The network with its local functions written out, but those that the catalogue names as `domain.name`."""
    if not model.functions:
        return model
    from onnx.inliner import inline_selected_functions

    leaves = [(f.domain, f.name) for f in model.functions if catalogue().by_onnx(f"{f.domain}.{f.name}") is not None]
    return inline_selected_functions(model, leaves, exclude=True)


class _Lowering:
    """The state of one lowering: what every ONNX tensor has become."""

    def __init__(self, model: onnx.ModelProto, outputs: Outputs, tuning: LoweringTuning) -> None:
        self.proto, self.tuning = model.graph, tuning
        self.outputs = outputs.kept
        self.versions = {o.domain: o.version for o in model.opset_import}
        self.opset = self.versions.get("", self.versions.get("ai.onnx", 0))
        if not OLDEST_OPSET <= self.opset <= NEWEST_OPSET:
            raise UnsupportedOperator(
                f"the network uses ONNX opset {self.opset}; {OLDEST_OPSET} to {NEWEST_OPSET} are supported (see onnx.version_converter)"
            )
        if self.proto.sparse_initializer:
            name = self.proto.sparse_initializer[0].values.name
            raise UnsupportedOperator(f"the sparse initializer '{name}' is not supported: store it dense")
        for node in self.proto.node:
            # Protocol buffers hand over text that is no text as bytes.
            if not all(isinstance(text, str) for text in (node.op_type, node.name, node.domain, *node.input, *node.output)):
                raise InvalidModel(f"the network is damaged: a {node.op_type!r} node has names that are no text")
        self.values: dict[str, Value] = {}
        self.labels: dict[str, UnsupportedOperator] = {}  # what rules leave out, and what to say where it is read
        self.needed = needed(self.proto, self.outputs)
        self.rounded: dict[str, int] = {}  # of the constants that are not exact: see `constants.Constant`
        self.whole: set[str] = set()  # of tensors that depend on x, those of integers
        # A bound to clip to may be infinite, and a mask may be -inf; a weight may not.
        readers = [(n.op_type, name) for n in self.proto.node for name in n.input]
        self.bounds = {name for op, name in readers if op == "Clip"} - {name for op, name in readers if op != "Clip"}
        self.infinite: dict[str, str] = {}  # constants that hold -inf, and what they come from

    def run(self) -> Graph:
        for tensor in self.proto.initializer:
            if tensor.name in self.needed:
                self.define(tensor.name, _weight(tensor), "initializer")
        weights = {tensor.name for tensor in self.proto.initializer}
        inputs = tuple(spec_of(info, static_shape(info)) for info in self.proto.input if info.name not in weights)
        self.builder = Builder(sum(spec.size for spec in inputs), self.tuning)
        x, offset = self.builder.nodes[0], 0
        for spec in inputs:
            self.builder.name = spec.name
            part = self.builder.select(x, offset + entries(spec.shape))
            self.values[spec.name] = self.builder.finish(part, 1)
            offset += spec.size
        for node in self.proto.node:
            if not self.needed.isdisjoint(node.output):
                self.lower_node(node)
        outputs = []
        for name, tensor, dtype, keys in ((o.name, o.tensor, o.dtype, o.keys) for o in self.outputs):
            value = self.lookup(tensor, "the network's output")
            if not isinstance(value, Node) and value.dtype != np.float64:
                raise InvalidModel(f"the network's output '{name}' is declared as {dtype}, but is a constant of type {value.dtype}")
            node = value if isinstance(value, Node) else self.builder.constant(Constant(value, self.rounded.get(tensor, 0)))
            if keys and node.shape[-1:] != (len(keys),):
                raise InvalidModel(f"the network's output '{name}' maps {len(keys)} keys to the entries of a tensor of shape {node.shape}")
            outputs.append(node)
        specs = tuple(TensorSpec(o.name, node.shape, o.dtype) for o, node in zip(self.outputs, outputs, strict=True))
        return self.builder.graph(outputs, inputs, specs)

    def lookup(self, name: str, reader: str) -> Value:
        if name in self.labels:
            raise self.labels[name]
        if name not in self.values:
            raise InvalidModel(f"{reader} reads the tensor '{name}', which nothing before it computes")
        return self.values[name]

    def define(self, name: str, array: NDArray[Any], origin: str) -> None:
        """Keep a constant: real numbers in float64."""
        if array.dtype.kind == "f" or "float" in array.dtype.name:
            array = array if array.dtype.kind == "f" else array.astype(np.float64)
            if not all_finite(array):
                allowed = ~np.isnan(array) & ((array < np.inf) | (name in self.bounds))
                if not allowed.all():
                    raise _infinite(origin, name, array[~allowed].flat[0])
                if name not in self.bounds:
                    self.infinite[name] = origin
            array = in_float64(array)
        self.values[name] = array

    def lower_node(self, node: onnx.NodeProto) -> None:
        """Lower one ONNX node, or evaluate it where all it reads is constant."""
        try:
            self.read_node(node)
        except MilpverifyError:
            raise
        except MISFITS as error:
            raise InvalidModel(f"{describe(node)} does not fit its inputs: {' '.join(str(error).split())}") from error

    def read_node(self, node: onnx.NodeProto) -> None:
        """Keep what a node computes."""
        check_time()
        op = self.operation(node)
        if node.op_type == "Constant":
            results: list[Value | None] = [_constant(node)]
        elif operator_name(node) == "If":
            results = self.branch(op)
        elif not any(isinstance(v, Node) for v in op.inputs) and operator_name(node) == node.op_type and not _is_random(node, self.opset):
            results = self.fold(op)
        else:
            results = self.apply_rule(op)
        if not self.needed.isdisjoint(node.output[len(results) :]):
            raise op.refuse(f"its output '{node.output[len(results)]}' has no rule")
        for name, value in zip(node.output, results, strict=False):
            if value is None:
                self.labels[name] = op.refuse(f"its output '{name}' is no tensor of real numbers that has a rule")
            elif isinstance(value, Node):
                self.values[name] = value
            else:
                self.define(name, value, "constant")

    def branch(self, op: Operation) -> list[Value | None]:
        """The outputs of the branch of an If that its constant condition chooses, lowered in its place."""
        chosen = op.attributes["then_branch" if op.weight(0).reshape(()) else "else_branch"]
        for tensor in chosen.initializer:
            self.define(tensor.name, _weight(tensor), "initializer")
        for node in chosen.node:
            self.lower_node(node)
        for name, info in zip(op.proto.output, chosen.output, strict=True):
            if info.name in self.rounded:
                self.rounded[name] = self.rounded[info.name]
        return [self.lookup(info.name, str(op)) for info in chosen.output]

    def fold(self, op: Operation) -> list[Value | None]:
        """What a node makes of constants, whose roundings are noted; where these are not known, nodes that stand for the real numbers."""
        rounded = [self.rounded.get(name, 0) for name in op.proto.input]
        if op.proto.op_type == "DequantizeLinear":
            known = quantised.dequantized(op, rounded)
            self.rounded |= dict.fromkeys(op.proto.output, known.rounded) if known.rounded else {}
            return [known.value]
        if any(rounded) and op.proto.op_type == "Cast" and op.attributes["to"] in WIDE:
            results = [op.weight(0)]  # the real number that the constant stands for has no type
        elif op.proto.op_type == "QuantizeLinear":  # rounded to an integer: which one is the runtime's to say
            results = evaluate_in_runtime(op.proto, [_array(v) for v in op.inputs], self.opset)
        else:
            check_sizes(op, evaluated=True)
            results = evaluate(op.proto, [_array(v) for v in op.inputs], self.opset)
        if (most := folded_roundings(op, results, rounded)) is None:
            return self.apply_rule(op)
        if most:
            self.rounded |= dict.fromkeys(op.proto.output, most)
        return list(results)

    def as_nodes(self, op: Operation) -> Operation:
        """The operation with the constants that are not exact as nodes: they stand for real numbers then, whatever is made of them."""
        if self.rounded.keys().isdisjoint(op.proto.input):
            return op
        for i, name in enumerate(op.proto.input):
            if name in self.rounded:
                self.builder.name = name
                self.values[name] = self.builder.constant(Constant(op.weight(i), self.rounded.pop(name)))
        return self.operation(op.proto)

    def operation(self, node: onnx.NodeProto) -> Operation:
        """A node with its inputs and with the standard's defaults for the attributes that it leaves out."""
        inputs = tuple(self.lookup(name, describe(node)) if name else None for name in node.input)
        given = {a.name: attribute(a) for a in node.attribute}
        if catalogue().by_onnx(f"{node.domain}.{node.op_type}") is not None:
            return Operation(node, self.opset, inputs, given)
        domain, opset = ("", self.opset) if node.domain in ("", "ai.onnx") else (node.domain, self.versions.get(node.domain, 0))
        if (domain and operator_name(node) not in RULES) or not onnx.defs.has(node.op_type, opset, domain):
            why = f"opset {opset or self.opset} of the domain '{domain or 'ai.onnx'}' has no rule for it; express it by standard operators"
            raise Operation(node, self.opset, inputs, given).refuse(why)
        known = onnx.defs.get_schema(node.op_type, opset, domain).attributes
        _check_attributes(node, known)
        defaults = {name: attribute(a.default_value) for name, a in known.items() if a.default_value.type}
        op = Operation(node, self.opset, inputs, {**defaults, **given})
        rule = RULES.get(operator_name(node))
        for name, value in given.items():
            heeded = rule is None or rule.attributes is None or name in rule.attributes
            if name not in known or (not heeded and value != defaults.get(name)):
                raise op.refuse(f"its attribute {name} = {value} has no rule")
        return op

    def apply_rule(self, op: Operation) -> list[Value | None]:
        node = op.proto
        rule = RULES.get(operator_name(node))
        if rule is None or not rule.masks:
            for name in filter(self.infinite.__contains__, node.input):
                raise _infinite(self.infinite[name], name, -np.inf)
        linear = rule is not None and rule.linear_in_constants
        if not linear or not any(isinstance(v, Node) for v in op.inputs):
            op = self.as_nodes(op)
        rounded = sum(self.rounded.get(name, 0) for name in node.input)
        since = len(self.builder.nodes)
        self.builder.name = node.output[0]
        if operator_name(node) == node.op_type:
            check_sizes(op, evaluated=False)
        if rule is not None:
            result = rule.lower(self.builder, op)
        elif (entry := catalogue().by_onnx(operator_name(node))) is not None and len(op.inputs) == 1:
            result = self.builder.apply(entry.bind(**op.attributes), op.node())
        else:
            raise op.refuse("it has no rule; express it by supported operators (`milpverify info` lists them)")
        self.builder.mark(since, rounded)
        if data.makes_integers(op, rule, [name in self.whole for name in node.input]):
            self.whole.update(node.output)
        if rule is not None and rule.moves and data.makes_masks(self.builder, op):
            self.builder.masks.update(v.id for v in ([result] if isinstance(result, (Node, np.ndarray)) else result) if isinstance(v, Node))
        return self.finished(node, [result] if isinstance(result, (Node, np.ndarray)) else list(result), since)

    def finished(self, node: onnx.NodeProto, results: list[Value | None], since: int) -> list[Value | None]:
        """Call the new nodes by the tensors that they hold."""
        for i, (name, value) in enumerate(zip(node.output, results, strict=False)):
            if isinstance(value, Node):
                self.builder.name = name
                results[i] = self.builder.finish(value, since)
        return results


def operator_name(node: onnx.NodeProto) -> str:
    """How the rules and the catalogue call a node's operator: by its name, with the domain before it where that is not ONNX's own."""
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"


def _infinite(origin: str, name: str, value: float) -> InvalidModel:
    return InvalidModel(f"the {origin} '{name}' holds {value}; weights must be finite numbers")


def _weight(tensor: onnx.TensorProto) -> NDArray[Any]:
    """The value of an initializer."""
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        raise InvalidModel(f"the initializer '{tensor.name}' lies in a file of its own, which only an uncompressed network can name")
    try:
        return onnx.numpy_helper.to_array(tensor)
    except (ValueError, TypeError, KeyError) as error:
        raise InvalidModel(f"the initializer '{tensor.name}' is damaged: {error}") from error


def _constant(node: onnx.NodeProto) -> NDArray[Any]:
    """The value of a Constant node, in whichever attribute it stands."""
    for proto in node.attribute:
        if proto.name in ("value", "value_float", "value_floats", "value_int", "value_ints"):
            value = np.asarray(attribute(proto))
            return value.astype(np.int64) if proto.name.startswith("value_int") else value
    raise UnsupportedOperator(f"{describe(node)} is not supported: its value is neither a dense tensor nor numbers")


def needed(graph: onnx.GraphProto, outputs: Iterable[Kept]) -> set[str]:
    """The tensors that outputs depend on: what else the file holds means nothing to them."""
    names = {output.tensor for output in outputs}
    for node in reversed(graph.node):
        if not names.isdisjoint(node.output):
            names.update(_read(node))
    return names - {""}


def _read(node: onnx.NodeProto) -> set[str]:
    """The tensors that a node reads, those of its branches included."""
    inner = [proto.g for proto in node.attribute if proto.type == onnx.AttributeProto.GRAPH]
    return set(node.input).union(*(_read(n) for g in inner for n in g.node), *({o.name for o in g.output} for g in inner))


def _check_attributes(node: onnx.NodeProto, known: Mapping[str, onnx.defs.OpSchema.Attribute]) -> None:
    """Refuse attributes of another type than the standard's, and numbers that are none."""
    for proto in node.attribute:
        if proto.name not in known:
            continue
        kinds = [onnx.AttributeProto.AttributeType.Name(int(kind)) for kind in (proto.type, known[proto.name].type)]  # type: ignore[arg-type]
        if kinds[0] != kinds[1]:
            raise InvalidModel(f"{describe(node)} has the attribute {proto.name} of type {kinds[0]}; the standard wants {kinds[1]}")
        numbers = np.array([proto.f, *proto.floats])
        infinite = {"Clip": True, "Constant": numbers < 0, "Pad": numbers < 0}.get(node.op_type, False)
        allowed = np.isfinite(numbers) | (~np.isnan(numbers) & infinite)
        if not allowed.all():
            raise InvalidModel(f"{describe(node)} has the attribute {proto.name} = {numbers[~allowed][0]}; a finite number is needed")


def _is_random(node: onnx.NodeProto, opset: int) -> bool:
    """Whether an operator may draw random numbers, so that it must not be folded."""
    return "seed" in onnx.defs.get_schema(node.op_type, opset, "").attributes


def _array(value: Value | None) -> NDArray[Any] | None:
    assert not isinstance(value, Node)
    return value
