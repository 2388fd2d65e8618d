"""Trained weights: their manifest, reading checkpoints, and loading networks."""
