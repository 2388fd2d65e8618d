"""Slices with samples that follow no Cartesian grid: where the samples lie, and the encoding through them."""
