"""`milpverify acopf dispatch` and `proxy`: a first line in a stable form, tables, files, bad input as one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from power_cases import TWO
from support import Run
from torch import nn

pytest.importorskip("pypower.api")

RING = """function mpc = ring
mpc.version = '2';
mpc.baseMVA = 100;
mpc.bus = [
    1 3  0  0 0 0 1 1.0 0 230 1 1.1 0.9;
    2 1 50 10 0 0 1 1.0 0 230 1 1.1 0.9;
    3 2 20  5 0 0 1 1.0 0 230 1 1.1 0.9;
    4 1  5  1 0 0 1 1.0 0 230 1 1.1 0.9;
];
mpc.gen = [1 0 0 100 -100 1.0 100 1 200 0 0 0 0 0 0 0 0 0 0 0 0;
           3 0 0 100 -100 1.0 100 1 200 0 0 0 0 0 0 0 0 0 0 0 0];
mpc.branch = [1 2 0.01 0.1 0.02 100 0 0 0 0 1 -30 30;
              2 3 0.01 0.1 0.02 45 0 0 0 0 1 -30 30;
              3 1 0.01 0.1 0.02 100 0 0 0 0 1 -30 30;
              3 4 0.01 0.1 0.02 100 0 0 0 0 1 -30 30];
mpc.gencost = [2 0 0 3 0.01 20 5; 2 0 0 3 0.01 20 5];
"""


@pytest.fixture
def ring(tmp_path: Path) -> tuple[Path, Path]:
    """A case and a point of it."""
    case, point = tmp_path / "ring.m", tmp_path / "point.json"
    case.write_text(RING)
    point.write_text(json.dumps({"vm": [1.0] * 4, "va": [0.0] * 4, "pg": [0.5, 0.3], "qg": [0, 0]}))
    return case, point


def test_a_dispatch(run_main: Run, ring: tuple[Path, Path], tmp_path: Path) -> None:
    done = run_main("acopf", "dispatch", *ring, "--load-box", "0.05", "--json", "r.json", "--plot", "m.png", "--samples", "50")
    assert done.returncode == 0, done.stderr
    word, certified, attacked = done.stdout.split()
    assert word == "holds" and 0 < float(certified) <= float(attacked)
    assert "HOLDS: ring at loads x 1 within 5 %" in done.stderr and "certified" in done.stderr
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["verdict"] == "holds" and len(found["margins"]) == 4 + 1 + 1 + 2 + 4 + 8
    assert (tmp_path / "m.png").read_bytes().startswith(b"\x89PNG")
    broken = run_main("acopf", "dispatch", *ring, "--load-box", "0.9", "--samples", "50", "-q")
    assert broken.returncode == 0 and broken.stdout.startswith("broken -") and broken.stderr == ""


def test_outages(run_main: Run, ring: tuple[Path, Path], tmp_path: Path) -> None:
    for outages in ("3-4", "all"):  # the second run goes on from the first
        options = ("--load-box", "0.02", "--outages", outages, "--record", "rows.csv", "--samples", "20", "--json", "r.json")
        done = run_main("acopf", "dispatch", *ring, *options, "-q")
        assert done.returncode == 0, done.stderr
    first, head, *rows = done.stdout.splitlines()
    word, *counts = first.split()
    assert word in ("broken", "unknown") and sum(map(int, counts)) == 4 == len(rows) and counts[3] == "1"
    assert head.split()[0] == "outage" and "ISLANDED" in rows[3] and "cut off: bus 4" in rows[3]
    assert len((tmp_path / "rows.csv").read_text().splitlines()) == 5
    assert json.loads((tmp_path / "r.json").read_text())["outages"][3]["verdict"] == "islanded"


class Half(nn.Module):
    """pg of two units, and magnitudes, from six loads; in units of 0.5 p.u."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(6, 4)
        with torch.no_grad():
            self.out.weight.zero_()
            self.out.weight[:2, :3] = 0.8
            self.out.bias.copy_(torch.tensor([0.0, 0.0, 2.0, 2.0]))

    def forward(self, loads: torch.Tensor) -> torch.Tensor:
        return self.out(loads)


@pytest.mark.parametrize("limits", ["predicted", "after_power_flow"])
def test_a_proxy(run_main: Run, ring: tuple[Path, Path], tmp_path: Path, limits: str) -> None:
    pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper, save

    weight, bias = (part.detach().numpy() for part in Half().out.parameters())
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1)]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, size]) for name, size in (("x", 6), ("y", 4))]
    weights = [numpy_helper.from_array(np.ascontiguousarray(part), name) for part, name in ((weight, "w"), (bias, "b"))]
    model = helper.make_model(helper.make_graph(nodes, "proxy", ends[:1], ends[1:], weights), opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    save(model, tmp_path / "proxy.onnx")
    (tmp_path / "mapping.json").write_text(json.dumps({"outputs": {"pg": {"at": "0:2", "scale": 0.5}, "vm": {"at": [2, 3], "scale": 0.5}}}))
    options = ("--limits", limits, "--load-box", "0.05", "--mapping", "mapping.json", "--samples", "20")
    done = run_main("acopf", "proxy", ring[0], "proxy.onnx", *options)
    assert done.returncode == 0, done.stderr
    word, certified, attacked = done.stdout.split()
    assert word == "holds" and float(certified) <= float(attacked)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("--outages", "1-x"), "outages"),
        (("--outages", "9"), "no branch 9"),
        (("--record", "r.csv"), "--record"),
        (("--plot", "m.bmp"), "m.bmp"),
    ],
)
def test_bad_input(run_main: Run, ring: tuple[Path, Path], options: tuple[str, ...], word: str) -> None:
    done = run_main("acopf", "dispatch", *ring, *options)
    assert done.returncode == 2 and word in done.stderr and done.stdout == ""


def test_a_point_of_another_case(run_main: Run, ring: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "two.m").write_text(TWO)
    done = run_main("acopf", "dispatch", tmp_path / "two.m", ring[1])
    assert done.returncode == 2 and "point" in done.stderr
