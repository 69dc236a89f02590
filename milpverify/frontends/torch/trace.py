"""torch modules as networks: traced by torch.fx, or by torch.export where that fails, and lowered to the graph of core operators.

fx runs the module's own Python on proxies. Ours know their value as soon as they are made, a graph node or a constant, so that
control flow on shapes, loops over a sequence and the constants' own arithmetic work; only control flow on entries does not.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree

from milpverify.errors import InvalidModel, MilpverifyError, UnsupportedOperator
from milpverify.frontends.lowering.rule import LoweringTuning
from milpverify.frontends.torch.activation import Activation
from milpverify.frontends.torch.call import RULES, in_place, name_of, qualified_name, replaced
from milpverify.frontends.torch.lowering import MISFITS, Lowering, entry_of
from milpverify.frontends.torch.programs import Program, Script, Shapes, of_a_program, program_of, quiet, refuse_training
from milpverify.frontends.torch.returned import named
from milpverify.functions.catalogue import catalogue
from milpverify.graph import Graph, Node

_FAILURES = (*MISFITS, fx.proxy.TraceError, NotImplementedError, AssertionError)
_ATTRIBUTES = (
    *("shape", "dtype", "device", "layout", "ndim", "T", "mT", "H", "mH", "data"),
    *("requires_grad", "is_cuda", "is_mkldnn", "is_nested", "is_quantized", "is_sparse"),
)


def lower_module(
    module: nn.Module,
    shapes: Sequence[Any],
    dtype: torch.dtype,
    kept: Sequence[str] | None = None,
    tuning: LoweringTuning = LoweringTuning(),
) -> Graph:
    """Lower a module in evaluation mode to the core operators.

    Node 0 is the flat x (nx,), the inputs one after the other, the last node the flat y (ny,). A node is called after the submodule whose
    output it is.

    Args:
        shapes: of the module's inputs, with their batch axes; of one input also its shape.
        dtype: that the module computes in.
        kept: the names of the outputs that y holds (`returned`); None for all.

    Raises:
        UnsupportedOperator: an operation, named with its submodule, has no rule.
        InvalidModel: a submodule is in training mode, a weight is NaN or infinite, or the module cannot be traced at all.
    """
    refuse_training(module)
    shapes = several(shapes)
    if isinstance(module, Program | Script) or of_a_program(module):  # operators of aten, which torch.fx would take for its own
        return _of_program(module, shapes, dtype, kept, tuning)
    try:
        return _trace(module, shapes, dtype, kept, tuning)
    except UnsupportedOperator as error:
        first: Exception = error
    except InvalidModel:
        raise
    except _FAILURES as error:
        first = error
    try:
        return _export(module, shapes, dtype, kept, tuning)
    except UnsupportedOperator as error:
        # The first names what the module's author wrote, the second what torch made of it.
        both = isinstance(first, UnsupportedOperator) and str(first) != str(error)
        raise UnsupportedOperator(f"{first}; torch.export tells: {error}" if both else str(error)) from error
    except (*_FAILURES, torch._dynamo.exc.TorchDynamoException) as error:
        if isinstance(first, MilpverifyError):
            raise first from error
        message = f"the network can be traced neither by torch.fx ({_line(first)}) nor by torch.export ({_line(error)})"
        raise InvalidModel(message) from error


def several(shapes: Sequence[Any]) -> tuple[tuple[int, ...], ...]:
    """Shapes of inputs; one shape is that of one input."""
    if shapes and all(isinstance(shape, Sequence) for shape in shapes):
        return tuple(tuple(map(int, shape)) for shape in shapes)
    return (tuple(map(int, shapes)),)


def input_names(module: nn.Module, count: int) -> list[str]:
    """What the module calls its first inputs; `x 0`, `x 1` where it does not say."""
    if isinstance(module, Program | Script):
        return list(module.names)[:count]
    try:
        parameters = list(inspect.signature(module.forward).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if count <= len(named):
        return named[:count]
    return ["x"] if count == 1 else [f"x {k}" for k in range(count)]


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"


# torch.fx


class _Proxy(fx.Proxy):
    """A proxy that knows its value: a graph node or a constant tensor."""

    tracer: _Tracer

    def __init__(self, node: fx.Node, tracer: _Tracer, value: Node | Tensor) -> None:
        super().__init__(node, tracer)
        self.value = value

    def __getattr__(self, name: str) -> Any:
        if name in _ATTRIBUTES:
            return self.tracer.compute(name, (self,), {})
        return super().__getattr__(name)

    def __len__(self) -> int:
        return int(self.value.shape[0])

    def __iter__(self) -> Iterator[Any]:
        return iter(self.tracer.compute("unbind", (self,), {}))

    def __iadd__(self, other: Any) -> Any:
        return self.tracer.overwrite(self, "add", other)

    def __isub__(self, other: Any) -> Any:
        return self.tracer.overwrite(self, "sub", other)

    def __imul__(self, other: Any) -> Any:
        return self.tracer.overwrite(self, "mul", other)

    def __itruediv__(self, other: Any) -> Any:
        return self.tracer.overwrite(self, "div", other)


class _Root(nn.Module):
    """Calls the network on its inputs, so that its other parameters keep their defaults."""

    def __init__(self, net: nn.Module, inputs: Callable[[], list[Any]]) -> None:
        super().__init__()
        self.net, self.inputs = net, inputs

    def forward(self) -> Any:
        return self.net(*self.inputs())


class _Tracer(fx.Tracer):
    """Lowers every operation as fx records it."""

    def __init__(self, lowering: Lowering) -> None:
        functions, homes = _own_functions()
        super().__init__(autowrap_functions=functions)
        self._autowrap_search += homes
        self.lowering = lowering
        self.result: list[tuple[str, Any]] = []
        self.outputs: set[str] = set()

    def create_proxy(self, kind: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *_: Any, **__: Any) -> Any:
        return self.compute(target, args, kwargs)

    def create_arg(self, a: Any) -> Any:
        """Called for what the network returns alone, as `create_proxy` records no arguments."""
        self.result = [(name, _value(part)) for name, part in named(a)]

    def compute(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of one operation, wrapped where it is a tensor."""
        values = [replaced(v, _value) for v in args], {key: replaced(v, _value) for key, v in kwargs.items()}
        found = self.lowering.run(target, *values, self.path)
        if in_place(target, kwargs) and args and isinstance(args[0], _Proxy):
            args[0].value = found
            return args[0]
        return replaced(found, lambda v: self.wrapped(v) if isinstance(v, (Node, Tensor)) else v)

    def overwrite(self, proxy: _Proxy, method: str, other: Any) -> _Proxy:
        """An operation in place."""
        proxy.value = self.lowering.run(method, [proxy.value, replaced(other, _value)], {}, self.path)
        return proxy

    def wrapped(self, value: Node | Tensor) -> _Proxy:
        return _Proxy(self.graph.create_node("call_function", _recorded, (), {}), self, value)

    @property
    def path(self) -> str:
        """The submodule in work."""
        return next(reversed(self.module_stack.values()), ("", None))[0].removeprefix("net").removeprefix(".")

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Activation) or catalogue().by_torch(qualified_name(type(m))) is not None

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            path = self.path_of_module(m).removeprefix("net").removeprefix(".")
        except NameError as error:
            raise InvalidModel(
                f"the network calls a {type(m).__name__} that is none of its submodules: keep it as an attribute of a module, or in a "
                "ModuleList, ModuleDict or Sequential, not in a plain list or a global"
            ) from error
        since = len(self.lowering.builder.nodes)
        if self.is_leaf_module(m, path):
            result: Any = self.wrapped(self.lowering.module(m, [replaced(v, _value) for v in args], path))
        else:
            result = super().call_module(m, forward, args, kwargs)
        if path and path not in self.outputs and isinstance(result, _Proxy):
            self.outputs.add(path)
            if isinstance(result.value, Node) and result.value.id >= since:
                self.lowering.name(result.value, path)
        return result

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if isinstance(attr_val, Tensor):
            return self.wrapped(self.lowering.constant(attr_val))
        return attr_val

    def to_bool(self, obj: Any) -> bool:
        if isinstance(obj, _Proxy) and isinstance(obj.value, Tensor):
            return bool(obj.value)
        where = f"the submodule '{self.path}'" if self.path else "the network's forward"
        raise UnsupportedOperator(
            f"control flow in {where} depends on the network's input, which has no rule: express it by torch.where, clamp or maximum"
        )


def _recorded() -> None:
    """What fx's own graph holds for an operation: ours is the one that counts."""


def _value(proxy: Any) -> Any:
    return proxy.value if isinstance(proxy, _Proxy) else proxy


def _own_functions() -> tuple[tuple[Callable[..., Any], ...], list[ModuleType]]:
    """The functions outside torch that the catalogue names, and the modules that define them, as far as they are loaded."""
    functions, homes = [], []
    for name in {name for entry in catalogue().values() for name in entry.torch if not name.startswith("torch.")}:
        home, _, last = name.rpartition(".")
        module = sys.modules.get(home)
        found = getattr(module, last, None)
        if module is not None and callable(found) and not isinstance(found, type):
            functions.append(found)
            homes.append(module)
    return tuple(functions), homes


def _trace(
    module: nn.Module,
    shapes: Sequence[Any],
    dtype: torch.dtype,
    kept: Sequence[str] | None = None,
    tuning: LoweringTuning = LoweringTuning(),
) -> Graph:
    shapes = several(shapes)
    tracer = _Tracer(Lowering(shapes, dtype, input_names(module, len(shapes)), tuning))
    with torch.no_grad():
        tracer.trace(_Root(module, lambda: [tracer.wrapped(node) for node in tracer.lowering.inputs]))
    return tracer.lowering.graph(tracer.result, kept)


# torch.export


def _of_program(module: nn.Module, shapes: Shapes, dtype: torch.dtype, kept: Sequence[str] | None, tuning: LoweringTuning) -> Graph:
    """A network that is a program already."""
    try:
        return _export(module, shapes, dtype, kept, tuning)
    except MilpverifyError:
        raise
    except _FAILURES as error:
        raise InvalidModel(f"the program cannot be read: {_line(error)}") from error


def _export(
    module: nn.Module,
    shapes: Sequence[Any],
    dtype: torch.dtype,
    kept: Sequence[str] | None = None,
    tuning: LoweringTuning = LoweringTuning(),
) -> Graph:
    shapes = several(shapes)
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    exported = program_of(module, shapes, dtype, device)
    with quiet():
        exported = exported.run_decompositions(_decompositions())
    lowering = Lowering(shapes, dtype, input_names(module, len(shapes)), tuning)
    signature = exported.graph_signature
    weights = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    lifted = signature.inputs_to_lifted_tensor_constants
    stored = {**exported.constants, **exported.state_dict}
    given = dict(zip(signature.user_inputs, lowering.inputs, strict=False))
    spec, results = exported.call_spec.out_spec, list(signature.user_outputs)
    found = [(name, v) for name, v in named(results if spec is None else _pytree.tree_unflatten(results, spec)) if not kept or name in kept]
    needed = _before(exported.graph, {v for _, v in found if isinstance(v, str)})
    values: dict[str, Any] = {}
    for node in exported.graph.nodes:
        if node.name not in needed:
            continue
        if node.op == "placeholder":
            name = weights.get(node.name) or lifted.get(node.name)
            if name is None and node.name not in given:
                raise InvalidModel(f"the network's input '{node.name}' was not given: hand in one box per input, as a tuple")
            values[node.name] = given[node.name] if name is None else lowering.constant(stored[name])
        elif name_of(node.target) == "sym_size":
            values[node.name] = values[node.args[0].name].shape[node.args[1]]
        elif node.op == "call_function":
            args, kwargs = (fx.node.map_arg(part, lambda n: values[n.name]) for part in (node.args, node.kwargs))
            stack = node.meta.get("nn_module_stack") or {}
            path = next((p for p, _ in reversed(stack.values())), "")
            values[node.name] = lowering.run(node.target, args, kwargs, path)
        else:
            raise UnsupportedOperator(f"torch.export made a node of kind {node.op} ({node.target}), which has no rule")
    return lowering.graph([(name, values.get(v, v) if isinstance(v, str) else v) for name, v in found], kept)


def _before(graph: fx.Graph, names: set[str]) -> set[str]:
    """Some nodes and all that they depend on, by name: nobody asks about the rest, assertions among it."""
    needed = set(names)
    for node in reversed(graph.nodes):
        if node.name in needed:
            needed.update(read.name for read in node.all_input_nodes)
    return needed


def _decompositions() -> dict[Any, Callable[..., Any]]:
    """How operators that have no rule are expressed by others that may."""
    known = torch.export.default_decompositions() if hasattr(torch.export, "default_decompositions") else {}
    return {op: rewrite for op, rewrite in known.items() if name_of(op) not in RULES and entry_of(op) is None}
