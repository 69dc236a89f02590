"""Branch-and-bound on the inputs: boxes are bisected."""
