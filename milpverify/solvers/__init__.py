"""Adapters of external solvers, reached through `registry` and run in worker processes."""
