#!/bin/bash
# VNN-COMP: run_instance.sh v1 CATEGORY NET.onnx SPEC.vnnlib RESULTS SECONDS. Writes `sat` with its counterexample, `unsat`, `timeout`,
# `unknown` or `error` to the file RESULTS.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
[ "${1:-}" = v1 ] || { echo "expected the version string 'v1', not '${1:-}'" >&2; exit 1; }
[ $# -eq 6 ] || { echo "usage: run_instance.sh v1 CATEGORY NET.onnx SPEC.vnnlib RESULTS SECONDS" >&2; exit 1; }
milpverify=${MILPVERIFY:-$here/.venv/bin/milpverify}

# The limit holds from the start of the process to its end, and it ends by itself; whatever goes wrong is an `error`.
$milpverify verify "$3" "$4" --timeout "$6" --quiet > "$5" || echo error > "$5"
