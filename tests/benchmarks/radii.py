"""Robustness radii of digits, to a relative gap of 1 %.

    PYTHONPATH=.:tests/support python tests/benchmarks/radii.py relu --images 20 --timeout 60

trains a network and prints the bounds and seconds of every image, and their median.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from digits_networks import ACTIVATIONS, TRAINED, digits, trained

import milpverify as mv


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("network", choices=list(ACTIVATIONS))
    parser.add_argument("--norm", choices=["linf", "l1", "l2"], default="linf")
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--timeout", type=float, default=60.0)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    images, labels = (part[TRAINED : TRAINED + asked.images] for part in digits())
    found = []
    for r in mv.robustness_radii(trained(asked.network), list(images), labels.tolist(), asked.norm, clip=(0, 1), timeout=asked.timeout):
        bounds = f"{r.lower_bound:.5f}  {r.upper_bound:.5f}  {r.gap:.4f}"
        print(f"{len(found):4d}  {bounds}  {r.reason.name:14s}  {r.searches:3d}  {r.seconds:6.2f} s", flush=True)
        found.append(r)
    ends = sum(r.reason in (mv.Reason.PROVED, mv.Reason.COUNTEREXAMPLE) for r in found)
    print(f"{ends} of {len(found)} within the gap; median {np.median([r.seconds for r in found]):.2f} s")


if __name__ == "__main__":
    main()
