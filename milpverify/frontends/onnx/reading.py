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
    """The graph of a network file, and its source. The model, which holds the weights once more, is gone then.

    Raises:
        InvalidModel, UnsupportedOperator: as `read_onnx` and `lower`.
    """
    model, data = _read(path)
    return lower(model), Source.of(model, data)


def read_onnx(path: str | Path) -> onnx.ModelProto:
    """Read a network from an `.onnx` or `.onnx.gz` file.

    Raises:
        InvalidModel: the file is missing, truncated or no ONNX network.
    """
    return _read(path)[0]


def _read(path: str | Path) -> tuple[onnx.ModelProto, bytes | None]:
    """The model, and its bytes, unless weights lie in files of their own, which only an uncompressed network can name."""
    path = Path(path)
    packed = path.suffix == ".gz"
    data: bytes | None
    try:
        data = gzip.decompress(path.read_bytes()) if packed else path.read_bytes()
        model = onnx.load_model_from_string(data)
        if not packed and _external(model):
            model, data = onnx.load(path), None
    except FileNotFoundError as error:
        raise InvalidModel(f"there is no network file {error.filename or path}") from error
    except (OSError, EOFError, zlib.error, DecodeError, onnx.checker.ValidationError) as error:
        raise InvalidModel(f"{path} is truncated or no ONNX network: {error}") from error
    if not model.graph.output or not model.opset_import:
        raise InvalidModel(f"{path} is truncated or no ONNX network: it has no outputs or no opset version")
    return model, data


def _external(model: onnx.ModelProto) -> bool:
    """Whether tensors may lie in files of their own: those of nodes say so by the key "location"."""
    nodes = (node for part in (model.graph, *model.functions) for node in part.node)
    return any(t.data_location == onnx.TensorProto.EXTERNAL for t in model.graph.initializer) or any(
        b"location" in node.SerializeToString() for node in nodes
    )
