"""Numerics that the core shares: inverse CDF, protection from NaN, duplicates, precision."""
