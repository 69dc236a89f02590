"""A dispatch of 14 buses: does it hold for all loads within 2 %, how close do they come to a limit, and what without any one branch?

    python examples/11_secure_dispatch.py [FOLDER]

The case is pypower's, with limits of all flows added. Its optimal power flow, with limits kept 2 % inside, is the dispatch. Pictures and
the table (CSV) are written to FOLDER, or to the current one.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from pypower.api import case14, ppoption, runopf

from milpverify import acopf

BOX = acopf.box(0.02)


def network() -> dict[str, object]:
    """Case 14 with flow limits, and with magnitudes up to 1.1 p.u."""
    tables = case14()
    tables["branch"][:, 5] = 150.0
    tables["bus"][:, 11] = 1.1
    return {**tables, "name": "case14"}


def dispatch(tables: dict[str, object]) -> tuple[np.ndarray, np.ndarray]:
    """pg and vm of an optimal power flow with narrower limits, p.u."""
    inner = {name: np.array(value, copy=True) if isinstance(value, np.ndarray) else value for name, value in tables.items()}
    inner["bus"][:, 11] -= 0.02
    inner["bus"][:, 12] += 0.02
    inner["branch"][:, 5] = 135.0
    inner["gen"][:, 3] -= 3.0
    inner["gen"][:, 4] += 3.0
    found = runopf(inner, ppoption(VERBOSE=0, OUT_ALL=0))
    assert found["success"]
    return found["gen"][:, 1] / found["baseMVA"], found["bus"][:, 7]


def main(folder: Path) -> None:
    tables = network()
    case = acopf.load_case(tables)
    pg, vm = dispatch(tables)

    found = acopf.check_dispatch(case, pg=pg, vm=vm, loads=BOX, timeout=30)
    print(found.headline)
    print(found.table(worst=6))
    acopf.plot_certified(found, folder / "dispatch_margins.png")

    table = acopf.check_dispatch(case, pg=pg, vm=vm, loads=BOX, timeout=30, outages=["all"])
    print(table)
    table.to_csv(folder / "outages.csv")
    for number, result in table.results.items():
        if result.violation is not None:
            print(f"without branch row {number}: {result.violation}")
            acopf.draw(result, folder / "outage.png")
            break


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
