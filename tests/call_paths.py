"""Which functions of the package lie between `verify` and a bound, measured on a run in each space that the search splits."""

from __future__ import annotations

import inspect
import sys
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from types import CodeType, FrameType

import numpy as np
import torch

import milpverify as mv
from milpverify.search.choose_space import SpaceTuning


@dataclass(frozen=True)
class Space:
    """What the search splits: the functions that compute a bound there, the loop they are called from, and a problem for it."""

    name: str
    bounds: tuple[str, ...]
    loop: str
    inputs: int
    radius: float
    threshold: float


LOOP = "milpverify.search.branch_and_bound:branch_and_bound"
SPACES = (
    Space("inputs", ("milpverify.search.bounding:bound_batch",), LOOP, 3, 1.0, -0.92),
    Space("inputs or neurons", ("milpverify.search.bounding:bound_batch",), LOOP, 20, 0.8, -1.0),
    Space("neurons", ("milpverify.search.neuron_split.bounder:Bounder.bound",), LOOP, 70, 0.1, -0.6),
)

PACKAGE = Path(mv.__file__).parent
COMPREHENSIONS = ("<genexpr>", "<listcomp>", "<setcomp>", "<dictcomp>")


def longest_path(space: Space) -> list[str]:
    """The functions from `verify` to a bound, on the longest way that leads through the loop of the search.

    Raises:
        ValueError: there is none.
    """
    bounds, loop, longest = [_code(name) for name in space.bounds], _code(space.loop), list[CodeType]()

    def watch(frame: FrameType, event: str, _: object) -> None:
        nonlocal longest
        if event == "call" and frame.f_code in bounds:
            path = _path(frame)
            longest = path if loop in path and len(path) > len(longest) else longest

    # Neurons shall not have done in the first round of the choice.
    search = mv.SearchOptions(deterministic=True, oracle=False, tuning=(SpaceTuning(splits=16),))
    options = mv.Options(attack=False, search=search)
    problem, before = _problem(space), sys.getprofile()
    sys.setprofile(watch)
    try:
        mv.verify(problem, 60, options=options)
    finally:
        sys.setprofile(before)
    if not longest:
        raise ValueError(f"no bound on {space.name} was called for from {space.loop}: the problem here does not get so far any more")
    return [code.co_qualname for code in reversed(longest)]


def _code(name: str) -> CodeType:
    code: CodeType = inspect.unwrap(resolve_name(name)).__code__
    return code


def _path(frame: FrameType | None) -> list[CodeType]:
    """The package's functions from one back to `verify`; comprehensions are no calls."""
    path: list[CodeType] = []
    while frame is not None:
        code = frame.f_code
        if Path(code.co_filename).is_relative_to(PACKAGE) and code.co_name not in COMPREHENSIONS:
            path.append(code)
        if code is inspect.unwrap(mv.verify).__code__:
            return path
        frame = frame.f_back
    return []


def _problem(space: Space, width: int = 24) -> mv.Problem:
    """Whether the output of a small ReLU network stays above a threshold: it does, but that takes some splits."""
    rng = np.random.default_rng(0)
    layers: list[torch.nn.Module] = []
    for m, n in ((space.inputs, width), (width, width), (width, 1)):
        linear = torch.nn.Linear(m, n).double()
        linear.weight.data = torch.tensor(rng.normal(0, (1.5 / m) ** 0.5, (n, m)))
        linear.bias.data = torch.tensor(rng.normal(0, 0.3, n))
        layers += [linear, torch.nn.ReLU()]
    box = mv.Box(np.full(space.inputs, -space.radius), np.full(space.inputs, space.radius))
    unsafe = mv.Rows.on_outputs([[1.0]], [space.threshold], space.inputs)
    return mv.Problem(torch.nn.Sequential(*layers[:-1]).eval(), box, unsafe=unsafe)
