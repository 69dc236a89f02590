"""Proxies: what they predict, what follows in the power flow, and how their entries are named."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from power_cases import TRIANGLE, network
from torch import nn

from milpverify.acopf.case import Case
from milpverify.acopf.dispatch.grid import Grid
from milpverify.acopf.dispatch.newton import base, flat
from milpverify.acopf.dispatch.policy import Box, box_of
from milpverify.acopf.dispatch.witness import point_of
from milpverify.acopf.loads import Loads, box
from milpverify.acopf.proxy.checking import check_proxy
from milpverify.acopf.proxy.learned import Learned
from milpverify.acopf.proxy.mapping import Entries, read_mapping, reads_of, writes_of
from milpverify.acopf.result import Verdict
from milpverify.errors import InvalidInput
from milpverify.frontends.network import load_network
from milpverify.spec import Box as Inputs

pytest.importorskip("pypower.api")


def triangle(**values: Any) -> Case:
    usual: dict[str, Any] = {"pd": [0.1, 0, 0.9], "qd": [0.05, 0, 0.3], "rate": 0.9, "pmax": 2, "qmin": -1, "qmax": 1}
    return network(3, TRIANGLE, [0, 1], **{**usual, **values})


class Policy(nn.Module):
    """Loads of buses 1 and 3 to pg of two generators and their magnitudes: half of the load each, with a kink."""

    def __init__(self, share: float = 0.5, level: float = 1.02, scale: float = 1.0) -> None:
        super().__init__()
        first = torch.tensor([[0.0, 1.0, 0.0, 0.0], [0.0, 1.0, 0.0, 1.0]]) * scale
        self.first, self.second = nn.Linear(4, 2), nn.Linear(2, 4)
        with torch.no_grad():
            self.first.weight.copy_(first)
            self.first.bias.copy_(torch.tensor([0.0, -1.2]))
            self.second.weight.copy_(torch.tensor([[share, 0.0], [share, 0.2], [0.0, 0.02], [0.01, 0.0]]))
            self.second.bias.copy_(torch.tensor([0.0, 0.0, level, level]))

    def forward(self, loads: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(loads)))


def policy(case: Case, module: nn.Module, loads: Loads, **mapping: Any) -> tuple[Learned, Box]:
    grid = Grid(case)
    held = box_of(grid, loads)
    reads = reads_of(case, mapping.get("inputs"), 4)
    graph = load_network(module.eval(), Inputs(*reads.box(held.lower, held.upper))).graph
    return Learned(grid, graph, reads, writes_of(case, mapping.get("outputs"), graph.ny)), held


@pytest.mark.parametrize("relative", [0.0, 0.02, 0.4])
@pytest.mark.parametrize("scaled", [False, True])
def test_regions_contain_all_set_points(relative: float, scaled: bool) -> None:
    """Of random loads the parameters solve for numbers of the region in [-1, 1], and for nothing much narrower."""
    case = triangle()
    mapping: dict[str, Any] = {}
    if scaled:  # the network reads (load - 0.1) / 0.7, and its magnitudes are in units of 0.9 from 0.1
        mapping["inputs"] = {"pd": Entries([0, 1], scale=0.7, shift=0.1), "qd": Entries("2:4", scale=0.7, shift=0.1)}
        mapping["outputs"] = {"pg": slice(0, 2), "vm": Entries([2, 3], of=[1, 2], scale=[0.9, 0.9], shift=0.1)}
    learned, held = policy(case, Policy(), box(relative), **mapping)
    region = learned.region(held)
    random = np.random.default_rng(0)
    loads = held.at(np.round(random.random((300, 6)), 1))
    pg, vm = learned.set_points(loads)
    p = learned.grid.parameters(pg, vm, loads[:, :3], loads[:, 3:])
    count = len(held.varying)
    shares = (loads[:, held.varying] - held.middle[held.varying]) / np.maximum(held.radius[held.varying], 1e-300)
    rest = p - region.center.middle - shares @ region.generators[:, :count].T
    room = np.abs(region.generators[:, count:]).sum(1) + region.center.radius
    assert (np.abs(rest) <= room + 1e-9).all()
    assert room.max() < 1e-6 + relative  # and most is linear
    assert (region.powers[0] - 1e-9 <= pg).all() or (
        region.powers[0, learned.grid.dispatched] - 1e-9 <= pg[:, learned.grid.dispatched]
    ).all()
    assert (vm[:, learned.grid.held] <= region.magnitudes[1, learned.grid.held] + 1e-9).all()
    assert (region.magnitudes[0, learned.grid.held] - 1e-9 <= vm[:, learned.grid.held]).all()


@pytest.mark.parametrize("relative", [0.01, 0.1])
def test_what_is_predicted_holds_and_what_follows_does_not(relative: float) -> None:
    """Magnitudes and powers are within limits; the reactive power that the power flow needs is not."""
    case = triangle(qmax=[1, 0.1])
    predicted = check_proxy(case, Policy().eval(), box(relative), samples=200)
    assert predicted.verdict is Verdict.HOLDS and len(predicted.margins) == 4
    after = check_proxy(case, Policy().eval(), box(relative), limits="after_power_flow", samples=200)
    assert after.verdict is Verdict.BROKEN and after.broken is not None and after.broken[0].kind == "reactive generation"
    for found in (predicted, after):
        assert all(each.certified <= each.attacked + 1e-9 for each in found.margins)
        json.loads(found.to_json())
    violation = after.to_dict()["violation"]
    assert violation["proved"] and violation["continuous"] and violation["reproduced"]


def test_after_the_power_flow_it_may_hold() -> None:
    found = check_proxy(triangle(), Policy().eval(), box(0.1), limits="after_power_flow", samples=200)
    assert found.verdict is Verdict.HOLDS
    worst = found.worst_margin
    assert worst is not None and 0 <= worst.certified <= worst.attacked < worst.certified + 0.01


def test_boxes_are_cut_for_a_proxy_too() -> None:
    """A limit between what the whole box certifies and what is attained, for a policy with a kink in the box."""
    free: dict[str, Any] = {"vmax": 1.3, "rate": math.inf, "qmin": -5, "qmax": 5, "pmax": 5, "pmin": -5}
    loads = box(0.6)
    whole = check_proxy(triangle(**free), Policy().eval(), loads, limits="after_power_flow", samples=200)
    margin = next(each for each in whole.margins if str(each.limit) == "voltage of bus 3")
    assert margin.attacked - margin.certified > 1e-6
    level = 0.9 + margin.certified + 0.7 * (margin.attacked - margin.certified)
    tight = triangle(**free, vmin=[0.9, 0.9, level])
    found = check_proxy(tight, Policy().eval(), loads, limits="after_power_flow", samples=200, timeout=30)
    assert found.verdict is Verdict.HOLDS and found.boxes > 1


def test_a_prediction_beyond_a_limit() -> None:
    found = check_proxy(triangle(vmax=1.03), Policy(level=1.025).eval(), box(0.05), samples=50)
    assert found.verdict is Verdict.BROKEN and found.broken is not None
    assert str(found.broken[0]) == "voltage of bus 2" and found.broken[1] < -1e-6
    only = check_proxy(triangle(vmax=1.03), Policy(level=1.025).eval(), box(0.05), only=["active generation"], samples=50)
    assert only.verdict is Verdict.HOLDS and {each.limit.kind for each in only.margins} == {"active generation"}


class State(nn.Module):
    """A constant state pg, qg, vm, va, from two loads that it does not look at."""

    def __init__(self, state: np.ndarray, off: float = 0.0) -> None:
        super().__init__()
        self.out = nn.Linear(4, len(state))
        with torch.no_grad():
            self.out.weight.zero_()
            self.out.bias.copy_(torch.tensor(state + off))

    def forward(self, loads: torch.Tensor) -> torch.Tensor:
        return self.out(loads)


def test_a_whole_state_is_held_against_the_equations() -> None:
    """The power flow's own state balances at its loads, up to float32, and not at others."""
    case = triangle(angmin=-0.5, angmax=0.5)
    grid, n = Grid(case), 3
    loads = np.concatenate([case.buses.pd, case.buses.qd])
    p = grid.parameters(np.array([0, 0.5]), np.array([1.02, 1.02, 1]), loads[:n], loads[n:])
    x = base(grid, p, flat(grid, p))
    assert x is not None
    point = point_of(grid, x, np.array([0, 0.5]), loads)
    state = np.concatenate([point.pg, point.qg, point.vm, point.va])
    found = check_proxy(case, State(state).eval(), Loads(), samples=5)
    assert found.verdict is Verdict.HOLDS
    kinds = {each.limit.kind for each in found.margins}
    balances, flows = {"active balance", "reactive balance"}, {"flow from", "flow to", "angle difference"}
    assert kinds == {"active generation", "reactive generation", "voltage"} | balances | flows
    wide = check_proxy(case, State(state).eval(), box(0.1), samples=5)
    assert wide.verdict is Verdict.BROKEN and wide.broken is not None and "balance" in wide.broken[0].kind
    allowed = {"active balance": (1e-3, 0.2), "reactive balance": 0.1}
    assert check_proxy(case, State(state).eval(), box(0.1), allowed=allowed, samples=5).verdict is Verdict.HOLDS


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"limits": "both"}, "limits"),
        ({"inputs": {"pg": slice(0, 4)}}, "pd"),
        ({"inputs": {"pd": slice(0, 2)}}, "shape"),
        ({"inputs": {"pd": slice(0, 2), "qd": [1, 2]}}, "taken"),
        ({"inputs": {"pd": Entries([0, 1], of=[1, 9]), "qd": [2, 3]}}, "of"),
        ({"inputs": {"pd": Entries([0, 1], scale=0.0), "qd": [2, 3]}}, "scale"),
        ({"outputs": {"p": slice(0, 4)}}, "'p'"),
        ({"outputs": {"pg": [0, 9]}}, "pg"),
        ({"outputs": {"pg": [0, 1], "vm": Entries([2, 3], scale=[1, 2, 3])}}, "vm"),
        ({"outputs": {"pg": [0, 1]}, "limits": "after_power_flow"}, "vm"),
        ({"outputs": {"pg": Entries([0], of=[1]), "vm": [2, 3]}, "limits": "after_power_flow"}, "sets nothing"),
        ({"only": ["voltage of bus 7"]}, "only"),
        ({"only": ["voltage"], "limits": "after_power_flow"}, "predicted"),
        ({"allowed": {"voltages": 1.0}}, "allowed"),
        ({"outputs": {"va": [0, 1, 2]}}, "limit"),
        ({"tolerance": math.nan}, "tolerance"),
    ],
)
def test_bad_input(options: dict[str, Any], word: str) -> None:
    with pytest.raises(InvalidInput, match=word):
        check_proxy(triangle(), Policy().eval(), box(0.1), **options)


def test_mappings_from_files(tmp_path: Path) -> None:
    path = tmp_path / "mapping.json"
    path.write_text('{"inputs": {"pd": "0:2", "qd": {"at": [2, 3], "scale": 2.0}}}')
    assert read_mapping(path)["inputs"]["qd"]["scale"] == 2.0 and read_mapping(None) == {}
    for text in ("[]", '{"inputs": 3}', '{"output": {}}', "{"):
        path.write_text(text)
        with pytest.raises(InvalidInput, match="mapping"):
            read_mapping(path)
