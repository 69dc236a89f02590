#!/bin/sh
# Make a pair of ONNX and VNN-LIB files, and verify it from the command line.
#
#     sh examples/02_command_line.sh [FOLDER]
set -eu
here=$(cd "$(dirname "$0")" && pwd)
folder=${1:-$(mktemp -d)}

python "$here/make_digits.py" "$folder"
milpverify info "$folder/digits.onnx"
milpverify verify "$folder/digits.onnx" "$folder/robust.vnnlib" --timeout 60 --json "$folder/robust.json"
milpverify verify "$folder/digits.onnx" "$folder/fragile.vnnlib" --timeout 60 --quiet | head -n 3
