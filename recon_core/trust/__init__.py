"""Whether a scan is like those of the training, and whether an image agrees with its data."""
