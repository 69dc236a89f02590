#!/bin/bash
# VNN-COMP: prepare_instance.sh v1 CATEGORY NET.onnx SPEC.vnnlib. Ends what an earlier run may have left, and loads the program once from disk.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
[ "${1:-}" = v1 ] || { echo "expected the version string 'v1', not '${1:-}'" >&2; exit 1; }
[ $# -eq 4 ] || { echo "usage: prepare_instance.sh v1 CATEGORY NET.onnx SPEC.vnnlib" >&2; exit 1; }
milpverify=${MILPVERIFY:-$here/.venv/bin/milpverify}

for file in "$3" "$4"; do
    [ -r "$file" ] || { echo "cannot read $file" >&2; exit 1; }
done
pkill -KILL -u "$(id -u)" -f "$milpverify verify " || true
$milpverify --version > /dev/null
