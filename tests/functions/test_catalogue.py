import math
import pickle
import random
import subprocess
import sys
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import flint
import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from milpverify.errors import InvalidInput, InvalidModel
from milpverify.functions.algebras import ball_algebra, torch_function
from milpverify.functions.catalogue import Catalogue, Curvature, Function, catalogue, load_nonlinearity
from milpverify.functions.selfcheck import check, sample_points
from milpverify.functions.terms import differentiate, evaluate

INF = math.inf
SETTINGS: dict[str, list[dict[str, float]]] = {
    "prelu": [{"slope": 0.25}, {"slope": -0.7}, {"slope": 3.0}, {"slope": 1.0}],
    "leaky_relu": [{}, {"alpha": 0.3}],
    "clip": [{}, {"min": -1.0, "max": 2.0}, {"min": 0.1}, {"max": 0.7}, {"min": 2.0, "max": 2.0}],
    "hard_tanh": [{}, {"min": -0.3, "max": 0.2}],
    "hard_sigmoid": [{"alpha": 0.25}, {"alpha": -0.5, "beta": 0.25}],
    "elu": [{}, {"alpha": 0.3}, {"alpha": 2.0}, {"alpha": 0.0}],
    "selu": [{}, {"alpha": 1.6732632423543772, "gamma": 1.0507009873554805}],
    "celu": [{}, {"alpha": 0.5}, {"alpha": 3.0}],
    "gelu_rounded": [{}, {"c": 0.70654296875}],
    "pow_even": [{"n": 2}, {"n": 6}],
    "pow_odd": [{"n": 3}, {"n": 7}],
}
FUNCTIONS = [entry.bind(**setting) for name, entry in catalogue().items() for setting in SETTINGS.get(name, [{}])]
SMOOTH = [f for f in FUNCTIONS if f.pieces is None]
LINEAR = [f for f in FUNCTIONS if f.pieces is not None]
every = pytest.mark.parametrize("f", FUNCTIONS, ids=str)
every_smooth = pytest.mark.parametrize("f", SMOOTH, ids=str)
every_linear = pytest.mark.parametrize("f", LINEAR, ids=str)


def special(f: Function) -> list[float]:
    """Extrema, inflections, breakpoints: the points where a rule can go wrong."""
    pairs = [*f.extrema, *f.inflections]
    return [end for pair in pairs for end in pair] + list(f.pieces.breakpoints if f.pieces else ())


def ends(f: Function) -> tuple[float, float]:
    """Floats inside the domain's ends."""
    return (f.domain[0][1], f.domain[1][0]) if f.domain else (-INF, INF)


def boxes(f: Function, seed: int = 0) -> list[tuple[float, float]]:
    """Boxes of all widths, at all magnitudes, around and beside the special points, inside the domain."""
    rng = random.Random(seed)
    centres = [
        0.0,
        -0.0,
        1.0,
        -1.0,
        *special(f),
        *(rng.uniform(-6, 6) for _ in range(25)),
        *(rng.uniform(-800, 800) for _ in range(10)),
        1e6,
        -1e6,
    ]
    widths = (0.0, 1e-15, 1e-9, 1e-3, 0.5, 3.0, 12.0, 1e6)
    found = []
    for c in centres:
        for w in widths:
            a = rng.random()
            found += [(c - a * w, c + (1 - a) * w), (c, c + w), (c - w, c), (math.nextafter(c, -INF), math.nextafter(c, INF))]
    start, end = ends(f)
    inside = [(low, high) for low, high in found if start <= low and high <= end]
    return [(low, high) for low, high in inside if not any(low <= b and a <= high for a, b in f.poles)]


def within(f: Function, x: np.ndarray) -> np.ndarray:
    """Those that lie inside the domain, and at no pole or jump."""
    start, end = ends(f)
    apart = [*f.poles, *((b, b) for b in (f.pieces.breakpoints if f.definition.jumps and f.pieces else ()))]
    return x[(start < x) & (x < end) & np.all([(x < a) | (x > b) for a, b in apart], axis=0)]


def ball(f: Function, x: float, precision: int = 160) -> flint.arb:
    with flint.ctx.workprec(precision):
        return f.ball(flint.arb(x))


@every
def test_the_file_says_the_truth(f: Function) -> None:
    check(f, f.name)


def test_every_entry_is_tested_and_settings_name_entries_only() -> None:
    assert {f.name for f in FUNCTIONS} == set(catalogue())
    assert set(SETTINGS) <= set(catalogue())


@every
def test_no_value_lies_outside_the_interval(f: Function) -> None:
    rng = random.Random(f.name)
    found = boxes(f)
    assert len(found) > 100
    lower, upper = (torch.tensor(side, dtype=torch.float64) for side in zip(*found, strict=True))
    for low, high, a, b in zip(*(t.tolist() for t in (lower, upper, *f.interval(lower, upper))), strict=True):
        assert a <= b
        points = {
            low,
            high,
            *(min(max(low + (high - low) * rng.random(), low), high) for _ in range(4)),
            *(s for s in special(f) if low <= s <= high),
        }
        for x in points:
            value = ball(f, x)
            assert not value < a, (low, high, x)
            assert not value > b, (low, high, x)


@every
def test_the_interval_is_the_range_and_not_more(f: Function) -> None:
    chosen = [(low, high) for low, high in boxes(f, 1) if abs(low) < 20 and abs(high) < 20 and high - low > 1e-3]
    if f.definition.jumps:  # the limits at a jump belong to a box that touches it, though no value of the box is near
        chosen = [(low, high) for low, high in chosen if not {low, high} & {*f.pieces.breakpoints}]
    assert chosen
    lower, upper = (torch.tensor(side, dtype=torch.float64) for side in zip(*chosen, strict=True))
    even = lower + (upper - lower) * torch.linspace(0, 1, 8001, dtype=torch.float64)[:, None]
    y = f(torch.cat([even, *(torch.full_like(lower, s).clamp(lower, upper)[None] for s in special(f))]))
    a, b = f.interval(lower, upper)
    slack = 1e-5 * (1 + y.abs().amax(0))
    assert (a >= y.amin(0) - slack).all()
    assert (b <= y.amax(0) + slack).all()


@every
def test_degenerate_boxes_have_a_range_of_rounding_size(f: Function) -> None:
    x = torch.linspace(-20, 20, 401, dtype=torch.float64)
    start, end = ends(f)
    x = x[(x > start) & (x < end)]
    if f.poles or f.definition.jumps:
        x = x[x != 0]
    lower, upper = f.interval(x, x)
    assert (upper - lower <= 1e-13 * (1 + lower.abs())).all()


@every
def test_any_box_has_bounds_that_are_no_nan(f: Function) -> None:
    numbers = [-INF, -1e308, -1e6, -1.0, -0.0, 0.0, 1e-310, 1.0, 2.0, 1e6, 1e308, INF]
    pairs = [(a, b) for a in numbers for b in numbers if a <= b]
    lower, upper = f.interval(*(torch.tensor(side, dtype=torch.float64) for side in zip(*pairs, strict=True)))
    assert (lower <= upper).all()
    start, end = ends(f)
    for (low, high), a, b in zip(pairs, lower.tolist(), upper.tolist(), strict=True):
        if low < start or high > end or any(low <= p[1] and high >= p[0] for p in f.poles):
            assert (a, b) == (-INF, INF)
        for x in (v for v in numbers if low <= v <= high and abs(v) < INF and start <= v <= end):
            value = ball(f, x)
            assert not value < a if a > -INF else True
            assert not value > b if b < INF else True
    lower, upper = f.interval(torch.tensor([math.nan, 0.0]), torch.tensor([1.0, math.nan]))
    assert lower.tolist() == [-INF, -INF]
    assert upper.tolist() == [INF, INF]


@every
def test_tensors_agree_with_balls_in_both_precisions(f: Function) -> None:
    with flint.ctx.workprec(160):
        points = [float(p) for p in sample_points(f)][::7]
        exact = torch.tensor([float(f.ball(flint.arb(x))) for x in points], dtype=torch.float64)
        slope = torch.tensor([float(f.derivative_ball(flint.arb(x))) for x in points], dtype=torch.float64)
    x = torch.tensor(points, dtype=torch.float64)
    assert torch.allclose(f(x), exact, rtol=1e-12, atol=1e-13)
    assert torch.allclose(f.derivative(x), slope, rtol=1e-9, atol=1e-12)
    short = x.float()
    assert f(short).dtype == torch.float32
    assert f.derivative(short).dtype == torch.float32
    same = short.double() == x
    assert torch.allclose(f(short).double()[same], exact[same], rtol=1e-5, atol=1e-6)
    assert f(x.reshape(1, -1, 1)).shape == (1, len(x), 1)


@every
def test_autograd_gives_the_derivative(f: Function) -> None:
    x = torch.tensor([float(p) for p in sample_points(f)], dtype=torch.float64)
    kinks = {*special(f), *dict(f.parameters).values()}  # the ends of clip(2, 2) too, a constant without breakpoints
    x = x[[v not in kinks for v in x.tolist()]].requires_grad_()
    (gradient,) = torch.autograd.grad(f(x).sum(), x)
    assert torch.allclose(gradient, f.derivative(x.detach()), rtol=1e-8, atol=1e-10)


@every
def test_far_out_nothing_turns_into_nan(f: Function) -> None:
    for dtype in (torch.float32, torch.float64):
        x = torch.tensor([-1e6, -800.0, -100.0, -20.0, 20.0, 100.0, 800.0, 1e6], dtype=dtype)
        start, end = ends(f)
        x = x[(x >= start) & (x <= end)].requires_grad_()
        y = f(x)
        assert not y.isnan().any()
        assert not f.derivative(x.detach()).isnan().any()
        if len(x):
            (gradient,) = torch.autograd.grad(y.sum(), x)
            assert not gradient.isnan().any()


@every
def test_balls_contain_the_values_of_their_points(f: Function) -> None:
    rng = random.Random(f.name)
    start, end = ends(f)
    for _ in range(100):
        centre, radius = rng.uniform(-4, 4), 10.0 ** rng.uniform(-6, 0)
        low, high = centre - radius, centre + radius
        if low <= start or high >= end or any(low <= b and a <= high for a, b in f.poles):
            continue
        whole = f.ball(flint.arb(centre, radius))
        for _ in range(5):
            assert whole.overlaps(ball(f, rng.uniform(low, high)))


@every_smooth
def test_curvature_is_the_sign_of_the_second_derivative(f: Function) -> None:
    second = differentiate(differentiate(f.term))
    signs = {Curvature.CONVEX: 1, Curvature.CONCAVE: -1, Curvature.LINEAR: 0}
    certain = 0
    points = [p for p in sample_points(f) if f.period is None or 0 < p < 6.28]
    for x in points:
        piece = sum(1 for _, high in f.inflections if x > high) - (f.period is not None)
        with flint.ctx.workprec(256):
            value = evaluate(second, ball_algebra(), {"x": x})
        expected = signs[f.curvature[piece]]
        if expected:
            assert not value * expected < 0
            certain += bool(value * expected > 0)
        else:
            assert value.contains(0)
            certain += bool(abs(value) < 1e-30)
    assert certain > 0.95 * len(points) or f.staircase


@every_smooth
def test_enclosures_are_of_rounding_size(f: Function) -> None:
    if f.staircase:
        return  # of its curvature nothing is said
    for low, high in (*f.extrema, *f.inflections, *f.poles, *([f.period] if f.period else [])):
        assert low <= high
        assert high - low <= 4 * math.ulp(max(abs(low), abs(high)))


@every_smooth
def test_extrema_are_where_the_derivative_changes_its_sign(f: Function) -> None:
    with flint.ctx.workprec(256):
        for low, high in f.extrema:
            before, after = (f.derivative_ball(flint.arb(x)) for x in (low - 1e-6, high + 1e-6))
            assert before * after < 0


@pytest.mark.parametrize("relative", [1e-7, 5e-3])
def test_special_points_of_rounded_gelu_move_with_its_constants(relative: float) -> None:
    """They lie where the file says, and the derivatives that the file bounds are in its intervals for all allowed constants."""
    family, random_ = catalogue()["gelu_tanh_rounded"], random.Random(0)
    second = differentiate(differentiate(family.term))
    with flint.ctx.workprec(200):
        for _ in range(8):
            slope, cubic = (p.default * (1 + relative * random_.uniform(-1, 1)) for p in family.limits.values())
            f = family.bind(slope=slope, cubic=cubic)
            check(f, str(f))
            values = {"slope": flint.arb(slope), "cubic": flint.arb(cubic)}
            for low, high in f.inflections:
                assert high - low < 0.2 * relative
                signs = [evaluate(second, ball_algebra(), {"x": flint.arb(x), **values}) for x in (low, high)]
                assert signs[0] * signs[1] < 0
            for low, high in f.extrema:
                assert f.derivative_ball(flint.arb(low)) < 0 < f.derivative_ball(flint.arb(high))


@pytest.mark.parametrize(("order", "start", "speed"), [(1, -0.6, (0.3, 0.6)), (2, 1.13, (-1.5, -0.7))])
def test_special_points_of_rounded_gelu_move_as_slowly_as_the_file_says(order: int, start: float, speed: tuple[float, float]) -> None:
    """With slope 1: dz/dr of the zero z of the derivative of that order in cubic = r, for every r that the parameters allow.

    f(x) - x/2 is even, so that the other inflection is the mirror image.
    """
    term = catalogue()["gelu_tanh_rounded"].derivative
    assert term is not None
    for _ in range(order - 1):
        term = differentiate(term)
    along, across = differentiate(term), differentiate(term, "cubic")
    one = {"slope": flint.arb(1)}
    algebra, z, cells = ball_algebra(), flint.arb(start), 500
    with flint.ctx.workprec(100):
        for i in range(cells):
            r = flint.arb(0.0668 + 0.0072 * (i + 0.5) / cells, 0.0036 / cells)
            for _ in range(8):
                at = {**one, "x": z.mid(), "cubic": r.mid()}
                z = (z - evaluate(term, algebra, at) / evaluate(along, algebra, at)).mid()
            around = flint.arb(z, 2e-3)
            assert (
                evaluate(term, algebra, {**one, "x": z - 2e-3, "cubic": r}) * evaluate(term, algebra, {**one, "x": z + 2e-3, "cubic": r})
                < 0
            )
            at = {**one, "x": around, "cubic": r}
            moved = -evaluate(across, algebra, at) / evaluate(along, algebra, at)
            assert speed[0] < moved < speed[1]


@every_linear
def test_pieces_are_the_function(f: Function) -> None:
    pieces = f.pieces
    assert pieces is not None
    assert all(a < b for a, b in pairwise(pieces.breakpoints))
    counts = [len(v) for v in (pieces.breakpoints, pieces.slopes, pieces.intercepts, pieces.values)]
    assert counts == [counts[0], counts[0] + 1, counts[0] + 1, counts[0]]
    edges = (-50.0, *pieces.breakpoints, 50.0)
    for (left, right), slope, intercept in zip(pairwise(edges), pieces.slopes, pieces.intercepts, strict=True):
        for part in (0.01, 0.3, 0.99):
            x = left + (right - left) * part
            exact = Fraction(slope) * Fraction(x) + Fraction(intercept)
            assert ball(f, x, 400).overlaps(flint.arb(flint.fmpq(*exact.as_integer_ratio())))
    for at, value in zip(pieces.breakpoints, pieces.values, strict=True):
        assert ball(f, at).overlaps(flint.arb(value))
        assert float(f(torch.tensor(at, dtype=torch.float64))) == pytest.approx(value, rel=1e-15)


def test_the_closure_of_a_jump_is_in_its_range() -> None:
    sign = catalogue()["sign"].bind()
    lower, upper = sign.interval(torch.tensor([0.0, -1.0, 0.0, 1e-300]), torch.tensor([0.0, 0.0, 1.0, 1.0]))
    assert lower.tolist() == [-1, -1, -1, -1]  # 1e-300 is 0 in float32
    assert upper.tolist() == [1, 1, 1, 1]
    lower, upper = sign.interval(torch.tensor([1e-300, -2.0], dtype=torch.float64), torch.tensor([1.0, -1e-300], dtype=torch.float64))
    assert (lower.tolist(), upper.tolist()) == ([1, -1], [1, -1])


def run_onnx(operator: str, x: np.ndarray, inputs: list[float], attributes: dict[str, float]) -> np.ndarray:
    names = [f"p{i}" for i in range(len(inputs))]
    node = onnx.helper.make_node(operator, ["x", *names], ["y"], **attributes)
    tensors = [onnx.numpy_helper.from_array(np.array(v, dtype=np.float32), n) for n, v in zip(names, inputs, strict=True)]
    value = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [len(x)]) for n in ("x", "y")]
    graph = onnx.helper.make_graph([node], "one", value[:1], value[1:], tensors)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


@pytest.mark.parametrize("f", [f for f in FUNCTIONS if f.definition.onnx], ids=str)
def test_onnx_operators_are_these_functions(f: Function) -> None:
    (operator,) = f.definition.onnx
    x = within(f, np.linspace(-9, 9, 601)).astype(np.float32)
    by_input = operator in ("Clip", "PRelu")
    values = [value for _, value in f.parameters]
    y = run_onnx(operator, x, values if by_input else [], {} if by_input else dict(f.parameters))
    expected = f(torch.from_numpy(x).double()).numpy()
    assert np.allclose(y, expected, rtol=3e-5, atol=1e-6)
    if f.parameters and not by_input and dict(f.parameters) == f.definition.parameters:
        assert np.array_equal(run_onnx(operator, x, [], {}), y), "the defaults are not ONNX's"


@every
def test_torch_names_are_functions_of_torch(f: Function) -> None:
    x = torch.from_numpy(within(f, np.linspace(-1.5, 1.5, 61)))
    assert len(x) > 9
    for name in f.definition.torch:
        function = torch_function(name)
        if not f.parameters:
            assert torch.allclose(function(x), f(x), rtol=1e-6)
        assert catalogue().by_torch(name) is f.definition


def test_lookups() -> None:
    assert catalogue().by_onnx("LeakyRelu") is catalogue()["leaky_relu"]
    assert catalogue().by_onnx("Softmax") is None
    assert catalogue().by_torch("torch.softmax") is None


def test_functions_compare_by_name_and_parameters() -> None:
    leaky = catalogue()["leaky_relu"]
    assert leaky.parameters == {"alpha": pytest.approx(0.01)}
    assert catalogue()["prelu"].parameters == {"slope": None}
    assert leaky.bind(alpha=0.25) == leaky.bind(alpha=np.float32(0.25))
    assert hash(leaky.bind(alpha=0.25)) == hash(leaky.bind(alpha=0.25))
    assert leaky.bind(alpha=0.25) != leaky.bind()
    copied = pickle.loads(pickle.dumps(leaky.bind(alpha=0.25)))
    assert copied == leaky.bind(alpha=0.25)
    assert copied.pieces == leaky.bind(alpha=0.25).pieces
    with pytest.raises(AttributeError):
        copied.name = "relu"


@pytest.mark.parametrize(
    ("name", "parameters", "complaint"),
    [
        ("relu", {"alpha": 1.0}, "relu has no parameter 'alpha'; it has: none"),
        ("prelu", {}, "prelu needs its parameter 'slope'"),
        ("leaky_relu", {"alpha": math.nan}, "leaky_relu: alpha = nan is not allowed"),
        ("leaky_relu", {"alpha": INF}, "leaky_relu: alpha = inf is not allowed"),
        ("elu", {"alpha": -1.0}, "elu: alpha = -1.0 is not allowed"),
        ("pow_even", {"n": 3}, "pow_even: n = 3.0 is not allowed"),
        ("pow_odd", {"n": 3.5}, "pow_odd: n = 3.5 is not allowed"),
        ("clip", {"min": INF}, "an infinite constant"),
        ("hard_sigmoid", {}, "is not exact in binary64; write it as an affine map"),
    ],
)
def test_bad_parameters_are_refused(name: str, parameters: dict[str, float], complaint: str) -> None:
    with pytest.raises(InvalidModel) as error:
        catalogue()[name].bind(**parameters)
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)


RAMP = 'name = "{name}"\nterm = "(max (+ x 1) 0)"\nonnx = []\ntorch = []\n'
WAVE = """name = "{name}"
term = "(+ x (sin x))"
domain = ["-inf", "inf"]
range = ["-inf", "inf"]
extrema = []
inflections = []
curvature = ["convex"]
onnx = []
torch = []
"""
LOGCOSH = """name = "{name}"
term = "(log (* 1/2 (+ (exp x) (exp (- x)))))"
derivative = "(tanh x)"
domain = ["-inf", "inf"]
range = ["0", "inf"]
extrema = ["0"]
inflections = []
curvature = ["convex"]
onnx = []
torch = []

[backend]
numeric = "(- (+ (abs x) (log1p (exp (* -2 (abs x))))) (log 2))"
"""


def write(folder: Path, text: str, name: str = "mine") -> Path:
    path = folder / f"{name}.toml"
    path.write_text(text.replace("{name}", name))
    return path


def test_a_users_own_functions(tmp_path: Path) -> None:
    own = Catalogue()
    ramp, logcosh = own.register(write(tmp_path, RAMP, "ramp")).bind(), own.register(write(tmp_path, LOGCOSH, "logcosh")).bind()
    assert list(own) == ["ramp", "logcosh"]
    assert ramp.pieces is not None
    assert ramp.pieces.breakpoints == (-1.0,)
    check(ramp, "ramp")
    check(logcosh, "logcosh")
    lower, upper = logcosh.interval(torch.tensor(-900.0), torch.tensor(2.0))
    assert float(lower) == 0
    assert float(upper) == pytest.approx(900 - math.log(2))
    with pytest.raises(InvalidInput, match="ramp already belongs to the nonlinearity ramp"):
        own.register(tmp_path / "ramp.toml")


def test_registering_reaches_the_process_catalogue_and_checks_in_full(tmp_path: Path) -> None:
    good, bad = write(tmp_path, LOGCOSH, "logcosh"), write(tmp_path, WAVE, "wave")
    code = (
        "import sys; from milpverify.functions.catalogue import catalogue, register_nonlinearity\n"
        "try:\n    register_nonlinearity(sys.argv[2])\nexcept ValueError as error:\n    print(error)\n"
        "assert 'wave' not in catalogue(); assert register_nonlinearity(sys.argv[1]) is catalogue()['logcosh']"
    )
    done = subprocess.run([sys.executable, "-c", code, str(good), str(bad)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{bad}: curvature: not convex between ")
    assert done.stdout.count("\n") == 1


def changed(text: str, old: str, new: str) -> str:
    assert old in text
    return text.replace(old, new)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("name = ", "Invalid value"),
        (changed(RAMP, "onnx = []\n", ""), "the key 'onnx' is missing"),
        (changed(RAMP, "{name}", "other"), "name 'other' differs from the file's name"),
        (RAMP + "colour = 3\n", "unknown key 'colour'"),
        (changed(RAMP, "(max", "(mux"), "unknown operator 'mux'"),
        (changed(RAMP, "x 1", "z 1"), "unknown name 'z'"),
        (changed(RAMP, "x 1", "3 1"), "x does not occur"),
        (changed(RAMP, "(max (+ x 1) 0)", "(+ x (sign x))"), "discontinuous at 0, which jumps does not declare"),
        (RAMP + 'range = ["0", "inf"]\n', "the term is piecewise linear"),
        (RAMP + "[parameters]\na = true\n", "parameters.a: True is not a number"),
        (RAMP + "[parameters]\na = nan\n", "parameters.a: nan is not a number"),
        (RAMP + "[parameters]\na = { default = 1.0, minimum = 2.0 }\n", "the default 1.0 is not allowed"),
        (RAMP + "[parameters]\na = { most = 2.0 }\n", "parameters.a: unknown key 'most'"),
        (RAMP + "[backend]\nfortran = 'x'\n", "unknown backend 'fortran'"),
        (RAMP + "[backend]\nscip = 'x'\n", "unknown backend 'scip'"),
        (changed(RAMP, "onnx = []", 'onnx = "Ramp"'), "onnx: a list is needed"),
        (changed(RAMP, "onnx = []", "onnx = [3]"), "onnx: a list of strings is needed"),
        (changed(LOGCOSH, 'range = ["0", "inf"]\n', ""), "the key 'range' is missing"),
        (changed(LOGCOSH, '["convex"]', '["bent"]'), "curvature: 'bent' is not a valid Curvature"),
        (changed(LOGCOSH, '["convex"]', '["convex", "convex"]'), "0 inflections cut the line into 1 pieces, not 2"),
        (changed(LOGCOSH, '["0", "inf"]', '["0"]'), "range: two ends are needed"),
        (LOGCOSH.replace("onnx", 'poles = ["2"]\nonnx'), "poles: each must be listed among the inflections"),
        (changed(LOGCOSH, "(exp x)", "(sign x)"), "only piecewise-linear functions may have jumps"),
    ],
)
def test_inconsistent_files_are_refused_on_load(tmp_path: Path, text: str, complaint: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(InvalidInput) as error:
        load_nonlinearity(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert complaint in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("(tanh x)", "(tanh (* 2 x))", "derivative differs"),
        ('range = ["0", "inf"]', 'range = ["1", "inf"]', "range does not contain"),
        ('extrema = ["0"]', "extrema = []", "extrema: the monotonicity changes between"),
        ('extrema = ["0"]', 'extrema = ["1/2"]', "extrema: the monotonicity changes between"),
        ('["convex"]', '["concave"]', "curvature: not concave"),
        ('["convex"]', '["linear"]', "curvature: not linear"),
        ("(log 2))", "(log 3))", "backend.numeric differs"),
        ("(log (* 1/2 (+ (exp x) (exp (- x)))))", "(log (* 1/2 (- (exp x) (exp (- x)))))", "the term is not defined at"),
    ],
)
def test_false_claims_are_refused_by_the_full_check(tmp_path: Path, old: str, new: str, complaint: str) -> None:
    function = load_nonlinearity(write(tmp_path, changed(LOGCOSH, old, new))).bind()
    with pytest.raises(InvalidInput) as error:
        check(function, "mine.toml")
    assert str(error.value).startswith("mine.toml: ")
    assert complaint in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"none\.toml: No such file"):
        load_nonlinearity(tmp_path / "none.toml")


def test_loading_imports_neither_torch_nor_flint() -> None:
    code = (
        "import sys; from milpverify.functions.catalogue import catalogue; catalogue()['relu'].bind().pieces; "
        "print(sorted({'torch', 'flint', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
