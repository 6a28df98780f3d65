"""Numerics shared by the package: leading axes of states, duplicate ids, limits, precision."""
