"""Make digits.onnx, robust.vnnlib (holds) and fragile.vnnlib (does not hold) in a folder, by default beside this file.

Usage: python examples/make_digits.py [FOLDER]
"""

from __future__ import annotations

import sys
from pathlib import Path

from digits_files import digits, train, write_onnx, write_robustness


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    folder.mkdir(parents=True, exist_ok=True)
    images, labels = digits()
    write_onnx(train(images[:1500], labels[:1500]), folder / "digits.onnx")
    for name, index, eps in (("robust", 1502, 0.11), ("fragile", 1502, 0.15)):
        write_robustness(folder / f"{name}.vnnlib", images[index], int(labels[index]), eps)


if __name__ == "__main__":
    main()
