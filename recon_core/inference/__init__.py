"""A trained network on a slice: the image to start from, windows of frames, precision, range and limits."""
