"""One torch operation as its lowering rule sees it: its name, its arguments, and the registry of rules.

fx records functions (`torch.relu`, `operator.add`) and methods (`x.relu()`), torch.export operators of aten; all go by one
name, the last part of theirs, and take their arguments as torch documents them. Arguments that depend on the network's input
are graph nodes, other tensors are constants, their real numbers in float64.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from milpverify.errors import InvalidModel, UnsupportedOperator
from milpverify.frontends.lowering.builder import Builder
from milpverify.frontends.lowering.constants import Array
from milpverify.frontends.lowering.rule import Rule
from milpverify.graph import Node

Value = Node | Tensor
"""A tensor of the module: a node where it depends on x, else a constant (real numbers in float64)."""

_OPERATORS = {
    "truediv": "div",
    "iadd": "add",
    "isub": "sub",
    "imul": "mul",
    "itruediv": "div",
    "imatmul": "matmul",
    "ipow": "pow",
    "subtract": "sub",
    "multiply": "mul",
    "divide": "div",
    "true_divide": "div",
    "negative": "neg",
    "concat": "cat",
    "concatenate": "cat",
    "_threshold": "threshold",
    "_softmax": "softmax",
    "_log_softmax": "log_softmax",
    "absolute": "abs",
    "arctan": "atan",
    "clip": "clamp",
    "row_stack": "vstack",
    "swapaxes": "transpose",
    "swapdims": "transpose",
    "moveaxis": "movedim",
    "adjoint": "mT",
    "expit": "sigmoid",
    "float_power": "pow",
    "arctanh": "atanh",
    "linalg_matmul": "matmul",
    "H": "mH",
}


def name_of(target: Any) -> str:
    """The name that the rules know an operation by."""
    if isinstance(target, str):
        name = target
    elif isinstance(target, torch._ops.OpOverload):
        name = target._schema.name.split("::")[1]
    else:
        name = getattr(target, "__name__", type(target).__name__)
    name = name.strip("_") if name.startswith("__") else name
    if name.endswith("_") and not name.startswith("_") and name != "requires_grad_":  # which overwrites no entries
        name = name[:-1]  # in place: the driver sees to it
    name = name.removeprefix("special_")
    return _OPERATORS.get(name, name)


def in_place(target: Any, kwargs: dict[str, Any]) -> bool:
    """Whether the operation overwrites its first argument."""
    name = target if isinstance(target, str) else getattr(target, "__name__", "")
    own = name.endswith("_") and not name.endswith("__")
    return own or bool(kwargs.get("inplace")) or name in ("iadd", "isub", "imul", "itruediv", "imatmul", "ipow")


@dataclass(frozen=True)
class Call:
    """One operation in work: the builder, where the module calls it, and the type that the module computes in."""

    g: Builder
    target: Any
    path: str  # of the submodule, "" for the module itself
    dtype: torch.dtype

    def __str__(self) -> str:
        where = f"in the submodule '{self.path}'" if self.path else "in the module's forward"
        return f"torch operation {qualified_name(self.target)} ({where})"

    def refuse(self, why: str) -> UnsupportedOperator:
        """The error that says what has no rule and what to do."""
        return UnsupportedOperator(f"{self} is not supported: {why}")

    def refuse_places(self) -> UnsupportedOperator:
        """The error for places among the arguments, or asked for."""
        return self.refuse(_PLACES)

    def invalid(self, why: str) -> InvalidModel:
        """The error for an operation that makes no sense."""
        return InvalidModel(f"{self} {why}")

    def number(self, value: Any) -> float:
        """A Python number as torch computes with it: rounded to the module's type."""
        if isinstance(value, Tensor):
            return float(value)
        return float(torch.tensor(float(value), dtype=self.dtype))

    def array(self, value: Any, masks: bool = False) -> Array:
        """A constant, whose entries may be -inf where it is one of the `masks`.

        Raises:
            UnsupportedOperator: it depends on x.
            InvalidModel: an entry is infinite or no number.
        """
        if isinstance(value, Node):
            raise self.refuse("an argument that must be constant depends on the network's input")
        if isinstance(value, Tensor):
            found = value.detach().to("cpu", torch.float64).numpy()
        else:
            found = np.array(self.number(value))
        allowed = np.isfinite(found) | (np.isneginf(found) & masks)
        if not allowed.all():
            raise self.invalid(f"computes with {found[~allowed].flat[0]}; weights must be finite numbers")
        return found

    def optional(self, value: Any) -> Array | None:
        """A constant, or None where it is left out."""
        return None if value is None else self.array(value)

    def node(self, value: Any) -> Node:
        """A tensor as a node; a constant becomes one."""
        return value if isinstance(value, Node) else self.g.constant(self.array(value, masks=True))


_PLACES = "places that depend on the network's input have no rule; values (amax, sort, topk, where) have"


class Places:
    """Which entries values come from: what `max`, `sort` and `topk` return besides."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise UnsupportedOperator(f"torch operation {name} is not supported: {_PLACES}")


Lowering = Callable[..., Any]
RULES: dict[str, Rule[Lowering]] = {}
_L = TypeVar("_L", bound=Lowering)


def rule(*names: str, moves: bool = False, linear_in_constants: bool = False) -> Callable[[_L], _L]:
    """Register a rule, `lower(call, *args, **kwargs)`, for some operations, as `Rule` says."""

    def register(lower: _L) -> _L:
        assert RULES.keys().isdisjoint(names), f"two rules for one of {names}"
        RULES.update(dict.fromkeys(names, Rule(lower, moves, linear_in_constants)))
        return lower

    return register


def qualified_name(target: Any) -> str:
    """How messages and the catalogue name an operation."""
    if isinstance(target, str):
        return f"torch.Tensor.{target}"
    if isinstance(target, torch._ops.OpOverload):
        return str(target)
    if isinstance(target, type) or not hasattr(target, "__name__"):
        target = target if isinstance(target, type) else type(target)
        return f"{target.__module__}.{target.__qualname__}"
    module = getattr(target, "__module__", None) or "torch"
    if getattr(torch.nn.functional, target.__name__, None) is target:
        module = "torch.nn.functional"
    elif getattr(torch, target.__name__, None) is target:
        module = "torch"
    elif module == operator.__name__ or module == "_operator":
        module = "operator"
    return f"{module}.{target.__name__}"


def leaves(value: Any) -> Iterator[Any]:
    """The tensors and numbers in nested lists, tuples, dicts and slices."""
    if isinstance(value, (list, tuple)):
        for part in value:
            yield from leaves(part)
    elif isinstance(value, dict):
        for part in value.values():
            yield from leaves(part)
    elif isinstance(value, slice):
        yield from (value.start, value.stop, value.step)
    else:
        yield value


def replaced(value: Any, change: Callable[[Any], Any]) -> Any:
    """The same nested lists, tuples, dicts and slices with every leaf changed."""
    if isinstance(value, torch.Size):
        return value
    if isinstance(value, (list, tuple)):
        parts = [replaced(part, change) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if isinstance(value, dict):
        return {key: replaced(part, change) for key, part in value.items()}
    if isinstance(value, slice):
        return slice(*(replaced(part, change) for part in (value.start, value.stop, value.step)))
    return change(value)


def execute(target: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """torch's own operation on tensors; a method or an attribute goes by its name."""
    if not isinstance(target, str):
        return target(*args, **kwargs)
    found = getattr(args[0], target)
    return found(*args[1:], **kwargs) if callable(found) else found
