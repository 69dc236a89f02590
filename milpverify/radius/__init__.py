"""The robustness radius: how far an input may change before its label can.

`search` is the algorithm, `robustness` the public functions, `mv.robustness_radius` and `mv.robustness_radii`.
"""
