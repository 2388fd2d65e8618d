"""Coil maps: where each receive coil sees the body."""
