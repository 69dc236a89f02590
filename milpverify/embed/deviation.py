"""How far a solution's outputs are from what the network returns at the solution's inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from milpverify.bounding import bounds
from milpverify.graph import evaluate_all
from milpverify.spec import Array, Box
from milpverify.tuning import Tuning

if TYPE_CHECKING:
    from milpverify.frontends.network import Loaded
    from milpverify.graph import Graph


class EmbedTuning(Tuning):
    """Where curved neurons in pieces get breakpoints, and how a network in a user's model is made truer."""

    of_runs = False

    exact: float = 1e-9
    """A neuron that strays no further from its lines, relative to its values, needs no breakpoints."""
    narrowest: float = 1.0 / 16.0
    widest: float = 1.0 / 4.0
    """A piece around a solution has at least and at most so much of the width of the piece that it parts."""
    outputs: int = 8
    """Of so many outputs, those with the largest errors, the neurons' shares are computed."""
    sharper: float = 8.0
    sharpest: float = 512.0
    """Rows that a solver's tolerance leaves too far off are multiplied by the one, up to the other."""
    samples: int = 256
    """Random inputs that tell the sizes of outputs."""


@dataclass(frozen=True, eq=False)
class Deviation:
    """A solution beside the network.

    `absolute` bounds |outputs - f(x)| from above for f in real arithmetic on the stored weights, entry by entry, whatever the solver did.
    `scaled` is that in units of `scale`, the largest size of each output at random inputs of the box.
    """

    x: Array  # (nx,) the inputs' values
    outputs: Array  # (ny,) the outputs' values in the model
    network: Array  # (ny,) f(x), up to float64's rounding
    absolute: Array  # (ny,)
    scale: Array  # (ny,)
    runtime: Array | None = None  # (ny,) what the module or the file itself returns, in its own precision; None of a graph

    @property
    def scaled(self) -> Array:
        """The errors (ny,) relative to the outputs' sizes."""
        return self.absolute / self.scale

    @property
    def largest(self) -> float:
        """The largest scaled error."""
        return float(self.scaled.max(initial=0.0))

    def __str__(self) -> str:
        return f"largest error {self.largest:.3g} of the output's size, {float(self.absolute.max(initial=0.0)):.3g} absolute"


def deviation(loaded: Loaded, x: Array, outputs: Array, scale: Array) -> Deviation:
    """Evaluate a network at a point, enclosed by outward-rounded arithmetic, and by its runtime where it has one."""
    around = bounds(loaded.graph, Box(x, x), "ibp").output
    low, high = (side.reshape(-1).numpy() for side in (around.lower, around.upper))
    network = evaluate_all(loaded.graph, torch.from_numpy(x)[None])[loaded.graph.output].reshape(-1).numpy()
    absolute = np.nextafter(np.maximum(np.maximum(outputs - low, high - outputs), 0.0), np.inf)
    absolute[np.isnan(absolute)] = np.inf  # the network has no value there
    runtime: Any = loaded.runtime
    return Deviation(x, outputs, network, absolute, scale, None if runtime is None else runtime.run(x))


def sizes(graph: Graph, box: Box, samples: int) -> Array:
    """The largest size of every output (ny,) at so many random points of a box; 1 where an output is always 0."""
    generator = np.random.default_rng(0)
    points = box.lower + (box.upper - box.lower) * generator.random((samples, box.size))
    values = evaluate_all(graph, torch.from_numpy(points))[graph.output].reshape(samples, -1).abs().amax(0).numpy()
    found: Array = np.where(np.isfinite(values) & (values > 0), values, 1.0)
    return found
