"""The methods by their names. Nothing here loads torch: what a method does is imported by the process that does it."""

from __future__ import annotations

import math
import shlex
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from milpverify.compare.tools import Tool
from milpverify.config import Deadline, Milp, SearchMethod
from milpverify.errors import InvalidInput
from milpverify.solvers.names import MILP_SOLVERS

if TYPE_CHECKING:
    from milpverify.compare.rows import Answer, Tell
    from milpverify.spec import Problem

DEFAULT = ("ibp", "forward", "crown", "alpha-crown", "lp", "auto")
"""What is compared unless the caller says otherwise."""
ASCENDING = ("ibp", "crown", "alpha-crown", "lp", "lp+obbt")
"""Methods each of which takes the meet of its predecessor's bounds."""
EXACT = "exact"
SPLITS: Final = 200
GAP: Final = 1e-3
"""What the names "beta-crown" and "exact" mean, which may say others: subproblems, and the gap of the margin."""


@dataclass(frozen=True)
class Method(ABC):
    """A method of our own, by its name in the table."""

    name: str

    @abstractmethod
    def answer(self, problem: Problem, deadline: Deadline, tell: Tell) -> Answer:
        """Work on a problem until the deadline; `tell` takes what is proved on the way."""


@dataclass(frozen=True)
class Relaxation(Method):
    """Bounds by one relaxation."""

    def answer(self, problem: Problem, deadline: Deadline, tell: Tell) -> Answer:
        from milpverify.compare.relaxations import Level, relax

        return relax(problem, Level(self.name), deadline, tell)


@dataclass(frozen=True)
class Splits(Method):
    """Branch-and-bound on neurons, up to a number of subproblems."""

    subproblems: int

    def answer(self, problem: Problem, deadline: Deadline, tell: Tell) -> Answer:
        from milpverify.compare.searches import split

        return split(problem, self.subproblems, deadline, tell)


@dataclass(frozen=True)
class Search(Method):
    """What `verify` does with a method."""

    method: SearchMethod | Milp

    def answer(self, problem: Problem, deadline: Deadline, tell: Tell) -> Answer:
        from milpverify.compare.searches import decide

        return decide(problem, self.method, deadline, tell)


@dataclass(frozen=True)
class Exact(Method):
    """The margin to within a gap."""

    gap: float

    def answer(self, problem: Problem, deadline: Deadline, tell: Tell) -> Answer:
        from milpverify.compare.searches import exact

        return exact(problem, self.gap, deadline, tell)


_PLAIN: dict[str, Method] = {
    **{name: Relaxation(name) for name in (*ASCENDING, "forward")},
    **{f"milp:{solver}": Search(f"milp:{solver}", Milp(solver)) for solver in MILP_SOLVERS},
    **{name: Search(name, SearchMethod(name)) for name in ("smt", "bab", "auto")},
}
NAMES = (
    *("ibp", "forward", "crown", "alpha-crown", "beta-crown[:SUBPROBLEMS]", "lp", "lp+obbt", f"milp[:{'|'.join(MILP_SOLVERS)}]"),
    *("smt", "bab", "auto", "exact[:GAP]"),
)


def methods_of(names: Sequence[str | Tool]) -> list[Method | Tool]:
    """The methods of these names; a name with `{onnx}` is a tool's command, or NAME=COMMAND.

    Raises:
        InvalidInput: an unknown name, one that is there twice, or none at all.
    """
    found = [name if isinstance(name, Tool) else method_of(name) for name in names]
    if not found:
        raise InvalidInput(f"there is no method to compare; there are {', '.join(NAMES)}")
    seen = [method.name for method in found]
    twice = [name for name in seen if seen.count(name) > 1]
    if twice:
        raise InvalidInput(f"the method {twice[0]!r} is there twice")
    return found


def method_of(text: str) -> Method | Tool:
    """The method of a name."""
    if "{onnx}" in text or "{vnnlib}" in text:
        return tool_of(text)
    name, _, detail = text.strip().partition(":")
    if name == "beta-crown":
        return Splits(text, int(_number(text, detail, SPLITS, whole=True)))
    if name == EXACT:
        return Exact(text, _number(text, detail, GAP))
    known = _PLAIN.get("milp:scip" if text == "milp" else text)
    if known is None:
        raise InvalidInput(f"unknown method {text!r}; there are {', '.join(NAMES)}, and NAME=COMMAND with {{onnx}} and {{vnnlib}}")
    return known if text != "milp" else Search("milp", Milp())


def tool_of(text: str) -> Tool:
    """The tool of a command, with its name before it, or named by its program."""
    name, equals, command = text.partition("=")
    if not equals or " " in name.strip() or "{" in name or "/" in name:
        try:
            words = shlex.split(text)
        except ValueError:
            words = []
        name, command = Path(words[0]).name if words else "", text
    return Tool(name.strip(), command.strip())


def _number(text: str, detail: str, default: float, whole: bool = False) -> float:
    try:
        value = float(detail) if detail else default
    except ValueError:
        value = math.nan
    if not (0 < value < math.inf) or (whole and value != int(value)):
        raise InvalidInput(f"unknown method {text!r}: a positive {'whole ' if whole else ''}number is needed after the colon")
    return value
