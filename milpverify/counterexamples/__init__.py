"""Counterexamples: how they are looked for, polished, and validated."""
