"""Points of a box, for tests that sample."""

from __future__ import annotations

import torch

from milpverify.spec import Box


def sampled(box: Box, count: int, seed: int) -> torch.Tensor:
    """Points of the box (count, nx): inside, and on its faces, where extremes are."""
    generator = torch.Generator().manual_seed(seed)
    lower, upper = torch.tensor(box.lower), torch.tensor(box.upper)
    share = torch.rand(count, len(lower), generator=generator, dtype=torch.float64)
    share[::2] = (2 * share[::2] - 0.5).clamp(0, 1)
    return (lower + share * (upper - lower)).clamp(lower, upper)
