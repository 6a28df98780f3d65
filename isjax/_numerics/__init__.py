"""Numerics shared by the package: leading axes of states, limits, precision."""
