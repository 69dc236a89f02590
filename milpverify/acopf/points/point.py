"""Operating points: judged, run through an independent power flow, and proved to have an exact solution beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from milpverify.acopf.points.judgement import PARTS, Candidate, Constraint
from milpverify.errors import InvalidInput

if TYPE_CHECKING:
    from milpverify.acopf.case import Case
    from milpverify.acopf.points.existence import Existence
    from milpverify.acopf.points.power_flow import PowerFlow

__all__ = ["Constraint", "Point", "load_point"]


@dataclass(frozen=True, eq=False)
class Point(Candidate):
    """A candidate for an operating point: voltages, generation and loads of a case in p.u. and rad, with what is known of it."""

    def power_flow(self, **options: Any) -> PowerFlow:
        """What an independent power flow (Newton's method, pypower) makes of this point's set points; see `power_flow.power_flow`."""
        from milpverify.acopf.points.power_flow import power_flow

        return power_flow(self, **options)

    def existence(self) -> Existence:
        """Whether an exact operating point was proved to exist beside this one (Krawczyk); see `existence.prove_existence`."""
        from milpverify.acopf.points.existence import prove_existence

        return prove_existence(self)


def load_point(case: Case, source: str | Path | Mapping[str, Any]) -> Point:
    """A point from JSON: what `Point.save` wrote, or any object of `vm`, `va`, `pg`, `qg` in p.u. and rad.

    `pd` and `qd` are those of the case where they are missing. What belongs to buses is a list in the case's order or an object by bus
    number; `pg` and `qg` are lists in the order of the generators in service.

    Raises:
        InvalidInput: the file is missing, or something in it is missing or of the wrong size.
    """
    where = str(source) if isinstance(source, (str, Path)) else "point"
    if isinstance(source, (str, Path)):
        try:
            source = json.loads(Path(source).read_text())
        except (OSError, ValueError) as e:
            raise InvalidInput(f"{where}: the point cannot be read: {e}") from e
    if not isinstance(source, Mapping):
        raise InvalidInput(f"{where}: a point is an object of vm, va, pg and qg")
    numbers = case.buses.number.tolist()
    if "bus" in source and list(source["bus"]) != numbers:
        raise InvalidInput(f"{where}: its buses are not those of {case.name}")
    parts: dict[str, Any] = {"pd": case.buses.pd, "qd": case.buses.qd}
    for name in PARTS:
        if name in source:
            parts[name] = source[name]
        if name not in parts:
            raise InvalidInput(f"{where}: {name} is missing")
        if isinstance(parts[name], Mapping):
            if set(parts[name]) != {str(n) for n in numbers}:
                raise InvalidInput(f"{where}: the buses of {name} are not those of {case.name}")
            parts[name] = [parts[name][str(n)] for n in numbers]
    try:
        return Point(case, **parts)
    except (TypeError, ValueError) as e:
        raise InvalidInput(f"{where}: {e}") from e
