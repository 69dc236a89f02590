import math
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from power_cases import PGLIB, SMALL, pglib, small

from milpverify.acopf.case import Case
from milpverify.acopf.matpower import load_case
from milpverify.acopf.matpower_text import parse
from milpverify.errors import InvalidInput

INF = math.inf


def test_a_case_in_full(tmp_path: Path) -> None:
    path = tmp_path / "small.m"
    path.write_text(SMALL)
    case = load_case(str(path))
    assert (case.name, case.base_mva, case.reference) == ("small", 50.0, 1)
    buses, branches, gens = case.buses, case.branches, case.generators
    assert buses.number.tolist() == [10, 20, 7, 30]
    assert buses.row.tolist() == [1, 2, 3, 5]
    np.testing.assert_array_equal(buses.pd, np.array([0, 20, 40, 0]) / 50)
    np.testing.assert_array_equal(buses.qd, np.array([0, 10, -5.5, 0]) / 50)
    np.testing.assert_array_equal(buses.gs, np.array([0, 5, 0, 0]) / 50)
    np.testing.assert_array_equal(buses.bs, np.array([0, -2, 19, 0]) / 50)
    np.testing.assert_array_equal(buses.vmin, [0.9, 0.95, 0.94, 0.9])
    np.testing.assert_array_equal(buses.vmax, [1.1, 1.05, 1.06, 1.1])
    assert branches.row.tolist() == [1, 2, 4, 5]
    assert branches.f.tolist() == [0, 1, 2, 3]
    assert branches.t.tolist() == [1, 2, 3, 0]
    assert branches.tap.tolist() == [1.0, 0.95, 1.0, 1.0]
    assert branches.rate.tolist() == [2.0, INF, 1.2, INF]
    assert branches.b.tolist() == [0.02, 0.0, 0.01, 0.01]
    np.testing.assert_allclose(branches.shift, np.array([0, 10, -5, 0]) * math.pi / 180, rtol=1e-15)
    np.testing.assert_allclose(branches.angmin, [-math.pi / 6, -INF, -INF, 0], rtol=1e-15)
    np.testing.assert_allclose(branches.angmax, [math.pi / 6, INF, math.pi / 9, INF], rtol=1e-15)
    assert gens.row.tolist() == [1, 2, 3]
    assert gens.bus.tolist() == [1, 0, 0]
    assert gens.pmax.tolist() == [1.6, INF, 1.2]
    assert gens.pmin.tolist() == [0.1, 0.0, -0.2]
    assert gens.qmin.tolist() == [-0.6, -0.6, -INF]
    assert gens.vset.tolist() == [1.02, 1.01, 1.01]
    np.testing.assert_allclose(gens.c2, [250.0, 0, 0])
    assert gens.c1.tolist() == [1000.0, 1500.0, 0.0]
    assert gens.c0.tolist() == [5.0, 1.0, 7.0]
    assert case.cost(np.array([1.0, 2.0, 3.0])) == pytest.approx(250 + 1000 + 5 + 3000 + 1 + 7)
    assert case.branch_name(2) == "branch 7-30 (row 4)"
    assert case.generator_name(2) == "generator at bus 10 (row 3)"


def test_dicts_and_cases() -> None:
    case = load_case({**small(), "name": "three"})
    assert case.name == "three"
    assert load_case(case) is case
    assert load_case({name: value for name, value in small().items() if name != "version"}).name == "case"


def test_tables_of_version_1_have_no_angle_limits() -> None:
    tables: dict[str, Any] = small()
    case = load_case({**tables, "branch": tables["branch"][:, :11]})
    assert np.isinf(case.branches.angmin).all()
    assert np.isinf(case.branches.angmax).all()


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 0, (-INF, INF)),
        (-360, 360, (-INF, INF)),
        (-361, 400, (-INF, INF)),
        (-INF, INF, (-INF, INF)),
        (-359, 359, (-math.radians(359), math.radians(359))),
        (0, 30, (0, math.radians(30))),
        (-30, 0, (-math.radians(30), 0)),
        (-360, 10, (-INF, math.radians(10))),
        (10, 360, (math.radians(10), INF)),
        (-120, 100, (-math.radians(120), math.radians(100))),
    ],
)
def test_angle_limits(low: float, high: float, expected: tuple[float, float]) -> None:
    tables: dict[str, Any] = small()
    tables["branch"][0, 11:] = low, high
    branches = load_case(tables).branches
    assert (branches.angmin[0], branches.angmax[0]) == pytest.approx(expected, rel=1e-15)


def put(table: str, row: int, column: int, value: float) -> Callable[[dict[str, Any]], None]:
    def change(tables: dict[str, Any]) -> None:
        tables[table][row - 1, column] = value

    return change


def without(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda tables: tables.pop(name)


def cut(name: str, columns: int) -> Callable[[dict[str, Any]], None]:
    return lambda tables: tables.update({name: tables[name][:, :columns]})


def out_of_service(tables: dict[str, Any]) -> None:
    tables["gen"][:, 7] = 0


def island(tables: dict[str, Any]) -> None:
    tables["branch"][[1, 2], 10] = 0


def reactive_cost(tables: dict[str, Any]) -> None:
    tables["gencost"] = np.vstack([tables["gencost"], tables["gencost"]])


def cubic(tables: dict[str, Any]) -> None:
    tables["gencost"] = np.array([[2, 0, 0, 4, 1, 1, 1, 1], [2, 0, 0, 3, 1, 1, 1, 0]], dtype=float)


def short_row(tables: dict[str, Any]) -> None:
    tables["gencost"][0, 3] = 4


def capability(tables: dict[str, Any]) -> None:
    tables["gen"] = np.hstack([tables["gen"], np.zeros((2, 11))])
    tables["gen"][1, 11] = 50


def dispatchable(tables: dict[str, Any]) -> None:
    tables["gen"][1, [8, 9]] = 0, -40


HOSTILE: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (put("bus", 3, 2, math.nan), "bus row 3: Pd must be finite"),
    (put("bus", 3, 3, INF), "bus row 3: Qd must be finite"),
    (put("bus", 2, 4, math.nan), "bus row 2: Gs must be finite"),
    (put("bus", 2, 5, -INF), "bus row 2: Bs must be finite"),
    (put("bus", 1, 0, math.nan), "bus row 1: nan is no bus number"),
    (put("bus", 1, 0, 1.5), "bus row 1: 1.5 is no bus number"),
    (put("bus", 1, 0, -3), "bus row 1: -3 is no bus number"),
    (put("bus", 3, 0, 10), "bus row 3: bus 10 is there already, in row 1"),
    (put("bus", 3, 1, 7), "bus row 3: 7 is no bus type"),
    (put("bus", 3, 1, math.nan), "bus row 3: nan is no bus type"),
    (put("bus", 2, 1, 2), "no reference bus"),
    (put("bus", 2, 1, 4), "no reference bus"),
    (put("bus", 1, 1, 3), "2 reference buses .*buses 10, 20"),
    (put("bus", 1, 11, 0.8), "bus row 1: the lower limit of the voltage magnitude, 0.9, is above the upper one, 0.8"),
    (put("bus", 1, 11, INF), "bus row 1: the upper limit of the voltage magnitude must be finite"),
    (put("bus", 1, 12, math.nan), "bus row 1: a limit of the voltage magnitude is NaN"),
    (put("bus", 1, 12, 0), "bus row 1: the lower limit of the voltage magnitude must be positive"),
    (put("bus", 1, 12, -0.9), "bus row 1: the lower limit of the voltage magnitude must be positive"),
    (put("gen", 2, 0, 11), "gen row 2: there is no bus 11"),
    (put("gen", 2, 0, math.nan), "gen row 2: there is no bus nan"),
    (put("gen", 2, 7, math.nan), "gen row 2: the status is NaN"),
    (put("gen", 1, 8, 4), "gen row 1: the lower limit of the active generation, 5, is above the upper one, 4"),
    (put("gen", 1, 3, -31), "gen row 1: the lower limit of the reactive generation, -30, is above"),
    (put("gen", 1, 8, math.nan), "gen row 1: a limit of the active generation is NaN"),
    (put("gen", 1, 4, math.nan), "gen row 1: a limit of the reactive generation is NaN"),
    (put("gen", 1, 8, -INF), "gen row 1: .*active generation"),
    (put("gen", 1, 5, math.nan), "gen row 1: the voltage set point must be finite"),
    (put("gen", 1, 5, 0), "gen row 1: the voltage set point must be positive"),
    (out_of_service, "gen: no generator is in service"),
    (capability, "gen row 2: a capability curve"),
    (dispatchable, "gen row 2: a dispatchable load"),
    (put("branch", 1, 0, 8), "branch row 1: there is no bus 8"),
    (put("branch", 3, 1, 8), "branch row 3: there is no bus 8"),
    (put("branch", 1, 0, 20), "branch row 1: it leads from bus 20 to itself"),
    (put("branch", 2, 3, 0), "branch row 2: the impedance is zero"),
    (put("branch", 2, 2, math.nan), "branch row 2: r must be finite"),
    (put("branch", 2, 3, INF), "branch row 2: x must be finite"),
    (put("branch", 2, 4, math.nan), "branch row 2: b must be finite"),
    (put("branch", 1, 5, -1), "branch row 1: rateA must not be negative"),
    (put("branch", 1, 5, math.nan), "branch row 1: rateA .*NaN"),
    (put("branch", 1, 8, -1), "branch row 1: the ratio must not be negative"),
    (put("branch", 1, 8, math.nan), "branch row 1: the ratio must be finite"),
    (put("branch", 1, 9, INF), "branch row 1: the phase shift must be finite"),
    (put("branch", 1, 10, 2), "branch row 1: the status must be 0 or 1"),
    (put("branch", 1, 10, math.nan), "branch row 1: the status must be 0 or 1"),
    (put("branch", 1, 11, 31), "branch row 1: the lower limit of the angle difference, 31, is above the upper one, 30"),
    (put("branch", 1, 12, math.nan), "branch row 1: a limit of the angle difference is NaN"),
    (island, "branch: bus 7 is an island.*reference bus 20"),
    (put("gencost", 2, 0, 1), "gencost row 2: a piecewise linear cost"),
    (put("gencost", 2, 0, 3), "gencost row 2: 3 is no cost model"),
    (put("gencost", 1, 4, -0.1), "gencost row 1: a concave cost"),
    (put("gencost", 1, 4, math.nan), "gencost row 1: the cost coefficients must be finite"),
    (put("gencost", 2, 5, INF), "gencost row 2: the cost coefficients must be finite"),
    (put("gencost", 2, 3, 0), "gencost row 2: the number of cost coefficients"),
    (put("gencost", 2, 3, math.nan), "gencost row 2: the number of cost coefficients"),
    (short_row, "gencost row 1: 4 cost coefficients are announced"),
    (cubic, "gencost row 1: a cost of a degree above 2"),
    (reactive_cost, "gencost row 3: a cost of reactive generation"),
    (lambda t: t.update(gencost=t["gencost"][:1]), "gencost: 1 rows for 2 generators"),
    (cut("bus", 12), "bus: 12 columns, but at least 13"),
    (cut("gen", 9), "gen: 9 columns"),
    (cut("branch", 10), "branch: 10 columns"),
    (cut("branch", 12), "branch: 12 columns"),
    (cut("gencost", 4), "gencost: 4 columns"),
    *((without(name), f"the table {name} is missing") for name in ("bus", "gen", "branch", "gencost")),
    (without("baseMVA"), "baseMVA is missing"),
    *((lambda t, v=value: t.update(baseMVA=v), "baseMVA must be one positive number") for value in (0, -100, math.nan, INF, [1, 2])),
    (lambda t: t.update(baseMVA="many"), "baseMVA: not a table of numbers"),
    (lambda t: t.update(bus=[]), "bus: a table with rows"),
    (lambda t: t.update(bus=[1, 2, 3]), "bus: a table with rows"),
    (lambda t: t.update(bus=[[1, 2], [3]]), "bus: not a table of numbers"),
    (lambda t: t.update(bus=[["a"] * 13]), "bus: not a table of numbers"),
    (lambda t: t.update(version="3"), "version '3'"),
]


@pytest.mark.parametrize(("change", "message"), HOSTILE, ids=[message for _, message in HOSTILE])
def test_what_cannot_be_meant_is_refused(change: Callable[[dict[str, Any]], Any], message: str) -> None:
    tables: dict[str, Any] = small()
    change(tables)
    with pytest.raises(InvalidInput, match=rf"^case: .*{message}") as caught:
        load_case(tables)
    assert "\n" not in str(caught.value)


def test_what_is_out_of_service_may_be_nonsense() -> None:
    tables: dict[str, Any] = small()
    tables["branch"] = np.vstack([tables["branch"], tables["branch"][:1]])
    tables["branch"][3, [2, 3, 10]] = 0
    tables["gen"] = np.vstack([tables["gen"], tables["gen"][:1]])
    tables["gen"][2, [5, 7]] = math.nan, 0
    tables["gencost"] = np.vstack([tables["gencost"], [[1, 0, 0, 2, -1, math.nan, 0]]])
    case = load_case(tables)
    assert (len(case.branches), len(case.generators)) == (3, 2)


def test_costs_of_a_high_degree_may_have_leading_zeros_and_reactive_ones_be_zero() -> None:
    tables: dict[str, Any] = small()
    tables["gencost"] = np.array(
        [[2, 0, 0, 4, 0, 3, 2, 1], [2, 0, 0, 1, 6, 9, 9, 9], [2, 0, 0, 3, 0, 0, 0, 0], [1, 0, 0, 2, 0, 0, 0, 0]], dtype=float
    )
    gens = load_case(tables).generators
    assert gens.c2.tolist() == [3 * 2500.0, 0]
    assert gens.c1.tolist() == [100.0, 0]
    assert gens.c0.tolist() == [1.0, 6.0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mpc.bus = [1 2; 3]", "case.m: bus row 2: 1 numbers, but 2 in row 1"),
        ("mpc.bus = [1 2; 3 2*4]", r"case.m: bus row 2: '2\*4' is no number"),
        ("mpc.bus = [1 2; 3 x]", "case.m: bus row 2: 'x' is no number"),
        ("mpc.bus = [1 - 2]", "bus row 1: '-' is no number"),
        ("mpc.baseMVA = 1OO;", "baseMVA: '1OO' is no number"),
        ("a = 1\n\nmpc.bus(:, 3) = 2 * a;", r"line 3 is no table, number or string.*mpc.bus\(:, 3\)"),
        ("mpc.branch(:, 3) = 7;", "line 1 is no table"),
        ("mpc.bus = [1 2] * 3;", "line 1 is no table"),
        ("mpc.baseMVA = 10 * 3;", "line 1 is no table"),
        ("x = [1, ...\n 2 ...\n];\ny = [ 1\n2 ]\nfor i = 1:3", "line 6 is no table"),
        ("mpc.bus = [1 2;\n3 4", "line 1 is no table"),
        ("mpc.bus = [1];\nmpc.bus = [2];", r"bus is assigned twice \(line 2\)"),
        ("hello", "line 1 is no table"),
    ],
)
def test_code_is_not_skipped(text: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        parse(text, "case.m")


def test_text() -> None:
    head = "function mpc = f(a, b)\n%{\nmpc.bus = [1]\n%}\nmpc.name = 'a % b'; k=.5\n"
    found = parse(head + "t.u.v = [1,2\t-3;;\n\n+4 5e-1 Inf % c\n -inf nan, 1.];\nend\n", "case.m")
    assert found["name"] == "a % b"
    assert found["k"] == 0.5
    np.testing.assert_array_equal(found["v"], [[1, 2, -3], [4, 0.5, INF], [-INF, math.nan, 1]])
    assert set(found) == {"name", "k", "v"}
    assert parse("bus = [];", "case.m")["bus"].size == 0  # type: ignore[union-attr]


@pytest.mark.parametrize("seed", range(20))
def test_damage_is_refused_or_understood(seed: int) -> None:
    """Whatever characters are lost, doubled or replaced, and whatever stands in a table: a case, or one line that says why not."""
    rng = random.Random(seed)
    for _ in range(20):
        text = list(SMALL)
        for _ in range(rng.randrange(1, 4)):
            i = rng.randrange(len(text))
            text[i] = rng.choice(("", text[i] * 2, *"[]{}();,%'=.\n -1e9", "...", "Inf", "NaN"))
        tables: dict[str, Any] = small()
        for _ in range(rng.randrange(1, 4)):
            table = tables[rng.choice(("bus", "gen", "branch", "gencost"))]
            table[rng.randrange(len(table)), rng.randrange(table.shape[1])] = rng.choice(
                (math.nan, INF, -INF, 0, -1, 1, 2, 1e300, -1e300, 1e-320)
            )
        for read in (lambda t=text: load_case(parse("".join(t), "case.m")), lambda t=tables: load_case(t)):
            try:
                assert np.isfinite(read().buses.pd).all()
            except InvalidInput as e:
                assert "\n" not in str(e)


def test_files_that_are_not_there_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"nowhere\.m: the case cannot be read"):
        load_case(tmp_path / "nowhere.m")
    with pytest.raises(InvalidInput, match="the case cannot be read"):
        load_case(tmp_path)
    (tmp_path / "noise.m").write_bytes(bytes(range(256)) * 20)
    with pytest.raises(InvalidInput, match=r"noise\.m"):
        load_case(tmp_path / "noise.m")
    (tmp_path / "empty.m").write_text("")
    with pytest.raises(InvalidInput, match=r"empty\.m: baseMVA is missing"):
        load_case(tmp_path / "empty.m")
    with pytest.raises(InvalidInput, match="not int"):
        load_case(3)


@pytest.mark.parametrize(
    "name", ["3_lmbd", "5_pjm", "5_pjm__sad", "14_ieee", "14_ieee__api", "14_ieee__sad", "30_as", "30_ieee", "57_ieee", "118_ieee"]
)
def test_pglib(name: str) -> None:
    case = pglib(name)
    lines = (PGLIB / f"pglib_opf_case{name}.m").read_text().splitlines()
    for table, rows in (("bus", case.buses), ("gen", case.generators), ("branch", case.branches)):
        begin = next(i for i, line in enumerate(lines) if line.startswith(f"mpc.{table} = ["))
        end = lines.index("];", begin)
        assert len(rows) == end - begin - 1  # nothing is out of service in these
    assert (case.branches.angmax < 1.6).all()
    assert (case.branches.rate < 100).all()


def test_pandapower() -> None:
    networks = pytest.importorskip("pandapower.networks")
    case: Case = load_case(networks.case9())
    assert (len(case.buses), len(case.branches), len(case.generators)) == (9, 9, 3)
    assert case.buses.pd.sum() == pytest.approx(3.15)


def test_a_net_without_pandapower(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandapower.converter.pypower", None)
    net = type("pandapowerNet", (dict,), {"__module__": "pandapower.auxiliary"})()
    with pytest.raises(InvalidInput, match="pip install pandapower"):
        load_case(net)
