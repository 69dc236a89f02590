"""What presolved bounds bring to an embedded network: seconds to the optimum with intervals, CROWN and alpha-CROWN.

    PYTHONPATH=.:tests/support python tests/benchmarks/embedding.py 2x32 3x50 --solvers scip highs --timeout 120

trains ReLU surrogates of a wavy function of four variables, embeds each in a small model (least output under a budget of the inputs), and
prints binaries, seconds of embedding and of solving, nodes, the best value and the bound. Runs of a network differ in the bounds only.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from torch import nn
from user_models import UserModel

import milpverify as mv

INPUTS = 4


def trained(depth: int, width: int, seed: int) -> nn.Sequential:
    """A ReLU network fitted to sum sin(3 x_i) x_(i+1) + |x|^2 over [-1, 1]^4."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = [nn.Linear(INPUTS, width), nn.ReLU()]
    for _ in range(depth - 1):
        layers += [nn.Linear(width, width), nn.ReLU()]
    net = nn.Sequential(*layers, nn.Linear(width, 1))
    x = 2 * torch.rand(2000, INPUTS) - 1
    y = (torch.sin(3 * x) * x.roll(1, dims=1)).sum(1, keepdim=True) + x.square().sum(1, keepdim=True)
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(400):
        optimiser.zero_grad()
        nn.functional.mse_loss(net(x), y).backward()
        optimiser.step()
    return net.eval()


def outcome(user: UserModel) -> tuple[int, float, float]:
    """Nodes, the best value and the bound."""
    model: Any = user.model
    match user.solver:
        case "scip":
            return int(model.getNTotalNodes()), float(model.getPrimalbound()), float(model.getDualbound())
        case "gurobi":
            return int(model.NodeCount), float(model.ObjVal), float(model.ObjBound)
    info = model.getInfo()
    return int(info.mip_node_count), float(info.objective_function_value), float(info.mip_dual_bound)


def run(net: nn.Sequential, solver: str, bounds: str, half: float, timeout: float) -> str:
    user = UserModel(solver, [(-half, half)] * INPUTS)
    match solver:
        case "scip":
            user.model.setParam("limits/time", timeout)
        case "gurobi":
            user.model.Params.TimeLimit = timeout
        case _:
            user.model.setOptionValue("time_limit", timeout)
    user.row(sum(user.x[1:], user.x[0]) >= half)
    begin = time.monotonic()
    embedded = mv.embed(user.model, net, user.x, bounds=bounds)
    embedding = time.monotonic() - begin
    low, high = embedded.ranges[embedded.graph.output]
    begin = time.process_time()
    user.minimise(embedded.outputs[0])
    seconds = time.process_time() - begin
    binaries = embedded.written.encoding.unstable if embedded.written is not None else 0
    nodes, best, bound = outcome(user)
    return (
        f"{solver:6s} {bounds:12s} binaries {binaries:4d}  output range {float((high - low).max()):9.3g}  embedding {embedding:5.2f} s"
        f"  solving {seconds:7.2f} CPU s  nodes {nodes:7d}  best {best:9.6f}  bound {bound:9.6f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("sizes", nargs="+", help="depth x width, such as 2x32")
    parser.add_argument("--solvers", nargs="+", default=["scip", "highs"])
    parser.add_argument("--bounds", nargs="+", default=["ibp", "crown", "alpha-crown"])
    parser.add_argument("--half", type=float, default=1.0, help="half the width of the inputs' box")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--timeout", type=float, default=120.0)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for size in asked.sizes:
        depth, width = map(int, size.split("x"))
        for seed in range(asked.seeds):
            net = trained(depth, width, seed)
            print(f"ReLU {size}, seed {seed}", flush=True)
            for solver in asked.solvers:
                for bounds in asked.bounds:
                    print("  " + run(net, solver, bounds, asked.half, asked.timeout), flush=True)


if __name__ == "__main__":
    main()
