"""Pictures of comparisons: what they hold, what they cannot be of, and what the command line says of them."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
from networks import absolute_value, write_property
from support import Run, refused

import milpverify as mv
from milpverify.compare.plots import PANELS, steps_of
from milpverify.compare.process import thinned
from milpverify.compare.rows import Row, Steps, Witness, Word
from milpverify.compare.sources import Instance, instances_of
from milpverify.result import Trust

figure = pytest.importorskip("matplotlib.figure")


def row(problem: str, method: str, bound: float, verdict: Word, seconds: float = 1.0, steps: Steps | None = (), **more: object) -> Row:
    trust = None if method == "tool" else Trust.ROUNDED
    return Row(problem, method, bound, None, verdict, trust, seconds, 1.0, 1.0, steps=steps, **more)  # type: ignore[arg-type]


@pytest.fixture
def found() -> mv.Comparison:
    """Two radii, two problems of each; the tool decides three of them."""
    rows, problems = [], []
    for k, (crown, tool, bound) in enumerate(
        [("unsat", "unsat", 1.0), ("unknown", "unsat", -0.5), ("unknown", "sat", -1.0), ("unknown", "timeout", -40.0)]
    ):
        rows += [
            row(f"p{k}", "crown", bound, Word(crown), 0.01 * (k + 1), ((0.005, bound - 1),)),
            row(f"p{k}", "tool", -math.inf, Word(tool), 2.0 + k),
        ]
        problems.append(Instance(f"p{k}", radius=0.1 if k < 2 else 0.2))
    return mv.Comparison(tuple(rows), problems=tuple(problems))


def line(axes: object, label: str) -> tuple[list[float], list[float]]:
    (one,) = [each for each in axes.get_lines() if each.get_label() == label]  # type: ignore[attr-defined]
    return list(one.get_xdata()), list(one.get_ydata())


def words(drawn: object) -> set[str]:
    return {text.get_text() for legend in drawn.legends for text in legend.get_texts()}  # type: ignore[attr-defined]


def test_a_cactus_counts_what_is_decided(found: mv.Comparison) -> None:
    axes = found.plot().axes[0]  # that is the kind for several problems
    assert line(axes, "tool (3)") == ([2.0, 3.0, 4.0, 5.5], [1, 2, 3, 3]) and line(axes, "crown (1)")[1] == [1, 1]


def test_verified_fractions(found: mv.Comparison) -> None:
    axes = found.plot(kind="radius").axes[0]
    assert line(axes, "crown") == ([0.1, 0.2], [0.5, 0.0]) and line(axes, "tool (its word)")[1] == [1.0, 0.0]
    assert line(axes, "not refuted")[1] == [1.0, 0.5]
    with pytest.raises(mv.InvalidInput, match=r"several radii, and these have one, 0\.2"):
        mv.Comparison(found.rows[4:], problems=found.problems[2:]).plot(kind="radius")
    with pytest.raises(mv.InvalidInput, match="these have none"):
        mv.Comparison(found.rows).plot(kind="radius")


def test_two_methods_against_each_other(found: mv.Comparison) -> None:
    drawn = found.plot(kind="scatter", methods=["tool", "crown"])
    at = [tuple(point) for part in drawn.axes[0].collections for point in part.get_offsets().tolist()]
    edge = max(x for x, _ in at)
    assert sorted(at) == [(2.0, 0.01), (3.0, edge), (4.0, edge), (edge, edge)] and edge > 5.0
    assert words(drawn) == {"unsat (2)", "sat (1)", "open (1)"}
    with pytest.raises(mv.InvalidInput, match="no bounds of the same problem"):
        found.plot(kind="scatter-bounds")
    with pytest.raises(mv.InvalidInput, match="of two methods, not 1"):
        found.plot(kind="scatter", methods=["crown"])


def test_bounds_against_time() -> None:
    rows = (
        row("n n_1", "ibp", -90.0, Word.UNKNOWN, 0.01),
        row("n n_1", "lp", 0.25, Word.UNSAT, 2.0, ((0.01, -90.0), (0.5, -1.0))),
        row("n n_1", "exact", 0.5, Word.UNSAT, 9.0, None, witness=Witness(0.75, (1.0,))),
    )
    drawn = mv.Comparison(rows).plot()
    axes = drawn.axes[0]
    assert axes.get_title() == "n_1" and axes.get_yscale() == "symlog" and words(drawn) == {"ibp", "lp", "exact", "best known point"}
    assert steps_of(rows[1]) == [(0.01, -90.0), (0.5, -1.0), (2.0, 0.25)] and line(axes, "best known point")[1] == [0.75, 0.75]
    assert "1 of 3 runs were read from a file" in drawn.get_suptitle()
    theirs = figure.Figure().add_subplot()
    assert mv.Comparison(rows).plot(theirs, methods=["lp"]) is theirs.figure and theirs.get_legend() is not None
    many = mv.Comparison(tuple(row(f"p{k}", "lp", -float(k), Word.UNKNOWN) for k in range(12)))
    drawn = many.plot(kind="bounds")
    assert len(drawn.axes) == PANELS and "9 of 12 problems" in drawn.get_suptitle()
    with pytest.raises(mv.InvalidInput, match="per problem"):
        many.plot(theirs, "bounds")


def test_what_cannot_be_drawn(found: mv.Comparison, tmp_path: Path) -> None:
    with pytest.raises(mv.InvalidInput, match="no plot 'pie'"):
        found.plot(kind="pie")
    with pytest.raises(mv.InvalidInput, match="no method 'lp'"):
        found.plot(methods=["lp"])
    with pytest.raises(mv.InvalidInput, match="cannot write"):
        found.plot(tmp_path / "none" / "a.png")
    with pytest.raises(mv.InvalidInput, match="no rows"):
        mv.Comparison(()).plot()


def test_matplotlib_is_not_needed_otherwise(found: mv.Comparison, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(mv.InvalidInput, match=r"pip install 'milpverify\[plots\]'"):
        found.plot()


def test_steps_are_thinned() -> None:
    steps = [(float(k), float(k)) for k in range(9)]
    less = thinned(steps, 8)
    assert less[0] == steps[0] and less[-1] == steps[-1] and len(less) == 5 and thinned(less, 8) is less


def test_radii_of_problems(tmp_path: Path) -> None:
    net, spec = absolute_value(tmp_path / "net.onnx"), write_property(tmp_path / "p.vnnlib", [-0.25, 0], [0.25, 0.1], "(>= Y_0 1.5)")
    assert Instance.of_files(net, spec).reach() == 0.25
    assert Instance.of((net, spec), "mine", 0.5) == Instance("mine", net, spec, radius=0.5)
    (tmp_path / "list.csv").write_text("onnx,vnnlib,radius\nnet.onnx,p.vnnlib,0.125\n")
    assert [i.reach() for i in instances_of(tmp_path / "list.csv")] == [0.125]
    problem = mv.load(net, spec)
    assert [(i.name, i.reach()) for i in instances_of({"a": mv.Problem(problem.graph, problem.disjuncts)})] == [("a", 0.25)]


def test_the_command_line_draws(run_main: Run, tmp_path: Path) -> None:
    absolute_value(tmp_path / "net.onnx")
    for k in (1, 2):
        write_property(tmp_path / f"p{k}.vnnlib", [-k / 2, -k / 2], [k / 2, k / 2], "(>= Y_0 1.5)")
    (tmp_path / "list.csv").write_text("net.onnx,p1.vnnlib,20\nnet.onnx,p2.vnnlib,20\n")
    asked = ["compare", "list.csv", "--methods", "ibp,crown", "--csv", "rows.csv"]
    done = run_main(*asked, "--plot", "c.png", "--plot", "radius=r.svg")
    assert (
        (done.returncode, done.stderr) == (0, "")
        and (tmp_path / "c.png").stat().st_size > 5000
        and "<svg" in (tmp_path / "r.svg").read_text()
    )
    again = run_main(*asked, "--resume", "--plot", "bounds=b.png")
    assert again.returncode == 0 and again.stderr == "milpverify: 4 of 4 runs were read from a file, which holds the end of each alone\n"
    refused(run_main(*asked, "--resume", "--plot", "c.odd"), ".png, .svg or .pdf")
    refused(run_main(*asked, "--resume", "--plot", "pie=c.png"), "no plot 'pie'")
    refused(run_main(*asked, "--resume", "--plot", "scatter=c.png", "--plot-methods", "crown"), "of two methods")
    refused(run_main(*asked, "--resume", "--plot", "nowhere/c.png"), "cannot write nowhere/c.png")
