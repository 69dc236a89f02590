"""Networks that are no Python modules any more: exported programs (torch.export) and TorchScript (torch.jit, scripted or traced).

Both run as they are, and are lowered from the program that they are or can be made. Copies and what is sent to other processes are what
torch's own formats hold of them.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree

from milpverify.errors import InvalidModel

Shapes = tuple[tuple[int, ...], ...]

FAILURES = (RuntimeError, TypeError, ValueError, KeyError, AttributeError, NotImplementedError, AssertionError)
"""What torch raises where it cannot convert a network; those of the compiler are RuntimeErrors."""


class Program(nn.Module):
    """An exported program as a module of its inputs, one after the other. It cannot be changed, and is always in evaluation mode.

    Args:
        program: of its own, or
        packed: the bytes that `torch.export.save` makes of one.
    """

    def __init__(self, program: torch.export.ExportedProgram | None = None, packed: bytes = b"") -> None:
        super().__init__()
        with quiet():
            if program is not None:
                buffer = io.BytesIO()
                torch.export.save(program, buffer)
                packed = buffer.getvalue()
            self.packed = packed
            self.program = torch.export.load(io.BytesIO(packed))
            self.net = self.program.module()
        self.training = False

    def forward(self, *tensors: Tensor) -> Any:
        """What the program returns, for inputs of the shapes that it was exported for (`shapes`)."""
        args, kwargs = _pytree.tree_unflatten(list(tensors), self.program.call_spec.in_spec)
        return self.net(*args, **kwargs)

    def __deepcopy__(self, memo: object) -> Program:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return Program, (None, self.packed)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the inputs."""
        return tuple(str(name) for name in self.program.graph_signature.user_inputs)

    @property
    def shapes(self) -> Shapes:
        """Of the inputs; a length that is free is 1.

        Raises:
            InvalidModel: an input is no tensor.
        """
        by_name = {node.name: node.meta.get("val") for node in self.program.graph.nodes if node.op == "placeholder"}
        found = []
        for name in self.names:
            value = by_name.get(name)
            if not isinstance(value, Tensor):
                raise InvalidModel(f"the exported program's input '{name}' is no tensor: export the network as a function of tensors alone")
            found.append(tuple(n if isinstance(n, int) else 1 for n in value.shape))
        return tuple(found)


class Script(nn.Module):
    """A TorchScript module, scripted or traced, as it was when it was handed in.

    Args:
        script: the module, or
        packed: the bytes that `torch.jit.save` makes of one.
    """

    def __init__(self, script: torch.jit.ScriptModule | None = None, packed: bytes = b"") -> None:
        super().__init__()
        if script is not None:
            refuse_training(script)
            buffer = io.BytesIO()
            with quiet():
                torch.jit.save(script, buffer)
            packed = buffer.getvalue()
        self.packed = packed
        with quiet():
            self.net = torch.jit.load(io.BytesIO(packed))
        self.training = False

    def forward(self, *tensors: Tensor) -> Any:
        """What the script returns, for inputs of the shapes that it takes."""
        return self.net(*tensors)

    def __deepcopy__(self, memo: object) -> Script:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return Script, (None, self.packed)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the inputs."""
        return tuple(a.name for a in self.net.forward.schema.arguments[1:])

    def exported(self, examples: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
        """The program that it stands for, with inputs of the shapes of the examples.

        Raises:
            InvalidModel: this torch cannot make one of it.
        """
        advice = "hand in the Python module that it was made of, or its ONNX file (torch.onnx.export)"
        try:
            from torch._export.converter import TS2EPConverter
        except ImportError as error:
            raise InvalidModel(f"torch {torch.__version__} cannot read a TorchScript module as a program: {advice}") from error
        try:
            with quiet():
                program: torch.export.ExportedProgram = TS2EPConverter(self.net, examples, {}).convert()
        except FAILURES as error:
            why = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
            raise InvalidModel(f"the TorchScript module cannot be read as a program ({why}): {advice}") from error
        return program


def as_module(network: object) -> nn.Module | None:
    """A torch network of any kind as a module; None for what is none.

    Raises:
        InvalidModel: a TorchScript module is in training mode, or torch cannot copy it.
    """
    try:
        if isinstance(network, torch.export.ExportedProgram):
            return Program(network)
        if isinstance(network, torch.jit.ScriptModule):
            return Script(network)
    except FAILURES as error:
        raise InvalidModel(f"the network cannot be copied: {' '.join(str(error).split())[:300]}") from error
    if isinstance(network, torch.jit.ScriptFunction):
        raise InvalidModel("a TorchScript function is no module: script a module whose forward calls it, torch.jit.script(module)")
    return network if isinstance(network, nn.Module) else None


def refuse_training(module: nn.Module) -> None:
    """Refuse a module of which any part is in training mode: dropout is random there, and batches share statistics.

    Raises:
        InvalidModel: naming the first such part.
    """
    if isinstance(module, Program | Script):
        return
    fixed = {part for whole in module.modules() if of_a_program(whole) for part in whole.modules()}
    for path, part in module.named_modules():
        if getattr(part, "training", False) and part not in fixed:  # what is frozen has no mode
            where = f"its submodule '{path}' ({type(part).__name__})" if path else f"the network ({type(part).__name__})"
            raise InvalidModel(f"{where} is in training mode; set the network to evaluation mode first: net.eval()")


def of_a_program(module: nn.Module) -> bool:
    """Whether a module is what `ExportedProgram.module()` returns: it has no modes, and says that of training all the same."""
    return isinstance(module, fx.GraphModule) and "inline_constraints" in module.meta


def program_of(
    module: nn.Module, shapes: Sequence[Sequence[int]], dtype: torch.dtype, device: torch.device
) -> torch.export.ExportedProgram:
    """The exported program of a module on inputs of some shapes: what torch.export raises, where it cannot, is passed on.

    Raises:
        InvalidModel: a TorchScript module that cannot be converted.
    """
    if isinstance(module, Program):
        return module.program
    examples = tuple(torch.zeros(tuple(shape), dtype=dtype, device=device) for shape in shapes)
    if isinstance(module, Script):
        return module.exported(examples)
    with quiet():
        return torch.export.export(module, examples, strict=False)


@contextmanager
def quiet() -> Iterator[None]:
    """Without gradients, and without what torch says about itself."""
    logger = logging.getLogger("torch._export")
    level = logger.level
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)
