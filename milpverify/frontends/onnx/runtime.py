"""The network's own runtime, in which counterexamples are re-run: ONNX Runtime, unoptimised, on one thread."""

from __future__ import annotations

import math
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from milpverify.errors import InvalidModel

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import onnxruntime

Array = NDArray[np.float64]
Keys = tuple[int | str, ...]

_DTYPES: dict[str, type[np.floating[Any]]] = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16}


class OnnxRuntime:
    """A network given as the bytes of its ONNX file, run on flat vectors. The session is built on the first run.

    Graph optimisations are off, so that every operator is computed as the file has it.

    Args:
        outputs: by the names of those that are asked for, the keys of their maps in order (none for a tensor); None for all outputs.
        few_runs: not so many that it would pay to rearrange the weights for them.
    """

    def __init__(self, model_bytes: bytes, outputs: Mapping[str, Keys] | None = None, few_runs: bool = False) -> None:
        self.model_bytes = model_bytes
        self.outputs = outputs
        self.few_runs = few_runs

    def __getstate__(self) -> dict[str, object]:
        """Without the session, which is built anew."""
        return {"model_bytes": self.model_bytes, "outputs": self.outputs, "few_runs": self.few_runs}

    @cached_property
    def session(self) -> onnxruntime.InferenceSession:
        """The session; a network of a newer ONNX than the runtime knows is declared older where that changes nothing.

        Raises:
            InvalidModel: ONNX Runtime refuses the network.
        """
        model_bytes = self.model_bytes
        try:
            session = _session(model_bytes, self.few_runs)
        except InvalidModel:
            older = declared_older(model_bytes, *_newest())
            if older is None:
                raise
            model_bytes, session = older, _session(older, self.few_runs)
        if any(isinstance(n, int) and n < 1 for info in session.get_inputs() for n in info.shape):
            return _session(_with_symbolic_batch(model_bytes), self.few_runs)
        return session

    @cached_property
    def _inputs(self) -> list[tuple[str, tuple[int, ...], type[np.floating[Any]]]]:
        """Name, shape (unknown lengths are 1) and type of every input."""
        known: list[tuple[str, tuple[int, ...], type[np.floating[Any]]]] = []
        for info in self.session.get_inputs():
            if info.type not in _DTYPES:
                raise InvalidModel(f"the network's input '{info.name}' is a {info.type}; inputs must be real numbers")
            known.append((info.name, tuple(n if isinstance(n, int) else 1 for n in info.shape), _DTYPES[info.type]))
        return known

    def tensors(self, x: Array) -> list[NDArray[np.floating[Any]]]:
        """The network's outputs at the flat point x (nx,), as ONNX Runtime returns them; maps as the tensors (batch, keys) of their values.

        Raises:
            InvalidModel: ONNX Runtime refuses the network or fails at the point.
            ValueError: x has the wrong length.
        """
        expected = sum(math.prod(shape) for _, shape, _ in self._inputs)
        if x.shape != (expected,):
            raise ValueError(f"the network has {expected} inputs, the point has shape {x.shape}")
        feeds: dict[str, NDArray[np.floating[Any]]] = {}
        offset = 0
        for name, shape, dtype in self._inputs:
            size = math.prod(shape)
            with np.errstate(over="ignore"):  # beyond float32 it is infinite, as it is to the network
                feeds[name] = x[offset : offset + size].astype(dtype).reshape(shape)
            offset += size
        try:
            results = self.session.run(None if self.outputs is None else list(self.outputs), feeds)
        except _errors() as error:
            raise InvalidModel(f"ONNX Runtime cannot run the network: {_line(error)}") from error
        if self.outputs is None:
            return list(results)
        return [_of_maps(r, keys) if keys else r for r, keys in zip(results, self.outputs.values(), strict=True)]

    def run(self, x: Array) -> Array:
        """y (ny,) at the point x (nx,), both float64; x is rounded to the inputs' type.

        Raises:
            InvalidModel: ONNX Runtime refuses the network or fails at the point.
        """
        return np.concatenate([np.asarray(t, dtype=np.float64).reshape(-1) for t in self.tensors(x)])


def computed(model: onnx.ModelProto) -> list[NDArray[Any]]:
    """The outputs of a model without inputs.

    Raises:
        InvalidModel: ONNX Runtime refuses the model, or fails.
    """
    session = _session(model.SerializeToString())
    try:
        results: list[NDArray[Any]] = session.run(None, {})
    except _errors() as error:
        raise InvalidModel(f"ONNX Runtime cannot compute it: {_line(error)}") from error
    return results


def _of_maps(maps: Sequence[Mapping[int | str, float]], keys: Keys) -> NDArray[np.floating[Any]]:
    """The values of maps, which have one and the same keys, as (maps, keys) in the keys' order: float32, as those of a ZipMap are."""
    return np.array([[entries[key] for key in keys] for entries in maps], dtype=np.float32)


def _errors() -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises: classes of its own, and RuntimeError."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    own = [v for v in vars(state).values() if isinstance(v, type) and issubclass(v, Exception)]
    return (RuntimeError, ValueError, *own)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _session(model_bytes: bytes, few_runs: bool = False) -> onnxruntime.InferenceSession:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    if few_runs:
        options.add_session_config_entry("session.disable_prepacking", "1")
    try:
        return onnxruntime.InferenceSession(model_bytes, options, providers=["CPUExecutionProvider"])
    except _errors() as error:
        raise InvalidModel(f"ONNX Runtime refuses the network: {_line(error)}") from error


def _with_symbolic_batch(model_bytes: bytes) -> bytes:
    """The model with lengths of 0 and below, by which some exporters mean an unknown batch, made symbolic."""
    model = onnx.load_model_from_string(model_bytes)
    for info in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in info.type.tensor_type.shape.dim:
            if dim.HasField("dim_value") and dim.dim_value < 1:
                dim.dim_param = "batch"
    changed: bytes = model.SerializeToString()
    return changed


def declared_older(model_bytes: bytes, opset: int, form: int) -> bytes | None:
    """The same network for a runtime that knows ONNX up to an opset and a format version; None if it declares no newer ones.

    Only what the model declares is changed. That is exact, for every operator must be defined in the same words by both opsets, of
    which types that were added are no part; and what newer formats add are tensor types, which the runtime refuses by themselves.

    Raises:
        InvalidModel: an operator is new or was redefined.
    """
    model = onnx.load_model_from_string(model_bytes)
    bodies = [
        (part.opset_import, list(_inner(nodes))) for part, nodes in [(model, model.graph.node), *((f, f.node) for f in model.functions)]
    ]
    declared = [(o, nodes) for imports, nodes in bodies for o in imports if o.domain in ("", "ai.onnx") and o.version > opset]
    if not declared and model.ir_version <= form:
        return None
    for entry, nodes in declared:
        names = {n.op_type for n in nodes if n.domain in ("", "ai.onnx")}
        changed = sorted(name for name in names if not _same(name, opset, entry.version))
        if changed:
            raise InvalidModel(
                f"the network cannot be compared with ONNX Runtime, which knows opset {opset}: opset {entry.version} has another "
                f"{', '.join(changed)}; export it with an older opset (see onnx.version_converter) or install a newer ONNX Runtime"
            )
        entry.version = opset
    model.ir_version = min(model.ir_version, form)
    older: bytes = model.SerializeToString()
    return older


def _inner(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """The nodes and those of the graphs in their attributes."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _inner(graph.node)


def _same(op_type: str, older: int, newer: int) -> bool:
    """Whether two opsets define an operator of the standard alike."""
    if not (onnx.defs.has(op_type, older, "") and onnx.defs.has(op_type, newer, "")):
        return False
    one, other = (onnx.defs.get_schema(op_type, opset, "") for opset in (older, newer))
    return one.since_version == other.since_version or _definition(one) == _definition(other)


def _definition(schema: onnx.defs.OpSchema) -> tuple[object, ...]:
    """What a schema says that its operator does: its words, its attributes and their defaults, its inputs and outputs."""
    attributes = {k: (a.type, a.required, str(a.default_value), a.description) for k, a in schema.attributes.items()}
    ends = [[(p.name, p.option, p.description) for p in part] for part in (schema.inputs, schema.outputs)]
    return schema.doc, attributes, ends


@cache
def _newest() -> tuple[int, int]:
    """The newest opset and the newest format version that ONNX Runtime takes, by trying."""
    return (
        next(n for n in range(onnx.defs.onnx_opset_version(), 0, -1) if _takes(n, 8)),
        next(n for n in range(int(onnx.IR_VERSION), 0, -1) if _takes(13, n)),
    )


def _takes(opset: int, form: int) -> bool:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y"))
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "trial", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=form)
    try:
        _session(model.SerializeToString())
    except InvalidModel:
        return False
    return True
