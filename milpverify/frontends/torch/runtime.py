"""A torch module as the runtime in which counterexamples are re-run, and the comparison of its lowered graph with it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from milpverify.errors import InvalidModel
from milpverify.frontends.lowering.comparison import Comparison, Run, comparable_points
from milpverify.frontends.torch.call import leaves
from milpverify.frontends.torch.trace import refuse_training
from milpverify.graph import Graph
from milpverify.operators import Input
from milpverify.spec import Box

Array = NDArray[np.float64]

TYPES = (torch.float32, torch.float64, torch.float16)


class TorchRuntime:
    """A copy of a module in evaluation mode, run on flat vectors in the type of its parameters.

    Later changes of the original have no effect here.

    Args:
        shape: of the module's input, with its batch axis of 1.

    Raises:
        InvalidModel: a submodule is in training mode, the parameters' type is none of float32, float64 and float16, or the module
            cannot be copied.
    """

    def __init__(self, module: nn.Module, shape: Sequence[int]) -> None:
        refuse_training(module)
        self.shape = tuple(shape)
        self.dtype = type_of(module)
        try:
            self.module = copy.deepcopy(module)
        except (RuntimeError, TypeError) as error:
            raise InvalidModel(f"the network cannot be copied: {' '.join(str(error).split())}") from error
        self.device = next((p.device for p in module.parameters()), torch.device("cpu"))

    def outputs(self, x: Array) -> list[Tensor]:
        """The module's outputs at the flat point x (nx,), as it returns them.

        Raises:
            InvalidModel: the module fails at the point.
        """
        point = torch.from_numpy(np.array(x, dtype=np.float64)).to(self.device, self.dtype).reshape(self.shape)
        try:
            with torch.no_grad():
                found = self.module(point)
        except (RuntimeError, TypeError, ValueError, IndexError, AssertionError) as error:
            message = " ".join(str(error).split())
            raise InvalidModel(f"the network cannot be run on an input of shape {self.shape}: {message}") from error
        parts = [t for t in leaves(found) if t is not None]
        if isinstance(found, dict) or not parts or not all(isinstance(t, Tensor) and t.is_floating_point() for t in parts):
            raise InvalidModel(f"the network returns a {type(found).__name__}; a tensor of real numbers, or a tuple of such, is needed")
        return [t.detach().cpu() for t in parts]

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
                    seen[name] = result.detach().cpu().numpy().copy()

            return keep

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
            f"the network's parameters are of type {names}; one of float32, float64 and float16 is needed, as net.float() makes"
        )
    return types.pop()


def check(graph: Graph, runtime: TorchRuntime, box: Box, seed: int = 0) -> None:
    """Compare the graph with the module at the centre, at corners and at random points of the box.

    The output of every submodule that a node is called after is recomputed from those that the module itself computed before.

    Raises:
        InvalidModel: they differ beyond rounding, or the module cannot be run. The message names the first submodule.
    """
    points, largest = comparable_points(graph, box, seed)
    wanted = {node.name for node in graph.nodes if not isinstance(node.op, Input)}
    modules = dict(runtime.module.named_modules())

    def run(x: Array) -> Run:
        with runtime.watched(wanted) as seen:
            found = runtime.outputs(x)
        return {**seen, **{spec.name: t.numpy() for spec, t in zip(graph.outputs, found, strict=True)}}

    def describe(name: str) -> str:
        return f"submodule '{name}' ({type(modules[name]).__name__})" if name in modules else name

    Comparison(graph, "the torch module", describe).judge_runs(points, run, largest)
