"""Simulated beating heart in a thorax, with coils, ECG, sampling and the true images."""
