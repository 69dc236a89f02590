"""A problem from an ONNX network and a VNN-LIB property."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from milpverify.config import Deadline, check_time, in_force
from milpverify.frontends.onnx import check
from milpverify.frontends.onnx.reading import read_network
from milpverify.frontends.onnx.runtime import OnnxRuntime
from milpverify.frontends.problem import Problem
from milpverify.frontends.vnnlib.reader import parse_vnnlib, read_vnnlib

if TYPE_CHECKING:
    from pathlib import Path


def load(network_path: str | Path, property_path: str | Path, timeout: float | None = None, *, deadline: Deadline | None = None) -> Problem:
    """The problem of an ONNX network and a VNN-LIB 1.0 property (either may be compressed: .gz).

    The lowered network is compared with ONNX Runtime on points of the property's first box. Counterexamples are re-run in
    ONNX Runtime on the network as it was read.

    Args:
        timeout: seconds of wall clock; None for no limit.
        deadline: in place of `timeout`, a deadline that the caller can cancel, and hand on to `verify`.

    Raises:
        InvalidModel: the network cannot be read, or what it was lowered to differs from ONNX Runtime.
        UnsupportedOperator: an operator of the network has no rule.
        InvalidProperty: the property cannot be read, or is about other inputs and outputs than the network's.
        OutOfTime: the time is over.
    """
    with in_force(deadline or Deadline(math.inf if timeout is None else timeout)):
        return _read(network_path, property_path)


def _read(network_path: str | Path, property_path: str | Path) -> Problem:
    text = read_vnnlib(property_path)
    check_time()
    graph, source = read_network(network_path)
    check_time()
    disjuncts = parse_vnnlib(text, graph.nx, graph.ny, str(property_path))
    check_time()
    if disjuncts:
        check.check(graph, source, disjuncts[0].box)
    return Problem(graph, disjuncts, OnnxRuntime(source.data), (str(network_path), str(property_path)))
