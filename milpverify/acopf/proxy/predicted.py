"""What a proxy predicts, against the limits: bounds of every limited quantity, and `verify` where they are not enough."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from milpverify import spec
from milpverify.acopf.asking import Clock, why_ended
from milpverify.acopf.dispatch.limits import Limit
from milpverify.acopf.dispatch.result import Checked, Margin
from milpverify.acopf.equations import equations, layout
from milpverify.acopf.points.judgement import (
    ACTIVE_BALANCE,
    ACTIVE_GENERATION,
    ANGLE_DIFFERENCE,
    FLOW_FROM,
    FLOW_TO,
    REACTIVE_BALANCE,
    REACTIVE_GENERATION,
    VOLTAGE,
)
from milpverify.acopf.proxy.mapping import Places
from milpverify.acopf.result import Reason, Verdict
from milpverify.bounding import bounds
from milpverify.config import Options
from milpverify.errors import InvalidInput
from milpverify.graph import Graph, Node, evaluate
from milpverify.operators import Concat, Linear
from milpverify.result import Event, Trust, json_number
from milpverify.result import Verdict as Answer
from milpverify.spec import Rows
from milpverify.verify import verify

if TYPE_CHECKING:
    from milpverify.acopf.asking import OnEvent
    from milpverify.acopf.case import Array, Case
    from milpverify.acopf.dispatch.checking import Question
    from milpverify.acopf.dispatch.grid import Grid
    from milpverify.acopf.dispatch.policy import Box
    from milpverify.acopf.proxy.mapping import Reads
    from milpverify.config import Deadline
    from milpverify.frontends.network import Loaded
    from milpverify.result import Result

STATE = ("pg", "qg", "vm", "va")
BALANCE: Final = 1e-3  # p.u.: how far predicted balances may be off by default
SQUARED = "p.u.^2"
KINDS = {
    "vm": VOLTAGE, "pg": ACTIVE_GENERATION, "qg": REACTIVE_GENERATION, "p_balance": ACTIVE_BALANCE, "q_balance": REACTIVE_BALANCE,
    "sf2": FLOW_FROM, "st2": FLOW_TO, "excess_from": FLOW_FROM, "excess_to": FLOW_TO,
}  # fmt: skip
OF_EQUATIONS = {"active_balance": "p_balance", "reactive_balance": "q_balance", "sf2": "sf2", "st2": "st2"}


@dataclass(frozen=True, eq=False)
class Misprediction:
    """Loads (n,) p.u. for which a proxy's own output `y` violates a limit, as `verify` found and rechecked."""

    limit: Limit
    pd: Array
    qd: Array
    y: Array
    value: float
    margin: float

    def __str__(self) -> str:
        return f"{self.limit} is predicted to be {self.value:.6g}, {-self.margin:.3g} {self.limit.unit} beyond its limit"

    def to_dict(self) -> dict[str, Any]:
        """A JSON form."""
        parts = {name: getattr(self, name).tolist() for name in ("pd", "qd", "y")}
        return {"limit": str(self.limit), **parts, "value": self.value, "margin": json_number(self.margin)}


@dataclass(frozen=True, eq=False)
class Predicted(Checked):
    """Whether everything that a proxy predicts is within its limits, for every load of a box; BROKEN comes with a `violation`."""

    violation: Misprediction | None = None

    @property
    def broken(self) -> tuple[Limit, float] | None:
        return None if self.violation is None else (self.violation.limit, self.violation.margin)

    @property
    def details(self) -> tuple[str, ...]:
        return super().details + (() if self.violation is None else (str(self.violation),))

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "violation": None if self.violation is None else self.violation.to_dict()}


class Predictions:
    """The quantities that a network predicts and that are limited, as linear rows of its outputs."""

    def __init__(
        self, grid: Grid, loaded: Loaded, reads: Reads, writes: dict[str, Places], allowed: Mapping[str, Any], only: Sequence[str] | None
    ) -> None:
        self.case, self.reads, self.allowed = grid.case, reads, allowed
        unknown = set(allowed) - set(KINDS.values())
        if unknown:
            raise InvalidInput(f"allowed: there is no kind of limit {', '.join(sorted(unknown))}")
        self.graph, self.runtime, self.files = loaded.graph, loaded.runtime, loaded.files
        ny = self.graph.ny
        complete = all(name in writes and len(writes[name]) == _count(self.case, name) for name in STATE)
        if complete and not {"p_balance", "q_balance"} & set(writes):
            self.graph, behind = _with_equations(self.case, self.graph, reads, writes)
            self.runtime = None
            writes = {**writes, **behind}
        found = [*self._limited(writes), *self._angles(writes)]
        if only is not None:
            known = {each.kind for each, *_ in found} | {str(each) for each, *_ in found}
            if lacking := sorted(set(only) - known):
                raise InvalidInput(f"only: nothing that is predicted is limited as {', '.join(lacking)}")
            found = [row for row in found if row[0].kind in only or str(row[0]) in only]
        if not found:
            raise InvalidInput("nothing that the network predicts has a limit: say outputs={'pg': ..., 'vm': ...}")
        self.limits = [limit for limit, *_ in found]
        self.rows, self.shift = np.zeros((len(found), self.graph.ny)), np.zeros(len(found))
        for k, (_, at, factors, shift) in enumerate(found):
            self.rows[k, at], self.shift[k] = factors, shift
        assert self.graph.ny >= ny

    def _limited(self, writes: dict[str, Places]) -> list[tuple[Limit, list[int], list[float], float]]:
        """Limit, places in the output, factors, shift."""
        case, found = self.case, []
        for name, places in writes.items():
            if name not in KINDS:
                continue
            for at, i, scale, shift in zip(*(getattr(places, part).tolist() for part in ("at", "element", "scale", "shift")), strict=True):
                low, high = self._ends(name, i)
                if low > -math.inf or high < math.inf:
                    unit = "p.u." if name in (*STATE, "p_balance", "q_balance") else SQUARED
                    found.append((Limit(KINDS[name], _name(case, name, i), i, unit, low, high, True), [at], [scale], shift))
        return found

    def _ends(self, name: str, i: int) -> tuple[float, float]:
        buses, gens, br = self.case.buses, self.case.generators, self.case.branches
        if name == "vm":
            return float(buses.vmin[i]), float(buses.vmax[i])
        if name == "pg":
            return float(gens.pmin[i]), float(gens.pmax[i])
        if name == "qg":
            return float(gens.qmin[i]), float(gens.qmax[i])
        if name in ("p_balance", "q_balance"):
            off = self._allowed(KINDS[name], float((buses.pd if name == "p_balance" else buses.qd)[i]), BALANCE)
            return -off, off
        rate = float(br.rate[i])
        if math.isinf(rate):
            return -math.inf, math.inf
        off = self._allowed(KINDS[name], rate, 0.0)
        return -math.inf, off if name.startswith("excess") else math.nextafter(rate * rate, 0.0) + off

    def _allowed(self, kind: str, of: float, usual: float) -> float:
        given = self.allowed.get(kind, usual)
        least, share = given if isinstance(given, Sequence) else (given, 0.0)
        if not (0 <= least < math.inf and 0 <= share < math.inf):
            raise InvalidInput(f"allowed: of {kind} it must be at least 0, not {given}")
        return max(float(least), float(share) * abs(of))

    def _angles(self, writes: dict[str, Places]) -> list[tuple[Limit, list[int], list[float], float]]:
        """Differences of angles across branches."""
        br, va, found = self.case.branches, writes.get("va"), []
        place = {} if va is None else {int(i): k for k, i in enumerate(va.element)}
        for k, (f, t, low, high) in enumerate(zip(br.f.tolist(), br.t.tolist(), br.angmin.tolist(), br.angmax.tolist(), strict=True)):
            if va is not None and f in place and t in place and (low > -math.inf or high < math.inf):
                a, b = place[f], place[t]
                limit = Limit(ANGLE_DIFFERENCE, self.case.branch_name(k), k, "rad", low, high, True)
                factors = [float(va.scale[a]), -float(va.scale[b])]
                found.append((limit, [int(va.at[a]), int(va.at[b])], factors, float(va.shift[a] - va.shift[b])))
        return found

    def ask(self, question: Question, box: Box, deadline: Deadline, on_event: OnEvent | None) -> Predicted:
        """Bounds, samples, and `verify` for every limit that is left open."""
        clock, inputs = Clock(), spec.Box(*self.reads.box(box.lower, box.upper))
        lower, upper = np.array([each.lower for each in self.limits]), np.array([each.upper for each in self.limits])
        with clock.phase("bounds"):
            low, high = self._bounds(inputs)
        with clock.phase("attack"):
            attacked = self._attack(box, lower, upper, question.samples, question.seed)
        certified = np.minimum(np.nextafter(low - lower, -np.inf), np.nextafter(upper - high, -np.inf))
        needed = -question.tolerance
        order = [k for k in np.argsort(attacked, kind="stable").tolist() if certified[k] < needed]
        trusts, reason, violation, message = [Trust.ROUNDED], Reason.PROVED, None, ""
        with clock.phase("verify"):
            for done, k in enumerate(order):
                if on_event is not None:
                    on_event(Event("proxy", str(self.limits[k]), {"done": done, "of": len(order)}))
                if deadline.expired():
                    reason, message = why_ended(deadline, True), f"{len(order) - done} limits are left open"
                    break
                result = verify(self._problem(k, inputs, question.tolerance), deadline=deadline, options=Options(search=question.options))
                if result.verdict is Answer.VERIFIED:
                    trusts.append(result.trust)
                    certified[k] = max(certified[k], needed, result.lower_bound - question.tolerance)
                elif result.verdict is Answer.FALSIFIED:
                    violation = self._violation(k, result, box)
                    attacked[k] = min(attacked[k], violation.margin)
                    reason, trusts = Reason.VIOLATED, [Trust.ROUNDED]
                    break
                else:
                    reason, message = why_ended(deadline, False), f"{self.limits[k]}: {result.reason.value}"
        verdict = Verdict.BROKEN if violation is not None else Verdict.HOLDS if (certified >= needed).all() else Verdict.UNKNOWN
        ends = zip(self.limits, certified.tolist(), attacked.tolist(), low.tolist(), high.tolist(), strict=True)
        return Predicted(
            case=self.case, loads=question.loads, reason=Reason.PROVED if verdict is Verdict.HOLDS else reason,
            trust=Trust.weakest(*trusts), point=None, existence=None, constraints=(), proof=None,
            method=f"{len(self.limits)} limits bounded, {len(order)} of them left to verify", seconds=clock.seconds, verdict=verdict,
            tolerance=question.tolerance, margins=tuple(Margin(limit, c, a, (b, e)) for limit, c, a, b, e in ends),
            boxes=1, samples=question.samples, unknown=message if verdict is Verdict.UNKNOWN else "", violation=violation,
        )  # fmt: skip

    def _bounds(self, inputs: spec.Box) -> tuple[Array, Array]:
        graph = self.graph
        rows = Node(len(graph.nodes), Linear(torch.from_numpy(self.rows.copy())), (graph.output,), (len(self.rows),), "limited quantities")
        found = bounds(replace(graph, nodes=(*graph.nodes, rows), output=rows.id, outputs=()), inputs).output
        low, high = found.lower[0].numpy(), found.upper[0].numpy()
        moved = self.shift != 0  # a sum that is rounded
        low, high = low + self.shift, high + self.shift
        return np.where(moved, np.nextafter(low, -np.inf), low), np.where(moved, np.nextafter(high, np.inf), high)

    def _attack(self, box: Box, lower: Array, upper: Array, count: int, seed: int) -> Array:
        random = np.random.default_rng(seed)
        share = random.random((count + 1, len(box.lower)))
        share[0] = 0.5
        share[1 + count // 3 :] = share[1 + count // 3 :] > 0.5
        with torch.no_grad():
            y = evaluate(self.graph, torch.from_numpy(self.reads.inputs(box.at(share)))).numpy()
        values = y @ self.rows.T + self.shift
        found: Array = np.minimum(values - lower, upper - values).min(0)
        return found

    def _problem(self, k: int, inputs: spec.Box, tolerance: float) -> spec.Problem:
        """Unsafe is what is beyond limit k by the tolerance or more."""
        from milpverify.frontends.problem import Problem

        limit, unsafe = self.limits[k], []
        if limit.upper < math.inf:
            unsafe.append(Rows.on_outputs(-self.rows[k], [-(limit.upper + tolerance - self.shift[k])], self.graph.nx))
        if limit.lower > -math.inf:
            unsafe.append(Rows.on_outputs(self.rows[k], [limit.lower - tolerance - self.shift[k]], self.graph.nx))
        return Problem(self.graph, inputs, runtime=self.runtime, files=self.files, unsafe=unsafe)

    def _violation(self, k: int, result: Result, box: Box) -> Misprediction:
        assert result.counterexample is not None
        x, y, n = result.counterexample.x, result.counterexample.y, self.case.num_buses
        loads = np.clip(self.reads.loads(x, box.middle), box.lower, box.upper)
        with torch.no_grad():
            y = evaluate(self.graph, torch.from_numpy(x.copy()[None])).numpy()[0]
        value, limit = float(self.rows[k] @ y + self.shift[k]), self.limits[k]
        return Misprediction(limit, loads[:n], loads[n:], y, value, min(value - limit.lower, limit.upper - value))


def _count(case: Case, name: str) -> int:
    return len(case.generators) if name in ("pg", "qg") else case.num_buses


def _name(case: Case, name: str, i: int) -> str:
    if name in ("pg", "qg"):
        return case.generator_name(i)
    return case.bus_name(i) if name in ("vm", "p_balance", "q_balance") else case.branch_name(i)


def _with_equations(case: Case, graph: Graph, reads: Reads, writes: dict[str, Places]) -> tuple[Graph, dict[str, Places]]:
    """The network followed by the equations of the power flow; its outputs are the network's, and then theirs."""
    n, nx, ny, at, flow = case.num_buses, graph.nx, graph.ny, layout(case), equations(case)
    weight, bias = np.zeros((flow.nx, nx + ny)), np.zeros(flow.nx)
    for name in STATE:
        places, start = writes[name], getattr(at, name).start
        weight[start + places.element, nx + places.at] = places.scale
        bias[start + places.element] = places.shift
    start = at.pd.start
    bias[start : start + 2 * n] = np.concatenate([case.buses.pd, case.buses.qd])
    weight[start + reads.of, np.arange(nx)] = reads.scale
    bias[start + reads.of] = reads.shift
    nodes = list(graph.nodes)
    both = Node(len(nodes), Concat(0, (nx, ny)), (0, graph.output), (nx + ny,), "inputs and outputs")
    state = Node(both.id + 1, Linear(torch.from_numpy(weight), torch.from_numpy(bias)), (both.id,), (flow.nx,), "state")
    nodes += [both, state]
    moved = {0: state.id}
    for node in flow.nodes[1:]:
        moved[node.id] = len(nodes)
        nodes.append(replace(node, id=len(nodes), inputs=tuple(moved[i] for i in node.inputs)))
    whole = Node(len(nodes), Concat(0, (ny, flow.ny)), (graph.output, moved[flow.output]), (ny + flow.ny,), "outputs and equations")
    one = np.ones(max(n, len(case.branches)))
    behind = {}
    for name, called in OF_EQUATIONS.items():
        part = getattr(at, name)
        size = part.stop - part.start
        index = np.arange(size)
        behind[called] = Places(ny + part.start + index, index, one[:size], np.zeros(size))
    return Graph((*nodes, whole), whole.id, graph.inputs), behind
