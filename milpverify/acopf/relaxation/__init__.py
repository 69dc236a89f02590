"""Linear relaxations of the power-flow equations, in float64 to be solved and in rationals to be checked."""
