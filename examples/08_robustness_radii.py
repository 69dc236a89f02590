"""How far may an image change before it is read as another digit? Exact radii in three norms, and the nearest misread images as pictures.

    python examples/08_robustness_radii.py [FOLDER]

Each radius lies between one that is proved and the distance of an image that is read wrongly: a hundredth apart, where four seconds are
enough. That image is drawn: many pixels change a little (linf), some change (l2), or few change much (l1). The picture is
written to FOLDER, or to the current one.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from digits_files import digits, train

import milpverify as mv

NORMS = ("linf", "l2", "l1")
IMAGES = (1502, 1504, 1508)


def main(folder: Path) -> None:
    images, labels = digits()
    net = train(images[:1500], labels[:1500]).eval()
    figure, axes = plt.subplots(len(IMAGES), 1 + len(NORMS), figsize=(8, 6.5), squeeze=False)
    for row, index in zip(axes, IMAGES, strict=True):
        image, label = images[index], int(labels[index])
        row[0].imshow(image.reshape(8, 8), cmap="gray_r", vmin=0, vmax=1)
        row[0].set_title(f"label {label}")
        for axis, norm in zip(row[1:], NORMS, strict=True):
            found = mv.robustness_radius(net, image, label, norm=norm, clip=(0, 1), gap=0.01, timeout=4)
            print(f"image {index}, label {label}, {norm:<4}: {found}")
            if found.counterexample is not None:
                axis.imshow(found.counterexample.x.reshape(8, 8), cmap="gray_r", vmin=0, vmax=1)
                axis.set_title(f"{norm} {found.upper_bound:.3f}: read as {found.other}")
    for axis in axes.flat:
        axis.set_axis_off()
    figure.tight_layout()
    figure.savefig(folder / "nearest.png", dpi=120)
    print(f"drawn: {folder / 'nearest.png'}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
