"""A torch module as the runtime in which counterexamples are re-run, and the comparison of its lowered graph with it."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from milpverify.errors import InvalidInput, InvalidModel
from milpverify.frontends.lowering.comparison import Comparison, Run, comparable_points
from milpverify.frontends.lowering.rule import LoweringTuning
from milpverify.frontends.torch.programs import FAILURES, Program, Script, Shapes, program_of, refuse_training
from milpverify.frontends.torch.returned import Returned, choose, named
from milpverify.frontends.torch.trace import several
from milpverify.graph import Graph
from milpverify.operators import Input
from milpverify.spec import Box

Array = NDArray[np.float64]

TYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


class TorchRuntime:
    """A copy of a module in evaluation mode, run on flat vectors in the type of its parameters.

    Later changes of the original have no effect here. `returned` says which of what the module returns is kept, once it has run.

    Args:
        shapes: of the module's inputs, with their batch axes of 1; of one input also its shape.
        names: of the outputs that are kept; None for all of real numbers.

    Raises:
        InvalidModel: a submodule is in training mode, the parameters' type is none of float32, float64, float16 and bfloat16, or the
            module cannot be copied.
    """

    def __init__(self, module: nn.Module, shapes: Sequence[Any], names: Sequence[str] | None = None) -> None:
        refuse_training(module)
        self.shapes, self.names = several(shapes), names
        self.dtype = type_of(module)
        self.returned: Returned | None = None
        try:
            self.module = copy.deepcopy(module)
        except (RuntimeError, TypeError) as error:
            raise InvalidModel(f"the network cannot be copied: {' '.join(str(error).split())}") from error

    def __getstate__(self) -> dict[str, Any]:
        """With the module as bytes, which another process can read.

        Raises:
            InvalidInput: there are none.
        """
        return {**vars(self), "module": packed(self.module, self.shapes, self.dtype, self.device)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, module=pickle.loads(state["module"]))

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the first input."""
        return self.shapes[0]

    @property
    def device(self) -> torch.device:
        """Where the module is."""
        return next((p.device for p in self.module.parameters()), torch.device("cpu"))

    def outputs(self, x: Array) -> list[Tensor]:
        """The module's outputs that are kept, at the flat point x (nx,), as it returns them.

        Raises:
            InvalidModel: the module fails at the point, or returns no real numbers.
            InvalidInput: it is not clear which outputs are kept.
        """
        whole = torch.from_numpy(np.array(x, dtype=np.float64)).to(self.device, self.dtype)
        sizes = [math.prod(shape) for shape in self.shapes]
        if len(whole) != sum(sizes):
            raise InvalidModel(f"the network takes inputs of shapes {self.shapes}, {sum(sizes)} entries, not {len(whole)}")
        inputs = [part.reshape(shape) for part, shape in zip(whole.split(sizes), self.shapes, strict=True)]
        try:
            with torch.no_grad():
                found = named(self.module(*inputs))
        except (RuntimeError, TypeError, ValueError, IndexError, AssertionError) as error:
            message = " ".join(str(error).split())
            raise InvalidModel(f"the network cannot be run on {self._shapes_in_words}: {message}") from error
        if self.returned is None:
            self.returned = choose(found, self.names)
        kept = {name: value for name, value in found if name in self.returned.kept}
        return [kept[name].detach().cpu() for name in self.returned.kept]

    @property
    def _shapes_in_words(self) -> str:
        return f"an input of shape {self.shapes[0]}" if len(self.shapes) == 1 else f"inputs of shapes {', '.join(map(str, self.shapes))}"

    def run(self, x: Array) -> Array:
        """y (ny,) at the point x (nx,), both float64; x is rounded to the module's type.

        Raises:
            InvalidModel: the module fails at the point.
        """
        return np.concatenate([t.double().numpy().reshape(-1) for t in self.outputs(x)])

    @contextmanager
    def watched(self, names: set[str]) -> Iterator[dict[str, NDArray[Any]]]:
        """What some submodules return the first time that they run, as a mapping that a run inside fills."""
        seen: dict[str, NDArray[Any]] = {}

        def hook(name: str) -> Callable[..., None]:
            def keep(module: nn.Module, args: object, result: object) -> None:
                if isinstance(result, Tensor) and name not in seen:
                    seen[name] = numbers(result.detach().cpu()).copy()

            return keep

        if isinstance(self.module, Program | Script):  # whose parts cannot be watched
            names = set()
        handles = [part.register_forward_hook(hook(name)) for name, part in self.module.named_modules() if name in names]
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()


def type_of(module: nn.Module) -> torch.dtype:
    """The real type that a module computes in: that of its parameters and buffers.

    Raises:
        InvalidModel: they are of several real types, or of one that is not supported.
    """
    types = {t.dtype for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()} or {torch.get_default_dtype()}
    if len(types) > 1 or not types <= {*TYPES}:
        names = ", ".join(sorted(str(t) for t in types))
        raise InvalidModel(
            f"the network's parameters are of type {names}; one of float32, float64, float16 and bfloat16 is needed, as net.float() makes"
        )
    return types.pop()


def numbers(tensor: Tensor) -> NDArray[Any]:
    """A tensor as an array of its shape and type; bfloat16, which numpy lacks, in float32."""
    found: NDArray[Any] = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return found


def packed(module: nn.Module, shapes: Shapes, dtype: torch.dtype, device: torch.device) -> bytes:
    """A module as bytes that any process can read: its pickle, or where its classes are known in this one alone, its exported program's.

    Raises:
        InvalidInput: torch cannot export it either.
    """
    try:
        data = pickle.dumps(module)
        if b"__main__" not in data:
            return data
        why = "its classes are those of a script"
    except (pickle.PicklingError, AttributeError, TypeError, RuntimeError) as error:
        why = " ".join(str(error).split())
    try:
        return pickle.dumps(Program(program_of(module, shapes, dtype, device)))
    except (*FAILURES, torch._dynamo.exc.TorchDynamoException) as error:
        raise InvalidInput(
            f"the network cannot be sent to another process ({why}; torch.export: {type(error).__name__}): define its classes in a module "
            "of their own that can be imported, or export it to ONNX"
        ) from error


def check(graph: Graph, runtime: TorchRuntime, box: Box, seed: int = 0, tuning: LoweringTuning = LoweringTuning()) -> None:
    """Compare the graph with the module at the centre, at corners and at random points of the box.

    The output of every submodule that a node is called after is recomputed from those that the module itself computed before.

    Raises:
        InvalidModel: they differ beyond rounding, or the module cannot be run. The message names the first submodule.
    """
    # Outputs are told from submodules of the same name.
    graph = replace(graph, outputs=tuple(replace(spec, name=f"output {spec.name}") for spec in graph.outputs))
    points, largest = comparable_points(graph, box, seed, tuning)
    wanted = {node.name for node in graph.nodes if not isinstance(node.op, Input)}
    modules = dict(runtime.module.named_modules())

    def run(x: Array) -> Run:
        with runtime.watched(wanted) as seen:
            found = runtime.outputs(x)
        return {**seen, **{spec.name: numbers(t) for spec, t in zip(graph.outputs, found, strict=True)}}

    def describe(name: str) -> str:
        return f"submodule '{name}' ({type(modules[name]).__name__})" if name in modules else name

    roundoff = torch.finfo(runtime.dtype).eps / 2
    Comparison(graph, "the torch module", describe, roundoff, tuning).judge_runs(points, run, largest)
