"""Input that is damaged, malicious or simply wrong ends as one line that says what is expected, and files are read once."""

from __future__ import annotations

import gzip
import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from mutations import PROPERTY, networks, write_case
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import milpverify as mv
from milpverify.frontends import files
from milpverify.frontends.onnx.reading import read_onnx


@pytest.mark.parametrize("kind", ["onnx", "vnnlib"])
def test_mutated_files_are_decided_or_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    endings = set()
    for seed in range(1000, 1050):
        network, spec = write_case(tmp_path, kind, seed)
        try:
            problem = mv.load(network, spec)
        except mv.InvalidInput as error:
            assert "\n" not in str(error), (seed, str(error))
            endings.add("refused")
        else:
            endings.add(mv.verify(problem, timeout=0.5).verdict.value)
    assert {"refused", "unsat"} <= endings


# -- read once -----------------------------------------------------------------------------------------------------------------------


def _files(folder: Path) -> tuple[Path, Path]:
    network, spec = folder / "net.onnx", folder / "spec.vnnlib"
    network.write_bytes(networks()[0].SerializeToString())
    spec.write_text(PROPERTY)
    return network, spec


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_hashes_are_those_of_what_was_decided_unpacked(tmp_path: Path) -> None:
    network, spec = _files(tmp_path)
    packed, spec_packed = tmp_path / "net.onnx.gz", tmp_path / "spec.vnnlib.gz"
    data = network.read_bytes()
    packed.write_bytes(gzip.compress(data))
    spec_packed.write_bytes(gzip.compress(PROPERTY.encode()))
    for paths in ((network, spec), (packed, spec_packed)):
        problem = mv.load(*paths)
        for path in paths:
            path.write_text("replaced")
            path.unlink()
        result = mv.verify(problem, timeout=10)
        assert result.files == {str(paths[0]): _sha256(data), str(paths[1]): _sha256(PROPERTY.encode())}


def test_pipes_are_read_like_files(tmp_path: Path) -> None:
    network, spec = _files(tmp_path)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(gzip.compress(PROPERTY.encode()),), daemon=True)
    writer.start()
    result = mv.verify(mv.load(network, pipe), timeout=10)
    writer.join(10)
    assert result.files[str(pipe)] == _sha256(PROPERTY.encode())
    assert mv.load(network, spec).files[str(network)] == result.files[str(network)]


# -- weights in files of their own ---------------------------------------------------------------------------------------------------


def _apart(folder: Path, **changed: str) -> Path:
    """A network whose first weights lie in `w.bin`, as a description says that may be wrong."""
    model = networks()[0]
    tensor = next(t for t in model.graph.initializer if t.name == "W")
    (folder / "w.bin").write_bytes(b"\0" * 8 + numpy_helper.to_array(tensor).tobytes())
    tensor.raw_data = b""
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": "w.bin", "offset": "8", "length": "24", **changed}.items():
        tensor.external_data.add(key=key, value=value)
    path = folder / "apart.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_weights_in_files_of_their_own_are_hashed_too(tmp_path: Path) -> None:
    network, spec = _files(tmp_path)
    apart = _apart(tmp_path)
    problem = mv.load(apart, spec)
    weights = (tmp_path / "w.bin").read_bytes()
    (tmp_path / "w.bin").unlink()
    result = mv.verify(problem, timeout=10)
    assert list(result.files) == [str(apart), str(tmp_path / "w.bin"), str(spec)]
    assert result.files[str(tmp_path / "w.bin")] == _sha256(weights)
    assert result.lower_bound == mv.verify(mv.load(network, spec), timeout=10).lower_bound


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"offset": "abc"}, "their offset 'abc' is no number of bytes"),
        ({"offset": "-8"}, "their offset '-8' is no number of bytes"),
        ({"offset": "9" * 5000}, "is no number of bytes"),
        ({"length": "1000000000000000"}, "are bytes 8 to 1000000000000008, but the file holds 32"),
        ({"offset": "16"}, "are bytes 16 to 40, but the file holds 32"),
        ({"offset": "40", "length": "0"}, "but the file holds 32"),
        ({"length": "20"}, "the initializer 'W' is damaged"),
        ({"location": "../w.bin"}, "must lie in the folder of the network or below"),
        ({"location": "/etc/passwd"}, "must lie in the folder of the network or below"),
        ({"location": ""}, "must lie in the folder of the network or below"),
        ({"location": "none.bin"}, "there is no file"),
        ({"location": "pipe"}, "it is no regular file"),
    ],
)
def test_weights_that_are_not_there_as_described(tmp_path: Path, changed: dict[str, str], message: str) -> None:
    _, spec = _files(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(mv.InvalidModel, match=message):
        mv.load(_apart(tmp_path, **changed), spec)


# -- sizes ---------------------------------------------------------------------------------------------------------------------------


def test_more_bytes_than_allowed_are_not_read(tmp_path: Path) -> None:
    network, spec = _files(tmp_path)
    bomb = tmp_path / "bomb.gz"
    bomb.write_bytes(gzip.compress(b"\0" * 10_000_000))
    assert len(bomb.read_bytes()) < 20_000
    for pair in ((bomb, spec), (network, bomb), (Path("/dev/zero"), spec), (network, Path("/dev/zero"))):
        with pytest.raises(mv.InvalidInput, match=r"it holds more than 1000000 bytes; .*max_bytes"):
            mv.load(*pair, max_bytes=1_000_000)
    with pytest.raises(mv.InvalidModel, match="the weights come to more than 1000 bytes"):
        read_onnx(_read_often(tmp_path), max_bytes=1000)
    held = files.read(network, most=network.stat().st_size)
    assert held.data == network.read_bytes()


def _read_often(folder: Path) -> Path:
    """A small network that reads the same weights so often that they come to more than 1000 bytes."""
    path = _apart(folder)
    model = onnx.load(path, load_external_data=False)
    weights = next(t for t in model.graph.initializer if t.name == "W")
    del model.graph.initializer[:]
    for entry in weights.external_data:
        entry.value = entry.value if entry.key == "location" else "0"
    del weights.external_data[2]  # all that the file holds
    (folder / "w.bin").write_bytes(b"\0" * 500)
    model.graph.initializer.extend([weights] * 3)
    path.write_bytes(model.SerializeToString())
    return path


def _constant(op: str, *inputs: np.ndarray | None, opset: int = 17, **attributes: object) -> bytes:
    """A network that adds one entry of what an operator makes of constants."""
    names = ["" if value is None else f"c{k}" for k, value in enumerate(inputs)]
    nodes = [
        helper.make_node(op, names, ["big"], **attributes),
        helper.make_node("Cast", ["big"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMax", ["real"], ["top"], keepdims=0),
        helper.make_node("Add", ["X", "top"], ["Y"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2]) for name in ("X", "Y")]
    constants = [numpy_helper.from_array(value, name) for name, value in zip(names, inputs, strict=True) if value is not None]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8).SerializeToString()


def _ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


_ONE = np.ones((1, 1, 1, 1), dtype=np.float32)
LARGE: dict[str, Callable[[], bytes]] = {
    "ConstantOfShape": lambda: _constant("ConstantOfShape", _ints(10**5, 10**5)),
    "Expand": lambda: _constant("Expand", _ONE, _ints(10**5, 10**5, 1, 1)),
    "Tile": lambda: _constant("Tile", _ONE, _ints(10**5, 10**5, 1, 1)),
    "Range": lambda: _constant("Range", np.array(0), np.array(10**10), np.array(1)),
    "Range of real numbers": lambda: _constant("Range", np.array(0.0), np.array(1e300), np.array(1.0)),
    "Pad": lambda: _constant("Pad", _ONE, _ints(*[10**8] * 8)),
    "Pad of opset 10": lambda: _constant("Pad", _ONE, opset=10, pads=[10**8] * 8),
    "OneHot": lambda: _constant("OneHot", _ints(1, 2), _ints(10**9), _ints(0, 1)),
    "Resize": lambda: _constant("Resize", _ONE, None, None, _ints(1, 1, 10**5, 10**5)),
    "Resize by scales": lambda: _constant("Resize", _ONE, None, np.array([1, 1, 1e5, 1e5], dtype=np.float32)),
    "Upsample": lambda: _constant("Upsample", _ONE, np.array([1, 1, 1e5, 1e5], dtype=np.float32), opset=9),
    "sum": lambda: _constant("Add", np.ones((20000, 1), dtype=np.float32), np.ones((1, 20000), dtype=np.float32)),
    "product": lambda: _constant("MatMul", np.ones((20000, 1), dtype=np.float32), np.ones((1, 20000), dtype=np.float32)),
    "Gather": lambda: _constant("Gather", np.ones((1, 20000), dtype=np.float32), np.zeros(20000, dtype=np.int64)),
    "ConvTranspose": lambda: _constant("ConvTranspose", np.ones((1, 1, 2, 2), dtype=np.float32), _ONE, strides=[10**5, 10**5]),
    "HannWindow": lambda: _constant("HannWindow", np.array(10**10)),
}


@pytest.mark.parametrize("case", LARGE)
def test_a_constant_that_is_too_large_is_refused_before_it_is_computed(tmp_path: Path, case: str) -> None:
    network, spec = _files(tmp_path)
    network.write_bytes(LARGE[case]())
    with pytest.raises(mv.InvalidModel, match=r"is too large: at most \d+ entries are allowed \(max_entries"):
        mv.load(network, spec)


def test_the_limit_on_entries_is_an_option(tmp_path: Path) -> None:
    network, spec = _files(tmp_path)
    network.write_bytes(_constant("Tile", _ONE, _ints(10, 10, 1, 1)))
    assert mv.load(network, spec, max_entries=100).graph.ny == 2
    with pytest.raises(mv.InvalidModel, match="at most 99 entries"):
        mv.load(network, spec, max_entries=99)


# -- wrong types ---------------------------------------------------------------------------------------------------------------------


def test_an_output_that_is_a_constant_of_another_type_than_declared(tmp_path: Path) -> None:
    network, spec = _files(tmp_path)
    model = networks()[3]
    model.graph.output[0].name = "once"
    network.write_bytes(model.SerializeToString())
    with pytest.raises(mv.InvalidModel, match="output 'once' is declared as float32, but is a constant of type int64"):
        mv.load(network, spec)


class _Unregistered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = [nn.Linear(2, 2), nn.ReLU()]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def test_errors_say_what_was_expected() -> None:
    net, box, unsafe = nn.Linear(2, 2).eval(), mv.Box([0, 0], [1, 1]), "(>= Y_0 100)"
    problem = mv.Problem(net, box, unsafe=unsafe)
    wrong: dict[str, Callable[[], object]] = {
        "verify takes a problem, such as mv.load.*, not a str": lambda: mv.verify("a.onnx", "b.vnnlib"),  # type: ignore[arg-type]
        "a network is a torch module .* not a int": lambda: mv.minimize(3, box, [1, 0]),  # type: ignore[arg-type]
        "there is no network file net.onnx": lambda: mv.maximize("net.onnx", box, [1, 0]),
        "the inputs are an mv.Box or an mv.Ball, not a list": lambda: mv.minimize(problem.graph, [0, 1], [1, 0]),  # type: ignore[arg-type]
        "the objective is no array of coefficients": lambda: mv.minimize(problem.graph, box, "a"),
        "the unsafe set is a VNN-LIB term, mv.Rows or a sequence of mv.Rows; 3 is a int": lambda: mv.Problem(net, box, unsafe=3),  # type: ignore[arg-type]
        "; '.*' is a str": lambda: mv.Problem(net, box, unsafe=[unsafe]),  # type: ignore[list-item]
        "the inputs are an mv.Box, several of them, or an mv.Ball": lambda: mv.bounds(net, 3),  # type: ignore[arg-type]
        "numbers, an array or a tensor of them are needed": lambda: mv.robustness(net, "x", 1, 0.1),
        "the bounds of a box are arrays of numbers": lambda: mv.Box("a", [1]),
        "a problem is loaded from the paths of a network and a property, not from a int": lambda: mv.load(3, 4),  # type: ignore[arg-type]
        "a seed is an integer from 0 to": lambda: mv.verify(problem, options=mv.Options(seed=2**64)),
        "options are mv.Options": lambda: mv.verify(problem, options=3),  # type: ignore[arg-type]
        "calls a Linear that is none of its submodules": lambda: mv.Problem(_Unregistered().eval(), box, unsafe=unsafe),
    }
    for message, call in wrong.items():
        with pytest.raises(mv.InvalidInput, match=message):
            call()


@pytest.mark.parametrize("seconds", ["5", -1, float("nan"), None, True])
def test_a_time_limit_is_a_number(seconds: object) -> None:
    with pytest.raises(mv.InvalidInput, match="a time limit is a number of seconds >= 0"):
        mv.Deadline(seconds)  # type: ignore[arg-type]


def test_clip_is_two_ends() -> None:
    with pytest.raises(mv.InvalidInput, match="clip is the two ends"):
        mv.robustness(nn.Linear(2, 2), [0.5, 0.5], 0, 0.1, clip=3)  # type: ignore[arg-type]
