"""Reconstructions that need no training."""
