"""Prepared readouts to complete slices."""
