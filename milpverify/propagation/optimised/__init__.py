"""Bounds with free parameters that are optimised: alpha-CROWN, beta-CROWN, output constraints."""
