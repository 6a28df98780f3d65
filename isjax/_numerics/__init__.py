"""Numerics shared by the package: inverse CDF, duplicates, non-finite values, precision."""
