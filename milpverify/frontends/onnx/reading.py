"""Network files: the bytes that the runtime gets, the weights that lie in files of their own among them, and the model in them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath

import onnx
from google.protobuf.message import DecodeError, EncodeError

from milpverify.config import MOST_BYTES
from milpverify.errors import InvalidModel
from milpverify.frontends.files import UNREADABLE, held, read
from milpverify.frontends.lowering.rule import LoweringTuning
from milpverify.frontends.onnx.lowering import lower
from milpverify.frontends.onnx.node import describe
from milpverify.frontends.onnx.outputs import Outputs, choose, lowered
from milpverify.frontends.onnx.runtime import OnnxRuntime
from milpverify.graph import Graph

Model = str | Path | bytes | onnx.ModelProto
"""A network: the path of its file, the bytes of one, or what these say."""
IN_MEMORY = "network in memory"
"""What stands for the path of a network that was handed in as bytes, or as a model."""


@dataclass(frozen=True, eq=False)
class Source:
    """What a graph was lowered from: a network's bytes, and for each tensor that a node computes what messages call the node.

    `files` are the SHA-256 of what was read, by path: of the network (unpacked) and of every file with weights of it. `outputs` are those
    that the graph has, in its order.
    """

    data: bytes
    tensors: Mapping[str, str]
    outputs: Outputs
    files: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def of(
        model: onnx.ModelProto, data: bytes | None = None, files: Mapping[str, str] | None = None, outputs: Outputs | None = None
    ) -> Source:
        """Of a model, which need not be serialised where the bytes are known."""
        tensors = {name: describe(node) for node in reversed(model.graph.node) for name in node.output}
        return Source(model.SerializeToString() if data is None else data, tensors, outputs or choose(model.graph), files or {})

    def runtime(self) -> OnnxRuntime:
        """The network as it was read, of which the graph's outputs are asked for."""
        return OnnxRuntime(self.data, self.outputs.keys)


def read_network(
    path: Model, max_bytes: int = MOST_BYTES, outputs: Sequence[str] | None = None, tuning: LoweringTuning = LoweringTuning()
) -> tuple[Graph, Source]:
    """The graph of a network file, and its source. The model, which holds the weights once more, is gone then.

    Args:
        path: of the file, or what it holds: bytes, or a model.
        outputs: the names of those that the graph shall have; None for all of real numbers that have rules.

    Raises:
        InvalidModel, UnsupportedOperator: as `read_onnx` and `lower`.
        InvalidInput: as `choose`.
    """
    model, data, files = _read(path, max_bytes)
    graph, kept = lowered(choose(model.graph, outputs), outputs is not None, partial(lower, model, tuning=tuning))
    return graph, Source.of(model, data, files, kept)


def read_onnx(path: Model, max_bytes: int = MOST_BYTES) -> onnx.ModelProto:
    """Read a network from an `.onnx` file, which may be compressed with gzip.

    Raises:
        InvalidModel: the file is missing, truncated or no ONNX network, a file with its weights is, or it holds more than `max_bytes`.
    """
    return _read(path, max_bytes)[0]


def _read(path: Model, most: int) -> tuple[onnx.ModelProto, bytes, dict[str, str]]:
    """A network's model, its bytes, with the weights that lie in files of their own, and the hashes of all files."""
    given, path = path, path if isinstance(path, (str, Path)) else IN_MEMORY
    try:
        if isinstance(given, onnx.ModelProto):
            given = given.SerializeToString()  # as it is now
        contents = held(given, most) if isinstance(given, bytes) else read(path, most)
        model = onnx.load_model_from_string(contents.data)
    except EncodeError as error:
        raise InvalidModel(f"the model is too large to be handed to ONNX Runtime in one piece: {error}") from error
    except FileNotFoundError as error:
        raise InvalidModel(f"there is no network file {path}") from error
    except (*UNREADABLE, DecodeError) as error:
        raise _refusal(path, error) from error
    if not model.graph.output or not model.opset_import:
        raise _refusal(path, "it has no outputs or no opset version")
    weights = _Weights(Path(path).parent, most)
    apart = [tensor for tensor in _tensors(model) if tensor.data_location == onnx.TensorProto.EXTERNAL]
    if apart and path is IN_MEMORY:
        raise InvalidModel(
            f"weights of the model, such as '{apart[0].name}', lie in files of their own, and where is not known: hand in the path of "
            "the network, or the model as onnx.load(path) reads it, with its weights"
        )
    for tensor in apart:
        weights.fill(tensor)
    try:
        data = model.SerializeToString() if apart else contents.data
    except (EncodeError, ValueError) as error:
        raise InvalidModel(f"{path} and the files with its weights are together too large for ONNX Runtime: {error}") from error
    return model, data, {str(path): contents.sha256, **weights.files}


class _Weights:
    """Files with a network's weights, each read once; `files` are their hashes."""

    def __init__(self, folder: Path, most: int) -> None:
        self.folder, self.most, self.taken = folder, most, 0
        self.read: dict[Path, bytes] = {}
        self.files: dict[str, str] = {}

    def fill(self, tensor: onnx.TensorProto) -> None:
        """Put the bytes of a tensor that says where they lie into it.

        Raises:
            InvalidModel: there are none, or not so many, or all together too many.
        """
        entries = {entry.key: entry.value for entry in tensor.external_data}
        place = PurePosixPath(entries.get("location", ""))
        what = f"the weights of the initializer '{tensor.name}', in the file '{place}'"
        if place.is_absolute() or ".." in place.parts or not place.name:
            raise InvalidModel(f"{what}, must lie in the folder of the network or below")
        data = self.bytes_of(self.folder / place, what)
        begin = _count(entries, "offset", 0, what)
        end = begin + _count(entries, "length", len(data) - begin, what)
        if not begin <= end <= len(data):
            raise InvalidModel(f"{what}, are bytes {begin} to {end}, but the file holds {len(data)}")
        self.taken += end - begin
        if self.taken > self.most:
            raise InvalidModel(f"{what}: the weights come to more than {self.most} bytes; if that is meant, raise max_bytes (--max-bytes)")
        tensor.raw_data = data[begin:end]
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]

    def bytes_of(self, path: Path, what: str) -> bytes:
        """What a file holds, which is a regular one: of others a length is not known."""
        if path not in self.read:
            if not path.exists():
                raise InvalidModel(f"there is no file {path}: {what}")
            if not path.is_file():
                raise InvalidModel(f"{what}, cannot be read: it is no regular file")
            try:
                contents = read(path, self.most, packed=False)
            except UNREADABLE as error:
                raise InvalidModel(f"{what}, cannot be read: {error}") from error
            self.read[path], self.files[str(path)] = contents.data, contents.sha256
        return self.read[path]


def _count(entries: Mapping[str, str], key: str, missing: int, what: str) -> int:
    """A number of bytes of a tensor's description."""
    text = entries.get(key)
    if text is None:
        return missing
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise InvalidModel(f"{what}: their {key} {text[:40]!r} is no number of bytes")
    return int(text)


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """All tensors that a model holds."""
    yield from _of_graph(model.graph)
    for function in model.functions:
        yield from _of_nodes(function.node)


def _of_graph(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    yield from _of_nodes(graph.node)


def _of_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            yield from (*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors)
            for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _of_graph(graph)


def _refusal(path: str | Path, why: object) -> InvalidModel:
    return InvalidModel(f"{path} is truncated or no ONNX network: {why}")
