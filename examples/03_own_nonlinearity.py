"""Verify a network with an activation that milpverify has never heard of, from one TOML file.

    python examples/03_own_nonlinearity.py

`bump.toml`, beside this script, states what is known about exp(-x^2): its term, and where it rises, falls and bends. The rest is
derived from that: the torch module that the network is trained with, interval arithmetic, relaxations, and where to split.
"""

from __future__ import annotations

from pathlib import Path

import torch
from digits_files import digits, fit
from torch import nn

import milpverify as mv


def main() -> None:
    mv.register_nonlinearity(Path(__file__).with_name("bump.toml"))
    images, labels = digits()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 16), mv.Activation("bump"), nn.Linear(16, 10))
    fit(net, images[:1500], labels[:1500], epochs=40).eval()
    right = (net(torch.from_numpy(images[1500:])).argmax(1).numpy() == labels[1500:]).mean()
    print(f"trained with bump: {right:.0%} of 297 unseen images are read correctly")

    image, label = images[1503], int(labels[1503])
    box = mv.Box(image - 0.05, image + 0.05)
    for method in ("ibp", "crown", "alpha-crown"):
        output = mv.bounds(net, box, method).output
        print(f"{method:>11}: the outputs are within {(output.upper - output.lower).mean():.3f} on average")

    for eps in (0.02, 0.06, 0.2):
        result = mv.verify(mv.robustness(net, image, label, eps, clip=(0, 1)), timeout=30)
        subproblems = sum(entry["bounded"] for name, entry in result.ledger.items() if "bounds" in name)
        print(f"label {label}, eps {eps:<4}: {result.verdict.name}, margin >= {result.lower_bound:+.4f}, {subproblems} subproblems bounded")


if __name__ == "__main__":
    main()
