"""The command line as a user meets it: verdicts, bad input, time limits, and Ctrl-C; most of it through real processes."""

from __future__ import annotations

import gzip
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from networks import absolute_value, hard_pair, write_graph, write_property, write_relu_network
from onnx import TensorProto, helper
from processes import alive, all_gone, descendants
from support import ROOT, Run, refused

BOX = ([-1.0, -1.0], [1.0, 1.0])


@pytest.fixture
def network(tmp_path: Path) -> Path:
    return absolute_value(tmp_path / "net.onnx")


# ------------------------------------------------------------------------------------------------------------ verdicts


def test_help_loads_nothing_heavy(run_cli: Run) -> None:
    done = run_cli("--help")
    assert done.returncode == 0
    assert {"verify", "info", "solvers"} <= set(done.stdout.split())
    text = (
        "import sys\nfrom milpverify.cli import main\nsys.argv[1:] = ['--help']\ntry: main()\nfinally: print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    loaded = done.stderr.split()
    assert "milpverify.cli" in loaded
    assert not {"torch", "numpy", "onnx", "onnxruntime", "z3", "pyscipopt", "gurobipy", "highspy", "rich.progress"} & set(loaded)


@pytest.mark.parametrize("status", [0, 3])
def test_the_process_ends_at_once_and_loses_nothing(status: int) -> None:
    source = f"""
import atexit, sys
import milpverify.cli as cli
from milpverify.__main__ import program
class Torn:
    def __del__(self): print("taken apart")
kept = Torn()
def main():
    atexit.register(print, "ended")
    print("unsat")
    sys.exit({status})
cli.main = main
program()
"""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (status, "unsat\nended\n", "")


def test_version(run_cli: Run) -> None:
    assert re.fullmatch(r"milpverify \d+\.\d+\.\d+\n", run_cli("--version").stdout)


def test_a_property_that_holds(run_cli: Run, network: Path, tmp_path: Path) -> None:
    done = run_cli("verify", network, write_property(tmp_path / "p.vnnlib", *BOX, "(<= Y_0 -0.5)"))
    assert (done.returncode, done.stdout) == (0, "unsat\n")
    assert "VERIFIED" in done.stderr


def test_a_counterexample_is_printed_and_holds(run_cli: Run, network: Path, tmp_path: Path) -> None:
    done = run_cli("verify", network, write_property(tmp_path / "p.vnnlib", *BOX, "(>= Y_0 1.5)"), "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    verdict, text = done.stdout.split("\n", 1)
    assert verdict == "sat"
    entries = re.findall(r"\((\w+) (\S+?)\)", text)
    assert re.fullmatch(r"\((\(\w+ [-+.\deE]+\)\s+){2}\(\w+ [-+.\deE]+\)\)\s*", text), text
    assert [name for name, _ in entries] == ["X_0", "X_1", "Y_0"]
    *x, y = (float(value) for _, value in entries)
    session = onnxruntime.InferenceSession(network, providers=["CPUExecutionProvider"])
    run = session.run(None, {"x": np.array([x], dtype=np.float32)})[0].item()
    assert run >= 1.5
    assert y == pytest.approx(run)
    assert max(map(abs, x)) <= 1.0


def test_the_verdict_follows_the_threshold(run_cli: Run, network: Path, tmp_path: Path) -> None:
    """|x_0| + |x_1| reaches 2 and no more; both sides of it, gzipped files included."""
    zipped = tmp_path / "net.onnx.gz"
    zipped.write_bytes(gzip.compress(network.read_bytes()))
    for threshold, expected in ((1.99, "sat"), (2.01, "unsat")):
        spec = write_property(tmp_path / "p.vnnlib", *BOX, f"(>= Y_0 {threshold})")
        spec_gz = tmp_path / "p.vnnlib.gz"
        spec_gz.write_bytes(gzip.compress(spec.read_bytes()))
        assert run_cli("verify", zipped, spec_gz).stdout.split()[0] == expected


def test_json(run_cli: Run, network: Path, tmp_path: Path) -> None:
    spec = write_property(tmp_path / "p.vnnlib", *BOX, "(>= Y_0 1.5)")
    done = run_cli("verify", network, spec, "--json", "r.json", "--seed", "7", "--no-attack", "--encoding", "native", "--timeout", "30")
    assert done.stdout.split()[0] == "sat"
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["verdict"] == "sat"
    assert found["reason"] == "COUNTEREXAMPLE"
    assert len(found["counterexample"]["x"]) == 2
    assert found["counterexample"]["margin_runtime"] <= 0 >= found["counterexample"]["margin_real"]
    assert found["options"]["seed"] == 7
    assert found["options"]["attack"] is False
    assert found["options"]["encoding"] == "native"
    assert {len(digest) for digest in found["files"].values()} == {64}
    assert {"milpverify", "torch"} <= set(found["versions"])
    assert set(found) == documented_fields()
    assert not list(tmp_path.glob(".r.json*"))


def documented_fields() -> set[str]:
    """The fields that the README's table of the JSON result names."""
    section = (ROOT / "README.md").read_text().split("## The JSON result", 1)[1].split("\n## ", 1)[0]
    return set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE))


def test_a_time_limit_is_called_timeout(run_cli: Run, tmp_path: Path) -> None:
    done = run_cli("verify", *hard_pair(tmp_path), "--timeout", "3", "--json", "r.json")
    assert (done.returncode, done.stdout) == (0, "timeout\n")
    assert json.loads((tmp_path / "r.json").read_text())["reason"] == "TIMEOUT"


def test_parts_turned_off_are_named_in_the_json(run_cli: Run, network: Path, tmp_path: Path) -> None:
    spec = write_property(tmp_path / "p.vnnlib", *BOX, "(>= Y_0 2.01)")
    done = run_cli("verify", network, spec, "--without", "oracle", "--without", "no_goods", "--json", "r.json", "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "unsat\n", "")
    parts = json.loads((tmp_path / "r.json").read_text())["options"]["search"]
    assert [name for name, on in parts.items() if on is False] == ["oracle", "no_goods", "filtering_smooth", "deterministic"]


def test_a_deterministic_run_repeats(run_cli: Run, tmp_path: Path) -> None:
    """Two runs with a time limit that neither reaches write the same JSON apart from times."""
    rng, sizes, found = np.random.default_rng(5), [12, 16, 16, 1], []
    layers = [(rng.normal(0, (2 / n) ** 0.5, (m, n)), rng.normal(0, 0.3, m)) for n, m in pairwise(sizes)]
    y = rng.uniform(-1, 1, (20_000, sizes[0]))
    for w, b in layers[:-1]:
        y = np.maximum(y @ w.T + b, 0)
    least = float((y @ layers[-1][0].T + layers[-1][1]).min())
    network = write_relu_network(tmp_path / "net.onnx", layers)
    spec = write_property(tmp_path / "p.vnnlib", [-1.0] * 12, [1.0] * 12, f"(<= Y_0 {least - 0.7!r})")
    for k in range(2):
        done = run_cli("verify", network, spec, "--deterministic", "--timeout", "50", "--json", f"{k}.json")
        assert (done.returncode, done.stdout) == (0, "unsat\n"), done.stderr
        text = (tmp_path / f"{k}.json").read_text()
        found.append(re.sub(r'"seconds": [-+.\de]+', "", text))
    assert found[0] == found[1]
    assert json.loads(text)["phases"][-1]["subproblems"] > 50


# -------------------------------------------------------------------------------------------------------- info, solvers


def test_info(run_cli: Run, network: Path) -> None:
    done = run_cli("info", network)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert ["Gemm", "2", "yes"] in rows
    assert ["Relu", "1", "yes"] in rows
    assert any({"x", "input"} <= set(row) for row in rows)
    assert any({"y", "output"} <= set(row) for row in rows)
    assert any(row[:2] == ["relu", "4"] for row in rows)


def test_info_lists_every_unsupported_operator(run_cli: Run, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Frobnicate", ["x"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Defenestrate", ["b"], ["y"], name="second"),
    ]
    done = run_cli("info", write_graph(tmp_path / "odd.onnx", nodes, 2, 2))
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert ["Frobnicate", "1", "no"] in rows
    assert ["Defenestrate", "1", "no"] in rows
    assert ["Relu", "1", "yes"] in rows


def test_solvers(run_cli: Run) -> None:
    done = run_cli("solvers")
    assert done.returncode == 0, done.stderr
    names = [line.split()[0] for line in done.stdout.splitlines()]
    assert {"scip", "highs", "gurobi", "z3"} <= set(names)


# ------------------------------------------------------------------------------------------------------------ bad input


def good_property(folder: Path) -> Path:
    return write_property(folder / "good.vnnlib", *BOX, "(>= Y_0 1.5)")


def test_truncated_onnx(run_cli: Run, network: Path, tmp_path: Path) -> None:
    data = network.read_bytes()
    network.write_bytes(data[: len(data) * 2 // 3])
    refused(run_cli("verify", network, good_property(tmp_path)), "net.onnx")


def test_truncated_gzip(run_main: Run, network: Path, tmp_path: Path) -> None:
    zipped = tmp_path / "net.onnx.gz"
    zipped.write_bytes(gzip.compress(network.read_bytes())[:-20])
    refused(run_main("verify", zipped, good_property(tmp_path)), "net.onnx.gz")


@pytest.mark.parametrize("content", ["", "not a network\n" * 10])
def test_not_onnx_at_all(run_main: Run, tmp_path: Path, content: str) -> None:
    (tmp_path / "net.onnx").write_text(content)
    refused(run_main("verify", "net.onnx", good_property(tmp_path)), "net.onnx")


def test_unknown_operator(run_main: Run, tmp_path: Path) -> None:
    nodes = [helper.make_node("Frobnicate", ["x"], ["y"], name="the_odd_node")]
    network = write_graph(tmp_path / "odd.onnx", nodes, 2, 1)
    refused(run_main("verify", network, good_property(tmp_path)), "Frobnicate", "the_odd_node")


def test_wrong_input_count(run_main: Run, network: Path, tmp_path: Path) -> None:
    for count in (1, 3):
        spec = write_property(tmp_path / "p.vnnlib", [0.0] * count, [1.0] * count, "(>= Y_0 1.5)")
        refused(run_main("verify", network, spec), "p.vnnlib", "the network has 2")


@pytest.mark.parametrize("weight", [np.nan, np.inf])
def test_weights_that_are_no_numbers(run_main: Run, tmp_path: Path, weight: float) -> None:
    network = write_relu_network(tmp_path / "bad.onnx", [(np.array([[1.0, weight]]), np.zeros(1)), (np.ones((1, 1)), np.zeros(1))])
    refused(run_main("verify", network, good_property(tmp_path)), "w0")


def test_empty_box(run_main: Run, network: Path, tmp_path: Path) -> None:
    refused(run_main("verify", network, write_property(tmp_path / "p.vnnlib", [-1.0, 0.5], [1.0, 0.25], "(>= Y_0 1.5)")), "X_1", "empty")


@pytest.mark.parametrize("bad", ["(assert (<= Y_0 1.0)", "(assert (frob Y_0 1.0))"])
def test_malformed_property(run_main: Run, network: Path, tmp_path: Path, bad: str) -> None:
    spec = good_property(tmp_path)
    lines = spec.read_text().splitlines()
    spec.write_text("\n".join([*lines, bad]) + "\n")
    refused(run_main("verify", network, spec), "good.vnnlib", f"line {len(lines) + 1}")


def test_a_missing_output(run_main: Run, network: Path, tmp_path: Path) -> None:
    spec = write_property(tmp_path / "p.vnnlib", *BOX, "(>= Y_3 1.5)", ny=4)
    refused(run_main("verify", network, spec), "output")
    spec = write_property(tmp_path / "p.vnnlib", *BOX, "(>= Y_3 1.5)")
    refused(run_main("verify", network, spec), "Y_3")


def test_missing_files(run_main: Run, network: Path, tmp_path: Path) -> None:
    spec = good_property(tmp_path)
    refused(run_main("verify", "nowhere.onnx", spec), "nowhere.onnx")
    refused(run_main("verify", network, "nowhere.vnnlib"), "nowhere.vnnlib")
    refused(run_main("verify", tmp_path, spec), tmp_path.name)
    refused(run_main("info", "nowhere.onnx"), "nowhere.onnx")
    refused(run_main("verify", network, spec, "--json", "nowhere/r.json"), "nowhere/r.json")


@pytest.mark.parametrize(
    "arguments",
    ["", "verify", "frobnicate", "verify net.onnx", *(f"verify net.onnx good.vnnlib --{option}" for option in (
        "method guess", "solver guess", "encoding guess", "timeout -1", "timeout nan", "timeout soon", "delta nan", "frobnicate", "json",
        "without", "without guess", "without deterministic"))],
)  # fmt: skip
def test_bad_arguments(run_main: Run, network: Path, tmp_path: Path, arguments: str) -> None:
    good_property(tmp_path)
    refused(run_main(*arguments.split()))


def test_debug_shows_the_traceback(run_cli: Run, network: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.vnnlib").write_text("(")
    done = run_cli("verify", network, "bad.vnnlib", "--debug")
    assert done.returncode == 2
    assert "Traceback" in done.stderr


# --------------------------------------------------------------------------------------------------------------- Ctrl-C


@pytest.fixture
def solving(tmp_path: Path, environment: dict[str, str]) -> Iterator[tuple[subprocess.Popen[str], set[int]]]:
    """A run in the middle of a solve that would take minutes, and its solver processes."""
    if not Path("/proc/self/stat").exists():
        pytest.skip("needs /proc")
    network, spec = hard_pair(tmp_path)
    command = [sys.executable, "-m", "milpverify", "verify", str(network), str(spec), "--method", "milp", "--json", "r.json"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, start_new_session=True, **pipes) as process:
        children: set[int] = set()
        end = time.monotonic() + 60
        while not children and process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
            children = descendants(process.pid)
        assert children, "the run started no solver process"
        time.sleep(1.5)
        assert process.poll() is None, process.communicate()
        children |= descendants(process.pid)
        try:
            yield process, children
        finally:
            for pid in {process.pid, *children}:
                if alive(pid):
                    os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_answers_and_leaves_no_child(
    solving: tuple[subprocess.Popen[str], set[int]], tmp_path: Path, signum: signal.Signals
) -> None:
    process, children = solving
    process.send_signal(signum)
    out, err = process.communicate(timeout=5)
    assert all_gone(children, 0.5)
    assert (process.returncode, out) == (0, "unknown\n")
    assert "interrupted" in err
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["reason"] == "INTERRUPTED"
    assert float(found["lower_bound"]) <= 0


def test_ctrl_c_at_the_terminal_reaches_the_whole_group(solving: tuple[subprocess.Popen[str], set[int]]) -> None:
    process, children = solving
    os.killpg(process.pid, signal.SIGINT)
    out, _ = process.communicate(timeout=10)
    assert (process.returncode, out) == (0, "unknown\n")
    assert all_gone(children, 0.5)


def test_the_second_ctrl_c_ends_at_once(solving: tuple[subprocess.Popen[str], set[int]]) -> None:
    process, children = solving
    process.send_signal(signal.SIGSTOP)  # so that the second signal finds the run still on its way out
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    process.wait(timeout=10)
    assert all_gone(children, 1.0)


def test_a_killed_run_leaves_no_child(solving: tuple[subprocess.Popen[str], set[int]]) -> None:
    process, children = solving
    process.kill()
    process.wait(timeout=2)
    assert all_gone(children, 2.0)


# ------------------------------------------------------------------------------------------------------------- progress


@pytest.mark.parametrize("quiet", [False, True])
def test_progress_is_shown_on_a_terminal_and_only_there(tmp_path: Path, environment: dict[str, str], quiet: bool) -> None:
    """Standard error is a pseudo-terminal, standard output a pipe that holds the verdict and nothing else."""
    network, spec = hard_pair(tmp_path)
    terminal, slave = os.openpty()
    command = [sys.executable, "-m", "milpverify", "verify", str(network), str(spec), "--timeout", "3", *(["--quiet"] if quiet else [])]
    env = {**environment, "TERM": "xterm-256color", "COLUMNS": "120"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=slave, env=env, text=True) as process:
        os.close(slave)
        shown = b""
        while True:
            try:
                shown += os.read(terminal, 4096)
            except OSError:  # the process closed the terminal
                break
            if process.poll() is not None and not quiet and b"UNKNOWN" in shown:
                break
        out, _ = process.communicate(timeout=20)
    os.close(terminal)
    assert out == "timeout\n"
    if quiet:
        assert shown == b""
    else:
        assert len(re.findall(rb"\d+\.\d s", shown)) > 5
        assert b"UNKNOWN" in shown


def test_smooth_functions_are_bounded_and_branched_on_but_nothing_for_z3(run_cli: Run, tmp_path: Path) -> None:
    node = helper.make_node("Sigmoid", ["x"], ["y"])
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1]) for name in ("x", "y")]
    graph = helper.make_graph([node], "smooth", tensors[:1], tensors[1:])
    net, spec = tmp_path / "smooth.onnx", tmp_path / "smooth.vnnlib"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), net)
    text = "(declare-const X_0 Real)(declare-const Y_0 Real)(assert (>= X_0 0))(assert (<= X_0 1))(assert (>= Y_0 {}))"
    for threshold, verdict in ((0.74, "unsat"), (0.72, "sat")):  # sigmoid(1) is 0.731
        spec.write_text(text.format(threshold))
        assert run_cli("verify", net, spec).stdout.splitlines()[0] == verdict
    spec.write_text(text.format(0.72))
    done = run_cli("verify", net, spec, "--method", "smt", "--no-attack")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "sigmoid" in done.stderr
    told = run_cli("info", net)
    assert told.returncode == 0 and "cannot be verified" not in told.stdout
