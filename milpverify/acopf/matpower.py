"""Reading cases: MATPOWER files, pypower dicts and pandapower nets, all by the rules of MATPOWER's manual (appendix B).

What is out of service is dropped, as MATPOWER does: branches of status 0, generators of a status <= 0, isolated buses (type 4) and what
is connected to them. Everything becomes p.u. and rad. A ratio of 0 means 1 (a line); a rate of 0 means no limit; the angle limits of a
branch mean none where both are 0, the lower one where it is <= -360 degrees, the upper one where it is >= 360. What cannot be meant, or
cannot be expressed by a `Case`, is refused by one line with the table and the row (counted from 1); nothing is repaired.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from milpverify.acopf.case import Array, Branches, Buses, Case, Generators, Index
from milpverify.acopf.matpower_text import read_text
from milpverify.errors import InvalidInput

Mask = NDArray[np.bool_]

ISOLATED: Final = 4  # a bus type
REFERENCE: Final = 3  # likewise
PIECEWISE: Final = 1  # a cost model
POLYNOMIAL: Final = 2  # likewise
_SHOWN: Final = 10  # buses that a message names at most


def load_case(source: str | Path | Mapping[str, Any] | Any) -> Case:
    """A power network.

    Args:
        source: the path of a MATPOWER case file (.m), a pypower or MATPOWER dict (baseMVA, bus, gen, branch, gencost), or a pandapower
            net, which pandapower converts.

    Raises:
        InvalidInput: the file is missing, or the case is unusable: what, in which row of which table.
    """
    if isinstance(source, Case):
        return source
    if isinstance(source, (str, Path)):
        path = Path(source)
        return _case(path.stem, path.name, read_text(path))
    if type(source).__module__.partition(".")[0] == "pandapower":
        name = str(getattr(source, "name", "") or "pandapower net")
        return _case(name, name, _from_pandapower(source))
    if isinstance(source, Mapping):
        name = str(source.get("name") or source.get("casename") or "case")
        return _case(name, name, source)
    raise InvalidInput(f"a case is a path, a dict or a pandapower net, not {type(source).__name__}")


def _from_pandapower(net: Any) -> Mapping[str, Any]:
    """The tables of a net, with the buses numbered as pandapower does there, from 0.

    Its limits of currents become limits of |S| at nominal voltage there, as everywhere in MATPOWER's format.
    """
    try:
        from pandapower.converter.pypower import to_ppc
    except ImportError as e:
        raise InvalidInput(f"pandapower is needed to convert the net: pip install pandapower ({e})") from e
    try:
        tables: Mapping[str, Any] = to_ppc(net, mode="opf", init="flat", check_connectivity=False)
    except (KeyError, TypeError, ValueError, UserWarning) as e:
        raise InvalidInput(f"pandapower cannot convert the net to a case: {e}") from e
    return tables


@dataclass(frozen=True, eq=False)
class _Table:
    """Rows of a table, and their numbers in it."""

    where: str  # how messages call the case
    name: str
    values: Array  # (rows, columns)
    row: Index  # (rows,) from 1

    def __len__(self) -> int:
        return len(self.row)

    def __getitem__(self, column: int) -> Array:
        values: Array = self.values[:, column]
        return values

    def kept(self, mask: Mask) -> _Table:
        """Some of the rows."""
        return replace(self, values=self.values[mask], row=self.row[mask])

    def refuse(self, bad: Mask, message: str, *values: Array) -> None:
        """Raise for the first bad row; the message is formatted with its values."""
        if bad.any():
            k = int(np.flatnonzero(bad)[0])
            raise InvalidInput(f"{self.where}: {self.name} row {self.row[k]}: {message.format(*(v[k].item() for v in values))}")

    def finite(self, column: int, name: str) -> Array:
        """A column that must be finite."""
        values = self[column]
        self.refuse(~np.isfinite(values), name + " must be finite, not {:g}", values)
        return values

    def limits(self, lower: int, upper: int, name: str) -> tuple[Array, Array]:
        """Two columns that must leave something between them; infinite ones are none."""
        low, high = self[lower], self[upper]
        self.refuse(np.isnan(low) | np.isnan(high), f"a limit of the {name} is NaN")
        self.refuse(low > high, f"the lower limit of the {name}, {{:g}}, is above the upper one, {{:g}}", low, high)
        self.refuse(
            (low == math.inf) | (high == -math.inf), f"the {name} has no finite value within its limits, {{:g}} and {{:g}}", low, high
        )
        return low, high


def _case(name: str, where: str, tables: Mapping[str, Any]) -> Case:
    version = str(tables.get("version", "2"))
    if version not in {"1", "2", "1.0", "2.0"}:
        raise InvalidInput(f"{where}: version {version!r} of the case format is unknown: 1 and 2 are known")
    base = _base_mva(tables, where)
    bus = _table(tables, where, "bus", 13)
    index = _bus_index(bus)
    bus, used = _connected_buses(bus)
    generators = _generators(_table(tables, where, "gen", 10), tables, index, used, base)
    branches = _branches(_table(tables, where, "branch", 11), index, used, base)
    reference = np.flatnonzero(bus[1] == REFERENCE)
    if len(reference) != 1:
        said = f"{len(reference)} reference buses (type 3): {_listed(bus[0][reference])}" if len(reference) else "no reference bus (type 3)"
        raise InvalidInput(f"{where}: bus: {said}: there must be one")
    case = Case(name, base, _buses(bus, base), branches, generators, int(reference[0]))
    _check_connected(case, where)
    return case


def _base_mva(tables: Mapping[str, Any], where: str) -> float:
    if "baseMVA" not in tables:
        raise InvalidInput(f"{where}: baseMVA is missing")
    values = _numbers(tables["baseMVA"], where, "baseMVA")
    if values.size != 1 or not 0 < values.item() < math.inf:
        raise InvalidInput(f"{where}: baseMVA must be one positive number, not {tables['baseMVA']}")
    return float(values.item())


def _numbers(values: Any, where: str, name: str) -> Array:
    try:
        found = np.asarray(values)
        if np.iscomplexobj(found) and not found.imag.any():
            found = found.real
        return found.astype(np.float64, casting="same_kind" if found.dtype.kind == "c" else "unsafe")
    except (TypeError, ValueError) as e:
        raise InvalidInput(f"{where}: {name}: not a table of numbers: {e}") from e


def _table(tables: Mapping[str, Any], where: str, name: str, columns: int) -> _Table:
    if name not in tables:
        raise InvalidInput(f"{where}: the table {name} is missing")
    values = _numbers(tables[name], where, name)
    if values.size == 0 and name == "branch":
        values = np.zeros((0, columns))
    if values.ndim != 2 or (len(values) == 0 and name != "branch"):
        raise InvalidInput(f"{where}: {name}: a table with rows is needed")
    if values.shape[1] < columns:
        raise InvalidInput(f"{where}: {name}: {values.shape[1]} columns, but at least {columns} are needed")
    return _Table(where, name, values, np.arange(1, len(values) + 1))


def _bus_index(bus: _Table) -> dict[float, int]:
    """The row, from 0, of every bus number."""
    numbers = bus[0]
    bus.refuse(~((numbers >= 0) & (numbers < 2**53) & (numbers == np.floor(numbers))), "{:g} is no bus number", numbers)
    index: dict[float, int] = {}
    for k, number in enumerate(numbers.tolist()):
        if number in index:
            raise InvalidInput(f"{bus.where}: bus row {k + 1}: bus {number:.0f} is there already, in row {index[number] + 1}")
        index[number] = k
    return index


def _connected_buses(bus: _Table) -> tuple[_Table, Index]:
    """The buses that are not isolated, and per row of the table the index among them, -1 for isolated ones."""
    bus.refuse(~np.isin(bus[1], (1, 2, 3, 4)), "{:g} is no bus type: 1 to 4 are", bus[1])
    mask = bus[1] != ISOLATED
    return bus.kept(mask), np.where(mask, np.cumsum(mask) - 1, -1)


def _buses(bus: _Table, base: float) -> Buses:
    vmin, vmax = bus.limits(12, 11, "voltage magnitude")
    bus.refuse(~(vmin > 0), "the lower limit of the voltage magnitude must be positive, not {:g}", vmin)
    bus.refuse(~np.isfinite(vmax), "the upper limit of the voltage magnitude must be finite")
    pd, qd, gs, bs = (bus.finite(c, name) / base for c, name in ((2, "Pd"), (3, "Qd"), (4, "Gs"), (5, "Bs")))
    return Buses(bus[0].astype(np.int64), pd, qd, gs, bs, vmin, vmax, bus.row)


def _at(table: _Table, column: int, index: dict[float, int]) -> Index:
    """The rows of the buses that a column names."""
    rows = np.array([index.get(number, -1) for number in table[column].tolist()], dtype=np.int64)
    table.refuse(rows < 0, "there is no bus {:g}", table[column])
    return rows


def _branches(branch: _Table, index: dict[float, int], used: Index, base: float) -> Branches:
    f, t = used[_at(branch, 0, index)], used[_at(branch, 1, index)]
    branch.refuse(~np.isin(branch[10], (0, 1)), "the status must be 0 or 1, not {:g}", branch[10])
    mask = (branch[10] == 1) & (f >= 0) & (t >= 0)
    branch, f, t = branch.kept(mask), f[mask], t[mask]
    branch.refuse(f == t, "it leads from bus {:g} to itself", branch[0])
    r, x, b = (branch.finite(c, name) for c, name in ((2, "r"), (3, "x"), (4, "b")))
    branch.refuse((r == 0) & (x == 0), "the impedance is zero (r = x = 0)")
    rate, ratio, shift = branch[5], branch.finite(8, "the ratio"), branch.finite(9, "the phase shift")
    branch.refuse(~(rate >= 0), "rateA must not be negative or NaN, but is {:g}", rate)
    branch.refuse(ratio < 0, "the ratio must not be negative, but is {:g}", ratio)
    rate = np.where(rate == 0, math.inf, rate / base)
    tap = np.where(ratio == 0, 1.0, ratio)
    angmin, angmax = _angle_limits(branch)
    return Branches(f, t, r, x, b, tap, np.deg2rad(shift), rate, angmin, angmax, branch.row)


def _angle_limits(branch: _Table) -> tuple[Array, Array]:
    """In rad; -inf and inf where there are none."""
    columns = branch.values.shape[1]
    if columns <= 11:
        return np.full(len(branch), -math.inf), np.full(len(branch), math.inf)
    if columns == 12:
        raise InvalidInput(f"{branch.where}: branch: 12 columns: the lower limit of the angle difference is there, the upper one is not")
    low, high = branch.limits(11, 12, "angle difference")
    none = (low == 0) & (high == 0)
    low, high = np.where(none | (low <= -360), -math.inf, low), np.where(none | (high >= 360), math.inf, high)
    return np.deg2rad(low), np.deg2rad(high)


def _generators(gen: _Table, tables: Mapping[str, Any], index: dict[float, int], used: Index, base: float) -> Generators:
    cost = _costs(_table(tables, gen.where, "gencost", 5), len(gen))
    bus = used[_at(gen, 0, index)]
    gen.refuse(np.isnan(gen[7]), "the status is NaN")
    mask = (gen[7] > 0) & (bus >= 0)
    if not mask.any():
        raise InvalidInput(f"{gen.where}: gen: no generator is in service")
    gen, bus = gen.kept(mask), bus[mask]
    pmin, pmax = gen.limits(9, 8, "active generation")
    qmin, qmax = gen.limits(4, 3, "reactive generation")
    load = (pmin < 0) & (pmax == 0) & ((qmin != 0) | (qmax != 0))
    gen.refuse(load, "a dispatchable load (Pmin < 0 = Pmax), whose power factor MATPOWER fixes: that is not supported")
    if gen.values.shape[1] > 11:
        gen.refuse(gen[10] != gen[11], "a capability curve (Pc1, Pc2) is not supported")
    vset = gen.finite(5, "the voltage set point")
    gen.refuse(vset <= 0, "the voltage set point must be positive, not {:g}", vset)
    c2, c1, c0 = _polynomials(cost, mask)
    return Generators(bus, pmin / base, pmax / base, qmin / base, qmax / base, c2 * base * base, c1 * base, c0, vset, gen.row)


def _costs(cost: _Table, generators: int) -> _Table:
    """The rows for active generation."""
    if len(cost) not in {generators, 2 * generators}:
        raise InvalidInput(f"{cost.where}: gencost: {len(cost)} rows for {generators} generators")
    rows = np.arange(len(cost))
    reactive = cost.kept(rows >= generators)
    reactive.refuse((reactive.values[:, 4:] != 0).any(axis=1), "a cost of reactive generation is not supported")
    return cost.kept(rows < generators)


def _polynomials(cost: _Table, used: Mask) -> tuple[Array, Array, Array]:
    """c2, c1, c0 of the generators in service, per MW."""
    cost = cost.kept(used)
    model, count = cost[0], cost[3]
    cost.refuse(model == PIECEWISE, "a piecewise linear cost (model 1) is not supported: only polynomials up to degree 2 are (model 2)")
    cost.refuse(model != POLYNOMIAL, "{:g} is no cost model", model)
    most = cost.values.shape[1] - 4
    cost.refuse(~((count >= 1) & (count == np.floor(count))), "the number of cost coefficients must be at least 1, not {:g}", count)
    cost.refuse(count > most, f"{{:g}} cost coefficients are announced, but the row has {most}", count)
    found = np.zeros((len(cost), 3))
    for k, n in enumerate(count.astype(int).tolist()):
        coefficients = cost.values[k, 4 : 4 + n]
        one = np.arange(len(cost)) == k
        cost.refuse(one & ~np.isfinite(coefficients).all(), "the cost coefficients must be finite")
        cost.refuse(one & bool(coefficients[:-3].any()), "a cost of a degree above 2 is not supported: {:g} coefficients", count)
        found[k, 3 - min(n, 3) :] = coefficients[-3:]
    cost.refuse(found[:, 0] < 0, "a concave cost (c2 = {:g} < 0) is not supported", found[:, 0])
    return found[:, 0], found[:, 1], found[:, 2]


def _check_connected(case: Case, where: str) -> None:
    """Every bus must be reached from the reference bus."""
    neighbours: list[list[int]] = [[] for _ in range(len(case.buses))]
    for f, t in zip(case.branches.f.tolist(), case.branches.t.tolist(), strict=True):
        neighbours[f].append(t)
        neighbours[t].append(f)
    reached = _reached(neighbours, case.reference)
    if left := [i for i in range(len(case.buses)) if i not in reached]:
        island = case.buses.number[sorted(_reached(neighbours, left[0]))]
        raise InvalidInput(
            f"{where}: branch: {_listed(island)} {'are an island' if len(island) > 1 else 'is an island'}:"
            f" nothing in service connects to the reference bus {case.buses.number[case.reference]}"
        )


def _reached(neighbours: list[list[int]], start: int) -> set[int]:
    reached, open_ = {start}, [start]
    while open_:
        for i in neighbours[open_.pop()]:
            if i not in reached:
                reached.add(i)
                open_.append(i)
    return reached


def _listed(numbers: NDArray[Any]) -> str:
    """Buses by their numbers: "buses 3, 7"."""
    names = ", ".join(f"{n:.0f}" for n in numbers[:_SHOWN].tolist())
    return ("bus " if len(numbers) == 1 else "buses ") + names + (", ..." if len(numbers) > _SHOWN else "")
