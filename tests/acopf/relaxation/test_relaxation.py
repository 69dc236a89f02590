"""Operating points, and what violates limits by as much as the tolerance, are in every box that contains them and satisfy every row."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from power_networks import Known, columns_cut_off, lifted, precise, random_box, random_known, rows_cut_off

from milpverify.acopf.relaxation import ranges as ranges_module
from milpverify.acopf.relaxation import separation as separation_module
from milpverify.acopf.relaxation.arithmetics import FLOATS, RATIONALS, Floats, Numbers, Rationals, Sector
from milpverify.acopf.relaxation.cuts import Cuts
from milpverify.acopf.relaxation.ranges import Ranges
from milpverify.acopf.relaxation.relaxation import Relaxation
from milpverify.acopf.relaxation.rows import Assembly
from milpverify.acopf.relaxation.separation import INWARDS, separate

NETWORKS = 24
SEARCHED = 40  # networks in which a wrong formula is looked for
KINDS = ("feasible", "priced", "growth")


def random_question(seed: int) -> tuple[np.random.Generator, Known]:
    rng = np.random.default_rng(seed)
    kind = KINDS[seed % 3]
    tolerance = float(rng.choice([1e-9, 1e-6, 1e-3, 0.1] if kind == "growth" else [0.0, 1e-6, 1e-3, 0.1]))
    return rng, random_known(rng, kind, tolerance)


def random_cuts(rng: np.random.Generator, relaxation: Relaxation, lower: np.ndarray, upper: np.ndarray) -> Cuts:
    """Those that anything in the box violates, and some that nothing asked for."""
    columns, gen = relaxation.columns, relaxation.question.case.generators
    low, high = np.clip(lower, -10, 10), np.clip(upper, -10, 10)
    asked = separate(relaxation, rng.uniform(np.minimum(low, high), np.maximum(low, high), (5, len(columns))), 1e-7)
    pairs, rated, prices = len(columns.pairs.i), len(columns.rated), len(columns.price)

    def directions(count: int, width: int) -> np.ndarray:
        u = rng.normal(size=(count, width))
        return u / np.linalg.norm(u, axis=1, keepdims=True) * INWARDS * np.where(rng.random((count, 1)) < 0.5, 1.0, 0.3)

    flows, ends = np.repeat(np.arange(rated), 4), np.tile([0, 0, 1, 1], rated)
    which = np.repeat(np.arange(len(gen))[:prices], 3)
    at, pair = 3 * rng.normal(size=len(which)), np.repeat(np.arange(pairs), 3)
    own = Cuts(pair, directions(3 * pairs, 3), flows, ends, directions(4 * rated, 2), which, at)
    return asked + own


def cut_off(seed: int, numbers: Numbers, boxes: int = 3) -> list[str]:
    """What misses the known point of a random question: ranges, settled ranges, rows."""
    rng, known = random_question(seed)
    relaxation, found = Relaxation(known.question, numbers), []
    ranges = Ranges(relaxation)
    with precise():
        values = lifted(known, relaxation)
    start = ranges.limits()
    with precise():
        found += [f"limit {j}" for j in columns_cut_off(*start, values)]
    for _ in range(boxes):
        box = random_box(rng, *Ranges(Relaxation(known.question)).limits(), values)
        if numbers is RATIONALS:  # also ends that no float64 equals
            box = tuple(RATIONALS.of(end) for end in box) if rng.random() < 0.5 else start
        settled = ranges.settled(*box)
        cuts = random_cuts(rng, Relaxation(known.question), *(_floats(end) for end in settled))
        for at in (box, settled):
            rows = relaxation.rows(*at, cuts)
            assert len(rows.lower) == relaxation.num_fixed + len(cuts)
            with precise():
                found += [f"column {j}" for j in columns_cut_off(*at, values)]
                found += [f"row {i} of {relaxation.num_fixed}" for i in rows_cut_off(rows, values)]
    return found


def _floats(values: np.ndarray) -> np.ndarray:
    return (
        np.array([float(v) if abs(v) < 2**1000 else np.sign(float(v / 2**900)) * np.inf for v in values])
        if values.dtype == object
        else values
    )


@pytest.mark.parametrize("seed", range(NETWORKS))
def test_the_point_is_one_that_the_question_means(seed: int) -> None:
    _, known = random_question(seed)
    point = known.point
    if known.question.growth is None:
        assert point.violation <= known.question.tolerance + 1e-12
        case, (low_p, high_p, low_q, high_q) = known.question.case, known.question.loads
        nominal = replace(point, pd=case.buses.pd, qd=case.buses.qd)
        assert nominal.violation <= known.question.tolerance + 1e-9
        if known.question.tolerance == 0.0:
            assert ((low_p <= point.pd) & (point.pd <= high_p) & (low_q <= point.qd) & (point.qd <= high_q)).all()


@pytest.mark.parametrize("numbers", [FLOATS, RATIONALS], ids=["floats", "rationals"])
def test_no_row_and_no_range_cuts_an_operating_point_off(numbers: Numbers) -> None:
    found = {seed: wrong for seed in range(NETWORKS) if (wrong := cut_off(seed, numbers))}
    assert not found


@pytest.mark.parametrize("seed", range(12))
def test_the_rational_rows_allow_no_more_than_those_of_float64(seed: int) -> None:
    """What a linear program in float64 proves the check proves, too, but for what sectors are rounded by (in float64 by more)."""
    rng, known = random_question(seed)
    rough, exact = (Relaxation(known.question, numbers) for numbers in (FLOATS, RATIONALS))
    with precise():
        values = lifted(known, rough)
    box = Ranges(rough).settled(*random_box(rng, *Ranges(rough).limits(), values))
    cuts = random_cuts(rng, rough, *box)
    lower, upper = (RATIONALS.of(end) for end in box)
    ours, theirs = rough.rows(*box, cuts), exact.rows(lower, upper, cuts)
    reach = np.maximum(abs(lower), abs(upper))
    for i in range(len(ours.lower)):
        mine, other = (
            {int(rows.column[k]): RATIONALS.of(rows.value[k : k + 1])[0] for k in range(rows.start[i], rows.start[i + 1])}
            for rows in (ours, theirs)
        )
        differences = {j: mine.get(j, 0) - other.get(j, 0) for j in {*mine, *other}}
        apart = sum((abs(by) * reach[j] for j, by in differences.items() if reach[j] < 2**1000), -RATIONALS.of([1e-14])[0])
        for sign, (end, exact_end) in ((1, (ours.upper[i], theirs.upper[i])), (-1, (-ours.lower[i], -theirs.lower[i]))):
            if abs(exact_end) < 2**1000:
                assert RATIONALS.of([end])[0] - exact_end >= apart, (i, sign)


def _without_radii(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Assembly.put
    monkeypatch.setattr(Assembly, "put", lambda self, row, column, value, radius=None: made(self, row, column, value))


def _sector(name: str, by: float) -> Any:
    def mutate(monkeypatch: pytest.MonkeyPatch) -> None:
        made = Numbers.sector

        def sector(self: Numbers, lower: Any, upper: Any) -> Sector:
            right = made(self, lower, upper)
            return replace(right, **{name: getattr(right, name) + self.of(np.full(len(right.narrow), by))})

        monkeypatch.setattr(Numbers, "sector", sector)

    return mutate


def _one_way(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Relaxation._flow

    def flow(self: Relaxation, *rest: Any) -> None:
        sign, self.columns.pairs.sign[:] = self.columns.pairs.sign.copy(), 1
        made(self, *rest)
        self.columns.pairs.sign[:] = sign

    monkeypatch.setattr(Relaxation, "_flow", flow)


def _functions(change: Any) -> Any:
    def mutate(monkeypatch: pytest.MonkeyPatch) -> None:
        for kind in (Floats, Rationals):
            made = kind.apply
            monkeypatch.setattr(kind, "apply", lambda self, name, values, up, made=made: change(self, made, name, values, up))

    return mutate


def _inwards(self: Numbers, made: Any, name: str, values: Any, up: bool) -> Any:
    return made(self, name, values, not up)


def _short(name: str, by: float) -> Any:
    def change(self: Numbers, made: Any, function: str, values: Any, up: bool) -> Any:
        right = made(self, function, values, up)
        return right + self.of(np.full(len(right), -by if up else by)) if function == name else right

    return _functions(change)


def _strict(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Relaxation.__init__

    def init(self: Relaxation, question: Any, *rest: Any) -> None:
        made(self, replace(question, tolerance=0.9 * question.tolerance), *rest)

    monkeypatch.setattr(Relaxation, "__init__", init)


def _constant(module: Any, name: str, value: float) -> Any:
    return lambda monkeypatch: monkeypatch.setattr(module, name, value)


def _zeros(relaxation: Relaxation) -> Any:
    return relaxation.numbers.of(np.zeros(len(relaxation.columns)))


def _all_cycles(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Relaxation._cycles
    monkeypatch.setattr(Relaxation, "_cycles", lambda self, rows, lower, upper: made(self, rows, _zeros(self), _zeros(self)))


def _dear(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Relaxation.costs.func
    monkeypatch.setattr(Relaxation, "costs", property(lambda self: (*right(self)[:2], right(self)[2] + self.numbers.of([1e-9]))))


MUTATIONS = {
    "radii of the admittances": _without_radii,
    "cosine of a sector": _sector("cosine", 1e-4),
    "tangent of a sector": _sector("tangent", -1e-4),
    "error of the tangent": _sector("error", -1e-4),
    "slope of the tangent": _sector("slope", 0.02),
    "turn of a sector": _sector("turn", 1e-4),
    "direction of a branch": _one_way,
    "functions rounded inwards": _functions(_inwards),
    "square roots too narrow": _short("sqrt", 1e-9),
    "tangents too narrow": _short("tan", 1e-7),
    "angles too narrow": _short("atan", 1e-9),
    "tolerance": _strict,
    "limits beyond half a turn": _constant(ranges_module, "HALF_TURN", 100.0),
    "angles that reach half a turn": _constant(ranges_module, "ANGLE", 3.0),
    "cycles that are too wide": _all_cycles,
    "planes longer than 1": _constant(separation_module, "INWARDS", 1.001),
    "costs": _dear,
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_wrong_formula_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    MUTATIONS[name](monkeypatch)
    assert any(cut_off(seed, numbers) for seed in range(SEARCHED) for numbers in (FLOATS, RATIONALS))
