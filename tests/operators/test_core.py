"""Kinds of nonlinear operators: none lacks an answer, all are relaxed, encoded and compared, and a new one needs no more than that."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from random_graphs import Builder, boxes, sample
from random_nets import proved_bounds
from torch import Tensor

import milpverify as mv
from milpverify.arithmetic.interval import Interval
from milpverify.arithmetic.rounding import U64
from milpverify.enclosure import enclose_all, exact_outputs
from milpverify.encode.encoding import ModelForm
from milpverify.encode.milp import encode
from milpverify.encode.neurons import is_taken
from milpverify.encode.smt import smt_script
from milpverify.errors import UnsupportedOperator
from milpverify.frontends.lowering.comparison import Comparison
from milpverify.functions.catalogue import catalogue
from milpverify.functions.pieces import Pieces
from milpverify.functions.terms import Term
from milpverify.graph import Graph, evaluate, evaluate_all
from milpverify.operators import (
    Affine,
    Concat,
    Conv,
    Elementwise,
    Linear,
    Nonlinear,
    Norm,
    Permute,
    Product,
    ReduceSum,
    Reshape,
    Scale,
    Select,
    SparseLinear,
    Sum,
    Transposed,
)
from milpverify.propagation.crown import crown
from milpverify.propagation.differences.operator import Difference
from milpverify.relaxations.registry import RULES, rule_of
from milpverify.relaxations.rule import PerInput, Rule, Side
from milpverify.solvers.base import Capability, Limits
from milpverify.solvers.registry import load
from milpverify.spec import Box, Disjunct, Rows

SAMPLES = {
    "made of lines": Elementwise(catalogue()["relu"].bind()),
    "curved": Elementwise(catalogue()["sigmoid"].bind()),
    "of steps": Elementwise(catalogue()["floor"].bind()),
    "square": Elementwise(catalogue()["square"].bind()),
    "product": Product(),
    "normalising": Product(Norm(1.0, 0.5)),
    "difference": Difference(catalogue()["relu"].bind()),
}
IN_NETWORKS = {name: op for name, op in SAMPLES.items() if not isinstance(op, Difference)}
"""The others stand in graphs that algorithms make for themselves, and have their lines and bounds there."""

WITHOUT_SMT: set[str] = set()
"""Samples of kinds that scripts of SMT refuse."""


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


_CONV = Conv(drawn(4, 1, 2, 3), (1, 2), ((1, 0), (0, 2)), (2, 1), 2, (1, 2, 4, 3))
_SPARSE = SparseLinear.of(Linear(torch.eye(140, dtype=torch.float64) - 2.0 * torch.eye(140, dtype=torch.float64).roll(1, 0)))
AFFINE: list[tuple[Affine | None, tuple[tuple[int, ...], ...]]] = [
    (Linear(drawn(4, 3)), ((2, 3),)),
    (_SPARSE, ((140,),)),
    (Scale(drawn(3), drawn(2, 3)), ((2, 3),)),
    (_CONV, ((1, 2, 4, 3),)),
    (Transposed(_CONV), ((1, 4, 3, 2),)),
    (Sum((1, -1, 1)), ((2, 3),) * 3),
    (Reshape((2, 3), (6,)), ((2, 3),)),
    (Permute((1, 0)), ((2, 3),)),
    (Select(torch.tensor([[0, -1], [4, 4], [5, 0]]), (2, 3), drawn(3, 2)), ((2, 3),)),
    (Concat(1, (3, 2)), ((2, 3), (2, 2))),
    (ReduceSum((1,), (2, 3, 2)), ((2, 3, 2),)),
]
"""A sample of each affine kind, with the shapes of its inputs."""


@dataclass(frozen=True, eq=False)
class Larger(Nonlinear):
    """y = max(a, b), a kind that the package has not."""

    @property
    def name(self) -> str:
        return "larger"

    def __str__(self) -> str:
        return "the larger of two"

    def value(self, xs: Sequence[Tensor]) -> Tensor:
        return torch.maximum(xs[0], xs[1])

    def interval(self, xs: Sequence[Interval]) -> Interval:
        return Interval(*(torch.maximum(a, b) for a, b in zip(*xs, strict=True)))

    def exact(self, xs: Sequence[Fraction]) -> Fraction:
        return max(xs)

    @property
    def pieces(self) -> Pieces | None:
        return None

    @property
    def staircase(self) -> bool:
        return False

    @property
    def bilinear(self) -> bool:
        return False

    @property
    def term(self) -> Term | None:
        return None


class LargerRule(Rule):
    """max(a, b) is convex: above it a plane is lowest at the box's corners, below it at these and where a = b meets its sides."""

    matters = (True, False)
    span = (0.0, 1.0)

    def spans(self, lower: PerInput, upper: PerInput) -> tuple[Tensor, Tensor, Tensor]:
        one = torch.ones_like(lower[0])
        return torch.zeros_like(one), one, one

    def is_exact(self, lower: PerInput, upper: PerInput) -> Tensor:
        return (lower[0] >= upper[1]) | (lower[1] >= upper[0])

    def default_slopes(self, lower: PerInput, upper: PerInput) -> tuple[PerInput, PerInput]:
        first = (lower[0] + upper[0] >= lower[1] + upper[1]).double()
        middle = torch.where(self.is_exact(lower, upper), first, 0.5)
        return (first, 1 - first), (middle, 1 - middle)

    def parallel_slopes(self, lower: PerInput, upper: PerInput) -> PerInput:
        return self.default_slopes(lower, upper)[1]

    def parameters(self, lower: PerInput, upper: PerInput, which: int, slopes: PerInput) -> Tensor:
        return slopes[0]

    def slopes(self, lower: PerInput, upper: PerInput, parameters: tuple[Tensor | None, Tensor | None]) -> tuple[PerInput, PerInput]:
        below, above = self.default_slopes(lower, upper)
        t = parameters[0]
        return below if t is None else (t.double(), 1 - t.double()), above

    def intercepts(self, lower: PerInput, upper: PerInput, k_lower: PerInput, k_upper: PerInput) -> tuple[Tensor, Tensor]:
        corners = list(product((lower[0], upper[0]), (lower[1], upper[1])))
        sides = [(end.clamp(lower[0], upper[0]), end.clamp(lower[1], upper[1])) for end in (*lower, *upper)]

        def heights(points: list[tuple[Tensor, Tensor]], k: PerInput) -> Tensor:
            return torch.stack([torch.maximum(a, b) - k[0] * a - k[1] * b for a, b in points])

        size = torch.stack([*lower, *upper]).abs().amax(0) * (1 + sum(k.abs() for k in (*k_lower, *k_upper)))
        return heights(corners + sides, k_lower).amin(0) - 8 * U64 * size, heights(corners, k_upper).amax(0) + 8 * U64 * size

    def sides(
        self, lower: PerInput, upper: PerInput, center: PerInput, value: Tensor, dtype: torch.dtype, once: bool = False
    ) -> tuple[Side, Side]:
        low, high, at = (tuple(t.unsqueeze(1) for t in part) for part in (lower, upper, center))

        def side(which: int, parameters: Tensor) -> tuple[PerInput, Tensor]:
            slopes = self.slopes(low, high, (None if which else parameters, None))
            intercept = self.intercepts(low, high, *slopes)[which] - value.unsqueeze(1)
            k = slopes[which]
            return tuple(part.to(dtype) for part in k), (intercept + k[0] * at[0] + k[1] * at[1]).to(dtype)

        return partial(side, 0), partial(side, 1)

    def hull_slopes(self, lower: PerInput, upper: PerInput) -> tuple[PerInput, PerInput]:
        one = torch.ones_like(lower[0])
        ends = torch.stack([one, 0 * one])
        return (ends, 1 - ends), tuple(k.unsqueeze(0) for k in self.default_slopes(lower, upper)[1])

    def range(self, lower: PerInput, upper: PerInput) -> tuple[Tensor, Tensor]:
        return torch.maximum(*lower), torch.maximum(*upper)

    def split_point(self, lower: Tensor, upper: Tensor) -> Tensor:
        return 0.5 * (lower + upper)


def network(op: Nonlinear) -> Graph:
    """Two layers of an operator, of one input or of two."""
    build = Builder(3, 0)
    for _ in range(2):
        start = len(build.nodes) - 1
        size = build.nodes[start].size
        places = range(1 if isinstance(op, Elementwise) else 2)
        inputs = [build.add(Linear(0.7 * build.normal(4, size), 0.2 * build.normal(4)), (4,), start) for _ in places]
        build.add(op, (4,), *inputs)
    build.linear(2)
    return build.graph()


def test_all_kinds_of_the_package_are_here() -> None:
    """A new kind needs a sample above, by which the tests below find what it lacks."""
    package = Path(mv.__file__).parent
    text = "\n".join(path.read_text() for path in package.rglob("*.py"))
    assert set(re.findall(r"^class (\w+)\([^)]*\bOperator\b", text, re.MULTILINE)) == {"Input", "Affine", "Nonlinear"}
    found = set(re.findall(r"^class (\w+)\([^)]*\bNonlinear\b", text, re.MULTILINE))
    assert found == {type(op).__name__ for op in SAMPLES.values()} > {"Elementwise"}
    assert set(RULES) == {type(op) for op in IN_NETWORKS.values()}
    affine = set(re.findall(r"^class (\w+)\([^)]*\bAffine\b", text, re.MULTILINE))
    assert affine == {type(op).__name__ for op, _ in AFFINE}


@pytest.mark.parametrize(("op", "shapes"), AFFINE, ids=[type(op).__name__ for op, _ in AFFINE])
def test_what_affine_kinds_say_of_themselves_is_true_of_their_matrix(op: Affine, shapes: tuple[tuple[int, ...], ...]) -> None:
    """The adjoint is its transpose; signs, absolute values and the lengths of sums are those of its coefficients."""
    shape = op.linear([torch.zeros(1, *s, dtype=torch.float64) for s in shapes]).shape[1:]
    matrices = []
    for i, s in enumerate(shapes):
        size = int(np.prod(s))
        units = [torch.zeros(size, *other, dtype=torch.float64) for other in shapes]
        units[i] = torch.eye(size, dtype=torch.float64).reshape(size, *s)
        matrices.append(op.linear(units).flatten(1).T)
        torch.testing.assert_close(op.absolute().linear([u.abs() for u in units]).flatten(1).T, matrices[i].abs())
    count = matrices[0].shape[0]
    adjoints = op.adjoint(torch.eye(count, dtype=torch.float64).reshape(count, *shape))
    assert len(adjoints) == len(op.directions) == len(shapes)
    for matrix, adjoint, direction, s in zip(matrices, adjoints, op.directions, shapes, strict=True):
        assert adjoint.shape == (count, *s)
        torch.testing.assert_close(adjoint.flatten(1), matrix)
        assert direction == 0 or bool((direction * matrix >= 0).all())
        assert op.adjoint_length >= int((matrix != 0).sum(0).max())
    assert op.length >= max(op.adjoint_length, int((torch.cat(matrices, 1) != 0).sum(1).max()))


@pytest.mark.parametrize("lacking", sorted(Nonlinear.__abstractmethods__))
def test_a_kind_that_lacks_an_answer_cannot_be_made(lacking: str) -> None:
    members = {name: getattr(Larger, name) for name in Nonlinear.__abstractmethods__ if name != lacking}
    kind = type("Lacking", (Nonlinear,), members)
    with pytest.raises(TypeError, match=lacking):
        kind()


@pytest.mark.parametrize("name", SAMPLES)
def test_ranges_hold_values_and_rationals(name: str) -> None:
    op = SAMPLES[name]
    count = 3 if isinstance(op, Difference) else 1 if isinstance(op, Elementwise) else 2
    torch.manual_seed(0)
    ends = (torch.randn(count, 50, 2, dtype=torch.float64) * 2).sort(dim=2).values
    points = ends[..., :1] + (ends[..., 1:] - ends[..., :1]) * torch.rand(count, 50, 20, dtype=torch.float64)
    if isinstance(op, Difference):
        points[2] = points[0] - points[1]
        ends[2] = torch.stack([points[2].amin(1), points[2].amax(1)], 1)
    reach, values = op.interval([Interval(e[:, :1], e[:, 1:]) for e in ends]), op.value(list(points))
    assert (values >= reach.lower - 1e-14).all() and (values <= reach.upper + 1e-14).all() and reach.lower.isfinite().all()
    for x, value in zip(points.flatten(1).T.tolist(), values.flatten().tolist(), strict=True):
        exact = op.exact([Fraction(v) for v in x])
        assert (exact is None) == (op.pieces is None and name in ("curved", "of steps", "square"))
        assert exact is None or abs(float(exact) - value) <= 1e-14 * max(1.0, abs(value))
    assert op.name and str(op)


@pytest.mark.parametrize("name", IN_NETWORKS)
def test_all_kinds_are_relaxed_encoded_and_compared(name: str) -> None:
    op = IN_NETWORKS[name]
    graph = network(op)
    assert rule_of(op) is not None
    comparison = Comparison(graph, "a runtime", str)
    comparison.roundoff = 2.0**-24
    args = [(torch.full((1, 4), 0.5, dtype=torch.float64), None)] * (1 if isinstance(op, Elementwise) else 2)
    assert (comparison.error(op, args, op.value([x for x, _ in args])) >= 0).all()
    if name == "normalising":  # what its norm says is not true of this network
        return
    box = Box(-0.1 * np.ones(3), 0.1 * np.ones(3))
    disjunct = Disjunct(box, Rows.on_outputs([[1.0, 0.0]], [0.0], 3, False), Rows.none(3, 2))
    bounds = proved_bounds(graph, box)
    assert encode(graph, bounds, disjunct).model.num_rows
    if name in WITHOUT_SMT:
        with pytest.raises(UnsupportedOperator, match="has no SMT form"):
            smt_script(graph, disjunct, transcendental=True)
    elif not op.staircase:
        assert "assert" in smt_script(graph, disjunct, transcendental=True).text


def test_what_stands_in_no_network_has_no_rule() -> None:
    with pytest.raises(NotImplementedError, match="Difference"):
        rule_of(SAMPLES["difference"])


def test_a_new_kind_is_a_class_and_a_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds, enclosures, rationals, models and verdicts are right; what has no form is refused in one line."""
    graph = network(Larger())
    with pytest.raises(NotImplementedError, match="no relaxation of Larger"):
        crown(graph, *boxes(graph, 1, 0.2, 0))
    monkeypatch.setitem(RULES, Larger, lambda op: LargerRule())
    lower, upper = boxes(graph, 2, 0.5, 0)
    x = sample(lower, upper, 200)
    values = evaluate_all(graph, x.flatten(0, 1))
    with torch.no_grad():
        states = [crown(graph, lower, upper)[0], crown(graph, lower, upper, dtype=torch.float32)[0]]
    known = [[state[i].bounds for state in states] for i in range(len(values))]
    for value, found in zip(values, known, strict=True):
        points = value.reshape(*x.shape[:2], -1)
        assert all((points >= b.lower.unsqueeze(1) - 1e-12).all() and (points <= b.upper.unsqueeze(1) + 1e-12).all() for b in found)
    first = np.round(x[0, 0].numpy() * 64) / 64
    exact = exact_outputs(graph, first)
    low, high = enclose_all(graph, torch.from_numpy(first)[None])[graph.output]
    assert exact is not None and all(a <= v <= b for a, v, b in zip(low[0].tolist(), exact, high[0].tolist(), strict=True))

    box = Box(lower[0].numpy(), upper[0].numpy())
    disjunct = Disjunct(box, Rows.on_outputs([[1.0, 0.0]], [0.0], 3, False), Rows.none(3, 2))
    everything = frozenset({Capability.QUADRATIC, Capability.FUNCTIONS})
    assert not is_taken(Larger(), everything)
    model = encode(graph, proved_bounds(graph, box, "alpha-crown"), disjunct, form=ModelForm(native=everything)).model
    least = load("highs").solve(model, Limits(20.0), lambda _: False).dual_bound
    assert -np.inf < least <= float(evaluate(graph, x[0])[:, 0].min()) + 1e-6
    with pytest.raises(UnsupportedOperator, match=r"larger .* has no SMT form"):
        smt_script(graph, disjunct, transcendental=True)


def test_networks_of_a_new_kind_are_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    """At a corner of the box the first output is least."""
    monkeypatch.setitem(RULES, Larger, lambda op: LargerRule())
    graph, box = network(Larger()), Box(-np.ones(3), np.ones(3))
    least = float(evaluate(graph, torch.tensor(list(product((-1.0, 1.0), repeat=3)), dtype=torch.float64))[:, 0].min())
    for change, verdict in ((-0.02, mv.Verdict.VERIFIED), (0.02, mv.Verdict.FALSIFIED)):
        disjunct = Disjunct(box, Rows.on_outputs([[1.0, 0.0]], [least + change], 3, False), Rows.none(3, 2))
        assert mv.verify(mv.Problem(graph, (disjunct,)), 60.0, "bab").verdict is verdict
