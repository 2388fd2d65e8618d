"""A CT volume of the same patient: reading it, and bringing it to the grid of an MR slice."""
