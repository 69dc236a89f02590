"""Bound propagation through a network, rigorous under rounding: intervals, CROWN, forward forms, second order."""
