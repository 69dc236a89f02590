"""Queries of VNN-LIB 2 from the command line: verdicts beside those of one merged network in VNN-LIB 1, assignments, and refusals."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from networks import absolute_value, write_graph, write_relu_network
from onnx import TensorProto, compose, helper, numpy_helper
from support import Run, refused

import milpverify as mv
from milpverify.frontends.queries import load_query
from milpverify.frontends.vnnlib.query import Query
from milpverify.queries.deciding import decide

VERSION = "(vnnlib-version <2.0>)\n"


def declared(name: str, x: str, y: str, relation: str = "", nx: int = 2, ny: int = 1, dtype: str = "real") -> str:
    relation = f"({relation}) " if relation else ""
    return f"(declare-network {name} {relation}(declare-input {x} {dtype} [1,{nx}]) (declare-output {y} {dtype} [1,{ny}]))\n"


def box(name: str, low: float = -1.0, high: float = 1.0, nx: int = 2) -> str:
    return "".join(f"(assert (and (>= {name}[0,{i}] {low}) (<= {name}[0,{i}] {high})))\n" for i in range(nx))


def random_layers(seed: int, *sizes: int) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [(rng.normal(size=(m, n)) / n**0.5, rng.normal(size=m) / 4) for n, m in pairwise(sizes)]


def rising(path: Path) -> Path:
    """Rising in x_0."""
    (w, b), (v, c) = random_layers(0, 2, 12, 1)
    w[:, 0] = abs(w[:, 0])
    return write_relu_network(path, [(w, b), (abs(v), c)])


def absolute_otherwise(path: Path, factor: float = 1.0) -> Path:
    """|x_0| + |x_1| with the neurons in another order, times a factor."""
    hidden = np.array([[0.0, -2.0], [1.0, 0.0], [0.0, 2.0], [-1.0, 0.0]])
    return write_relu_network(path, [(hidden, np.zeros(4)), (factor * np.array([[0.5, 1.0, 0.5, 1.0]]), np.zeros(1))])


def controller(path: Path) -> Path:
    """u = -max(-1, min(1, (x_0 + x_1) / 2)), exact in float32 at multiples of small powers of two."""
    ones = np.full((2, 2), 0.5)
    return write_relu_network(path, [(ones, np.array([1.0, -1.0])), (np.array([[-1.0, 1.0]]), np.ones(1))])


def plant(path: Path) -> Path:
    """(x_0 + x_1 / 4, x_1 + u / 2) of (x_0, x_1, u)."""
    return write_relu_network(path, [(np.array([[1.0, 0.25, 0.0], [0.0, 1.0, 0.5]]), np.zeros(2))])


def two_ends(path: Path) -> Path:
    """p = a - b (2), q = relu(a) (2,), of two inputs."""
    a, b = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [2]) for n in "ab")
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2]) for n in "pq"]
    nodes = [helper.make_node("Sub", ["a", "b"], ["p"]), helper.make_node("Relu", ["a"], ["q"])]
    graph = helper.make_graph(nodes, "test", [a, b], ends)
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString())
    return path


@dataclass(frozen=True)
class Case:
    """A query, what writes its networks, and the word."""

    text: str
    networks: dict[str, Callable[[Path], Path]]
    word: str

    def write(self, folder: Path) -> tuple[Path, dict[str, Path]]:
        path = folder / "q.vnnlib"
        path.write_text(VERSION + self.text)
        return path, {name: make(folder / f"{name}.onnx") for name, make in self.networks.items()}


TWINS = declared("f", "X", "Y") + declared("g", "U", "V", "equal-to f")
ORDERED = TWINS + box("X") + box("U") + "(assert (<= X[0,0] U[0,0]))\n(assert (== X[0,1] U[0,1]))\n"
SAME = declared("f", "X", "Y") + declared("g", "U", "V", "isomorphic-to f") + box("X") + box("U")
SAME += "(assert (== X[0,0] U[0,0]))\n(assert (== X[0,1] U[0,1]))\n"
APART = "(assert (or (> (- Y[0,0] V[0,0]) {0}) (> (- V[0,0] Y[0,0]) {0})))"
LOOP = declared("c", "S", "A") + declared("p", "P", "N", nx=3, ny=2) + box("S", 0.0) + box("P", 0.0, nx=2)
LOOP += "(assert (and (>= P[0,2] -2.0) (<= P[0,2] 2.0)))\n(assert (== P[0,0] S[0,0]))\n(assert (== P[0,1] S[0,1]))\n"
ENDS = """(declare-network n (declare-input A real [2]) (declare-input B real [2]) (declare-output P real [2]) (declare-output Q real [2]))
(assert (and (>= A[0] 0.0) (<= A[0] 1.0) (>= A[1] 0.0) (<= A[1] 1.0)))
(assert (and (>= B[0] 10.0) (<= B[0] 11.0) (>= B[1] 10.0) (<= B[1] 11.0)))
"""
ONE = declared("f", "X", "Y") + box("X")

CASES = {
    "rises": Case(ORDERED + "(assert (< V[0,0] Y[0,0]))", {"f": rising}, "unsat"),
    "rises-by-more": Case(ORDERED + "(assert (> V[0,0] (+ Y[0,0] 0.25)))", {"f": rising}, "sat"),
    "rises-at-most": Case(ORDERED + "(assert (> V[0,0] (+ Y[0,0] 1000.0)))", {"f": rising}, "unsat"),
    "falls": Case(ORDERED + "(assert (> V[0,0] Y[0,0]))", {"f": rising}, "sat"),
    "not-different": Case(ORDERED + "(assert (== X[0,0] U[0,0]))\n(assert (!= V[0,0] Y[0,0]))", {"f": rising}, "unsat"),
    "equal-inputs": Case(
        TWINS + box("X") + box("U") + "(assert (and (== X[0,0] U[0,0]) (== X[0,1] U[0,1])))\n" + APART.format(0.0),
        {"f": absolute_value}, "unsat",
    ),
    "symmetric": Case(
        TWINS + box("X") + box("U") + "(assert (and (== X[0,0] U[0,1]) (== X[0,1] U[0,0])))\n" + APART.format(0.001),
        {"f": absolute_value}, "unsat",
    ),
    "steep": Case(
        TWINS + box("X") + box("U") + "(assert (== X[0,1] U[0,1]))\n(assert (<= (- U[0,0] X[0,0]) 0.125))\n(assert (>= U[0,0] X[0,0]))\n"
        "(assert (> (- V[0,0] Y[0,0]) 0.25))", {"f": absolute_value}, "unsat",
    ),
    "equivalent": Case(SAME + APART.format(0.001), {"f": absolute_value, "g": absolute_otherwise}, "unsat"),
    "close": Case(SAME + APART.format(0.05), {"f": absolute_value, "g": lambda p: absolute_otherwise(p, 1.0078125)}, "unsat"),
    "not-close": Case(SAME + APART.format(0.01), {"f": absolute_value, "g": lambda p: absolute_otherwise(p, 1.0078125)}, "sat"),
    "unrelated": Case(
        declared("f", "X", "Y") + declared("g", "U", "V") + box("X") + box("U", 2.0, 3.0) + "(assert (<= V[0,0] Y[0,0]))",
        {"f": absolute_value, "g": absolute_otherwise}, "unsat",
    ),
    "unrelated-overlap": Case(
        declared("f", "X", "Y") + declared("g", "U", "V") + box("X") + box("U", 0.5, 3.0) + "(assert (< V[0,0] Y[0,0]))",
        {"f": absolute_value, "g": absolute_otherwise}, "sat",
    ),
    "loop-stays": Case(LOOP + "(assert (== P[0,2] A[0,0]))\n(assert (> N[0,1] 1.01))", {"c": controller, "p": plant}, "unsat"),
    "loop-leaves": Case(
        LOOP + "(assert (<= P[0,2] (+ A[0,0] 0.01)))\n(assert (>= P[0,2] (- A[0,0] 0.01)))\n(assert (>= N[0,0] 1.125))",
        {"c": controller, "p": plant}, "sat",
    ),
    "three": Case(
        ORDERED.replace(TWINS, TWINS + declared("h", "T", "W", "equal-to f")) + box("T")
        + "(assert (and (<= U[0,0] T[0,0]) (== U[0,1] T[0,1])))\n(assert (< W[0,0] Y[0,0]))", {"f": rising}, "unsat",
    ),
    "two-inputs": Case(ENDS + "(assert (>= P[0] -8.5))", {"n": two_ends}, "unsat"),
    "two-outputs": Case(ENDS + "(assert (and (<= P[1] -10.25) (>= Q[1] 0.5)))", {"n": two_ends}, "sat"),
    "strict": Case(ONE + "(assert (> Y[0,0] 2.0))", {"f": absolute_value}, "unsat"),
    "not-strict": Case(ONE + "(assert (>= Y[0,0] 2.0))", {"f": absolute_value}, "sat"),
    "choices": Case(ONE + "(assert (or (> Y[0,0] 2.0) (and (< Y[0,0] 0.5) (> X[0,0] 0.75))))", {"f": absolute_value}, "unsat"),
    "inputs-contradict": Case(ONE + "(assert (>= X[0,0] 2.0))", {"f": absolute_value}, "unsat"),
    "inputs-alone": Case(ONE + "(assert (>= (+ X[0,0] X[0,1]) 1.5))", {"f": absolute_value}, "sat"),
}  # fmt: skip


def arguments(case: Case, folder: Path) -> list[str | Path]:
    path, networks = case.write(folder)
    return ["verify", path, *(word for name, file in networks.items() for word in ("--network", f"{name}={file}"))]


def values(query: Query, text: str) -> dict[str, np.ndarray]:
    """The assignment that follows the first line."""
    lines = text.splitlines()[1:]
    found = {}
    for network in query.networks:
        for variable in (*network.inputs, *network.outputs):
            head, *numbers = lines[: 1 + variable.size]
            assert head == f"{variable.name} {variable.dtype} [{','.join(map(str, variable.shape))}]"
            found[variable.name] = np.array([float(n) for n in numbers]).reshape(variable.shape)
            lines = lines[1 + variable.size :]
    assert not lines
    return found


@pytest.mark.parametrize("name", CASES)
def test_verdicts_and_assignments(run_main: Run, tmp_path: Path, name: str) -> None:
    case = CASES[name]
    done = run_main(*arguments(case, tmp_path), "--timeout", "20", "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split()[0] == case.word
    if case.word == "unsat":
        assert done.stdout == "unsat\n"
        return
    query = Query(VERSION + case.text, "q")
    point = values(query, done.stdout)
    for network in query.networks:
        file = tmp_path / f"{network.equal_to or network.name}.onnx"
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        feeds = {i.name: point[v.name].astype(np.float32) for i, v in zip(session.get_inputs(), network.inputs, strict=True)}
        for variable, y in zip(network.outputs, session.run(None, feeds), strict=True):
            np.testing.assert_allclose(point[variable.name], y, rtol=1e-6, atol=1e-6)


def merged(query: Query, files: dict[str, Path], path: Path) -> Path:
    """All networks of a query as one, of the flat inputs x (1, nx) and the flat outputs y (1, ny)."""
    nodes, weights, ends, offset = [], [], [], 0
    for k, network in enumerate(query.networks):
        model = compose.add_prefix(onnx.load(files[network.equal_to or network.name]), f"n{k}_")
        for info, variable in zip(model.graph.input, network.inputs, strict=True):
            names = [f"{info.name}_{part}" for part in ("from", "to", "shape", "flat")]
            numbers = [offset], [offset + variable.size], list(variable.shape)
            weights += [numpy_helper.from_array(np.array(n, dtype=np.int64), name) for n, name in zip(numbers, names, strict=False)]
            weights.append(numpy_helper.from_array(np.array([1]), f"{info.name}_axis"))
            nodes.append(helper.make_node("Slice", ["x", names[0], names[1], f"{info.name}_axis"], [names[3]]))
            nodes.append(helper.make_node("Reshape", [names[3], names[2]], [info.name]))
            offset += variable.size
        nodes += model.graph.node
        weights += model.graph.initializer
        for info in model.graph.output:
            nodes.append(helper.make_node("Flatten", [info.name], [f"{info.name}_flat"], axis=0))
            ends.append(f"{info.name}_flat")
    return write_graph(path, [*nodes, helper.make_node("Concat", ends, ["y"], axis=1)], query.nx, query.ny, weights)


@pytest.mark.parametrize("name", [n for n, case in CASES.items() if "!=" not in case.text and n != "inputs-contradict"])
def test_one_merged_network_has_the_same_verdict(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    _, files = case.write(tmp_path)
    query = Query(VERSION + case.text, "q")

    def variable(match: re.Match[str]) -> str:
        place = query.place(match[1], [int(i) for i in match[2].split(",")])
        return f"X_{place}" if place < query.nx else f"Y_{place - query.nx}"

    text = "".join(f"(declare-const X_{i} Real)\n" for i in range(query.nx)) + "".join(
        f"(declare-const Y_{i} Real)\n" for i in range(query.ny)
    )
    assertions = case.text[case.text.index("(assert") :]
    for line in case.text.splitlines():
        if line.startswith("(declare-network"):
            assertions = assertions.replace(line, "")
    text += re.sub(r"(\w+)\[([\d,]+)\]", variable, assertions).replace("==", "=")
    (tmp_path / "p.vnnlib").write_text(text)
    problem = mv.load(merged(query, files, tmp_path / "merged.onnx"), tmp_path / "p.vnnlib")
    assert mv.verify(problem, timeout=20).verdict.value == case.word


@pytest.mark.parametrize(
    ("assertion", "word"),
    [("(< V[0,0] Y[0,0])", "unknown"), ("(< (+ V[0,0] 0.001) Y[0,0])", "unsat"), ("(> V[0,0] (+ Y[0,0] 0.25))", "sat")],
)
def test_a_type_asks_for_what_holds_in_its_arithmetic_too(run_main: Run, tmp_path: Path, assertion: str, word: str) -> None:
    """The runtime may round so that a network that rises does not; by how much is bounded."""
    case = Case(ORDERED.replace("real", "float32") + f"(assert {assertion})", {"f": rising}, word)
    done = run_main(*arguments(case, tmp_path), "--timeout", "20")
    assert done.stdout.split()[0] == word
    if word == "unknown":
        assert "ask for the reals by the type 'real'" in done.stderr
    if word == "sat":
        point = values(Query(VERSION + case.text, "q"), done.stdout)
        assert (point["X"].astype(np.float32) == point["X"]).all()


def test_literals_are_numbers_of_the_type(run_main: Run, tmp_path: Path) -> None:
    """No float32 is 0.1, but the one that it denotes is; and 0.1 + 0.2 is not 0.3 in float64, where it is in the reals by no means."""
    identity = {"f": lambda path: write_graph(path, [helper.make_node("Identity", ["x"], ["y"])], 1, 1)}
    text = declared("f", "X", "Y", nx=1, dtype="float32") + "(assert (and (== X[0,0] 0.1) (== Y[0,0] 0.1)))"
    done = run_main(*arguments(Case(text, identity, "sat"), tmp_path), "--quiet")
    assert done.stdout == "sat\nX float32 [1,1]\n0.1\nY float32 [1,1]\n0.1\n"


STANDARD = {
    "simple": ("""(declare-network myNetwork
    (declare-input  X float32 [1,10])
    (declare-output Y float32 [1,2])
)

(assert (>= X[0,2] 0.0))
(assert (<= X[0,2] 1.0))
(assert (<= Y[0,1] 0.5))""", {"myNetwork": (10, 2)}),
    "equal": ("""(declare-network f
    (declare-input  A float32 [1,10])
    (declare-output B float32 [1,2])
)

(declare-network f_copy
    (equal-to f)
    (declare-input  C float32 [1,10])
    (declare-output D float32 [1,2])
)
(assert (> D[0,1] B[0,1]))""", {"f": (10, 2)}),
    "isomorphic": ("""(declare-network f
    (declare-input  A float32 [1,10])
    (declare-output B float32 [1,2])
)

(declare-network g
    (isomorphic-to f)
    (declare-input  C float32 [1,10])
    (declare-output D float32 [1,2])
)
(assert (> D[0,1] B[0,1]))""", {"f": (10, 2), "g": (10, 2)}),
    "teacher and student": ("""(declare-network teacher
    (declare-input  tX real [1,32])
    (declare-output tY real [1,2])
)

(declare-network student
    (declare-input  sX real [1,32])
    (declare-output sY real [1,2])
)
(assert (>= (+ tY[0,0] sX[0,0]) sY[0,0]))""", {"teacher": (32, 2), "student": (32, 2)}),
    "linear": ("""(declare-network f
    (declare-input  X float32 [1,2])
    (declare-output Y float32 [1,2])
)
(assert (<= (+ (* 0.5 X[0,0]) (* 0.75 X[0,1])) 1.0))
(assert (>= (+ Y[0,0] Y[0,1]) 0.5))""", {"f": (2, 2)}),
}  # fmt: skip


@pytest.mark.parametrize("name", STANDARD)
def test_examples_of_the_standard(run_main: Run, tmp_path: Path, name: str) -> None:
    """They leave inputs without bounds, so that "sat" is all that can be said: assertions are added to the declarations it shows alone."""
    text, networks = STANDARD[name]
    makers = {
        n: lambda p, s=sizes, k=k: write_relu_network(p, random_layers(k, s[0], 8, s[1])) for k, (n, sizes) in enumerate(networks.items())
    }
    done = run_main(*arguments(Case(text, makers, "sat"), tmp_path), "--timeout", "20")
    assert done.stdout.split()[0] == "sat"
    assert "bound" in done.stderr.splitlines()[0]
    values(Query(VERSION + text, "q"), done.stdout)


@pytest.mark.parametrize(
    "assertion", ["(< Y[0,0] -1.0)", "(>= X[0,0] 2000.0)", "(and (>= X[0,0] 2000.0) (<= X[0,0] 2001.0) (>= Y[0,0] 0.0))"]
)
def test_inputs_without_bounds_prove_nothing(run_main: Run, tmp_path: Path, assertion: str) -> None:
    text = declared("f", "X", "Y") + f"(assert {assertion})"
    done = run_main(*arguments(Case(text, {"f": absolute_value}, "unknown"), tmp_path))
    assert done.stdout == "unknown\n"
    assert "without bounds" in done.stderr


def test_a_tensor_without_axes(run_main: Run, tmp_path: Path) -> None:
    """The standard's example."""
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in (("x", [1, 2]), ("y", [])))
    graph = helper.make_graph([helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)], "test", [x], [y])
    (tmp_path / "net.onnx").write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8).SerializeToString()
    )
    text = """(declare-network f
    (declare-input  X float32 [1,2])
    (declare-output Y float32 [])
)

(assert (>= X[0,0] 0.0))
(assert (<= X[0,1] 1.0))
(assert (<= Y 0.5))"""
    (tmp_path / "q.vnnlib").write_text(VERSION + text)
    lines = run_main("verify", "q.vnnlib", "--network", "f=net.onnx").stdout.splitlines()
    assert lines[:2] == ["sat", "X float32 [1,2]"]
    assert lines[4] == "Y float32 []"
    assert float(lines[5]) <= 0.5


def test_serialised_assignments(run_main: Run, tmp_path: Path) -> None:
    done = run_main(*arguments(CASES["two-outputs"], tmp_path), "--serialise-assignments", "out", "--quiet")
    assert done.stdout == "sat\n"
    found = {p.name: numpy_helper.to_array(onnx.TensorProto.FromString(p.read_bytes())) for p in (tmp_path / "out").iterdir()}
    assert {name: array.shape for name, array in found.items()} == {f"{name}.pb": (2,) for name in "ABPQ"}
    np.testing.assert_allclose(found["P.pb"], found["A.pb"] - found["B.pb"], rtol=1e-6)


def test_the_result_calls_variables_as_they_are_declared(run_main: Run, tmp_path: Path) -> None:
    run_main(*arguments(CASES["falls"], tmp_path), "--json", "r.json")
    found = json.loads((tmp_path / "r.json").read_text())
    assert [[spec["name"] for spec in found[part]] for part in ("inputs", "outputs")] == [["X", "U"], ["Y", "V"]]
    assert {Path(name).name for name in found["files"]} == {"q.vnnlib", "f.onnx"}


def test_a_counterexample_in_a_type_is_in_the_declared_tensors(tmp_path: Path) -> None:
    text = (PAIR + box("X") + box("U")).replace("real", "float32") + "(assert (> Y[0,0] (+ V[0,0] 0.25)))"
    (tmp_path / "q.vnnlib").write_text(VERSION + text)
    found = decide(load_query(tmp_path / "q.vnnlib", {name: absolute_value(tmp_path / f"{name}.onnx") for name in "fg"})).counterexample
    assert found is not None
    assert {name: (t.shape, t.dtype) for name, t in found.inputs.items()} == dict.fromkeys("XU", ((1, 2), np.float32))
    assert {name: (t.shape, t.dtype) for name, t in found.outputs.items()} == dict.fromkeys("YV", ((1, 1), np.float32))


def test_a_type_has_no_margins_of_assertions_that_were_weakened(tmp_path: Path) -> None:
    for dtype, count in (("real", 1), ("float32", 0)):
        (tmp_path / "q.vnnlib").write_text(VERSION + declared("f", "X", "Y", dtype=dtype) + box("X") + "(assert (>= Y[0,0] 1000.0))")
        found = decide(load_query(tmp_path / "q.vnnlib", {"f": rising(tmp_path / "f.onnx")}))
        assert found.verdict.name == "VERIFIED" and len(found.margins) == count


def test_time_that_is_over(run_main: Run, tmp_path: Path) -> None:
    assert run_main(*arguments(CASES["rises"], tmp_path), "--timeout", "0", "--quiet").stdout == "timed-out\n"


PAIR = declared("f", "X", "Y") + declared("g", "U", "V")
REFUSED = {
    "hidden": (ONE.replace("(declare-output", '(declare-hidden H real [1,2] "h") (declare-output'), "f", ["hidden node 'H'"]),
    "polynomial": (ONE + "(assert (>= (* X[0,0] Y[0,0]) 1.0))", "f", ["line 5", "(* X[0,0] Y[0,0])", "polynomial"]),
    "element type": (ONE.replace("Y real", "Y int64"), "f", ["'Y'", "int64"]),
    "another type": (ONE.replace("real", "float64"), "f", ["X float64 [1,2]", "float32"]),
    "another shape": (declared("f", "X", "Y", nx=3) + box("X", nx=3), "f", ["X real [1,3]", "[1,2]"]),
    "too many outputs": (ONE.replace("))\n(assert", ") (declare-output Z real [1,1]))\n(assert", 1), "f", ["2 outputs", "1: 'y'"]),
    "declared twice": (declared("f", "X", "Y") + declared("f", "U", "V") + box("X"), "f", ["the network 'f' is declared twice"]),
    "no file": (PAIR + box("X") + box("U"), "f", ["--network g=FILE.onnx"]),
    "a file too many": (ONE, "f g", ["declares no network 'g'"]),
    "a file for an equal": (TWINS + box("X") + box("U"), "f g", ["equal to 'f'"]),
    "unknown": (ONE + "(assert (>= Z[0,0] 1.0))", "f", ["line 5", "Z"]),
    "index": (ONE + "(assert (>= X[0,2] 1.0))", "f", ["line 5", "X[0,2]"]),
    "types differ": (ONE.replace("Y real", "Y float32") + "(assert (>= X[0,0] Y[0,0]))", "f", ["line 5", "Type mismatch"]),
    "syntax": (ONE + "(assert (not (>= X[0,0] 1.0)))", "f", ["line 5", "'not'"]),
    "brackets": (ONE + "(assert " + "(and " * 100_000 + "(>= X[0,0] 1.0)" + ")" * 100_001, "f", ["nested"]),
    "a large number": (ONE + "(assert (>= X[0,0] 123456789012345678901234567890))", "f", ["VNN-LIB 2.0"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(run_main: Run, tmp_path: Path, name: str) -> None:
    text, files, words = REFUSED[name]
    text = text if "(assert" in text else text + box("X")
    refused(run_main(*arguments(Case(text, dict.fromkeys(files.split(), absolute_value), ""), tmp_path)), *words)


def test_refused_networks(run_main: Run, tmp_path: Path) -> None:
    case = Case(SAME + APART.format(0.1), {"f": absolute_value, "g": lambda p: write_relu_network(p, random_layers(1, 2, 3, 3, 1))}, "")
    refused(run_main(*arguments(case, tmp_path)), "isomorphic to 'f'", "Gemm")
    refused(run_main(*arguments(Case(ONE, {"f": absolute_value}, ""), tmp_path), "--network", "f=f.onnx"), "twice")
    refused(run_main("verify", "q.vnnlib", "--network", "f"), "NAME=FILE")
    refused(run_main("verify", "q.vnnlib", "--network", "f=nowhere.onnx"), "nowhere.onnx")
    refused(run_main("verify", "q.vnnlib"), "--network")
    refused(run_main("verify", "q.vnnlib", "q.vnnlib", "--network", "f=f.onnx"), "one query")
    refused(run_main("verify", "f.onnx", "q.vnnlib", "--serialise-assignments", "out"), "--serialise-assignments")
    (tmp_path / "old.vnnlib").write_text("(declare-const X_0 Real)\n(assert (>= X_0 1.0))\n")
    refused(run_main("verify", "old.vnnlib", "--network", "f=f.onnx"), "vnnlib-version")


@pytest.mark.parametrize(
    ("capability", "lines"),
    [
        ("vnnlib-versions", "2.0 2.0"), ("hidden-node-theories", "NH"), ("multiple-input-output-theories", "SIO MIO"),
        ("multiple-inputs-output-theories", "SIO MIO"), ("multiple-network-theories", "SNET MENET MINET MNET"),
        ("multiple-node-comparison-theories", "SNC MNC"), ("arithmetic-complexity-theories", "BND OUTC LIN"),
        ("onnx-element-types", "real float16 float32 float64"), ("optimised-disjunctive-reasoning", "false"),
        ("serialise-assignments", "true"), ("unsat-proofs", "false"),
    ],
)  # fmt: skip
def test_what_is_supported(run_main: Run, capability: str, lines: str) -> None:
    assert run_main("supports", f"--{capability}").stdout.split("\n") == [*lines.split(), ""]


def test_supported_operators(run_main: Run) -> None:
    assert {"Constant", "Conv", "Gemm", "MatMul", "Relu", "Softmax"} <= set(run_main("supports", "--onnx-operators").stdout.split())
    low, high = run_main("supports", "--onnx-opset-versions").stdout.split()
    assert int(low) <= 13 <= int(high)
    assert run_main("--name").stdout == "milpverify\n"
    refused(run_main("supports", "--everything"), "--onnx-operators")
    refused(run_main("supports"))
