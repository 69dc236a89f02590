"""What the inputs and outputs of a proxy are: loads, set points and other quantities of a case, in per unit and radians."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from milpverify.errors import InvalidInput

if TYPE_CHECKING:
    from milpverify.acopf.case import Array, Case, Index

LOADS = ("pd", "qd")
AT_BUSES = ("vm", "va", "p_balance", "q_balance")
AT_GENERATORS = ("pg", "qg")
AT_BRANCHES = ("pf", "qf", "pt", "qt", "sf2", "st2", "excess_from", "excess_to")
"""sf2 and st2 are |S|^2 at the ends, the excesses |S|^2 less the square of the limit."""


@dataclass(frozen=True)
class Entries:
    """One quantity: entry at[k] of the flat input or output belongs to element of[k], whose quantity is scale * entry + shift.

    `at` is a slice or places; `of` are numbers of buses, or rows of the tables of generators or branches, counted from 1. Where it is None
    the count must say it: all elements, or of buses those with loads, or the bus of every generator. `scale` and `shift` are numbers or
    one for every entry; the quantity is in p.u. or rad.
    """

    at: slice | Sequence[int]
    of: Sequence[int] | None = None
    scale: float | Sequence[float] = 1.0
    shift: float | Sequence[float] = 0.0


@dataclass(frozen=True, eq=False)
class Places:
    """`Entries`, resolved: places (k,) in the flat vector, indices (k,) of elements of the case, and factors."""

    at: Index
    element: Index
    scale: Array
    shift: Array

    def __len__(self) -> int:
        return len(self.at)


@dataclass(frozen=True, eq=False)
class Reads:
    """The loads that a network reads: input k is (loads[of[k]] - shift[k]) / scale[k], loads (2n,) being (pd, qd)."""

    of: Index
    scale: Array
    shift: Array

    def inputs(self, loads: Array) -> Array:
        """(..., nx) of loads (..., 2n), in float64."""
        found: Array = (loads[..., self.of] - self.shift) / self.scale
        return found

    def box(self, lower: Array, upper: Array) -> tuple[Array, Array]:
        """Inputs (nx,) from and to, rounded outwards where they are scaled, of loads from and to."""
        ends = np.sort(np.stack([self.inputs(lower), self.inputs(upper)]), axis=0)
        plain = (self.scale == 1.0) & (self.shift == 0.0)
        size = (np.abs(ends).max(0) + np.abs(self.shift / self.scale)) * 2.0**-50 * ~plain
        return ends[0] - size, ends[1] + size

    def loads(self, x: Array, base: Array) -> Array:
        """Loads (2n,) at an input (nx,); what is not read is that of the base."""
        found = base.copy()
        found[self.of] = self.scale * x + self.shift
        return found


def read_mapping(path: str | Path | None) -> dict[str, Any]:
    """What a JSON file maps as "inputs" and "outputs": by quantity places, "0:11" or numbers, or an object of `Entries`' fields.

    Raises:
        InvalidInput: it cannot be read, or holds something else.
    """
    if path is None:
        return {}
    try:
        found = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{path}: the mapping cannot be read: {error}") from error
    if not isinstance(found, dict) or set(found) - {"inputs", "outputs"} or not all(isinstance(part, dict) for part in found.values()):
        raise InvalidInput(f"{path}: a mapping is an object of 'inputs' and 'outputs', which are objects")
    return found


def reads_of(case: Case, inputs: Mapping[str, Any] | None, nx: int) -> Reads:
    """The inputs; by default active and then reactive power of all buses that have loads, or of all buses.

    Raises:
        InvalidInput: they are not all mapped, or some twice, or to what is no load.
    """
    n = case.num_buses
    loaded = np.flatnonzero((case.buses.pd != 0) | (case.buses.qd != 0))
    if inputs is None:
        if nx not in (2 * len(loaded), 2 * n):
            raise InvalidInput(
                f"the network has {nx} inputs, {case.name} {len(loaded)} buses with loads: say inputs={{'pd': ..., 'qd': ...}}"
            )
        inputs = {"pd": slice(0, nx // 2), "qd": slice(nx // 2, nx)}
    of, scale, shift = np.full(nx, -1), np.ones(nx), np.zeros(nx)
    for name, entries in inputs.items():
        if name not in LOADS:
            raise InvalidInput(f"inputs: a network reads 'pd' and 'qd', not {name!r}")
        found = _places(case, name, entries, nx, loaded)
        if (of[found.at] >= 0).any():
            raise InvalidInput(f"inputs: {name} takes an input that is taken")
        of[found.at], scale[found.at], shift[found.at] = found.element + n * (name == "qd"), found.scale, found.shift
    if (of < 0).any() or len(set(of.tolist())) < nx:
        raise InvalidInput(f"inputs: every one of the {nx} must be one load, and no load two of them")
    if (scale == 0).any():
        raise InvalidInput("inputs: a scale is 0")
    return Reads(of, scale, shift)


def writes_of(case: Case, outputs: Mapping[str, Any] | None, ny: int) -> dict[str, Places]:
    """The outputs by quantity.

    By default what their number says: pg and vm of every generator, pg of them and vm of every bus, the whole state pg, qg, vm, va, or that
    followed by pf, pt, qf, qt, both excesses and both balances (ml4acopf).

    Raises:
        InvalidInput: a quantity is unknown, or the numbers do not fit.
    """
    n, m, g = case.num_buses, len(case.branches), len(case.generators)
    if outputs is None:
        state = {"pg": g, "qg": g, "vm": n, "va": n}
        branches = dict.fromkeys(("pf", "pt", "qf", "qt", "excess_from", "excess_to"), m)
        known = [{"pg": g, "vm": g}, {"pg": g, "vm": n}, state, {**state, **branches, "p_balance": n, "q_balance": n}]
        fitting = [sizes for sizes in known if sum(sizes.values()) == ny]
        if len(fitting) != 1 and not (len(fitting) == 2 and g == n):
            raise InvalidInput(f"the network has {ny} outputs: say outputs={{'pg': ..., 'vm': ...}}")
        ends = np.cumsum([0, *fitting[0].values()]).tolist()
        outputs = {name: slice(a, b) for name, a, b in zip(fitting[0], ends, ends[1:], strict=False)}
    loaded = np.flatnonzero((case.buses.pd != 0) | (case.buses.qd != 0))
    found = {}
    for name, entries in outputs.items():
        if name not in (*AT_BUSES, *AT_GENERATORS, *AT_BRANCHES):
            raise InvalidInput(f"outputs: {name!r} is none of {', '.join((*AT_GENERATORS, *AT_BUSES, *AT_BRANCHES))}")
        found[name] = _places(case, name, entries, ny, loaded)
    return found


def _places(case: Case, name: str, entries: Any, size: int, loaded: Index) -> Places:
    try:
        entries = Entries(**entries) if isinstance(entries, Mapping) else entries if isinstance(entries, Entries) else Entries(entries)
        at = np.arange(size)[entries.at] if isinstance(entries.at, slice) else np.array(places(entries.at), dtype=np.int64)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"{name}: {error}") from error
    if at.ndim != 1 or ((at < 0) | (at >= size)).any():
        raise InvalidInput(f"{name}: places are a slice or numbers from 0 to {size - 1}")
    k = len(at)
    element = _elements(case, name, entries.of, k, loaded)
    try:
        scale, shift = (np.broadcast_to(np.array(part, dtype=np.float64), (k,)).copy() for part in (entries.scale, entries.shift))
    except ValueError as error:
        raise InvalidInput(f"{name}: a scale and a shift are one number, or {k}") from error
    if not (np.isfinite(scale).all() and np.isfinite(shift).all()):
        raise InvalidInput(f"{name}: scale and shift must be finite")
    return Places(at, element, scale, shift)


def places(at: Any) -> Sequence[int]:
    """Places that are numbers, or a text such as "0:11"."""
    if isinstance(at, str):
        start, _, stop = at.partition(":")
        return range(int(start), int(stop))
    found: Sequence[int] = at
    return found


def _elements(case: Case, name: str, of: Sequence[int] | None, k: int, loaded: Index) -> Index:
    n, gens = case.num_buses, case.generators
    names = gens.row if name in AT_GENERATORS else case.branches.row if name in AT_BRANCHES else case.buses.number
    if of is not None:
        index = {int(number): i for i, number in enumerate(names.tolist())}
        if len(of) != k or any(int(number) not in index for number in of):
            raise InvalidInput(f"{name}: `of` must name {k} elements that are in service")
        return np.array([index[int(number)] for number in of], dtype=np.int64)
    if k == len(names):
        return np.arange(k)
    if name in LOADS and k == len(loaded):
        return loaded
    if name in AT_BUSES and k == len(gens) and len(set(gens.bus.tolist())) == k:
        return gens.bus.copy()
    raise InvalidInput(f"{name}: {k} entries are not all elements ({len(names)}; {n} buses): say `of`")
