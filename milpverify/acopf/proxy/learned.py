"""A proxy's set points as a policy: linear functions of the loads that its own slopes suggest, and proved ranges of what is left.

Of every set point y(x) the range of y(x) - A x over the box of inputs is proved by CROWN, for whatever matrix A; with A near the network's
slopes it is narrow, and what is correlated with the loads stays so in the power flow (`dispatch.enclosure`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from milpverify import spec
from milpverify.acopf.dispatch.enclosure import Region
from milpverify.acopf.dispatch.policy import Box, given
from milpverify.acopf.proxy.mapping import Places, Reads
from milpverify.arithmetic.midpoint_radius import Balls
from milpverify.bounding import bounds
from milpverify.errors import InvalidInput
from milpverify.graph import Graph, Node, evaluate
from milpverify.operators import Concat, Linear

if TYPE_CHECKING:
    from milpverify.acopf.case import Array, Index
    from milpverify.acopf.dispatch.grid import Grid

CHARGE: Final = 2.0**-41
"""More than the relative rounding of a slope times a radius, of the scaling of an output, and of a sum over all inputs."""
LARGEST_INPUT: Final = 2**11  # entries of an input for which the charge suffices


@dataclass(frozen=True, eq=False)
class Learned:
    """A network as a policy: the set points that a grid needs are outputs of it.

    Raises:
        InvalidInput: it does not give the active power of every generator that is not at the slack bus, or a magnitude of every bus with
            generators, or one that may be 0 or less.
    """

    grid: Grid
    graph: Graph
    reads: Reads
    writes: dict[str, Places]

    def __post_init__(self) -> None:
        case, pg, vm = self.grid.case, self.writes.get("pg"), self.writes.get("vm")
        if self.graph.nx > LARGEST_INPUT:
            raise InvalidInput(f"after_power_flow: the network has {self.graph.nx} inputs, more than {LARGEST_INPUT}")
        if pg is None or vm is None:
            raise InvalidInput("after_power_flow: the outputs 'pg' and 'vm' are what is set")
        lacking = [case.generator_name(g) for g in self.grid.dispatched.tolist() if g not in pg.element]
        lacking += [case.bus_name(i) for i in self.grid.held.tolist() if i not in vm.element]
        if lacking:
            raise InvalidInput(f"after_power_flow: the network sets nothing at {', '.join(lacking)}")

    @cached_property
    def _set(self) -> tuple[Places, Index, Index]:
        """The outputs that are set points: places, and which of them are of generators and of buses."""
        pg, vm = self.writes["pg"], self.writes["vm"]
        powers = np.array([int(np.flatnonzero(pg.element == g)[0]) for g in self.grid.dispatched.tolist()], dtype=np.int64)
        magnitudes = np.array([int(np.flatnonzero(vm.element == i)[0]) for i in self.grid.held.tolist()], dtype=np.int64)
        parts = [(pg, powers), (vm, magnitudes)]
        at, element, scale, shift = (
            np.concatenate([getattr(part, name)[k] for part, k in parts]) for name in ("at", "element", "scale", "shift")
        )
        return Places(at, element, scale, shift), np.arange(len(powers)), len(powers) + np.arange(len(magnitudes))

    def outputs(self, x: Array) -> Array:
        """y (samples, ny) at inputs (samples, nx) in float64."""
        with torch.no_grad():
            split = np.array_split(x, 1 + len(x) // self.grid.tuning.batch)
            parts = [evaluate(self.graph, torch.from_numpy(part.copy())).numpy() for part in split]
        found: Array = np.concatenate(parts)
        return found

    def set_points(self, loads: Array) -> tuple[Array, Array]:
        case, (places, powers, magnitudes) = self.grid.case, self._set
        values = self.outputs(self.reads.inputs(loads))[:, places.at] * places.scale + places.shift
        pg, vm = np.zeros((len(loads), len(case.generators))), np.ones((len(loads), case.num_buses))
        pg[:, places.element[powers]] = values[:, powers]
        vm[:, places.element[magnitudes]] = values[:, magnitudes]
        return pg, vm

    def region(self, box: Box) -> Region:
        grid, case, n = self.grid, self.grid.case, self.grid.case.num_buses
        places, powers, magnitudes = self._set
        varying, radius, middle = box.varying, box.radius, box.middle
        x = self.reads.inputs(middle)
        slope = self._slopes(x, radius[self.reads.of] / np.abs(self.reads.scale), places)
        (low, high), (least, most) = self._ranges(box, slope, places)
        # In the loads: y = A x + rest, and x = x(middle) + (loads - middle) / scale, for which the ranges have room.
        at_middle = slope @ x
        low, high = low + at_middle, high + at_middle
        values = low / 2 + high / 2
        rest = np.maximum(high - values, values - low)
        column = np.full(2 * n, -1)
        column[varying] = np.arange(len(varying))
        reading = np.flatnonzero(column[self.reads.of] >= 0)
        moved = np.zeros((len(places), len(varying)))
        moved[:, column[self.reads.of[reading]]] = slope[:, reading] / self.reads.scale[reading] * radius[self.reads.of[reading]]
        size = np.abs(slope) @ (np.abs(x) + radius[self.reads.of] / np.abs(self.reads.scale))
        rest = rest + CHARGE * (size + np.abs(values) + rest)
        # Scaled: the quantities themselves.
        center = places.scale * values + places.shift
        moved = places.scale[:, None] * moved
        rest = np.abs(places.scale) * rest
        rest = (rest + CHARGE * (np.abs(places.scale * values) + np.abs(places.shift) + np.abs(moved).sum(1) + rest)) * (1 + CHARGE)
        ends = np.sort(np.stack([places.scale * least + places.shift, places.scale * most + places.shift]), axis=0)
        around = CHARGE * (np.abs(places.scale) * np.maximum(np.abs(least), np.abs(most)) + np.abs(places.shift))
        around[(places.scale == 1.0) & (places.shift == 0.0)] = 0.0
        ends = ends + np.stack([-around, around])
        reach = np.abs(moved).sum(1) + rest
        reach = reach + CHARGE * (np.abs(center) + reach)
        ends = np.stack([np.maximum(ends[0], center - reach), np.minimum(ends[1], center + reach)])

        pg, vm = np.zeros(len(case.generators)), np.ones(n)
        pg[places.element[powers]], vm[places.element[magnitudes]] = center[powers], center[magnitudes]
        generators = np.zeros((3 * n, len(varying) + len(places)))
        generators[varying, np.arange(len(varying))] = -radius[varying]
        columns = np.arange(len(places)) + len(varying)
        for rows, which in ((case.generators.bus[places.element[powers]], powers), (2 * n + places.element[magnitudes], magnitudes)):
            np.add.at(generators, (rows[:, None], np.arange(len(varying))[None]), moved[which])
            generators[rows, columns[which]] = rest[which] * (1 + CHARGE)
        # Sums of a load's own part and of a slope's are rounded, too; the ranges' own columns take that.
        for rows, which in ((case.generators.bus[places.element[powers]], powers),):
            generators[rows, columns[which]] += CHARGE * np.abs(generators[rows, : len(varying)]).sum(1)
        set_powers, set_magnitudes = np.stack([pg, pg]), np.stack([vm, vm])
        set_powers[:, places.element[powers]] = ends[:, powers]
        set_magnitudes[:, places.element[magnitudes]] = ends[:, magnitudes]
        if not (set_magnitudes[0][grid.held] > 0).all():
            raise InvalidInput("after_power_flow: the network may set a magnitude that is not above 0")
        return Region(_exact_magnitudes(given(grid, pg, vm, middle), n), generators, set_powers, set_magnitudes)

    def way(self, a: Array, b: Array) -> Region:
        return self.region(Box(np.minimum(a, b), np.maximum(a, b)))

    def _slopes(self, x: Array, radius: Array, places: Places) -> Array:
        """(k, nx): secants across the box, of the set points' outputs."""
        moving = np.flatnonzero(radius > 0)
        step = np.zeros((len(moving), len(x)))
        step[np.arange(len(moving)), moving] = radius[moving] / 2
        found = np.zeros((len(places), len(x)))
        if len(moving):
            change = self.outputs(x + step)[:, places.at] - self.outputs(x - step)[:, places.at]
            found[:, moving] = change.T / radius[moving]
        return found

    def _ranges(self, box: Box, slope: Array, places: Places) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        """Of y - A x and of y, k entries each: from and to."""
        graph, nx, ny, k = self.graph, self.graph.nx, self.graph.ny, len(places)
        weight = torch.zeros(2 * k, nx + ny, dtype=torch.float64)
        weight[:k, :nx] = -torch.from_numpy(slope)
        weight[torch.arange(2 * k), nx + torch.from_numpy(np.tile(places.at, 2))] = 1.0
        both = Node(len(graph.nodes), Concat(0, (nx, ny)), (0, graph.output), (nx + ny,), "inputs and outputs")
        rows = Node(both.id + 1, Linear(weight), (both.id,), (2 * k,), "set points less their linear part")
        whole = replace(graph, nodes=(*graph.nodes, both, rows), output=rows.id, outputs=())
        found = bounds(whole, spec.Box(*self.reads.box(box.lower, box.upper))).output
        low, high = found.lower[0].numpy(), found.upper[0].numpy()
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise InvalidInput("after_power_flow: nothing is known of the network's outputs over the loads")
        return (low[:k], high[:k]), (low[k:], high[k:])


def _exact_magnitudes(center: Balls, n: int) -> Balls:
    """Magnitudes are those numbers; only sums of powers are rounded."""
    center.radius[2 * n :] = 0.0
    return center
