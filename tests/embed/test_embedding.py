"""Embedded networks agree with themselves, tell their errors, are tightened and removed, in models of all three solvers."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn
from user_models import SOLVERS, Attention, Bilinear, MaxPooled, UserModel, made, network, value

import milpverify as mv

LINES = {"relu": network(nn.ReLU), "leaky": network(nn.LeakyReLU), "pool": made(MaxPooled)}
CURVED = {"tanh": network(nn.Tanh), "sigmoid": network(nn.Sigmoid), "gelu": network(nn.GELU, depth=1), "bilinear": made(Bilinear)}
TO = 1e-6


def solved(user: UserModel, embedded: mv.Embedding, what: object, rounds: int = 12) -> mv.Deviation:
    """The loop that the README shows."""
    user.minimise(what)
    while embedded.error().largest > TO and embedded.tighten(TO):
        user.minimise(what)
        rounds -= 1
        assert rounds, "no end to tightening"
    return embedded.error()


def judged(net: nn.Module, found: mv.Deviation) -> None:
    """The reported error is true: that against the module in float64."""
    true = np.abs(found.outputs - value(copy.deepcopy(net), found.x))
    np.testing.assert_allclose(found.absolute, true, atol=1e-9)  # slopes are rounded to float32 in the module, not in its copy
    assert (np.abs(found.outputs - found.network) <= found.absolute).all()
    assert found.runtime is not None and np.abs(found.runtime - found.network).max() < 1e-5


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("kind", LINES)
def test_networks_of_lines_are_exact(solver: str, kind: str) -> None:
    """At 100 random fixed inputs, and at an optimum that no sampled point is below."""
    net, user, rng = LINES[kind], UserModel(solver), np.random.default_rng(0)
    embedded = mv.embed(user.model, net, user.x)
    least = user.minimise(embedded.outputs[0])
    judged(net, embedded.error())
    points = rng.uniform(-1, 1, (100, 2))
    values = np.array([value(copy.deepcopy(net), x) for x in points])
    assert least <= values[:, 0].min() + TO
    for x, y in zip(points, values, strict=True):
        user.fix(x)
        user.minimise(embedded.outputs[1])
        found = embedded.error()
        assert found.largest <= TO
        assert np.abs(found.outputs - y).max() <= TO * np.maximum(1.0, np.abs(y)).max()


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("kind", CURVED)
def test_curved_networks_are_tightened(solver: str, kind: str) -> None:
    net, user, rng = CURVED[kind], UserModel(solver, [(-1, 0.5), (-0.25, 1)]), np.random.default_rng(1)
    embedded = mv.embed(user.model, net, user.x)
    found = solved(user, embedded, embedded.outputs[0])
    assert found.largest <= TO
    judged(net, found)
    sampled = [value(copy.deepcopy(net), x)[0] for x in rng.uniform((-1, -0.25), (0.5, 1), (500, 2))]
    assert found.outputs[0] <= min(sampled) + 1e-5  # what is embedded contains the graph: no sampled point is lost


@pytest.mark.parametrize("solver", ["scip", "gurobi"])
def test_native_functions_at_fixed_inputs(solver: str) -> None:
    net, user = CURVED["tanh"], UserModel(solver)
    embedded = mv.embed(user.model, net, user.x, encoding="native")
    for x in np.random.default_rng(2).uniform(-1, 1, (100, 2)):
        user.fix(x)
        user.minimise(embedded.outputs[0])
        assert embedded.error().largest <= TO


@pytest.mark.parametrize("solver", SOLVERS)
def test_attention(solver: str) -> None:
    net, user = made(Attention), UserModel(solver, [(-0.5, 0.5), (-0.5, 0.5)])
    embedded = mv.embed(user.model, net, user.x)
    found = solved(user, embedded, embedded.outputs[0])
    judged(net, found)
    assert found.largest <= TO


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("kind", ["relu", "tanh", "bilinear"])
def test_removal_leaves_the_model_as_it_was(solver: str, kind: str, tmp_path: Path) -> None:
    """Also after solving and tightening."""
    net = {**LINES, **CURVED}[kind]
    user = UserModel(solver, integer=(1,))
    user.row(user.x[0] + 2 * user.x[1] <= 1.5)
    before, least = user.text(tmp_path), user.minimise(user.x[0] - user.x[1])
    before = user.text(tmp_path)
    embedded = mv.embed(user.model, net, [user.x[1], user.x[0] - 0.5 * user.x[1]])
    assert any(line.find("net_y0") >= 0 for line in user.text(tmp_path))
    user.minimise(embedded.outputs[0])
    embedded.tighten(1e-300)
    user.minimise(embedded.outputs[1])
    embedded.remove()
    assert user.minimise(user.x[0] - user.x[1]) == pytest.approx(least)
    assert user.text(tmp_path) == before
    for call in (embedded.error, embedded.tighten, embedded.remove):
        with pytest.raises(mv.InvalidInput, match="was removed"):
            call()


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_same_network_twice_in_a_chain(solver: str, tmp_path: Path) -> None:
    """Outputs of one are inputs of the next, whose bounds they have; both tell their errors, and go in any order."""
    net, user = LINES["relu"], UserModel(solver)
    before = user.text(tmp_path)
    first = mv.embed(user.model, net, user.x)
    second = mv.embed(user.model, net, first.outputs)
    assert (first.name, second.name) == ("net", "net2")
    user.minimise(second.outputs[0] + second.outputs[1])
    (a, b) = first.error(), second.error()
    assert max(a.largest, b.largest) <= TO
    np.testing.assert_allclose(a.outputs, b.x, atol=1e-9)
    assert value(copy.deepcopy(net), value(copy.deepcopy(net), a.x)).sum() == pytest.approx(b.outputs.sum(), abs=1e-5)
    with pytest.raises(mv.InvalidInput, match="still reads outputs of net"):
        first.remove()
    second.remove()
    first.remove()
    assert user.size() == (2, 0)
    user.minimise(0 * user.x[0])
    assert user.text(tmp_path) == before or solver == "highs"  # which writes an objective without terms otherwise


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_first_of_two_is_removed(solver: str) -> None:
    """Numbers that move in HiGHS are those of what is left, too."""
    net, other, user = LINES["relu"], LINES["leaky"], UserModel(solver)
    first, second = mv.embed(user.model, net, user.x), mv.embed(user.model, other, user.x)
    least = user.minimise(second.outputs[0])
    first.remove()
    assert user.minimise(second.outputs[0]) == pytest.approx(least, abs=1e-7)
    assert second.error().largest <= TO
    second.remove()
    assert user.size() == (2, 0)


def test_highs_renumbers_what_is_handed_in() -> None:
    user = UserModel("highs")
    embedded = mv.embed(user.model, LINES["relu"], user.x)
    later = user.variable(0.0, 3.0, "later")
    own = user.row(later + user.x[0] <= 2)
    columns = user.size()
    with pytest.raises(mv.InvalidInput, match="later came after the network"):
        embedded.remove()
    with pytest.raises(mv.InvalidInput, match="own came after the network"):
        embedded.remove(later)
    assert user.size() == columns
    embedded.remove({"a": later}, [own])
    assert (later.index, own.index) == (2, 0)
    assert user.minimise(-1 * later) == pytest.approx(-3.0)


def test_highs_tightens_before_variables_that_came_later() -> None:
    """What is replaced stays without effect where it cannot go, and goes in the end."""
    net, user = CURVED["tanh"], UserModel("highs")
    embedded = mv.embed(user.model, net, user.x)
    later = user.variable(0.0, 1.0, "later")
    found = solved(user, embedded, embedded.outputs[0] - later)
    assert found.largest <= TO and user.model.variableValue(later) == pytest.approx(1.0)
    embedded.remove(later)
    assert user.size() == (3, 0) and later.index == 2


@pytest.mark.parametrize("solver", SOLVERS)
def test_removal_is_refused_while_outputs_are_read(solver: str) -> None:
    user = UserModel(solver)
    embedded = mv.embed(user.model, LINES["relu"], user.x)
    row = user.row(embedded.outputs[0] >= -10, "mine")
    size = user.size()
    with pytest.raises(mv.InvalidInput, match="mine still reads outputs of net"):
        embedded.remove()
    assert user.size() == size
    user.unrow(row)
    if solver != "highs":
        embedded.remove()
        assert user.size() == (2, 0)


def test_all_that_may_read_outputs() -> None:
    """Constraints of every kind; the models stay as they are and can be solved."""
    scip, gurobi = importlib.import_module("pyscipopt"), importlib.import_module("gurobipy")

    def of_gurobi(add: Callable[[Any, Any], Any]) -> None:
        user = UserModel("gurobi")
        embedded = mv.embed(user.model, LINES["relu"], user.x)
        add(user, embedded.outputs[0])
        with pytest.raises(mv.InvalidInput, match="still reads outputs"):
            embedded.remove()
        user.minimise(embedded.outputs[1])
        assert embedded.error().largest <= TO

    def of_scip(add: Callable[[Any, Any], Any]) -> None:
        user = UserModel("scip")
        embedded = mv.embed(user.model, LINES["relu"], user.x)
        add(user, embedded.outputs[0])
        with pytest.raises(mv.InvalidInput, match="still reads outputs"):
            embedded.remove()
        user.minimise(embedded.outputs[1])
        assert embedded.error().largest <= TO

    of_scip(lambda user, y: user.model.addCons(scip.exp(y) <= 5))
    of_scip(lambda user, y: user.model.addCons(y * user.x[0] <= 5))
    of_scip(lambda user, y: user.model.addConsSOS1([y, user.x[0]]))
    of_scip(lambda user, y: user.model.addConsIndicator(y <= 5, user.model.addVar(vtype="B")))
    of_gurobi(lambda user, y: user.model.addConstr(y * user.x[0] <= 5))
    of_gurobi(lambda user, y: user.model.addSOS(1, [y, user.x[0]]))
    of_gurobi(lambda user, y: user.model.addConstr(user.variable(0, 9, "z") == gurobi.abs_(y)))
    of_gurobi(lambda user, y: user.model.addGenConstrNL(user.variable(0, 9, "z"), gurobi.nlfunc.exp(y)))


def test_variables_deleted_by_the_user() -> None:
    user = UserModel("highs", [(-1, 1)] * 3)
    embedded = mv.embed(user.model, LINES["relu"], user.x[1:])
    user.model.deleteVars(1, np.array([0], dtype=np.int32))
    with pytest.raises(mv.InvalidInput, match="were deleted from the HiGHS model"):
        embedded.error()


@pytest.mark.parametrize("solver", SOLVERS)
def test_tightening_follows_narrower_bounds(solver: str) -> None:
    """The user's own bounds of outputs stay."""
    net, user = network(nn.Tanh, seed=3), UserModel(solver)
    embedded = mv.embed(user.model, net, user.x, encoding="pieces")
    wide = embedded.box.upper - embedded.box.lower
    user.minimise(embedded.outputs[0])
    x = embedded.error().x
    user.bound([(max(-1.0, v - 0.05), min(1.0, v + 0.05)) for v in x])
    user.minimise(embedded.outputs[0])
    first = embedded.error().largest
    assert embedded.tighten(1e-9)
    user.minimise(embedded.outputs[0])
    assert embedded.error().largest < max(first, TO)
    assert ((embedded.box.upper - embedded.box.lower) < wide).all()


def test_errors_before_and_without_solutions() -> None:
    for solver in SOLVERS:
        user = UserModel(solver)
        embedded = mv.embed(user.model, LINES["relu"], user.x)
        with pytest.raises(mv.InvalidInput, match="solve it first"):
            embedded.error()
        with pytest.raises(mv.InvalidInput, match="solve it first"):
            embedded.tighten()
        user.minimise(embedded.outputs[0])
        with pytest.raises(mv.InvalidInput, match="must be positive"):
            embedded.tighten(to=0)
        assert not embedded.tighten(to=1.0)


def test_the_inputs_stay_within_the_bounds_that_held() -> None:
    """Bounds that are widened afterwards widen nothing, for nothing is known there."""
    for solver in SOLVERS:
        user = UserModel(solver)
        embedded = mv.embed(user.model, LINES["relu"], user.x, lower=-0.5, upper=[0.25, 0.5])
        user.bound([(-9, 9), (-9, 9)])
        user.minimise(-1 * user.x[0] - user.x[1] + 0 * embedded.outputs[0])
        np.testing.assert_allclose(embedded.error().x, [0.25, 0.5], atol=1e-6)
        assert embedded.error().largest <= TO
