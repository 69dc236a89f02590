"""Differences between two copies of a network, bounded layer by layer: W (a - b), and f(a) - f(b) by the slopes of f."""
