"""Models as objects of the solvers' own libraries, ours or a user's, to which rows and columns are added."""
