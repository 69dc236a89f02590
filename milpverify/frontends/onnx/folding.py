"""What folding constants rounds: how far a constant that a node computes from constants is from the real number it stands for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from milpverify.errors import InvalidModel
from milpverify.frontends.lowering.builder import check_size
from milpverify.frontends.lowering.constants import ARITHMETIC, Constant
from milpverify.frontends.onnx.node import RULES, Operation
from milpverify.graph import Node


def folded_roundings(op: Operation, results: Sequence[NDArray[Any]], rounded: Sequence[int]) -> int | None:
    """How often what a node makes of constants is rounded, as `Constant` counts; None where nothing is known of that.

    Args:
        rounded: of its inputs.

    Raises:
        InvalidModel: the result underflows, or it cancels what is not exact.
    """
    if not any(r.dtype.kind == "f" for r in results):  # lengths, places and masks
        return 0
    name, worst = op.proto.op_type, max(rounded, default=0)
    if name.lower() in ARITHMETIC:
        given = [_constant(v, r) for v, r in zip(op.inputs, rounded, strict=True)]
        try:
            return ARITHMETIC[name.lower()](*given).rounded
        except (ValueError, TypeError) as error:
            raise InvalidModel(f"{op} does not fit its inputs: {error}") from error
    return worst if not worst or (name in RULES and RULES[name].moves) else None


def check_result(op: Operation) -> None:
    """Refuse to fold what would not fit into memory.

    Raises:
        ValueError: the result has too many entries.
    """
    match op.proto.op_type:
        case "ConstantOfShape":
            check_size(op.weight(0).tolist())
        case "Expand":
            check_size(np.broadcast_shapes(op.value(0).shape, tuple(op.weight(1).tolist())))
        case "Tile":
            check_size(n * int(k) for n, k in zip(op.value(0).shape, op.weight(1).tolist(), strict=True))
        case "Range":
            start, limit, step = (float(op.weight(i)) for i in range(3))
            check_size([max(0, math.ceil((limit - start) / step))])


def _constant(value: Any, rounded: int) -> Constant:
    assert not isinstance(value, Node)
    return Constant(np.asarray(value, dtype=np.float64), rounded)
