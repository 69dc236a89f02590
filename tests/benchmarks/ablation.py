"""What each part contributes: the same instances by the solver alone, by the tree alone, and by both with what they tell each other.

    python tests/benchmarks/ablation.py net.onnx a.vnnlib net.onnx b.vnnlib --timeout 20
    python tests/benchmarks/ablation.py --folder benchmarks --family mnist_fc --every 6 --limit 5 --timeout 20 --csv out.csv

A folder has an instances.csv with columns onnx and vnnlib (paths in the folder), and maybe family and expected. Every run is a
process of its own. Prints a table and, with --csv, writes it; seconds are CPU seconds of the run with its solver processes.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VARIANTS = {
    "MILP alone": ["--method", "milp"],
    "relaxation alone": ["--method", "bab"],
    "shared": [],
    "shared, oracle not to tree": ["--without", "oracle_to_tree"],
    "shared, tree not to oracle": ["--without", "tree_to_oracle"],
}
COLUMNS = ("instance", "variant", "verdict", "expected", "wall", "cpu", "lower_bound", "subproblems", "oracle_tasks", "oracle_closed")


def instances(options: argparse.Namespace) -> Iterator[tuple[Path, Path, str]]:
    """Network, property and the expected verdict ("" if unknown)."""
    pairs = options.files
    for network, spec in zip(pairs[::2], pairs[1::2], strict=True):
        yield network, spec, ""
    if options.folder is not None:
        with (options.folder / "instances.csv").open() as file:
            rows = [row for row in csv.DictReader(file) if options.family in (None, row.get("family"))]
        for row in rows[options.first :: options.every][: options.limit]:
            yield options.folder / row["onnx"], options.folder / row["vnnlib"], row.get("expected", "")


def run(network: Path, spec: Path, arguments: list[str], timeout: float) -> dict[str, object]:
    """One run as a row of the table."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        command = [sys.executable, "-m", "milpverify", "verify", str(network.resolve()), str(spec.resolve())]
        command += ["--timeout", str(timeout), "--quiet", "--json", str(out), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, timeout=3 * timeout + 60, check=False)
        if not out.exists():
            return {"verdict": "error: " + done.stderr.strip()[:60]}
        found = json.loads(out.read_text())
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    search = next((phase for phase in found["phases"] if phase["name"] == "search"), {})
    return {
        "verdict": "timeout" if found["reason"] == "TIMEOUT" else found["verdict"],
        "wall": round(found["seconds"], 2),
        "cpu": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 2),
        "lower_bound": f"{float(found['lower_bound']):.4g}",
        **{name: search.get(name, search.get("nodes", "") if name == "subproblems" else "") for name in COLUMNS[-3:]},
    }


def show(rows: list[dict[str, object]]) -> str:
    """The rows as a table."""
    cells = [list(COLUMNS), *([str(row.get(name, "")) for name in COLUMNS] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells)


def summary(rows: list[dict[str, object]]) -> str:
    """Per variant what it solved, and the instances that only a shared search solved."""
    solved = {v: {r["instance"] for r in rows if r["variant"] == v and r["verdict"] in ("sat", "unsat")} for v in VARIANTS}
    lines = [f"{v:<28} solved {len(done):3d}" for v, done in solved.items()]
    alone = solved["MILP alone"] | solved["relaxation alone"]
    only = sorted(map(str, set.union(*(done for v, done in solved.items() if v.startswith("shared"))) - alone))
    return "\n".join([*lines, f"solved by a shared search alone: {', '.join(only) or 'none'}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="networks and properties in turns")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--family")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--timeout", type=float, default=20.0)
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()
    rows: list[dict[str, object]] = []
    for network, spec, expected in instances(options):
        name = f"{network.name.split('.onnx')[0]}/{spec.name.split('.vnnlib')[0]}"
        for variant, arguments in VARIANTS.items():
            row = {"instance": name, "variant": variant, "expected": expected, **run(network, spec, arguments, options.timeout)}
            rows.append(row)
            print(f"{name}: {variant}: {row['verdict']}", file=sys.stderr)
            if {str(row["verdict"]), expected} == {"sat", "unsat"}:
                sys.exit(f"{name} by {variant} is {row['verdict']}, expected {expected}")
    print(show(rows))
    print(summary(rows))
    if options.csv is not None:
        with options.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
