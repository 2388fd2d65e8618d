"""Measuring images against the truth, and the methods on the scans of a standard suite."""
