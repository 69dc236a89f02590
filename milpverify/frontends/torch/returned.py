"""What a module returns, by name: tensors in nested tuples, dicts, named tuples and dataclasses, and which of them are numbered."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from milpverify.errors import InvalidInput, InvalidModel
from milpverify.graph import Node

if TYPE_CHECKING:
    from milpverify.graph import TensorSpec


def named(value: Any, name: str = "") -> list[tuple[str, Any]]:
    """What a module returns, part by part, without what is None: `output`, `output 0` and so on of a tuple, and by their keys or fields."""
    return [(path or "output", leaf) for path, leaf in _leaves(value, name) if leaf is not None]


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        parts = [(str(key), part) for key, part in value.items()]
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        parts = list(zip(value._fields, value, strict=True))
    elif isinstance(value, (list, tuple)):
        parts = [(str(k) if path else f"output {k}", part) for k, part in enumerate(value)]
    elif is_dataclass(type(value)) and not isinstance(value, Node):
        parts = [(f.name, getattr(value, f.name)) for f in fields(value)]
    else:
        yield path, value
        return
    for key, part in parts:
        yield from _leaves(part, f"{path}.{key}" if path else key)


@dataclass(frozen=True)
class Returned:
    """The names of the tensors that Y_0, Y_1, ... number, in the order in which they are returned, and what is left out, and why."""

    kept: tuple[str, ...]
    left: tuple[tuple[str, str], ...] = ()

    def note(self, specs: Sequence[TensorSpec]) -> str:
        """What is left out and what is kept, which is so shaped; empty where all is."""
        if not self.left:
            return ""
        spans, first = [], 0
        for spec in specs:
            last = first + spec.size - 1
            spans.append(f"{spec.name!r} is Y_{first}" + (f" to Y_{last}" if last > first else ""))
            first = last + 1
        return f"outputs left out: {', '.join(f'{name!r} ({why})' for name, why in self.left)}; {', '.join(spans)}"


def choose(found: Sequence[tuple[str, Any]], names: Sequence[str] | None) -> Returned:
    """The outputs that are kept, by the rules for those of a file: those of real numbers, or those that are asked for.

    Raises:
        InvalidModel: no output holds real numbers.
        InvalidInput: two are called alike, there is no such output, it holds no real numbers, or none is named while one without real
            numbers stands before others, so that it is not clear what Y_0 is.
    """
    kinds: dict[str, str] = {}
    for name, value in found:
        if name in kinds:
            raise InvalidInput(f"the network returns two outputs called {name!r}, so that it is not clear which one is meant: rename one")
        kinds[name] = _kind(value)
    usable = [name for name, kind in kinds.items() if not kind]
    if not usable:
        what = ", ".join(f"{name!r} is {kind}" for name, kind in kinds.items()) or "it returns nothing"
        raise InvalidModel(f"the network returns no tensor of real numbers: {what}")
    if names is None:
        order = list(kinds)
        early = next((name for name in order[: order.index(usable[-1])] if kinds[name]), None)
        if early is not None:
            raise InvalidInput(
                f"the network's output {early!r} is {kinds[early]}, no tensor of real numbers, and stands before others: say which outputs "
                f"Y_0, Y_1, ... number by outputs={usable!r}"
            )
        names = usable
    names = [names] if isinstance(names, str) else list(names)
    for name in names or [""]:
        if name not in usable:
            what = (
                f"the output {name!r}, which is {kinds[name]}, cannot be chosen" if name in kinds else f"the network has no output {name!r}"
            )
            raise InvalidInput(f"{what}; there are {', '.join(map(repr, usable))}")
    left = tuple((name, kind or "not asked for") for name, kind in kinds.items() if name not in names)
    return Returned(tuple(name for name in usable if name in names), left)


def _kind(value: Any) -> str:
    """What an output is that holds no real numbers; empty for those that do."""
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    return "" if value.is_floating_point() else str(value.dtype).removeprefix("torch.")
