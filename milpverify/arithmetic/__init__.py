"""Arithmetic with proved errors: rounding bounds, outward-rounded intervals, running errors."""
