"""Models of curved networks: every point of the network is a point of the model, whatever is parted, and pieces come close to the truth."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from product_networks import Grower, attention_network, product_network, recurrent_network
from random_graphs import Builder, dense_network
from random_nets import disjunct_of, proved_bounds

from milpverify.encode.curves import Cut, Cuts
from milpverify.encode.encoding import Encoding, ModelForm
from milpverify.encode.milp import encode
from milpverify.encode.model import NumericallyUnfit
from milpverify.frontends.lowering.builder import Builder as Lowering
from milpverify.functions.catalogue import catalogue
from milpverify.graph import Graph, evaluate, evaluate_all
from milpverify.operators import Concat, Elementwise, Product
from milpverify.relaxations.envelope import envelope
from milpverify.relaxations.registry import rule_of
from milpverify.solvers.base import Capability, Limits
from milpverify.solvers.model import Model
from milpverify.solvers.registry import load
from milpverify.spec import Box, Disjunct, Rows

CURVED = sorted(name for name, entry in catalogue().items() if entry.domain or name in ("floor", "round"))
ENDS = {"log": (0.1, 5.0), "sqrt": (0.1, 5.0), "rsqrt": (0.1, 5.0), "reciprocal": (0.25, 4.0), "tan": (-1.4, 1.3), "pow_odd": (-1.5, 2.0)}


def neuron(name: str) -> tuple[Graph, Box]:
    """One function of one input, over an interval in its domain on which its curvature changes where it can."""
    build = Builder(1, 0)
    build.apply(name)
    low, high = ENDS.get(name, (-3.0, 4.0))
    return build.graph(), Box(np.array([low]), np.array([high]))


def parted(graph: Graph, bounds: list[tuple[torch.Tensor, torch.Tensor]], pieces: int, seed: int = 0) -> Cuts:
    """All curved neurons in so many pieces of random widths."""
    rng = np.random.default_rng(seed)
    cuts = {}
    for i in graph.nonlinear:
        op = graph.nodes[i].op
        if isinstance(op, Elementwise) and op.function.pieces is not None:
            continue
        for k in range(graph.nodes[i].size):
            place = int(rng.integers(len(graph.nodes[i].inputs)))
            low, high = (float(t.reshape(-1)[k]) for t in bounds[graph.nodes[i].inputs[place]])
            inner = low + np.sort(rng.uniform(size=pieces - 1)) * (high - low)
            cuts[i, k] = Cut(place, tuple(inner.tolist()))
    return cuts


def network(kind: str) -> tuple[Graph, Box]:
    if kind in CURVED:
        return neuron(kind)
    graph = {
        "tanh": lambda: dense_network((3, 6, 5, 1), "tanh", 0),
        "mixed": lambda: dense_network((3, 6, 5, 1), "gelu", 1),
        "products": lambda: product_network(1),
        "more products": lambda: product_network(2),
        "attention": lambda: attention_network(0),
        "recurrent": lambda: recurrent_network(0),
    }[kind.removeprefix("net of ")]()
    return graph, Box(-np.ones(graph.nx), np.ones(graph.nx))


NETWORKS = [f"net of {kind}" for kind in ("tanh", "mixed", "products", "more products", "attention", "recurrent")]


def points(box: Box, count: int) -> np.ndarray:
    inner = np.random.default_rng(1).uniform(box.lower, box.upper, (count, box.size))
    return np.concatenate([inner, box.lower[None], box.upper[None], 0.5 * (box.lower + box.upper)[None]])


def minimum(graph: Graph, box: Box, sign: float = 1.0) -> float:
    x = torch.from_numpy(points(box, 4000 if graph.nx > 1 else 100_000))
    return float((sign * evaluate(graph, x)[:, 0]).min())


def first_output(graph: Graph, box: Box, sign: float = 1.0) -> Disjunct:
    row = np.zeros((1, graph.ny))
    row[0, 0] = sign
    return Disjunct(box, Rows.on_outputs(row, [0.0], graph.nx), Rows.none(graph.nx, graph.ny))


@pytest.mark.parametrize("pieces", [1, 4])
@pytest.mark.parametrize("kind", [*CURVED, *NETWORKS])
def test_every_point_of_the_network_is_one_of_the_model(kind: str, pieces: int) -> None:
    """The start is what a true point comes to, all auxiliary variables included."""
    graph, box = network(kind)
    bounds = proved_bounds(graph, box, "crown")
    cuts = parted(graph, bounds, pieces)
    for x in points(box, 20):
        if kind in ("floor", "round"):
            continue  # an integer variable has no start
        model = encode(graph, bounds, first_output(graph, box), start=x, form=ModelForm(cuts)).model
        assert model.start is not None
        assert model.violation(model.start) <= 1e-12


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("kind", [*CURVED, *NETWORKS])
def test_pieces_come_close_to_the_least_value(kind: str, sign: float) -> None:
    graph, box = network(kind)
    if kind == "net of attention" and sign < 0:
        pytest.skip("one side of the dearest is enough")
    if kind.startswith("net of"):  # on small boxes few pieces are decided soon
        box = Box(0.3 * box.lower, 0.3 * box.upper)
    bounds, truth = proved_bounds(graph, box, "crown"), minimum(graph, box, sign)
    found = [least(encode(graph, bounds, first_output(graph, box, sign), form=ModelForm(parted(graph, bounds, n))).model) for n in (1, 2)]
    small = encode(graph, bounds, first_output(graph, box, sign))
    assert found[0] <= truth + 1e-6 and found[1] <= truth + 1e-6
    assert found[0] <= found[1] + 1e-6 * (1 + abs(truth))
    assert not small.model.integer.any() or kind in ("floor", "round") or any(not n.curved for n in small.neurons)
    if graph.nx == 1:
        fine = least(encode(graph, bounds, first_output(graph, box, sign), form=ModelForm(parted(graph, bounds, 60))).model)
        size = float(max(1.0, np.abs(evaluate(graph, torch.from_numpy(points(box, 100))).numpy()).max()))
        assert truth - 0.02 * size <= fine <= truth + 1e-6


def least(model: Model) -> float:
    return float(load("highs").solve(model, Limits(20.0), lambda _: False).dual_bound)


def test_what_a_solver_takes_as_it_is_has_no_binaries() -> None:
    graph, box = network("net of products")
    bounds = proved_bounds(graph, box, "crown")
    cuts = parted(graph, bounds, 3)
    encoding = encode(
        graph, bounds, first_output(graph, box), start=np.zeros(graph.nx), form=ModelForm(cuts, frozenset({Capability.QUADRATIC}))
    )
    model = encoding.model
    assert model.quadratic is not None and model.start is not None and model.violation(model.start) <= 1e-12
    assert Capability.QUADRATIC in model.required


@pytest.mark.parametrize("name", [name for name in CURVED if name not in ("floor", "round")])
def test_functions_stay_what_they_are_for_solvers_that_take_them(name: str) -> None:
    graph, box = neuron(name)
    bounds = proved_bounds(graph, box, "crown")
    native = frozenset({Capability.QUADRATIC, Capability.FUNCTIONS})
    for x in points(box, 5):
        model = encode(graph, bounds, first_output(graph, box), start=x, form=ModelForm(native=native)).model
        assert model.functions or model.quadratic is not None
        assert model.start is not None and model.violation(model.start) <= 1e-7


def test_columns_say_what_neurons_read_and_make() -> None:
    graph, box = network("net of more products")
    bounds, x = proved_bounds(graph, box, "crown"), np.full(4, 0.3)
    encoding = encode(graph, bounds, first_output(graph, box), start=x)
    assert encoding.model.start is not None
    values, quantities = evaluate_all(graph, torch.from_numpy(x)[None]), encoding.quantities(encoding.model.start)
    assert any(len(n.inputs) == 2 for n in encoding.neurons)
    for neurons in encoding.neurons:
        node = graph.nodes[neurons.node]
        assert np.allclose(quantities[neurons.outputs], values[node.id].flatten()[neurons.index])
        for columns, source in zip(neurons.inputs, node.inputs, strict=True):
            assert np.allclose(quantities[columns], values[source].flatten()[neurons.index])


def test_a_function_whose_domain_is_left_is_refused_by_name() -> None:
    build = Builder(1, 0)
    build.apply("log")
    graph, box = build.graph(), Box(np.array([-1.0]), np.array([1.0]))
    with pytest.raises(NumericallyUnfit, match=r"log .*domain"):
        encode(graph, proved_bounds(graph, box, "crown"), first_output(graph, box))


def test_relaxations_are_those_of_the_margin() -> None:
    """Without cuts the model is linear: its least value is no worse than CROWN's bound with the same intermediate bounds."""
    graph, box = network("net of tanh")
    encoding: Encoding = encode(
        graph, proved_bounds(graph, box, "crown"), disjunct_of(box, 0.0) if graph.ny == 3 else first_output(graph, box)
    )
    crown = float(proved_bounds(graph, box, "crown")[graph.output][0].reshape(-1)[0])
    assert not encoding.model.integer.any() and least(encoding.model) >= crown - 1e-7


def test_what_two_neurons_read_has_one_column() -> None:
    """A kink writes down the input that it reads, a curve reads the input's own column: whoever comes second takes the first one's."""
    build = Builder(1, 0)
    for name in ("sign", "floor", "tanh"):
        build.add(Elementwise(catalogue()[name].trial()), (1,), 0)
    build.add(Concat(0, (1, 1, 1)), (3,), 1, 2, 3)
    build.linear(1)
    graph, box = build.graph(), Box(np.array([-1.5]), np.array([1.5]))
    encoding = encode(graph, proved_bounds(graph, box, "crown"), first_output(graph, box))
    read = {int(c) for neurons in encoding.neurons for columns in neurons.inputs for c in columns}
    assert read <= set(encoding.arguments.values())


def test_a_function_whose_range_no_tolerance_carries_is_refused_by_name() -> None:
    build = Builder(1, 0)
    build.apply("tanh")
    graph, box = build.graph(), Box(np.array([0.3]), np.array([0.3 + 1e-6]))
    with pytest.raises(NumericallyUnfit, match="tanh has a range"):
        encode(
            graph, proved_bounds(graph, box, "crown"), first_output(graph, box), form=ModelForm(native=frozenset({Capability.FUNCTIONS}))
        )


@pytest.mark.parametrize("name", ["square", "sigmoid", "tanh"])
def test_rounding_that_is_felt_is_not_taken_for_nothing(name: str) -> None:
    """z = 146837.1 (999.51 - x) + 1/2 cancels to 1/2 up to 3e-7, which counts times 10^4, whichever way it goes."""
    function, exact = catalogue()[name].trial(), Fraction(-146837.1) * Fraction(999.51) + Fraction(146837.1 * 999.51 + 0.5)
    slope = float(function.derivative(torch.tensor(0.5, dtype=torch.float64)))
    for way in (1.0, -1.0):
        g = Lowering(1)
        z = g.scale(g.matmul(g.nodes[0], np.array([[-146837.1]])), bias=np.array([146837.1 * 999.51 + 0.5]))
        centre = float(function(torch.tensor(0.5, dtype=torch.float64)))
        graph = g.graph([g.scale(g.apply(function, z), way * 1e4, -way * 1e4 * centre)], (), ())
        box = Box(np.array([999.51]), np.array([999.51]))
        truth = way * 1e4 * slope * float(exact - Fraction(1, 2))
        assert abs(truth) > 1e-6
        assert least(encode(graph, proved_bounds(graph, box, "crown"), first_output(graph, box)).model) <= truth + 1e-8


def test_factors_that_are_one_variable_have_one_column() -> None:
    """Through copies a product may read a variable twice: its rows name it once, or solvers refuse them."""
    g = Grower(3, 0)
    x = g.layer(g.nodes[0], 3)
    graph = g.finished(g.layer(g.product(g.select(x, np.array([0, 1, 2])), g.select(x, np.array([0, 2, 1]))), 1))
    box = Box(-np.ones(3), np.ones(3))
    bounds = proved_bounds(graph, box, "crown")
    for pieces in (1, 3):
        model = encode(graph, bounds, first_output(graph, box), start=np.full(3, 0.3), form=ModelForm(parted(graph, bounds, pieces))).model
        assert all(len(set(model.row(i)[0].tolist())) == len(model.row(i)[0]) for i in range(model.num_rows))
        assert model.start is not None and model.violation(model.start) <= 1e-12
        assert -np.inf < least(model) <= minimum(graph, box) + 1e-6


@pytest.mark.parametrize("op", [Elementwise(catalogue()["floor"].bind()), Elementwise(catalogue()["tanh"].bind()), Product()])
def test_no_entries_have_no_lines(op: Elementwise | Product) -> None:
    """Where all entries of a curved node are constants nothing is left of it."""
    none = (torch.zeros(0, dtype=torch.float64),) * (2 if isinstance(op, Product) else 1)
    assert all(side.intercept.shape[1] == 0 for side in envelope(rule_of(op), none, none))
