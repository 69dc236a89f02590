"""Train a small network on handwritten digits and decide, image by image, how far its answer can be trusted.

    python examples/01_digits_robustness.py

For some images and growing radii it asks: does every image within that distance, pixel by pixel, get the same label? Each
answer is a proof or a counterexample, never an estimate.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from digits_files import digits, train, write_onnx, write_robustness

import milpverify as mv


def main() -> None:
    images, labels = digits()
    net = train(images[:1500], labels[:1500])
    with tempfile.TemporaryDirectory() as folder:
        onnx_file, spec_file = Path(folder, "digits.onnx"), Path(folder, "robust.vnnlib")
        write_onnx(net, onnx_file)
        for index in (1502, 1503, 1504):
            image, label = images[index], int(labels[index])
            for eps in (0.05, 0.1, 0.2):
                write_robustness(spec_file, image, label, eps)
                result = mv.verify(mv.load(onnx_file, spec_file), timeout=20)
                seen = "" if result.counterexample is None else f", an image in reach is seen as {result.counterexample.y.argmax()}"
                print(f"image {index}, label {label}, eps {eps:<4}: {result.verdict.name}, margin >= {result.lower_bound:+.4f}{seen}")


if __name__ == "__main__":
    main()
