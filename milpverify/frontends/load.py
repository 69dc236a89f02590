"""A problem from an ONNX network and a VNN-LIB property."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING

from milpverify.config import MOST_BYTES, MOST_ENTRIES
from milpverify.errors import InvalidInput
from milpverify.frontends.lowering.builder import at_most
from milpverify.frontends.onnx import check
from milpverify.frontends.onnx.reading import read_network
from milpverify.frontends.onnx.runtime import OnnxRuntime
from milpverify.frontends.problem import Problem
from milpverify.frontends.vnnlib.reader import parse_vnnlib, read_hashed

if TYPE_CHECKING:
    from pathlib import Path


def load(network_path: str | Path, property_path: str | Path, *, max_bytes: int = MOST_BYTES, max_entries: int = MOST_ENTRIES) -> Problem:
    """The problem of an ONNX network and a VNN-LIB 1.0 property (either may be compressed with gzip).

    The lowered network is compared with ONNX Runtime on points of the property's first box. Counterexamples are re-run in
    ONNX Runtime on the network as it was read. Files are read once, and need not be there any more once they are.

    Args:
        max_bytes: the most that a file may hold, unpacked, and all weights in files of their own together.
        max_entries: the most that a tensor of the network may have, whatever computes it.

    Raises:
        InvalidInput: what is no path.
        InvalidModel: the network cannot be read, is too large, or what it was lowered to differs from ONNX Runtime.
        UnsupportedOperator: an operator of the network has no rule.
        InvalidProperty: the property cannot be read, is too large, or is about other inputs and outputs than the network's.
    """
    for path in (network_path, property_path):
        if not isinstance(path, str | PathLike):
            raise InvalidInput(f"a problem is loaded from the paths of a network and a property, not from a {type(path).__name__}")
    text, property_hash = read_hashed(property_path, max_bytes)
    with at_most(max_entries):
        graph, source = read_network(network_path, max_bytes)
    disjuncts = parse_vnnlib(text, graph.nx, graph.ny, str(property_path))
    if disjuncts:
        check.check(graph, source, disjuncts[0].box)
    return Problem(graph, disjuncts, OnnxRuntime(source.data), {**source.files, str(property_path): property_hash})
