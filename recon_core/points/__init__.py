"""Masks of points on the Cartesian grid: slices of which the readouts are not whole lines."""
