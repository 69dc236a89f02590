"""A network in whatever form it is given, as the graph that is proved about and the runtime that counterexamples must hold in."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

from milpverify.config import MOST_BYTES
from milpverify.errors import InvalidInput, InvalidModel, InvalidProperty
from milpverify.frontends.lowering.rule import LoweringTuning
from milpverify.graph import Graph

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import onnx
    from torch import nn
    from torch.export import ExportedProgram

    from milpverify.frontends.torch.runtime import TorchRuntime
    from milpverify.spec import Box

    Network = Graph | str | Path | bytes | onnx.ModelProto | nn.Module | ExportedProgram
    """What may be handed in: a graph, an ONNX network (the path of its file, its bytes, or the model), or a torch network in evaluation
    mode (a module, one of TorchScript, or an exported program)."""
    Shapes = Sequence[int] | Sequence[Sequence[int]]
    """The shape of a network's input, or those of several."""


@dataclass(frozen=True, eq=False)
class Loaded:
    """A lowered network that agreed with its runtime, None where the graph itself was given; `files` and `notes` as in `Problem`."""

    graph: Graph
    runtime: object | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Opened:
    """A network that was read, and is yet to be compared with its runtime: `check` does so on points of a box.

    `graph` is what is compared, `merged` what is proved about.
    """

    graph: Graph
    runtime: object | None
    files: Mapping[str, str]
    note: str
    check: Callable[[Box], None]
    tuning: LoweringTuning = field(default_factory=LoweringTuning)

    @cached_property
    def merged(self) -> Graph:
        """The graph without what it computes twice."""
        from milpverify.frontends.lowering.redundancy import without_repeats

        return self.graph if self.runtime is None else without_repeats(self.graph, self.tuning)

    @property
    def notes(self) -> tuple[str, ...]:
        """What to say of how it was read."""
        return (self.note,) if self.note else ()


def load_network(
    network: Network,
    box: Box,
    shape: Shapes | None = None,
    outputs: Sequence[str] | None = None,
    tuning: LoweringTuning = LoweringTuning(),
) -> Loaded:
    """Lower a network, and compare it with its runtime on points of a box.

    Args:
        network: a graph, an ONNX network (the path of a file, which may be .gz, its bytes, or the model), or a torch network in evaluation
            mode: a module, one of TorchScript, or an exported program.
        box: the inputs that matter; of a network of several inputs `joined` of theirs.
        shape: of a torch module's input, with its batch axis of 1, or the shapes of its inputs. Without it the box's bounds say it: as they
            are shaped, with a batch axis in front; only where the module refuses that, and they begin with an axis of length 1, without.
        outputs: the names of those that are kept; None for all of real numbers.
        tuning: which of several equal forms it is lowered to.

    Raises:
        InvalidInput: there is no such output, or it is not clear which there are to be.
        InvalidModel: the network cannot be read or traced, is in training mode, or what it was lowered to differs from its runtime.
        UnsupportedOperator: an operation of the network has no rule.
        InvalidProperty: the box has other inputs than the network.
    """
    found = opened(network, box.shapes, shape, outputs, tuning=tuning)
    fits(found.graph, box)
    found.check(box)
    return Loaded(found.merged, found.runtime, found.files, found.notes)


def opened(
    network: Network,
    given: Sequence[tuple[int, ...]],
    shape: Shapes | None = None,
    outputs: Sequence[str] | None = None,
    max_bytes: int = MOST_BYTES,
    tuning: LoweringTuning = LoweringTuning(),
) -> Opened:
    """Lower a network.

    Args:
        given: the shapes in which bounds of its inputs are given.
        shape, outputs, tuning: as for `load_network`.
        max_bytes: the most that an ONNX network may hold, unpacked, and all weights in files of their own together.

    Raises:
        InvalidInput, InvalidModel, UnsupportedOperator: as `load_network`.
    """
    if isinstance(network, Graph):
        if outputs is not None:
            raise InvalidInput("outputs=... chooses among the outputs of an ONNX file or a module; those of a graph are all meant")
        return Opened(network, None, {}, "", lambda box: None)
    if is_onnx(network):
        return _onnx(network, outputs, max_bytes, tuning)
    from milpverify.frontends.torch.programs import as_module
    from milpverify.frontends.torch.runtime import check
    from milpverify.frontends.torch.trace import lower_module

    module = as_module(network)
    if module is None:
        raise InvalidInput(
            "a network is a torch module or exported program, an ONNX network (path, bytes or model) or a Graph, "
            f"not a {type(network).__name__}"
        )
    runtime = _runtime(module, given, shape, outputs)
    assert runtime.returned is not None  # it has run
    graph = lower_module(runtime.module, runtime.shapes, runtime.dtype, runtime.returned.kept, tuning)
    note = runtime.returned.note(graph.outputs)
    return Opened(graph, runtime, {}, note, lambda box: check(graph, runtime, box, tuning=tuning), tuning)


def is_onnx(network: object) -> TypeGuard[str | Path | bytes | onnx.ModelProto]:
    """Whether it is an ONNX network, in a file or in memory; onnx is not loaded for that."""
    loaded = sys.modules.get("onnx")
    return isinstance(network, str | PathLike | bytes) or (loaded is not None and isinstance(network, loaded.ModelProto))


def fits(graph: Graph, box: Box) -> None:
    """Refuse a box of other inputs than the network's.

    Raises:
        InvalidProperty: there are more or fewer, all together or of one of several inputs.
    """
    if box.size != graph.nx:
        raise InvalidProperty(f"the box has {box.size} inputs, the network {graph.nx}")
    sizes = [prod(shape) for shape in box.shapes]
    if len(sizes) > 1 and graph.inputs and sizes != [spec.size for spec in graph.inputs]:
        known = ", ".join(f"'{spec.name}' ({spec.size} entries)" for spec in graph.inputs)
        raise InvalidProperty(f"the boxes have {', '.join(map(str, sizes))} entries; the network's inputs are {known}")


def _onnx(network: str | Path | bytes | onnx.ModelProto, outputs: Sequence[str] | None, max_bytes: int, tuning: LoweringTuning) -> Opened:
    from milpverify.frontends.onnx.check import Check
    from milpverify.frontends.onnx.reading import read_network

    graph, source = read_network(network, max_bytes, outputs, tuning)
    note = source.outputs.note(graph.outputs)
    return Opened(graph, source.runtime(), source.files, note, Check(graph, source, tuning), tuning)


def _runtime(module: nn.Module, given: Sequence[tuple[int, ...]], shape: Shapes | None, outputs: Sequence[str] | None) -> TorchRuntime:
    """The module on inputs of the first shapes that it takes."""
    import numpy as np

    from milpverify.frontends.torch.programs import Program
    from milpverify.frontends.torch.runtime import TorchRuntime
    from milpverify.frontends.torch.trace import several

    size = sum(prod(part) for part in given)
    batched = tuple((1, *(part or (1,))) for part in given)
    if shape is not None:
        candidates = [several(shape)]
    elif isinstance(module, Program) and sum(prod(part) for part in module.shapes) == size:
        candidates = [module.shapes]
    else:
        bare = tuple(given) if all(len(part) > 1 and part[0] == 1 for part in given) else None
        candidates = [batched, *([bare] if bare else [])]
    if sum(prod(part) for part in candidates[0]) != size:
        what = f"an input of shape {candidates[0][0]}" if len(candidates[0]) == 1 else f"inputs of shapes {candidates[0]}"
        raise InvalidInput(f"{what} has {sum(prod(part) for part in candidates[0])} entries, the box {size}")
    refusal: InvalidModel | None = None
    for candidate in candidates:
        runtime = TorchRuntime(module, candidate, outputs)
        try:
            runtime.outputs(np.zeros(size))
        except InvalidModel as error:
            refusal = refusal or error
        else:
            return runtime
    assert refusal is not None
    if isinstance(module, Program):
        raise InvalidModel(
            f"{refusal}; the program was exported for inputs of shapes {', '.join(map(str, module.shapes))}: export it for a batch of one"
        ) from refusal
    raise refusal if shape is not None else InvalidModel(f"{refusal} (if it takes another shape, say shape=(1, ...))") from refusal
