#!/bin/bash
# VNN-COMP: install_tool.sh v1. Installs milpverify from this checkout into a virtual environment beside this script.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
[ "${1:-}" = v1 ] || { echo "expected the version string 'v1', not '${1:-}'" >&2; exit 1; }

"${PYTHON:-python3}" -m venv "$here/.venv"
"$here/.venv/bin/pip" install --quiet "$here/../.."
"$here/.venv/bin/milpverify" --version
