"""Power networks for tests: small ones written out here, and the PGLib cases beside the checkout where they are at hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from milpverify.acopf.case import Branches, Buses, Case, Generators
from milpverify.acopf.matpower import load_case
from milpverify.acopf.points.point import Point, load_point
from support import ROOT

PGLIB = ROOT.parent / "shared" / "acopf"

SMALL = """function mpc = small   % a comment
mpc.version = '2';
mpc.baseMVA = 50;
%% bus_i type Pd Qd Gs Bs area Vm Va baseKV zone Vmax Vmin
mpc.bus = [
    10  2   0    0   0   0  1  1.0  0  110  1  1.1   0.9;
    20  3  20   10   5  -2  1  1.0  0  110  1  1.05  0.95; % the reference
    7   1  40  -5.5  0  19  1  1.0  0  110  1  1.06  0.94
    99  4  11    3   0   0  1  1.0  0  110  1  1.1   0.9;  % isolated
    30  1   0    0   0   0  1  1.0  0  110  1  1.1   0.9];
%% bus Pg Qg Qmax Qmin Vg mBase status Pmax Pmin
mpc.gen = [ 20, 0, 0, 30, -30, 1.02, 100, 1, 80, 5
            10, 0, 0, 30, -30, 1.01, 100, 1, Inf, 0
            10, 0, 0, 3e1, -Inf, 1.01, 100, 1, 60, ...
                -10
            99, 0, 0, 30, -30, 1.01, 100, 1, 60, 0
            10, 0, 0, 30, -30, 1.01, 100, 0, 60, 0 ];
%% f t r x b rateA rateB rateC ratio angle status angmin angmax
mpc.branch = [
    10  20  0.01  0.1  0.02  100  0  0  0     0   1  -30   30;
    20   7  0     0.2  0     0    0  0  0.95  10  1    0    0;
    20   7  0.02  0.2  0.01  60   0  0  0     0   0  -30   30;
    7   30  0.02  0.2  0.01  60   0  0  1     -5  1 -360   20;
    30  10  0.02  0.2  0.01  Inf  0  0  0     0   1    0  360;
    99  10  0.02  0.2  0.01  60   0  0  0     0   1  -30   30;
];
mpc.gencost = [
    2 0 0 3 0.1 20 5;
    2 0 0 2 30 1 0;
    2 0 0 1 7 0 0;
    1 0 0 2 0 0 5;
    1 0 0 2 0 0 5;
];
mpc.bus_name = { 'one % 1'; 'it''s [two]'; };
"""

TWO = """function mpc = two
mpc.version = '2';
mpc.baseMVA = 100;
mpc.bus = [
    1 3  0  0 0 0 1 1.0 0 230 1 1.1 0.9;
    2 1 50 10 0 0 1 1.0 0 230 1 1.1 0.9;
];
mpc.gen = [1 0 0 100 -100 1.0 100 1 200 0 0 0 0 0 0 0 0 0 0 0 0];
mpc.branch = [1 2 0.01 0.1 0.02 100 0 0 0 0 1 -30 30];
mpc.gencost = [2 0 0 3 0.01 20 5];
"""


def small() -> dict[str, object]:
    """The same network without what is out of service or infinite, as a dict to change."""
    bus = [
        [10, 2, 0, 0, 0, 0, 1, 1, 0, 110, 1, 1.1, 0.9],
        [20, 3, 20, 10, 5, -2, 1, 1, 0, 110, 1, 1.05, 0.95],
        [7, 1, 40, -5.5, 0, 19, 1, 1, 0, 110, 1, 1.06, 0.94],
    ]
    gen = [[20, 0, 0, 30, -30, 1.02, 100, 1, 80, 5], [10, 0, 0, 30, -30, 1.01, 100, 1, 60, 0]]
    branch = [
        [10, 20, 0.01, 0.1, 0.02, 100, 0, 0, 0, 0, 1, -30, 30],
        [20, 7, 0, 0.2, 0, 0, 0, 0, 0.95, 10, 1, 0, 0],
        [7, 10, 0.02, 0.2, 0.01, 60, 0, 0, 1, -5, 1, -360, 20],
    ]
    gencost = [[2, 0, 0, 3, 0.1, 20, 5], [2, 0, 0, 2, 30, 1, 0]]
    tables = {name: np.array(rows, dtype=float) for name, rows in (("bus", bus), ("gen", gen), ("branch", branch), ("gencost", gencost))}
    return {"version": "2", "baseMVA": 50.0, **tables}


def pglib(name: str) -> Case:
    """A PGLib case such as "14_ieee"; the test is skipped where the files are not there."""
    path = PGLIB / f"pglib_opf_case{name}.m"
    if not path.exists():
        pytest.skip(f"{path} is missing")
    return load_case(path)


def dispatch(name: str) -> Point:
    """The stored interior operating point of a PGLib case."""
    return load_point(pglib(name), PGLIB / f"dispatch_case{name}.json")


def network(buses: int, branches: list[tuple[int, int]], generators: list[int], **values: Any) -> Case:
    """A network by its numbers in p.u. and rad, one for all or one each; without limits but for vm in 0.9 to 1.1 and pg >= 0.

    Lines have r = 0.01 and x = 0.1 unless others are given; generators cost 1 $/h per p.u.
    """
    n, m, g = buses, len(branches), len(generators)
    ends = np.array(branches, dtype=np.int64).reshape(m, 2)

    def parts(count: int, **defaults: float) -> dict[str, np.ndarray]:
        return {name: np.broadcast_to(np.asarray(values.pop(name, known), float), (count,)).copy() for name, known in defaults.items()}

    case = Case(
        "network",
        100.0,
        Buses(np.arange(1, n + 1), **parts(n, pd=0, qd=0, gs=0, bs=0, vmin=0.9, vmax=1.1), row=np.arange(1, n + 1)),
        Branches(
            ends[:, 0],
            ends[:, 1],
            **parts(m, r=0.01, x=0.1, b=0, tap=1, shift=0, rate=math.inf, angmin=-math.inf, angmax=math.inf),
            row=np.arange(1, m + 1),
        ),
        Generators(
            np.array(generators, dtype=np.int64),
            **parts(g, pmin=0, pmax=math.inf, qmin=-math.inf, qmax=math.inf, c2=0, c1=1, c0=0, vset=1),
            row=np.arange(1, g + 1),
        ),
        values.pop("reference", 0),
    )
    assert not values, values
    return case


TRIANGLE = [(0, 1), (1, 2), (2, 0)]


def random_point(case: Case, seed: int, spread: float = 0.3) -> Point:
    """No operating point, but of the size of one."""
    rng = np.random.default_rng(seed)
    n, g = len(case.buses), len(case.generators)
    vm, va = rng.uniform(0.8, 1.2, n), spread * rng.normal(size=n)
    return Point(case, vm, va, rng.normal(size=g), rng.normal(size=g), rng.normal(size=n), rng.normal(size=n))
