"""Standard error holds our lines only: no numbers beyond float32 or float64 make numpy warn (under test a warning is an error)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from networks import absolute_value, write_property, write_relu_network
from support import Run

import milpverify as mv


@pytest.mark.parametrize("ends", [(-1e38, 1e39), (1e39, 1e40), (-1e300, 1e300), (-1.7e308, 1.7e308), (1e308, 1.7e308)])
def test_boxes_beyond_the_numbers_of_the_network(tmp_path: Path, ends: tuple[float, float]) -> None:
    network = absolute_value(tmp_path / "net.onnx")
    low, high = ends
    for unsafe in ("(>= Y_0 1.5)", "(<= Y_0 -0.5)"):
        spec = write_property(tmp_path / "p.vnnlib", [low] * 2, [high] * 2, unsafe)
        try:
            assert mv.verify(mv.load(network, spec), 1).verdict is not (mv.Verdict.FALSIFIED if "<=" in unsafe else mv.Verdict.VERIFIED)
        except mv.InvalidModel as refusal:  # it overflows everywhere
            assert "overflows" in str(refusal)


@pytest.mark.parametrize("size", [1.0, 1e30])
@pytest.mark.parametrize("unsafe", ["(>= Y_0 1.5)", "(and (>= Y_0 1e-3) (>= X_0 (* 0.5 X_1)))"])
def test_leaves_beyond_the_numbers_of_the_solver(tmp_path: Path, size: float, unsafe: str) -> None:
    """Many inputs, so that neurons are split, and ranges up to the largest float64: leaves stay open."""
    rng, n = np.random.default_rng(0), 70
    layers = [
        (size * rng.normal(0, 1, (3, n)), rng.normal(0, 1, 3)),
        (size * rng.normal(0, 1, (2, 3)), np.zeros(2)),
        (np.ones((1, 2)), np.zeros(1)),
    ]
    network = write_relu_network(tmp_path / "net.onnx", layers)
    for end in (1e300, 1.7e308):
        spec = write_property(tmp_path / "p.vnnlib", [-end] * n, [end] * n, unsafe)
        result = mv.verify(mv.load(network, spec), 2, "bab", options=mv.Options(attack=False))
        assert result.verdict is not mv.Verdict.VERIFIED


def test_a_quiet_run_writes_no_line(run_cli: Run, tmp_path: Path) -> None:
    network = absolute_value(tmp_path / "net.onnx")
    spec = write_property(tmp_path / "p.vnnlib", [-1e38] * 2, [1e39] * 2, "(>= Y_0 1.5)")
    done = run_cli("verify", network, spec, "--quiet", "--timeout", "20")
    assert (done.returncode, done.stderr) == (0, "")
