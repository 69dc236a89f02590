"""The exact search: deciding disjuncts by bounds, branching and solvers."""
