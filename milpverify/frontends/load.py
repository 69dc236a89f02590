"""A problem from an ONNX network and a VNN-LIB property."""

from __future__ import annotations

import math
from functools import cached_property
from os import PathLike
from typing import TYPE_CHECKING

from milpverify.config import MOST_BYTES, MOST_ENTRIES, Deadline, check_time, in_force
from milpverify.errors import InvalidInput, InvalidProperty
from milpverify.frontends.lowering.builder import at_most
from milpverify.frontends.lowering.redundancy import without_repeats
from milpverify.frontends.onnx.check import Check
from milpverify.frontends.onnx.reading import read_network
from milpverify.frontends.problem import Problem
from milpverify.frontends.vnnlib.reader import parse_property, read_hashed

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from milpverify.frontends.onnx.reading import Source
    from milpverify.graph import Graph


def load(
    network_path: str | Path,
    property_path: str | Path,
    timeout: float | None = None,
    *,
    outputs: Sequence[str] | None = None,
    deadline: Deadline | None = None,
    max_bytes: int = MOST_BYTES,
    max_entries: int = MOST_ENTRIES,
) -> Problem:
    """The problem of an ONNX network and a VNN-LIB 1.0 property (either may be compressed with gzip).

    The lowered network is compared with ONNX Runtime on points of the property's first box. Counterexamples are re-run in
    ONNX Runtime on the network as it was read. Files are read once, and need not be there any more once they are.

    Args:
        timeout: seconds of wall clock; None for no limit.
        outputs: the names of the outputs that Y_0, Y_1, ... number, in the file's order; None for all of real numbers. It has to be said
            where an output that holds none, such as a label, stands before one that does.
        deadline: in place of `timeout`, a deadline that the caller can cancel, and hand on to `verify`.
        max_bytes: the most that a file may hold, unpacked, and all weights in files of their own together.
        max_entries: the most that a tensor of the network may have, whatever computes it.

    Raises:
        InvalidInput: what is no path, or no output of real numbers; it is not clear which outputs are numbered.
        InvalidModel: the network cannot be read, is too large, or what it was lowered to differs from ONNX Runtime.
        UnsupportedOperator: an operator of the network has no rule.
        InvalidProperty: the property cannot be read, is too large, or is about other inputs and outputs than the network's.
        OutOfTime: the time is over.
    """
    limit = deadline or Deadline(math.inf if timeout is None else timeout)
    return Loader(max_bytes, max_entries, outputs).load(network_path, property_path, limit)


class Loader:
    """Loads problems one after the other, as `load` does each; a network that is asked for again at once is not read again."""

    def __init__(self, max_bytes: int = MOST_BYTES, max_entries: int = MOST_ENTRIES, outputs: Sequence[str] | None = None) -> None:
        self.max_bytes, self.max_entries, self.outputs = max_bytes, max_entries, outputs
        self._path: str | Path | None = None
        self._network: _Network | None = None

    def load(self, network_path: str | Path, property_path: str | Path, deadline: Deadline) -> Problem:
        """The problem of a network and a property.

        Raises:
            InvalidInput, InvalidModel, UnsupportedOperator, InvalidProperty, OutOfTime: as `load`.
        """
        for path in (network_path, property_path):
            if not isinstance(path, str | PathLike):
                raise InvalidInput(f"a problem is loaded from the paths of a network and a property, not from a {type(path).__name__}")
        with in_force(deadline):
            text, property_hash = read_hashed(property_path, self.max_bytes)
            check_time()
            network = self._read(network_path)
            check_time()
            graph, note = network.graph, network.source.outputs.note(network.graph.outputs)
            try:
                disjuncts, notes = parse_property(text, graph.nx, graph.ny, str(property_path), check_time)
            except InvalidProperty as error:
                raise InvalidProperty(f"{error} ({note})") if note else error from error
            if disjuncts:
                network.check(disjuncts[0].box)
            files = {**network.source.files, str(property_path): property_hash}
            return Problem(network.merged, disjuncts, network.runtime, files, notes=[*([note] if note else []), *notes])

    def _read(self, path: str | Path) -> _Network:
        if self._network is None or path != self._path:
            self._network = None  # two of them may not fit into memory
            with at_most(self.max_entries):
                self._network = _Network(*read_network(path, self.max_bytes, self.outputs))
            self._path = path
        return self._network


class _Network:
    """A network that was read: as it was lowered, which is compared with its runtime, and as it is proved about."""

    def __init__(self, graph: Graph, source: Source) -> None:
        self.graph, self.source = graph, source
        self.check = Check(graph, source)
        self.runtime = source.runtime()

    @cached_property
    def merged(self) -> Graph:
        return without_repeats(self.graph)
