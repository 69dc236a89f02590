"""Hard instances on small smooth networks: trained on digits, thresholds just below what an attack reaches.

    PYTHONPATH=tests/support python tests/benchmarks/smooth_instances.py FOLDER --share 0.01
    python tests/benchmarks/ablation.py --folder FOLDER --timeout 60 --results results.json

makes 24 networks with properties: sigmoid, tanh and GELU; 2x16, 3x24, 4x32 and 4x50 neurons; two images each that are read right. A
property is that the logit of an image's digit exceeds that of the nearest rival by more than a threshold, which lies a share of the
logits' range below the least margin that gradients find. So it holds unless the attack missed something, and that is hard to prove.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from digits_networks import ACTIVATIONS, TRAINED
from sklearn.datasets import load_digits

SIZES = {(16,) * 2: 0.25, (24,) * 3: 0.07, (32,) * 4: 0.05, (50,) * 4: 0.04}
"""Neurons per layer, and the radius of the boxes in units of the pixels' range."""
KINDS = {"sigmoid": 1.1, "tanh": 0.6, "gelu": 3.0}
"""What is trained, and what its radii are multiplied with: so that most take a search seconds to minutes."""
IMAGES, STEPS = 2, 300


def trained(kind: str, sizes: tuple[int, ...], images: Tensor, labels: Tensor) -> nn.Sequential:
    """A network that reads digits."""
    torch.manual_seed(len(sizes) * sizes[0])
    widths = (64, *sizes, 10)
    layers: list[nn.Module] = []
    for m, n in itertools.pairwise(widths):
        layers += [nn.Linear(m, n), ACTIVATIONS[kind]()]
    net = nn.Sequential(*layers[:-1])
    optimiser = torch.optim.Adam(net.parameters(), 0.01, weight_decay=1e-5)
    for _ in range(400):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(images), labels).backward()
        optimiser.step()
    return net.eval()


def least(net: nn.Sequential, x: Tensor, radius: float, label: int, rival: int) -> float:
    """The least margin that projected gradients find from 64 starts."""
    low, high = (x - radius).clamp(min=0.0), (x + radius).clamp(max=1.0)
    points = low + torch.rand(64, 64) * (high - low)
    found = torch.inf
    for k in range(STEPS):
        points = points.detach().requires_grad_()
        y = net(points)
        margin = y[:, label] - y[:, rival]
        found = min(found, float(margin.min()))
        (gradient,) = torch.autograd.grad(margin.sum(), points)
        points = torch.clamp(points - radius * 0.5 * (1 - k / STEPS) ** 2 * gradient.sign(), low, high)
    return found


def write(folder: Path, share: float) -> None:
    """Make the networks, the properties and their list."""
    data = load_digits()
    images, labels = torch.tensor(data.images.reshape(-1, 64) / 16.0, dtype=torch.float32), torch.tensor(data.target)
    rows = []
    folder.mkdir(parents=True, exist_ok=True)
    for kind, wider in KINDS.items():
        for sizes, size in SIZES.items():
            radius = wider * size
            name = f"{kind}_{len(sizes)}x{sizes[0]}"
            net = trained(kind, sizes, images[:TRAINED], labels[:TRAINED])
            torch.onnx.export(net, (images[:1],), folder / f"{name}.onnx", dynamo=False, input_names=["X"], output_names=["Y"])
            right = (net(images).argmax(1) == labels).nonzero().flatten()
            for i in right[right >= TRAINED][::40][:IMAGES].tolist():
                label, y = int(labels[i]), net(images[i : i + 1])[0].detach()
                rival = int(y.masked_fill(torch.arange(10) == label, -torch.inf).argmax())
                threshold = least(net, images[i], radius, label, rival) - share * float(y.max() - y.min())
                spec = f"{name}_{i}.vnnlib"
                (folder / spec).write_text(text(images[i].double().numpy(), radius, label, rival, threshold))
                rows.append({"family": "smooth", "onnx": f"{name}.onnx", "vnnlib": spec, "expected": ""})
    with (folder / "instances.csv").open("w") as file:
        writer = csv.DictWriter(file, ["family", "onnx", "vnnlib", "expected"])
        writer.writeheader()
        writer.writerows(rows)


def text(x: np.ndarray, radius: float, label: int, rival: int, threshold: float) -> str:
    """The property in VNN-LIB: unsafe is a margin of at most the threshold."""
    lines = [f"(declare-const X_{k} Real)" for k in range(64)] + [f"(declare-const Y_{k} Real)" for k in range(10)]
    for k, value in enumerate(x.tolist()):
        lines += [f"(assert (>= X_{k} {max(value - radius, 0.0)!r}))", f"(assert (<= X_{k} {min(value + radius, 1.0)!r}))"]
    return "\n".join([*lines, f"(assert (<= (- Y_{label} Y_{rival}) {threshold!r}))"]) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--share", type=float, default=0.01)
    arguments = parser.parse_args()
    write(arguments.folder, arguments.share)
