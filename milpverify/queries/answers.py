"""The answer to a query as the standard prints it: a word, and after `sat` the values of all declared variables."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from milpverify.errors import InvalidInput
from milpverify.frontends.vnnlib.query import NUMBERS
from milpverify.result import Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import Any

    from milpverify.frontends.vnnlib.query import Query, Variable
    from milpverify.result import Counterexample, Result

TIMED_OUT = "timed-out"


def word(result: Result) -> str:
    """`sat`, `unsat`, `unknown` or `timed-out`."""
    return TIMED_OUT if result.word == "timeout" else result.word


def answer_of(result: Result, query: Query, folder: Path | None) -> str:
    """The lines of standard output; the values go into a folder instead, where there is one.

    Raises:
        InvalidInput: the folder cannot be written to.
    """
    if result.verdict is not Verdict.FALSIFIED or result.counterexample is None:
        return word(result)
    found = list(_values(query, result.counterexample))
    if folder is not None:
        _serialise(folder, found)
        return word(result)
    lines = ([str(variable), *(_number(v) for v in values.reshape(-1))] for variable, values in found)
    return "\n".join([word(result), *chain.from_iterable(lines)])


def _values(query: Query, point: Counterexample) -> Iterator[tuple[Variable, np.ndarray[Any, Any]]]:
    """The variables in the order of their declarations, with their values in their shapes and types."""
    parts = {"x": 0, "y": 0}
    for network in query.networks:
        for side, variables in (("x", network.inputs), ("y", network.outputs)):
            for variable in variables:
                begin = parts[side]
                parts[side] = begin + variable.size
                flat = getattr(point, side)[begin : begin + variable.size]
                yield variable, flat.astype(NUMBERS.get(variable.dtype, np.float64)).reshape(variable.shape)


def _number(value: np.floating[Any]) -> str:
    """The shortest decimal that is the same number of the type."""
    return str(value.item()) if value.dtype == np.float64 else str(value)


def _serialise(folder: Path, found: list[tuple[Variable, np.ndarray[Any, Any]]]) -> None:
    """A TensorProto per variable."""
    from onnx import numpy_helper

    from milpverify.outside.files import write_atomically

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInput(f"{folder}: the folder of the assignments cannot be made: {error.strerror}") from error
    for variable, values in found:
        write_atomically(folder / f"{variable.name}.pb", numpy_helper.from_array(values, variable.name).SerializeToString())
