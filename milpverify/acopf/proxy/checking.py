"""What a learned proxy of optimal power flow promises over a box of loads, and what holds after the power flow: `check_proxy`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from milpverify import spec
from milpverify.acopf.asking import deadline_of
from milpverify.acopf.dispatch.checking import Question
from milpverify.acopf.dispatch.grid import FlowTuning, Grid
from milpverify.acopf.dispatch.policy import box_of
from milpverify.acopf.loads import Loads
from milpverify.acopf.proxy.mapping import places, reads_of, writes_of
from milpverify.acopf.result import TOLERANCE
from milpverify.config import SearchOptions
from milpverify.errors import InvalidInput

if TYPE_CHECKING:
    from milpverify.acopf.asking import OnEvent
    from milpverify.acopf.case import Case
    from milpverify.acopf.dispatch.result import Checked
    from milpverify.config import Deadline
    from milpverify.frontends.network import Network
    from milpverify.tuning import Tuning

PREDICTED, AFTER_POWER_FLOW = "predicted", "after_power_flow"


def check_proxy(
    case: Case,
    network: Network,
    loads: Loads | None = None,
    timeout: float | None = None,
    *,
    limits: str = PREDICTED,
    inputs: Mapping[str, Any] | None = None,
    outputs: Mapping[str, Any] | None = None,
    only: Sequence[str] | None = None,
    allowed: Mapping[str, Any] | None = None,
    tolerance: float = TOLERANCE,
    samples: int = 1000,
    seed: int = 0,
    deadline: Deadline | None = None,
    on_event: OnEvent | None = None,
    tuning: tuple[Tuning, ...] = (),
) -> Checked:
    """Whether what a proxy says, or what it does, is within all limits for every load of a box.

    "predicted" is about the network's own outputs: every quantity that it predicts against its limits; where it predicts the whole state
    (pg, qg, vm, va) and no balances, the equations of the case are put behind it, and balances, flows and angle differences are limited,
    too. "after_power_flow" sets the generators to the predicted pg (but at the slack bus) and vm, and is about the power flow that follows,
    as `check_dispatch` is: the set points then vary with the loads.

    Args:
        case: the network of buses and branches.
        network: the proxy: a torch module in evaluation mode, the path of an ONNX file, or a graph.
        loads: those of the case unless others are given; `acopf.box` for many.
        timeout: seconds of wall clock; None for no limit.
        limits: "predicted" or "after_power_flow".
        inputs: what the network reads, {"pd": ..., "qd": ...}: slices or places in its flat input, or `Entries` with scales. By default pd
            and then qd of the buses with loads.
        outputs: what it predicts, likewise: "pg", "qg", "vm", "va", "pf", "qf", "pt", "qt", "sf2", "st2", "excess_from", "excess_to",
            "p_balance", "q_balance"; see `mapping.writes_of` for the default.
        only: of "predicted" the kinds of limits ("voltage", "active balance", ...), or limits by name ("voltage of bus 3"), to ask about.
        allowed: of "predicted" by how much balances and squares of flows may be off, by kind: a number, or a pair of one and of a share of
            the load (of the limit); balances 1e-3 p.u., flows 0 by default.
        tolerance: p.u. and rad: what is predicted or set may exceed its limits by that, and what exceeds one by no more is no violation.
        samples: random loads of the attack.
        seed: of these.
        deadline: the time limit of a larger run, instead of `timeout`.
        on_event: told of the progress.
        tuning: numbers other than the defaults, one dataclass per theme: those of `check_dispatch` after the power flow, of what is
            predicted those of `verify`.

    Raises:
        InvalidInput: inputs or outputs do not fit the network or the case, or an argument is out of range.
        InvalidModel, UnsupportedOperator: the network cannot be read or traced, or an operation of it has no rule.
        SolverUnavailable: pypower is missing, which `after_power_flow` needs.
    """
    if limits not in (PREDICTED, AFTER_POWER_FLOW):
        raise InvalidInput(f"limits: {PREDICTED!r} or {AFTER_POWER_FLOW!r}, not {limits!r}")
    if limits == AFTER_POWER_FLOW and (only is not None or allowed is not None):
        raise InvalidInput("only and allowed are about what is predicted")
    question = Question(loads or Loads(), tolerance, samples, seed, SearchOptions(tuning=tuning))
    grid, end = Grid(case, question.options.tuned(FlowTuning)), deadline_of(timeout, deadline)
    box = box_of(grid, question.loads)

    from milpverify.acopf.proxy.learned import Learned
    from milpverify.acopf.proxy.predicted import Predictions
    from milpverify.frontends.network import load_network

    nx = _inputs(case, network, inputs)
    reads = reads_of(case, inputs, nx)
    lower, upper = reads.box(box.lower, box.upper)
    loaded = load_network(network, spec.Box(lower, upper))
    writes = writes_of(case, outputs, loaded.graph.ny)
    if limits == AFTER_POWER_FLOW:
        return question.ask(grid, Learned(grid, loaded.graph, reads, writes), None, end, on_event)
    return Predictions(grid, loaded, reads, writes, allowed or {}, only).ask(question, box, end, on_event)


def _inputs(case: Case, network: Network, inputs: Mapping[str, Any] | None) -> int:
    """How many inputs the network has, as far as that is known before it is read."""
    from pathlib import Path

    from milpverify.graph import Graph

    if isinstance(network, Graph):
        return network.nx
    if isinstance(network, (str, Path)):
        from milpverify.frontends.onnx.reading import read_network

        return read_network(network)[0].nx
    return _counted(case, inputs)


def _counted(case: Case, inputs: Mapping[str, Any] | None) -> int:
    """Of a module: as many as are mapped, or two for every bus with loads."""
    if inputs is None:
        return 2 * int(((case.buses.pd != 0) | (case.buses.qd != 0)).sum())
    count = 0
    for entries in inputs.values():
        at = entries["at"] if isinstance(entries, Mapping) else getattr(entries, "at", entries)
        last = [at.stop or 0] if isinstance(at, slice) else [int(place) + 1 for place in places(at)]
        count = max(count, *last)
    return count
