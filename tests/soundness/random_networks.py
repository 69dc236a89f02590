"""Random small networks as ONNX models, with the same network as `exact.Network`, and random properties of known truth."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import exact
import numpy as np
from onnx import TensorProto, helper, numpy_helper

Shape = tuple[int, ...]
Part = tuple[str, np.ndarray]  # a tensor and its matrix


def _single(value: float) -> Fraction:
    return Fraction(float(np.float32(value)))


def leaky(alpha: Fraction) -> exact.Pieces:
    return exact.Pieces((Fraction(0),), ((alpha, Fraction(0)), (Fraction(1), Fraction(0))))


def clip(low: Fraction, high: Fraction) -> exact.Pieces:
    return exact.Pieces((low, high), ((Fraction(0), low), (Fraction(1), Fraction(0)), (Fraction(0), high)))


RELU, ABS = leaky(Fraction(0)), exact.Pieces((Fraction(0),), ((Fraction(-1), Fraction(0)), (Fraction(1), Fraction(0))))
SIGN = exact.Pieces((Fraction(0),), ((Fraction(0), Fraction(-1)), (Fraction(0), Fraction(1))), (Fraction(0),))


@dataclass
class Builder:
    """An ONNX graph under construction, with every tensor's place in the exact network."""

    nx: int
    nodes: list[object] = field(default_factory=list)
    weights: list[object] = field(default_factory=list)
    network: exact.Network = field(init=False)
    names: dict[str, tuple[int, Shape]] = field(default_factory=dict)  # tensor name -> place, shape

    def __post_init__(self) -> None:
        self.network = exact.Network(self.nx)
        self.names["x"] = (0, (1, self.nx))

    def shape(self, name: str) -> Shape:
        return self.names[name][1]

    def constant(self, value: np.ndarray) -> str:
        self.weights.append(numpy_helper.from_array(value, f"w{len(self.weights)}"))
        return f"w{len(self.weights) - 1}"

    def floats(self, value: object) -> str:
        return self.constant(np.asarray(value, dtype=np.float32))

    def ints(self, *values: int) -> str:
        return self.constant(np.array(values, dtype=np.int64))

    def add(self, kind: str, inputs: list[str], shape: Shape, op: object | None, **attributes: object) -> str:
        """A node; `op` is what it does on flat tensors, None where it only reshapes its first input."""
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=f"{kind}{len(self.nodes)}", **attributes))
        if op is None:
            self.names[name] = (self.names[inputs[0]][0], shape)
        else:
            self.network.ops.append(op)
            self.names[name] = (len(self.network.ops), shape)
        return name

    def affine(self, kind: str, inputs: list[str], shape: Shape, parts: list[Part], bias: object = 0.0, **more: object) -> str:
        size = int(np.prod(shape))
        matrices = [(self.names[t][0], np.asarray(w, dtype=np.float64).reshape(size, -1)) for t, w in parts]
        offset = np.broadcast_to(np.asarray(bias, dtype=np.float64).reshape(-1), (size,))
        return self.add(kind, inputs, shape, exact.Affine(matrices, offset), **more)

    def elementwise(self, kind: str, inputs: list[str], pieces: exact.Pieces, **attributes: object) -> str:
        place, shape = self.names[inputs[0]]
        return self.add(kind, inputs, shape, exact.Elementwise(place, pieces), **attributes)

    def gemm(self, x: str, weight: object, bias: object) -> str:
        """W x + b on the last axis of (1, n)."""
        w, b = np.asarray(weight, dtype=np.float32), np.asarray(bias, dtype=np.float32)
        return self.affine("Gemm", [x, self.floats(w), self.floats(b)], (1, len(b)), [(x, w)], b, transB=1)

    def relu(self, x: str) -> str:
        return self.elementwise("Relu", [x], RELU)

    def model(self, output: str) -> bytes:
        self.network.output, shape = self.names[output]
        ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, list(s)) for n, s in (("x", [1, self.nx]), (output, shape))]
        graph = helper.make_graph(self.nodes, "test", ends[:1], ends[1:], self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        return bytes(model.SerializeToString())


class Generator:
    """One random network: layers of mixed operators over flat tensors (1, n), with at most `budget` unstable entries."""

    def __init__(self, rng: np.random.Generator, nx: int, budget: int, jumps: bool) -> None:
        self.rng, self.budget, self.jumps = rng, budget, jumps
        self.b = Builder(nx)

    def normal(self, *shape: int, scale: float = 1.0) -> np.ndarray:
        value = (self.rng.normal(size=shape) * scale).astype(np.float32)
        if self.rng.random() < 0.3:  # round numbers make ties and exact zeros
            value = (np.round(value / np.float32(scale) * 4) / 4 * np.float32(scale)).astype(np.float32)
        return value

    def flat(self, x: str) -> str:
        shape = self.b.shape(x)
        if len(shape) == 2:
            return x
        size = int(np.prod(shape))
        if self.rng.random() < 0.5:
            return self.b.add("Flatten", [x], (1, size), None)
        return self.b.add("Reshape", [x, self.b.ints(1, -1)], (1, size), None)

    def build(self, scales: list[float]) -> tuple[bytes, exact.Network]:
        x = self.scaled("x") if self.rng.random() < 0.2 else "x"
        for scale in scales:
            x = self.nonlinear(self.linear(x, scale))
            if self.rng.random() < 0.3:
                x = self.extra(x)
        x = self.flat(x)
        y = self.gemm(x, int(self.rng.integers(1, 4)), 1.0)
        if self.rng.random() < 0.15:
            y = self.concat(y, "x" if self.rng.random() < 0.5 else y)  # an output that is an input, or twice the same
        return self.b.model(y), self.b.network

    def gemm(self, x: str, count: int, scale: float) -> str:
        n = self.b.shape(x)[1]
        w, bias = self.normal(count, n, scale=scale / max(1, n) ** 0.5), self.normal(count, scale=0.5 * scale)
        if self.rng.random() < 0.3:
            product = self.b.affine("MatMul", [x, self.b.floats(w.T)], (1, count), [(x, w)])
            return self.b.affine("Add", [product, self.b.floats(bias)], (1, count), [(product, np.eye(count))], bias)
        if self.rng.random() < 0.3:
            factor = [1.0, 2.0, -0.5, 0.25]
            alpha, beta = (float(self.rng.choice(factor)) for _ in range(2))
            inputs = [x, self.b.floats(w.T), self.b.floats(bias)]
            parts, offset = [(x, alpha * w.astype(float))], beta * bias.astype(float)
            return self.b.affine("Gemm", inputs, (1, count), parts, offset, alpha=alpha, beta=beta)
        return self.b.gemm(x, w, bias)

    def linear(self, x: str, scale: float) -> str:
        count = int(min(4, self.budget, self.rng.integers(2, 5)))
        if count < 2:
            return self.gemm(self.flat(x), max(1, count), scale)
        if self.rng.random() < 0.3:
            return self.conv(self.gemm(self.flat(x), 6, 1.0), scale)
        return self.gemm(self.flat(x), count, scale)

    def conv(self, x: str, scale: float) -> str:
        """(1, 6) as (1, 1, 2, 3) -> (1, channels, 1 or 2, 2)."""
        image = self.b.add("Reshape", [x, self.b.ints(1, 1, 2, 3)], (1, 1, 2, 3), None)
        channels, high = int(self.rng.integers(1, 3)), int(self.rng.integers(1, 3))
        kernel, bias = self.normal(channels, 1, 3 - high, 2, scale=scale / 2), self.normal(channels, scale=0.5 * scale)
        matrix = np.zeros((channels, high, 2, 2, 3))
        for r in range(high):
            for c in range(2):
                matrix[:, r, c, r : r + 3 - high, c : c + 2] = kernel[:, 0]
        inputs = [image, self.b.floats(kernel), self.b.floats(bias)]
        shape = (1, channels, high, 2)
        return self.b.affine("Conv", inputs, shape, [(image, matrix)], np.repeat(bias, 2 * high), kernel_shape=[3 - high, 2])

    def nonlinear(self, x: str) -> str:
        """An activation, or a pooling over (C, H, 2)."""
        shape = self.b.shape(x)
        others = ["LeakyRelu", "Abs", "Clip", "PRelu", "Max", "Min", "Pool", "Sign" if self.jumps else "Relu"]
        kind = str(self.rng.choice(["Relu"] * 5 + others))
        self.budget -= int(np.prod(shape))
        if kind == "Pool" and len(shape) == 4:
            return self.pool(x, shape)
        b = self.b
        match kind:
            case "LeakyRelu":
                alpha = float(np.float32(self.rng.choice([0.01, 0.1, 0.25, -0.5])))
                return b.elementwise(kind, [x], leaky(Fraction(alpha)), alpha=alpha)
            case "Abs":
                return b.elementwise(kind, [x], ABS)
            case "Sign":
                return b.elementwise(kind, [x], SIGN)
            case "Clip":
                low, high = _single(-abs(self.normal(1)[0])), _single(abs(self.normal(1)[0]) + 0.25)
                return b.elementwise(kind, [x, b.floats(float(low)), b.floats(float(high))], clip(low, high))
            case "PRelu":
                slope = _single(self.normal(1)[0])
                return b.elementwise(kind, [x, b.floats(np.full([1] * len(shape), float(slope)))], leaky(slope))
            case "Max" | "Min":
                other = self.gemm(self.flat(x), int(np.prod(shape)), 1.0)
                first, places = self.flat(x), [b.names[t][0] for t in (x, other)]
                candidates = [[(p, i) for p in places] for i in range(int(np.prod(shape)))]
                return b.add(kind, [first, other], b.shape(first), exact.Largest(candidates, 1 if kind == "Max" else -1))
            case _:
                return b.relu(x)

    def pool(self, x: str, shape: Shape) -> str:
        _, channels, high, wide = shape
        place, out = self.b.names[x][0], (1, channels, high, wide - 1)
        windows = [[(c * high + r) * wide + k + d for d in range(2)] for c in range(channels) for r in range(high) for k in range(wide - 1)]
        if self.rng.random() < 0.6:
            return self.b.add("MaxPool", [x], out, exact.Largest([[(place, i) for i in w] for w in windows]), kernel_shape=[1, 2])
        matrix = np.zeros((len(windows), int(np.prod(shape))))
        for row, window in enumerate(windows):
            matrix[row, window] = 0.5
        pooled = self.b.affine("AveragePool", [x], out, [(x, matrix)], kernel_shape=[1, 2])
        return self.b.relu(pooled)

    def extra(self, x: str) -> str:
        """A residual sum, a join, a scaling, a negation, a reordering."""
        x = self.flat(x)
        n = self.b.shape(x)[1]
        match int(self.rng.integers(6)):
            case 0 | 1:
                other = self.gemm("x", n, 1.0)
                sign = float(self.rng.choice([1, -1]))
                return self.b.affine("Add" if sign > 0 else "Sub", [x, other], (1, n), [(x, np.eye(n)), (other, sign * np.eye(n))])
            case 2:
                return self.concat(x, self.gemm("x", 1, 1.0))
            case 3:
                return self.scaled(x)
            case 4:
                return self.b.affine("Neg", [x], (1, n), [(x, -np.eye(n))])
            case _:
                order = self.rng.permutation(n)
                return self.b.affine("Gather", [x, self.b.ints(*order.tolist())], (1, n), [(x, np.eye(n)[order])], axis=1)

    def scaled(self, x: str) -> str:
        n = self.b.shape(x)[1]
        factor = self.normal(n)
        return self.b.affine("Mul", [x, self.b.floats(factor)], (1, n), [(x, np.diag(factor.astype(float)))])

    def concat(self, a: str, b: str) -> str:
        n, m = self.b.shape(a)[1], self.b.shape(b)[1]
        return self.b.affine("Concat", [a, b], (1, n + m), [(a, np.eye(n + m, n)), (b, np.eye(n + m, m, -n))], axis=1)


@dataclass
class Case:
    """A network and a property, in files and exactly."""

    network: exact.Network
    disjuncts: list[exact.Disjunct]
    model: bytes
    text: str

    def write(self, folder: Path, name: str = "case") -> tuple[Path, Path]:
        net, spec = folder / f"{name}.onnx", folder / f"{name}.vnnlib"
        net.write_bytes(self.model)
        spec.write_text(self.text)
        return net, spec


def numeral(value: float) -> str:
    return f"{Fraction(value).numerator}.0" if value == int(value) and abs(value) < 2**53 else repr(float(value))


def row_text(row: exact.Row) -> str:
    terms = [f"(* {numeral(float(c))} {n}_{i})" for n, cs in (("X", row.x_row), ("Y", row.y_row)) for i, c in enumerate(cs) if c]
    left = terms[0] if len(terms) == 1 else f"(+ {' '.join(terms)})"
    return f"({'<' if row.strict else '<='} {left} {numeral(row.rhs)})"


def spec_text(nx: int, ny: int, disjuncts: list[exact.Disjunct]) -> str:
    """One shared box asserted at the top, or one box per disjunct inside the `or`."""
    declarations = [f"(declare-const X_{i} Real)" for i in range(nx)] + [f"(declare-const Y_{i} Real)" for i in range(ny)]

    def box(d: exact.Disjunct) -> list[str]:
        pairs = zip(d.lower, d.upper, strict=True)
        return [f"({o} X_{i} {numeral(v)})" for i, ends in enumerate(pairs) for o, v in zip((">=", "<="), ends, strict=True)]

    shared = all((d.lower, d.upper) == (disjuncts[0].lower, disjuncts[0].upper) for d in disjuncts)
    top = box(disjuncts[0]) if shared else []
    bodies = [[*([] if shared else box(d)), *(row_text(r) for r in (*d.domain, *d.unsafe))] for d in disjuncts]
    parts = [f"(and {' '.join(b)})" for b in bodies]
    body = f"(or {' '.join(parts)})" if len(parts) > 1 else parts[0]
    return "\n".join([*declarations, *(f"(assert {t})" for t in top), f"(assert {body})"]) + "\n"


def random_case(seed: int) -> Case:
    """Case number `seed`: its margin is near 0, a little or a lot above or below it, by a threshold set from the exact optimum."""
    rng = np.random.default_rng(seed)
    nx = int(rng.integers(1, 5))
    free = rng.permutation(nx)[: int(rng.integers(0 if seed % 17 == 0 else 1, min(nx, 3) + 1))]
    scales = [float(10.0**e) for e in ([0, 0], [0], [6, -6], [-6, 6], [4, 0], [0, 0, 0], [0, -4])[int(rng.integers(7))]]
    model, network = Generator(rng, nx, budget=12, jumps=seed % 5 == 0).build(scales)
    ny = network.size(network.output)
    spread = float(10.0 ** rng.choice([0, 0, 0, -6, 4]))
    disjuncts = []
    for _ in range(int(rng.choice([1, 1, 2, 3]))):
        if not disjuncts or rng.random() < 0.5:
            lower = np.round(rng.normal(size=nx), 3) * spread
            upper = lower.copy()
            upper[free] += np.round(rng.uniform(0.1, 2.0, len(free)), 3) * spread
        else:
            lower, upper = np.array(disjuncts[0].lower), np.array(disjuncts[0].upper)
        ends = [lower.tolist(), upper.tolist()]
        domain = []
        if nx > 1 and rng.random() < 0.3:
            row = np.round(rng.normal(size=nx), 2)
            row[:2] += [1.0, -1.0] * (row[:2] == 0)
            middle = float(row @ (lower + upper)) / 2
            domain.append(exact.Row(row, np.zeros(ny), middle + float(rng.choice([0.0, 0.25, -0.25])) * spread, bool(rng.random() < 0.3)))
        rows = []
        for _ in range(int(rng.choice([1, 1, 2, 3]))):
            y_row = np.round(rng.normal(size=ny), 2)
            y_row[int(rng.integers(ny))] = float(rng.choice([1.0, -1.0]))
            x_row = np.round(rng.normal(size=nx), 2) if rng.random() < 0.25 else np.zeros(nx)
            rows.append(exact.Row(x_row, y_row, 0.0, bool(rng.random() < 0.3)))
        disjunct = exact.Disjunct(*ends, rows, domain)
        found = exact.truth(network, disjunct)
        if found.optimum is not None:
            shift = float(rng.choice([0.0, 1e-5, -1e-5, 1e-3, -1e-3, 0.1, -0.1, 1.0, 1.0])) * found.scale
            for row in rows:
                row.rhs = float(found.optimum) - shift
        disjuncts.append(disjunct)
    return Case(network, disjuncts, model, spec_text(nx, ny, disjuncts))
