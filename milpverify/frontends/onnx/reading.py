"""Network files: the bytes that the runtime gets, and the model in them."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx.checker
from google.protobuf.message import DecodeError

from milpverify.errors import InvalidModel
from milpverify.frontends.onnx.lowering import lower
from milpverify.frontends.onnx.node import describe
from milpverify.graph import Graph


@dataclass(frozen=True, eq=False)
class Source:
    """What a graph was lowered from: a network's bytes, and for each tensor that a node computes what messages call the node."""

    data: bytes
    tensors: Mapping[str, str]

    @staticmethod
    def of(model: onnx.ModelProto, data: bytes | None = None) -> Source:
        """Of a model, which need not be serialised where the bytes are known."""
        tensors = {name: describe(node) for node in reversed(model.graph.node) for name in node.output}
        return Source(model.SerializeToString() if data is None else data, tensors)


def read_network(path: str | Path) -> tuple[Graph, Source]:
    """The graph of a network file, and its source. Of large networks the model is gone, which holds their weights once more.

    Raises:
        InvalidModel, UnsupportedOperator: as `read_onnx` and `lower`.
    """
    data = _bytes(path)
    model = _model(data, path)
    return lower(model), Source.of(model, data)


def read_onnx(path: str | Path) -> onnx.ModelProto:
    """Read a network from an `.onnx` or `.onnx.gz` file.

    Raises:
        InvalidModel: the file is missing, truncated or no ONNX network.
    """
    return _model(_bytes(path), path)


def _bytes(path: str | Path) -> bytes:
    """A network's bytes, with the weights that lie in files of their own."""
    path = Path(path)
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            return gzip.decompress(data)
        if b"location" in data:  # as a key says of such weights
            data = onnx.load(path).SerializeToString()
    except FileNotFoundError as error:
        raise InvalidModel(f"there is no network file {error.filename or path}") from error
    except (OSError, EOFError, zlib.error, DecodeError, onnx.checker.ValidationError) as error:
        raise _refusal(path, error) from error
    return data


def _model(data: bytes, path: str | Path) -> onnx.ModelProto:
    try:
        model = onnx.load_model_from_string(data)
    except DecodeError as error:
        raise _refusal(path, error) from error
    if not model.graph.output or not model.opset_import:
        raise _refusal(path, "it has no outputs or no opset version")
    return model


def _refusal(path: str | Path, why: object) -> InvalidModel:
    return InvalidModel(f"{path} is truncated or no ONNX network: {why}")
