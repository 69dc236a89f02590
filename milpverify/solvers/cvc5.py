"""cvc5, for SMT scripts with transcendental functions, too. Not among the dependencies: `pip install milpverify[cvc5]`."""

from __future__ import annotations

import importlib
import math
import time
from fractions import Fraction
from typing import Any

from milpverify.errors import InvalidInput, SolverUnavailable
from milpverify.functions.terms import RATIONAL, Algebra, evaluate, parse
from milpverify.solvers.base import Answer, Capability, Limits, OnProgress, SmtOutcome, Solver, SolverStatus
from milpverify.solvers.model import SmtScript

_STATUS = {
    "TIMEOUT": SolverStatus.TIME_LIMIT,
    "RESOURCEOUT": SolverStatus.TIME_LIMIT,
    "INTERRUPTED": SolverStatus.INTERRUPTED,
    "MEMOUT": SolverStatus.MEMORY_LIMIT,
}
_FLOATS: Algebra[Any] = Algebra(float, {**RATIONAL, **{name: getattr(math, name) for name in ("exp", "sin", "cos", "sqrt")}}.get)


class Cvc5(Solver[SmtScript, SmtOutcome]):
    """Decides SMT-LIB scripts over the reals; of transcendental functions it says `unsat` by their Taylor polynomials, and `sat` rarely."""

    name = "cvc5"
    capabilities = frozenset({Capability.SMT, Capability.SMT_TRANSCENDENTAL})

    def licence(self) -> str:
        return "free (BSD), no limits"

    def solve(self, model: SmtScript, limits: Limits, on_progress: OnProgress) -> SmtOutcome:
        try:
            cvc5: Any = importlib.import_module("cvc5")
        except ImportError as error:
            raise SolverUnavailable("cvc5 is not installed (pip install cvc5)") from error
        began = time.monotonic()
        solver = cvc5.Solver(cvc5.TermManager())
        solver.setOption("produce-models", "true")
        solver.setOption("seed", str(limits.seed % 2**31))
        if math.isfinite(limits.seconds):
            solver.setOption("tlimit-per", str(max(1, int(1000 * limits.seconds))))
        try:
            names = _read(cvc5, solver, model.text)
            result = solver.checkSat()
            seconds = time.monotonic() - began
            if result.isUnsat():
                return SmtOutcome(Answer.UNSAT, (), SolverStatus.OPTIMAL, seconds, "cvc5: unsat")
            if result.isUnknown():
                why = result.getUnknownExplanation().name
                return SmtOutcome(Answer.UNKNOWN, (), _STATUS.get(why, SolverStatus.UNKNOWN), seconds, f"cvc5: {why.lower()}")
            point = tuple(str(_rational(solver.getValue(names[name]))) for name in model.inputs)
        except RuntimeError as error:
            return SmtOutcome(Answer.UNKNOWN, (), SolverStatus.UNKNOWN, time.monotonic() - began, f"cvc5: {error}")
        except InvalidInput as error:
            return SmtOutcome(Answer.UNKNOWN, (), SolverStatus.UNKNOWN, seconds, f"cvc5: sat, at a point of other numbers: {error}")
        return SmtOutcome(Answer.SAT, point, SolverStatus.OPTIMAL, seconds, "cvc5: sat")


def _read(cvc5: Any, solver: Any, text: str) -> dict[str, Any]:
    """Hand a script to the solver; its constants by name."""
    parser = cvc5.InputParser(solver)
    parser.setStringInput(cvc5.InputLanguage.SMT_LIB_2_6, text, "script")
    symbols = parser.getSymbolManager()
    while not (command := parser.nextCommand()).isNull():
        command.invoke(solver, symbols)
    return {term.getSymbol(): term for term in symbols.getDeclaredTerms()}


def _rational(value: Any) -> Fraction:
    """A value of a model, exact where it is rational; other points are tried as they are, near it.

    Raises:
        InvalidInput: it is written in another way than the catalogue's terms.
    """
    if value.isRealValue():
        return Fraction(value.getRealValue())
    if value.isRealAlgebraicNumber():
        ends = [end.getRealValue() for end in (value.getRealAlgebraicNumberLowerBound(), value.getRealAlgebraicNumberUpperBound())]
        return sum(ends, Fraction(0)) / 2
    return Fraction(float(evaluate(parse(str(value)), _FLOATS, {})))
