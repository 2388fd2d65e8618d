"""A beating heart in a thorax, its coils, its ECG and its sampling, with the truth at hand."""
