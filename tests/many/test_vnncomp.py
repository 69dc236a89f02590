"""The scripts of the competition, called as it calls them."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from networks import absolute_value, hard_pair
from support import ROOT

SCRIPTS = ROOT / "examples" / "vnncomp"


@pytest.fixture
def tool(tmp_path: Path, environment: dict[str, str]) -> dict[str, str]:
    """An environment in which the scripts run this checkout."""
    program = tmp_path / "milpverify"
    program.write_text(f'#!/bin/sh\n"{sys.executable}" -m milpverify "$@"\n')
    program.chmod(0o755)
    return {**environment, "MILPVERIFY": str(program)}


def call(name: str, tool: dict[str, str], *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([SCRIPTS / name, *map(str, arguments)], env=tool, capture_output=True, text=True, timeout=60, check=False)


def test_an_instance_is_prepared_and_run(tmp_path: Path, tool: dict[str, str]) -> None:
    network, results = absolute_value(tmp_path / "net.onnx"), tmp_path / "results.txt"
    spec = tmp_path / "spec.vnnlib"
    lines = ["(declare-const X_0 Real)", "(declare-const X_1 Real)", "(declare-const Y_0 Real)"]
    spec.write_text("\n".join([*lines, *(f"(assert (and (>= X_{i} -1) (<= X_{i} 1)))" for i in range(2)), "(assert (>= Y_0 1.5))"]))
    assert call("prepare_instance.sh", tool, "v1", "test", network, spec).returncode == 0
    assert call("run_instance.sh", tool, "v1", "test", network, spec, results, "20").returncode == 0
    first, *point = results.read_text().splitlines()
    assert first == "sat" and point[0].startswith("((X_0 ")
    assert call("run_instance.sh", tool, "v1", "test", network, tmp_path / "none", results, "20").returncode == 0
    assert results.read_text() == "error\n"


def test_the_limit_is_kept(tmp_path: Path, tool: dict[str, str]) -> None:
    began = time.monotonic()
    assert call("run_instance.sh", tool, "v1", "test", *hard_pair(tmp_path), tmp_path / "results.txt", "3").returncode == 0
    assert (tmp_path / "results.txt").read_text() == "timeout\n"
    assert time.monotonic() - began < 20  # it does end; how soon is measured elsewhere


def test_other_versions_are_refused(tool: dict[str, str]) -> None:
    for name in ("install_tool.sh", "prepare_instance.sh", "run_instance.sh"):
        done = call(name, tool, "v2")
        assert done.returncode != 0 and "v1" in done.stderr
