"""Which of a network's outputs are kept: those of real numbers, which Y_0, Y_1, ... number one after the other in the file's order.

Labels, flags and texts beside them are left out, and so is all that only they need. The maps of a ZipMap are kept, as the tensor that it
makes them of.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, TypeVar

import onnx

from milpverify.errors import InvalidInput, InvalidModel, UnsupportedOperator
from milpverify.frontends.onnx.node import attribute
from milpverify.frontends.onnx.ops import FLOATS

if TYPE_CHECKING:
    from milpverify.graph import TensorSpec

_KINDS = {"sequence_type": "a sequence", "map_type": "a map", "optional_type": "an optional", "sparse_tensor_type": "a sparse tensor"}
ZIP_MAP = "ai.onnx.ml", "ZipMap"
"""The operator, by its domain and name, that makes maps of a tensor: one of each row, from the labels to the entries."""

T = TypeVar("T")


class Ambiguous(InvalidInput):
    """It is not clear which outputs are numbered; `usable` are those that can be."""

    def __init__(self, message: str, usable: list[str]) -> None:
        super().__init__(message)
        self.usable = usable


@dataclass(frozen=True)
class Kept:
    """One output that is kept: its name, the tensor that holds its numbers, their type; of maps, the keys in the tensor's order."""

    name: str
    tensor: str
    dtype: str
    keys: tuple[int | str, ...] = ()


@dataclass(frozen=True)
class Outputs:
    """The outputs that are kept, in the file's order, and for each that is not its name and why."""

    kept: tuple[Kept, ...]
    left: tuple[tuple[str, str], ...] = ()

    @property
    def keys(self) -> dict[str, tuple[int | str, ...]]:
        """The names, with the keys of those that are maps."""
        return {output.name: output.keys for output in self.kept}

    def first(self, count: int, why: str) -> Outputs:
        """Without those from some place on, for a reason."""
        return Outputs(self.kept[:count], (*self.left, *((output.name, why) for output in self.kept[count:])))

    def note(self, specs: Sequence[TensorSpec]) -> str:
        """What is left out and how the others, which are so shaped, are numbered; empty where all are kept."""
        if not self.left:
            return ""
        left = ", ".join(f"{name!r} ({why})" for name, why in self.left)
        return f"outputs left out: {left}; {', '.join(f'{spec.name!r} is {span}' for spec, span in numbered('Y', specs))}"


def numbered(letter: str, specs: Sequence[TensorSpec]) -> list[tuple[TensorSpec, str]]:
    """Tensors with the names of their entries as variables: `Y_0 to Y_2`."""
    ends = accumulate(spec.size for spec in specs)
    return [(s, f"{letter}_{end - s.size}" + (f" to {letter}_{end - 1}" if s.size > 1 else "")) for s, end in zip(specs, ends, strict=True)]


def choose(graph: onnx.GraphProto, names: Sequence[str] | None = None) -> Outputs:
    """The outputs of a network that are kept.

    Args:
        names: those that are asked for; None for all of real numbers.

    Raises:
        InvalidModel: no output holds real numbers.
        InvalidInput: there is no output of such a name, it holds no real numbers, or none is named while one without real numbers stands
            before others, so that it is not clear what Y_0 is.
    """
    found = [(info.name, *_kept(graph, info)) for info in graph.output]
    usable = [name for name, kept, _ in found if kept is not None]
    if not usable:
        kinds = ", ".join(f"{name!r} is {why}" for name, _, why in found)
        raise InvalidModel(f"the network has no output of real numbers (float32, float64 or float16): {kinds}")
    if names is None:
        early = next((name for (name, kept, _), rest in zip(found, _rests(found), strict=True) if kept is None and rest), None)
        if early is not None:
            why = next(why for name, _, why in found if name == early)
            options = " ".join(f"--output {name}" for name in usable)
            raise Ambiguous(
                f"the network's output {early!r} is {why}, no tensor of real numbers, and stands before others: say which outputs "
                f"Y_0, Y_1, ... number by {options} (in Python outputs={usable!r})",
                usable,
            )
        names = usable
    names = [names] if isinstance(names, str) else list(names)
    for name in names or [""]:
        if name not in usable:
            why = next((f", which is {why}, no tensor of real numbers" for known, _, why in found if known == name), "")
            problem = f"the output {name!r}{why}, cannot be chosen" if why else f"the network has no output {name!r}"
            raise InvalidInput(f"{problem}; there are {', '.join(map(repr, usable))}")
    kept = tuple(kept for name, kept, _ in found if kept is not None and name in names)
    return Outputs(kept, tuple((name, why or "not asked for") for name, kept, why in found if kept is None or name not in names))


def lowered(outputs: Outputs, asked: bool, lower: Callable[[Outputs], T]) -> tuple[T, Outputs]:
    """What comes of lowering the outputs, and those that it has come of: unless they were asked for, fewer where later ones have no rule.

    Raises:
        UnsupportedOperator: the first output has no rule, or one that was asked for.
    """
    try:
        return lower(outputs), outputs
    except UnsupportedOperator as error:
        if asked or len(outputs.kept) == 1:
            raise
        why = str(error)
    good, bad, best = 0, len(outputs.kept), None
    while bad - good > 1 or best is None:
        middle = max(1, (good + bad) // 2)
        fewer = outputs.first(middle, why)
        try:
            best, good = (lower(fewer), fewer), middle
        except UnsupportedOperator as error:
            if middle == 1:
                raise
            bad, why = middle, str(error)
    return best


def _rests(found: Sequence[tuple[str, Kept | None, str]]) -> list[bool]:
    """For each output whether one that could be kept follows."""
    return [any(kept is not None for _, kept, _ in found[k + 1 :]) for k in range(len(found))]


def _kept(graph: onnx.GraphProto, info: onnx.ValueInfoProto) -> tuple[Kept | None, str]:
    """An output as it is kept, or None and what it is."""
    kind = info.type.WhichOneof("value") or "tensor_type"
    if kind == "tensor_type":
        number = info.type.tensor_type.elem_type
        if number in FLOATS:
            return Kept(info.name, info.name, FLOATS[number]), ""
        known = onnx.TensorProto.DataType.values()
        return None, onnx.TensorProto.DataType.Name(number).lower() if number in known else f"of type number {number}"
    name = info.name
    makers = {output: node for node in graph.node for output in node.output} if kind == "sequence_type" else {}
    while (node := makers.get(name)) is not None and node.op_type == "Identity" and node.input[0] != name:
        name = node.input[0]
    if node is not None and (node.domain, node.op_type) == ZIP_MAP and len(node.input) == 1:
        given = {a.name: attribute(a) for a in node.attribute}
        keys = given.get("classlabels_int64s") or given.get("classlabels_strings") or []
        if keys and len(set(keys)) == len(keys):
            return Kept(info.name, node.input[0], "float32", tuple(keys)), ""
    return None, _KINDS.get(kind, kind)
