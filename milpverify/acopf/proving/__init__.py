"""Bounds of all operating points, and their proofs."""
