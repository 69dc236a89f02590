"""A problem from an ONNX network and a VNN-LIB property."""

from __future__ import annotations

from typing import TYPE_CHECKING

from milpverify.frontends.lowering.redundancy import without_repeats
from milpverify.frontends.onnx import check
from milpverify.frontends.onnx.reading import read_network
from milpverify.frontends.onnx.runtime import OnnxRuntime
from milpverify.frontends.problem import Problem
from milpverify.frontends.vnnlib.reader import parse_vnnlib, read_vnnlib

if TYPE_CHECKING:
    from pathlib import Path


def load(network_path: str | Path, property_path: str | Path) -> Problem:
    """The problem of an ONNX network and a VNN-LIB 1.0 property (either may be compressed: .gz).

    The lowered network is compared with ONNX Runtime on points of the property's first box. Counterexamples are re-run in
    ONNX Runtime on the network as it was read.

    Raises:
        InvalidModel: the network cannot be read, or what it was lowered to differs from ONNX Runtime.
        UnsupportedOperator: an operator of the network has no rule.
        InvalidProperty: the property cannot be read, or is about other inputs and outputs than the network's.
    """
    text = read_vnnlib(property_path)
    graph, source = read_network(network_path)
    disjuncts = parse_vnnlib(text, graph.nx, graph.ny, str(property_path))
    if disjuncts:
        check.check(graph, source, disjuncts[0].box)
    return Problem(without_repeats(graph), disjuncts, OnnxRuntime(source.data), (str(network_path), str(property_path)))
