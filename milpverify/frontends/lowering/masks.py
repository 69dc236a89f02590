"""Entries that are -inf: masks of attention, and what pads a maximum.

A graph holds real numbers. While it grows, the builder knows of every node which entries stand for -inf (`Builder.masked`): what moves
them or adds to them hands that on, softmax, log-sum-exp and maxima leave them out, and a function has its limit there. What else would
read them is refused, so that nothing of a finished graph depends on what such an entry holds in -inf's place.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from milpverify.frontends.lowering.constants import Constant, all_finite
from milpverify.operators import Concat, Permute, Reshape, Scale, Select, Sum

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from milpverify.functions.catalogue import Function
    from milpverify.graph import Node

Mask = NDArray[np.bool_]

_LIMITS: Final = {"exp": 0.0, "sigmoid": 0.0, "softplus": 0.0, "tanh": -1.0, "erf": -1.0}
_READERS = "entries that are -inf may be moved, added to, and read by softmax, log-sum-exp, maxima and functions with a limit there"


def split(values: Constant) -> tuple[Constant, Mask | None]:
    """Constants with 0 in the place of -inf, and where that is; None for nowhere.

    Raises:
        ValueError: they hold NaN or inf.
    """
    if all_finite(values.value):
        return values, None
    hidden = np.isneginf(values.value)
    if (bad := values.value[~(hidden | np.isfinite(values.value))]).size:
        raise ValueError(f"it computes with {bad.flat[0]}; weights must be finite numbers")
    return values.moved(np.where(hidden, 0.0, values.value)), hidden


def behind(node: Node, inputs: Sequence[Node], known: Mapping[int, Mask]) -> Mask | None:
    """Which entries of a node are -inf, by those of what it reads, some of which are; None where none is.

    Raises:
        ValueError: it makes no number, or something else, of -inf.
    """
    masks = [known.get(i.id) for i in inputs]
    first = masks[0]
    match node.op:
        case Reshape(shape=target) if first is not None:
            found = first.reshape(target)
        case Permute(axes=axes) if first is not None:
            found = first.transpose(axes)
        case Select(index=index) if first is not None:
            places = index.numpy()
            found = np.where(places >= 0, first.reshape(-1)[places], False)
        case Concat(axis=axis):
            found = np.concatenate([np.zeros(i.shape, dtype=bool) if m is None else m for m, i in zip(masks, inputs, strict=True)], axis)
        case Sum(signs=signs) if all(m is None or sign > 0 for m, sign in zip(masks, signs, strict=True)):
            found = np.logical_or.reduce([m for m in masks if m is not None])
        case Scale(weight=weight) if first is not None:
            if weight is not None and not (np.broadcast_to(weight.numpy(), node.shape)[first] > 0).all():
                raise ValueError("entries that are -inf may be multiplied by positive numbers only")
            found = first
        case _:
            raise ValueError(_READERS)
    return found if found.any() else None


def limit(function: Function) -> float:
    """f(-inf).

    Raises:
        ValueError: it is not finite, or not known.
    """
    if function.name in _LIMITS:
        return _LIMITS[function.name]
    pieces = function.pieces
    if pieces is not None and not pieces.slopes[0] and math.isfinite(pieces.intercepts[0]):
        return float(pieces.intercepts[0])
    raise ValueError(f"{function} has no limit where its argument is -inf: {_READERS}")


def present(mask: Mask, rows: NDArray[np.int64], sign: int) -> tuple[NDArray[np.int64], Mask]:
    """Sets of entries of each plane (planes, entries) without those that are -inf, for a maximum.

    Args:
        rows: (sets, k), the entries of a plane that each set holds.

    Returns:
        the sets (planes * sets, k) of entries of all planes together, the first one that is a number in the place of what is none; and
        which sets hold no number.

    Raises:
        ValueError: the sign is that of a minimum.
    """
    if sign < 0:
        raise ValueError(_READERS)
    places = (rows + mask.shape[1] * np.arange(len(mask))[:, None, None]).reshape(-1, rows.shape[1])
    visible = ~mask.reshape(-1)[places]
    first = np.take_along_axis(places, visible.argmax(1)[:, None], 1)
    return np.where(visible, places, first), ~visible.any(1)
