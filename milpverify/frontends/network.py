"""A network in whatever form it is given, as the graph that is proved about and the runtime that counterexamples must hold in."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from milpverify.errors import InvalidInput, InvalidModel
from milpverify.graph import Graph

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

    from milpverify.frontends.torch.runtime import TorchRuntime
    from milpverify.spec import Box

    Network = Graph | str | Path | nn.Module
    """What may be handed in: a graph, the path of an ONNX file, or a torch module in evaluation mode."""


@dataclass(frozen=True, eq=False)
class Loaded:
    """A lowered network that agreed with its runtime, None where the graph itself was given; `files` and `notes` as in `Problem`."""

    graph: Graph
    runtime: object | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def load_network(network: Network, box: Box, shape: Sequence[int] | None = None, outputs: Sequence[str] | None = None) -> Loaded:
    """Lower a network, and compare it with its runtime on points of a box.

    Args:
        network: a graph, the path of an ONNX file (may be .gz), or a torch module in evaluation mode.
        box: the inputs that matter.
        shape: of a torch module's input, with its batch axis of 1. Without it the box's bounds say it: as they are shaped, with a
            batch axis in front; only where the module refuses that, and they begin with an axis of length 1, without.
        outputs: of an ONNX file, the names of those that are kept; None for all of real numbers.

    Raises:
        InvalidInput: there is no such output, or it is not clear which there are to be.
        InvalidModel: the network cannot be read or traced, is in training mode, or what it was lowered to differs from its runtime.
        UnsupportedOperator: an operation of the network has no rule.
    """
    if isinstance(network, Graph):
        _no_names(outputs)
        return Loaded(network)
    if isinstance(network, (str, Path)):
        return _onnx(network, box, outputs)
    from torch import nn

    if not isinstance(network, nn.Module):
        raise InvalidInput(f"a network is a torch module, the path of an ONNX file or a Graph, not a {type(network).__name__}")
    _no_names(outputs)
    from milpverify.frontends.lowering.redundancy import without_repeats
    from milpverify.frontends.torch.runtime import check
    from milpverify.frontends.torch.trace import lower_module

    runtime = _runtime(network, box, shape)
    graph = lower_module(runtime.module, runtime.shape, runtime.dtype)
    check(graph, runtime, box)
    return Loaded(without_repeats(graph), runtime)


def _no_names(outputs: Sequence[str] | None) -> None:
    if outputs is not None:
        raise InvalidInput("outputs=... chooses among the outputs of an ONNX file; those of a module or a graph are all meant")


def _onnx(path: str | Path, box: Box, outputs: Sequence[str] | None) -> Loaded:
    from milpverify.errors import InvalidProperty
    from milpverify.frontends.lowering.redundancy import without_repeats
    from milpverify.frontends.onnx import check as onnx_check
    from milpverify.frontends.onnx.reading import read_network

    graph, source = read_network(path, outputs=outputs)
    if box.size != graph.nx:
        raise InvalidProperty(f"the box has {box.size} inputs, the network {graph.nx}")
    onnx_check.check(graph, source, box)
    note = source.outputs.note(graph.outputs)
    return Loaded(without_repeats(graph), source.runtime(), source.files, (note,) if note else ())


def _runtime(module: nn.Module, box: Box, shape: Sequence[int] | None) -> TorchRuntime:
    """The module on inputs of the first shape that it takes."""
    from math import prod

    from milpverify.frontends.torch.runtime import TorchRuntime

    given = box.shape or (box.size,)
    shapes = [tuple(shape)] if shape is not None else [(1, *given)] + ([given] if len(given) > 1 and given[0] == 1 else [])
    if prod(shapes[0]) != box.size:
        raise InvalidInput(f"an input of shape {shapes[0]} has {prod(shapes[0])} entries, the box {box.size}")
    refusal: InvalidModel | None = None
    for candidate in shapes:
        runtime = TorchRuntime(module, candidate)
        try:
            runtime.outputs(0.5 * box.lower + 0.5 * box.upper)
        except InvalidModel as error:
            refusal = refusal or error
        else:
            return runtime
    assert refusal is not None
    raise refusal
