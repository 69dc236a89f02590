"""Two copies of one network, with relations between their inputs: seconds by method, and whether `auto` keeps up with the best.

    python tests/benchmarks/twins.py FOLDER --timeout 20
    python tests/benchmarks/twins.py FOLDER --only 'relu_4x24' --variant auto --variant milp --results twins.json

makes networks of two hidden layers with random weights, kinds and sizes as below (inputs of a copy, neurons of a copy), twice in one
ONNX file, and five questions about each:

    monotone     weights of one sign: a larger first input, all others equal, makes the output larger
    free         weights of any sign: the same step makes it smaller by no more than a threshold
    lipschitz    inputs that differ by at most a distance have outputs that differ by no more than a threshold
    apart        no relation: the outputs differ by no more than a threshold
    violated     as free, with a threshold that is exceeded

Thresholds lie a share beyond what gradients find, the last within. Prints a table in Markdown: wall-clock seconds of every run, the limit
and `>` where there is no verdict; `late` is what `auto` takes beyond 1.5 times the best of the others and a second.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from ablation import Row, Runs, command, instances, load, save
from onnx import TensorProto, helper, numpy_helper

KINDS = {"relu": "Relu", "tanh": "Tanh", "sigmoid": "Sigmoid"}
SIZES = ((2, 8), (2, 24), (4, 24), (4, 64), (8, 32), (10, 24), (20, 24), (20, 64))
"""Inputs and neurons of a copy."""
QUESTIONS = ("monotone", "free", "lipschitz", "apart", "violated")
DISTANCE, BEYOND, WITHIN = 0.1, 1.1, 0.9
"""By how much inputs may differ; thresholds in units of the largest difference of outputs that was found."""
STARTS, STEPS = 256, 200
METHODS = {"auto": [], "bab": ["--method", "bab"], "milp": ["--method", "milp"], "smt": ["--method", "smt"]}
TIMES, MORE = 1.5, 1.0
Weights = list[tuple[np.ndarray, np.ndarray]]


def weights(nx: int, neurons: int, signed: bool, rng: np.random.Generator) -> Weights:
    """Two hidden layers and one output, float32."""
    widths, layers = (nx, neurons // 2, neurons // 2, 1), list[tuple[np.ndarray, np.ndarray]]()
    for m, n in itertools.pairwise(widths):
        w = rng.normal(0.0, 2.0 / np.sqrt(m), (m, n))
        layers.append(((w if signed else np.abs(w)).astype(np.float32), rng.normal(0.0, 0.5, n).astype(np.float32)))
    return layers


def twin(layers: Weights, operator: str) -> onnx.ModelProto:
    """Two copies in one network: inputs side by side, one output of each."""
    nx, nodes = len(layers[0][0]), []
    constants = [numpy_helper.from_array(np.array([nx, nx]), "parts")]
    for k, (w, b) in enumerate(layers):
        constants += [numpy_helper.from_array(w, f"w{k}"), numpy_helper.from_array(b, f"b{k}")]
    nodes.append(helper.make_node("Split", ["X", "parts"], ["a0", "c0"], axis=1))
    for copy in "ac":
        for k in range(len(layers)):
            last = k + 1 == len(layers)
            nodes.append(helper.make_node("Gemm", [f"{copy}{k}", f"w{k}", f"b{k}"], [f"{copy}out" if last else f"{copy}z{k}"]))
            if not last:
                nodes.append(helper.make_node(operator, [f"{copy}z{k}"], [f"{copy}{k + 1}"]))
    nodes.append(helper.make_node("Concat", ["aout", "cout"], ["Y"], axis=1))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, n]) for name, n in (("X", 2 * nx), ("Y", 2))]
    graph = helper.make_graph(nodes, "twins", ends[:1], ends[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def largest(layers: Weights, kind: str, question: str, rng: np.random.Generator) -> float:
    """The largest f(c) - f(a) that gradients find, over inputs a, c in [-1, 1] that a question relates."""
    import torch

    def run(x: torch.Tensor) -> torch.Tensor:
        for k, (w, b) in enumerate(layers):
            x = x @ torch.tensor(w).double() + torch.tensor(b).double()
            x = x if k + 1 == len(layers) else torch.relu(x) if kind == "relu" else getattr(torch, kind)(x)
        return x[:, 0]

    def related(a: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        a, c = a.clamp(-1.0, 1.0), c.clamp(-1.0, 1.0)
        if question == "apart":
            return a, c
        if question == "lipschitz":
            return a, torch.maximum(torch.minimum(c, a + DISTANCE), a - DISTANCE)
        return a, torch.cat([torch.minimum(c[:, :1], a[:, :1]), a[:, 1:]], 1)

    nx, found = len(layers[0][0]), -np.inf
    a, c = (torch.tensor(rng.uniform(-1.0, 1.0, (STARTS, nx))) for _ in range(2))
    for k in range(STEPS):
        a, c = (t.detach().requires_grad_() for t in related(a, c))
        gain = torch.subtract(*(run(t) for t in reversed(related(a, c))))
        found = max(found, float(gain.detach().max()))
        step = 0.5 * (1.0 - k / STEPS) ** 2
        a, c = (t + step * g.sign() for t, g in zip((a, c), torch.autograd.grad(gain.sum(), (a, c)), strict=True))
    return found


def text(nx: int, question: str, threshold: float) -> str:
    """A question in VNN-LIB: unsafe is that the second copy's output exceeds the first's by a threshold."""
    lines = [f"(declare-const X_{k} Real)" for k in range(2 * nx)] + [f"(declare-const Y_{k} Real)" for k in range(2)]
    lines += [f"(assert ({sign} X_{k} {end}))" for k in range(2 * nx) for sign, end in ((">=", "-1.0"), ("<=", "1.0"))]
    for k in range(nx):
        a, c = f"X_{k}", f"X_{nx + k}"
        if question == "lipschitz":
            lines += [f"(assert (<= {c} (+ {a} {DISTANCE})))", f"(assert (>= {c} (- {a} {DISTANCE})))"]
        elif question != "apart":
            lines.append(f"(assert (= {a} {c}))" if k else f"(assert (>= {a} {c}))")
    return "\n".join([*lines, f"(assert (<= Y_0 (- Y_1 {threshold!r})))"]) + "\n"


def write(folder: Path) -> None:
    """Make the networks, the questions and their list."""
    folder.mkdir(parents=True, exist_ok=True)
    rows, drawn = [], np.random.default_rng(0)
    for kind, operator in KINDS.items():
        for nx, neurons in SIZES:
            for question in QUESTIONS:
                rng = np.random.default_rng(drawn.integers(2**32))
                layers, name = weights(nx, neurons, question != "monotone", rng), f"{kind}_{nx}x{neurons}_{question}"
                found = 0.0 if question == "monotone" else max(0.0, largest(layers, kind, question, rng))
                beyond = question != "violated"
                threshold = (BEYOND if beyond else WITHIN) * found + (0.01 if beyond else 0.0)
                onnx.save(twin(layers, operator), folder / f"{name}.onnx")
                (folder / f"{name}.vnnlib").write_text(text(nx, question, threshold))
                expected = "unsat" if question == "monotone" else "" if beyond or not found else "sat"
                rows.append({"family": question, "onnx": f"{name}.onnx", "vnnlib": f"{name}.vnnlib", "expected": expected})
    with (folder / "instances.csv").open("w") as file:
        writer = csv.DictWriter(file, ["family", "onnx", "vnnlib", "expected"])
        writer.writeheader()
        writer.writerows(rows)


def late(rows: Sequence[Row], wall: bool = True) -> float:
    """The seconds that `auto` takes beyond what it may."""
    seconds = {row.variant: min(row.wall, row.timeout) if row.solved else row.timeout for row in rows}
    others = [s for variant, s in seconds.items() if variant != "auto"]
    return max(0.0, seconds["auto"] - TIMES * min(others) - MORE) if others and "auto" in seconds else 0.0


def table(rows: Sequence[Row], variants: Sequence[str]) -> str:
    """The seconds of every question by method."""
    lines: list[tuple[str, ...]] = [("question", *variants, "late"), ("-", *(["-:"] * (len(variants) + 1)))]
    for name in dict.fromkeys(row.instance for row in rows):
        mine = {row.variant: row for row in rows if row.instance == name}
        cells = [f"{r.wall:.2f}" if r.solved else "!" if r.wrong or r.verdict == "error" else f">{r.timeout:g}" for r in mine.values()]
        beyond = late(list(mine.values()))
        lines.append((name.split("/")[0], *cells, f"{beyond:.1f}" if beyond else ""))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command(__doc__, METHODS, 20.0)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    options = parser.parse_args(arguments)
    options.folder = options.folder or (options.files.pop(0) if options.files else None)
    if options.folder is None or options.files:
        parser.error("a folder to write to, please")
    if not (options.folder / "instances.csv").exists():
        write(options.folder)
    variants = options.variant or list(METHODS)
    known, runs, keys = load(options.results), Runs(), []
    try:
        for instance in instances(options):
            for variant in variants:
                key = (instance.family, instance.name, variant, instance.timeout)
                keys.append(key)
                if key not in known and (row := runs.run(instance, variant, METHODS[variant])) is not None:
                    known[row.key] = row
                    save(options.results, list(known.values()))
                    print(f"{row.instance}, {variant}: {row.verdict}, {row.wall} s, {row.cpu} s of CPU", file=sys.stderr)
    finally:
        runs.end()
    rows = [known[key] for key in keys if key in known]
    print(table(rows, variants))
    return 1 if any(row.wrong for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
