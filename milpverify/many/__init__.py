"""Many problems: verify() in processes that each keep the network that they have."""
