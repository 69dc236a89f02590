"""Lowering torch operations one by one: functions of the catalogue are found by name, the rest has rules, and constants fold in float64.

Of folded sums, products, quotients and roots what is lost is known and kept as a mark (`constants.Constant`); what any other operation
makes of constants is by definition the float64 number that torch computes.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from milpverify.errors import InvalidModel, MilpverifyError
from milpverify.frontends.lowering.builder import Builder
from milpverify.frontends.lowering.constants import ARITHMETIC, Constant
from milpverify.frontends.lowering.rule import LoweringTuning
from milpverify.frontends.torch import attention, data, functions, layers, moves, norms, ops, placing  # noqa: F401 (register their rules)
from milpverify.frontends.torch.activation import Activation
from milpverify.frontends.torch.call import RULES, Call, Places, execute, leaves, name_of, qualified_name, replaced
from milpverify.functions.catalogue import catalogue
from milpverify.graph import Graph, Node, TensorSpec

if TYPE_CHECKING:
    from milpverify.functions.catalogue import Nonlinearity

MISFITS = (ValueError, TypeError, IndexError, KeyError, AttributeError, RuntimeError)
"""What torch and the builder raise where an operation does not fit its arguments."""


def entry_of(target: Any) -> Nonlinearity | None:
    """The entry of the catalogue that is a torch function, method or operator, or a module of this class."""
    qualified = qualified_name(target)
    if isinstance(target, type) or not qualified.startswith(("torch", "aten", "operator")):
        return catalogue().by_torch(qualified)
    name = name_of(target)
    known = (catalogue().by_torch(f"{home}.{name}") for home in ("torch", "torch.nn.functional", "torch.special"))
    return next((entry for entry in known if entry is not None), None)


class Lowering:
    """A graph that grows by torch operations on nodes (what depends on x) and tensors (constants).

    Args:
        shapes: of the module's inputs, with their batch axes.
        dtype: that the module computes in.
        names: of the inputs.
    """

    def __init__(
        self,
        shapes: Sequence[Sequence[int]],
        dtype: torch.dtype,
        names: Sequence[str],
        tuning: LoweringTuning = LoweringTuning(),
    ) -> None:
        self.dtype = dtype
        kind = str(dtype).removeprefix("torch.")
        self.specs = tuple(TensorSpec(name, tuple(shape), kind) for name, shape in zip(names, shapes, strict=True))
        self.builder = Builder(sum(spec.size for spec in self.specs), tuning)
        self.builder.name = "x"
        self.rounded: dict[int, tuple[Tensor, int]] = {}  # by their identity, constants that are not exact: see `constants.Constant`
        self.inputs = self._cut()

    def _cut(self) -> list[Node]:
        """The inputs, cut out of the flat x."""
        x, first, found = self.builder.nodes[0], 0, []
        for spec in self.specs:
            part = x if len(self.specs) == 1 else self.builder.select(x, np.arange(first, first + spec.size))
            found.append(self.builder.reshape(part, spec.shape))
            first += spec.size
        return found

    def constant(self, value: Tensor) -> Tensor:
        """A constant of the module, of any shape: real numbers in float64, on the CPU.

        Raises:
            InvalidModel: it is complex, quantised or sparse.
        """
        value = value.detach() if value.requires_grad else value
        if value.is_complex() or value.is_quantized or value.layout != torch.strided:
            raise InvalidModel(f"the network holds a tensor of type {value.dtype}, {value.layout}; real, dense tensors are supported")
        return value.to("cpu", torch.float64) if value.is_floating_point() else value.to("cpu")

    def run(self, target: Any, args: Sequence[Any], kwargs: Mapping[str, Any], path: str) -> Any:
        """The result of one operation: nodes, tensors, numbers, or nested tuples of them.

        Raises:
            UnsupportedOperator: it has no rule; the message names it and the submodule `path`.
            InvalidModel: it does not fit its arguments.
        """
        args, named = self.arguments(args, kwargs)
        name = name_of(target)
        rule = RULES.get(name)
        if name == "getitem" and isinstance(args[0], (tuple, list, dict)):
            return args[0][args[1]]
        call = Call(self.builder, target, path, self.dtype)
        self.builder.name = ".".join(filter(None, (path, name)))
        try:
            if any(isinstance(v, Places) for v in leaves((args, named))):
                raise call.refuse_places()
            if not any(isinstance(v, Node) for v in leaves((args, named))):
                if (rule is not None and rule.moves) or not self.roundings(args, named) or (name in ARITHMETIC and not named):
                    return self.fold(call, args, named)
                args, named = self.as_nodes(args), self.as_nodes(named)
            elif rule is None or not (rule.moves or rule.linear_in_constants):
                args, named = self.as_nodes(args), self.as_nodes(named)
            rounded = self.roundings(args, named)
            if rule is not None:
                since = len(self.builder.nodes)
                result = rule.lower(call, *args, **named)
                self.builder.mark(since, rounded)
                if rule.moves and all(v.id in self.builder.masks for v in leaves((args, named)) if isinstance(v, Node)):
                    self.builder.masks.update(v.id for v in leaves(result) if isinstance(v, Node))
                return replaced(result, lambda v: self.builder.nodes[v.id] if isinstance(v, Node) else v) if rounded else result
            if (entry := entry_of(target)) is not None:
                return self.apply(call, entry, args, named)
        except MilpverifyError:
            raise
        except MISFITS as error:
            raise InvalidModel(f"{call} does not fit its arguments: {' '.join(str(error).split())}") from error
        raise call.refuse(
            "it has no rule; express it by supported operations, or, if it is a function of one variable, register it by "
            "milpverify.register_nonlinearity"
        )

    def arguments(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """The arguments as the rules want them: the first in its place, constants in float64, `dim` for `axis`."""
        named = {{"axis": "dim", "keepdims": "keepdim"}.get(key, key): value for key, value in kwargs.items()}
        places = list(args)
        for key in ("input", "self", "tensors", "tensor"):
            if not places and key in named:
                places.append(named.pop(key))
        named.pop("inplace", None)
        named.pop("out", None)

        def known(value: Any) -> Any:
            return self.constant(value) if isinstance(value, Tensor) else value

        return [replaced(v, known) for v in places], {key: replaced(v, known) for key, v in named.items()}

    def roundings(self, *values: Any) -> int:
        """How often constants among the values are rounded, together."""
        return sum(self.rounded[id(v)][1] for v in leaves(values) if id(v) in self.rounded)

    def as_nodes(self, values: Any) -> Any:
        """The values with the constants that are not exact as nodes: they stand for real numbers then, whatever is made of them."""
        return replaced(values, lambda v: self.builder.constant(self.known(v)) if id(v) in self.rounded else v)

    def fold(self, call: Call, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """An operation on constants, in float64."""
        with torch.no_grad():
            found = execute(call.target, args, kwargs)
        if found is torch.float64:
            return self.dtype
        found = replaced(found, lambda v: self.constant(v) if isinstance(v, Tensor) else v)
        real = [v for v in leaves(found) if isinstance(v, Tensor) and v.is_floating_point()]
        name = name_of(call.target)
        if not real:  # lengths, places and masks
            return found
        rounded = self.roundings(args, kwargs)
        if name in ARITHMETIC and not kwargs and all(isinstance(v, (Tensor, float, int)) for v in args):
            rounded = ARITHMETIC[name](*map(self.known, args)).rounded
        if rounded:
            self.rounded |= {id(v): (v, rounded) for v in real}
        return found

    def known(self, value: Any) -> Constant:
        """A constant with its mark."""
        array = value.numpy() if isinstance(value, Tensor) else np.asarray(value)
        return Constant(array.astype(np.float64), self.rounded[id(value)][1] if id(value) in self.rounded else 0)

    def apply(self, call: Call, entry: Nonlinearity, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Node:
        """A function of the catalogue. What follows x are its parameters, in the order of its file or by their names there.

        Raises:
            UnsupportedOperator: a parameter depends on x, or the function has no such parameter.
        """
        x, *values = self.positional(call.target, args, kwargs)
        if not isinstance(x, Node) or any(isinstance(v, Node) for v in values):
            raise call.refuse("a parameter depends on the network's input; only a number has a rule")
        given = dict(zip(entry.limits, values, strict=False))
        given |= {key: value for key, value in kwargs.items() if key in entry.limits}
        if len(values) > len(entry.limits) or len(given) < len(values):
            raise call.refuse(f"the nonlinearity '{entry.name}' has the parameters ({', '.join(entry.limits)})")
        numbers = {key: call.number(v) for key, v in given.items() if v is not None}
        return self.builder.apply(entry.bind(**numbers), x)

    def positional(self, target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        """The arguments in their places, with the function's own defaults, where its signature is known."""
        if isinstance(target, torch._ops.OpOverload):
            rest = [a.default_value for a in target._schema.arguments[len(args) :] if not a.kwarg_only]
            return [*args, *(v for v in rest if v is not None)]
        if isinstance(target, str):
            return list(args)
        try:
            bound = inspect.signature(target).bind(*args, **kwargs)
        except ValueError:  # a builtin without a signature: by name
            return list(args)
        bound.apply_defaults()
        return [value for key, value in bound.arguments.items() if key != "inplace"]

    def module(self, module: nn.Module, args: Sequence[Any], path: str) -> Node:
        """A function of the catalogue as a module: an `Activation`, or a class that an entry names.

        Of the latter the attributes that are named as the entry's parameters are these.

        Raises:
            UnsupportedOperator: it takes more than one tensor that depends on x.
        """
        self.builder.name = path
        if isinstance(module, Activation) and isinstance(args[0], Node):
            return self.builder.apply(module.function, args[0])
        entry = catalogue().by_torch(qualified_name(type(module)))
        call = Call(self.builder, type(module), path, self.dtype)
        if entry is None or len(args) != 1 or not isinstance(args[0], Node):
            raise call.refuse("a module of the catalogue takes one tensor that depends on the network's input")
        owned = {name: getattr(module, name) for name in entry.limits if hasattr(module, name)}
        return self.builder.apply(entry.bind(**{name: call.number(v) for name, v in owned.items()}), args[0])

    def name(self, node: Node, name: str) -> None:
        """Call a node by the submodule whose output it is."""
        self.builder.nodes[node.id] = replace(self.builder.nodes[node.id], name=name)

    def graph(self, found: Sequence[tuple[str, Any]], kept: Sequence[str] | None = None) -> Graph:
        """The finished graph, whose y is what the module returns, flattened and joined.

        Args:
            found: it, by name.
            kept: the names of those that are numbered; None for all but places.

        Raises:
            InvalidModel: the module returns something else than tensors.
        """
        found = [(name, v) for name, v in found if (not isinstance(v, Places) if kept is None else name in kept)]
        parts = [v for _, v in found]
        if not parts or not all(isinstance(v, (Node, Tensor)) for v in parts) or (kept is not None and len(parts) < len(kept)):
            kinds = ", ".join(f"'{name}', a {type(v).__name__}" for name, v in found) or "nothing"
            raise InvalidModel(f"the network returns {kinds}; tensors are needed")
        call = Call(self.builder, "return", "", self.dtype)
        nodes = [v if isinstance(v, Node) else self.builder.constant(Constant(call.array(v), self.known(v).rounded)) for v in parts]
        specs = tuple(TensorSpec(name, node.shape, self.specs[0].dtype) for (name, _), node in zip(found, nodes, strict=True))
        return self.builder.graph(nodes, self.specs, specs)
