"""Small ONNX networks and VNN-LIB properties, and what damage, malice or a bad exporter may make of them, by seeds."""

from __future__ import annotations

import gzip
import random
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

INTEGERS = (0, 1, -1, 2, 3, 7, 255, -(2**31), 2**31 - 1, 2**31, 10**5, 10**9, 2**62, -(2**63), 2**63 - 1)
FLOATS = (0.0, -1.0, 1e-45, 1e-30, 3.0e38, -3.0e38, float("inf"), float("-inf"), float("nan"), 0.5)
NUMERALS = (
    "0",
    "-0",
    "1e999",
    "-1e308",
    "1e-999",
    "nan",
    "1/3",
    "0x10",
    "--1",
    "1.2.3",
    "9" * 400,
    "1e",
    ".5",
    "5.",
    "+1",
    "1e99999999",
    "",
)
OPERATORS = ("Relu", "Tanh", "Add", "Mul", "MatMul", "Gemm", "Reshape", "Transpose", "Concat", "Softmax", "Pad", "Tile", "Expand", "Range")
OPERATORS += (
    "ConstantOfShape",
    "Gather",
    "Slice",
    "Squeeze",
    "Conv",
    "MaxPool",
    "ReduceSum",
    "Cast",
    "Loop",
    "If",
    "Nothing",
    "LSTM",
    "Resize",
)


# -- what is mutated ---------------------------------------------------------------------------------------------------------------


def networks() -> list[onnx.ModelProto]:
    """Networks of two inputs and two outputs: dense, convolutional, smooth, and one whose constants are computed."""
    rng = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> TensorProto:
        return numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name)

    def ints(name: str, *values: int) -> TensorProto:
        return numpy_helper.from_array(np.array(values, dtype=np.int64), name)

    node = helper.make_node
    last = node("Gemm", ["h", "V", "c"], ["Y"])
    dense = [node("Gemm", ["X", "W", "b"], ["z"], transB=1), node("Relu", ["z"], ["h"]), last]
    smooth = [node("Gemm", ["X", "W", "b"], ["z"], transB=1), node("Tanh", ["z"], ["t"]), node("Softmax", ["t"], ["h"], axis=-1), last]
    convolution = [
        node("Reshape", ["X", "image"], ["i"]),
        node("Pad", ["i", "pads"], ["p"], mode="constant"),
        node("Conv", ["p", "K"], ["z"], kernel_shape=[2, 2], strides=[1, 1], pads=[0, 0, 0, 0]),
        node("MaxPool", ["z"], ["m"], kernel_shape=[1, 2], strides=[1, 1]),
        node("Flatten", ["m"], ["f"], axis=1),
        node("MatMul", ["f", "F"], ["h"]),
        last,
    ]
    computed = [
        node("ConstantOfShape", ["length"], ["ones"], value=helper.make_tensor("v", TensorProto.FLOAT, [1], [0.5])),
        node("Expand", ["ones", "row"], ["e"]),
        node("Range", ["start", "stop", "step"], ["r"]),
        node("Cast", ["r"], ["rf"], to=TensorProto.FLOAT),
        node("Tile", ["rf", "once"], ["t"]),
        node("Gather", ["t", "places"], ["g"], axis=0),
        node("Gemm", ["X", "W", "b"], ["z"], transB=1),
        node("Mul", ["z", "e"], ["a"]),
        node("Add", ["a", "g"], ["s"]),
        node("Slice", ["s", "from", "to", "axis"], ["q"]),
        node("Concat", ["q", "q"], ["k"], axis=1),
        node("Slice", ["k", "from", "three", "axis"], ["l"]),
        node("Relu", ["l"], ["h"]),
        last,
    ]
    shared = [weight("W", 3, 2), weight("b", 3), weight("V", 3, 2), weight("c", 2), weight("K", 1, 1, 2, 2), weight("F", 4, 3)]
    shared += [ints("image", 1, 1, 1, 2), ints("pads", 0, 0, 1, 1, 0, 0, 1, 1), ints("length", 3), ints("row", 1, 3), ints("once", 1)]
    shared += [ints("places", 2, 0, 1), ints("from", 0), ints("to", 3), ints("three", 3), ints("axis", 1)]
    shared += [numpy_helper.from_array(np.array(value), name) for name, value in (("start", 0), ("stop", 3), ("step", 1))]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2]) for name in ("X", "Y")]
    made = []
    for nodes in (dense, smooth, convolution, computed):
        read = {name for n in nodes for name in n.input}
        graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [w for w in shared if w.name in read])
        made.append(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8))
    return made


PROPERTY = """; a comment
(declare-const X_0 Real)
(declare-const X_1 Real)
(declare-const Y_0 Real)
(declare-const Y_1 Real)
(assert (>= X_0 0.0))
(assert (<= X_0 1.0))
(assert (>= X_1 -1.0))
(assert (<= X_1 1.0))
(assert (<= (+ X_0 X_1) 1.5))
(assert (or (and (<= Y_0 Y_1) (>= Y_1 3.5)) (and (< (+ Y_0 (* 2 Y_1)) -7) (not (<= (- X_0 X_1) 0.2)))))
"""


# -- networks ----------------------------------------------------------------------------------------------------------------------


def mutated_network(seed: int) -> bytes:
    """The bytes of a network file after one to three mutations."""
    rng = random.Random(seed)
    model = rng.choice(networks())
    for _ in range(rng.randint(0, 2)):
        rng.choice(_FIELDS)(model, rng)
    data = model.SerializeToString()
    if rng.random() < 0.4:
        data = _bytes(data, rng)
    return gzip.compress(data, mtime=0) if rng.random() < 0.05 else data


def _attribute(model: onnx.ModelProto, rng: random.Random) -> None:
    found = [a for node in model.graph.node for a in node.attribute]
    if not found:
        return
    chosen = rng.choice(found)
    match rng.randrange(4):
        case 0:
            chosen.i = rng.choice(INTEGERS)
        case 1 if chosen.ints:
            chosen.ints[rng.randrange(len(chosen.ints))] = rng.choice(INTEGERS)
        case 2:
            chosen.f = rng.choice(FLOATS)
            chosen.type = rng.choice((chosen.type, onnx.AttributeProto.FLOAT, onnx.AttributeProto.STRING, onnx.AttributeProto.GRAPH))
        case _:
            chosen.name = rng.choice(("axis", "pads", "to", "nothing", ""))


def _constant(model: onnx.ModelProto, rng: random.Random) -> None:
    """Entries of a constant, its type, its shape, or how much there is of it."""
    tensor = rng.choice(model.graph.initializer)
    match rng.randrange(6):
        case 0 | 1:
            array = numpy_helper.to_array(tensor).copy()
            if array.size:
                array.reshape(-1)[rng.randrange(array.size)] = rng.choice(INTEGERS if array.dtype.kind == "i" else FLOATS)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
        case 2:
            tensor.data_type = rng.choice((0, 1, 2, 6, 7, 8, 9, 10, 11, 14, 16, 17, 22, 99))
        case 3 if tensor.dims:
            tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(INTEGERS)
        case 4:
            tensor.raw_data = tensor.raw_data[: rng.randrange(len(tensor.raw_data) + 1)]
        case _:
            tensor.data_location = TensorProto.EXTERNAL
            keys = {
                "location": rng.choice(("../up", "/etc/passwd", "none.bin", "", ".")),
                "offset": rng.choice(("abc", "-1", "0", "9" * 30)),
            }
            for key, value in keys.items():
                tensor.external_data.add(key=key, value=value)


def _shape(model: onnx.ModelProto, rng: random.Random) -> None:
    info = rng.choice([*model.graph.input, *model.graph.output])
    dims = info.type.tensor_type.shape.dim
    match rng.randrange(4):
        case 0:
            rng.choice(dims).dim_value = rng.choice(INTEGERS)
        case 1:
            rng.choice(dims).dim_param = "n"
        case 2:
            dims.add(dim_value=rng.choice(INTEGERS))
        case _:
            info.type.tensor_type.elem_type = rng.choice((0, 1, 6, 7, 9, 10, 11, 16, 99))


def _node(model: onnx.ModelProto, rng: random.Random) -> None:
    nodes = model.graph.node
    node = rng.choice(nodes)
    names = [name for n in nodes for name in (*n.input, *n.output)]
    match rng.randrange(7):
        case 0 | 1:
            node.op_type = rng.choice(OPERATORS)
        case 2 if node.input:
            node.input[rng.randrange(len(node.input))] = rng.choice((*names, "", "nothing"))
        case 3 if node.input:
            del node.input[rng.randrange(len(node.input))]
        case 4:
            node.output[0] = rng.choice((*names, "Y", ""))
        case 5:
            nodes.remove(node)
        case _:
            node.domain = rng.choice(("ai.onnx", "com.microsoft", "none"))


def _header(model: onnx.ModelProto, rng: random.Random) -> None:
    match rng.randrange(3):
        case 0:
            model.opset_import[0].version = rng.choice((*INTEGERS, 7, 9, 11, 17, 21))
        case 1:
            model.ir_version = rng.choice(INTEGERS)
        case _:
            model.graph.output[0].name = rng.choice(("X", "z", "W", "nothing", ""))


_FIELDS: tuple[Callable[[onnx.ModelProto, random.Random], None], ...] = (_attribute, _constant, _constant, _shape, _node, _node, _header)


def _bytes(data: bytes, rng: random.Random) -> bytes:
    """Some bytes changed, lost or doubled."""
    place = rng.randrange(len(data) + 1)
    match rng.randrange(4):
        case 0:
            return data[:place]
        case 1:
            return data[:place] + rng.randbytes(rng.randint(1, 8)) + data[place:]
        case 2:
            return data[:place] + data[rng.randrange(len(data) + 1) :]
        case _:
            changed = bytearray(data)
            for _ in range(rng.randint(1, 4)):
                changed[rng.randrange(len(changed))] = rng.randrange(256)
            return bytes(changed)


# -- properties --------------------------------------------------------------------------------------------------------------------


def mutated_property(seed: int) -> bytes:
    """The bytes of a property file after one to three mutations."""
    rng = random.Random(seed)
    text = PROPERTY
    for _ in range(rng.randint(1, 3)):
        text = rng.choice(_TEXTS)(text, rng)
    data = text.encode()
    if rng.random() < 0.1:
        data = _bytes(data, rng)
    return gzip.compress(data, mtime=0) if rng.random() < 0.05 else data


def _tokens(text: str, rng: random.Random) -> str:
    """A token lost, doubled or replaced by another."""
    tokens = re.findall(r"[()]|[^\s()]+|\s+", text)
    place = rng.randrange(len(tokens))
    tokens[place] = rng.choice(
        ("", tokens[place] * 2, rng.choice(tokens), "(", ")", "or", "and", "not", "=", "/", "true", "X_7", "Y_99999999999")
    )
    return "".join(tokens)


def _numeral(text: str, rng: random.Random) -> str:
    found = list(re.finditer(r"-?\d+\.?\d*", text))
    chosen = rng.choice(found)
    return text[: chosen.start()] + rng.choice(NUMERALS) + text[chosen.end() :]


def _brackets(text: str, rng: random.Random) -> str:
    place = rng.randrange(len(text) + 1)
    return text[:place] + rng.choice(("(", ")", "()", "((", "))", "|", '"', ";", "\0", "\N{GREEK SMALL LETTER ALPHA}")) + text[place:]


def _nested(text: str, rng: random.Random) -> str:
    """A deep term, or alternatives that multiply out."""
    depth = rng.choice((10, 2000, 20000))
    match rng.randrange(3):
        case 0:
            return text + "(assert " + "(and " * depth + "(<= Y_0 0)" + ")" * depth + ")\n"
        case 1:
            return text + "(assert (<= " + "(+ 1 " * depth + "Y_0" + ")" * depth + " 0))\n"
        case _:
            atoms = [f"(<= (+ Y_0 (* {rng.uniform(-1, 1):.3f} Y_1)) {rng.uniform(-9, 3):.3f})" for _ in range(3 * rng.randint(5, 14))]
            return text + "".join(f"(assert (or {' '.join(atoms[k : k + 3])}))\n" for k in range(0, len(atoms), 3))


def _lines(text: str, rng: random.Random) -> str:
    lines = text.splitlines(keepends=True)
    place = rng.randrange(len(lines))
    lines[place : place + 1] = rng.choice(([], [lines[place]] * 2, [rng.choice(lines)], [lines[place].replace("X_0", "Y_0")]))
    return "".join(lines)


_TEXTS: tuple[Callable[[str, random.Random], str], ...] = (_tokens, _tokens, _numeral, _brackets, _nested, _lines)


def write_case(folder: Path, kind: str, seed: int) -> tuple[Path, Path]:
    """The files of a mutated network with a sound property (kind "onnx"), or of a sound network with a mutated property ("vnnlib")."""
    network, spec = folder / "net.onnx", folder / "spec.vnnlib"
    network.write_bytes(mutated_network(seed) if kind == "onnx" else networks()[seed % 4].SerializeToString())
    spec.write_bytes(mutated_property(seed) if kind == "vnnlib" else PROPERTY.encode())
    return network, spec
