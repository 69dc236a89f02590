"""Linear relaxations of nonlinear operators, one rule per kind."""
