"""Measures of how far images are from the truth."""
