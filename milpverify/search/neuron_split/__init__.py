"""Branch-and-bound on neurons: pre-activations are split."""
