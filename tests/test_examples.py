"""The examples run as they are written, and say what they are meant to say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from support import ROOT, Run

EXAMPLES = ROOT / "examples"
NUMBERED = sorted(path.name for path in EXAMPLES.glob("[0-9]*"))


@pytest.fixture
def commands(tmp_path: Path, environment: dict[str, str]) -> dict[str, str]:
    """An environment in which `python` and `milpverify` are this Python and this checkout."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, command in (("python", sys.executable), ("milpverify", f"{sys.executable} -m milpverify")):
        script = folder / name
        script.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        script.chmod(0o755)
    return {**environment, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


def run_example(name: str, folder: Path, env: dict[str, str], *args: str) -> str:
    command = ["sh" if name.endswith(".sh") else sys.executable, str(EXAMPLES / name), *args]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=env, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_numbered_example_is_tested() -> None:
    names = ["01_digits_robustness.py", "02_command_line.sh", "03_own_nonlinearity.py", "04_torch_module.py", "05_exact_optimum.py"]
    later = ["06_power_network.py", "07_comparison.py", "08_robustness_radii.py", "09_surrogate.py", "10_predictive_control.py"]
    last = ["11_secure_dispatch.py", "12_learned_dispatch.py", "13_causal_transformer.py"]
    assert names + later + last == NUMBERED


def test_digits_robustness(tmp_path: Path, commands: dict[str, str]) -> None:
    lines = run_example("01_digits_robustness.py", tmp_path, commands).splitlines()
    assert len(lines) == 9
    assert sum("eps 0.05: VERIFIED" in line for line in lines) == 3
    assert sum("eps 0.1 : " in line and "UNKNOWN" not in line for line in lines) == 3
    assert sum("eps 0.2 : FALSIFIED" in line and "seen as" in line for line in lines) == 3


def test_command_line(tmp_path: Path, commands: dict[str, str]) -> None:
    out = run_example("02_command_line.sh", tmp_path, commands, str(tmp_path / "made"))
    assert "Gemm" in out
    assert out.splitlines()[-4:-2] == ["unsat", "sat"]
    assert out.splitlines()[-2].startswith("((X_0 ")
    assert (tmp_path / "made" / "robust.json").is_file()


def test_own_nonlinearity(tmp_path: Path, commands: dict[str, str]) -> None:
    """The file beside the script is all that is known of the function; it is in no catalogue of ours."""
    assert not (ROOT / "encodings" / "bump.toml").exists()
    out = run_example("03_own_nonlinearity.py", tmp_path, commands)
    widths = [float(width) for width in re.findall(r"within (\S+) on average", out)]
    assert widths == sorted(widths, reverse=True)
    assert len(set(widths)) == 3
    assert int(re.findall(r"(\d+)% of 297", out)[0]) >= 80
    verdicts = re.findall(r"eps (\S+) *: (\w+), .*, (\d+) subproblems", out)
    assert [(eps, verdict) for eps, verdict, _ in verdicts] == [("0.02", "VERIFIED"), ("0.06", "VERIFIED"), ("0.2", "FALSIFIED")]
    assert int(verdicts[1][2]) > int(verdicts[0][2])  # the root alone does not prove it


def test_torch_module(tmp_path: Path, commands: dict[str, str]) -> None:
    lines = run_example("04_torch_module.py", tmp_path, commands).splitlines()
    assert len(lines) == 9
    assert sum("eps 0.01: VERIFIED" in line for line in lines) == 3
    assert sum("eps 0.04: VERIFIED" in line for line in lines) == 3
    wrong = [re.fullmatch(r".*label (\d), eps 0.3 : FALSIFIED, .*, the network reads (\d)", line) for line in lines[2::3]]
    assert all(match is not None and match[1] != match[2] for match in wrong)


def test_exact_optimum(tmp_path: Path, commands: dict[str, str]) -> None:
    """Solver and own search agree, and no point of the grid is below what they prove."""
    grid, *lines = run_example("05_exact_optimum.py", tmp_path, commands).splitlines()
    least = float(grid.split()[-1])
    ends = [re.fullmatch(r"(\w+) *: PROVED, minimum in \[(\S+), (\S+)\], trust (\w+), .*", line) for line in lines]
    assert [(match[1], match[4]) for match in ends if match is not None] == [("milp", "solver"), ("bab", "rounded")]
    lows, highs = ([float(match[part]) for match in ends if match is not None] for part in (2, 3))
    assert max(lows) <= min(highs) and max(highs) - min(lows) <= 2e-3 and max(lows) <= least + 1e-5


def test_power_network(tmp_path: Path, commands: dict[str, str]) -> None:
    """Case 9 costs 5296.69 $/h, by pypower's optimal power flow as well."""
    out = run_example("06_power_network.py", tmp_path, commands, str(tmp_path))
    assert out.startswith("FEASIBLE: case9, ")
    assert float(re.findall(r"\nINFEASIBLE: case9 at loads x 3, every point violates something by at least (\S+) p.u.", out)[0]) >= 2e-6
    assert "an exact operating point, within all limits, was proved" in out and "rechecked without a solver: every point violates" in out
    assert "the upper bound is proved" in out
    (low, high), (lower, upper) = (tuple(map(float, pair)) for pair in re.findall(r"between (\S+) and ([\d.]+)", out))
    assert 1 < low <= high < 3 and high - low <= 1e-3 * high + 1e-5
    assert lower <= 5296.687 <= upper + 0.002 and upper - lower <= 1e-4 * upper + 0.002
    for name in ("most", "most_margins", "cheapest", "cheapest_margins"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_comparison(tmp_path: Path, commands: dict[str, str]) -> None:
    out = run_example("07_comparison.py", tmp_path, commands, str(tmp_path))
    bounds = [float(re.findall(rf" {name} +(\S+) ", out)[0]) for name in ("ibp", "crown", "alpha-crown", "lp", "exact")]
    assert bounds == sorted(bounds) and "out of order" not in out
    (crown, _), (auto, falsified) = (tuple(map(int, pair)) for pair in re.findall(r"(\d+) of 9 verified, (\d+) falsified", out))
    assert crown <= auto and auto + falsified == 9
    for name in ("bounds", "cactus", "radius"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_robustness_radii(tmp_path: Path, commands: dict[str, str]) -> None:
    """Balls of one radius contain each other, so that radii grow from linf to l1; the nearest misread images are drawn."""
    out = run_example("08_robustness_radii.py", tmp_path, commands, str(tmp_path))
    found = re.findall(r"image (\d+), label (\d), (\w+) *: radius within \[(\S+), (\S+)\], where output (\d)", out)
    assert [norm for _, _, norm, *_ in found] == ["linf", "l2", "l1"] * 3
    for _, label, _, low, high, other in found:
        assert 0 < float(low) <= float(high) and label != other
    for largest, euclidean, total in (found[k : k + 3] for k in (0, 3, 6)):
        assert float(largest[3]) <= float(euclidean[4]) and float(euclidean[3]) <= float(total[4])
    assert (tmp_path / "nearest.png").read_bytes().startswith(b"\x89PNG")


def test_surrogate(tmp_path: Path, commands: dict[str, str]) -> None:
    """The optimum meets the yield in the network itself, and no setting tried at random is cheaper."""
    best, answer, error, random = run_example("09_surrogate.py", tmp_path, commands).splitlines()
    cost, cheapest = (float(re.findall(r"cost ([\d.]+)", line)[0]) for line in (best, random))
    assert cost <= cheapest
    inside, network = map(float, re.findall(r"([\d.]+) (?:in the model|by the network)", answer))
    assert inside >= 0.8 - 1e-6 and network == pytest.approx(inside, abs=2e-6)
    assert float(re.findall(r"largest error (\S+) of", error)[0]) <= 1e-6


def test_predictive_control(tmp_path: Path, commands: dict[str, str]) -> None:
    """The pendulum comes to rest upright, by plans that are exact."""
    *plans, end = [
        line for line in run_example("10_predictive_control.py", tmp_path, commands).splitlines() if "rest" in line or " s: " in line
    ]
    assert len(plans) == 10 and all(float(line.split()[-1]) <= 1e-6 for line in plans)
    assert float(end.split()[3]) < 0.1


def test_secure_dispatch(tmp_path: Path, commands: dict[str, str]) -> None:
    out = run_example("11_secure_dispatch.py", tmp_path, commands, str(tmp_path))
    assert out.startswith("HOLDS: case14 ") and "branch 7-8 (row 14)    ISLANDED" in out and "0 UNKNOWN, 1 ISLANDED" in out
    for certified, attacked in re.findall(r"(?:HOLDS|BROKEN) +(-?[\d.]+) +(-?[\d.]+) ", out):
        assert float(certified) <= float(attacked)
    assert "proved in outward rounding, followed from the base case by proof, reproduced by pypower" in out
    assert len((tmp_path / "outages.csv").read_text().splitlines()) == 21
    for name in ("dispatch_margins", "outage"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_learned_dispatch(tmp_path: Path, commands: dict[str, str]) -> None:
    """Few lessons will do: what is predicted is within limits whatever was learned, and what follows from it is not."""
    lines = run_example("12_learned_dispatch.py", tmp_path, commands, str(tmp_path), "6").splitlines()
    answers = [line for line in lines if not line.startswith(" ")]
    assert [line.split()[0] for line in answers] == ["predicted", "after_power_flow"] * 2
    assert all(line.split()[1] == "HOLDS:" for line in answers[::2]) and answers[3].split()[1] == "BROKEN:"
    for certified, found in re.findall(r"certified (\S+), found (\S+)", "\n".join(lines)):
        assert float(certified) <= float(found) + 1e-9
    assert "reproduced by pypower" in lines[-1] and (tmp_path / "proxy_5.png").read_bytes().startswith(b"\x89PNG")


def test_causal_transformer(tmp_path: Path, commands: dict[str, str]) -> None:
    """The torch module and its ONNX file get the same verdicts: proofs where attacks fail, counterexamples where they succeed."""
    accuracy, *lines = run_example("13_causal_transformer.py", tmp_path, commands).splitlines()
    assert int(accuracy.split("%")[0]) >= 80 and len(lines) == 12
    verdicts = [re.findall(r"eps (\S+) *, \w+ *: (\w+), margin >= (\S+?)(?:,|$)", line)[0] for line in lines]
    for (eps, verdict, bound), (_, other, other_bound) in zip(verdicts[::2], verdicts[1::2], strict=True):
        assert verdict == other == ("FALSIFIED" if eps == "0.2" else "VERIFIED")
        assert verdict == "FALSIFIED" or float(bound) == pytest.approx(float(other_bound), rel=1e-2)


@pytest.mark.parametrize(("name", "verdict"), [("robust", "unsat"), ("fragile", "sat")])
def test_the_committed_pairs(run_cli: Run, name: str, verdict: str) -> None:
    done = run_cli("verify", EXAMPLES / "digits.onnx", EXAMPLES / f"{name}.vnnlib", "--timeout", "60")
    assert (done.returncode, done.stdout.split()[0]) == (0, verdict), done.stderr


def test_the_committed_pairs_are_what_the_script_makes(tmp_path: Path, environment: dict[str, str]) -> None:
    """Properties to the letter; weights in structure only, as training depends on the machine's arithmetic."""
    run_example("make_digits.py", tmp_path, environment, str(tmp_path))
    for name in ("robust.vnnlib", "fragile.vnnlib"):
        assert (tmp_path / name).read_text() == (EXAMPLES / name).read_text()
    made, kept = (onnx.load(folder / "digits.onnx") for folder in (tmp_path, EXAMPLES))
    assert [(n.op_type, list(n.input), list(n.output)) for n in made.graph.node] == [
        (n.op_type, list(n.input), list(n.output)) for n in kept.graph.node
    ]


def test_the_readme_code_runs(tmp_path: Path, environment: dict[str, str]) -> None:
    """The Python of the README, block after block, with a box for its `lower` and `upper`."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 12
    box = "lower, upper = problem.disjuncts[0].box.lower, problem.disjuncts[0].box.upper"
    check = (
        "assert (bounds.output.lower <= bounds.output.upper).all()\n"
        "assert bounds.output.lower[0, 4] <= best.lower_bound <= best.upper_bound <= bounds.output.upper[0, 4] + 0.01\n"
    )
    code = "\n".join([blocks[0], box, *blocks[1:3], check, *blocks[3:]]).replace('"examples/', f'"{EXAMPLES}/')
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=180, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("VERIFIED")
    assert "UNKNOWN" not in done.stdout
    assert all(
        (tmp_path / name).is_file()
        for name in ("r.json", "network.png", "margins.png", "proof.json", "rows.csv", "bounds.png", "dispatch.png")
    )
    assert "True every point violates something by more than" in done.stdout


def test_the_readme_table_is_what_the_command_prints(run_cli: Run) -> None:
    done = run_cli("functions")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") >= 2 + len(list((ROOT / "encodings").glob("*.toml")))
    assert done.stdout in (ROOT / "README.md").read_text(), (
        "the README's table of functions is out of date: `milpverify functions` prints it"
    )
