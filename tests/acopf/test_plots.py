"""Pictures have the parts they should, mark what is violated, and need no display."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from pypower.api import case9, case14, case118

from milpverify.acopf.case import Case
from milpverify.acopf.loads import scaled
from milpverify.acopf.matpower import load_case
from milpverify.acopf.plots import ORANGE, PINK, RED, apparent, draw, layout, plot_margins, proved_margins
from milpverify.acopf.points.point import Point
from milpverify.acopf.result import Feasibility, Reason, Verdict
from milpverify.errors import InvalidInput
from milpverify.result import Trust


@pytest.fixture
def case() -> Case:
    return load_case({**case9(), "name": "case9"})


def flat(case: Case) -> Point:
    """All voltages 1, all angles 0, and no generation: what branches draw is their charging alone."""
    buses, gens = len(case.buses), len(case.generators)
    return Point(case, np.ones(buses), np.zeros(buses), np.zeros(gens), np.zeros(gens), case.buses.pd, case.buses.qd)


def answer(point: Point, tolerance: float = 1e-6) -> Feasibility:
    return Feasibility(
        point.case, scaled(1.0), Reason.POINT, Trust.ROUNDED, point, None, point.constraints(), None, "test",
        verdict=Verdict.FEASIBLE, tolerance=tolerance,
    )  # fmt: skip


def part(figure: Figure, gid: str) -> PathCollection | LineCollection:
    (found,) = [artist for axes in figure.axes for artist in axes.collections if artist.get_gid() == gid]
    return found


def parts(figure: Figure) -> set[str]:
    return {artist.get_gid() for axes in figure.axes for artist in axes.collections} - {None}


def edges(figure: Figure, gid: str) -> list[str]:
    return [to_hex(colour) for colour in part(figure, gid).get_edgecolors()]


def words(figure: Figure) -> str:
    axes = figure.axes[0]
    legend = axes.get_legend()
    told = [axes.get_title(), *(text.get_text() for text in axes.texts), *(label.get_text() for label in axes.get_yticklabels())]
    return "\n".join([*told, *(text.get_text() for text in (legend.get_texts() if legend else ()))])


def test_a_case_alone_has_its_parts_and_no_marks(case: Case) -> None:
    figure = draw(case)
    assert parts(figure) == {"branches", "buses", "reference", "generators", "loads"}
    assert len(part(figure, "branches").get_segments()) == 9
    assert len(part(figure, "buses").get_offsets()) == 9
    assert len(part(figure, "generators").get_offsets()) == 3
    assert len(part(figure, "loads").get_offsets()) == 3
    assert not {RED, ORANGE} & set(edges(figure, "buses"))
    assert set("123456789") <= set(words(figure).split())
    assert "violated" not in words(figure) and "reference bus" in words(figure)
    reference = part(figure, "reference").get_offsets()
    assert np.array_equal(reference, layout(case)[[case.reference]])


def test_what_is_violated_is_red_where_it_is(case: Case) -> None:
    """Bus 2's voltage below its limit, balances, generators below their limit, and a line whose limit is less than its charging."""
    point = flat(case)
    rate = case.branches.rate.copy()
    rate[4] = 0.5 * apparent(point)[4]
    vmin = case.buses.vmin.copy()
    vmin[1] = 1.05
    shrunk = replace(case, branches=replace(case.branches, rate=rate), buses=replace(case.buses, vmin=vmin))
    # Balances are out by up to 1.25 p.u., so that a tolerance of 2 leaves nothing violated, and one of 1e-6 nearly all buses.
    point = replace(point, case=shrunk)
    assert RED not in edges(draw(answer(point, tolerance=2.0)), "buses")
    assert set(edges(draw(point), "buses")) >= {RED}
    figure = draw(answer(point))
    assert [i for i, colour in enumerate(edges(figure, "buses")) if colour == RED] == [1]
    unbalanced = {one.index for one in point.constraints() if one.kind.endswith("balance") and one.margin < -1e-6}
    faces = [to_hex(colour) for colour in part(figure, "buses").get_facecolors()]
    assert {i for i, colour in enumerate(faces) if colour == PINK} == unbalanced != set()
    assert "violated balance" in words(figure) and "shown: a point whose largest violation is" in words(figure)
    assert len(part(figure, "violated branches").get_segments()) == 1
    assert np.array_equal(part(figure, "violated branches").get_segments()[0], part(figure, "branches").get_segments()[4])
    assert edges(figure, "generators") == [RED] * 3
    assert "violated limit" in words(figure) and "binding" not in words(figure)


def test_what_binds_is_orange_and_balances_do_not(case: Case) -> None:
    point = replace(
        flat(case), pg=case.generators.pmin, pd=np.zeros(9), qd=np.zeros(9), vm=np.where(np.arange(9) == 5, case.buses.vmax, 1.0)
    )
    figure = draw(answer(point, tolerance=10.0))
    assert [i for i, colour in enumerate(edges(figure, "buses")) if colour == ORANGE] == [5]
    assert edges(figure, "generators") == [ORANGE] * 3
    assert "loads" in parts(figure) and len(part(figure, "loads").get_offsets()) == 0


def test_the_more_loaded_a_line_the_wider_and_without_a_limit_it_is_grey(case: Case) -> None:
    point = replace(flat(case), va=np.linspace(0.0, 0.3, 9))
    widths = part(draw(point), "branches").get_linewidths()
    assert np.array_equal(np.argsort(widths), np.argsort(apparent(point)))
    assert "branch without limit" not in words(draw(point))
    rate = np.where(np.arange(9) == 2, np.inf, case.branches.rate)
    free = replace(point, case=replace(case, branches=replace(case.branches, rate=rate)))
    assert "branch without limit" in words(draw(free))
    red, green, blue, _ = part(draw(free), "branches").get_edgecolors()[2]
    assert max(red, green, blue) - min(red, green, blue) < 0.05


def test_layouts_repeat_and_tell_buses_apart() -> None:
    for tables in (case14(), case118()):
        case = load_case(tables)
        at = layout(case)
        assert np.array_equal(at, layout(case))
        distance = np.linalg.norm(at[:, None] - at, axis=2) + np.eye(len(at))
        assert distance.min() > 0.01 * np.ptp(at)


def test_parallel_branches_lie_side_by_side(case: Case) -> None:
    tables = case9()
    tables["branch"] = np.vstack([tables["branch"], tables["branch"][3]])
    segments = part(draw(load_case(tables)), "branches").get_segments()
    assert np.allclose(segments[3][[0, -1]], segments[9][[0, -1]])
    assert not np.allclose(segments[3][7], segments[9][7], atol=1e-3)


def test_margins_are_in_rows_of_a_kind_with_the_worst_named(case: Case) -> None:
    point = flat(case)
    figure = plot_margins(answer(point))
    kinds = [one.kind for one in answer(point).worst()]
    assert parts(figure) == set(kinds)
    for worst in answer(point).worst():
        dots = part(figure, worst.kind)
        assert len(dots.get_offsets()) == sum(one.kind == worst.kind for one in point.constraints())
        assert dots.get_offsets()[:, 0].min() == worst.margin
        assert f"{worst.element}: {worst.margin:.3g} {worst.unit}" in words(figure)
        colours = {to_hex(colour) for colour in dots.get_facecolors()}
        assert (RED in colours) == (worst.margin < -1e-6)
    assert figure.axes[0].get_xlim()[0] < min(one.margin for one in point.constraints())


def test_proved_ranges_are_lines_where_they_say_more_than_the_limits(case: Case) -> None:
    limits = flat(case).constraints()
    voltage, flow = (next(one for one in limits if one.kind == kind) for kind in ("voltage", "flow from"))
    assert (voltage.lower, voltage.upper, flow.lower) == (0.9, 1.1, -math.inf)
    for one, low, high, margins in (
        (voltage, -math.inf, math.inf, None), (voltage, 0.9, 1.1, None), (voltage, 0.92, 0.95, (0.02, 0.05)),
        (voltage, 0.92, 1.05, (0.02, 0.1)), (voltage, 1.04, 1.1, (0.0, 0.06)), (flow, 0.0, flow.upper, None),
        (flow, 0.0, 0.5 * flow.upper, (0.5 * flow.upper, flow.upper)), (flow, 0.2, flow.upper, (0.0, flow.upper - 0.2)),
    ):  # fmt: skip
        assert proved_margins(replace(one, proved=(low, high))) == (None if margins is None else pytest.approx(margins))
    found = replace(answer(flat(case)), constraints=[replace(one, proved=(0.92, 0.95)) if one.kind == "voltage" else one for one in limits])
    (lines,) = (each for each in parts(plot_margins(found)) if each.startswith("proved"))
    assert len(part(plot_margins(found), lines).get_segments()) == 9


@pytest.mark.parametrize("name", ["network.png", "network.svg", "network.pdf"])
def test_files_are_written(case: Case, tmp_path: Path, name: str) -> None:
    begin = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[name[-3:]]
    for picture in (draw, plot_margins):
        picture(flat(case), tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(begin)


def test_what_cannot_be_drawn_is_said(case: Case, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="nowhere"):
        draw(case, tmp_path / "nowhere" / "network.png")
    with pytest.raises(InvalidInput, match=r"network\.odd"):
        draw(case, tmp_path / "network.odd")
    nothing = replace(answer(flat(case)), verdict=Verdict.INFEASIBLE, point=None)
    assert "INFEASIBLE" in words(draw(nothing))
    with pytest.raises(InvalidInput, match="no operating point"):
        plot_margins(nothing)


def test_pictures_need_no_display_and_leave_pyplot_alone(environment: dict[str, str], tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pypower.api import case9\nfrom milpverify import acopf\n"
        "acopf.draw(acopf.load_case(case9()), 'n.png')\nprint('matplotlib.pyplot' in sys.modules, 'torch' in sys.modules)\n"
    )
    bare = {name: value for name, value in environment.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY", "MPLBACKEND")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=bare, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "False False\n"), done.stderr
    assert (tmp_path / "n.png").is_file()
