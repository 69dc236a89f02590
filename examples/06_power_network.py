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
        print(found)
        if found.proof is not None:
            print(f"  rechecked without a solver: {acopf.recheck(case, found.proof).message}")

    most = acopf.max_loadability(case, gap=1e-3, timeout=30)
    print(most.headline)

    cheapest = acopf.certify_cost(case, gap=1e-4, timeout=30)
    print(f"{cheapest.headline}; the upper bound is {'proved' if cheapest.upper_is_proved else 'that of a point within the tolerance'}")

    for name, result in (("most", most), ("cheapest", cheapest)):
        if result.point is not None:
            acopf.draw(result, folder / f"{name}.png")
            acopf.plot_margins(result, folder / f"{name}_margins.png")
            print(f"drawn: {folder / name}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
