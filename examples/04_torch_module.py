"""Train a convolutional network with torch and decide its robustness, without any file in between.

    python examples/04_torch_module.py

A counterexample counts only if the module itself, run on it, gives another label.
"""

from __future__ import annotations

import torch
from digits_files import digits, fit
from torch import nn

import milpverify as mv


def main() -> None:
    images, labels = digits()
    images = images.reshape(-1, 1, 8, 8)
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(64, 16),
        nn.Tanh(),
        nn.Linear(16, 10),
    )
    fit(net, images[:1500], labels[:1500], epochs=20)
    net.eval()  # dropout off, batch normalisation with the statistics of the training
    for index in (1502, 1503, 1504):
        image, label = images[index], int(labels[index])
        for eps in (0.01, 0.04, 0.3):
            result = mv.verify(mv.robustness(net, image, label, eps, clip=(0, 1)), timeout=20)
            line = f"image {index}, label {label}, eps {eps:<4}: {result.verdict.name}, margin >= {result.lower_bound:+.4f}"
            if result.counterexample is not None:
                x = torch.from_numpy(result.counterexample.x).float().reshape(1, 1, 8, 8)
                line += f", the network reads {int(net(x).argmax())}"
            print(line)


if __name__ == "__main__":
    main()
