"""What may be handed in, and what is refused in one line."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from support import ROOT
from torch import nn
from user_models import SOLVERS, UserModel, network, value

import milpverify as mv
from milpverify.frontends.network import load_network
from milpverify.solvers.registry import available

NET = network(nn.ReLU)
TO = 1e-6


def agrees(user: UserModel, embedded: mv.Embedding) -> mv.Deviation:
    user.minimise(embedded.outputs[0])
    found = embedded.error()
    assert found.largest <= TO
    return found


@pytest.mark.parametrize("solver", SOLVERS)
def test_graphs_files_and_modules(solver: str, tmp_path: Path) -> None:
    """The minimum is the same; only graphs have no runtime."""
    graph = load_network(NET, mv.Box([-1, -1], [1, 1])).graph
    found = []
    for net in (NET, graph):
        user = UserModel(solver)
        found.append(agrees(user, mv.embed(user.model, net, user.x)))
    assert found[0].runtime is not None and found[1].runtime is None
    np.testing.assert_allclose(found[0].outputs[0], found[1].outputs[0], atol=1e-7)


def test_an_onnx_file() -> None:
    model = onnx.load(ROOT / "examples" / "digits.onnx")
    assert len(model.graph.input) == 1
    user = UserModel("scip", [(0, 0.1)] * 64)
    user.fix([0.05] * 64)
    embedded = mv.embed(user.model, ROOT / "examples" / "digits.onnx", user.x)
    found = agrees(user, embedded)
    assert len(embedded.outputs) == 10
    np.testing.assert_allclose(found.runtime, found.outputs, atol=1e-4)


@pytest.mark.parametrize("solver", SOLVERS)
def test_integers_fixed_variables_numbers_and_expressions(solver: str) -> None:
    net = network(nn.ReLU, seed=4, nx=5)
    user = UserModel(solver, [(-2, 2), (0.25, 0.25), (-1, 1)], integer=(0,))
    a, b, c = user.x
    embedded = mv.embed(user.model, net, [a, b, 0.75, 0.5 * a - 2 * c + 1, c])
    x = agrees(user, embedded).x
    assert abs(x[0] - round(x[0])) < 1e-6 and x[1] == pytest.approx(0.25) and x[2] == 0.75
    assert x[3] == pytest.approx(0.5 * x[0] - 2 * x[4] + 1, abs=1e-6)
    low, high = embedded.box.lower, embedded.box.upper
    assert (low[3], high[3]) == (pytest.approx(-2.0), pytest.approx(4.0))
    embedded.remove()
    assert user.size() == (3, 0)


def test_arrays_of_any_shape() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 1)).eval()
    user = UserModel("scip", [(-1, 1)] * 9)
    flat = UserModel("highs")
    agrees(flat, mv.embed(flat.model, NET, [[flat.x[0]], [flat.x[1]]]))  # of a shape that the network does not take
    shapes = [np.array([*user.x, None], dtype=object)[:9].reshape(1, 3, 3), [[user.x[3 * i : 3 * i + 3] for i in range(3)]]]
    for given in shapes:
        embedded = mv.embed(user.model, net, given)
        agrees(user, embedded)
        embedded.remove()
    agrees(user, mv.embed(user.model, net, user.x, shape=(1, 1, 3, 3)))
    user.model.freeTransform()
    matrix = user.model.addMatrixVar((1, 3, 3), lb=-1, ub=1)
    agrees(user, mv.embed(user.model, net, matrix))
    gurobi = UserModel("gurobi")
    agrees(gurobi, mv.embed(gurobi.model, net, gurobi.model.addMVar((1, 3, 3), lb=-1, ub=1)))
    agrees(gurobi, mv.embed(gurobi.model, NET, gurobi.model.addVars(2, lb=-1, ub=1)))
    highs = UserModel("highs")
    agrees(highs, mv.embed(highs.model, net, highs.model.addVariables(1, 3, 3, lb=-1, ub=1, out_array=True)))
    agrees(highs, mv.embed(highs.model, NET, highs.model.addVariables(2, lb=-1, ub=1)))


def test_one_variable_twice_and_alone() -> None:
    for solver in SOLVERS:
        user = UserModel(solver)
        found = agrees(user, mv.embed(user.model, NET, [user.x[0], user.x[0]]))
        assert found.x[0] == found.x[1]
        alone = network(nn.ReLU, nx=1)
        np.testing.assert_allclose(agrees(user, mv.embed(user.model, alone, user.x[1])).x.shape, (1,))


@pytest.mark.parametrize("solver", SOLVERS)
def test_unusual_networks(solver: str) -> None:
    """Constants, the identity, unused inputs, and an activation at the very end."""
    torch.manual_seed(2)
    first, last = nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 3), nn.ReLU()).eval()  # whose last output is never more than 0
    with torch.no_grad():
        first.weight.zero_()
        first.weight[0, 0] = 2.0
    for net in (first.eval(), nn.Identity().eval(), last):
        user = UserModel(solver)
        embedded = mv.embed(user.model, net, user.x)
        found = agrees(user, embedded)
        np.testing.assert_allclose(found.outputs, value(net, found.x), atol=1e-6)
        net.float()


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_box_that_is_a_point(solver: str) -> None:
    for net in (NET, network(nn.Tanh)):
        net.float()
        user = UserModel(solver, [(0.3, 0.3), (-0.7, -0.7)])
        agrees(user, mv.embed(user.model, net, user.x))


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1e6, 1e12])
def test_inputs_in_strange_units(scale: float) -> None:
    net = network(nn.ReLU)
    with torch.no_grad():
        net[0].weight /= scale
        net[-1].weight *= scale
        net[-1].bias *= scale
    for solver in SOLVERS:
        user = UserModel(solver, [(-scale, scale), (-scale, scale)])
        embedded = mv.embed(user.model, net, user.x)
        user.minimise(embedded.outputs[0])
        assert embedded.error().largest <= TO
    net.float()


@pytest.mark.parametrize("solver", SOLVERS)
def test_what_is_refused(solver: str) -> None:
    user, other = UserModel(solver, [(-1, 1), (-1, math.inf)]), UserModel(solver, [(0, 1)] * 3)
    x, size = user.x, user.size()
    broken = network(nn.ReLU)
    with torch.no_grad():
        broken[0].weight[0, 0] = math.nan
    refused = [
        ((NET, x), {}, r"input 1 \(x1\) has no finite upper bound"),
        ((NET, [x[0], 1e30]), {}, "input 1 is 1e.30"),
        ((NET, [x[0], math.nan]), {}, "input 1 is nan"),
        ((NET, [x[0], "x1"]), {}, "input 1 is a str"),
        ((NET, [x[0], None]), {}, "input 1 is a NoneType"),
        ((NET, []), {}, "no inputs were given"),
        ((NET, [x[0], other.x[-1]]), {}, "another|own"),
        ((NET, [x[0]]), {}, "."),
        ((load_network(NET, mv.Box([0, 0], [1, 1])).graph, [x[0]]), {}, "1 inputs were given, but the network takes 2"),
        ((ROOT / "examples" / "digits.onnx", [x[0]]), {}, "1 inputs"),
        ((NET, x), {"upper": [1, 2, 3]}, "upper has 3 entries, but there are 2 inputs"),
        ((NET, x), {"upper": [1, math.nan]}, "upper has an entry that is no number"),
        ((NET, x), {"lower": 0.5, "upper": 0.25}, r"input 0 \(x0\) has the lower bound 0.5 above its upper bound 0.25"),
        ((NET, x), {"upper": "1,2"}, "upper is neither a number nor"),
        ((NET, [-1e19, 1e19]), {"lower": -1e19, "upper": 1e19}, "cannot be embedded over these bounds"),
        ((NET, x), {"upper": 1, "bounds": "magic"}, "there are no bounds 'magic'"),
        ((NET, x), {"upper": 1, "encoding": "magic"}, "there is no encoding 'magic'"),
        ((NET, x), {"upper": 1, "pieces": 0}, "pieces"),
        ((NET, x), {"upper": 1, "name": "a b"}, "without spaces"),
        ((broken, x), {"upper": 1}, "."),
        ((network(nn.ReLU).train(), x), {"upper": 1}, "training"),
        ((3, x), {"upper": 1}, "a network is"),
    ]
    for args, options, message in refused:
        with pytest.raises(mv.InvalidInput, match=message) as error:
            mv.embed(user.model, *args, **options)
        assert "\n" not in str(error.value)
        assert user.size() == size
    if solver != "highs":
        with pytest.raises(mv.InvalidInput, match="neither a variable"):
            mv.embed(user.model, NET, [x[0], x[0] * x[0]])
    embedded = mv.embed(user.model, NET, x, upper=1, name="first")
    with pytest.raises(mv.InvalidInput, match="'first' is taken"):
        mv.embed(user.model, NET, x, upper=1, name="first")
    assert all(name.startswith("first_") for name in embedded.host.names() if name not in ("x0", "x1"))


def test_models_of_none_of_the_solvers() -> None:
    with pytest.raises(mv.InvalidInput, match=r"a model is a pyscipopt.Model"):
        mv.embed(object(), NET, [0.0, 0.0])


def test_scip_solved_or_being_solved() -> None:
    """A solved model is freed of that; one that is being solved is refused."""
    user = UserModel("scip")
    user.minimise(user.x[0])
    agrees(user, mv.embed(user.model, NET, user.x))
    import pyscipopt

    class Within(pyscipopt.Heur):  # type: ignore[misc]
        message = ""

        def heurexec(self, heurtiming: object, nodeinfeasible: bool) -> dict[str, object]:
            try:
                mv.embed(self.model, NET, [0.0, 0.0])
            except mv.InvalidInput as error:
                Within.message = str(error)
            return {"result": pyscipopt.SCIP_RESULT.DIDNOTRUN}

    user.model.freeTransform()
    user.model.includeHeur(Within(), "within", "embeds from within", "Y", timingmask=pyscipopt.SCIP_HEURTIMING.BEFORENODE)
    user.model.optimize()
    assert "being solved" in Within.message


def test_removed_variables_and_gurobi_licences() -> None:
    user = UserModel("gurobi")
    gone = user.variable(0, 1, "gone")
    user.model.update()
    user.model.remove(gone)
    user.model.update()
    with pytest.raises(mv.InvalidInput, match="removed"):
        mv.embed(user.model, NET, [user.x[0], gone])
    size = user.size()
    wide = network(nn.ReLU, width=400)
    limited = next(info for info in available() if info.name == "gurobi")
    if "size-limited" in limited.note:
        with pytest.raises(mv.SolverUnavailable, match="too large for the licence"):
            mv.embed(user.model, wide, user.x, bounds="ibp")
        assert user.size() == size
