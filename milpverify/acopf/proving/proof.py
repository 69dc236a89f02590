"""A proof as data: multipliers of linear programs, in the order in which they tightened ranges, over a tree of boxes.

`recheck` needs the case, these numbers and rational arithmetic; no solver. What a node's linear programs are is not stored: they follow
from the case, the loads, the ranges proved so far and the tangent planes.
"""

from __future__ import annotations

import gzip
import json
import math
import zlib
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from milpverify.acopf.relaxation.cuts import Cuts
from milpverify.errors import InvalidInput
from milpverify.outside.files import write_atomically
from milpverify.result import json_number

if TYPE_CHECKING:
    from milpverify.acopf.case import Array, Index

VERSION: Final = 1


@dataclass(frozen=True, eq=False)
class Multipliers:
    """Of a linear program's rows, those that are not 0."""

    rows: Index  # (k,)
    values: Array  # (k,)

    def to_list(self) -> list[Any]:
        """[rows, values]."""
        return [self.rows.tolist(), self.values.tolist()]

    @classmethod
    def from_list(cls, data: list[Any]) -> Multipliers:
        """What `to_list` wrote."""
        rows, values = np.array(data[0], dtype=np.int64), np.array(data[1], dtype=np.float64)
        if rows.shape != values.shape or rows.ndim != 1 or not np.isfinite(values).all():
            raise ValueError("malformed multipliers")
        return cls(rows, values)


@dataclass(frozen=True, eq=False)
class Deduction:
    """A column is at least (at most, where `upper`) `value`, by weak duality."""

    column: int
    upper: bool
    value: float
    multipliers: Multipliers


@dataclass(frozen=True, eq=False)
class Step:
    """Deductions from one box and its planes; they hold together."""

    cuts: Cuts
    deductions: tuple[Deduction, ...]


@dataclass(frozen=True, eq=False)
class Leaf:
    """The end of a box: with multipliers that refute it (a bound of 0 that is above 0), or with what its ranges say of the objective.

    `bound` is that of the objective in units of its column, infinite where the box is refuted, by multipliers or by its own ranges.
    """

    cuts: Cuts
    multipliers: Multipliers | None
    bound: float


@dataclass(eq=False)
class Node:
    """A box: its steps, and then a split of a column's range at a value, or a leaf."""

    steps: list[Step] = field(default_factory=list)
    leaf: Leaf | None = None
    column: int = -1
    at: float = 0.0
    below: Node | None = None
    above: Node | None = None

    @property
    def bound(self) -> float:
        """The least bound of its leaves."""
        if self.below is not None and self.above is not None:
            return min(self.below.bound, self.above.bound)
        return float("-inf") if self.leaf is None else self.leaf.bound

    def nodes(self) -> int:
        """How many boxes it consists of."""
        return 1 + sum(child.nodes() for child in (self.below, self.above) if child is not None)


class Statement(Enum):
    """What a proof is of."""

    INFEASIBLE = "infeasible"  # whatever the voltages and the dispatch, something is violated by more than `tolerance` p.u. (rad)
    COST = "cost"  # no operating point costs less than `bound` $/h
    GROWTH = "growth"  # no operating point carries the case's own loads times any factor above `bound`


@dataclass(frozen=True, eq=False)
class Proof:
    """What is claimed, and the tree that proves it.

    The loads are anything in the ranges `loads` (pd from, to, qd from, to; n each; p.u.), except where they grow. What is proved on the
    way holds for points that cost no more, or carry no less, than `cutoff`.
    """

    statement: Statement
    loads: tuple[Array, Array, Array, Array]
    tolerance: float
    cutoff: float
    bound: float
    root: Node

    @property
    def claim(self) -> str:
        """What is claimed, in words: the bounds are float64 numbers to the last digit, the loads rounded."""
        pd_from, pd_to = (math.fsum(part.tolist()) for part in self.loads[:2])
        loads = f"at loads of {pd_from:.6g}" + (f" to {pd_to:.6g}" if pd_to > pd_from else "") + " p.u. (active, in all)"
        match self.statement:
            case Statement.INFEASIBLE:
                return f"every point violates something by more than {self.tolerance!r} p.u. (rad) {loads}"
            case Statement.COST:
                return f"no operating point costs less than {self.bound!r} $/h {loads}"
            case Statement.GROWTH:
                return f"no operating point carries the case's own loads times more than {self.bound!r}"

    def to_dict(self) -> dict[str, Any]:
        """A JSON form."""
        return {
            "version": VERSION,
            "statement": self.statement.value,
            "loads": [part.tolist() for part in self.loads],
            "tolerance": self.tolerance,
            "cutoff": json_number(self.cutoff),
            "bound": json_number(self.bound),
            "root": _node_to_dict(self.root),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Proof:
        """What `to_dict` wrote.

        Raises:
            InvalidInput: it is something else.
        """
        try:
            if data["version"] != VERSION:
                raise InvalidInput(f"a proof of version {data['version']}; this program reads version {VERSION}")
            loads = tuple(np.array(part, dtype=np.float64) for part in data["loads"])
            tolerance, cutoff, bound = (float(data[name]) for name in ("tolerance", "cutoff", "bound"))
            if len(loads) != 4:
                raise ValueError("four ranges of loads are needed")
            return cls(
                Statement(data["statement"]),
                (loads[0], loads[1], loads[2], loads[3]),
                tolerance,
                cutoff,
                bound,
                _node_from_dict(data["root"]),
            )
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError, RecursionError) as error:
            if isinstance(error, InvalidInput):
                raise
            raise InvalidInput(f"malformed proof: {error or type(error).__name__}") from error

    def save(self, path: str | Path) -> None:
        """Write the JSON, compressed where the name ends in .gz; the file appears whole or not at all.

        Raises:
            InvalidInput: the file cannot be written.
        """
        raw, path = json.dumps(self.to_dict(), allow_nan=False).encode(), Path(path)
        write_atomically(path, gzip.compress(raw) if path.suffix == ".gz" else raw)

    @classmethod
    def load(cls, path: str | Path) -> Proof:
        """Read what `save` wrote.

        Raises:
            InvalidInput: the file cannot be read, or is no proof.
        """
        path = Path(path)
        try:
            raw = path.read_bytes()
            return cls.from_dict(json.loads(gzip.decompress(raw) if path.suffix == ".gz" else raw))
        except OSError as error:
            raise InvalidInput(f"cannot read {path}: {error.strerror or error}") from error
        except InvalidInput as error:
            raise InvalidInput(f"{path}: {error}") from error
        except (ValueError, EOFError, RecursionError, zlib.error) as error:
            raise InvalidInput(f"{path} is no proof: {error}") from error


def _node_to_dict(node: Node) -> dict[str, Any]:
    data: dict[str, Any] = {
        "steps": [
            {
                "cuts": step.cuts.to_dict(),
                "deductions": [[d.column, d.upper, d.value, *d.multipliers.to_list()] for d in step.deductions],
            }
            for step in node.steps
        ]
    }
    if node.below is not None and node.above is not None:
        children = [_node_to_dict(node.below), _node_to_dict(node.above)]
        return {**data, "column": node.column, "at": node.at, "children": children}
    if node.leaf is not None:
        multipliers = node.leaf.multipliers
        data["leaf"] = {
            "cuts": node.leaf.cuts.to_dict(),
            "multipliers": None if multipliers is None else multipliers.to_list(),
            "bound": json_number(node.leaf.bound),
        }
    return data


def _node_from_dict(data: dict[str, Any]) -> Node:
    steps = [
        Step(
            Cuts.from_dict(step["cuts"]),
            tuple(Deduction(int(c), bool(u), float(v), Multipliers.from_list([r, y])) for c, u, v, r, y in step["deductions"]),
        )
        for step in data["steps"]
    ]
    if "children" in data:
        below, above = (_node_from_dict(child) for child in data["children"])
        return Node(steps, None, int(data["column"]), float(data["at"]), below, above)
    if "leaf" not in data:
        return Node(steps)
    leaf = data["leaf"]
    multipliers = None if leaf["multipliers"] is None else Multipliers.from_list(leaf["multipliers"])
    return Node(steps, Leaf(Cuts.from_dict(leaf["cuts"]), multipliers, float(leaf["bound"])))
