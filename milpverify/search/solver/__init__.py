"""What exact solvers do for the search: leaves, whole models, and a solver that works beside the tree."""
