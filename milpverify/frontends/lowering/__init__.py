"""What every frontend lowers with: the builder of graphs, its rewrites, and the comparison with the network's own runtime."""
