"""Tighter bounds of pre-activations, and restarts of the tree from them."""
