"""What is embedded contains the network's graph, whatever its functions; pieces enclose what the lines alone do not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from product_networks import Grower, product_network
from random_nets import random_problem
from user_models import SOLVERS, UserModel

import milpverify as mv
from milpverify.embed.deviation import EmbedTuning
from milpverify.functions.catalogue import catalogue
from milpverify.graph import Graph, evaluate_all

FUNCTIONS = sorted(catalogue())


def network_of(name: str) -> tuple[Graph, tuple[float, float]]:
    """One function over its inputs, between two layers, and bounds of the inputs that keep it within its domain."""
    grower = Grower(2, 5)
    function = catalogue()[name].bind(alpha=0.25) if name == "hard_sigmoid" else catalogue()[name].trial()
    ends = {"tan": (-1.25, 1.25)}.get(name, (0.5, 2.0) if name in ("log", "reciprocal", "rsqrt", "sqrt") else (-2.0, 2.0))
    low, high = ends
    middle, half = 0.5 * (low + high), 0.5 * (high - low)
    weights = 0.5 * half * np.array([[1.0, -0.5], [0.75, 1.0]])
    inner = grower.scale(grower.matmul(grower.nodes[0], weights), bias=np.array([middle, middle]))
    return grower.finished(grower.layer(grower.apply(function, inner), 2)), (-1.0, 1.0)


def encloses(user: UserModel, embedded: mv.Embedding, graph: Graph, x: np.ndarray) -> float:
    """Fixes the inputs, and looks on both sides for each output; how far apart the sides are."""
    user.fix(x)
    y = evaluate_all(graph, torch.from_numpy(x)[None])[graph.output].reshape(-1).numpy()
    apart = 0.0
    for k, true in enumerate(y):
        low, high = user.minimise(1 * embedded.outputs[k]), -user.minimise(-1 * embedded.outputs[k])
        slack = 2e-6 * max(1.0, float(embedded.scale[k]))
        assert low <= true + slack and true - slack <= high
        apart = max(apart, high - low)
    return apart


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_of_the_catalogue(name: str) -> None:
    graph, (low, high) = network_of(name)
    rng = np.random.default_rng(3)
    for solver in SOLVERS:
        user = UserModel(solver, [(low, high)] * 2)
        embedded = mv.embed(user.model, graph, user.x)
        for x in rng.uniform(low, high, (2, 2)):
            apart = encloses(user, embedded, graph, x)
            if graph.piecewise_linear:
                assert apart <= 1e-5 * max(1.0, embedded.scale.max())


@pytest.mark.parametrize("seed", range(6))
def test_random_networks_of_lines(seed: int) -> None:
    graph, disjunct = random_problem(seed)
    for solver in SOLVERS:
        user = UserModel(solver, list(zip(disjunct.box.lower.tolist(), disjunct.box.upper.tolist(), strict=True)))
        embedded = mv.embed(user.model, graph, user.x)
        for x in np.random.default_rng(seed).uniform(disjunct.box.lower, disjunct.box.upper, (2, graph.nx)):
            encloses(user, embedded, graph, x)


@pytest.mark.parametrize("seed", range(4))
def test_random_products(seed: int) -> None:
    graph = product_network(seed)
    for solver in SOLVERS:
        user = UserModel(solver, [(-0.5, 0.5)] * graph.nx)
        embedded = mv.embed(user.model, graph, user.x)
        encloses(user, embedded, graph, np.random.default_rng(seed).uniform(-0.5, 0.5, graph.nx))


def test_more_pieces_enclose_more_tightly() -> None:
    graph, (low, high) = network_of("tanh")
    apart = []
    for pieces in (1, 2, 4, 16):
        user = UserModel("highs", [(low, high)] * 2)
        embedded = mv.embed(user.model, graph, user.x, pieces=pieces)
        apart.append(encloses(user, embedded, graph, np.array([0.4, -0.3])))
    assert apart[0] > apart[1] > apart[2] > 4 * apart[3] > 0


def test_neurons_within_what_counts_as_exact_have_no_breakpoints() -> None:
    graph, (low, high) = network_of("tanh")
    apart = []
    for pieces, tuning in ((1, EmbedTuning()), (4, EmbedTuning()), (4, EmbedTuning(exact=1e3))):
        user = UserModel("highs", [(low, high)] * 2)
        embedded = mv.embed(user.model, graph, user.x, pieces=pieces, tuning=tuning)
        apart.append(encloses(user, embedded, graph, np.array([0.4, -0.3])))
    assert apart[1] < apart[0] == apart[2]
