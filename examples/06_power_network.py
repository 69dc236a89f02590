"""A power network of 9 buses: can it carry its load, how far may that grow, at what cost, and what does it look like?

    python examples/06_power_network.py [FOLDER]

The case comes with pypower. Pictures are written to FOLDER, or to the current one. All numbers are per unit of 100 MVA, and $/h.
"""

from __future__ import annotations

import sys
from pathlib import Path

from pypower.api import case9

from milpverify import acopf


def main(folder: Path) -> None:
    case = acopf.load_case({**case9(), "name": "case9"})

    for factor in (1.0, 3.0):
        found = acopf.check_feasibility(case, loads=acopf.scaled(factor), timeout=30)
        print(f"all loads x {factor}: {found.verdict.name}, {found.reason.value}, trust {found.trust.value}")
        if found.verdict is acopf.Verdict.INFEASIBLE:
            print(f"  every point violates some limit or balance by at least {found.violation_bound:.4f} p.u.")
        for one in found.worst():
            print(f"  {one.kind:<20s} {one.element:<28s} {one.value:9.5f} {one.unit:<4s} margin {one.margin:.2g}")

    most = acopf.max_loadability(case, gap=1e-3, timeout=30)
    print(f"loads can grow by a factor between {most.lower:.5f} and {most.upper:.5f}")

    cost = acopf.certify_cost(case, gap=1e-4, timeout=30)
    print(f"the least cost is between {cost.lower:.3f} and {cost.upper:.3f} $/h, gap {cost.gap:.1e}, trust {cost.trust.value}")

    for name, result in (("most", most), ("cheapest", cost)):
        if result.point is not None:
            acopf.draw(result, folder / f"{name}.png")
            acopf.plot_margins(result, folder / f"{name}_margins.png")
            print(f"drawn: {folder / name}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
