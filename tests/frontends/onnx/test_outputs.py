"""Which outputs are kept: labels and texts beside them are left out, and what Y_0, Y_1, ... number is said."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from networks import write_property
from onnx import TensorProto, helper, numpy_helper
from support import Run, refused

import milpverify as mv
from milpverify.compare.sources import instances_of
from milpverify.frontends.onnx.outputs import choose
from milpverify.frontends.onnx.overview import overview

BOX = mv.Box([-1.0, -1.0], [1.0, 1.0])
KINDS = {"z": TensorProto.FLOAT, "p": TensorProto.FLOAT, "label": TensorProto.INT64, "name": TensorProto.STRING, "large": TensorProto.BOOL}
UNSAFE = "(and (>= Y_0 Y_1) (>= Y_0 0.75))"


def network(path: Path, outputs: list[str]) -> Path:
    """z = W x, p = softmax(z), label = argmax(z), name = one of three texts, large = p > 1/2; gauss has no rule."""
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["z"]),
        helper.make_node("Softmax", ["z"], ["p"], axis=1),
        helper.make_node("ArgMax", ["z"], ["label"], axis=1, keepdims=0),
        helper.make_node("Gather", ["names", "label"], ["name"]),
        helper.make_node("Greater", ["p", "half"], ["large"]),
        helper.make_node("RandomNormalLike", ["z"], ["gauss"]),
    ]
    constants = [
        numpy_helper.from_array(np.array([[1.0, -2.0, 0.5], [0.25, 1.0, -1.0]], dtype=np.float32), "W"),
        numpy_helper.from_array(np.float32(0.5), "half"),
        helper.make_tensor("names", TensorProto.STRING, [3], [b"a", b"b", b"c"]),
    ]
    ends = [helper.make_tensor_value_info(name, KINDS.get(name, TensorProto.FLOAT), None) for name in outputs]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2])
    graph = helper.make_graph(nodes, "test", [x], ends, constants)
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8).SerializeToString())
    return path


def softmax(x: np.ndarray) -> np.ndarray:
    z = np.exp(x @ np.array([[1.0, -2.0, 0.5], [0.25, 1.0, -1.0]]))
    return z / z.sum(-1, keepdims=True)


@pytest.mark.parametrize("outputs", [["p", "label"], ["p", "name", "label", "large"], ["p"]])
def test_what_is_no_real_number_is_left_out(tmp_path: Path, outputs: list[str]) -> None:
    path, grid = network(tmp_path / "net.onnx", outputs), np.stack(np.meshgrid(*[np.linspace(-1, 1, 201)] * 2), -1).reshape(-1, 2)
    y = softmax(grid)
    most = float(y[y[:, 0] >= y[:, 1], 0].max())
    for threshold, verdict in ((most + 1e-3, "unsat"), (most - 1e-3, "sat")):
        problem = mv.Problem(path, BOX, unsafe=f"(and (>= Y_0 Y_1) (>= Y_0 {threshold}))")
        result = mv.verify(problem, timeout=20)
        assert result.verdict.value == verdict
        assert problem.graph.ny == 3
        assert len(problem.notes) == (len(outputs) > 1)
        for name in outputs[1:]:
            assert name in problem.notes[0] and name in result.note
        if result.counterexample is not None:
            np.testing.assert_allclose(result.counterexample.y, softmax(result.counterexample.x), atol=1e-6)


def test_what_stands_before_has_to_be_said(tmp_path: Path) -> None:
    path = network(tmp_path / "net.onnx", ["label", "z", "p"])
    with pytest.raises(mv.InvalidInput, match=r"output 'label' is int64, .* by --output z --output p \(in Python outputs=\['z', 'p'\]\)"):
        mv.Problem(path, BOX, unsafe=UNSAFE)
    for chosen, shape in ((["z", "p"], 6), (["p", "z"], 6), (["p"], 3)):
        problem = mv.Problem(path, BOX, unsafe=UNSAFE, outputs=chosen)
        assert [spec.name for spec in problem.graph.outputs] == sorted(chosen, reverse=True)
        assert problem.graph.ny == shape
        assert ("'z' (not asked for)" in problem.notes[0]) == (shape == 3)
    assert mv.robustness(path, [1.0, 0.5], 0, 0.1, outputs=["p"]).graph.ny == 3
    assert mv.bounds(path, BOX, outputs=["p"]).output.upper.amax() <= 1.0 + 1e-9
    assert mv.robustness_radius(path, [1.0, 0.5], outputs=["p"], gap=0.2).lower_bound > 0
    with pytest.raises(mv.InvalidInput, match="output 'label', which is int64"):
        mv.Problem(path, BOX, unsafe=UNSAFE, outputs=["label"])
    with pytest.raises(mv.InvalidInput, match="no output 'q'; there are 'z', 'p'"):
        mv.Problem(path, BOX, unsafe=UNSAFE, outputs=["q"])
    with pytest.raises(mv.InvalidInput, match="no output ''"):
        mv.Problem(path, BOX, unsafe=UNSAFE, outputs=[])
    with pytest.raises(mv.InvalidModel, match=r"no output of real numbers.*'label' is int64, 'name' is string"):
        mv.Problem(network(tmp_path / "labels.onnx", ["label", "name"]), BOX, unsafe=UNSAFE)
    with pytest.raises(mv.InvalidInput, match="of an ONNX file"):
        mv.Problem(problem.graph, BOX, unsafe=UNSAFE, outputs=["p"])


def test_outputs_without_a_rule_are_left_out_where_they_are_last(tmp_path: Path) -> None:
    path = network(tmp_path / "net.onnx", ["z", "p", "gauss", "label"])
    problem = mv.Problem(path, BOX, unsafe=UNSAFE)
    assert [spec.name for spec in problem.graph.outputs] == ["z", "p"]
    assert "'gauss' (ONNX operator RandomNormalLike" in problem.notes[0]
    with pytest.raises(mv.UnsupportedOperator, match="RandomNormalLike"):
        mv.Problem(path, BOX, unsafe=UNSAFE, outputs=["z", "gauss"])
    with pytest.raises(mv.UnsupportedOperator, match="RandomNormalLike"):
        mv.Problem(network(tmp_path / "early.onnx", ["gauss", "z", "p"]), BOX, unsafe=UNSAFE)
    assert mv.Problem(tmp_path / "early.onnx", BOX, unsafe=UNSAFE, outputs=["p"]).graph.ny == 3
    beyond = write_property(tmp_path / "beyond.vnnlib", [-1.0, -1.0], [1.0, 1.0], "(<= Y_7 0.5)", ny=8)
    with pytest.raises(mv.InvalidProperty, match=r"names output Y_6, but the network has 6 outputs \(outputs left out: 'label'"):
        mv.load(path, beyond)


def test_from_the_command_line(run_main: Run, tmp_path: Path) -> None:
    path, spec = network(tmp_path / "net.onnx", ["label", "z", "p"]), tmp_path / "p.vnnlib"
    write_property(spec, [-1.0, -1.0], [1.0, 1.0], "(>= Y_0 0.999)", ny=3)
    refused(run_main("verify", path, spec), "'label'", "--output z --output p")
    done = run_main("verify", path, spec, "--output", "p", "--json", tmp_path / "r.json")
    assert done.stdout.splitlines()[0] == "unsat"
    assert "milpverify: outputs left out: 'label' (int64), 'z' (not asked for); 'p' is Y_0 to Y_2" in done.stderr.splitlines()
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["outputs"] == [{"name": "p", "shape": [1, 3], "dtype": "float32", "range": ["Y_0", "Y_2"]}]
    assert found["inputs"] == [{"name": "x", "shape": [1, 2], "dtype": "float32", "range": ["X_0", "X_1"]}]
    assert "'label' (int64)" in found["note"]
    assert run_main("verify", path, spec, "--output", "z").stdout.splitlines()[0] == "sat"
    for instance in instances_of([mv.load(path, spec, outputs=["p"])]) + instances_of([(path, spec)], ["p"]):
        assert instance.outputs == ("p",)
        assert instance.load().graph.ny == 3


def test_info_shows_the_variables(tmp_path: Path) -> None:
    model = onnx.load(network(tmp_path / "net.onnx", ["label", "z", "p"]))
    found = overview(model)
    assert [row[1:] for row in found.tensors[1:]] == [
        ("label", "int64", "()", "left out: int64"),
        ("z", "float", "()", "Y_0 to Y_2"),
        ("p", "float", "()", "Y_3 to Y_5"),
    ]
    assert "--output z --output p" in found.choice and not found.obstacle
    assert {name: word for name, _, word in found.operators}["ArgMax"] == "not needed"
    found = overview(model, ["p"])
    assert not found.choice
    assert [row[4] for row in found.tensors] == ["X_0 to X_1", "left out: int64", "left out: not asked for", "Y_0 to Y_2"]


def test_what_is_no_tensor_is_named(tmp_path: Path) -> None:
    graph = onnx.load(network(tmp_path / "net.onnx", ["p"])).graph
    maps = helper.make_sequence_type_proto(helper.make_map_type_proto(7, helper.make_tensor_type_proto(1, None)))
    graph.output.append(helper.make_value_info("maps", maps))
    assert choose(graph).left == (("maps", "a sequence"),)
    for labels, kept in (([4, 2, 9], True), ([4, 2, 4], False)):
        other = onnx.GraphProto()
        other.CopyFrom(graph)
        other.node.append(helper.make_node("ZipMap", ["p"], ["maps"], domain="ai.onnx.ml", classlabels_int64s=labels))
        assert (choose(other).keys == {"p": (), "maps": (4, 2, 9)}) == kept
