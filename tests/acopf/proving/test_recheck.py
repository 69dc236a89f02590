"""True proofs are accepted; what has been tampered with, or claims more than is true, is not."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from power_cases import small

from milpverify.acopf.case import Case
from milpverify.acopf.loads import Loads, box, scaled
from milpverify.acopf.matpower import load_case
from milpverify.acopf.proving.proof import Deduction, Leaf, Multipliers, Node, Proof, Statement, Step
from milpverify.acopf.proving.prover import Prover, claim
from milpverify.acopf.proving.recheck import recheck
from milpverify.acopf.relaxation.cuts import Cuts, no_cuts
from milpverify.config import Deadline
from milpverify.errors import InvalidInput
from milpverify.result import Trust

LEAST = 1709.6954  # $/h: what a point costs
MOST = 1.024459  # the factor that a point carries
ALL = 1e9  # $/h


@lru_cache(1)
def case() -> Case:
    """Three buses and two generators: the lines from the cheap one are weak, so that boxes have to be split."""
    tables = small()
    tables["bus"][:, 2] = [0, 20, 40]
    tables["branch"][:, 5] = [25, 22, 30]
    return load_case(tables)


@lru_cache(8)
def prove(statement: Statement, loads: Loads, tolerance: float, cutoff: float, target: float) -> Proof:
    start = math.inf if statement is Statement.COST else 0.0
    with Prover(case(), claim(statement, loads.ranges(case()), tolerance, start), Deadline(30.0)) as prover:
        prover.root()
        if math.isfinite(cutoff):
            prover.cut(cutoff)
        prover.search(lambda: target, lambda *_: None)
        proved = prover.proved()
    assert proved.proof is not None and proved.trust is Trust.EXACT, proved.warnings
    return proved.proof


def cost() -> Proof:
    return prove(Statement.COST, Loads(), 0.0, LEAST, LEAST * (1 - 3e-5))


def growth() -> Proof:
    return prove(Statement.GROWTH, Loads(), 0.0, MOST, -MOST * (1 + 1e-5))


def infeasible() -> Proof:
    """A tree."""
    return prove(Statement.INFEASIBLE, scaled(1.03), 2e-6, math.inf, math.inf)


def hopeless() -> Proof:
    """One linear program."""
    return prove(Statement.INFEASIBLE, scaled(1.6), 2e-6, math.inf, math.inf)


PROOFS: dict[str, Callable[[], Proof]] = {"cost": cost, "growth": growth, "infeasible": infeasible, "hopeless": hopeless}
EVERY = pytest.mark.parametrize("name", PROOFS)


def copied(proof: Proof) -> Proof:
    """One that may be changed."""
    return Proof.from_dict(json.loads(json.dumps(proof.to_dict())))


def nodes(node: Node) -> Iterator[Node]:
    yield node
    for child in (node.below, node.above):
        if child is not None:
            yield from nodes(child)


def leaves(proof: Proof) -> list[Node]:
    return [node for node in nodes(proof.root) if node.below is None]


def binding(proof: Proof) -> Node:
    """The leaf that the bound comes from; of a refutation any that needs multipliers."""
    return min((node for node in leaves(proof) if node.leaf.multipliers is not None or node.steps), key=lambda node: node.leaf.bound)


def multipliers_of(node: Node) -> Multipliers:
    """Those that end a box: of its refutation, or of the last range of the objective."""
    return node.steps[-1].deductions[-1].multipliers if node.leaf.multipliers is None else node.leaf.multipliers


def with_multipliers(node: Node, change: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]) -> None:
    old = multipliers_of(node)
    new = Multipliers(*change(old.rows.copy(), old.values.copy()))
    if node.leaf.multipliers is not None:
        node.leaf = replace(node.leaf, multipliers=new)
        return
    step = node.steps[-1]
    node.steps[-1] = Step(step.cuts, (*step.deductions[:-1], replace(step.deductions[-1], multipliers=new)))


@EVERY
def test_a_proof_is_accepted_as_it_is_and_from_a_file(name: str, tmp_path: Path) -> None:
    proof = PROOFS[name]()
    assert recheck(case(), proof), recheck(case(), proof).message
    for path in (tmp_path / "proof.json", tmp_path / "proof.json.gz"):
        proof.save(path)
        assert recheck(case(), Proof.load(path))
    assert (proof.root.nodes() > 1) == (name != "hopeless")


def test_bounds_are_close_and_on_the_right_side() -> None:
    assert LEAST * (1 - 3.1e-5) <= cost().bound <= LEAST
    assert MOST <= growth().bound <= MOST * (1 + 1.1e-5)


@EVERY
def test_a_flipped_multiplier_is_noticed(name: str) -> None:
    """But in a leaf whose multipliers refute more than it contains one may be too much."""
    proof = copied(PROOFS[name]())
    values = multipliers_of(binding(proof)).values
    noticed = []
    for k in np.argsort(-np.abs(values))[:6].tolist():
        changed = copied(proof)
        with_multipliers(binding(changed), lambda rows, values, k=k: (rows, np.where(np.arange(len(values)) == k, -values, values)))
        noticed.append(not recheck(case(), changed))
    assert any(noticed) if name == "infeasible" else all(noticed)


@EVERY
def test_multipliers_of_rows_that_do_not_exist(name: str) -> None:
    for row in (-1, 10**6):
        proof = copied(PROOFS[name]())
        with_multipliers(binding(proof), lambda rows, values, row=row: (np.append(rows[1:], row), values))
        assert "row that there is not" in recheck(case(), proof).message


def test_a_row_may_come_twice_and_then_counts_twice() -> None:
    halves, doubled = copied(cost()), copied(cost())
    with_multipliers(binding(halves), lambda rows, values: (np.append(rows, rows), np.append(values / 2, values / 2)))
    with_multipliers(binding(doubled), lambda rows, values: (np.append(rows, rows), np.append(values, values)))
    assert recheck(case(), halves)
    assert not recheck(case(), doubled)


@pytest.mark.parametrize("name", ["cost", "growth", "infeasible"])
def test_a_tree_needs_all_that_is_in_it(name: str) -> None:
    right = PROOFS[name]()
    changed = copied(right)
    binding(changed).leaf = None
    assert "left open" in recheck(case(), changed).message
    changed = copied(right)
    changed.root.below, changed.root.above = changed.root.above, changed.root.below
    assert not recheck(case(), changed)
    changed = copied(right)
    accepted = []
    for side in ("below", "above"):  # one of them may be refuted by its ranges alone
        changed = copied(right)
        setattr(changed.root, side, Node(leaf=Leaf(no_cuts(), None, math.inf)))
        accepted.append(bool(recheck(case(), changed)))
    assert not all(accepted)
    for at in (-1e3, 1e3):  # one side is all of it then; a little one way or the other may do
        changed = copied(right)
        for node in nodes(changed.root):
            node.at = at
        assert not recheck(case(), changed)
    for column, at in ((-1, 0.0), (10**6, 0.0), (0, math.nan), (0, math.inf)):
        changed = copied(right)
        changed.root.column, changed.root.at = column, at
        assert "a split of column" in recheck(case(), changed).message
    with_steps = [node for node in nodes(copied(right).root) if node.steps]
    assert with_steps
    changed = copied(right)
    for node in nodes(changed.root):
        node.steps.clear()
    assert not recheck(case(), changed)


def test_a_deduction_is_checked() -> None:
    proof = copied(cost())
    step = next(node for node in nodes(proof.root) if node.steps).steps[0]
    first = step.deductions[0]
    holder = next(node for node in nodes(proof.root) if node.steps)
    by = 1e-9 if not first.upper else -1e-9
    for changed, said in (
        (replace(first, value=first.value + by), "is not proved"),
        (replace(first, upper=not first.upper), "is not proved"),
        (replace(first, value=math.nan), "a deduction about column"),
        (replace(first, value=math.inf), "a deduction about column"),
        (replace(first, column=-1), "a deduction about column"),
        (replace(first, column=10**6), "a deduction about column"),
        (replace(first, multipliers=Multipliers(np.zeros(0, dtype=np.int64), np.zeros(0))), "is not proved"),
    ):
        holder.steps[0] = Step(step.cuts, (changed, *step.deductions[1:]))
        assert said in recheck(case(), proof).message
    holder.steps[0] = step
    assert recheck(case(), proof)


def test_nothing_is_deduced_of_costs_or_loads_that_is_not_so() -> None:
    nothing = Multipliers(np.zeros(0, dtype=np.int64), np.zeros(0))
    for proof in (copied(cost()), copied(growth())):
        for column in range(12, 22):
            for upper, value in ((False, 1.0), (True, -1.0), (False, 1e300), (True, -1e300)):
                proof.root.steps[:] = [Step(no_cuts(), (Deduction(column, upper, value, nothing),))]
                assert not recheck(case(), proof)


@EVERY
def test_more_than_was_proved_is_not_accepted(name: str) -> None:
    proof = PROOFS[name]()
    if name in ("cost", "growth"):
        sign = 1 if name == "cost" else -1
        assert not recheck(case(), replace(proof, bound=proof.bound * (1 + sign * 1e-6)))
        assert not recheck(case(), replace(proof, bound=proof.bound * (1 + sign * 1e-6), cutoff=proof.cutoff * (1 + sign * 1e-6)))
        for bound in (math.nan, math.inf, -math.inf):
            assert not recheck(case(), replace(proof, bound=bound))
        for cutoff in (math.inf, -math.inf, math.nan, 1e305, -1e305, proof.cutoff * (1 - sign * 0.01), proof.cutoff * (1 + sign * 0.01)):
            assert not recheck(case(), replace(proof, cutoff=cutoff))
    for tolerance in (1e-2, 0.49, 0.5, math.inf, math.nan, -1e-9):
        assert not recheck(case(), replace(proof, tolerance=tolerance if name != "hopeless" else max(tolerance, 0.45)))
    if proof.statement is not Statement.INFEASIBLE:  # what has no operating point has none at any cost
        for statement, bound in ((Statement.INFEASIBLE, 0.0), (Statement.COST, ALL), (Statement.GROWTH, 0.1)):
            assert not recheck(case(), replace(proof, statement=statement, bound=bound, cutoff=bound))


def test_a_proof_holds_for_its_loads_only() -> None:
    assert not recheck(case(), infeasible(), loads=scaled(1.02))
    assert not recheck(case(), infeasible(), loads=box(0.02, 1.03))
    assert not recheck(case(), cost(), loads=scaled(0.99))
    assert not recheck(case(), hopeless(), loads=scaled(1.0))
    assert recheck(case(), hopeless(), loads=scaled(1.6))
    assert recheck(case(), growth(), loads=scaled(1.0))
    assert "not of other ones" in recheck(case(), growth(), loads=scaled(0.9)).message
    own = Loads().ranges(case())
    assert not recheck(case(), replace(infeasible(), loads=own))
    low_p, high_p, low_q, high_q = infeasible().loads
    assert "nothing in a range" in recheck(case(), replace(infeasible(), loads=(high_p + 1, low_p, low_q, high_q))).message
    for wrong in (low_p[:2], np.append(low_p, 0.0), low_p * math.nan, low_p[None], low_p + math.inf):
        assert "not those of 3 buses" in recheck(case(), replace(infeasible(), loads=(wrong, high_p, low_q, high_q))).message


def _generators(**change: Any) -> Callable[[Case], Case]:
    return lambda old: replace(old, generators=replace(old.generators, **{k: f(getattr(old.generators, k)) for k, f in change.items()}))


def _buses(**change: Any) -> Callable[[Case], Case]:
    return lambda old: replace(old, buses=replace(old.buses, **{k: f(getattr(old.buses, k)) for k, f in change.items()}))


def _branches(**change: Any) -> Callable[[Case], Case]:
    return lambda old: replace(old, branches=replace(old.branches, **{k: f(getattr(old.branches, k)) for k, f in change.items()}))


OTHER_CASES = {
    "ratings wider": _branches(rate=lambda v: v * 1.2),
    "no ratings": _branches(rate=lambda v: v * math.inf),
    "voltages wider": _buses(vmin=lambda v: v - 0.05, vmax=lambda v: v + 0.05),
    "cheaper": _generators(c1=lambda v: v * 0.99),
    "better lines": _branches(x=lambda v: v * 0.8),
    "another shift": _branches(shift=lambda v: v - 0.1),
}


@pytest.mark.parametrize("change", OTHER_CASES)
def test_a_proof_holds_for_its_case_only(change: str) -> None:
    other = OTHER_CASES[change](case())
    assert not recheck(other, cost())
    if change != "cheaper":
        assert not recheck(other, infeasible())
        assert not recheck(other, growth())


def test_numbers_near_the_one_for_infinity_are_refused() -> None:
    for change in (
        _generators(pmin=lambda v: v + 1e302),
        _generators(c1=lambda v: v * 1e40),
        _generators(c2=lambda v: -v),
        _buses(vmax=lambda v: v * 1e200),
        _buses(pd=lambda v: v + math.inf),
        _branches(x=lambda v: v * 1e-320, r=lambda v: v * 0.0),
    ):
        with np.errstate(all="ignore"):
            told = recheck(change(case()), cost()).message
        assert "of the case is beyond" in told or "the case has" in told


def test_planes_are_checked() -> None:
    proof = copied(infeasible())
    node = next(node for node in leaves(proof) if node.leaf.multipliers is not None)
    old = node.leaf
    node.leaf = replace(old, cuts=Cuts(np.array([0]), np.array([[1.0, 0.0, 0.0]]), *list(vars(no_cuts()).values())[2:]))
    assert "longer than 1" not in recheck(case(), proof).message
    cuts = node.leaf.cuts
    longer = replace(cuts, pair_direction=cuts.pair_direction * 1.001)
    for changed, said in (
        (longer, "longer than 1"),
        (replace(cuts, pair=cuts.pair + 3), "there is not"),
        (replace(cuts, pair=cuts.pair - 3), "there is not"),
        (replace(cuts, pair_direction=cuts.pair_direction * math.nan), "not finite"),
    ):
        node.leaf = replace(node.leaf, cuts=changed)
        assert said in recheck(case(), proof).message
    hair = np.nextafter(1.0, 2.0)
    node.leaf = replace(old, cuts=replace(cuts, pair_direction=np.array([[hair, 0.0, 0.0]])))
    assert "longer than 1" in recheck(case(), proof).message


def test_what_is_refuted_must_be() -> None:
    """Multipliers that prove exactly 0 refute nothing."""
    empty = Multipliers(np.zeros(0, dtype=np.int64), np.zeros(0))
    for bound in (math.inf, 1.0, math.nan):
        proof = replace(hopeless(), root=Node(leaf=Leaf(no_cuts(), empty, bound)))
        assert not recheck(case(), proof)
    assert not recheck(case(), replace(hopeless(), root=Node(leaf=Leaf(no_cuts(), None, math.inf))))
    assert not recheck(case(), replace(hopeless(), root=Node()))


def test_no_operating_point_at_any_cost() -> None:
    proof = prove(Statement.COST, scaled(1.6), 0.0, math.inf, math.inf)
    assert proof.bound > 1e300 and recheck(case(), proof)
    assert not recheck(case(), replace(proof, loads=Loads().ranges(case())))
    assert not recheck(case(), replace(proof, cutoff=0.0))


def test_the_check_can_be_stopped() -> None:
    told = recheck(case(), cost(), stop=lambda: True)
    assert told.stopped and not told.accepted


BROKEN: dict[str, Callable[[dict[str, Any]], Any]] = {
    "version": lambda d: d.update(version=2),
    "statement": lambda d: d.update(statement="cheap"),
    "loads": lambda d: d.update(loads=[[0.0]] * 3),
    "text": lambda d: d.update(bound="much"),
    "no root": lambda d: d.pop("root"),
    "root": lambda d: d.update(root=[]),
    "one child": lambda d: d["root"].update(children=d["root"]["children"][:1]),
    "infinite column": lambda d: d["root"].update(column=math.inf),
    "huge row": lambda d: d["root"]["steps"][0]["deductions"][0].__setitem__(3, [2**80]),
    "NaN": lambda d: d["root"]["steps"][0]["deductions"][0].__setitem__(4, [math.nan]),
    "lengths": lambda d: d["root"]["steps"][0]["deductions"][0][4].append(1.0),
    "planes": lambda d: d["root"]["steps"][0]["cuts"].update(pair=[[0], [1], [2], [0]]),
}


@pytest.mark.parametrize("how", BROKEN)
def test_malformed_proofs_are_no_proofs(how: str) -> None:
    data = json.loads(json.dumps(cost().to_dict()))
    if not data["root"]["steps"]:
        data["root"]["steps"] = [{"cuts": no_cuts().to_dict(), "deductions": [[0, False, 0.0, [0], [1.0]]]}]
    BROKEN[how](data)
    with pytest.raises(InvalidInput):
        Proof.from_dict(data)


def test_files_that_are_no_proofs(tmp_path: Path) -> None:
    whole = gzip.compress(json.dumps(cost().to_dict()).encode())
    damaged = bytearray(whole)
    damaged[len(damaged) // 2] ^= 255
    for name, raw in (("a.json", b"{"), ("b.json", b"\xff"), ("c.json.gz", b"{}"), ("d.gz", whole[:-20]), ("e.gz", bytes(damaged))):
        (tmp_path / name).write_bytes(raw)
        with pytest.raises(InvalidInput):
            Proof.load(tmp_path / name)
    (tmp_path / "deep.json").write_text("[" * 100000)
    with pytest.raises(InvalidInput):
        Proof.load(tmp_path / "deep.json")


def test_boxes_that_are_nested_too_deeply() -> None:
    node = Node(leaf=Leaf(no_cuts(), None, math.inf))
    for _ in range(3000):
        node = Node(column=0, at=1e3, below=node, above=Node())
    assert "too deeply" in recheck(case(), replace(hopeless(), root=node)).message


def test_what_has_no_end_is_not_proved_to_have_one() -> None:
    """A load that can grow for ever, since its generator has no limits: 2^1000 stands for infinity, and half of it for nothing."""
    tables = {
        "version": "2", "baseMVA": 1.0, "bus": [[1, 3, 0.5, 0.25, 0, 0, 1, 1, 0, 110, 1, 1.1, 0.9]],
        "gen": [[1, 0, 0, math.inf, -math.inf, 1.0, 1, 1, math.inf, 0]], "branch": [], "gencost": [[2, 0, 0, 3, 0.1, 20, 5]],
    }  # fmt: skip
    endless = load_case(tables)
    balance = Multipliers(np.array([0]), np.array([2.0]))
    for bound in (1.0, 1e300, 1.0715e301, 1.2e301, 1e308):
        steps = [Step(no_cuts(), (Deduction(3, True, bound, balance),))]
        for root in (
            Node(steps, Leaf(no_cuts(), None, -bound)),
            Node(steps * 2, Leaf(no_cuts(), None, -bound)),
            Node(leaf=steps and Leaf(no_cuts(), None, 0.0)),
        ):
            for cutoff in (0.0, bound):
                proof = Proof(Statement.GROWTH, Loads().ranges(endless), 0.0, cutoff, bound, root)
                assert not recheck(endless, proof)


def test_no_tampering_proves_what_is_false() -> None:
    """Claims a little beyond what points attain, and proofs with anything in them changed."""
    rng = np.random.default_rng(0)
    false = {
        "cost": lambda proof: replace(proof, bound=LEAST * (1 + 1e-6), cutoff=LEAST * (1 + 2e-6)),
        "growth": lambda proof: replace(proof, bound=MOST * (1 - 1e-6), cutoff=MOST * (1 - 2e-6)),
        "hopeless": lambda proof: replace(proof, loads=Loads().ranges(case())),
    }
    for name, claimed in false.items():
        for _ in range(12):
            proof = claimed(copied(PROOFS[name]()))
            for node in nodes(proof.root):
                node.at += float(rng.choice([0.0, 0.01])) * rng.normal()
                if node.leaf is not None and (node.steps or node.leaf.multipliers is not None):
                    by = 1 + float(rng.choice([0.0, 1e-3, 1.0])) * rng.normal(size=len(multipliers_of(node).values))
                    with_multipliers(node, lambda rows, values, by=by: (rows, values * by))
            assert not recheck(case(), proof)
