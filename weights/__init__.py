"""Trained weights of cinestream (safetensors) and their manifest."""
