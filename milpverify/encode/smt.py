"""One disjunct as an SMT-LIB 2 script over the reals, exact: every weight, bound and breakpoint is the rational that its float64 is.

Affine nodes are composed in rational arithmetic, strict rows stay strict, and functions keep their values at jumps, so the script is
satisfiable if and only if a real counterexample exists. Where weights are rounded, what they make is a variable within the error of what
they say: `unsat` stays exact, and a solution may be none of the network. Neurons that are stable within their intervals are written as
lines; the intervals come from interval arithmetic on rationals, rounded outwards to float64, and so cost no trust.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
import torch

from milpverify.encode.segments import is_continuous, pieces_of, touched_pieces
from milpverify.errors import SolverUnavailable
from milpverify.operators import Affine
from milpverify.solvers.model import SmtScript

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from milpverify.encode.encoding import NodeRanges
    from milpverify.functions.pieces import Pieces
    from milpverify.graph import Graph
    from milpverify.spec import Disjunct, Rows

LARGEST = 200_000  # coefficients; beyond that no SMT solver answers in time

_Key = tuple[int, int]  # cut node, flat index
_Form = tuple[dict[_Key, Fraction], Fraction]  # coefficients over cut entries, constant
_Interval = tuple[float, float]


def smt_script(graph: Graph, disjunct: Disjunct, bounds: NodeRanges | None = None) -> SmtScript:
    """The script of one disjunct.

    Args:
        graph: in float64 on the CPU, piecewise linear.
        bounds: of every node, proved over the disjunct's box; they shorten the search, and the answer then rests on them
            too (trust ROUNDED instead of EXACT).

    Raises:
        UnsupportedOperator: a function that is not piecewise linear.
        SolverUnavailable: the network is too large for an SMT solver.
    """
    return _Writer(graph, disjunct, bounds).script()


class _Writer:
    def __init__(self, graph: Graph, disjunct: Disjunct, bounds: NodeRanges | None) -> None:
        self.graph = graph
        self.disjunct = disjunct
        self.bounds = bounds
        self.forms: dict[_Key, _Form] = {}
        self.intervals: dict[_Key, _Interval] = {
            (0, i): ends for i, ends in enumerate(zip(disjunct.box.lower.tolist(), disjunct.box.upper.tolist(), strict=True))
        }
        self.fixed: dict[_Key, Fraction] = {}
        self.lines: list[str] = []
        self.count = 0

    def script(self) -> SmtScript:
        inputs = tuple(f"x_{i}" for i in range(self.graph.nx))
        self.lines.append("(set-logic QF_LRA)")
        for (_, i), (low, high) in list(self.intervals.items()):
            self.lines.append(f"(declare-const x_{i} Real)")
            self.lines += [f"(assert (<= {_number(Fraction(low))} x_{i}))", f"(assert (<= x_{i} {_number(Fraction(high))}))"]
        domain, unsafe = self.disjunct.domain, self.disjunct.unsafe
        outputs: list[int] = np.flatnonzero(unsafe.y_rows.any(axis=0)).tolist()
        self._define(self._needed(outputs))
        self._assert(domain, {})
        self._assert(unsafe, self._resolve(self.graph.output, outputs))
        return SmtScript("\n".join(self.lines) + "\n", inputs)

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
                    pending.append((self.graph.nodes[cut].inputs[0], sorted(found)))
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
        sizes = [abs(b) for b in self._biases(node, entries)]
        for source, row, column, weights in self._rows(node, entries):
            reach = {c: max(map(abs, self._range(form))) for c, form in self._resolve(source, np.unique(column).tolist()).items()}
            for r, c, w in zip(row, column.tolist(), weights, strict=True):
                sizes[r] += abs(w) * Fraction(reach[c])
        share = Fraction(op.rounded, 2**53 - op.rounded)
        for i, form, size in zip(entries, self._composed(node, entries), sizes, strict=True):
            name, low, high = _name((node, i)), (form[0], form[1] - share * size), (form[0], form[1] + share * size)
            self.lines.append(f"(declare-const {name} Real)")
            self.lines += [f"(assert (<= {self._sum(low)} {name}))", f"(assert (<= {name} {self._sum(high)}))"]
            self.intervals[node, i] = (self._range(low)[0], self._range(high)[1])

    def _define(self, needed: dict[int, list[int]]) -> None:
        for node, entries in sorted(needed.items()):
            if (op := self._affine(node)) is not None:
                self._define_rounded(node, entries, op)
                continue
            pieces = pieces_of(self.graph.nodes[node])
            source = self.graph.nodes[node].inputs[0]
            forms = self._resolve(source, entries)
            for i in entries:
                low, high = self._range(forms[i])
                if self.bounds is not None:
                    known = [float(t.reshape(-1)[i]) for t in self.bounds[source]]
                    low, high = max(low, known[0]), min(high, known[1])
                self._define_neuron((node, i), pieces, forms[i], (low, max(low, high)))

    def _define_neuron(self, key: _Key, pieces: Pieces, form: _Form, interval: _Interval) -> None:
        touched = touched_pieces(pieces, np.array([interval[0]]), np.array([interval[1]]))
        first, last = (int(t[0]) for t in touched)
        name = _name(key)
        slopes, intercepts = [Fraction(s) for s in pieces.slopes], [Fraction(c) for c in pieces.intercepts]
        if first == last and not slopes[first]:
            self.fixed[key] = intercepts[first]
            self.intervals[key] = (pieces.intercepts[first], pieces.intercepts[first])
            return
        self.lines.append(f"(declare-const {name} Real)")
        if first == last:
            scaled = ({k: slopes[first] * c for k, c in form[0].items()}, slopes[first] * form[1] + intercepts[first])
            self.lines.append(f"(assert (= {name} {self._sum(scaled)}))")
        else:
            pre = f"p{name}"
            self.lines += [f"(declare-const {pre} Real)", f"(assert (= {pre} {self._sum(form)}))"]
            value = _line(slopes[last], intercepts[last], pre)
            for k in reversed(range(first, last)):
                point = _number(Fraction(pieces.breakpoints[k]))
                value = f"(ite (= {pre} {point}) {_number(Fraction(pieces.values[k]))} {value})"
                value = f"(ite (< {pre} {point}) {_line(slopes[k], intercepts[k], pre)} {value})"
            self.lines.append(f"(assert (= {name} {value}))")
            if last == first + 1 and is_continuous(pieces, first):
                self._relax(name, pieces, first, interval)
        ends = [Fraction(e) for e in interval]
        inner = [Fraction(p) for p in pieces.breakpoints[first:last]]
        values = [slopes[k] * e + intercepts[k] for k, e in ((first, ends[0]), (last, ends[1]))]
        values += [slopes[k + d] * p + intercepts[k + d] for k, p in zip(range(first, last), inner, strict=True) for d in (0, 1)]
        values += [Fraction(v) for v in pieces.values[first:last]]
        self.intervals[key] = (_down(min(values)), _up(max(values)))

    def _relax(self, name: str, pieces: Pieces, k: int, interval: _Interval) -> None:
        """The convex hull of a kink, implied by it: both lines on one side, a line over the ends on the other. It prunes much."""
        lines = [(Fraction(pieces.slopes[i]), Fraction(pieces.intercepts[i])) for i in (k, k + 1)]
        low, high = (Fraction(e) for e in interval)
        first, last = lines[0][0] * low + lines[0][1], lines[1][0] * high + lines[1][1]
        chord = Fraction(float((last - first) / (high - low))).limit_denominator(2**16)  # any slope is sound; short ones are fast
        rests = [first - chord * low, last - chord * high]
        convex = lines[1][0] > lines[0][0]
        near, far, rest = (">=", "<=", _up(max(rests))) if convex else ("<=", ">=", _down(min(rests)))
        self.lines += [f"(assert ({near} {name} {_line(*line, f'p{name}')}))" for line in lines]
        self.lines.append(f"(assert ({far} {name} {_line(chord, Fraction(rest), f'p{name}')}))")

    def _range(self, form: _Form) -> _Interval:
        low = high = form[1]
        for key, c in form[0].items():
            a, b = (c * Fraction(e) for e in self.intervals[key])
            low, high = low + min(a, b), high + max(a, b)
        return _down(low), _up(high)

    def _sum(self, form: _Form) -> str:
        constant, terms = form[1], []
        for key, c in form[0].items():
            if key in self.fixed:
                constant += c * self.fixed[key]
            elif c:
                terms.append(_name(key) if c == 1 else f"(* {_number(c)} {_name(key)})")
        if constant or not terms:
            terms.append(_number(constant))
        return terms[0] if len(terms) == 1 else f"(+ {' '.join(terms)})"

    def _assert(self, rows: Rows, outputs: dict[int, _Form]) -> None:
        for x_row, y_row, rhs, strict in zip(rows.x_rows, rows.y_rows, rows.rhs.tolist(), rows.strict.tolist(), strict=True):
            total: list[_Form] = [({(0, i): Fraction(x_row[i]) for i in np.flatnonzero(x_row).tolist()}, Fraction(0))]
            for j in np.flatnonzero(y_row).tolist():
                _add(total, 0, Fraction(y_row[j]), outputs[j])
            self.lines.append(f"(assert ({'<' if strict else '<='} {self._sum(total[0])} {_number(Fraction(rhs))}))")


def _add(totals: list[_Form], r: int, factor: Fraction, form: _Form) -> None:
    coefficients, constant = totals[r]
    for key, c in form[0].items():
        coefficients[key] = coefficients.get(key, Fraction(0)) + factor * c
    totals[r] = (coefficients, constant + factor * form[1])


def _name(key: _Key) -> str:
    return f"x_{key[1]}" if key[0] == 0 else f"y_{key[0]}_{key[1]}"


def _line(slope: Fraction, intercept: Fraction, x: str) -> str:
    return _number(intercept) if not slope else f"(+ (* {_number(slope)} {x}) {_number(intercept)})"


def _number(value: Fraction) -> str:
    size = f"{abs(value.numerator)}.0" if value.denominator == 1 else f"(/ {abs(value.numerator)}.0 {value.denominator}.0)"
    return f"(- {size})" if value < 0 else size


def _down(value: Fraction) -> float:
    nearest = float(value)
    return nearest if Fraction(nearest) <= value else math.nextafter(nearest, -math.inf)


def _up(value: Fraction) -> float:
    return -_down(-value)
