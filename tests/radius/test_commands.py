"""`milpverify radius`: the table, the files, and what is refused."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from networks import write_relu_network
from support import Run, refused, strictly

import milpverify as mv
from milpverify.radius.curve import curve
from milpverify.radius.tables import FIELDS

INPUTS = np.array([[0.25, 0.5], [0.9, 0.5], [0.45, 0.5]])


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """Output 1 is larger than output 0 from x_0 = 0.75 on."""
    return write_relu_network(tmp_path / "net.onnx", [(np.array([[0.0, 0.0], [1.0, 0.0]]), np.array([0.75, 0.0]))])


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    np.save(tmp_path / "x.npy", INPUTS)
    return tmp_path / "x.npy"


def labels_of(folder: Path) -> Path:
    (folder / "labels.csv").write_text("label\n0\n0\n0\n")
    return folder / "labels.csv"


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_table_and_all_files(run_cli: Run, network: Path, inputs: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "labels.csv").write_text("label\n0\n0\n0\n")
    files = ["--csv", "t.csv", "--json", "t.json", "--curve", "c.csv", "--plot", "c.png"]
    done = run_cli("radius", network, inputs, "--labels", "labels.csv", "--clip", "0", "1", *files)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines[0] == list(FIELDS) and [line[0] for line in lines[1:]] == ["0", "1", "2"]
    rows = table(tmp_path / "t.csv")
    assert [float(r["upper_bound"]) for r in rows] == pytest.approx([0.5, 0.0, 0.3], rel=1e-2)
    assert [r["reason"] for r in rows] == ["PROVED", "COUNTEREXAMPLE", "PROVED"]
    told = strictly(tmp_path / "t.json")
    assert [r["lower_bound"] for r in told["radii"]] == [float(r["lower_bound"]) for r in rows]
    assert told["curve"][0] == {"radius": 0.0, "verified": pytest.approx(2 / 3), "not_falsified": pytest.approx(2 / 3)}
    points = table(tmp_path / "c.csv")
    assert len(points) == len(told["curve"]) == 5 and points[-1]["not_falsified"] == "0.0"
    assert (tmp_path / "c.png").stat().st_size > 1000
    assert "3 of 3 inputs: 3 within the gap or misclassified (1)" in done.stderr


def test_the_networks_own_answers_csv_targets_and_masks(run_main: Run, network: Path, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a,b\n" + "\n".join(",".join(map(str, x)) for x in INPUTS.tolist()) + "\n")
    done = run_main("radius", network, "x.csv", "--clip", "0", "1", "-q")
    assert [line.split()[1] for line in done.stdout.splitlines()[1:]] == ["0", "1", "0"] and done.stderr == ""
    (tmp_path / "one.csv").write_text("0.25,0.5\n")
    (tmp_path / "mask.csv").write_text("0,1\n")
    done = run_main("radius", network, "one.csv", "--clip", "0", "1", "--features", "mask.csv", "--target", "1")
    assert done.stdout.splitlines()[1].split()[2:4] == ["inf", "inf"]


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_other_norms(run_main: Run, network: Path, inputs: Path, tmp_path: Path, norm: str) -> None:
    done = run_main("radius", network, inputs, "--norm", norm, "--clip", "0", "1", "--json", "t.json", "--labels", labels_of(tmp_path))
    assert done.returncode == 0, done.stderr
    told = strictly(tmp_path / "t.json")["radii"]
    assert [r["norm"] for r in told] == [norm] * 3
    assert [r["upper_bound"] for r in told] == pytest.approx([0.5, 0.0, 0.3], rel=1e-2)  # one feature changes alone


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        ("0.5\n", [], "1 inputs"),
        ("0.5,nan\n", [], "entry 1 is no finite number"),
        ("0.5,0.5\n0.5\n", [], "line 2"),
        ("0.5,0.5\n0.5,a\n", [], "'a' is no number"),
        ("", [], "no numbers"),
        ("0.5,0.5\n", ["--labels", "l.csv"], "no label 7"),
        ("0.5,0.5\n", ["--labels", "half.csv"], "not a whole number"),
        ("0.5,0.5\n", ["--target", "2"], "no label 2"),
        ("0.5,0.5\n", ["--norm", "l3"], "l3"),
        ("0.5,0.5\n", ["--gap", "0"], "gap"),
        ("0.5,1.5\n", ["--clip", "0", "1"], "outside clip"),
        ("0.5,0.5\n", ["--plot", "c.txt"], "must end in .png"),
        ("0.5,0.5\n", ["--csv", "missing/t.csv"], "cannot write"),
        ("0.5,0.5\n", ["--features", "l.csv,"], "l.csv,"),
    ],
)
def test_bad_input_is_one_line(run_main: Run, network: Path, tmp_path: Path, content: str, options: list[str], words: str) -> None:
    (tmp_path / "x.csv").write_text(content)
    (tmp_path / "l.csv").write_text("7\n")
    (tmp_path / "half.csv").write_text("0.5\n")
    refused(run_main("radius", network, "x.csv", *options), words)


def test_files_of_another_kind(run_main: Run, network: Path, tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(b"no array")
    refused(run_main("radius", network, "x.npy"), "cannot read x.npy")
    (tmp_path / "x.txt").write_text("0.5,0.5\n")
    refused(run_main("radius", network, "x.txt"), ".npy or .csv")


def test_interrupted_runs_keep_their_rows(tmp_path: Path, environment: dict[str, str]) -> None:
    """The input under way ends with its bounds, no other is begun, and the files are written."""
    net = write_relu_network(tmp_path / "wide.onnx", wide())
    np.save(tmp_path / "x.npy", np.full((4, 24), 0.5))
    command = [sys.executable, "-m", "milpverify", "radius", str(net), "x.npy", "--clip", "0", "1", "--gap", "1e-5", "--csv", "t.csv"]
    run = subprocess.Popen([*command, "--json", "t.json"], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    began = time.monotonic()
    while not (tmp_path / "t.csv").exists() and time.monotonic() - began < 60:
        time.sleep(0.1)
    time.sleep(3.0)
    os.kill(run.pid, signal.SIGINT)
    out, err = run.communicate(timeout=30)
    assert run.returncode == 0, err
    assert len(out.splitlines()) == 2 and len((tmp_path / "t.csv").read_text().splitlines()) == 2
    (found,) = strictly(tmp_path / "t.json")["radii"]
    assert found["reason"] == "INTERRUPTED" and found["lower_bound"] < found["upper_bound"]


def wide() -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    sizes = [24, 64, 64, 64, 3]
    return [(1.2 * rng.normal(0, (2 / m) ** 0.5, (n, m)), rng.normal(0, 0.3, n)) for m, n in pairwise(sizes)]


def radius(lower: float, upper: float) -> mv.Radius:
    return mv.Radius(lower, upper, None, mv.Trust.ROUNDED, mv.Reason.PROVED, 0.0, 0)


def test_the_curve_encloses_the_verified_fraction() -> None:
    found = [radius(0.0, 0.0), radius(0.1, 0.2), radius(0.3, 0.3), radius(0.0, 0.5), radius(np.inf, np.inf)]
    told = {p.radius: (p.verified, p.not_falsified) for p in curve(found)}
    assert told == {0.0: (0.6, 0.8), 0.1: (0.6, 0.8), 0.2: (0.4, 0.6), 0.3: (0.4, 0.4), 0.5: (0.2, 0.2)}
    assert curve([]) == []
