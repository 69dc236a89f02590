"""Queries of VNN-LIB 2.0 in the standard's own command line: about several networks, of the reals or of a type's arithmetic."""
