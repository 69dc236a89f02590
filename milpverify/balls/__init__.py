"""L1 and L2 balls as sets of inputs: exact membership, bounds over a ball and a box, rows for solvers, projections."""
