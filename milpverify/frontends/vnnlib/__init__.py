"""VNN-LIB properties: the reader and the disjunctive normal form."""
