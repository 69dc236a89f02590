"""Reading ONNX files, shapes, folding, the comparison with ONNX Runtime, and what is refused."""

from __future__ import annotations

import gzip
from pathlib import Path

import networkx
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx_cases import agrees, build, floats, ints, single

from milpverify.errors import InvalidInput, InvalidModel, UnsupportedOperator
from milpverify.frontends.onnx.check import check
from milpverify.frontends.onnx.lowering import NEWEST_OPSET, lower
from milpverify.frontends.onnx.reading import Source, read_onnx
from milpverify.frontends.onnx.runtime import OnnxRuntime, declared_older
from milpverify.graph import evaluate
from milpverify.spec import Box

RNG = np.random.default_rng(2)
FAMILIES = ["acasxu", "mnist_fc", "oval21", "collins_rul_cnn", "tllverifybench", "reach_prob_density", "safenlp", "verivital"]
node = helper.make_node


def f(*shape: int) -> np.ndarray:
    return floats(RNG, *shape)


def dense(opset: int = 13) -> onnx.ModelProto:
    nodes = [node("Gemm", ["x", "w", "b"], ["h"], name="first", transB=1), node("Relu", ["h"], ["r"], name="relu")]
    nodes += [node("Gemm", ["r", "v", "c"], ["y"], name="second")]
    return build(nodes, {"x": [1, 4]}, ["y"], {"w": f(6, 4), "b": f(6), "v": f(6, 3), "c": f(3)}, opset, listed=opset < 9)


def unit_box(n: int) -> Box:
    return Box(-np.ones(n), np.ones(n))


# Files


def test_plain_and_compressed_files_read_alike(tmp_path: Path) -> None:
    data = dense().SerializeToString()
    plain, packed = tmp_path / "net.onnx", tmp_path / "net.onnx.gz"
    plain.write_bytes(data)
    packed.write_bytes(gzip.compress(data))
    assert read_onnx(plain) == read_onnx(str(packed))


def test_weights_in_a_file_of_their_own(tmp_path: Path) -> None:
    model = dense()
    onnx.save(model, tmp_path / "net.onnx", save_as_external_data=True, location="net.data", size_threshold=0)
    x = torch.randn(3, 4, dtype=torch.float64)
    torch.testing.assert_close(evaluate(lower(read_onnx(tmp_path / "net.onnx")), x), evaluate(lower(dense_again(tmp_path)), x))
    (tmp_path / "net.data").unlink()
    with pytest.raises(InvalidModel, match="net"):
        read_onnx(tmp_path / "net.onnx")


def dense_again(folder: Path) -> onnx.ModelProto:
    return onnx.load(folder / "net.onnx")


@pytest.mark.parametrize("name", ["net.onnx", "net.onnx.gz"])
def test_damaged_files_are_refused_by_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with pytest.raises(InvalidModel, match=name):
        read_onnx(path)
    data = dense().SerializeToString()
    whole = gzip.compress(data) if name.endswith("gz") else data
    for damaged in (
        b"",
        b"no network at all",
        whole[:40],
        whole[: len(whole) // 2],
        whole[:-3],
        data[:40] if name.endswith("gz") else b"\x00",
    ):
        path.write_bytes(damaged)
        with pytest.raises(InvalidModel, match=name) as caught:
            lower(read_onnx(path))
        assert "\n" not in str(caught.value)


def test_flipped_bytes_never_crash(tmp_path: Path) -> None:
    data = dense().SerializeToString()
    path, rng, refusals = tmp_path / "net.onnx", np.random.default_rng(0), 0
    for _ in range(400):
        damaged = bytearray(data)
        for place in rng.integers(len(data), size=2):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            model = read_onnx(path)
            graph = lower(model)
            check(graph, Source.of(model), unit_box(graph.nx))
        except InvalidInput:
            refusals += 1
    assert refusals > 100


# Inputs, outputs, shapes


@pytest.mark.parametrize("shape", [["batch", 4], [0, 4], [None, 4], [-1, 4], [1, 4]])
def test_an_unknown_batch_is_one(shape: list[int | str]) -> None:
    model = build([node("Relu", ["x"], ["y"])], {"x": shape}, ["y"])
    graph = agrees(model)
    assert graph.inputs[0].shape == graph.outputs[0].shape == (1, 4)


def test_several_inputs_and_outputs_are_cut_from_flat_vectors() -> None:
    nodes = [node("MatMul", ["a", "w"], ["p"]), node("Add", ["p", "b"], ["q"]), node("Transpose", ["q"], ["t"])]
    model = build(nodes, {"a": [2, 3], "b": [2, 2]}, ["t", "b", "p"], {"w": f(3, 2)})
    graph = agrees(model)
    assert [(s.name, s.shape, s.dtype) for s in graph.inputs] == [("a", (2, 3), "float32"), ("b", (2, 2), "float32")]
    assert [s.name for s in graph.outputs] == ["t", "b", "p"]
    assert (graph.nx, graph.ny) == (10, 12)


def test_constant_outputs_and_lone_numbers() -> None:
    nodes = [node("ReduceSum", ["x"], ["s"], keepdims=0), node("Add", ["s", "one"], ["y"]), node("Neg", ["one"], ["z"])]
    nodes += [node("Unsqueeze", ["y", "zero"], ["u"]), node("Concat", ["u", "two"], ["v"], axis=0)]
    model = build(nodes, {"x": [1, 4]}, ["y", "z", "v"], {"one": np.array(1.5, np.float32), "zero": ints(0), "two": f(2)})
    graph = agrees(model)
    assert all(n.shape for n in graph.nodes)


def test_initializers_listed_as_inputs_are_no_inputs() -> None:
    graph = agrees(dense(opset=7))
    assert [s.name for s in graph.inputs] == ["x"]


@pytest.mark.parametrize(("kind", "name"), [(TensorProto.DOUBLE, "float64"), (TensorProto.FLOAT16, "float16")])
def test_other_precisions(kind: int, name: str) -> None:
    dtype = np.dtype(name)
    nodes = [node("MatMul", ["x", "w"], ["h"]), node("Relu", ["h"], ["r"]), node("Sub", ["r", "b"], ["y"])]
    model = build(nodes, {"x": [1, 8]}, ["y"], {"w": f(8, 5).astype(dtype), "b": f(5).astype(dtype)}, kind=kind)
    graph = lower(model)
    assert graph.inputs[0].dtype == graph.outputs[0].dtype == name
    check(graph, Source.of(model), unit_box(8))
    wrong = build(nodes, {"x": [1, 8]}, ["y"], {"w": f(8, 5).astype(dtype), "b": f(5).astype(dtype)}, kind=kind)
    with pytest.raises(InvalidModel, match="differs from ONNX Runtime"):
        check(graph, Source.of(wrong), unit_box(8))


# Folding


def test_shape_arithmetic_folds() -> None:
    nodes = [
        node("Shape", ["x"], ["shape"]),
        node("Gather", ["shape", "first"], ["n"], axis=0),
        node("Unsqueeze", ["n", "zero"], ["n1"]),
        node("Constant", [], ["rest"], value_ints=[-1]),
        node("Concat", ["n1", "rest"], ["target"], axis=0),
        node("Reshape", ["x", "target"], ["flat"]),
        node("Size", ["x"], ["size"]),
        node("Cast", ["size"], ["real"], to=TensorProto.FLOAT),
        node("Div", ["flat", "real"], ["mean"]),
        node("Shape", ["mean"], ["like"]),
        node("ConstantOfShape", ["like"], ["ones"], value=numpy_helper.from_array(np.ones(1, np.float32))),
        node("Constant", [], ["half"], value_float=0.5),
        node("Mul", ["ones", "half"], ["halves"]),
        node("Expand", ["halves", "like"], ["same"]),
        node("Add", ["mean", "same"], ["y"]),
    ]
    graph = agrees(build(nodes, {"x": ["batch", 3, 4]}, ["y"], {"first": np.array(0), "zero": ints(0)}, opset=13))
    assert graph.outputs[0].shape == (1, 12)


def test_constants_fold_in_real_arithmetic() -> None:
    nodes = [node("Add", ["a", "b"], ["c"]), node("Mul", ["x", "c"], ["y"])]
    small = np.array([2.0**-30], np.float32)
    graph = lower(build(nodes, {"x": [1, 1]}, ["y"], {"a": np.ones(1, np.float32), "b": small}))
    assert evaluate(graph, torch.ones(1, 1, dtype=torch.float64)).item() == 1.0 + 2.0**-30


def test_constant_arithmetic_of_every_kind_folds() -> None:
    nodes = [
        node("Transpose", ["a"], ["t"]),
        node("Sqrt", ["t"], ["s"]),
        node("Slice", ["s", "start", "end"], ["u"]),
        node("ReduceSum", ["u", "start"], ["v"], keepdims=0),
        node("MatMul", ["x", "u"], ["m"]),
        node("Add", ["m", "v"], ["y"]),
    ]
    agrees(build(nodes, {"x": [1, 2]}, ["y"], {"a": np.abs(f(3, 5)) + np.float32(0.1), "start": ints(0), "end": ints(2)}))


def test_what_the_outputs_do_not_need_means_nothing() -> None:
    nodes = [node("Erf", ["x"], ["unused"]), node("Relu", ["x"], ["y"])]
    agrees(build(nodes, {"x": [1, 3]}, ["y"], {"junk": np.array([np.nan], np.float32)}))


def test_local_functions_are_inlined() -> None:
    opset = [helper.make_opsetid("", 17)]
    function = helper.make_function("local", "Twice", ["a"], ["b"], [node("Add", ["a", "a"], ["b"])], opset)
    model = build([node("Twice", ["x"], ["h"], domain="local"), node("Relu", ["h"], ["y"])], {"x": [1, 3]}, ["y"], opset=17)
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("local", 1))
    agrees(model)


# The comparison with ONNX Runtime


def deep() -> onnx.ModelProto:
    nodes, value, weights = [], "x", {}
    rng = np.random.default_rng(3)
    for i in range(30):
        weights[f"w{i}"] = floats(rng, 40, 40) * np.float32(0.4)
        nodes += [node("MatMul", [value, f"w{i}"], [f"m{i}"], name=f"mul{i}"), node("LeakyRelu", [f"m{i}"], [f"r{i}"], name=f"act{i}")]
        value = f"r{i}"
    return build(nodes, {"x": [1, 40]}, [value], weights)


def test_a_difference_is_found_and_named_even_deep_down() -> None:
    model = deep()
    graph = lower(model)
    check(graph, Source.of(model), unit_box(40))
    for change, name in ((lambda m: scaled_weight(m, 17), "mul17"), (lambda m: slope(m, 25), "act25")):
        wrong = onnx.ModelProto()
        wrong.CopyFrom(model)
        change(wrong)
        with pytest.raises(InvalidModel, match=f"'{name}'"):
            check(graph, Source.of(wrong), unit_box(40))


def scaled_weight(model: onnx.ModelProto, i: int) -> None:
    """One entry in 1600 changes by five percent."""
    tensor = next(t for t in model.graph.initializer if t.name == f"w{i}")
    array = numpy_helper.to_array(tensor).copy()
    array[3, 5] += np.float32(0.02)
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def slope(model: onnx.ModelProto, i: int) -> None:
    next(n for n in model.graph.node if n.name == f"act{i}").attribute.append(helper.make_attribute("alpha", 0.0101))


def test_rounding_is_no_difference() -> None:
    """A bias of 1e9 that cancels: float32 and the reals differ by tens, and that is rounding."""
    nodes = [node("Gemm", ["x", "w", "b"], ["h"]), node("Add", ["h", "c"], ["y"])]
    big = np.full(4, 1e9, np.float32)
    model = build(nodes, {"x": [1, 4]}, ["y"], {"w": f(4, 4), "b": big, "c": -big})
    graph = lower(model)
    check(graph, Source.of(model), unit_box(4))
    x = np.full(4, 0.3)
    assert np.abs(OnnxRuntime(model.SerializeToString()).run(x) - evaluate(graph, torch.from_numpy(x)[None])[0].numpy()).max() > 0.1


def test_scales_beyond_float32() -> None:
    """Where the network's own type overflows, nothing can be compared; elsewhere it is."""
    model = build([node("Mul", ["x", "w"], ["y"])], {"x": [1, 2]}, ["y"], {"w": np.array([1e30, 1.0], np.float32)})
    graph = lower(model)
    check(graph, Source.of(model), Box([0.0, 0.0], [1e20, 1.0]))
    with pytest.raises(InvalidModel, match="overflow"):
        check(graph, Source.of(model), Box([1e20, 0.0], [1e21, 1.0]))


def test_what_onnx_runtime_refuses_is_refused() -> None:
    model = dense()
    graph = lower(model)
    model.graph.node[0].op_type = "Gem"
    with pytest.raises(InvalidModel, match="ONNX Runtime"):
        check(graph, Source.of(model), unit_box(4))


def test_a_runtime_takes_a_point_whatever_its_batch_axis_is_called() -> None:
    model = build([node("Gemm", ["x", "w"], ["y"])], {"x": ["n", 4]}, ["y"], {"w": f(4, 3)})
    runtime = OnnxRuntime(model.SerializeToString())
    y = runtime.run(RNG.normal(size=4))
    assert y.shape == (3,) and y.dtype == np.float64
    with pytest.raises(ValueError, match="4 inputs"):
        runtime.run(np.zeros(3))


# What is refused


def refused(model: onnx.ModelProto, error: type[InvalidInput], *words: str) -> None:
    with pytest.raises(error) as caught:
        lower(model)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_operators_without_a_rule_are_named() -> None:
    refused(single("Hardmax", (1, 3)), UnsupportedOperator, "Hardmax", "'it'", "supported operators")
    refused(single("ArgMax", (1, 3)), UnsupportedOperator, "ArgMax", "'it'")
    refused(single("Pow", (1, 3), f(3)), UnsupportedOperator, "Pow", "exponents")
    refused(single("Pow", -np.ones(3, np.float32), (1, 3)), InvalidModel, "Pow", "not positive")
    refused(single("Gather", f(3, 2), (1,)), UnsupportedOperator, "Gather")
    refused(single("Cast", (1, 3), to=TensorProto.UINT8), UnsupportedOperator, "Cast", "real types")
    custom = build([node("Relu", ["x"], ["y"], name="own", domain="com.acme")], {"x": [1, 3]}, ["y"])
    refused(custom, UnsupportedOperator, "'own'", "com.acme")
    refused(build([node("HardSwish", ["x"], ["y"])], {"x": [1, 3]}, ["y"], opset=9), UnsupportedOperator, "HardSwish", "opset 9")
    random = build([node("RandomNormal", [], ["r"], shape=[3]), node("Add", ["x", "r"], ["y"])], {"x": [1, 3]}, ["y"])
    refused(random, UnsupportedOperator, "RandomNormal")


def test_attributes_without_a_rule_are_named() -> None:
    statistics = [f(3), f(3), f(3), np.abs(f(3))]
    refused(single("BatchNormalization", (2, 3, 4), *statistics, opset=15, training_mode=1), UnsupportedOperator, "training_mode")
    refused(single("BatchNormalization", (2, 3, 4), *statistics, opset=7, spatial=0), UnsupportedOperator, "spatial")
    agrees(single("BatchNormalization", (2, 3, 4), *statistics, opset=15, training_mode=0))
    refused(single("Relu", (1, 3), slope=0.1), UnsupportedOperator, "slope")
    refused(single("Dropout", (1, 3), np.array(0.5, np.float32), np.array(True)), UnsupportedOperator, "training")
    padded = single("Conv", (1, 1, 5), f(1, 1, 3), kernel_shape=[3], dilations=[2], auto_pad="SAME_UPPER")
    refused(padded, UnsupportedOperator, "auto_pad")
    indices = single("MaxPool", (1, 1, 4), outputs=2, kernel_shape=[2])
    refused(indices, UnsupportedOperator, "MaxPool", "'out1'")


@pytest.mark.parametrize("opset", [6, NEWEST_OPSET + 1])
def test_opsets_outside_the_range(opset: int) -> None:
    refused(single("Relu", (1, 3), opset=opset), UnsupportedOperator, f"opset {opset}")


def test_the_newest_opset_is_compared_whether_the_runtime_knows_it_or_not() -> None:
    model = dense(NEWEST_OPSET)
    model.ir_version = onnx.IR_VERSION
    graph = agrees(model)
    x = RNG.normal(size=4).astype(np.float32).astype(np.float64)
    np.testing.assert_allclose(
        OnnxRuntime(model.SerializeToString()).run(x), evaluate(graph, torch.from_numpy(x)[None])[0].numpy(), atol=1e-5
    )


def test_only_what_opsets_define_alike_is_declared_older() -> None:
    inner = helper.make_graph([node("Relu", ["x"], ["b"])], "branch", [], [helper.make_tensor_value_info("b", TensorProto.FLOAT, [1, 3])])
    chosen = node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    branches = build([chosen], {"x": [1, 3]}, ["y"], {"c": np.array(True)}, opset=25)
    data = declared_older(branches.SerializeToString(), 24, 8)
    assert data is not None
    older = onnx.load_model_from_string(data)
    assert [o.version for o in older.opset_import] == [24]
    assert older.ir_version == 8
    assert older.graph == branches.graph
    assert declared_older(data, 24, 8) is None
    with pytest.raises(InvalidModel, match=r"opset 20.* Gelu"):  # new in 20
        declared_older(single("Gelu", (1, 3), opset=20).SerializeToString(), 19, 10)
    with pytest.raises(InvalidModel, match=r"opset 13.* ReduceSum"):  # its axes became an input
        declared_older(single("ReduceSum", (1, 3), ints(1), opset=13).SerializeToString(), 12, 10)
    with pytest.raises(InvalidModel, match=r"opset 13.* Squeeze"):  # within a branch
        branch = helper.make_graph(
            [node("Squeeze", ["x"], ["b"])], "branch", [], [helper.make_tensor_value_info("b", TensorProto.FLOAT, None)]
        )
        hidden = build(
            [node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)], {"x": [1, 3]}, ["y"], {"c": np.array(True)}, opset=13
        )
        declared_older(hidden.SerializeToString(), 12, 10)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers_are_named(value: float) -> None:
    weight = f(4, 3)
    weight[1, 2] = value
    refused(single("MatMul", (1, 4), weight), InvalidModel, "initializer 'in1'", str(value))
    constant = node("Constant", [], ["w"], value=numpy_helper.from_array(weight))
    refused(build([constant, node("MatMul", ["x", "w"], ["y"])], {"x": [1, 4]}, ["y"]), InvalidModel, "'w'", str(value))


def test_networks_that_contradict_themselves() -> None:
    refused(single("MatMul", (1, 4), f(3, 3)), InvalidModel, "MatMul", "'it'", "(1, 4)")
    refused(single("Reshape", (1, 4), ints(3, -1)), InvalidModel, "Reshape", "'it'")
    refused(single("Conv", (1, 2, 4), f(1, 3, 2)), InvalidModel, "Conv", "'it'")
    refused(single("Conv", (1, 1, 4), f(1, 1, 5)), InvalidModel, "Conv", "larger")
    refused(single("Add", (1, 4), f(3)), InvalidModel, "Add", "'it'")
    refused(single("Concat", (1, 4), (2, 3), axis=1), InvalidModel, "Concat", "'it'")
    refused(single("Div", (1, 4), np.zeros(4, np.float32)), InvalidModel, "Div", "zero")
    refused(single("Squeeze", (1, 4), ints(1)), InvalidModel, "Squeeze")
    refused(single("MaxPool", (1, 1, 4), kernel_shape=[2], pads=[0, 3]), InvalidModel, "padding")
    refused(single("Gemm", (1, 4), opset=11), InvalidModel, "Gemm", "no input 1")
    refused(build([node("Relu", ["z"], ["y"])], {"x": [1, 4]}, ["y"]), InvalidModel, "'z'")
    refused(build([], {"x": [1, 4]}, ["y"]), InvalidModel, "'y'")


def test_inputs_that_cannot_be_used() -> None:
    relu = [node("Relu", ["x"], ["y"])]
    refused(build(relu, {"x": ["batch", "length"]}, ["y"]), InvalidModel, "axis 1", "'x'", "length")
    refused(build(relu, {"x": None}, ["y"]), InvalidModel, "'x'", "no shape")
    refused(build(relu, {"x": [1, 4]}, ["y"], kind=TensorProto.INT64), InvalidModel, "no output of real numbers", "'y' is int64")
    whole = build(relu, {"x": [1, 4]}, ["y"])
    whole.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64
    refused(whole, InvalidModel, "'x'", "INT64")


# The benchmarks


@pytest.mark.parametrize("family", FAMILIES)
def test_benchmark_networks_agree_with_onnx_runtime(benchmarks: Path, family: str) -> None:
    paths = sorted(path for path in (benchmarks / family / "onnx").iterdir() if path.name.endswith((".onnx", ".onnx.gz")))
    assert paths
    for path in paths:
        model = read_onnx(path)
        graph = lower(model)
        check(graph, Source.of(model), Box(np.zeros(graph.nx), np.ones(graph.nx)))


def test_a_graph_as_a_networkx_graph() -> None:
    """Its nodes know what they are, its edges who reads whom: networkx finds the depth of a network and draws it."""
    graph = lower(dense())
    view = graph.to_networkx()
    assert networkx.is_directed_acyclic_graph(view)
    assert sorted(view.edges) == sorted({(i, n.id) for n in graph.nodes for i in n.inputs})
    assert [view.nodes[n.id]["shape"] for n in graph.nodes] == [n.shape for n in graph.nodes]
    assert set(networkx.ancestors(view, graph.output)) | {graph.output} == graph.ancestors[graph.output]
    longest = [0] * len(graph.nodes)
    for n in graph.nodes[1:]:
        longest[n.id] = 1 + max(longest[i] for i in n.inputs)
    assert networkx.dag_longest_path_length(view) == max(longest)
