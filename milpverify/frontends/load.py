"""A problem from an ONNX network and a VNN-LIB property."""

from __future__ import annotations

import math
import re
from os import PathLike
from typing import TYPE_CHECKING

from milpverify.config import MOST_BYTES, MOST_ENTRIES, Deadline, check_time, in_force
from milpverify.errors import InvalidInput, InvalidProperty
from milpverify.frontends.lowering.builder import at_most
from milpverify.frontends.lowering.rule import LoweringTuning
from milpverify.frontends.network import is_onnx, opened
from milpverify.frontends.problem import Problem
from milpverify.frontends.vnnlib.alternatives import PropertyTuning
from milpverify.frontends.vnnlib.reader import parse_property, read_hashed
from milpverify.tuning import tuned

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from milpverify.frontends.network import Network, Opened, Shapes
    from milpverify.tuning import Tuning

_INPUTS = re.compile(r"\bdeclare-(?:const|fun)\s+\|?X_\d")
"""Declarations of inputs: how many there are says the shape of a module's input where nothing else does."""


def load(
    network_path: Network,
    property_path: str | Path,
    timeout: float | None = None,
    *,
    outputs: Sequence[str] | None = None,
    shape: Shapes | None = None,
    deadline: Deadline | None = None,
    max_bytes: int = MOST_BYTES,
    max_entries: int = MOST_ENTRIES,
    tuning: Sequence[Tuning] = (),
) -> Problem:
    """The problem of an ONNX network and a VNN-LIB 1.0 property (either may be compressed with gzip).

    The lowered network is compared with ONNX Runtime on points of the property's first box. Counterexamples are re-run in
    ONNX Runtime on the network as it was read. Files are read once, and need not be there any more once they are.

    Args:
        network_path: of an ONNX file, or what it holds, as bytes or as a model; a torch network or a graph will do as well.
        property_path: of the property.
        timeout: seconds of wall clock; None for no limit.
        outputs: the names of the outputs that Y_0, Y_1, ... number, in the file's order; None for all of real numbers. It has to be said
            where an output that holds none, such as a label, stands before one that does.
        shape: of a torch module's input, with its batch axis, or the shapes of several; a property says nothing of them. Without it the
            module is given a vector for each.
        deadline: in place of `timeout`, a deadline that the caller can cancel, and hand on to `verify`.
        max_bytes: the most that a file may hold, unpacked, and all weights in files of their own together.
        max_entries: the most that a tensor of the network may have, whatever computes it.
        tuning: numbers other than the defaults, of `LoweringTuning` and `PropertyTuning`.

    Raises:
        InvalidInput: what is no path, or no output of real numbers; it is not clear which outputs are numbered.
        InvalidModel: the network cannot be read, is too large, or what it was lowered to differs from ONNX Runtime.
        UnsupportedOperator: an operator of the network has no rule.
        InvalidProperty: the property cannot be read, is too large, or is about other inputs and outputs than the network's.
        OutOfTime: the time is over.
    """
    limit = deadline or Deadline(math.inf if timeout is None else timeout)
    return Loader(max_bytes, max_entries, outputs, shape, tuning).load(network_path, property_path, limit)


class Loader:
    """Loads problems one after the other, as `load` does each; a network that is asked for again at once is not read again."""

    def __init__(
        self,
        max_bytes: int = MOST_BYTES,
        max_entries: int = MOST_ENTRIES,
        outputs: Sequence[str] | None = None,
        shape: Shapes | None = None,
        tuning: Sequence[Tuning] = (),
    ) -> None:
        self.tuning = tuning
        self.max_bytes, self.max_entries, self.outputs, self.shape = max_bytes, max_entries, outputs, shape
        self._asked: Network | None = None
        self._network: Opened | None = None

    def load(self, network_path: Network, property_path: str | Path, deadline: Deadline) -> Problem:
        """The problem of a network and a property.

        Raises:
            InvalidInput, InvalidModel, UnsupportedOperator, InvalidProperty, OutOfTime: as `load`.
        """
        if not isinstance(property_path, str | PathLike):
            raise InvalidInput(f"a problem is loaded from the paths of a network and a property, not from a {type(property_path).__name__}")
        with in_force(deadline):
            text, property_hash = read_hashed(property_path, self.max_bytes)
            check_time()
            network = self._read(network_path, text)
            check_time()
            graph, note = network.graph, network.note
            try:
                numbers = tuned(self.tuning, PropertyTuning)
                disjuncts, notes = parse_property(text, graph.nx, graph.ny, str(property_path), check_time, numbers)
            except InvalidProperty as error:
                raise InvalidProperty(f"{error} ({note})") if note else error from error
            if disjuncts:
                network.check(disjuncts[0].box)
            files = {**network.files, str(property_path): property_hash}
            return Problem(network.merged, disjuncts, network.runtime, files, notes=[*([note] if note else []), *notes])

    def _read(self, network: Network, text: str) -> Opened:
        known = network is self._asked or (isinstance(network, str | PathLike) and network == self._asked)
        if self._network is None or not known:
            self._network = None  # two of them may not fit into memory
            given = () if is_onnx(network) else [(len(_INPUTS.findall(text)),)]
            with at_most(self.max_entries):
                self._network = opened(network, given, self.shape, self.outputs, self.max_bytes, tuned(self.tuning, LoweringTuning))
            self._asked = network
        return self._network
