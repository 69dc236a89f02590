"""What a run is made with: its options checked, the device, the number of threads, and the versions of what it rests on."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from milpverify.arithmetic.rounding import ieee
from milpverify.config import Milp, Options, SearchMethod
from milpverify.errors import InvalidInput, OutOfTime
from milpverify.search.bounding import is_out_of_memory
from milpverify.solvers.names import SOLVERS
from milpverify.version import __version__


def settings_of(options: Options, method: str | SearchMethod | Milp) -> Options:
    """The options with the method that was asked for, checked.

    Raises:
        InvalidInput: options of another type, an unknown method or solver.
    """
    if not isinstance(options, Options):
        raise InvalidInput(f"options are mv.Options(...), not a {type(options).__name__}")
    if isinstance(method, Milp):
        asked = {part.name: getattr(method, part.name) for part in dataclasses.fields(method)}
        changed = dataclasses.replace(options, method=SearchMethod.MILP, **asked)
    else:
        changed = dataclasses.replace(options, method=method)
    if changed.solver not in SOLVERS:  # a user's own, or none
        from milpverify.solvers.registry import load

        load(changed.solver)
    return options if changed.method is SearchMethod.AUTO else changed


def device_of(name: str) -> torch.device:
    """The device of this name, or the best there is for "auto"."""
    if name == "cuda" and not torch.cuda.is_available():
        raise InvalidInput("device 'cuda' was asked for, but torch sees no CUDA device; use --device cpu")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")


@contextmanager
def threads(count: int) -> Iterator[None]:
    """torch works with so many threads within."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def working(options: Options) -> Iterator[None]:
    """What bounds and attacks run in: no gradients, IEEE arithmetic, threads as the options say; left when memory or time ends it."""
    with torch.no_grad(), ieee(), threads(options.threads):
        try:
            yield
        except OutOfTime:
            return
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise


def versions() -> dict[str, str]:
    """The versions of the package and of all that a verdict rests on."""
    from importlib.metadata import PackageNotFoundError, version
    from platform import python_version

    found = {"milpverify": __version__, "python": python_version()}
    for package in ("torch", "numpy", "onnx", "onnxruntime", *(solver.package for solver in SOLVERS.values()), "python-flint"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
