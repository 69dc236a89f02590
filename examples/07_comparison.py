"""How loose is each relaxation on a small network of digits, what does it cost, and where is the truth?

    python examples/07_comparison.py [FOLDER]

One image first: the bounds of six methods, from intervals to the exact margin. Then several images at several radii: how many each method
decides. Pictures are written to FOLDER, or to the current one.
"""

from __future__ import annotations

import sys
from pathlib import Path

from digits_files import digits, train

import milpverify as mv

IMAGES = (1502, 1503, 1504)
RADII = (0.04, 0.08, 0.12)


def main(folder: Path) -> None:
    images, labels = digits()
    net = train(images[:1500], labels[:1500]).eval()

    def problem(index: int, radius: float) -> mv.Problem:
        return mv.robustness(net, images[index], int(labels[index]), radius, clip=(0, 1))

    one = mv.compare({"image 1502 within 0.11": problem(1502, 0.11)}, ["ibp", "crown", "alpha-crown", "lp", "auto", "exact"], timeout=20)
    print(one, end="\n\n")
    one.plot(folder / "bounds.png")

    several = {f"image {index} within {radius}": problem(index, radius) for index in IMAGES for radius in RADII}
    many = mv.compare(several, ["crown", "auto"], timeout=20)
    for s in many.summary():
        print(f"{s.method:<5s}: {s.verified} of {len(several)} verified, {s.falsified} falsified, {s.seconds:.1f} s altogether")
    many.plot(folder / "cactus.png", "cactus")
    many.plot(folder / "radius.png", "radius")
    print(f"drawn: bounds, cactus and radius in {folder.resolve()}")


if __name__ == "__main__":  # the methods run in processes of their own
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
