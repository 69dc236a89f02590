"""Solver-neutral models and the encodings of networks as MILP and SMT."""
