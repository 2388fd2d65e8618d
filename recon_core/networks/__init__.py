"""The networks, one architecture per file."""
