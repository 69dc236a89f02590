"""One disjunct as an SMT-LIB 2 script over the reals, exact: every weight, bound and breakpoint is the rational that its float64 is.

Affine nodes are composed in rational arithmetic, strict rows stay strict, and functions keep their values at jumps, so the script is
satisfiable if and only if a real counterexample exists. Where weights are rounded, what they make is a variable within the error of what
they say, and where a function may leave its domain, its value there may be anything: `unsat` stays exact, and a solution may be none of the
network. Piecewise-linear functions are written as lines, others from their terms (`smt_terms`). Neurons that are stable within their
ranges are lines; the ranges come from interval arithmetic on rationals, and so cost no trust.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from milpverify.arithmetic.interval import Interval
from milpverify.arithmetic.rational_range import Number, Range, add, between, floats, mul, point
from milpverify.balls.norm import Norm
from milpverify.encode.encoding import EncodingTuning
from milpverify.encode.segments import is_continuous, touched_pieces
from milpverify.encode.smt_terms import ScriptWriter, Value, logic_of, number
from milpverify.errors import SolverUnavailable, UnsupportedOperator
from milpverify.operators import Affine
from milpverify.solvers.model import Logic, SmtScript

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from milpverify.balls.ball import Ball
    from milpverify.encode.encoding import NodeRanges
    from milpverify.functions.pieces import Pieces
    from milpverify.functions.terms import Term
    from milpverify.graph import Graph, Node
    from milpverify.operators import Nonlinear
    from milpverify.spec import Disjunct, Rows

LARGEST: Final = 200_000
"""Coefficients of a network; a larger one is refused, for no SMT solver answers in time."""

_Key = tuple[int, int]  # cut node, flat index
_Form = tuple[dict[_Key, Fraction], Fraction]  # coefficients over cut entries, constant


def smt_script(
    graph: Graph,
    disjunct: Disjunct,
    bounds: NodeRanges | None = None,
    transcendental: bool = False,
    tuning: EncodingTuning = EncodingTuning(),
) -> SmtScript:
    """The script of one disjunct.

    Args:
        graph: in float64 on the CPU.
        bounds: of every node, proved over the disjunct's box; they shorten the search, and the answer then rests on them
            too (trust ROUNDED instead of EXACT).
        transcendental: whether the script may speak of transcendental functions, of which no solver's `unsat` alone decides.
        tuning: bits of ranges and of rows that only prune, which are rounded outwards: all else is exact.

    Raises:
        UnsupportedOperator: a function that is transcendental, or has no form at all.
        SolverUnavailable: the network is too large for an SMT solver.
    """
    return _Writer(graph, disjunct, bounds, transcendental, tuning).script()


class _Writer:
    def __init__(self, graph: Graph, disjunct: Disjunct, bounds: NodeRanges | None, transcendental: bool, tuning: EncodingTuning) -> None:
        self.graph = graph
        self.disjunct = disjunct
        self.bounds = bounds
        self.transcendental = transcendental
        self.logic = Logic.LINEAR
        self.forms: dict[_Key, _Form] = {}
        self.ranges: dict[_Key, Range] = {
            (0, i): between(*ends) for i, ends in enumerate(zip(disjunct.box.lower.tolist(), disjunct.box.upper.tolist(), strict=True))
        }
        self.fixed: dict[_Key, Fraction] = {}
        self.names: dict[_Key, str] = {(0, i): f"x_{i}" for i in range(graph.nx)}
        self.bits = tuning.range_bits
        self.write = ScriptWriter(transcendental, tuning.row_bits)
        self.count = 0

    def script(self) -> SmtScript:
        inputs = tuple(f"x_{i}" for i in range(self.graph.nx))
        for (_, i), (low, high) in self.ranges.items():
            self.write.declare(f"x_{i}")
            ends = [number(Fraction(end)) for end in (low, high)]
            self.write.require("=", f"x_{i}", ends[0]) if low == high else self.write.require("<=", ends[0], f"x_{i}", ends[1])
        if (ball := self.graph.ball) is not None:
            self.logic = Logic.POLYNOMIAL if ball.norm is Norm.L2 else self.logic
            _assert_ball(self.write, ball, inputs)
        domain, unsafe = self.disjunct.domain, self.disjunct.unsafe
        outputs: list[int] = np.flatnonzero(unsafe.y_rows.any(axis=0)).tolist()
        self._define(self._needed(outputs))
        self._assert(domain, {})
        self._assert(unsafe, self._resolve(self.graph.output, outputs))
        return SmtScript("\n".join([f"(set-logic {self.logic.value})", *self.write.lines]) + "\n", inputs, self.logic)

    def _needed(self, outputs: list[int]) -> dict[int, list[int]]:
        """Per nonlinear node, the entries that the given outputs depend on; composes every affine form on the way."""
        needed: dict[int, set[int]] = {node.id: set() for node in self.graph.nodes if node.id and self._is_cut(node.id)}
        pending: list[tuple[int, list[int]]] = [(self.graph.output, outputs)]
        while pending:
            node, entries = pending.pop()
            new: dict[int, set[int]] = {}
            for coefficients, _ in self._resolve(node, entries).values():
                for cut, i in coefficients:
                    if cut and i not in needed[cut]:
                        needed[cut].add(i)
                        new.setdefault(cut, set()).add(i)
            for cut, found in new.items():
                if self._affine(cut) is None:
                    pending += [(source, sorted(found)) for source in self.graph.nodes[cut].inputs]
                else:
                    pending += [(source, np.unique(column).tolist()) for source, _, column, _ in self._rows(cut, sorted(found))]
        return {node: sorted(entries) for node, entries in needed.items() if entries}

    def _affine(self, node: int) -> Affine | None:
        op = self.graph.nodes[node].op
        return op if isinstance(op, Affine) else None

    def _is_cut(self, node: int) -> bool:
        """Whether a node's entries are variables: not those of an affine one, unless its weights are rounded."""
        op = self._affine(node)
        return op is None or op.rounded > 0

    def _rows(self, node: int, entries: Sequence[int]) -> list[tuple[int, list[int], NDArray[np.int64], list[Fraction]]]:
        """Per input of an affine node, what some of its entries are made of: the input, row, column and coefficient of each weight."""
        op, shape = self._affine(node), self.graph.nodes[node].shape
        assert op is not None
        found = []
        for source, part in zip(self.graph.nodes[node].inputs, op.rows(torch.tensor(entries), shape), strict=True):
            weights = part.reshape(len(entries), -1).numpy()
            row, column = np.nonzero(weights)
            found.append((source, row.tolist(), column, [Fraction(w) for w in weights[row, column].tolist()]))
        return found

    def _biases(self, node: int, entries: Sequence[int]) -> list[Fraction]:
        op = self._affine(node)
        bias = torch.zeros((), dtype=torch.float64) if op is None or op.bias is None else op.bias
        return [Fraction(b) for b in bias.expand(self.graph.nodes[node].shape).reshape(-1)[list(entries)].tolist()]

    def _resolve(self, node: int, entries: Sequence[int]) -> dict[int, _Form]:
        """The exact affine forms of some entries of a node over the cut nodes behind it."""
        missing = [i for i in entries if (node, i) not in self.forms]
        if self._is_cut(node):
            self.forms.update({(node, i): ({(node, i): Fraction(1)}, Fraction(0)) for i in missing})
        elif missing:
            self.forms.update({(node, i): total for i, total in zip(missing, self._composed(node, missing), strict=True)})
        return {i: self.forms[node, i] for i in entries}

    def _composed(self, node: int, entries: Sequence[int]) -> list[_Form]:
        """What the weights of an affine node make of the forms behind it."""
        totals: list[_Form] = [({}, b) for b in self._biases(node, entries)]
        for source, row, column, weights in self._rows(node, entries):
            self.count += len(row)
            if self.count > LARGEST:
                raise SolverUnavailable(f"more than {LARGEST} coefficients are too many for an SMT solver; use method milp or bab")
            behind = self._resolve(source, np.unique(column).tolist())
            for r, c, w in zip(row, column.tolist(), weights, strict=True):
                _add(totals, r, w, behind[c])
        return totals

    def _define_rounded(self, node: int, entries: Sequence[int], op: Affine) -> None:
        """Entries of an affine node as variables within the error that its rounded weights may make.

        k factors (1 + d)^(-+1), |d| <= u, make one within k u / (1 - k u) of 1 (Higham, Accuracy and Stability of Numerical Algorithms,
        lemma 3.1).
        """
        sizes: list[Number] = [abs(b) for b in self._biases(node, entries)]
        for source, row, column, weights in self._rows(node, entries):
            behind = self._resolve(source, np.unique(column).tolist())
            reach = {c: Range(Fraction(0), self._range(form).size) for c, form in behind.items()}
            for r, c, w in zip(row, column.tolist(), weights, strict=True):
                sizes[r] = add(Range(Fraction(0), sizes[r]), mul(point(abs(w)), reach[c])).upper
        share = point(Fraction(op.rounded, 2**53 - op.rounded))
        for i, form, size in zip(entries, self._composed(node, entries), sizes, strict=True):
            name, error = self._declare((node, i)), mul(share, Range(-size, size))
            for end, relation in zip(error, (">=", "<="), strict=True):
                if isinstance(end, Fraction):
                    self.write.require(relation, name, self._sum((form[0], form[1] + end)))
            self.ranges[node, i] = add(self._range(form), error).rounded(self.bits)

    def _define(self, needed: dict[int, list[int]]) -> None:
        for node, entries in sorted(needed.items()):
            op, arguments = self.graph.nodes[node].op, self.graph.nodes[node].inputs
            if isinstance(op, Affine):
                self._define_rounded(node, entries, op)
                continue
            op = self.graph.nonlinearities[node]
            for i in entries:
                forms = [self._resolve(source, [i])[i] for source in arguments]
                found = [self._clipped(source, i, self._range(form)) for source, form in zip(arguments, forms, strict=True)]
                if op.pieces is not None:
                    self._define_neuron((node, i), op.pieces, forms[0], found[0])
                elif op.term is not None:
                    self._need(logic_of(op.term), op.name, self.graph.nodes[node])
                    self._define_curved((node, i), op, op.term, self._argument(forms[0], found[0]))
                else:
                    self._need(Logic.POLYNOMIAL if op.bilinear else None, op.name, self.graph.nodes[node])
                    self._name_result((node, i), self.write.product(*map(self._argument, forms, found)))

    def _need(self, logic: Logic | None, name: str, node: Node) -> None:
        """Let the script speak a logic, as a node has to.

        Raises:
            UnsupportedOperator: there is none for the node, or it is not allowed.
        """
        self.count += 1
        what = f"{name} ({node.name.strip() or f'node {node.id}'})"
        if logic is None:
            raise UnsupportedOperator(f"{what} has no SMT form; use method bab or milp")
        if logic is Logic.TRANSCENDENTAL and not self.transcendental:
            raise UnsupportedOperator(f"{what} is transcendental, so z3 cannot decide it; use method bab or milp, or solver cvc5")
        self.logic = max(self.logic, logic, key=lambda known: known.rank)

    def _clipped(self, node: int, entry: int, found: Range) -> Range:
        """The range of an entry, within the bounds that are given."""
        if self.bounds is None:
            return found
        return found.meet(between(*(float(t.reshape(-1)[entry]) for t in self.bounds[node])))

    def _argument(self, form: _Form, found: Range) -> Value:
        return self.write.name(Value(self._sum(form), found))

    def _define_curved(self, key: _Key, op: Nonlinear, term: Term, x: Value) -> None:
        value = self.write.evaluate(term, x)
        if self.logic is Logic.TRANSCENDENTAL:  # where no `unsat` decides, ranges may come from floats, which know extrema
            ends = (torch.tensor([end], dtype=torch.float64) for end in floats(x.range))
            known = between(*(float(end) for end in op.interval([Interval(*ends)])))
            value = Value(value.text, known.meet(value.range))
        self._name_result(key, value)

    def _name_result(self, key: _Key, value: Value) -> None:
        """Let an entry of a node be a number, or the variable that is equal to an expression."""
        named = self.write.name(value)
        if named.constant:
            self.fixed[key] = Fraction(named.range.lower)
        else:
            self.write.within(named.text, named.range)
        self.names[key], self.ranges[key] = named.text, named.range.rounded(self.bits)

    def _define_neuron(self, key: _Key, pieces: Pieces, form: _Form, found: Range) -> None:
        touched = touched_pieces(pieces, *(np.array([end]) for end in floats(found)))
        first, last = (int(t[0]) for t in touched)
        slopes, intercepts = [Fraction(s) for s in pieces.slopes], [Fraction(c) for c in pieces.intercepts]
        if first == last and not slopes[first]:
            self.fixed[key] = intercepts[first]
            self.ranges[key] = point(intercepts[first])
            return
        name = self._declare(key)
        if first == last:
            scaled = ({k: slopes[first] * c for k, c in form[0].items()}, slopes[first] * form[1] + intercepts[first])
            self.write.require("=", name, self._sum(scaled))
        else:
            pre = self.write.declare(f"p{name}")
            self.write.require("=", pre, self._sum(form))
            value = _line(slopes[last], intercepts[last], pre)
            for k in reversed(range(first, last)):
                at = number(Fraction(pieces.breakpoints[k]))
                value = f"(ite (= {pre} {at}) {number(Fraction(pieces.values[k]))} {value})"
                value = f"(ite (< {pre} {at}) {_line(slopes[k], intercepts[k], pre)} {value})"
            self.write.require("=", name, value)
            if last == first + 1 and is_continuous(pieces, first) and found.bounded:
                self._relax(name, pieces, first, found)
        inner = [Fraction(p) for p in pieces.breakpoints[first:last]]
        values = [_at(slopes[k], intercepts[k], e) for k, e in ((first, found.lower), (last, found.upper))]
        values += [slopes[k + d] * p + intercepts[k + d] for k, p in zip(range(first, last), inner, strict=True) for d in (0, 1)]
        values += [Fraction(v) for v in pieces.values[first:last]]
        self.ranges[key] = Range(min(values), max(values)).rounded(self.bits)

    def _relax(self, name: str, pieces: Pieces, k: int, found: Range) -> None:
        """The convex hull of a kink, implied by it: both lines on one side, a line over the ends on the other. It prunes much."""
        lines = [(Fraction(pieces.slopes[i]), Fraction(pieces.intercepts[i])) for i in (k, k + 1)]
        low, high = (Fraction(e) for e in found)
        first, last = lines[0][0] * low + lines[0][1], lines[1][0] * high + lines[1][1]
        chord = ((last - first) / (high - low)).limit_denominator(2**16)  # any slope is sound; short ones are fast
        rests = [first - chord * low, last - chord * high]
        convex = lines[1][0] > lines[0][0]
        near, far, rest = (">=", "<=", max(rests)) if convex else ("<=", ">=", min(rests))
        for line in lines:
            self.write.require(near, name, _line(*line, f"p{name}"))
        outward = point(rest).rounded(self.bits)
        self.write.require(far, name, _line(chord, Fraction(outward.upper if convex else outward.lower), f"p{name}"))

    def _declare(self, key: _Key) -> str:
        self.names[key] = self.write.declare(f"y_{key[0]}_{key[1]}")
        return self.names[key]

    def _range(self, form: _Form) -> Range:
        total = point(form[1])
        for key, c in form[0].items():
            total = add(total, mul(point(c), self.ranges[key]))
        return total.rounded(self.bits)

    def _sum(self, form: _Form) -> str:
        constant, terms = form[1], []
        for key, c in form[0].items():
            if key in self.fixed:
                constant += c * self.fixed[key]
            elif c:
                terms.append(self.names[key] if c == 1 else f"(* {number(c)} {self.names[key]})")
        if constant or not terms:
            terms.append(number(constant))
        return terms[0] if len(terms) == 1 else f"(+ {' '.join(terms)})"

    def _assert(self, rows: Rows, outputs: dict[int, _Form]) -> None:
        for x_row, y_row, rhs, strict in zip(rows.x_rows, rows.y_rows, rows.rhs.tolist(), rows.strict.tolist(), strict=True):
            total: list[_Form] = [({(0, i): Fraction(x_row[i]) for i in np.flatnonzero(x_row).tolist()}, Fraction(0))]
            for j in np.flatnonzero(y_row).tolist():
                _add(total, 0, Fraction(y_row[j]), outputs[j])
            self.write.require("<" if strict else "<=", self._sum(total[0]), number(Fraction(rhs)))


def _assert_ball(write: ScriptWriter, ball: Ball, names: Iterable[str]) -> None:
    """The ball in a script, exactly."""
    terms = []
    for name, p, weight in zip(names, ball.centre.tolist(), ball.weight.tolist(), strict=True):
        if weight == 0:
            continue
        centre, inverse = Fraction(p), 1 / Fraction(weight)
        away = f"(- {name} {number(centre)})"
        if ball.norm is Norm.L1:
            away = f"(ite (>= {name} {number(centre)}) {away} (- {number(centre)} {name}))"
            terms.append(f"(* {number(inverse)} {away})")
        else:
            terms.append(f"(* {number(inverse * inverse)} {away} {away})")
    radius = Fraction(ball.radius)
    total = terms[0] if len(terms) == 1 else f"(+ {' '.join(terms)})" if terms else number(Fraction(0))
    write.require("<=", total, number(radius if ball.norm is Norm.L1 else radius * radius))


def _add(totals: list[_Form], r: int, factor: Fraction, form: _Form) -> None:
    coefficients, constant = totals[r]
    for key, c in form[0].items():
        coefficients[key] = coefficients.get(key, Fraction(0)) + factor * c
    totals[r] = (coefficients, constant + factor * form[1])


def _name(key: _Key) -> str:
    return f"x_{key[1]}" if key[0] == 0 else f"y_{key[0]}_{key[1]}"


def _line(slope: Fraction, intercept: Fraction, x: str) -> str:
    return number(intercept) if not slope else f"(+ (* {number(slope)} {x}) {number(intercept)})"


def _at(slope: Fraction, intercept: Fraction, x: Number) -> Number:
    return add(mul(point(slope), Range(x, x)), point(intercept)).lower
